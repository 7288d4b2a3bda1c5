//! Which functions are to be looked at, and when: those whose policy wants an instance started ahead of demand, at that
//! time, and those that have taught something, at the next look. A look costs what there is to do, however many functions
//! have a history.

use crate::policy::Moment;
use fnctl_core::ids::FunctionName;
use parking_lot::Mutex;
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

/// See the module. A function is in each at most a few times: [`crate::keep`] tells it once until it was looked at.
#[derive(Default)]
pub(crate) struct Ahead {
    starts: Mutex<BinaryHeap<Reverse<(Moment, FunctionName)>>>,
    taught: Mutex<BTreeSet<FunctionName>>,
    left: Mutex<BTreeSet<FunctionName>>,
}

impl Ahead {
    /// The function is to be looked at then.
    pub(crate) fn start_at(&self, moment: Moment, function: &FunctionName) {
        self.starts.lock().push(Reverse((moment, function.clone())));
    }

    /// When the first is to be looked at. It may want nothing any more.
    pub(crate) fn next(&self) -> Option<Moment> {
        self.starts
            .lock()
            .peek()
            .map(|Reverse((moment, _))| *moment)
    }

    /// Takes out those whose time has come, in the order of their times and names.
    pub(crate) fn due(&self, now: Moment) -> Vec<FunctionName> {
        let mut starts = self.starts.lock();
        let mut due = Vec::new();
        while let Some(first) = starts.peek()
            && first.0.0 <= now
        {
            due.extend(starts.pop().map(|Reverse((_, function))| function));
        }
        due
    }

    /// The function has something for the book.
    pub(crate) fn teaches(&self, function: &FunctionName) {
        self.taught.lock().insert(function.clone());
    }

    /// Takes out those that have something for the book.
    pub(crate) fn taught(&self) -> BTreeSet<FunctionName> {
        std::mem::take(&mut *self.taught.lock())
    }

    /// The function's lane is gone: what is kept of it may be let go.
    pub(crate) fn leaves(&self, function: &FunctionName) {
        self.left.lock().insert(function.clone());
    }

    /// Takes out those whose lane is gone.
    pub(crate) fn left(&self) -> BTreeSet<FunctionName> {
        std::mem::take(&mut *self.left.lock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_due_comes_out_by_time_and_name() {
        let ahead = Ahead::default();
        let name = |name: &str| -> FunctionName { name.parse().unwrap() };
        for (at, function) in [(3, "a"), (1, "c"), (1, "b"), (2, "c")] {
            ahead.start_at(Moment(at), &name(function));
        }
        assert_eq!(ahead.next(), Some(Moment(1)));
        assert_eq!(ahead.due(Moment(0)), []);
        assert_eq!(ahead.due(Moment(2)), [name("b"), name("c"), name("c")]);
        assert_eq!(ahead.next(), Some(Moment(3)));
    }
}
