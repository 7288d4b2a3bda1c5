//! Sessions that a host was told to forget, until it says that it has.

use parking_lot::Mutex;
use std::collections::HashSet;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// The numbers of loads whose end the host has not confirmed.
#[derive(Debug, Default)]
pub(super) struct Unloads {
    told: Mutex<HashSet<u64>>,
    changed: Notify,
}

impl Unloads {
    /// The host is about to be told.
    pub(super) fn told(&self, number: u64) {
        self.told.lock().insert(number);
    }

    /// The host has said that it is done, or could not be told. Says whether it was asked at all.
    pub(super) fn done(&self, number: u64) -> bool {
        let known = self.told.lock().remove(&number);
        self.changed.notify_waiters();
        known
    }

    /// There is no host any more.
    pub(super) fn over(&self) {
        self.told.lock().clear();
        self.changed.notify_waiters();
    }

    /// Waits until all that the host was told so far is done, no longer than until `limit`. What it is told meanwhile is
    /// not waited for.
    pub(super) async fn settled(&self, limit: Instant) {
        let mine = self.told.lock().clone();
        let settled = async {
            loop {
                // Registered before the look, so that what is done in between is not missed.
                let mut changed = std::pin::pin!(self.changed.notified());
                changed.as_mut().enable();
                if self.told.lock().is_disjoint(&mine) {
                    return;
                }
                changed.await;
            }
        };
        let _ = tokio::time::timeout_at(limit, settled).await;
    }
}

/// How long whoever makes room waits for it. Giving gigabytes back takes a system some tenths of a second.
pub(super) const FREEING: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_makes_room_waits_for_what_was_told_and_not_for_ever() {
        let unloads = Unloads::default();
        let limit = || Instant::now() + FREEING;
        unloads.settled(limit()).await;
        unloads.told(1);
        unloads.told(2);
        let mut settled = std::pin::pin!(unloads.settled(limit()));
        assert!(futures::poll!(&mut settled).is_pending());
        unloads.told(3);
        assert!(unloads.done(1));
        assert!(futures::poll!(&mut settled).is_pending());
        assert!(unloads.done(2));
        assert!(!unloads.done(2), "nobody asked");
        assert!(futures::poll!(&mut settled).is_ready(), "3 came later");
        let soon = Instant::now() + Duration::from_millis(50);
        unloads.settled(soon).await;
        assert!(Instant::now() >= soon);
        unloads.over();
        assert!(futures::poll!(std::pin::pin!(unloads.settled(limit()))).is_ready());
    }
}
