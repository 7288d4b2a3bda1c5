//! How many instances a version wants, from the load of the last minute: Knative's autoscaler (its KPA) as a pure
//! function of history and `now`.
//!
//! Load is concurrency: invocations in flight and waiting, averaged over time. The stable window decides in calm, the
//! panic window when load rises suddenly; in panic nothing is scaled down. One that starts knows nothing of before, so
//! it starts in panic: a history that was lost must not let instances go.

use fnctl_core::FunctionConfig;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// What a version asks of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rules {
    /// Concurrency that one instance is to have on average.
    pub target: f64,
    /// Over how long the load is averaged.
    pub stable_window: Duration,
    /// Over how long a sudden load is averaged.
    pub panic_window: Duration,
    /// Panic begins at this many times what the instances are there for.
    pub panic_threshold: f64,
    /// How long the load must be lower before fewer are wanted.
    pub scale_down_delay: Duration,
}

impl Rules {
    /// The rules of a configuration that has a target.
    pub fn of(config: &FunctionConfig) -> Option<Self> {
        let target = config.target_concurrency?;
        Some(Self {
            target: (target.part() * f64::from(config.instance_concurrency.get())).max(0.01),
            stable_window: config.stable_window.duration(),
            panic_window: config.panic_window.duration(),
            panic_threshold: config.panic_threshold.part(),
            scale_down_delay: config.scale_down_delay.duration(),
        })
    }
}

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Decision {
    /// Instances that are wanted.
    pub desired: usize,
    /// Whether it is panicking.
    pub panicking: bool,
}

/// Load over a stretch of time.
#[derive(Debug, Clone, Copy)]
struct Sample {
    from: Instant,
    to: Instant,
    concurrency: f64,
}

/// The history and the mode.
#[derive(Debug)]
pub struct Autoscaler {
    rules: Rules,
    began: Instant,
    samples: VecDeque<Sample>,
    /// Since when panic has had a reason; nothing in calm.
    panic: Option<Instant>,
    /// The most that was wanted in this panic.
    panic_most: usize,
    /// What was wanted at which time, for the delay: falling values, the largest first.
    wanted: VecDeque<(Instant, usize)>,
    last: Decision,
}

/// Samples closer together than this are one.
const GRAIN: Duration = Duration::from_millis(200);

impl Autoscaler {
    /// One that knows nothing but how many instances there are; it panics until a stable window has passed.
    pub fn new(rules: Rules, now: Instant, instances: usize) -> Self {
        Self {
            rules,
            began: now,
            samples: VecDeque::new(),
            panic: Some(now),
            panic_most: instances,
            wanted: VecDeque::new(),
            last: Decision {
                desired: instances,
                panicking: true,
            },
        }
    }

    /// Since when it has a history.
    #[cfg(test)]
    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// What was decided last.
    pub fn last(&self) -> Decision {
        self.last
    }

    /// Takes note of the average concurrency since `from`, and decides. `ready` is how many instances are started.
    pub fn decide(
        &mut self,
        from: Instant,
        now: Instant,
        concurrency: f64,
        ready: usize,
    ) -> Decision {
        self.remember(from, now, concurrency);
        let stable = self.wanted_by(now, self.rules.stable_window);
        let sudden = self.wanted_by(now, self.rules.panic_window);
        let over = {
            #[allow(clippy::cast_precision_loss, reason = "counts of instances")]
            let times = sudden as f64 / ready.max(1) as f64;
            times >= self.rules.panic_threshold
        };
        match self.panic {
            None if over => {
                self.panic = Some(now);
                // What is wanted still, for the delay, is not to be wanted less in panic.
                self.panic_most = ready.max(stable).max(self.last.desired);
            }
            Some(_) if over => self.panic = Some(now),
            Some(since) if now.saturating_duration_since(since) >= self.rules.stable_window => {
                self.panic = None;
            }
            Some(_) | None => {}
        }
        let desired = if self.panic.is_some() {
            self.panic_most = self.panic_most.max(sudden).max(stable);
            self.panic_most
        } else {
            stable
        };
        self.last = Decision {
            desired: self.delayed(now, desired),
            panicking: self.panic.is_some(),
        };
        self.last
    }

    /// Whether nothing is left to decide: no load in the stable window, and nothing wanted.
    pub fn is_at_rest(&self) -> bool {
        self.last.desired == 0 && self.samples.iter().all(|sample| sample.concurrency == 0.0)
    }

    fn remember(&mut self, from: Instant, to: Instant, concurrency: f64) {
        let length = |sample: &Sample| sample.to.saturating_duration_since(sample.from);
        match self.samples.back_mut() {
            Some(last) if length(last) < GRAIN => {
                let (old, new) = (
                    length(last).as_secs_f64(),
                    to.saturating_duration_since(from).as_secs_f64(),
                );
                if old + new > 0.0 {
                    last.concurrency = (last.concurrency * old + concurrency * new) / (old + new);
                }
                last.to = to;
            }
            _ => self.samples.push_back(Sample {
                from,
                to,
                concurrency,
            }),
        }
        while self.samples.front().is_some_and(|sample| {
            to.saturating_duration_since(sample.to) >= self.rules.stable_window
        }) {
            self.samples.pop_front();
        }
    }

