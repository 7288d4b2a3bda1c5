//! What was invoked lately: a bounded ring in memory, from which `fnctl trace export` makes a trace that policies can be
//! simulated on. The scheduler writes it, the gateway reads it; the oldest entries give way.

use crate::ids::FunctionName;
use crate::invocation::StartKind;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
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

/// The ring. Clones share it.
#[derive(Debug, Clone)]
pub struct Recorder {
    ring: Arc<Mutex<VecDeque<Recorded>>>,
    most: usize,
}

impl Recorder {
    /// Keeps the last `most` invocations; 0 keeps none.
    pub fn new(most: usize) -> Self {
        Self {
            ring: Arc::default(),
            most,
        }
    }

    /// Adds one.
    pub fn add(&self, recorded: Recorded) {
        if self.most == 0 {
            return;
        }
        let mut ring = self.ring.lock();
        while ring.len() >= self.most {
            ring.pop_front();
        }
        ring.push_back(recorded);
    }

    /// Forgets a function that was removed.
    pub fn forget(&self, function: &FunctionName) {
        self.ring
            .lock()
            .retain(|recorded| recorded.function != *function);
    }

    /// What is kept, sorted by when it arrived.
    pub fn all(&self) -> Vec<Recorded> {
        let mut all: Vec<_> = self.ring.lock().iter().cloned().collect();
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
}
