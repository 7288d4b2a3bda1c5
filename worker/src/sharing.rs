//! Whose doing it is: the requests that one guest serves at the same time, and which of them a host call belongs to.
//!
//! Wasmtime knows the task that a host call comes from, and the call from outside that the task began with. Where a host
//! function asks ([`attributed`]) what it does belongs to that request. Elsewhere it belongs to the one request in
//! flight; if there are several, to none, rather than to a wrong one.

use crate::failure::Overdue;
use crate::state::{ComponentState, Guest};
use fnctl_core::trace::Trace;
use fnctl_core::{Invocation, RequestId};
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::Instant;
use wasmtime::StoreContextMut;
use wasmtime::component::GuestTaskId;

/// Calls that have ended and are remembered for what they do after their answer.
const REMEMBERED: usize = 128;
/// Epoch ticks that a call may hold up the others after it should have ended.
const PATIENCE: u32 = 5;
/// How long after its deadline a call is over that nobody has given up: it has answered. One that has not answered is given
/// up by its own handle, which is to tell its caller first.
const GRACE: Duration = Duration::from_millis(200);

/// One request in a shared guest, as the handle that waits for it and the guest's host functions know it.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) key: u64,
    pub(crate) request_id: RequestId,
    deadline: Instant,
    trace: Trace,
    /// Its deadline has passed, or nobody waits for it any more.
    over: AtomicBool,
    inference: Mutex<(Duration, u32)>,
}

impl Call {
    pub(crate) fn new(key: u64, invocation: &Invocation) -> Self {
        Self {
            key,
            request_id: invocation.request_id.clone(),
            deadline: invocation.deadline,
            trace: invocation.trace.clone(),
            over: AtomicBool::new(false),
            inference: Mutex::default(),
        }
    }

    /// Nobody waits for it any more.
    pub(crate) fn give_up(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Whether it should have ended. One that has answered may still compute, and its deadline holds for that, too.
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed) || Instant::now() >= self.deadline + GRACE
    }

    /// Wall time inside `compute`, and the number of computes.
    pub(crate) fn inference(&self) -> (Duration, u32) {
        *self.inference.lock()
    }
}

/// The calls of one guest.
#[derive(Debug, Default)]
pub(crate) struct Sharing {
    calls: Calls<GuestTaskId>,
    /// Whose host call is being answered now.
    turn: Turn,
    /// Epoch ticks since the guest's event loop went round.
    stuck: u32,
}

/// Whose doing it is.
#[derive(Debug, Clone, Default)]
enum Turn {
    /// This call's.
    Of(Arc<Call>),
    /// A call's that is not remembered any more.
    Nobodys,
    /// It was not asked: the only call's in flight, if there is only one.
    #[default]
    Unknown,
}

impl Sharing {
    /// The event loop goes round: whoever is ready has their turn.
    pub(crate) fn goes_round(&mut self) {
        self.stuck = 0;
    }
}

/// Calls by the task that each began as. Wasmtime gives the number of a task that has ended to the next one.
#[derive(Debug)]
struct Calls<T> {
    by_task: BTreeMap<T, Arc<Call>>,
    in_flight: Vec<Arc<Call>>,
    /// Tasks of calls that have ended, the oldest first.
    ended: VecDeque<T>,
}

impl<T> Default for Calls<T> {
    fn default() -> Self {
        Self {
            by_task: BTreeMap::new(),
            in_flight: Vec::new(),
            ended: VecDeque::new(),
        }
    }
}

impl<T: Ord + Copy> Calls<T> {
    /// Whose doing it is, by the tasks that called each other, the youngest first. Only the oldest counts: it is the call
    /// from outside, and one between may have the number of a call that has ended.
    fn of(&self, stack: impl Iterator<Item = T>) -> Turn {
        match stack.last() {
            Some(root) => self
                .by_task
                .get(&root)
                .map_or(Turn::Nobodys, |call| Turn::Of(call.clone())),
            None => Turn::Unknown,
        }
    }

