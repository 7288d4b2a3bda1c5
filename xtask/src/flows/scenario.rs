//! The flows that docs/scheduling.md explains, as loads.

use std::time::Duration;

/// A load on one function.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// More lines of function.toml.
    pub(crate) config: &'static str,
    /// Whether one call is made before it begins.
    pub(crate) begins_warm: bool,
    pub(crate) phases: &'static [Phase],
}

/// Calls at an even rate, whether or not earlier ones are answered.
pub(crate) struct Phase {
    pub(crate) seconds: f64,
    pub(crate) per_second: f64,
    /// How long the guest waits before it answers, in milliseconds.
    pub(crate) takes_ms: u64,
}

const fn phase(seconds: f64, per_second: f64, takes_ms: u64) -> Phase {
    Phase {
        seconds,
        per_second,
        takes_ms,
    }
}

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "steady",
        title: "Steady: 20 calls a second, 150 ms each",
        config: "keep_alive = \"2s\"\n",
        begins_warm: true,
        phases: &[phase(8.0, 20.0, 150)],
    },
    Scenario {
        name: "to-zero",
        title: "To zero: the load ends after 3 s, keep-alive is 2 s",
        config: "keep_alive = \"2s\"\n",
        begins_warm: true,
        phases: &[phase(3.0, 20.0, 150), phase(4.0, 0.0, 0)],
    },
    Scenario {
        name: "from-zero",
        title: "From zero: nothing is there when the first call comes",
        config: "keep_alive = \"2s\"\n",
        begins_warm: false,
        phases: &[phase(1.0, 0.0, 0), phase(4.0, 20.0, 150)],
    },
    Scenario {
        name: "burst",
        title: "Burst: 40 calls within 0.1 s onto 10 a second",
        config: "keep_alive = \"2s\"\nconcurrency = 50\n",
        begins_warm: true,
        phases: &[
            phase(2.0, 10.0, 150),
            phase(0.1, 400.0, 300),
            phase(4.9, 10.0, 150),
        ],
    },
    Scenario {
        name: "overload",
        title: "Overload: five times what 4 places of 200 ms can serve",
        config: "keep_alive = \"2s\"\nconcurrency = 4\nqueue_size = 20\nqueue_timeout = \"1s\"\ntimeout = \"2s\"\n",
        begins_warm: true,
        phases: &[
            phase(1.0, 10.0, 200),
            phase(5.0, 100.0, 200),
            phase(2.0, 10.0, 200),
        ],
    },
];

impl Scenario {
    pub(crate) fn length(&self) -> Duration {
        Duration::from_secs_f64(self.phases.iter().map(|phase| phase.seconds).sum())
    }

    /// When each call is made, in seconds, and how long it takes.
    pub(crate) fn calls(&self) -> Vec<(f64, u64)> {
        let mut calls = Vec::new();
        let mut began = 0.0;
        for phase in self.phases {
            let count = (phase.seconds * phase.per_second).round();
            let mut index = 0.0;
            while index < count {
                calls.push((began + index / phase.per_second, phase.takes_ms));
                index += 1.0;
            }
            began += phase.seconds;
        }
        calls
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_even_and_inside_the_scenario() {
        for scenario in SCENARIOS {
            let calls = scenario.calls();
            assert!(!calls.is_empty(), "{}", scenario.name);
            let last = scenario.length().as_secs_f64();
            assert!(calls.iter().all(|(at, _)| (0.0..last).contains(at)));
            assert!(calls.is_sorted_by(|a, b| a.0 <= b.0), "{}", scenario.name);
        }
    }
}
