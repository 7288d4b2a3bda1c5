//! Those who wait for an instance that several requests share: who they are, which of them leads, what the guest has not
//! seen yet, and what came of each.
//!
//! A request that the guest has not seen does no harm: if it is given up, or cannot be told to the guest, the instance
//! serves on. If the instance takes nobody new any more, such requests are handed back, to be served by another.

use super::BodyFate;
use super::component::Answer;
use crate::cpu::CpuMeter;
use crate::failure::died_with;
use crate::sharing::Call;
use fnctl_core::{Failure, Invocation, ReplySender};
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use tokio_util::sync::CancellationToken;

/// Those who wait for the instance, and what it is to do for them.
pub(super) struct Crew {
    state: Mutex<CrewState>,
    pub(super) meter: CpuMeter,
}

#[derive(Default)]
struct CrewState {
    next: u64,
    jobs: VecDeque<Job>,
    seats: BTreeMap<u64, Waiting>,
    leader: Option<u64>,
    /// Seats without an outcome.
    unfinished: usize,
    /// Nobody is in flight, and the guest has nothing left to do.
    quiet: bool,
    /// Takes nobody new.
    closed: bool,
    /// Linear memory when it was last looked at.
    memory: u64,
}

/// What is known of a request in flight.
struct Waiting {
    waker: Option<Waker>,
    outcome: Option<Result<(), Failure>>,
    /// The guest never sees it.
    unseen: bool,
    /// The instance takes nobody new, and the guest had not seen the request: it is handed back.
    unbegun: Option<Box<Invocation>>,
    fate: BodyFate,
    /// Its caller has left before the answer's end.
    left: CancellationToken,
}

/// A request on its way into the guest.
pub(super) struct Job {
    pub(super) call: Arc<Call>,
    pub(super) invocation: Box<Invocation>,
    pub(super) answer: Answer,
}

impl Crew {
    /// `memory` is the instance's linear memory, in bytes.
    pub(super) fn new(meter: CpuMeter, memory: u64) -> Self {
        let state = CrewState {
            memory,
            ..CrewState::default()
        };
        Self {
            state: Mutex::new(state),
            meter,
        }
    }

