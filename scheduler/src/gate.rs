//! A place of the whole node that functions share fairly: so many passes, and a fair queue for them.
//!
//! The usual case, a free pass and nobody waiting, takes no lock. A [`Flow`] that has no pass at all gets one whatever
//! the others have: a burst of one function then costs another at most its share of the processors, never its turn. That
//! holds for those who wait as for those who come: the first of them gets the pass when the flow's last is given back.

use crate::fair::FairQueue;
use fnctl_core::FunctionName;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;

/// One function at a gate.
#[derive(Debug)]
pub(crate) struct Flow {
    name: FunctionName,
    /// Passes it has.
    inside: AtomicUsize,
    /// Passes that it was ever given.
    #[cfg(test)]
    given: AtomicUsize,
}

impl Flow {
    pub(crate) fn new(name: FunctionName) -> Self {
        Self {
            name,
            inside: AtomicUsize::new(0),
            #[cfg(test)]
            given: AtomicUsize::new(0),
        }
    }
}

/// Whether a flow without a pass is let in although none is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum First {
    Always,
    InTurn,
}

#[derive(Debug)]
pub(crate) struct Gate {
    capacity: AtomicUsize,
    inside: AtomicUsize,
    /// Length of the queue, to be read without its lock.
    waiting: AtomicUsize,
    first: First,
    queue: Mutex<FairQueue<FunctionName, Waiter>>,
}

type Waiter = (Arc<Flow>, oneshot::Sender<Pass>);

/// The right to be inside; given back when dropped.
#[derive(Debug)]
pub(crate) struct Pass(Option<(Arc<Gate>, Arc<Flow>)>);

impl Pass {
    /// Gate and flow, without giving the pass back: that is now the caller's, with [`Gate::leave`].
    pub(crate) fn into_parts(mut self) -> Option<(Arc<Gate>, Arc<Flow>)> {
        self.0.take()
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if let Some((gate, flow)) = self.0.take() {
            gate.leave(&flow);
        }
    }
}

impl Gate {
    pub(crate) fn new(capacity: usize, first: First) -> Self {
        Self {
            capacity: AtomicUsize::new(capacity.max(1)),
            inside: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            first,
            queue: Mutex::default(),
        }
    }

    /// A pass, if one is free and nobody waits for it.
    pub(crate) fn try_enter(self: &Arc<Self>, flow: &Arc<Flow>) -> Option<Pass> {
        if self.first == First::Always && flow.inside.load(Ordering::SeqCst) == 0 {
            self.force(flow);
            return Some(self.pass(flow));
        }
        let free = self.waiting.load(Ordering::SeqCst) == 0 && self.take_free();
        free.then(|| {
            flow.inside.fetch_add(1, Ordering::SeqCst);
            self.pass(flow)
        })
    }

    fn pass(self: &Arc<Self>, flow: &Arc<Flow>) -> Pass {
        #[cfg(test)]
        flow.given.fetch_add(1, Ordering::SeqCst);
        Pass(Some((self.clone(), flow.clone())))
    }

