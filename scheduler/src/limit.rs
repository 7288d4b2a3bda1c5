//! The concurrency limit of one function: a number of permits, and a bounded first-in-first-out queue for them.
//!
//! [`LimitState`] decides and is pure; `ConcurrencyLimit` puts waiting callers to sleep. The time limit of the queue is
//! the caller's to keep.

use crate::admission::{Queue, Verdict};
use crate::service_rate::Average;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// What became of a request for a permit.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission<W> {
    /// There was one.
    Granted,
    /// Waiting, under this ticket.
    Queued(u64),
    /// The queue is full; the waiter is handed back.
    Full(W),
}

/// Permits and queue. `W` is what is woken; here it is only kept in order.
#[derive(Debug)]
pub struct LimitState<W> {
    limit: usize,
    max_queue: usize,
    in_flight: usize,
    queue: VecDeque<(u64, W)>,
    next: u64,
}

impl<W> LimitState<W> {
    /// No permit out, nobody waiting.
    pub fn new(limit: usize, max_queue: usize) -> Self {
        Self {
            limit,
            max_queue,
            in_flight: 0,
            queue: VecDeque::new(),
            next: 0,
        }
    }

    /// Asks for a permit. Nobody overtakes the queue.
    pub fn admit(&mut self, waiter: W) -> Admission<W> {
        if self.queue.is_empty() && self.in_flight < self.limit {
            self.in_flight += 1;
            Admission::Granted
        } else if self.queue.len() < self.max_queue {
            let ticket = self.next;
            self.next += 1;
            self.queue.push_back((ticket, waiter));
            Admission::Queued(ticket)
        } else {
            Admission::Full(waiter)
        }
    }

    /// Gives a permit back. It goes to the one who waits longest, who is returned to be woken.
    pub fn release(&mut self) -> Option<W> {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.grant()
    }

    /// Grants one free permit to the queue, if there are both.
    fn grant(&mut self) -> Option<W> {
        if self.in_flight >= self.limit {
            return None;
        }
        let (_, waiter) = self.queue.pop_front()?;
        self.in_flight += 1;
        Some(waiter)
    }

    /// Leaves the queue. Nothing happens if the ticket was served already.
    pub fn leave(&mut self, ticket: u64) {
        self.queue.retain(|(queued, _)| *queued != ticket);
    }

    /// Changes the limits. Permits that are out stay out; whoever a higher limit admits is returned.
    pub fn resize(&mut self, limit: usize, max_queue: usize) -> Vec<W> {
        self.limit = limit;
        self.max_queue = max_queue;
        std::iter::from_fn(|| self.grant()).collect()
    }

    /// Most permits out.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Most callers waiting.
    pub fn max_queue(&self) -> usize {
        self.max_queue
    }

    /// Permits out.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Callers waiting.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }
}

/// A [`LimitState`] that callers can wait on.
#[derive(Debug, Clone)]
pub(crate) struct ConcurrencyLimit(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limited: Mutex<Limited>,
    /// Length of the queue, to be read without the lock.
    queued: AtomicUsize,
}

impl Shared {
    fn change<R>(&self, change: impl FnOnce(&mut Limited) -> R) -> R {
        let mut limited = self.limited.lock();
        let outcome = change(&mut limited);
        self.queued.store(limited.state.queued(), Ordering::Relaxed);
        outcome
    }
}

#[derive(Debug)]
struct Limited {
    state: LimitState<oneshot::Sender<Permit>>,
    /// For how long a permit is out, starts of instances not counted.
    holds: Average,
    closed: bool,
}

impl Limited {
    fn queue(&self) -> Queue {
        Queue {
            ahead: self.state.queued(),
            limit: self.state.limit,
            holds: self.holds.settled(),
        }
    }
}

/// The right to have one invocation in flight; given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    limit: Option<ConcurrencyLimit>,
    since: Instant,
    /// How long it was used, if it served a whole invocation.
    used: Option<Duration>,
}

impl Permit {
    /// It served an invocation, `starting` of the time waiting for an instance to start.
    pub(crate) fn served(&mut self, now: Instant, starting: Duration) {
        let held = now.saturating_duration_since(self.since);
        self.used = Some(held.saturating_sub(starting));
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(limit) = self.limit.take() {
            limit.release(self.used);
        }
    }
}

/// Why there is no permit now.
#[derive(Debug)]
pub(crate) enum Denied {
    /// There will be one.
    Queued(Ticket),
    /// The queue is full; when to try again.
    Full(Duration),
    /// The answer would come too late; when to try again.
    TooLate(Duration),
    /// Look for its successor.
    Closed,
}