    /// Lets a request in, or gives it back if nobody may come any more. `limit` bounds the answer's body, in bytes.
    pub(super) fn enter(
        self: &Arc<Self>,
        invocation: Invocation,
        reply: &ReplySender,
        fate: &BodyFate,
        limit: u64,
    ) -> Result<Arc<Call>, Box<Invocation>> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Box::new(invocation));
        }
        let key = state.next;
        state.next += 1;
        let call = Arc::new(Call::new(key, &invocation));
        let seat = Waiting {
            waker: None,
            outcome: None,
            unseen: false,
            unbegun: None,
            fate: fate.clone(),
            left: invocation.cancelled.clone(),
        };
        state.jobs.push_back(Job {
            call: call.clone(),
            invocation: Box::new(invocation),
            answer: Answer::new(reply, fate, limit),
        });
        state.seats.insert(key, seat);
        state.unfinished += 1;
        state.quiet = false;
        // Whoever stayed for what is done after the answers may go: there is somebody else now.
        let wakers = state.wake_finished();
        drop(state);
        self.meter.begin();
        wake_all(wakers);
        self.wake_by_ref();
        Ok(call)
    }

    pub(super) fn next_job(&self) -> Option<Job> {
        self.state.lock().jobs.pop_front()
    }

    /// Whether the guest may be done with everything: nobody is in flight.
    pub(super) fn may_be_quiet(&self) -> bool {
        let state = self.state.lock();
        state.unfinished == 0 && !state.quiet
    }

    pub(super) fn is_quiet(&self) {
        let mut state = self.state.lock();
        state.quiet = true;
        let wakers = state.wake_finished();
        drop(state);
        wake_all(wakers);
    }

    /// The guest has answered, and the answer was read or given up.
    pub(super) fn finished(&self, key: u64, outcome: Result<(), Failure>, memory: u64) {
        let mut state = self.state.lock();
        state.memory = memory;
        state.closed |= outcome.is_err();
        state.finish(key, outcome);
        let wakers = state.wake_finished();
        drop(state);
        wake_all(wakers);
    }

    /// The request cannot be told to the guest.
    pub(super) fn refused(&self, key: u64, failure: Failure) {
        let mut state = self.state.lock();
        if let Some(seat) = state.seats.get_mut(&key) {
            seat.unseen = true;
        }
        state.finish(key, Err(failure));
        let wakers = state.wake_finished();
        drop(state);
        wake_all(wakers);
    }

    /// The instance is gone: whoever is in flight fails, but for those that the guest has not seen.
    pub(super) fn die(&self, failure: &Failure, memory: Option<u64>) {
        let mut state = self.state.lock();
        state.memory = memory.unwrap_or(state.memory);
        let strays = state.close();
        let keys: Vec<u64> = state.seats.keys().copied().collect();
        let failure = died_with(failure.clone(), state.unfinished);
        for key in keys {
            if let Some(seat) = state.seats.get(&key)
                && seat.outcome.is_none()
            {
                seat.fate.run_failed();
                state.finish(key, Err(failure.clone()));
            }
        }
        let wakers = state.wake_finished();
        drop(state);
        drop(strays);
        wake_all(wakers);
    }

    /// The request is given up. If the guest has seen it, nobody new comes, as the guest goes on with it; otherwise it
    /// never comes to the guest.
    pub(super) fn give_up(&self, key: u64) {
        let mut state = self.state.lock();
        let unseen = state.take_job(key);
        let mut strays = VecDeque::new();
        match state.seats.get_mut(&key) {
            Some(seat) if seat.unseen || unseen.is_some() => seat.unseen = true,
            _ => strays = state.close(),
        }
        let wakers = state.wake_finished();
        drop(state);
        drop((unseen, strays));
        wake_all(wakers);
    }

    /// The handle of a request goes, whether it has its outcome or not.
    pub(super) fn leave(&self, call: &Call) {
        self.meter.end();
        let mut state = self.state.lock();
        let unseen = state.take_job(call.key);
        let mut strays = VecDeque::new();
        if let Some(seat) = state.seats.remove(&call.key)
            && seat.outcome.is_none()
        {
            state.unfinished -= 1;
            if unseen.is_none() && !seat.unseen {
                // It was dropped in the middle.
                call.give_up();
                strays = state.close();
            }
        }
        let mut wakers = state.wake_finished();
        let led = state.leader == Some(call.key);
        if led {
            state.leader = state.seats.keys().next().copied();
        }
        // The next one leads; or whoever leads looks whether the guest is done, as nobody is in flight any more.
        if led || state.unfinished == 0 {
            wakers.extend(state.leaders_waker());
        }
        drop(state);
        drop((unseen, strays));
        wake_all(wakers);
    }

    /// Notes whom to wake for a request, and says whether it leads.
    pub(super) fn leads(&self, key: u64, ctx: &Context<'_>) -> bool {
        let mut state = self.state.lock();
        if let Some(seat) = state.seats.get_mut(&key)
            && !seat
                .waker
                .as_ref()
                .is_some_and(|waker| waker.will_wake(ctx.waker()))
        {
            seat.waker = Some(ctx.waker().clone());
        }
        *state.leader.get_or_insert(key) == key
    }

    /// The request has polled the guest: its waker may have been taken to tell it of what it has just done.
    pub(super) fn has_led(&self, key: u64, ctx: &Context<'_>) {
        let mut state = self.state.lock();
        if let Some(seat) = state.seats.get_mut(&key) {
            seat.waker.get_or_insert_with(|| ctx.waker().clone());
        }
    }

    /// What came of a request, once it may go.
    pub(super) fn outcome(&self, key: u64) -> Poll<Result<(), Failure>> {
        self.state.lock().outcome(key)
    }

    /// The request, if it is handed back.
    pub(super) fn unbegun(&self, key: u64) -> Option<Box<Invocation>> {
        self.state.lock().seats.get_mut(&key)?.unbegun.take()
    }

    /// Whether the guest never saw the request, and never will.
    pub(super) fn is_unseen(&self, key: u64) -> bool {
        let state = self.state.lock();
        state.seats.get(&key).is_some_and(|seat| seat.unseen)
    }

    /// Linear memory of the instance when it was last looked at, in bytes.
    pub(super) fn memory(&self) -> u64 {
        self.state.lock().memory
    }
}