    fn take_free(&self) -> bool {
        let capacity = self.capacity.load(Ordering::SeqCst);
        self.inside
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |inside| {
                (inside < capacity).then_some(inside + 1)
            })
            .is_ok()
    }

    /// Waits for a pass in fair order. Callers bound the wait; dropping it leaves the queue.
    pub(crate) async fn enter(self: &Arc<Self>, flow: &Arc<Flow>, cost: Duration) -> Option<Pass> {
        if let Some(pass) = self.try_enter(flow) {
            return Some(pass);
        }
        let cost = u64::try_from(cost.as_micros()).unwrap_or(u64::MAX);
        let (tx, rx) = oneshot::channel();
        let ticket = {
            let mut queue = self.queue.lock();
            let ticket = queue.push(&flow.name, cost, (flow.clone(), tx));
            self.waiting.store(queue.len(), Ordering::SeqCst);
            ticket
        };
        let _place = Place {
            gate: self,
            flow,
            ticket,
        };
        // A pass may have been given back before the place in the queue could be seen.
        self.grant_first(flow);
        self.grant();
        rx.await.ok()
    }

    /// Enters although it may be full: for what went on inside and must go on.
    pub(crate) fn force(&self, flow: &Flow) {
        self.inside.fetch_add(1, Ordering::SeqCst);
        flow.inside.fetch_add(1, Ordering::SeqCst);
    }

    /// Gives a pass back that was taken with [`Self::force`], or with a [`Pass`].
    pub(crate) fn leave(self: &Arc<Self>, flow: &Flow) {
        self.count_out(flow);
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.grant_first(flow);
            self.grant();
        }
    }

    fn count_out(&self, flow: &Flow) {
        self.inside.fetch_sub(1, Ordering::SeqCst);
        flow.inside.fetch_sub(1, Ordering::SeqCst);
    }

    /// Lets the first who waits of a flow in if nothing of the flow is inside, full or not.
    fn grant_first(self: &Arc<Self>, flow: &Flow) {
        if self.first != First::Always {
            return;
        }
        loop {
            let (flow, waiter) = {
                let mut queue = self.queue.lock();
                if flow.inside.load(Ordering::SeqCst) > 0 {
                    return;
                }
                let Some(next) = queue.pop_of(&flow.name) else {
                    return;
                };
                self.waiting.store(queue.len(), Ordering::SeqCst);
                self.force(&next.0);
                next
            };
            if self.hand_over(&flow, waiter) {
                return;
            }
        }
    }

    /// Hands over a pass that is counted. Says whether it was taken.
    fn hand_over(self: &Arc<Self>, flow: &Arc<Flow>, waiter: oneshot::Sender<Pass>) -> bool {
        let Err(mut refused) = waiter.send(self.pass(flow)) else {
            return true;
        };
        // It left just now. Not dropped as a pass: that would call `grant` again from here.
        refused.0 = None;
        self.count_out(flow);
        false
    }

    /// Hands free passes to those who wait.
    fn grant(self: &Arc<Self>) {
        loop {
            let next = {
                let mut queue = self.queue.lock();
                if queue.is_empty() || !self.take_free() {
                    return;
                }
                let next = queue.pop();
                self.waiting.store(queue.len(), Ordering::SeqCst);
                if let Some((flow, _)) = &next {
                    flow.inside.fetch_add(1, Ordering::SeqCst);
                }
                next
            };
            let Some((flow, waiter)) = next else {
                self.inside.fetch_sub(1, Ordering::SeqCst);
                return;
            };
            if !self.hand_over(&flow, waiter) {
                // While it was counted the flow's last pass may have been given back.
                self.grant_first(&flow);
            }
        }
    }

    pub(crate) fn resize(self: &Arc<Self>, capacity: usize) {
        self.capacity.store(capacity.max(1), Ordering::SeqCst);
        self.grant();
    }

    /// Passes out, and how many there are.
    pub(crate) fn fill(&self) -> (usize, usize) {
        (
            self.inside.load(Ordering::Relaxed),
            self.capacity.load(Ordering::Relaxed),
        )
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Passes that a flow has, callers of it that wait, and passes it was ever given; nothing if the queue is locked.
    #[cfg(test)]
    pub(crate) fn try_counts(&self, flow: &Flow) -> Option<[usize; 3]> {
        let waiting = self.queue.try_lock()?.len_of(&flow.name);
        Some([
            flow.inside.load(Ordering::SeqCst),
            waiting,
            flow.given.load(Ordering::SeqCst),
        ])
    }
}

