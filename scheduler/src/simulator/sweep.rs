//! Comparing policies at equal idle memory: each is simulated over a range of its one parameter, and the curve of cold
//! starts against idle memory that results is read where another policy's memory is.

use super::outcome::{Counts, Outcome};
use crate::policy::{Spec, adaptive, histogram};
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
                    for (head, tail) in [(0.05, 0.99), (0.05, 0.90), (0.05, 0.75), (0.25, 0.75), (0.05, 0.50)] {
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
            Self::Adaptive => [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10_240, 20_480, 40_960, 81_920]
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

/// A point of a curve from some of the functions of a result.
pub fn point(outcome: &Outcome, counts: impl Fn(&Outcome) -> Counts) -> (f64, f64) {
    let counts = counts(outcome);
    (counts.idle_gb_hours(), counts.cold_starts as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_is_the_hull_and_is_read_between_its_corners() {
        let curve = Curve::of([(0.0, 100.0), (10.0, 90.0), (20.0, 20.0), (30.0, 25.0), (40.0, 10.0)]);
        assert_eq!(curve.points(), [(0.0, 100.0), (20.0, 20.0), (40.0, 10.0)]);
        assert_eq!(curve.at(10.0), Some(60.0));
        assert_eq!(curve.at(30.0), Some(15.0));
        assert_eq!(curve.at(90.0), Some(10.0));
        assert_eq!(Curve::of([(5.0, 1.0)]).at(1.0), None);
    }
}
