//! Outputs that a host holds until there is room for them, and that nobody waits for any more.

use parking_lot::Mutex;
use std::collections::HashMap;

/// Runs whose outputs the host is to drop, by their slots. The order to do so is lost if the host takes no frames at that
/// moment, and the outputs would stay until the slot is used again: the watch says it once more.
#[derive(Debug, Default)]
pub(crate) struct Held(Mutex<HashMap<u32, u32>>);

impl Held {
    /// The outputs of a run that are about to be fetched.
    pub(super) fn unfetched<'a>(
        &'a self,
        cancel: &'a (dyn Fn(u32, u32) + Sync),
        slot: u32,
        run: u32,
    ) -> Unfetched<'a> {
        Unfetched {
            held: self,
            cancel,
            slot,
            run,
        }
    }

    /// Says all of it again. What is sent is done with.
    pub(super) fn repeat(&self, send: impl Fn(u32, u32) -> bool) {
        self.0.lock().retain(|slot, run| !send(*slot, *run));
    }
}

/// Tells the host that nobody fetches a run's outputs, unless they are fetched.
pub(super) struct Unfetched<'a> {
    held: &'a Held,
    cancel: &'a (dyn Fn(u32, u32) + Sync),
    slot: u32,
    run: u32,
}

impl Drop for Unfetched<'_> {
    fn drop(&mut self) {
        self.held.0.lock().insert(self.slot, self.run);
        (self.cancel)(self.slot, self.run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_fetches_is_said_until_it_is_heard() {
        let held = Held::default();
        let lost = |_, _| {};
        std::mem::forget(held.unfetched(&lost, 1, 10));
        drop(held.unfetched(&lost, 2, 20));
        drop(held.unfetched(&lost, 3, 30));
        let said = Mutex::new(Vec::new());
        let say = |slot, run| {
            said.lock().push((slot, run));
            slot == 3
        };
        held.repeat(say);
        held.repeat(say);
        said.lock().sort_unstable();
        assert_eq!(*said.lock(), [(2, 20), (2, 20), (3, 30)]);
    }
}
