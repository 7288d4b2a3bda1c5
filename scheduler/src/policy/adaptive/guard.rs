//! The guard: on the function's own past, what each choice would have cost. Whoever is clearly cheaper decides.
//!
//! After each idle time it is known what every fixed keep-alive would have cost in it, and what the adaptive plan would
//! have: one for a cold start, plus the price of the time kept warm, plus a little for a start ahead. Sums fade, so that
//! the recent past counts. A fixed time decides only while its sum is lower than the adaptive one's by `CLEAR` cold
//! starts: less would be chance.

use super::ladder::Stakes;
use crate::policy::Plan;
use serde::{Deserialize, Serialize};

/// Fixed keep-alives to compare with, in seconds.
pub const FIXED: [f32; 7] = [0.0, 60.0, 300.0, 600.0, 1800.0, 3600.0, 14_400.0];
/// By how many cold starts a fixed time must have been cheaper.
const CLEAR: f32 = 1.5;
/// How much of the past is left after one more idle time.
const FADE: f32 = 0.97;

/// What was lost so far, in cold starts.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Guard {
    adaptive: f32,
    fixed: [f32; FIXED.len()],
}

impl Guard {
    /// An idle time has ended. `start_price` is that of a start ahead, in cold starts.
    pub(super) fn record(&mut self, plan: &Plan, idle: f32, stakes: &Stakes, start_price: f32) {
        let cold = |warm: bool| if warm { 0.0 } else { 1.0 };
        let starts = f32::from(u8::try_from(plan.starts_until(idle)).unwrap_or(u8::MAX));
        let lost = stakes.of_idle_time(plan, idle) + start_price * starts;
        let price = stakes.full_price();
        self.adaptive = self.adaptive * FADE + lost;
        for (sum, keep) in self.fixed.iter_mut().zip(FIXED) {
            *sum = *sum * FADE + cold(idle < keep) + price * keep.min(idle);
        }
    }

    /// The fixed time that decides instead, if one does.
    pub fn instead(&self) -> Option<f32> {
        self.fixed
            .iter()
            .zip(FIXED)
            .filter(|(lost, _)| **lost + CLEAR < self.adaptive)
            .min_by(|a, b| a.0.total_cmp(b.0))
            .map(|(_, keep)| keep)
    }
}