/// A place in the queue; left when dropped.
struct Place<'a> {
    gate: &'a Gate,
    flow: &'a Flow,
    ticket: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut queue = self.gate.queue.lock();
        if queue.leave(&self.flow.name, self.ticket) {
            self.gate.waiting.store(queue.len(), Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    fn flow(name: &str) -> Arc<Flow> {
        Arc::new(Flow::new(name.parse().unwrap()))
    }

    #[tokio::test]
    async fn passes_go_round_fairly_and_none_is_lost() {
        let gate = Arc::new(Gate::new(2, First::InTurn));
        let (burst, calm) = (flow("burst"), flow("calm"));
        let order = Arc::new(Mutex::new(Vec::new()));
        let held = [
            gate.try_enter(&burst).unwrap(),
            gate.try_enter(&burst).unwrap(),
        ];
        assert!(gate.try_enter(&calm).is_none());
        let mut tasks = Vec::new();
        for (flow, name, count) in [(&burst, "burst", 20), (&calm, "calm", 3)] {
            for _ in 0..count {
                let (gate, flow, order) = (gate.clone(), flow.clone(), order.clone());
                tasks.push(tokio::spawn(async move {
                    let pass = gate.enter(&flow, Duration::from_millis(1)).await;
                    order.lock().push(name);
                    tokio::task::yield_now().await;
                    drop(pass);
                }));
            }
        }
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        assert_eq!(gate.waiting(), 23);
        drop(held);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!((gate.fill().0, gate.waiting()), (0, 0));
        let last_calm = order.lock().iter().rposition(|name| *name == "calm");
        assert!(last_calm.unwrap() < 8, "{:?}", order.lock());
    }

    #[tokio::test]
    async fn who_leaves_the_queue_takes_no_pass_with_it() {
        let gate = Arc::new(Gate::new(1, First::InTurn));
        let flow = flow("a");
        let held = gate.try_enter(&flow).unwrap();
        let left = tokio::time::timeout(
            Duration::from_millis(5),
            gate.enter(&flow, Duration::from_millis(1)),
        );
        assert!(left.await.is_err());
        assert_eq!(gate.waiting(), 0);
        drop(held);
        assert!(gate.try_enter(&flow).is_some());
        assert_eq!(gate.fill().0, 0);
    }

    #[test]
    fn the_first_of_a_flow_passes_a_full_gate() {
        let gate = Arc::new(Gate::new(1, First::Always));
        let (a, b) = (flow("a"), flow("b"));
        let _held = gate.try_enter(&a).unwrap();
        assert!(gate.try_enter(&a).is_none());
        let _first = gate.try_enter(&b).unwrap();
        assert_eq!(gate.fill(), (2, 1));
    }

    #[tokio::test]
    async fn the_first_who_waits_follows_the_last_of_its_flow_into_a_full_gate() {
        let gate = Arc::new(Gate::new(1, First::Always));
        let (a, b) = (flow("a"), flow("b"));
        let last = gate.try_enter(&a).unwrap();
        let _held = gate.try_enter(&b).unwrap();
        let wait = || {
            let (gate, a) = (gate.clone(), a.clone());
            tokio::spawn(async move { gate.enter(&a, Duration::from_millis(1)).await })
        };
        let waiters = [wait(), wait()];
        tokio::task::yield_now().await;
        assert_eq!((gate.fill(), gate.waiting()), ((2, 1), 2));
        drop(last);
        assert_eq!((gate.fill(), gate.waiting()), ((2, 1), 1));
        assert!(gate.try_enter(&a).is_none(), "who comes now is behind");
        for waiter in waiters {
            drop(waiter.await.unwrap().unwrap());
        }
        assert_eq!((gate.fill(), gate.waiting()), ((1, 1), 0));
    }

    #[test]
    fn many_threads_never_exceed_the_capacity_and_all_get_in() {
        let gate = Arc::new(Gate::new(3, First::InTurn));
        let most = Arc::new(AtomicU64::new(0));
        let threads: Vec<_> = (0..8)
            .map(|number| {
                let (gate, most) = (gate.clone(), most.clone());
                let flow = flow(&format!("f{number}"));
                std::thread::spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .build()
                        .unwrap();
                    runtime.block_on(async {
                        for _ in 0..500 {
                            let pass = gate.enter(&flow, Duration::from_micros(10)).await;
                            assert!(pass.is_some());
                            most.fetch_max(gate.fill().0 as u64, Ordering::SeqCst);
                            std::thread::yield_now();
                        }
                    });
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(most.load(Ordering::SeqCst) <= 3);
        assert_eq!((gate.fill().0, gate.waiting()), (0, 0));
    }
}
