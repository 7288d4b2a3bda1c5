//! Whether an invocation that waits is having something computed. The scheduler counts the invocations that use a
//! processor: one that waits for the network gives its turn away, one that waits for its own inference does not.
//!
//! The scheduler opens a scope around a run, the worker marks the computes within it.

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
}