    /// A call begins as this task. Returns the one that is forgotten, as the number of its task is taken.
    fn enter(&mut self, task: T, call: Arc<Call>) -> Option<Arc<Call>> {
        self.in_flight.push(call.clone());
        self.ended.retain(|ended| *ended != task);
        let before = self.by_task.insert(task, call)?;
        // Of one in flight (its body is still read) it is told when it has ended.
        let is_in_flight = self.in_flight.iter().any(|call| call.key == before.key);
        (!is_in_flight).then_some(before)
    }

    /// A call has ended. Returns the one that is forgotten, if one is.
    fn leave(&mut self, task: T, call: &Arc<Call>) -> Option<Arc<Call>> {
        self.in_flight.retain(|other| other.key != call.key);
        if self.by_task.get(&task).is_none_or(|it| it.key != call.key) {
            return Some(call.clone());
        }
        self.ended.push_back(task);
        if self.ended.len() <= REMEMBERED {
            return None;
        }
        let oldest = self.ended.pop_front()?;
        self.by_task.remove(&oldest)
    }
}

impl ComponentState {
    /// A call begins as this task.
    pub(crate) fn enter_call(&mut self, task: GuestTaskId, call: Arc<Call>) {
        self.guest.log.open(call.key, &call.request_id);
        if let Some(sharing) = &mut self.guest.sharing
            && let Some(forgotten) = sharing.calls.enter(task, call)
        {
            self.guest.log.forget(forgotten.key);
        }
        self.own(Turn::Unknown);
    }

    /// A call has ended. What it does from now on is still its own, if not too much happens meanwhile.
    pub(crate) fn leave_call(&mut self, task: GuestTaskId, call: &Arc<Call>) {
        let Some(sharing) = &mut self.guest.sharing else {
            return;
        };
        self.guest.log.flush(call.key);
        if let Some(forgotten) = sharing.calls.leave(task, call) {
            self.guest.log.forget(forgotten.key);
        }
        self.own(Turn::Unknown);
    }

    /// From now on what the guest does belongs to this call; to the only one that there is, if it is not known which.
    fn own(&mut self, turn: Turn) {
        let Some(sharing) = &mut self.guest.sharing else {
            return;
        };
        if let Turn::Of(before) = std::mem::replace(&mut sharing.turn, turn.clone()) {
            let (spent, computes) = &mut *before.inference.lock();
            *spent += self.guest.nn.spent;
            *computes = computes.saturating_add(self.guest.nn.computes);
        }
        let in_flight = &mut sharing.calls.in_flight;
        in_flight.retain(|call| !call.is_over());
        let owner = match (turn, in_flight.as_slice()) {
            (Turn::Of(call), _) => Some(call),
            (Turn::Unknown, [only]) => Some(only.clone()),
            _ => None,
        };
        let latest = in_flight.iter().map(|call| call.deadline).max();
        let (key, deadline, trace) = match &owner {
            Some(owner) => (Some(owner.key), Some(owner.deadline), owner.trace.clone()),
            None => (None, latest, Trace::none()),
        };
        self.guest.log.turn(key);
        self.guest
            .nn
            .begin(deadline.unwrap_or_else(Instant::now), trace.clone());
        self.begin_outgoing(trace);
    }
}

