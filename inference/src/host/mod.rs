//! ONNX Runtime in processes of its own: supervised, restarted, replaced, and confined.
//!
//! `supervisor` implements the `InferenceHost` port on the platform's side and keeps everything that must outlive a host:
//! which sessions there are, who uses them, which models are suspects. `process` is one running host, `computes` what is
//! in it. `child` is the host itself. Invariant: nothing a host says or writes is believed without a check, and nothing
//! that a caller waits for depends on one host living.

mod arena;
mod asked;
mod backoff;
mod bound;
#[cfg(test)]
mod bound_tests;
mod child;
mod child_compute;
mod child_threads;
mod computes;
#[cfg(test)]
mod computes_tests;
mod death;
mod fading;
mod few;
mod group;
mod heap_room;
mod held;
mod lanes;
mod loads;
mod logs;
mod making_room;
mod metrics;
mod model;
mod placing;
mod process;
mod protocol;
mod quarantine;
#[cfg(test)]
mod quarantine_tests;
mod rings;
mod shared;
mod socket;
mod spawn;
mod supervisor;
#[cfg(test)]
mod supervisor_tests;
mod trial;
mod unloads;
mod upkeep;
mod watch;

pub use child::{ServeError, serve};
pub use spawn::SUBCOMMAND;
pub(crate) use supervisor::SupervisedHost;
pub(crate) use trial::Trial;

use crate::ProbedHost;
use crate::config::Config;
use crate::confine::{Confinement, Limits, confine};
use fnctl_core::inference::{InferenceError, InferenceErrorKind};
use process::{HostProcess, Plan, StartFailure};
use tokio::time::Instant;

/// Descriptors that a host may have open at once: its own few, and the models that are loading.
const OPEN_FILES: u64 = 64;
/// Memory that a host may take besides what the budget counts: graphs, their optimisation, stacks.
const BESIDES: u64 = 512 << 20;

/// Starts a host and ends it.
pub(crate) async fn probe(config: &Config) -> Result<ProbedHost, String> {
    let since = Instant::now();
    let host = HostProcess::start(&Plan::new(config.clone()))
        .await
        .map_err(|failure| match failure {
            StartFailure::Told(error) => error.to_string(),
            StartFailure::Died(why) => why,
        })?;
    let probed = ProbedHost {
        took: since.elapsed(),
        unconfined: host.unconfined.clone(),
    };
    host.stop().await;
    Ok(probed)
}

/// Gives up everything a host does not need. Says what the system enforces.
fn confinement(setup: &protocol::Setup) -> Result<Confinement, InferenceError> {
    let limits = Limits {
        open_files: OPEN_FILES,
        // While a model loads, its weights are there twice: in the graph and in the session.
        memory: Some(setup.memory.saturating_mul(2).saturating_add(BESIDES)),
        shared_memory: 0,
        parent: Some(setup.parent),
    };
    confine(&limits).map_err(|error| {
        InferenceError::new(
            InferenceErrorKind::Unavailable,
            format!("the inference host cannot be confined: {error}"),
        )
    })
}
