//! The hazard of one function, as fine as its idle times allow.
//!
//! A guess of the hazard's shape is multiplied by a factor for each stretch of time. Whether a stretch has one factor, or
//! its halves have each their own, is not decided but weighed: by how likely either makes the idle times that were seen,
//! with factors drawn from a Gamma distribution around one (Bayesian averaging over all dyadic partitions, as in context
//! tree weighting, Willems, Shtarkov and Tjalkens 1995, and optional Pólya trees, Wong and Ma 2010). Few idle times so
//! give a smooth curve, many a sharp one, with nothing to set for either. Two guesses are weighed in the same way: what
//! functions of its kind do, and that the chance of a call does not depend on the age at all.

use super::hazard::{BINS, width};

/// Stretches in the tree: bins are its leaves.
const NODES: usize = 2 * LEAVES;
/// The chance that a stretch is cut in two, before anything is seen.
const CUT: f64 = 0.5;
const LEAVES: usize = BINS.next_power_of_two();

/// How much is known of a stretch under one guess.
#[derive(Clone, Copy)]
struct Node {
    /// Idle times that ended in it.
    ended: f64,
    /// How many were expected to.
    expected: f64,
    /// Logarithm of the likelihood of what was seen in it, over all ways to cut it.
    evidence: f64,
    /// The chance that it is one piece.
    whole: f64,
}

/// Hazards per second under a guess, and the logarithm of the likelihood of what was seen.
fn under(
    guess: &[f32; BINS],
    ended: &[f32; BINS],
    exposed: &[f32; BINS],
    strength: f64,
) -> ([f32; BINS], f64) {
    let mut nodes = [Node {
        ended: 0.0,
        expected: 0.0,
        evidence: 0.0,
        whole: 1.0,
    }; NODES];
    let mut fit = 0.0;
    for (node, ((guess, ended), exposed)) in nodes
        .iter_mut()
        .skip(LEAVES)
        .zip(guess.iter().zip(ended).zip(exposed))
    {
        node.ended = f64::from(*ended);
        node.expected = f64::from(guess * exposed);
        if *ended > 0.0 {
            fit += node.ended * f64::from(guess.max(1e-12)).ln();
        }
    }
    let alone = strength * strength.ln() - ln_gamma(strength);
    let one = |ended: f64, expected: f64| {
        if ended < 1e-6 {
            // What never was at risk says nothing, and where nothing ended there is no Gamma function to pay for.
            if expected < 1e-9 {
                0.0
            } else {
                -strength * (expected / strength).ln_1p()
            }
        } else {
            alone + ln_gamma(strength + ended) - (strength + ended) * (strength + expected).ln()
        }
    };
    for at in (1..NODES).rev() {
        if at >= LEAVES {
            if let Some(node) = nodes.get_mut(at) {
                node.evidence = one(node.ended, node.expected);
            }
            continue;
        }
        let (Some(left), Some(right)) =
            (nodes.get(2 * at).copied(), nodes.get(2 * at + 1).copied())
        else {
            continue;
        };
        let ended = left.ended + right.ended;
        let expected = left.expected + right.expected;
        if expected < 1e-9 && ended < 1e-6 {
            continue;
        }
        let whole = one(ended, expected);
        let cut = left.evidence + right.evidence;
        let odds = (cut - whole).clamp(-700.0, 700.0).exp() * CUT / (1.0 - CUT);
        if let Some(node) = nodes.get_mut(at) {
            node.ended = ended;
            node.expected = expected;
            node.whole = 1.0 / (1.0 + odds);
            node.evidence = whole + (1.0 - CUT).ln() + odds.ln_1p();
        }
    }
    // From the root down: the factor so far, and how likely it is that all above is cut.
    let mut sums = [(0.0f64, 1.0f64); NODES];
    let mut hazards = *guess;
    for at in 1..NODES {
        let (Some((sum, open)), Some(node)) = (
            sums.get(at / 2)
                .copied()
                .filter(|_| at > 1)
                .or(Some((0.0, 1.0))),
            nodes.get(at),
        ) else {
            continue;
        };
        let whole = if at >= LEAVES { 1.0 } else { node.whole };
        let factor = (strength + node.ended) / (strength + node.expected);
        let next = (sum + open * whole * factor, open * (1.0 - whole));
        if let Some(slot) = sums.get_mut(at) {
            *slot = next;
        }
        if let Some(hazard) = at.checked_sub(LEAVES).and_then(|bin| hazards.get_mut(bin)) {
            #[allow(clippy::cast_possible_truncation, reason = "not exact")]
            let factor = next.0 as f32;
            *hazard *= factor;
        }
    }
    let evidence = nodes.get(1).map_or(0.0, |root| root.evidence);
    (hazards, fit + evidence)
}

