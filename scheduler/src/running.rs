//! A run as the node's processors see it: it holds a pass of the gate while its guest computes, and gives it away while
//! the guest waits for something outside.
//!
//! A guest computes while it is polled, while it has been woken and waits for its thread, and while a model computes for
//! it. One that goes on takes its pass back without queueing: what has begun is to be finished.

use crate::gate::{Flow, Gate, Pass};
use fnctl_core::activity::Computes;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use tokio::time::Instant;

/// It waits for something outside, and has no pass.
const WAITING: u8 = 0;
/// It has been woken, or was never polled.
const RUNNABLE: u8 = 1;
/// It is being polled, or has something computed.
const POLLED: u8 = 2;
/// It is over.
const OVER: u8 = 3;

struct Slot {
    gate: Arc<Gate>,
    flow: Arc<Flow>,
    state: AtomicU8,
}

impl Slot {
    /// Goes on. Whoever changes the state takes the pass.
    fn resume(&self, to: u8) {
        let before = self
            .state
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |state| {
                (state != OVER).then_some(to)
            });
        if before == Ok(WAITING) {
            self.gate.force(&self.flow);
        }
    }

    /// Waits, unless it has been woken meanwhile.
    fn pause(&self) {
        let paused =
            self.state
                .compare_exchange(POLLED, WAITING, Ordering::SeqCst, Ordering::SeqCst);
        if paused.is_ok() {
            self.gate.leave(&self.flow);
        }
    }

    fn end(&self) {
        let before = self.state.swap(OVER, Ordering::SeqCst);
        if before != WAITING && before != OVER {
            self.gate.leave(&self.flow);
        }
    }
}

/// Notes that the run goes on, before it is polled.
struct SlotWaker {
    slot: Arc<Slot>,
    task: Waker,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.slot.resume(RUNNABLE);
        self.task.wake_by_ref();
    }
}

/// A run with its pass.
pub(crate) struct Running<'a, F> {
    future: Pin<&'a mut F>,
    slot: Arc<Slot>,
    computes: Computes,
    /// The task's waker, and what stands before it.
    waker: Option<(Waker, Waker)>,
    polled: Duration,
}

impl<'a, F> Running<'a, F> {
    /// Runs `future`, whose computes are counted in `computes`, on `pass`.
    pub(crate) fn new(future: Pin<&'a mut F>, computes: Computes, pass: Pass) -> Option<Self> {
        let (gate, flow) = pass.into_parts()?;
        Some(Self {
            future,
            slot: Arc::new(Slot {
                gate,
                flow,
                state: AtomicU8::new(RUNNABLE),
            }),
            computes,
            waker: None,
            polled: Duration::ZERO,
        })
    }
}

impl<F: Future> Future for Running<'_, F> {
    /// What came of it, and for how long it was polled.
    type Output = (F::Output, Duration);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let known = this
            .waker
            .take()
            .filter(|(task, _)| task.will_wake(cx.waker()));
        let (_, waker) = this.waker.insert(known.unwrap_or_else(|| {
            let waker = SlotWaker {
                slot: this.slot.clone(),
                task: cx.waker().clone(),
            };
            (cx.waker().clone(), Arc::new(waker).into())
        }));
        this.slot.resume(POLLED);
        let since = Instant::now();
        let polled = this.future.as_mut().poll(&mut Context::from_waker(waker));
        this.polled += since.elapsed();
        match polled {
            Poll::Ready(output) => {
                this.slot.end();
                Poll::Ready((output, this.polled))
            }
            Poll::Pending => {
                if !this.computes.any() {
                    this.slot.pause();
                }
                Poll::Pending
            }
        }
    }
}

impl<F> Drop for Running<'_, F> {
    fn drop(&mut self) {
        self.slot.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::First;
    use std::pin::pin;
    use tokio::sync::oneshot;

    async fn settle() {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_run_that_waits_gives_its_pass_away_and_takes_it_back() {
        let gate = Arc::new(Gate::new(1, First::InTurn));
        let flow = Arc::new(Flow::new("a".parse().unwrap()));
        let (tx, rx) = oneshot::channel::<()>();
        let pass = gate.try_enter(&flow).unwrap();
        let run = tokio::spawn(async move {
            let future = pin!(async move {
                rx.await.unwrap();
                tokio::task::yield_now().await;
                7
            });
            Running::new(future, Computes::default(), pass)
                .unwrap()
                .await
                .0
        });
        assert_eq!(gate.fill().0, 1);
        settle().await;
        assert_eq!(gate.fill().0, 0, "it waits");
        let other = gate.try_enter(&flow).unwrap();
        tx.send(()).unwrap();
        assert_eq!(gate.fill().0, 2, "it goes on, as it was woken");
        assert_eq!(run.await.unwrap(), 7);
        drop(other);
        assert_eq!(gate.fill().0, 0);
    }

    #[tokio::test]
    async fn a_run_that_has_something_computed_keeps_its_pass() {
        let gate = Arc::new(Gate::new(1, First::InTurn));
        let flow = Arc::new(Flow::new("a".parse().unwrap()));
        let (tx, rx) = oneshot::channel::<()>();
        let pass = gate.try_enter(&flow).unwrap();
        let run = tokio::spawn(async move {
            let computes = Computes::default();
            let future = pin!(computes.scope(async move {
                let computing = fnctl_core::activity::computing();
                rx.await.unwrap();
                drop(computing);
            }));
            Running::new(future, computes, pass).unwrap().await;
        });
        settle().await;
        assert_eq!(gate.fill().0, 1);
        tx.send(()).unwrap();
        run.await.unwrap();
        assert_eq!(gate.fill().0, 0);
    }

    #[tokio::test]
    async fn a_run_that_is_dropped_at_any_point_leaves_no_pass_behind() {
        let gate = Arc::new(Gate::new(1, First::InTurn));
        let flow = Arc::new(Flow::new("a".parse().unwrap()));
        for rounds in 0..3 {
            let pass = gate.try_enter(&flow).unwrap();
            let run = tokio::spawn(async move {
                let future = pin!(std::future::pending::<()>());
                Running::new(future, Computes::default(), pass)
                    .unwrap()
                    .await;
            });
            for _ in 0..rounds {
                tokio::task::yield_now().await;
            }
            run.abort();
            let _ = run.await;
            assert_eq!(gate.fill().0, 0, "{rounds}");
        }
    }
}
