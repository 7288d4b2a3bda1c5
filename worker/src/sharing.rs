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

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Wall time inside `compute`, and the number of computes.
    pub(crate) fn inference(&self) -> (Duration, u32) {
        *self.inference.lock()
    }
}

/// The calls of one guest.
#[derive(Debug, Default)]
pub(crate) struct Sharing {
    tasks: BTreeMap<GuestTaskId, Arc<Call>>,
    in_flight: Vec<Arc<Call>>,
    /// Tasks of calls that have ended, the oldest first.
    ended: VecDeque<GuestTaskId>,
    /// Whose host call is being answered now.
    turn: Option<Arc<Call>>,
    /// Epoch ticks since the guest's event loop went round.
    stuck: u32,
}

impl Sharing {
    fn of(&self, stack: impl Iterator<Item = GuestTaskId>) -> Option<Arc<Call>> {
        let mut stack = stack;
        stack.find_map(|task| self.tasks.get(&task).cloned())
    }

    /// The event loop goes round: whoever is ready has their turn.
    pub(crate) fn goes_round(&mut self) {
        self.stuck = 0;
    }
}

impl ComponentState {
    /// A call begins as this task.
    pub(crate) fn enter_call(&mut self, task: GuestTaskId, call: Arc<Call>) {
        self.guest.log.open(call.key, &call.request_id);
        if let Some(sharing) = &mut self.guest.sharing {
            sharing.ended.retain(|ended| *ended != task);
            sharing.tasks.insert(task, call.clone());
            sharing.in_flight.push(call);
        }
        self.own(None);
    }

    /// A call has ended. What it does from now on is still its own, if not too much happens meanwhile.
    pub(crate) fn leave_call(&mut self, task: GuestTaskId) {
        let Some(sharing) = &mut self.guest.sharing else {
            return;
        };
        if let Some(call) = sharing.tasks.get(&task) {
            self.guest.log.flush(call.key);
            let key = call.key;
            sharing.in_flight.retain(|call| call.key != key);
            sharing.ended.push_back(task);
        }
        while sharing.ended.len() > REMEMBERED {
            let oldest = sharing.ended.pop_front();
            if let Some(call) = oldest.and_then(|oldest| sharing.tasks.remove(&oldest)) {
                self.guest.log.forget(call.key);
            }
        }
        self.own(None);
    }

    /// From now on what the guest does belongs to this call; to the only one that there is, if it is not known which.
    fn own(&mut self, call: Option<Arc<Call>>) {
        let Some(sharing) = &mut self.guest.sharing else {
            return;
        };
        if let Some(before) = sharing.turn.take() {
            let (spent, computes) = &mut *before.inference.lock();
            *spent += self.guest.nn.spent;
            *computes = computes.saturating_add(self.guest.nn.computes);
        }
        sharing.turn.clone_from(&call);
        sharing.in_flight.retain(|call| !call.is_over());
        let owner = call.or_else(|| match sharing.in_flight.as_slice() {
            [only] => Some(only.clone()),
            _ => None,
        });
        let latest = sharing.in_flight.iter().map(|call| call.deadline).max();
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
    let call = sharing.and_then(|sharing| sharing.of(stack.into_iter()));
    state.own(call);
    Ok(())
}

/// The host function returns.
pub(crate) fn end_turn(store: &mut StoreContextMut<'_, ComponentState>) {
    store.data_mut().own(None);
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
    match sharing.and_then(|sharing| sharing.of(stack.into_iter())) {
        Some(call) if call.is_over() => Err(Overdue(call.request_id.clone()).into()),
        _ => Ok(()),
    }
}
