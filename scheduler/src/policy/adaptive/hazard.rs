//! How likely an idle function is called next, by how long it has been idle: a hazard per bin of time.
//!
//! Bins are a third of an octave wide, from half a second to three days, so that sub-second bursts and daily jobs are
//! told apart with the same relative precision in 58 numbers. An idle time that ended for a known reason (a timer that
//! is tracked on its own) counts as survived until then, not as ended: the estimate is the occurrence-exposure rate of
//! survival analysis, `ended / time at risk`, with a prior of `strength` events at the prior's rate (the posterior mean
//! of a Gamma prior for a piecewise-constant hazard). Old idle times fade by `fade` at each new one.

use serde::{Deserialize, Serialize};
use std::sync::LazyLock;

/// Bins of an idle time.
pub const BINS: usize = 58;
/// Where the first bin ends, in seconds.
const FIRST: f32 = 0.5;
const PER_OCTAVE: f32 = 3.0;

static EDGES: LazyLock<[f32; BINS + 1]> = LazyLock::new(|| {
    let mut edges = [0.0; BINS + 1];
    let mut octaves = 0.0;
    for edge in edges.iter_mut().skip(1) {
        *edge = FIRST * f32::exp2(octaves / PER_OCTAVE);
        octaves += 1.0;
    }
    edges
});

static WIDTHS: LazyLock<[f32; BINS]> = LazyLock::new(|| {
    let mut widths = [0.0; BINS];
    for (width, edges) in widths.iter_mut().zip(EDGES.windows(2)) {
        if let [from, to] = edges {
            *width = to - from;
        }
    }
    widths
});

/// The bins' edges in seconds.
pub fn edges() -> &'static [f32; BINS + 1] {
    &EDGES
}

/// The bins' widths in seconds.
pub fn width() -> &'static [f32; BINS] {
    &WIDTHS
}

/// The bin of an idle time; what is longer than all is in the last.
pub fn bin(seconds: f32) -> usize {
    if seconds < FIRST {
        return 0;
    }
    let octaves = (seconds / FIRST).log2() * PER_OCTAVE;
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a saturating conversion is meant; it is not negative"
    )]
    let bin = (octaves as usize).min(BINS - 2);
    bin + 1
}

/// Idle times of one function, or of one of its levels.
#[derive(Debug, Clone, PartialEq)]
pub struct IdleTimes {
    ended: [f32; BINS],
    survived: [f32; BINS],
}

impl Default for IdleTimes {
    fn default() -> Self {
        Self {
            ended: [0.0; BINS],
            survived: [0.0; BINS],
        }
    }
}

impl IdleTimes {
    /// Counts an idle time; `ended` is false if it ended for another reason than the ones to be learned.
    pub fn record(&mut self, bin: usize, ended: bool, fade: f32) {
        for count in self.ended.iter_mut().chain(&mut self.survived) {
            *count *= fade;
        }
        let counts = if ended {
            &mut self.ended
        } else {
            &mut self.survived
        };
        if let Some(count) = counts.get_mut(bin) {
            *count += 1.0;
        }
    }

    /// Hazards per second, as fine as what was seen allows.
    pub fn shaped(&self, prior: &[f32; BINS], strength: f32) -> [f32; BINS] {
        let mut exposed = [0.0; BINS];
        let mut beyond = 0.0;
        for (((exposed, ended), survived), width) in exposed
            .iter_mut()
            .zip(self.ended)
            .zip(self.survived)
            .zip(width())
            .rev()
        {
            let inside = ended + survived;
            *exposed = width * (beyond + inside / 2.0);
            beyond += inside;
        }
        super::shape::hazards(prior, &self.ended, &exposed, strength)
    }

    /// Hazards per second, leaning on the prior's by `strength` events.
    pub fn hazards(&self, prior: &[f32; BINS], strength: f32) -> [f32; BINS] {
        let mut hazards = *prior;
        let mut beyond = 0.0;
        for (((hazard, ended), survived), width) in hazards
            .iter_mut()
            .zip(self.ended)
            .zip(self.survived)
            .zip(width())
            .rev()
        {
            let inside = ended + survived;
            let exposed = width * (beyond + inside / 2.0);
            *hazard = (strength + ended) / (strength / hazard.max(1e-12) + exposed);
            beyond += inside;
        }
        hazards
    }
}

/// Stored as the bins that are not empty.
impl Serialize for IdleTimes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bins: Vec<(u8, f32, f32)> = (0u8..)
            .zip(self.ended.iter().zip(&self.survived))
            .filter(|(_, (ended, survived))| **ended > 0.01 || **survived > 0.01)
            .map(|(bin, (ended, survived))| (bin, *ended, *survived))
            .collect();
        bins.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for IdleTimes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bins = Vec::<(u8, f32, f32)>::deserialize(deserializer)?;
        let mut times = Self::default();
        let sane = |count: f32| {
            if count.is_finite() {
                count.clamp(0.0, 1e6)
            } else {
                0.0
            }
        };
        for (bin, ended, survived) in bins {
            if let (Some(to_ended), Some(to_survived)) = (
                times.ended.get_mut(usize::from(bin)),
                times.survived.get_mut(usize::from(bin)),
            ) {
                *to_ended = sane(ended);
                *to_survived = sane(survived);
            }
        }
        Ok(times)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_is_in_the_bin_that_its_edges_say() {
        for seconds in [0.0, 0.4, 0.6, 1.0, 10.0, 59.0, 600.0, 86_400.0, 200_000.0] {
            let at = bin(seconds);
            assert!(
                edges()[at] <= seconds * 1.0001 && seconds <= edges()[at + 1] * 1.0001,
                "{seconds}"
            );
        }
        assert_eq!(bin(f32::INFINITY), BINS - 1);
    }

    /// Four idle times of 10 s and no prior to speak of: the bin of 10 s has 4 events in 2 widths at risk.
    #[test]
    fn the_hazard_by_hand() {
        let mut times = IdleTimes::default();
        for _ in 0..4 {
            times.record(bin(10.0), true, 1.0);
        }
        let hazards = times.hazards(&[1e-3; BINS], 1e-6);
        let at = bin(10.0);
        assert!((hazards[at] - 2.0 / width()[at]).abs() < 0.01 * hazards[at]);
        assert!(hazards[at - 1] < 1e-6 && (hazards[at + 1] - 1e-3).abs() < 1e-6);
    }
}
