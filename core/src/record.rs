//! What was invoked lately: a bounded ring in memory, from which `fnctl trace export` makes a trace that policies can be
//! simulated on. The scheduler writes it, the gateway reads it; the oldest entries give way.

use crate::ids::FunctionName;
use crate::invocation::StartKind;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

/// One invocation that ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// When it arrived.
    pub at: SystemTime,
    /// Of which function.
    pub function: FunctionName,
    /// How long the guest ran.
    pub duration: Duration,
    /// How its instance came to be.
    pub start: StartKind,
}

/// Parts of a large ring, each behind a lock of its own.
const PARTS: usize = 16;
/// A ring below this size is one part.
const SMALL: usize = 1_024;

/// The ring. Clones share it. Entries go round its parts, so that invocations that end at the same time do not meet at
/// one lock.
#[derive(Debug, Clone)]
pub struct Recorder(Arc<Ring>);

#[derive(Debug)]
struct Ring {
    parts: Vec<Mutex<VecDeque<Recorded>>>,
    next: AtomicUsize,
    /// Most entries of one part.
    most: usize,
}

impl Recorder {
    /// Keeps the last `most` invocations, or a few more as its parts are of the same size; 0 keeps none.
    pub fn new(most: usize) -> Self {
        let parts = if most < SMALL { 1 } else { PARTS };
        Self(Arc::new(Ring {
            parts: (0..parts).map(|_| Mutex::default()).collect(),
            next: AtomicUsize::new(0),
            most: most.div_ceil(parts),
        }))
    }

    /// Adds one.
    pub fn add(&self, recorded: Recorded) {
        let ring = &*self.0;
        if ring.most == 0 {
            return;
        }
        let turn = ring.next.fetch_add(1, Ordering::Relaxed);
        let Some(part) = ring.parts.get(turn % ring.parts.len()) else {
            return;
        };
        let mut part = part.lock();
        let oldest = match part.len() < ring.most {
            true => None,
            false => part.pop_front(),
        };
        part.push_back(recorded);
        drop(part);
        drop(oldest);
    }

    /// Forgets a function that was removed.
    pub fn forget(&self, function: &FunctionName) {
        for part in &self.0.parts {
            part.lock()
                .retain(|recorded| recorded.function != *function);
        }
    }

    /// What is kept, sorted by when it arrived.
    pub fn all(&self) -> Vec<Recorded> {
        let parts = self.0.parts.iter();
        let mut all: Vec<_> = parts
            .flat_map(|part| part.lock().iter().cloned().collect::<Vec<_>>())
            .collect();
        all.sort_by_key(|recorded| recorded.at);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_give_way_and_the_rest_is_sorted() {
        let recorder = Recorder::new(3);
        for seconds in [5, 1, 4, 3] {
            recorder.add(Recorded {
                at: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
                function: "echo".parse().unwrap(),
                duration: Duration::ZERO,
                start: StartKind::Warm,
            });
        }
        let seconds: Vec<_> = recorder
            .all()
            .iter()
            .map(|recorded| {
                recorded
                    .at
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .unwrap()
                    .as_secs()
            })
            .collect();
        assert_eq!(seconds, [1, 3, 4]);
        recorder.forget(&"echo".parse().unwrap());
        assert!(recorder.all().is_empty());
    }

    #[test]
    fn a_large_ring_keeps_the_last_in_all_its_parts() {
        let most = 16 * 100;
        let recorder = Recorder::new(most);
        for millis in 0..10_000 {
            recorder.add(Recorded {
                at: SystemTime::UNIX_EPOCH + Duration::from_millis(millis),
                function: "echo".parse().unwrap(),
                duration: Duration::ZERO,
                start: StartKind::Warm,
            });
        }
        let all = recorder.all();
        assert_eq!(all.len(), most);
        let oldest = all.first().unwrap().at;
        assert_eq!(
            oldest,
            SystemTime::UNIX_EPOCH + Duration::from_millis(8_400)
        );
        recorder.forget(&"echo".parse().unwrap());
        assert!(recorder.all().is_empty());
    }
}
