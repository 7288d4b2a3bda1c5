//! What deploys tell the scheduler, on its way there.

use super::world::World;
use crate::Scheduler;
use fnctl_core::ids::FunctionName;
use fnctl_core::invocation::Unanswered;
use fnctl_core::ports::{Claim, InstanceStatus, Invoker};
use fnctl_core::version::{Version, VersionKey};
use fnctl_core::{Failure, Invocation, Reply};
use std::sync::Arc;
use tokio::time::Instant;

/// Notes which sandboxes run when their version is superseded.
pub(super) struct Watched(pub(super) Scheduler, pub(super) Arc<World>);

#[async_trait::async_trait]
impl Invoker for Watched {
    async fn invoke(&self, invocation: Invocation) -> Result<Reply, Unanswered> {
        self.0.invoke(invocation).await
    }

    async fn activate(
        &self,
        version: Arc<Version>,
        retired: Vec<VersionKey>,
    ) -> Result<(), Failure> {
        self.1.books.lock().ledger.activated(&self.1, &version);
        let activated = self.0.activate(version, retired.clone()).await;
        let mut books = self.1.books.lock();
        for live in books.live.values_mut() {
            if retired.contains(&live.version.key()) {
                live.superseded.get_or_insert_with(Instant::now);
            }
        }
        for (key, superseded) in books.begun.values_mut() {
            if retired.contains(key) {
                superseded.get_or_insert_with(Instant::now);
            }
        }
        for key in retired {
            // Who was on the way to it may still come.
            let mut calls = books.calls.values();
            if !calls.any(|asked| !asked.over && asked.version == key) {
                books.unwanted.insert(key);
            }
        }
        drop(books);
        activated
    }

    fn retire(&self, versions: &[VersionKey]) {
        {
            let mut books = self.1.books.lock();
            books.ledger.retired(versions);
            books.retiring = true;
        }
        self.0.retire(versions);
        self.1.books.lock().retiring = false;
    }

    fn claim(&self, version: &Version) -> Result<Claim, Failure> {
        self.0.claim(version)
    }

    fn status(&self, function: &FunctionName) -> Vec<InstanceStatus> {
        self.0.status(function)
    }
}
