//! The node's memory, by what instances and sessions were measured to take, not by what functions declare.
//!
//! [`Footprint`] is what one instance of a version takes, [`Budget`] what all together may. A start is admitted when
//! it fits by the measured footprint; afterwards each run says what its instance really takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What the host keeps of a sandbox besides its linear memory: store, tables, stack, buffers.
const OVERHEAD: u64 = 256 << 10;
/// What an instance is taken for before any of its version was measured, unless it may have less.
const UNKNOWN: u64 = 16 << 20;

/// Memory of one instance of a version, in bytes, as the last runs reported it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Footprint(Option<u64>);

impl Footprint {
    /// What was known, in bytes.
    pub(crate) fn of(known: Option<u64>) -> Self {
        Self(known)
    }

    /// Bytes, if any were measured.
    pub(crate) fn known(self) -> Option<u64> {
        self.0
    }

    /// Takes note of a run. It rises at once and falls slowly: linear memory never shrinks, so a smaller instance is
    /// only a younger one.
    pub fn add(&mut self, bytes: u64) {
        self.0 = Some(match self.0 {
            Some(known) if bytes < known => known - (known - bytes) / 32,
            _ => bytes,
        });
    }

    /// What another instance will take, overhead included. `declared` is the most that it may.
    pub fn expected(&self, declared: u64) -> u64 {
        self.0.unwrap_or(UNKNOWN).min(declared) + OVERHEAD
    }
}

/// Bytes in use, against a limit.
#[derive(Debug)]
pub struct Budget {
    /// 0 = none.
    limit: u64,
    instances: AtomicU64,
    sessions: AtomicU64,
    /// Whether a start was refused for want of memory since somebody looked.
    refused: AtomicBool,
}

impl Budget {
    /// Nothing is used of `limit` bytes; 0 is no limit.
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            instances: AtomicU64::new(0),
            sessions: AtomicU64::new(0),
            refused: AtomicBool::new(false),
        }
    }

    /// Takes `bytes` if they are left. No start is taken for more than the quarter that instances always have: what a
    /// single run once took must not keep its function out for good, and is counted when it is taken again.
    pub fn take(self: &Arc<Self>, bytes: u64) -> Option<Share> {
        let (bytes, most) = (self.counted(bytes), self.for_instances());
        let taken = self
            .instances
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                let after = used.saturating_add(bytes);
                (after <= most).then_some(after)
            });
        if taken.is_err() {
            self.refused.store(true, Ordering::Relaxed);
            return None;
        }
        Some(Share {
            budget: self.clone(),
            bytes,
        })
    }

    /// What all instances together may have: what sessions leave, and a quarter whatever those take, since a model that
    /// nobody may unload must not shut every other function out.
    fn for_instances(&self) -> u64 {
        if self.limit == 0 {
            return u64::MAX;
        }
        let sessions = self.sessions.load(Ordering::Relaxed);
        self.limit.saturating_sub(sessions).max(self.limit / 4)
    }

    /// What a start of that many bytes is taken for.
    fn counted(&self, bytes: u64) -> u64 {
        if self.limit == 0 {
            bytes
        } else {
            bytes.min(self.limit / 4)
        }
    }

    /// Whether instances have more than they may, so that it helps if some go.
    pub fn instances_are_over(&self) -> bool {
        self.instances.load(Ordering::Relaxed) > self.for_instances()
    }

    /// What the sessions of models take now.
    pub fn set_sessions(&self, bytes: u64) {
        self.sessions.store(bytes, Ordering::Relaxed);
    }

    /// Whether more is in use than may be: instances grow while they run, and sessions come beside them.
    pub fn is_over(&self) -> bool {
        self.limit > 0 && self.used() > self.limit
    }

    /// Whether sessions that nobody uses are to go: more is in use than may be, or a start was refused since this was asked
    /// last. An idle session may come back in milliseconds; a function that cannot start does not answer at all.
    pub fn wants_relief(&self) -> bool {
        let refused = self.refused.swap(false, Ordering::Relaxed);
        self.is_over() || (refused && self.sessions.load(Ordering::Relaxed) > 0)
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.instances
            .load(Ordering::Relaxed)
            .saturating_add(self.sessions.load(Ordering::Relaxed))
    }

    /// Bytes of instances, and of sessions.
    #[cfg(test)]
    pub(crate) fn parts(&self) -> [u64; 2] {
        [
            self.instances.load(Ordering::Relaxed),
            self.sessions.load(Ordering::Relaxed),
        ]
    }

    /// The limit in bytes; 0 = none.
    pub fn limit(&self) -> u64 {
        self.limit
    }
}

/// One instance's part; given back when dropped.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Share {
    /// The instance was measured to take this much linear memory. It has it already, so this is never refused.
    pub fn measured(&mut self, linear: u64) {
        let bytes = linear.saturating_add(OVERHEAD);
        if bytes > self.bytes {
            let more = bytes - self.bytes;
            self.budget.instances.fetch_add(more, Ordering::Relaxed);
        } else if bytes < self.bytes {
            let less = self.bytes - bytes;
            self.budget.instances.fetch_sub(less, Ordering::Relaxed);
        }
        self.bytes = bytes;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget
            .instances
            .fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_footprint_rises_at_once_and_falls_slowly() {
        let mut footprint = Footprint::default();
        assert_eq!(footprint.expected(128 * MIB), UNKNOWN + OVERHEAD);
        assert_eq!(footprint.expected(MIB), MIB + OVERHEAD);
        footprint.add(2 * MIB);
        footprint.add(8 * MIB);
        assert_eq!(footprint.expected(128 * MIB), 8 * MIB + OVERHEAD);
        footprint.add(2 * MIB);
        assert!(footprint.expected(128 * MIB) > 7 * MIB);
        for _ in 0..300 {
            footprint.add(2 * MIB);
        }
        assert!(footprint.expected(128 * MIB) < 3 * MIB);
    }

    #[test]
    fn what_was_measured_is_what_counts() {
        let budget = Arc::new(Budget::new(20 * MIB));
        let mut first = budget.take(MIB).unwrap();
        first.measured(16 * MIB);
        assert!(budget.take(4 * MIB).is_none());
        first.measured(2 * MIB);
        assert_eq!(budget.used(), 2 * MIB + OVERHEAD);
        let second = budget.take(5 * MIB).unwrap();
        budget.set_sessions(12 * MIB);
        assert!(budget.take(2 * MIB).is_none());
        assert!(!budget.is_over());
        // Sessions may go for who was refused; it is said once.
        assert!(budget.wants_relief() && !budget.wants_relief());
        first.measured(4 * MIB);
        assert!(budget.is_over() && budget.instances_are_over());
        drop((first, second));
        assert_eq!(budget.used(), 12 * MIB);
    }

    #[test]
    fn sessions_leave_instances_a_quarter_and_one_large_run_keeps_nobody_out() {
        let budget = Arc::new(Budget::new(20 * MIB));
        budget.set_sessions(100 * MIB);
        assert!(budget.is_over() && !budget.instances_are_over());
        // It once took more than there is.
        let mut large = budget.take(u64::MAX).unwrap();
        assert_eq!(budget.parts()[0], 5 * MIB);
        assert!(budget.take(1).is_none());
        large.measured(6 * MIB);
        assert!(budget.instances_are_over());
        drop(large);
        assert!(budget.take(5 * MIB).is_some());
    }

    #[test]
    fn no_limit_admits_everything() {
        let budget = Arc::new(Budget::new(0));
        let _all = budget.take(u64::MAX / 2).unwrap();
        assert!(!budget.is_over() && !budget.instances_are_over());
    }
}