/// Looks which call a host function was called by, and does `work` as that call's.
pub(crate) fn attributed<R>(
    store: &mut StoreContextMut<'_, ComponentState>,
    work: impl FnOnce(&mut StoreContextMut<'_, ComponentState>) -> R,
) -> wasmtime::Result<R> {
    begin_turn(store)?;
    let outcome = work(store);
    end_turn(store);
    Ok(outcome)
}

/// Looks which call a host function was called by; what follows belongs to it until [`end_turn`].
pub(crate) fn begin_turn(store: &mut StoreContextMut<'_, ComponentState>) -> wasmtime::Result<()> {
    if store.data().guest.sharing.is_none() {
        return Ok(());
    }
    let stack: Vec<_> = store.async_call_stack()?.collect();
    let state = store.data_mut();
    let sharing = state.guest.sharing.as_ref();
    let turn = sharing.map(|sharing| sharing.calls.of(stack.into_iter()));
    state.own(turn.unwrap_or_default());
    Ok(())
}

/// The host function returns.
pub(crate) fn end_turn(store: &mut StoreContextMut<'_, ComponentState>) {
    store.data_mut().own(Turn::Unknown);
}

/// At an epoch tick: a call that should have ended, and still computes so that nobody else can go on, ends the guest.
pub(crate) fn check_overdue<T: Guest>(store: &mut StoreContextMut<'_, T>) -> wasmtime::Result<()> {
    let Some(sharing) = &mut store.data_mut().guest().sharing else {
        return Ok(());
    };
    sharing.stuck = sharing.stuck.saturating_add(1);
    if sharing.stuck < PATIENCE {
        return Ok(());
    }
    let stack: Vec<_> = store.async_call_stack()?.collect();
    let sharing = store.data_mut().guest().sharing.as_ref();
    match sharing.map(|sharing| sharing.calls.of(stack.into_iter())) {
        Some(Turn::Of(call)) if call.is_over() => Err(Overdue(call.request_id.clone()).into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(key: u64, deadline: Instant) -> Arc<Call> {
        Arc::new(Call {
            key,
            request_id: RequestId::generate(1),
            deadline,
            trace: Trace::none(),
            over: AtomicBool::new(false),
            inference: Mutex::default(),
        })
    }

    fn key(turn: &Turn) -> Option<u64> {
        match turn {
            Turn::Of(call) => Some(call.key),
            Turn::Nobodys | Turn::Unknown => None,
        }
    }

    #[test]
    fn as_many_calls_are_remembered_as_may_be_whatever_their_tasks_numbers_are() {
        let later = Instant::now() + Duration::from_secs(60);
        for numbers in [1, 3, 1000] {
            let mut calls = Calls::default();
            let mut open = 0;
            for key in 0..2000 {
                let call = call(key, later);
                open += 1;
                open -= usize::from(calls.enter(key % numbers, call.clone()).is_some());
                open -= usize::from(calls.leave(key % numbers, &call).is_some());
            }
            assert_eq!(open, calls.by_task.len(), "{numbers}");
            assert!(open <= REMEMBERED && calls.ended.len() == open, "{open}");
            assert!(calls.in_flight.is_empty());
        }
    }

    #[test]
    fn a_call_whose_number_is_taken_while_it_is_read_is_forgotten_when_it_ends() {
        let later = Instant::now() + Duration::from_secs(60);
        let mut calls = Calls::default();
        let (first, second) = (call(1, later), call(2, later));
        assert!(calls.enter(7, first.clone()).is_none());
        assert!(calls.enter(7, second.clone()).is_none());
        let forgotten = calls.leave(7, &first).map(|call| call.key);
        assert_eq!(forgotten, Some(1));
        assert_eq!(key(&calls.of([7].into_iter())), Some(2));
        assert_eq!(calls.in_flight.len(), 1);
        assert!(calls.leave(7, &second).is_none());
    }

    #[test]
    fn only_the_call_from_outside_says_whose_doing_it_is() {
        let later = Instant::now() + Duration::from_secs(60);
        let mut calls = Calls::default();
        let ended = call(1, later);
        calls.enter(7, ended.clone());
        calls.leave(7, &ended);
        calls.enter(8, call(2, later));
        // The component that was called within runs as a task with the number of the call that has ended.
        assert_eq!(key(&calls.of([7, 8].into_iter())), Some(2));
        assert!(matches!(calls.of([7, 9].into_iter()), Turn::Nobodys));
        assert!(matches!(calls.of([].into_iter()), Turn::Unknown));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_over_after_its_deadline_even_if_it_has_answered() {
        let call = call(1, Instant::now() + Duration::from_secs(1));
        assert!(!call.is_over());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!call.is_over(), "its own handle says so first");
        tokio::time::advance(GRACE).await;
        assert!(call.is_over());
        let call = self::call(2, Instant::now() + Duration::from_secs(1));
        call.give_up();
        assert!(call.is_over());
    }
}
