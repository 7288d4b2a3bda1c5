//! Comparing policies at equal idle memory: each is simulated over a range of its one parameter, and the curve of cold
//! starts against idle memory that results is read where another policy's memory is.

use super::engine::simulate;
use super::outcome::{Band, Counts};
use super::settings::Settings;
use super::trace::{Trace, Trigger};
use crate::policy::{Spec, adaptive, histogram};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// The policies of a sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Fixed durations.
    Fixed,
    /// The histogram's range and its cut-offs.
    Histogram,
    /// The adaptive policy's patience.
    Adaptive,
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 3] = [Self::Fixed, Self::Histogram, Self::Adaptive];

    /// The word in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Histogram => "histogram",
            Self::Adaptive => "adaptive",
        }
    }

    /// What is simulated for its curve. The adaptive ones differ from `base` in patience only.
    pub fn members(self, base: &adaptive::Params) -> Vec<Spec> {
        const MINUTE: u64 = 60;
        match self {
            Self::Fixed => [0, 1, 2, 5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 480]
                .into_iter()
                .map(|minutes| Spec::Fixed(Some(Duration::from_secs(minutes * MINUTE))))
                .collect(),
            Self::Histogram => {
                let mut members = Vec::new();
                for range_minutes in [5, 10, 20, 30, 60, 120, 240] {
                    for (head, tail) in [
                        (0.05, 0.99),
                        (0.05, 0.90),
                        (0.05, 0.75),
                        (0.25, 0.75),
                        (0.05, 0.50),
                    ] {
                        members.push(Spec::Histogram(histogram::Params {
                            range_minutes,
                            head,
                            tail,
                            ..histogram::Params::default()
                        }));
                    }
                    // The full range, but less patience while nothing is known.
                    if range_minutes < 240 {
                        members.push(Spec::Histogram(histogram::Params {
                            standard: Some(f32::from(range_minutes) * 60.0),
                            ..histogram::Params::default()
                        }));
                    }
                }
                members
            }
            Self::Adaptive => [
                10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10_240, 20_480, 40_960, 81_920,
            ]
            .into_iter()
            .map(|patience: u32| {
                Spec::Adaptive(adaptive::Params {
                    patience: f64::from(patience),
                    ..*base
                })
            })
            .collect(),
        }
    }
}

/// A curve: cold starts by GiB-hours, the lowest that mixing two members reaches.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Curve {
    points: Vec<(f64, f64)>,
}

impl Curve {
    /// The lower convex hull of the members' results: whoever runs part of the functions with one member and the rest
    /// with another gets every point between them, so that no family is judged by how finely it was swept.
    pub fn of(results: impl IntoIterator<Item = (f64, f64)>) -> Self {
        let mut all: Vec<_> = results.into_iter().collect();
        all.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let mut points: Vec<(f64, f64)> = Vec::new();
        for point in all {
            if points.last().is_some_and(|last| point.1 >= last.1) {
                continue;
            }
            while let [.., a, b] = points.as_slice() {
                let (slope_ab, slope_ap) = (
                    (b.1 - a.1) / (b.0 - a.0).max(f64::MIN_POSITIVE),
                    (point.1 - a.1) / (point.0 - a.0).max(f64::MIN_POSITIVE),
                );
                if slope_ab < slope_ap {
                    break;
                }
                points.pop();
            }
            points.push(point);
        }
        Self { points }
    }

    /// Cold starts at this memory: between two points by a straight line, behind the last one as there. None before the
    /// first.
    pub fn at(&self, memory: f64) -> Option<f64> {
        let mut before: Option<(f64, f64)> = None;
        for point in &self.points {
            if point.0 > memory {
                let from = before?;
                let part = (memory - from.0) / (point.0 - from.0);
                return Some(from.1 + part * (point.1 - from.1));
            }
            before = Some(*point);
        }
        before.map(|point| point.1)
    }

    /// Its corners: GiB-hours and cold starts.
    pub fn points(&self) -> &[(f64, f64)] {
        &self.points
    }
}

