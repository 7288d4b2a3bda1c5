//! The concurrency limit of one function: a number of permits, and a bounded first-in-first-out queue for them.
//!
//! [`LimitState`] decides and is pure; `ConcurrencyLimit` puts waiting callers to sleep. The time limit of the queue is
//! the caller's to keep.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::oneshot;

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
pub(crate) struct ConcurrencyLimit(pub(crate) Arc<Mutex<LimitState<oneshot::Sender<Permit>>>>);

/// The right to have one invocation in flight; given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    limit: Option<ConcurrencyLimit>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(limit) = self.limit.take() {
            limit.release();
        }
    }
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
        self.limit.0.lock().leave(self.number);
    }
}

impl ConcurrencyLimit {
    pub(crate) fn new(limit: usize, max_queue: usize) -> Self {
        Self(Arc::new(Mutex::new(LimitState::new(limit, max_queue))))
    }

    pub(crate) fn admit(&self) -> Result<Permit, Option<Ticket>> {
        let mut state = self.0.lock();
        // The usual case makes no channel.
        if state.queue.is_empty() && state.in_flight < state.limit {
            state.in_flight += 1;
            return Ok(Permit {
                limit: Some(self.clone()),
            });
        }
        let (tx, permit) = oneshot::channel();
        match state.admit(tx) {
            Admission::Granted => Ok(Permit {
                limit: Some(self.clone()),
            }),
            Admission::Queued(number) => Err(Some(Ticket {
                limit: self.clone(),
                number,
                permit,
            })),
            Admission::Full(_) => Err(None),
        }
    }

    fn release(&self) {
        let mut next = self.0.lock().release();
        while let Some(waiter) = next {
            next = self.wake(waiter);
        }
    }

    /// Hands a granted permit to its waiter. One who has just left hands it on.
    fn wake(&self, waiter: oneshot::Sender<Permit>) -> Option<oneshot::Sender<Permit>> {
        match waiter.send(Permit {
            limit: Some(self.clone()),
        }) {
            Ok(()) => None,
            Err(mut refused) => {
                // Not dropped as a permit: that would call `release` again from here, once per waiter that left.
                refused.limit = None;
                self.0.lock().release()
            }
        }
    }

    pub(crate) fn resize(&self, limit: usize, max_queue: usize) {
        let admitted = self.0.lock().resize(limit, max_queue);
        for waiter in admitted {
            let mut next = self.wake(waiter);
            while let Some(waiter) = next {
                next = self.wake(waiter);
            }
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.0.lock().in_flight()
    }

    pub(crate) fn queued(&self) -> usize {
        self.0.lock().queued()
    }
}
