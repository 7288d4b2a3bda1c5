//! The rings through which computes go to a host, one for each lane, and the one through which they come back; and how
//! either side is woken.
//!
//! A ring has as many entries as there are slots, and each slot is in each ring at most once, so that a ring cannot
//! overflow. The tail is shared, the head is private to the side that reads: the other side can only ever lie about how
//! much there is, and what it says is in there.

use super::lanes::Lane;
use super::shared::{Shared, Word};
use parking_lot::Mutex;
use rustix::thread::futex;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, Ordering};

/// The platform's end of one lane's submissions.
#[derive(Debug)]
pub(crate) struct Submitter {
    lane: Lane,
    tail: Mutex<u32>,
}

impl Submitter {
    pub(crate) fn new(lane: Lane) -> Self {
        Self {
            lane,
            tail: Mutex::new(0),
        }
    }

    /// Puts a slot in, and wakes a thread of the lane if one sleeps.
    pub(crate) fn push(&self, shared: &Shared, slot: u32) {
        let (submitted, sleepers) = Word::of(self.lane);
        let mut tail = self.tail.lock();
        let entry = shared.submission(self.lane, *tail);
        entry.store(slot, Ordering::Release);
        *tail = tail.wrapping_add(1);
        shared.word(submitted).store(*tail, Ordering::SeqCst);
        drop(tail);
        if shared.word(sleepers).load(Ordering::SeqCst) > 0 {
            // Not a private futex: the sleepers are in another process.
            let _ = futex::wake(shared.word(submitted), futex::Flags::empty(), 1);
        }
    }
}

/// The host's end of one lane's submissions; any number of threads.
#[derive(Debug)]
pub(crate) struct Taker {
    lane: Lane,
    head: AtomicU32,
}

impl Taker {
    pub(crate) fn new(lane: Lane) -> Self {
        Self {
            lane,
            head: AtomicU32::new(0),
        }
    }

    /// The next slot; sleeps until there is one.
    pub(crate) fn take(&self, shared: &Shared) -> u32 {
        let (submitted, sleepers) = Word::of(self.lane);
        let tail = shared.word(submitted);
        loop {
            let head = self.head.load(Ordering::SeqCst);
            if tail.load(Ordering::SeqCst) == head {
                let sleepers = shared.word(sleepers);
                sleepers.fetch_add(1, Ordering::SeqCst);
                if tail.load(Ordering::SeqCst) == head {
                    let _ = futex::wait(tail, futex::Flags::empty(), head, None);
                }
                sleepers.fetch_sub(1, Ordering::SeqCst);
                continue;
            }
            let slot = shared.submission(self.lane, head).load(Ordering::Acquire);
            let next = head.wrapping_add(1);
            if self
                .head
                .compare_exchange(head, next, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
            {
                return slot;
            }
        }
    }
}

/// The host's end of the answers.
#[derive(Debug, Default)]
pub(crate) struct Answerer(Mutex<u32>);

impl Answerer {
    /// Puts a slot in, and signals the platform if it asked for that.
    pub(crate) fn push(&self, shared: &Shared, slot: u32, signal: BorrowedFd<'_>) {
        let mut tail = self.0.lock();
        shared.completion(*tail).store(slot, Ordering::Release);
        *tail = tail.wrapping_add(1);
        shared.word(Word::Completed).store(*tail, Ordering::SeqCst);
        drop(tail);
        if shared.word(Word::Armed).swap(0, Ordering::SeqCst) == 1 {
            let _ = rustix::io::write(signal, &1_u64.to_ne_bytes());
        }
    }
}

/// The host said something that cannot be true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lie(pub(crate) &'static str);

/// The platform's end of the answers.
#[derive(Debug, Default)]
pub(crate) struct Collector(u32);

impl Collector {
    /// Hands every answered slot to `each`. The slots are whatever the host says.
    pub(crate) fn drain(
        &mut self,
        shared: &Shared,
        mut each: impl FnMut(u32) -> Result<(), Lie>,
    ) -> Result<usize, Lie> {
        let tail = shared.word(Word::Completed).load(Ordering::SeqCst);
        let count = tail.wrapping_sub(self.0);
        if count > shared.layout.slots {
            return Err(Lie("more answers than there can be"));
        }
        for _ in 0..count {
            let slot = shared.completion(self.0).load(Ordering::Acquire);
            self.0 = self.0.wrapping_add(1);
            if slot >= shared.layout.slots {
                return Err(Lie("an answer in a slot that does not exist"));
            }
            each(slot)?;
        }
        Ok(count as usize)
    }

    /// Asks for a signal at the next answer. Says no if one is there already.
    pub(crate) fn arm(&self, shared: &Shared) -> bool {
        let armed = shared.word(Word::Armed);
        armed.store(1, Ordering::SeqCst);
        if shared.word(Word::Completed).load(Ordering::SeqCst) == self.0 {
            return true;
        }
        armed.store(0, Ordering::SeqCst);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::super::shared::Layout;
    use super::*;
    use rustix::event::EventfdFlags;
    use std::os::fd::AsFd;
    use std::sync::Arc;

    const STOP: u32 = u32::MAX;

    #[test]
    fn every_slot_is_taken_once_and_answered_once_whoever_sleeps() {
        let shared = Arc::new(Shared::create(Layout::new(4, 0)).unwrap());
        let signal = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        let lanes = [Lane::Bulk, Lane::Express];
        let takers = lanes.map(|lane| Arc::new(Taker::new(lane)));
        let answerer = Arc::new(Answerer::default());
        let threads: Vec<_> = takers
            .iter()
            .cycle()
            .take(4)
            .map(|taker| {
                let (shared, signal) = (shared.clone(), signal.clone());
                let (taker, answerer) = (taker.clone(), answerer.clone());
                std::thread::spawn(move || {
                    loop {
                        match taker.take(&shared) {
                            STOP => return,
                            slot => answerer.push(&shared, slot, signal.as_fd()),
                        }
                    }
                })
            })
            .collect();
        let submitters = lanes.map(Submitter::new);
        let mut collector = Collector::default();
        let slots = shared.layout.slots;
        let mut free: Vec<u32> = (0..slots).collect();
        let (mut sent, mut seen) = (0, 0);
        while seen < 100_000 {
            while sent < 100_000
                && let Some(slot) = free.pop()
            {
                submitters[sent % 2].push(&shared, slot);
                sent += 1;
            }
            let before = free.len();
            collector
                .drain(&shared, |slot| {
                    assert!(!free.contains(&slot), "answered twice");
                    free.push(slot);
                    Ok(())
                })
                .unwrap();
            let answered = free.len() - before;
            seen += answered;
            if answered == 0 && collector.arm(&shared) {
                rustix::io::read(&*signal, &mut [0; 8]).unwrap();
            }
        }
        for turn in 0..threads.len() {
            submitters[turn % 2].push(&shared, STOP);
        }
        for thread in threads {
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_host_that_lies_about_its_answers_is_found_out() {
        let shared = Shared::create(Layout::new(4, 0)).unwrap();
        let mut collector = Collector::default();
        shared.word(Word::Completed).store(1, Ordering::SeqCst);
        shared.completion(0).store(u32::MAX, Ordering::SeqCst);
        assert!(collector.drain(&shared, |_| Ok(())).is_err());
        shared
            .word(Word::Completed)
            .store(u32::MAX, Ordering::SeqCst);
        assert!(collector.drain(&shared, |_| Ok(())).is_err());
    }
}