/// A place in the queue; left when dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    limit: ConcurrencyLimit,
    number: u64,
    permit: oneshot::Receiver<Permit>,
}

impl Ticket {
    /// Waits for the permit. The platform never closes a queue, so an error does not happen.
    pub(crate) async fn wait(&mut self) -> Option<Permit> {
        (&mut self.permit).await.ok()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // A permit that was sent meanwhile is in the receiver and gives itself back when that is dropped.
        self.limit
            .0
            .change(|limited| limited.state.leave(self.number));
    }
}

impl ConcurrencyLimit {
    pub(crate) fn new(limit: usize, max_queue: usize) -> Self {
        Self(Arc::new(Shared {
            limited: Mutex::new(Limited {
                state: LimitState::new(limit, max_queue),
                holds: Average::default(),
                closed: false,
            }),
            queued: AtomicUsize::new(0),
        }))
    }

    fn permit(&self, now: Instant) -> Permit {
        Permit {
            limit: Some(self.clone()),
            since: now,
            used: None,
        }
    }

    /// A permit, or a place in the queue if `judge` finds that worth it.
    pub(crate) fn admit(
        &self,
        now: Instant,
        judge: impl FnOnce(&Queue) -> Verdict,
    ) -> Result<Permit, Denied> {
        let mut limited = self.0.limited.lock();
        if limited.closed {
            return Err(Denied::Closed);
        }
        let state = &mut limited.state;
        // The usual case makes no channel.
        if state.queue.is_empty() && state.in_flight < state.limit {
            state.in_flight += 1;
            return Ok(self.permit(now));
        }
        let queue = limited.queue();
        if matches!(judge(&queue), Verdict::TooLate(_)) {
            return Err(Denied::TooLate(queue.retry_after()));
        }
        let (tx, permit) = oneshot::channel();
        match limited.state.admit(tx) {
            Admission::Granted => Ok(self.permit(now)),
            Admission::Queued(number) => {
                self.0
                    .queued
                    .store(limited.state.queued(), Ordering::Relaxed);
                Err(Denied::Queued(Ticket {
                    limit: self.clone(),
                    number,
                    permit,
                }))
            }
            Admission::Full(_) => Err(Denied::Full(queue.retry_after())),
        }
    }

    fn release(&self, used: Option<Duration>) {
        let mut next = self.0.change(|limited| {
            if let Some(used) = used {
                limited.holds.add(used);
            }
            limited.state.release()
        });
        while let Some(waiter) = next {
            next = self.wake(waiter);
        }
    }

    /// Hands a granted permit to its waiter. One who has just left hands it on.
    fn wake(&self, waiter: oneshot::Sender<Permit>) -> Option<oneshot::Sender<Permit>> {
        match waiter.send(self.permit(Instant::now())) {
            Ok(()) => None,
            Err(mut refused) => {
                // Not dropped as a permit: that would call `release` again from here, once per waiter that left.
                refused.limit = None;
                self.0.change(|limited| limited.state.release())
            }
        }
    }

    pub(crate) fn resize(&self, limit: usize, max_queue: usize) {
        let admitted = self
            .0
            .change(|limited| limited.state.resize(limit, max_queue));
        for waiter in admitted {
            let mut next = self.wake(waiter);
            while let Some(waiter) = next {
                next = self.wake(waiter);
            }
        }
    }

    /// Closes it if nobody holds or wants a permit; says whether it is closed.
    pub(crate) fn close_if_unused(&self) -> bool {
        let mut limited = self.0.limited.lock();
        limited.closed |= limited.state.in_flight() == 0 && limited.state.queued() == 0;
        limited.closed
    }

    /// When a refused caller may try again.
    pub(crate) fn retry_after(&self) -> Duration {
        self.0.limited.lock().queue().retry_after()
    }

    /// Limit, longest queue, permits out and callers waiting; nothing if the lock is held.
    #[cfg(test)]
    pub(crate) fn try_counts(&self) -> Option<[usize; 4]> {
        let state = &self.0.limited.try_lock()?.state;
        Some([
            state.limit(),
            state.max_queue(),
            state.in_flight(),
            state.queued(),
        ])
    }

    /// For how long a permit is out, if that is known well enough; nothing if the lock is held.
    #[cfg(test)]
    pub(crate) fn try_holds(&self) -> Option<Option<Duration>> {
        Some(self.0.limited.try_lock()?.holds.settled())
    }

    /// Callers waiting.
    pub(crate) fn queued(&self) -> usize {
        self.0.queued.load(Ordering::Relaxed)
    }

    /// Permits out, and how many there are.
    pub(crate) fn fill(&self) -> (usize, usize) {
        let limited = self.0.limited.lock();
        (limited.state.in_flight(), limited.state.limit)
    }
}
