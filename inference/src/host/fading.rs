//! A count that fades: each event weighs one when it happens, and half as much every three hours. Pure.

use std::time::Duration;
use tokio::time::Instant;

/// The time in which what is counted loses half its weight.
pub(crate) const HALF_LIFE: Duration = Duration::from_secs(3 * 3600);

/// Events, weighed by their age. It needs no list of them: all fade alike.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Fading(Option<(f64, Instant)>);

impl Fading {
    /// The weight of all that was added.
    pub(crate) fn at(&self, now: Instant) -> f64 {
        self.0.map_or(0.0, |(weight, when)| {
            let age = now.saturating_duration_since(when).as_secs_f64();
            weight * (-age / HALF_LIFE.as_secs_f64()).exp2()
        })
    }

    /// One more event.
    pub(crate) fn add(&mut self, now: Instant) {
        self.0 = Some((self.at(now) + 1.0, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_weigh_less_and_less() {
        let now = Instant::now();
        let mut count = Fading::default();
        assert!(count.at(now).abs() < 1e-9);
        count.add(now);
        count.add(now + HALF_LIFE);
        assert!((count.at(now + HALF_LIFE) - 1.5).abs() < 1e-9);
        assert!((count.at(now + 2 * HALF_LIFE) - 0.75).abs() < 1e-9);
        // A clock that goes back makes nothing heavier.
        assert!(count.at(now) <= 1.5);
    }
}
