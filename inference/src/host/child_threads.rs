//! The host's threads that compute, and who of them gives way to whom.
//!
//! A thread can be told to give way, but hardly ever to do so no longer. So one thread is there before anybody gives way:
//! it becomes the first of the express lane and starts the others, which inherit how it is treated.

use super::child::Host;
use super::lanes::Lane;
use super::protocol::{self, Answer, Setup};
use super::shared::{MAX_MESSAGE, SlotWord};
use crate::turns;
use fnctl_core::inference::InferenceErrorKind;
use rustix::time::{ClockId, clock_gettime};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, sync_channel};

/// The thread from which those of the express lane come.
pub(super) struct Express(SyncSender<(Arc<Host>, usize)>);

impl Express {
    /// Starts it; to be called before this thread asks for [`turns::compute_patiently`].
    pub(super) fn start() -> io::Result<Self> {
        let (begin, begun) = sync_channel::<(Arc<Host>, usize)>(1);
        std::thread::Builder::new()
            .name("fnctl-express".into())
            .spawn(move || {
                turns::compute_briefly();
                let Ok((host, count)) = begun.recv() else {
                    return;
                };
                for _ in 1..count {
                    let host = host.clone();
                    let started = std::thread::Builder::new()
                        .name("fnctl-express".into())
                        .spawn(move || host.compute(Lane::Express));
                    if started.is_err() {
                        // The lane is narrower, and what does not get through goes with the others.
                        break;
                    }
                }
                host.compute(Lane::Express);
            })?;
        Ok(Self(begin))
    }
}

impl Host {
    /// Starts the threads of both lanes.
    pub(super) fn start_threads(
        self: &Arc<Self>,
        setup: &Setup,
        express: Express,
    ) -> io::Result<()> {
        for _ in 0..setup.compute_threads.max(1) {
            let host = self.clone();
            std::thread::Builder::new()
                .name("fnctl-compute".into())
                .spawn(move || host.compute(Lane::Bulk))?;
        }
        let begun = express.0.send((self.clone(), setup.express_threads));
        begun.map_err(|_| io::Error::other("the express lane's first thread has ended"))
    }

    /// What each of them does.
    fn compute(&self, lane: Lane) {
        let mut message = Vec::new();
        let taker = match lane {
            Lane::Bulk => &self.bulk,
            Lane::Express => &self.express,
        };
        loop {
            let slot = taker.take(&self.shared);
            if slot >= self.shared.layout.slots {
                continue;
            }
            let before = thread_time();
            let answer = self.answer(slot, &mut message);
            let took = thread_time().saturating_sub(before);
            self.note();
            if protocol::encode(&answer, MAX_MESSAGE, &mut message).is_err() {
                let failed = Answer::Failed(
                    InferenceErrorKind::Unsupported,
                    "the model has more outputs than can be told".to_owned(),
                    None,
                );
                let _ = protocol::encode(&failed, MAX_MESSAGE, &mut message);
            }
            let took = u32::try_from(took).unwrap_or(u32::MAX);
            self.shared
                .slot_word(slot, SlotWord::Took)
                .store(took, Ordering::Relaxed);
            let _ = self.shared.write_message(slot, &message);
            self.answerer.push(&self.shared, slot, self.signal.as_fd());
        }
    }
}

/// CPU time of this thread so far, in nanoseconds.
fn thread_time() -> u64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let rest = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds * 1_000_000_000 + rest
}