/// Hazards per second from what was seen and what functions of its kind do.
pub(super) fn hazards(
    prior: &[f32; BINS],
    ended: &[f32; BINS],
    exposed: &[f32; BINS],
    strength: f32,
) -> [f32; BINS] {
    let s = f64::from(strength);
    let (mut kind, kind_fit) = under(prior, ended, exposed, s);
    let events: f32 = ended.iter().sum();
    let time: f32 = exposed.iter().sum();
    if events < 0.5 || time <= 0.0 {
        return kind;
    }
    let (even, even_fit) = under(&[events / time; BINS], ended, exposed, s);
    // Each guess by how likely it still is at this age.
    let odds = (even_fit - kind_fit).clamp(-60.0, 60.0).exp();
    #[allow(clippy::cast_possible_truncation, reason = "not exact")]
    let (mut of_kind, mut of_even) = ((1.0 / (1.0 + odds)) as f32, (odds / (1.0 + odds)) as f32);
    for ((kind, even), width) in kind.iter_mut().zip(even).zip(width()) {
        let (load, other) = (*kind * width, even * width);
        *kind = (of_kind * *kind + of_even * even) / (of_kind + of_even).max(1e-30);
        of_kind *= (-load).exp();
        of_even *= (-other).exp();
        let sum = of_kind + of_even;
        if sum > 0.0 {
            of_kind /= sum;
            of_even /= sum;
        }
    }
    kind
}

/// Logarithm of the Gamma function for what is above zero (Stirling's series behind a recurrence), to 1e-7.
fn ln_gamma(x: f64) -> f64 {
    let (x, below) = if x < 6.0 {
        (
            x + 6.0,
            (x * (x + 1.0) * (x + 2.0) * (x + 3.0) * (x + 4.0) * (x + 5.0)).ln(),
        )
    } else {
        (x, 0.0)
    };
    (x - 0.5) * x.ln() - x + 0.918_938_533_204_672_8 + 1.0 / (12.0 * x)
        - 1.0 / (360.0 * x * x * x)
        - below
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::adaptive::hazard::{IdleTimes, bin, edges};
    use crate::policy::book::scale_free;

    #[test]
    fn the_gamma_function_by_hand() {
        for (x, factorial) in [(1.0, 1.0f64), (5.0, 24.0), (11.0, 3_628_800.0)] {
            assert!((ln_gamma(x) - factorial.ln()).abs() < 1e-6, "{x}");
        }
        // The square root of pi.
        assert!((ln_gamma(0.5).exp() - 1.772_453_9).abs() < 1e-5);
    }

    /// Idle times of a Poisson process with a mean of ten minutes, by quantiles: no luck is in them.
    fn random_calls(count: u16) -> IdleTimes {
        let mut times = IdleTimes::default();
        for nth in 0..count {
            let part = (f32::from(nth) + 0.5) / f32::from(count);
            times.record(bin(-600.0 * (1.0 - part).ln()), true, 1.0);
        }
        times
    }

    #[test]
    fn few_idle_times_give_a_smooth_curve() {
        let times = random_calls(25);
        let smooth = times.shaped(&scale_free(), 1.0);
        let coarse = times.hazards(&scale_free(), 0.2);
        // How far the estimates are off between ten seconds and half an hour, as a factor.
        let worst = |hazards: &[f32; BINS]| {
            (bin(10.0)..=bin(1800.0))
                .map(|at| (hazards[at] * 600.0).ln().abs())
                .fold(0.0f32, f32::max)
                .exp()
        };
        assert!(worst(&smooth) < 1.5, "{}", worst(&smooth));
        assert!(worst(&coarse) > 2.0, "{}", worst(&coarse));
    }

    #[test]
    fn many_idle_times_at_one_age_stand_out() {
        let mut times = random_calls(40);
        for _ in 0..40 {
            times.record(bin(300.0), true, 1.0);
        }
        let hazards = times.shaped(&scale_free(), 1.0);
        let (at, before) = (bin(300.0), bin(300.0) - 2);
        assert!(
            hazards[at] > 3.0 * hazards[before],
            "{} and {}",
            hazards[at],
            hazards[before]
        );
        let width = edges()[at + 1] - edges()[at];
        assert!(hazards[at] * width > 0.4, "{}", hazards[at] * width);
    }

    #[test]
    fn nothing_seen_is_the_guess() {
        let guess = scale_free();
        let hazards = IdleTimes::default().shaped(&guess, 1.0);
        for (own, guess) in hazards.iter().zip(guess) {
            assert!((own / guess - 1.0).abs() < 1e-3);
        }
    }
}