impl CrewState {
    fn finish(&mut self, key: u64, outcome: Result<(), Failure>) {
        if let Some(seat) = self.seats.get_mut(&key)
            && seat.outcome.is_none()
        {
            seat.outcome = Some(outcome);
            self.unfinished -= 1;
        }
    }

    fn take_job(&mut self, key: u64) -> Option<Job> {
        let at = self.jobs.iter().position(|job| job.call.key == key)?;
        self.jobs.remove(at)
    }

    /// Takes nobody new, and hands back whoever the guest has not seen: it may never come to them. Returns what is
    /// nobody's, to be dropped without the lock.
    fn close(&mut self) -> VecDeque<Job> {
        self.closed = true;
        let mut strays = VecDeque::new();
        for job in std::mem::take(&mut self.jobs) {
            let key = job.call.key;
            match self.seats.get_mut(&key) {
                Some(seat) => {
                    seat.unbegun = Some(job.invocation);
                    // Told to nobody, as the request is served elsewhere.
                    self.finish(key, Err(Failure::internal("the request was handed back")));
                }
                None => strays.push_back(job),
            }
        }
        strays
    }

    /// Those who have their outcome look whether they may go.
    fn wake_finished(&mut self) -> Vec<Waker> {
        let finished = self.seats.values_mut();
        finished
            .filter(|seat| seat.outcome.is_some())
            .filter_map(|seat| seat.waker.take())
            .collect()
    }

    fn leaders_waker(&self) -> Option<Waker> {
        let leader = self.leader.and_then(|leader| self.seats.get(&leader));
        leader.and_then(|leader| leader.waker.clone())
    }

    /// The last one in flight stays for what the guest does after its answers. So does one whose answer nobody reads on:
    /// the guest may still write it, and whether it does is known only when it is done with everything.
    fn outcome(&self, key: u64) -> Poll<Result<(), Failure>> {
        let Some(seat) = self.seats.get(&key) else {
            return Poll::Pending;
        };
        match &seat.outcome {
            Some(Err(failure)) => Poll::Ready(Err(failure.clone())),
            Some(Ok(())) if self.closed || self.quiet => Poll::Ready(Ok(())),
            Some(Ok(())) if self.unfinished > 0 && !seat.left.is_cancelled() => Poll::Ready(Ok(())),
            Some(Ok(())) | None => Poll::Pending,
        }
    }
}

fn wake_all(wakers: Vec<Waker>) {
    for waker in wakers {
        waker.wake();
    }
}

impl Wake for Crew {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let waker = self.state.lock().leaders_waker();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure;
    use fnctl_core::trace::Trace;
    use fnctl_core::version::Version;
    use fnctl_core::{Digest, RequestId, VersionNumber};
    use futures::task::noop_waker_ref;
    use std::time::Duration;
    use tokio::time::Instant;

    fn crew() -> Arc<Crew> {
        Arc::new(Crew::new(CpuMeter::shared(Duration::from_secs(1)), 0))
    }

    fn invocation() -> Invocation {
        let now = Instant::now();
        let version = Version {
            function: "crew".parse().unwrap(),
            number: VersionNumber(1),
            artifact: Digest::of(b"none"),
            models: BTreeMap::new(),
            config: Default::default(),
            created_ms: 0,
        };
        Invocation {
            version: Arc::new(version),
            request_id: RequestId::generate(0),
            request: http::Request::new(fnctl_core::empty()),
            received: now,
            deadline: now + Duration::from_secs(60),
            cancelled: CancellationToken::new(),
            trace: Trace::none(),
            report: false,
        }
    }

    fn enter(crew: &Arc<Crew>) -> Option<Arc<Call>> {
        let (reply, _) = ReplySender::new();
        let fate = BodyFate::default();
        crew.enter(invocation(), &reply, &fate, 1 << 20).ok()
    }