    /// Instances for the average load of a window that ends now. Time before the history began does not dilute it.
    fn wanted_by(&self, now: Instant, window: Duration) -> usize {
        let known = now.saturating_duration_since(self.began).min(window);
        if known.is_zero() {
            return 0;
        }
        let from = now - known;
        let load: f64 = self
            .samples
            .iter()
            .map(|sample| {
                let begin = sample.from.max(from);
                sample.to.saturating_duration_since(begin).as_secs_f64() * sample.concurrency
            })
            .sum();
        let average = load / known.as_secs_f64();
        // A hair over a whole number is rounding, not load.
        let instances = (average / self.rules.target - 1e-9).ceil().clamp(0.0, 1e6);
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped above"
        )]
        let instances = instances as usize;
        instances
    }

    /// The most that was wanted within the delay.
    fn delayed(&mut self, now: Instant, desired: usize) -> usize {
        let delay = self.rules.scale_down_delay;
        if delay.is_zero() {
            return desired;
        }
        while self.wanted.back().is_some_and(|(_, less)| *less <= desired) {
            self.wanted.pop_back();
        }
        self.wanted.push_back((now, desired));
        while self
            .wanted
            .front()
            .is_some_and(|(at, _)| now.saturating_duration_since(*at) > delay)
        {
            self.wanted.pop_front();
        }
        self.wanted.front().map_or(desired, |(_, most)| *most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rules() -> Rules {
        Rules {
            target: 1.0,
            stable_window: 60 * SECOND,
            panic_window: 6 * SECOND,
            panic_threshold: 2.0,
            scale_down_delay: Duration::ZERO,
        }
    }

    struct Story {
        scaler: Autoscaler,
        now: Instant,
    }

    impl Story {
        fn new(rules: Rules, instances: usize) -> Self {
            let now = Instant::now();
            Self {
                scaler: Autoscaler::new(rules, now, instances),
                now,
            }
        }

        /// Seconds of a load, served by as many instances as are wanted.
        fn load(&mut self, seconds: u32, concurrency: f64) -> Decision {
            for _ in 0..seconds {
                let from = self.now;
                self.now += SECOND;
                let ready = self.scaler.last().desired;
                self.scaler.decide(from, self.now, concurrency, ready);
            }
            self.scaler.last()
        }
    }

    #[test]
    fn a_restart_begins_in_panic_and_lets_nothing_go_for_a_stable_window() {
        let mut story = Story::new(rules(), 5);
        let decided = story.load(59, 0.0);
        assert_eq!((decided.desired, decided.panicking), (5, true));
        let decided = story.load(2, 0.0);
        assert_eq!((decided.desired, decided.panicking), (0, false));
    }

    #[test]
    fn steady_load_wants_its_average() {
        let mut story = Story::new(rules(), 0);
        let decided = story.load(130, 3.0);
        assert_eq!((decided.desired, decided.panicking), (3, false));
        let half_used = Rules {
            target: 0.5,
            ..rules()
        };
        assert_eq!(Story::new(half_used, 0).load(130, 3.0).desired, 6);
    }

    #[test]
    fn a_burst_panics_within_the_panic_window_and_falls_only_after_a_stable_one() {
        let mut story = Story::new(rules(), 0);
        story.load(130, 1.0);
        let decided = story.load(6, 10.0);
        assert!(decided.panicking && decided.desired >= 9, "{decided:?}");
        let high = story.load(1, 0.0).desired;
        assert_eq!(story.load(50, 0.0).desired, high, "panic never scales down");
        let calm = story.load(80, 0.0);
        assert_eq!((calm.desired, calm.panicking), (0, false));
        assert!(story.scaler.is_at_rest());
    }

    #[test]
    fn a_slow_rise_does_not_panic() {
        let mut story = Story::new(rules(), 0);
        story.load(130, 10.0);
        for step in 0..60 {
            let decided = story.load(1, 10.0 + f64::from(step) / 10.0);
            assert!(!decided.panicking, "{step}: {decided:?}");
        }
    }

    #[test]
    fn scaling_down_waits_for_its_delay() {
        let delayed = Rules {
            scale_down_delay: 30 * SECOND,
            stable_window: 6 * SECOND,
            ..rules()
        };
        let mut story = Story::new(delayed, 0);
        assert_eq!(story.load(40, 4.0).desired, 4);
        assert_eq!(story.load(30, 0.0).desired, 4);
        assert_eq!(story.load(10, 0.0).desired, 0);
    }

    #[test]
    fn panic_begins_with_what_the_delay_still_holds() {
        let held = Rules {
            scale_down_delay: 60 * SECOND,
            stable_window: 6 * SECOND,
            panic_window: SECOND,
            ..rules()
        };
        let mut story = Story::new(held, 0);
        assert_eq!(story.load(20, 10.0).desired, 10);
        assert!(!story.load(50, 1.0).panicking);
        // The node had no room for more than one of them.
        let step = |story: &mut Story, ready| {
            let from = story.now;
            story.now += SECOND;
            story.scaler.decide(from, story.now, 4.0, ready)
        };
        let first = step(&mut story, 1);
        assert_eq!((first.desired, first.panicking), (10, true));
        for _ in 0..20 {
            let decided = step(&mut story, 1);
            assert_eq!((decided.desired, decided.panicking), (10, true));
        }
    }

    proptest! {
        /// While it panics the number wanted never falls, and it is never more than the highest load asks for.
        #[test]
        fn panic_never_scales_down(loads in prop::collection::vec(0u32..50, 1..200)) {
            let mut story = Story::new(rules(), 0);
            let (mut before, mut most) = (Decision::default(), 0);
            for load in loads {
                most = most.max(load as usize);
                let decided = story.load(1, f64::from(load));
                if decided.panicking && before.panicking {
                    prop_assert!(decided.desired >= before.desired);
                }
                prop_assert!(decided.desired <= most);
                before = decided;
            }
        }
    }
}
