//! Whether an invocation that waits is having something computed. The scheduler counts the invocations that use a
//! processor: one that waits for the network gives its turn away, one that waits for its own inference does not.
//!
//! The scheduler opens a scope around a run, the worker marks the computes within it. Where several invocations share a
//! guest, one of them runs it for all: what it has computed is counted for the guest, and [`Led`] gives the mark to
//! whoever runs it now, so that it is one processor that counts as used, and stays so when that one leaves.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

tokio::task_local! {
    static COMPUTES: Computes;
}

/// Number of computes that an invocation waits for.
#[derive(Debug, Clone, Default)]
pub struct Computes(Arc<AtomicUsize>);

impl Computes {
    /// Whether there is one.
    pub fn any(&self) -> bool {
        self.0.load(Ordering::SeqCst) > 0
    }

    /// Runs `future` so that [`computing`] within it counts here.
    pub fn scope<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        COMPUTES.scope(self.clone(), future)
    }

    /// Polls what several invocations share, so that [`computing`] within it counts here, and for none of them.
    pub fn within<R>(&self, poll: impl FnOnce() -> R) -> R {
        COMPUTES.sync_scope(self.clone(), poll)
    }
}

/// Marks a compute for as long as it lives.
#[derive(Debug)]
pub struct Computing(Option<Computes>);

impl Drop for Computing {
    fn drop(&mut self) {
        if let Some(computes) = &self.0 {
            computes.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Marks that the invocation that is being run here has something computed. Outside of a run it does nothing.
pub fn computing() -> Computing {
    let computes = COMPUTES.try_with(Clone::clone).ok();
    if let Some(computes) = &computes {
        computes.0.fetch_add(1, Ordering::SeqCst);
    }
    Computing(computes)
}

/// The mark of one of several invocations that share a guest.
#[derive(Debug, Default)]
pub struct Led(Option<Computing>);

impl Led {
    /// This invocation, in whose run this is said, has just run the guest, whose computes are counted in `guest`.
    pub fn ran(&mut self, guest: &Computes) {
        if !guest.any() {
            self.0 = None;
        } else if self.0.is_none() {
            self.0 = Some(computing());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_compute_counts_while_it_lasts() {
        let computes = Computes::default();
        let outer = computes.clone();
        computes
            .scope(async move {
                let one = computing();
                assert!(outer.any());
                drop(one);
                assert!(!outer.any());
            })
            .await;
        drop(computing());
        assert!(!computes.any());
    }

    #[tokio::test]
    async fn what_a_shared_guest_has_computed_is_the_mark_of_whoever_runs_it() {
        let (guest, first, second) = (
            Computes::default(),
            Computes::default(),
            Computes::default(),
        );
        let (mut led, mut follows) = (Led::default(), Led::default());
        // The first runs the guest, which has something computed and is not done with it.
        let compute = first.within(|| {
            let compute = guest.within(computing);
            led.ran(&guest);
            compute
        });
        assert!(guest.any() && first.any() && !second.any());
        // It leaves; the second runs the guest now.
        drop(led);
        second.within(|| follows.ran(&guest));
        second.within(|| follows.ran(&guest));
        assert!(!first.any() && second.any());
        drop(compute);
        assert!(second.any(), "it has not been run since");
        second.within(|| follows.ran(&guest));
        assert!(!guest.any() && !second.any());
    }
}
