//! The computes that are in one host: slots, room for their tensors, and who waits for which answer.
//!
//! Everything that decides is in memory of this process. What comes out of the shared memory is copied, then checked; an
//! answer that cannot be true ends the host.

use super::arena::Arena;
use super::asked::{Asked, Gone, Refusal, refused};
use super::child_compute::ALIGNMENT;
use super::held::Held;
use super::lanes::{Lane, Lanes, Pace, may_wait};
use super::protocol::{self, Answer, InputAt, OutputAt, Span, Submission};
use super::quarantine::Suspect;
use super::rings::{Collector, Lie};
use super::shared::{MAX_MESSAGE, Shared, SlotWord};
use crate::inputs::Resolved;
use crate::sessions::SessionKey;
use fnctl_core::ids::FunctionName;
use fnctl_core::inference::{Computed, InferenceError, InferenceErrorKind, ModelInfo, Tensor};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

pub(crate) struct Computes {
    pub(super) shared: Arc<Shared>,
    permits: Arc<Semaphore>,
    waiting: AtomicUsize,
    max_waiting: usize,
    state: Mutex<State>,
    pub(super) arena: Mutex<Arena>,
    pub(super) room: Notify,
    lanes: Lanes,
    collector: Mutex<Collector>,
    runs: AtomicU32,
    answered: AtomicU64,
    /// Set when the host is over, with what it lied about if it lied.
    pub(super) over: AtomicBool,
    lie: Mutex<Option<Lie>>,
    pub(crate) lied: Notify,
    pub(super) held: Held,
}

struct State {
    free: Vec<u32>,
    pending: Vec<Option<Pending>>,
    /// No more submissions: the host is gone.
    closed: bool,
    /// When it last answered, or got work after it had none.
    heard: Instant,
}

struct Pending {
    run: u32,
    lane: Lane,
    key: Arc<SessionKey>,
    caller: FunctionName,
    lease: Lease,
    answer: oneshot::Sender<Lease>,
    /// Since when nobody waits for it.
    cancelled: Option<Instant>,
}

/// A slot, and its room in the heap.
pub(super) struct Lease {
    computes: Arc<Computes>,
    pub(super) slot: u32,
    pub(super) block: Option<(usize, usize)>,
    _permit: OwnedSemaphorePermit,
}

impl Lease {
    pub(super) fn drop_block(&mut self) {
        if let Some((offset, length)) = self.block.take() {
            let base = self.computes.shared.layout.heap_offset();
            self.computes.arena.lock().give_back(offset - base, length);
            self.computes.room.notify_waiters();
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.drop_block();
        self.computes.state.lock().free.push(self.slot);
    }
}

/// Cancels a run when dropped before it is answered.
struct Waiting<'a> {
    computes: &'a Computes,
    cancel: &'a (dyn Fn(u32, u32) + Sync),
    slot: u32,
    run: u32,
    answered: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.answered && self.computes.cancel(self.slot, self.run) {
            (self.cancel)(self.slot, self.run);
        }
    }
}

/// A run that is in the host.
#[derive(Debug, Clone)]
pub(crate) struct InFlight {
    pub(crate) slot: u32,
    pub(crate) run: u32,
    key: Arc<SessionKey>,
    caller: FunctionName,
    pub(crate) cancelled: Option<Instant>,
}

impl InFlight {
    /// Whose doing it is.
    pub(crate) fn who(&self) -> Suspect {
        Suspect::computing(&self.key, &self.caller)
    }
}

/// What one compute needs to know about its model.
pub(crate) struct Work<'a> {
    /// What the host knows the session by.
    pub(crate) session: u64,
    pub(crate) key: &'a Arc<SessionKey>,
    pub(crate) pace: &'a Pace,
    pub(crate) caller: &'a FunctionName,
    pub(crate) info: &'a ModelInfo,
    /// Bytes that the last outputs took, so that there is room at once for the next.
    pub(crate) room: &'a AtomicUsize,
    pub(crate) inputs: &'a [Resolved],
    /// Tells the host that a run is not wanted any more; must not block.
    pub(crate) cancel: &'a (dyn Fn(u32, u32) + Sync),
}