    /// One whom the guest has seen.
    fn begun(crew: &Arc<Crew>) -> Arc<Call> {
        let call = enter(crew).expect("it takes new ones");
        while crew.next_job().is_some() {}
        call
    }

    fn is_closed(crew: &Crew) -> bool {
        crew.state.lock().closed
    }

    #[test]
    fn those_the_guest_has_not_seen_are_handed_back_when_one_is_given_up() {
        let leaves: [fn(&Crew, &Call); 2] = [
            |crew, call| {
                crew.give_up(call.key);
                crew.leave(call);
            },
            // The task of the request was dropped.
            |crew, call| crew.leave(call),
        ];
        for leave in leaves {
            let crew = crew();
            let (blocking, waiting) = (begun(&crew), begun(&crew));
            let unseen = enter(&crew).unwrap();
            leave(&crew, &blocking);
            assert!(crew.outcome(unseen.key).is_ready());
            assert!(crew.unbegun(unseen.key).is_some());
            assert!(crew.next_job().is_none(), "the guest never sees it");
            crew.leave(&unseen);
            assert!(enter(&crew).is_none());
            // Whom the guest has seen may finish.
            assert!(crew.outcome(waiting.key).is_pending());
            crew.finished(waiting.key, Ok(()), 7);
            assert!(matches!(crew.outcome(waiting.key), Poll::Ready(Ok(()))));
            assert_eq!((crew.memory(), crew.state.lock().unfinished), (7, 0));
        }
    }

    #[test]
    fn one_that_the_guest_never_sees_does_not_close_the_instance() {
        let leaves: [fn(&Crew, &Call); 3] = [
            |crew, call| {
                crew.give_up(call.key);
                assert!(crew.is_unseen(call.key));
            },
            |_, _| {},
            |crew, call| {
                assert!(crew.next_job().is_some());
                crew.refused(call.key, failure::cancelled());
                assert!(crew.is_unseen(call.key));
                assert!(matches!(crew.outcome(call.key), Poll::Ready(Err(_))));
            },
        ];
        for leave in leaves {
            let crew = crew();
            let other = begun(&crew);
            let unseen = enter(&crew).unwrap();
            leave(&crew, &unseen);
            crew.leave(&unseen);
            assert!(!is_closed(&crew) && crew.next_job().is_none());
            crew.finished(other.key, Ok(()), 0);
            assert!(crew.may_be_quiet());
            crew.is_quiet();
            assert!(matches!(crew.outcome(other.key), Poll::Ready(Ok(()))));
            crew.leave(&other);
            assert!(crew.state.lock().seats.is_empty());
            assert!(enter(&crew).is_some());
        }
    }

    #[test]
    fn an_answer_that_was_left_unread_is_over_when_the_guest_is_done_with_it() {
        let crew = crew();
        let (left, other) = (begun(&crew), begun(&crew));
        crew.state.lock().seats[&left.key].left.cancel();
        crew.finished(left.key, Ok(()), 0);
        assert!(crew.outcome(left.key).is_pending());
        crew.give_up(left.key);
        assert!(is_closed(&crew));
        crew.leave(&left);
        crew.finished(other.key, Ok(()), 0);
        // It does not stay for what the guest still does for the one that left.
        assert!(matches!(crew.outcome(other.key), Poll::Ready(Ok(()))));
    }

    #[test]
    fn the_death_of_the_instance_fails_whom_the_guest_has_seen() {
        let crew = crew();
        let (first, second) = (begun(&crew), begun(&crew));
        let unseen = enter(&crew).unwrap();
        let ctx = Context::from_waker(noop_waker_ref());
        assert!(crew.leads(second.key, &ctx) && !crew.leads(first.key, &ctx));
        crew.die(&failure::over_limit(), Some(9));
        for call in [&first, &second] {
            let Poll::Ready(Err(failure)) = crew.outcome(call.key) else {
                panic!("it has failed");
            };
            assert!(failure.message.contains("served 2 requests"));
            assert!(crew.unbegun(call.key).is_none());
        }
        assert!(crew.unbegun(unseen.key).is_some());
        assert_eq!(crew.memory(), 9);
    }
}