/// A member of a family and what it counted, over all traces that were added.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// The policy.
    pub spec: Spec,
    classes: BTreeMap<(Trigger, Band), Counts>,
}

impl Member {
    /// Sums over the classes that `which` picks.
    pub fn of(&self, which: impl Fn(Trigger, Band) -> bool) -> Counts {
        let mut sum = Counts::default();
        for ((trigger, band), counts) in &self.classes {
            if which(*trigger, *band) {
                sum.add(counts);
            }
        }
        sum
    }
}

/// Members that were simulated on the same traces.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sweep {
    members: Vec<Member>,
}

impl Sweep {
    /// Simulates each on a trace, on as many threads as given, and adds what was counted.
    pub fn add(&mut self, specs: &[Spec], trace: &Trace, settings: &Settings, threads: usize) {
        let next = AtomicUsize::new(0);
        let results = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..threads.clamp(1, 64) {
                scope.spawn(|| {
                    while let Some(spec) = specs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let settings = Settings {
                            policy: *spec,
                            ..*settings
                        };
                        let outcome = simulate(trace, &settings);
                        results.lock().push((*spec, outcome.classes));
                    }
                });
            }
        });
        for (spec, classes) in results.into_inner() {
            let at = self.members.iter().position(|member| member.spec == spec);
            let at = at.unwrap_or_else(|| {
                self.members.push(Member {
                    spec,
                    classes: BTreeMap::new(),
                });
                self.members.len() - 1
            });
            if let Some(member) = self.members.get_mut(at) {
                for (class, counts) in classes {
                    member.classes.entry(class).or_default().add(&counts);
                }
            }
        }
        let order = |spec: &Spec| specs.iter().position(|other| other == spec);
        self.members.sort_by_key(|member| order(&member.spec));
    }

    /// The members.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Cold starts by idle GiB-hours, over the classes that `which` picks.
    pub fn curve(&self, which: impl Fn(Trigger, Band) -> bool) -> Curve {
        Curve::of(self.members.iter().map(|member| {
            let counts = member.of(&which);
            (counts.idle_gb_hours(), counts.cold_starts as f64)
        }))
    }

    /// Seconds that invocations waited, by idle GiB-hours.
    pub fn waits(&self, which: impl Fn(Trigger, Band) -> bool) -> Curve {
        Curve::of(self.members.iter().map(|member| {
            let counts = member.of(&which);
            (counts.idle_gb_hours(), counts.added_seconds)
        }))
    }

    /// Cold starts in a class when the family's one parameter is set so that the memory of all functions together is
    /// this: between the two members next to it by a straight line.
    pub fn shared(&self, memory: f64, which: impl Fn(Trigger, Band) -> bool) -> Option<f64> {
        let mut points: Vec<(f64, f64)> = self
            .members
            .iter()
            .map(|member| {
                let all = member.of(|_, _| true).idle_gb_hours();
                (all, member.of(&which).cold_starts as f64)
            })
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points.windows(2).find_map(|pair| match pair {
            [from, to] if from.0 <= memory && memory <= to.0 => {
                let part = (memory - from.0) / (to.0 - from.0).max(f64::MIN_POSITIVE);
                Some(from.1 + part * (to.1 - from.1))
            }
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_is_the_hull_and_is_read_between_its_corners() {
        let curve = Curve::of([
            (0.0, 100.0),
            (10.0, 90.0),
            (20.0, 20.0),
            (30.0, 25.0),
            (40.0, 10.0),
        ]);
        assert_eq!(curve.points(), [(0.0, 100.0), (20.0, 20.0), (40.0, 10.0)]);
        assert_eq!(curve.at(10.0), Some(60.0));
        assert_eq!(curve.at(30.0), Some(15.0));
        assert_eq!(curve.at(90.0), Some(10.0));
        assert_eq!(Curve::of([(5.0, 1.0)]).at(1.0), None);
    }
}