impl Computes {
    pub(crate) fn new(
        shared: Arc<Shared>,
        max_waiting: usize,
        compute_threads: usize,
    ) -> Arc<Self> {
        let slots = shared.layout.slots;
        Arc::new(Self {
            permits: Arc::new(Semaphore::new(slots as usize)),
            waiting: AtomicUsize::new(0),
            max_waiting,
            state: Mutex::new(State {
                free: (0..slots).rev().collect(),
                pending: (0..slots).map(|_| None).collect(),
                closed: false,
                heard: Instant::now(),
            }),
            arena: Mutex::new(Arena::new(shared.layout.heap)),
            room: Notify::new(),
            lanes: Lanes::new(compute_threads),
            collector: Mutex::default(),
            // Never zero: that is what a slot's word says when nothing is cancelled.
            runs: AtomicU32::new(1),
            answered: AtomicU64::new(0),
            over: AtomicBool::new(false),
            lie: Mutex::new(None),
            lied: Notify::new(),
            held: Held::default(),
            shared,
        })
    }

    /// Runs in the host now.
    pub(crate) fn in_flight(&self) -> Vec<InFlight> {
        let state = self.state.lock();
        let pending = state.pending.iter().flatten();
        pending
            .map(|one| InFlight {
                slot: one.lease.slot,
                run: one.run,
                key: one.key.clone(),
                caller: one.caller.clone(),
                cancelled: one.cancelled,
            })
            .collect()
    }

    /// Restarts the clock of cancelled runs that may not have begun: until they have they cannot end either.
    pub(crate) fn excuse_queued(&self, compute_threads: usize, now: Instant) {
        let mut state = self.state.lock();
        // By age, which unlike the numbers themselves is not mixed up when they begin anew.
        let newest = self.runs.load(Ordering::Relaxed);
        let age = |pending: &Pending| newest.wrapping_sub(pending.run);
        let runs = state.pending.iter().flatten();
        let runs: Vec<_> = runs.map(|one| (one.lane, age(one))).collect();
        for pending in state.pending.iter_mut().flatten() {
            let run = (pending.lane, age(pending));
            if pending.cancelled.is_some() && may_wait(run, &runs, compute_threads) {
                pending.cancelled = Some(now);
            }
        }
    }

    /// Whether nothing is in the host and nobody waits to get in.
    pub(crate) fn is_idle(&self) -> bool {
        self.permits.available_permits() == self.shared.layout.slots as usize
            && self.waiting.load(Ordering::Relaxed) == 0
    }

