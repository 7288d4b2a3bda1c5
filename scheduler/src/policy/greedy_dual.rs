//! `greedy-dual`: whom a node that is short of memory or slots lets go first.
//!
//! From FaasCache (Fuerst and Sharma, ASPLOS 2021, section 4): an idle function's priority is
//! `clock + frequency * cost / size`, set whenever it is used; the lowest goes first, and the clock rises to the priority
//! of what went, so that what is not used any more ages against what is. `frequency` counts invocations since the function
//! last had no instance; `cost` is its measured cold start in seconds, `size` its measured bytes, here in MiB.

use super::Worth;
use serde::{Deserialize, Serialize};

/// The node's clock. It never goes back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct GreedyDual {
    clock: f64,
}

/// Where one function stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    frequency: f64,
    priority: f64,
}

impl Standing {
    /// The lower, the sooner it goes.
    pub fn priority(&self) -> f64 {
        self.priority
    }
}

impl GreedyDual {
    /// The clock as it was read before.
    pub fn at(clock: f64) -> Self {
        Self { clock }
    }

    /// An invocation used an instance of the function.
    pub fn used(&self, standing: &mut Standing, worth: Worth) {
        standing.frequency += 1.0;
        let size = f64::from(worth.sandbox.bytes.max(1024.0)) / f64::from(1 << 20);
        standing.priority = self.clock + standing.frequency * f64::from(worth.cold()) / size;
    }

    /// An instance of the function was let go for lack of room; `last` says that it was the only one.
    pub fn evicted(&mut self, standing: &mut Standing, last: bool) {
        self.clock = self.clock.max(standing.priority);
        if last {
            standing.frequency = 0.0;
        }
    }

    /// The clock.
    pub fn clock(&self) -> f64 {
        self.clock
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn worth(millis: u64, mib: u64) -> Worth {
        Worth::of(Duration::from_millis(millis), mib << 20)
    }

    /// Three functions by hand: 1 s / 100 MiB used twice = 0.02; 4 s / 100 MiB once = 0.04; 1 s / 400 MiB twice = 0.005.
    #[test]
    fn priorities_by_hand() {
        let mut node = GreedyDual::default();
        let [mut small, mut slow, mut large] = [Standing::default(); 3];
        for _ in 0..2 {
            node.used(&mut small, worth(1000, 100));
            node.used(&mut large, worth(1000, 400));
        }
        node.used(&mut slow, worth(4000, 100));
        let near = |a: f64, b: f64| (a - b).abs() < 1e-6;
        assert!(near(small.priority(), 0.02), "{small:?}");
        assert!(near(slow.priority(), 0.04), "{slow:?}");
        assert!(near(large.priority(), 0.005), "{large:?}");
        // The large one goes; what is used from now on starts at its priority.
        node.evicted(&mut large, true);
        assert!(near(node.clock(), 0.005));
        node.used(&mut large, worth(1000, 400));
        assert!(near(large.priority(), 0.005 + 0.0025), "{large:?}");
    }

    /// A function that was popular once does not stay for ever.
    #[test]
    fn what_is_not_used_ages() {
        let mut node = GreedyDual::default();
        let mut old = Standing::default();
        for _ in 0..5 {
            node.used(&mut old, worth(1000, 100));
        }
        let mut evictions = 0;
        loop {
            let mut new = Standing::default();
            node.used(&mut new, worth(1000, 100));
            if new.priority() > old.priority() {
                break;
            }
            node.evicted(&mut new, true);
            evictions += 1;
        }
        assert!((4..=6).contains(&evictions), "{evictions}");
    }
}