    #[cfg(test)]
    pub(crate) fn arena_for_tests(&self) -> parking_lot::MutexGuard<'_, Arena> {
        self.arena.lock()
    }

    /// Bytes of the shared memory that are taken for tensors, besides the slots' own room.
    pub(crate) fn taken(&self) -> u64 {
        self.arena.lock().taken() as u64
    }

    /// When it last answered, or got work after it had none.
    pub(crate) fn heard(&self) -> Instant {
        self.state.lock().heard
    }

    /// Computes answered so far.
    pub(crate) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// What the host lied about, once it has.
    pub(crate) fn take_lie(&self) -> Option<Lie> {
        self.lie.lock().take()
    }

    fn accuse(&self, lie: Lie) -> Gone {
        *self.lie.lock() = Some(lie);
        self.lied.notify_one();
        Gone
    }

    /// The host is gone: everybody who waits is told.
    pub(crate) fn close(&self) {
        self.over.store(true, Ordering::Release);
        self.permits.close();
        let pending: Vec<_> = {
            let mut state = self.state.lock();
            state.closed = true;
            state.pending.iter_mut().map(Option::take).collect()
        };
        drop(pending);
        self.room.notify_waiters();
    }

    /// Gives unused pages of the heap back, if nothing is in it.
    pub(crate) fn trim(&self) {
        let mut arena = self.arena.lock();
        if arena.touched && arena.is_empty() && self.shared.clear_heap().is_ok() {
            arena.touched = false;
        }
    }

    /// Takes what the host has answered. Whoever comes may do it.
    pub(crate) fn collect(&self) {
        let Some(mut collector) = self.collector.try_lock() else {
            return;
        };
        if let Err(lie) = collector.drain(&self.shared, |slot| self.complete(slot)) {
            drop(collector);
            self.accuse(lie);
        }
    }

    /// Takes what the host has answered, until there is nothing left and the host knows that it has to signal.
    pub(crate) fn collect_and_arm(&self) {
        let mut collector = self.collector.lock();
        loop {
            match collector.drain(&self.shared, |slot| self.complete(slot)) {
                Ok(_) if collector.arm(&self.shared) => return,
                Ok(_) => {}
                Err(lie) => {
                    drop(collector);
                    self.accuse(lie);
                    return;
                }
            }
        }
    }

    fn complete(&self, slot: u32) -> Result<(), Lie> {
        let now = Instant::now();
        let mut state = self.state.lock();
        if state.closed {
            return Ok(());
        }
        let pending = state.pending.get_mut(slot as usize).and_then(Option::take);
        state.heard = now;
        drop(state);
        let pending = pending.ok_or(Lie("an answer that nobody asked for"))?;
        self.lanes.leave(pending.lane, now);
        self.answered.fetch_add(1, Ordering::Relaxed);
        // Nobody waits any more: the lease comes back and frees the slot.
        drop(pending.answer.send(pending.lease));
        Ok(())
    }

    /// Marks a run as not wanted. Says whether it is still in the host.
    fn cancel(&self, slot: u32, run: u32) -> bool {
        let mut state = self.state.lock();
        match state.pending.get_mut(slot as usize) {
            Some(Some(pending)) if pending.run == run => {
                pending.cancelled = Some(Instant::now());
                self.shared
                    .slot_word(slot, SlotWord::Cancelled)
                    .store(run, Ordering::SeqCst);
                true
            }
            _ => false,
        }
    }

    async fn lease(self: &Arc<Self>) -> Asked<Lease> {
        let permit = match self.permits.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.max_waiting {
                    self.waiting.fetch_sub(1, Ordering::Relaxed);
                    return refused(
                        InferenceErrorKind::Runtime,
                        "too many inferences are waiting; try again",
                    );
                }
                let _one_less = scopeguard(&self.waiting);
                self.permits
                    .clone()
                    .acquire_owned()
                    .await
                    .map_err(|_| Gone)?
            }
        };
        let slot = {
            let mut state = self.state.lock();
            if state.free.len() == state.pending.len() {
                state.heard = Instant::now();
            }
            state.free.pop().ok_or(Gone)?
        };
        Ok(Ok(Lease {
            computes: self.clone(),
            slot,
            block: None,
            _permit: permit,
        }))
    }

    /// Puts a message into the lease's slot and waits for the answer.
    async fn submit(
        &self,
        lease: Lease,
        work: &Work<'_>,
        run: u32,
        message: &Submission,
    ) -> Asked<(Lease, Answer)> {
        let mut bytes = Vec::new();
        if protocol::encode(message, MAX_MESSAGE, &mut bytes).is_err() {
            return refused(
                InferenceErrorKind::Unsupported,
                "the model has more inputs than an inference host takes; use inference.process = \"in-process\"",
            );
        }
        let slot = lease.slot;
        self.shared.write_message(slot, &bytes).map_err(|_| Gone)?;
        let (answer, answered) = oneshot::channel();
        let lane = self.lanes.enter(work.pace, Instant::now());
        {
            let mut state = self.state.lock();
            if state.closed {
                drop(state);
                return Err(Gone);
            }
            if let Some(place) = state.pending.get_mut(slot as usize) {
                *place = Some(Pending {
                    run,
                    lane,
                    key: work.key.clone(),
                    caller: work.caller.clone(),
                    lease,
                    answer,
                    cancelled: None,
                });
            }
        }
        self.lanes.push(lane, &self.shared, slot);
        let mut waiting = Waiting {
            computes: self,
            cancel: work.cancel,
            slot,
            run,
            answered: false,
        };
        // Others may be answered already; under load this saves the signal that would say so.
        self.collect();
        let lease = answered.await;
        waiting.answered = true;
        let lease = lease.map_err(|_| Gone)?;
        self.shared
            .read_message(slot, &mut bytes)
            .map_err(|_| self.accuse(Lie("an answer that is too long")))?;
        let answer = protocol::decode(&bytes)
            .map_err(|_| self.accuse(Lie("an answer that cannot be read")))?;
        if matches!(message, Submission::Compute { .. }) && !matches!(answer, Answer::Failed(..)) {
            let took = self.shared.slot_word(slot, SlotWord::Took);
            work.pace.add(took.load(Ordering::Relaxed));
        }
        Ok(Ok((lease, answer)))
    }

    /// One inference.
    pub(crate) async fn run(self: &Arc<Self>, work: &Work<'_>) -> Asked<Computed> {
        macro_rules! try_asked {
            ($asked:expr) => {
                match $asked? {
                    Ok(value) => value,
                    Err(error) => return Ok(Err(error)),
                }
            };
        }
        let mut lease = try_asked!(self.lease().await);
        let rounded = |length: usize| length.next_multiple_of(ALIGNMENT);
        let inputs_length = work.inputs.iter().fold(0_usize, |all, one| {
            all.saturating_add(rounded(one.tensor.data.len()))
        });
        let expected = work.room.load(Ordering::Relaxed);
        let least = inputs_length.saturating_add(ALIGNMENT);
        let most = inputs_length.saturating_add(expected.max(ALIGNMENT));
        let (base, length) = try_asked!(self.place_some(&mut lease, least, most).await);
        let mut offset = base;
        let mut inputs = Vec::with_capacity(work.inputs.len());
        for input in work.inputs {
            let data = &input.tensor.data;
            self.shared.write(offset, data).map_err(|_| Gone)?;
            inputs.push(InputAt {
                index: u32::try_from(input.index).unwrap_or(u32::MAX),
                ty: input.tensor.ty,
                dimensions: input.tensor.dimensions.clone(),
                at: span(offset, data.len()),
            });
            offset += rounded(data.len());
        }
        let mut run = self.next_run();
        let mut room = (offset, base + length - offset);
        let mut message = Submission::Compute {
            run,
            session: work.session,
            inputs,
            room: span(room.0, room.1),
        };
        loop {
            let (answered, answer) = try_asked!(self.submit(lease, work, run, &message).await);
            lease = answered;
            match answer {
                Answer::Outputs(outputs) => {
                    let computed = self
                        .outputs(work.info, &outputs, room)
                        .map_err(|lie| self.accuse(lie))?;
                    let lengths = computed.iter().map(|(_, tensor)| tensor.data.len());
                    let taken: usize = lengths.map(rounded).sum();
                    // Grows at once and shrinks slowly: one large answer shall not cost every later one its room.
                    let room = taken.max(expected - expected / 8);
                    work.room.store(room, Ordering::Relaxed);
                    return Ok(Ok(computed));
                }
                Answer::NeedsRoom(needed) => {
                    let needed = usize::try_from(needed).unwrap_or(usize::MAX);
                    if needed <= room.1 || matches!(message, Submission::Deliver { .. }) {
                        return Err(self.accuse(Lie("too little room, where there is enough")));
                    }
                    let unfetched = self.held.unfetched(work.cancel, lease.slot, run);
                    let base = try_asked!(self.place(&mut lease, needed).await);
                    std::mem::forget(unfetched);
                    room = (base, needed);
                    run = self.next_run();
                    message = Submission::Deliver {
                        run,
                        room: span(base, needed),
                    };
                }
                Answer::Failed(kind, text, shortage) => {
                    let error = InferenceError::new(kind, text);
                    return Ok(Err(Refusal { error, shortage }));
                }
            }
        }
    }

    fn next_run(&self) -> u32 {
        loop {
            let run = self.runs.fetch_add(1, Ordering::Relaxed);
            if run != 0 {
                return run;
            }
        }
    }

    /// Copies the outputs out of the room, if they are what the model is said to give.
    pub(super) fn outputs(
        &self,
        info: &ModelInfo,
        outputs: &[OutputAt],
        (room, length): (usize, usize),
    ) -> Result<Computed, Lie> {
        if outputs.len() != info.outputs.len() {
            return Err(Lie("another number of outputs than the model has"));
        }
        // One after another, so that all of them together are never more than the room.
        let mut floor = room;
        let mut computed = Vec::with_capacity(outputs.len());
        for (output, port) in outputs.iter().zip(&info.outputs) {
            let inside = |at: Span| -> Option<(usize, usize)> {
                let offset = usize::try_from(at.offset).ok()?;
                let bytes = usize::try_from(at.length).ok()?;
                let end = offset.checked_add(bytes)?;
                (offset >= floor && end <= room + length).then_some((offset, bytes))
            };
            let (offset, bytes) = inside(output.at)
                .ok_or(Lie("outputs that overlap, or lie outside of their room"))?;
            floor = offset + bytes;
            let data = self
                .shared
                .read_bytes(offset, bytes)
                .map_err(|_| Lie("an output outside of the shared memory"))?;
            let tensor = Tensor {
                dimensions: output.dimensions.clone(),
                ty: output.ty,
                data,
            };
            if tensor.ty != port.ty || tensor.check().is_err() {
                return Err(Lie("an output whose type, shape and length do not agree"));
            }
            computed.push((port.name.clone(), tensor));
        }
        Ok(computed)
    }
}

fn span(offset: usize, length: usize) -> Span {
    Span {
        offset: offset as u64,
        length: length as u64,
    }
}

/// Counts one less when dropped.
fn scopeguard(counter: &AtomicUsize) -> impl Drop + '_ {
    struct Less<'a>(&'a AtomicUsize);
    impl Drop for Less<'_> {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
    Less(counter)
}
