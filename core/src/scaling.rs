//! The rules for how a function scales: how many instances it may have, must have, and how its load is judged.
//!
//! The fields are `FunctionConfig`'s own; here is what they have in common, and what they must not contradict.

use crate::config::FunctionConfig;
use crate::units::Period;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

/// Most requests that one instance may serve at the same time.
pub const MAX_INSTANCE_CONCURRENCY: u32 = 100;
/// Most schedule windows of one function.
pub const MAX_WINDOWS: usize = 32;

/// A percentage, written as `"70%"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Percent(pub u32);

impl Percent {
    /// As a part of one.
    pub fn part(self) -> f64 {
        f64::from(self.0) / 100.0
    }
}

/// A text that is no percentage.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a percentage; write it like \"70%\"")]
pub struct PercentError(String);

impl FromStr for Percent {
    type Err = PercentError;
    fn from_str(text: &str) -> Result<Self, PercentError> {
        text.trim()
            .strip_suffix('%')
            .and_then(|number| number.trim_end().parse().ok())
            .filter(|percent| *percent <= 100_000)
            .map(Self)
            .ok_or_else(|| PercentError(text.chars().take(40).collect()))
    }
}

impl TryFrom<String> for Percent {
    type Error = PercentError;
    fn try_from(text: String) -> Result<Self, PercentError> {
        text.parse()
    }
}

impl From<Percent> for String {
    fn from(percent: Percent) -> String {
        percent.to_string()
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

impl FunctionConfig {
    /// Most invocations in flight at once: the least of `concurrency`, `reserved_concurrency` and what `max_instances`
    /// can serve; who is beyond waits in the function's queue, not for an instance. 0 turns the function off.
    pub fn most_in_flight(&self) -> usize {
        let reserved = self.reserved_concurrency.unwrap_or(u32::MAX);
        let served = self
            .most_instances()
            .saturating_mul(self.instance_concurrency.get() as usize);
        served.min(self.concurrency.get().min(reserved) as usize)
    }

    /// Most instances of one version.
    pub fn most_instances(&self) -> usize {
        self.max_instances
            .map_or(usize::MAX, |most| most.get() as usize)
    }

    /// Most provisioned instances at any time, windows included.
    pub fn most_provisioned(&self) -> u32 {
        let windows = self.schedule.iter().map(|window| window.provisioned);
        windows.max().unwrap_or(0).max(self.provisioned)
    }

    /// Whether it may have instances without being called.
    pub fn is_kept(&self) -> bool {
        self.provisioned > 0 || !self.schedule.is_empty()
    }

    /// Tells every rule about scaling that this configuration breaks.
    pub(crate) fn scaling_problems(&self, mut tell: impl FnMut(String)) {
        let mut require = |holds: bool, problem: String| {
            if !holds {
                tell(problem);
            }
        };
        let one = NonZeroU32::MIN;
        require(
            self.instance_concurrency.get() <= MAX_INSTANCE_CONCURRENCY,
            format!(
                "instance_concurrency: {} must be at most {MAX_INSTANCE_CONCURRENCY}",
                self.instance_concurrency
            ),
        );
        require(
            self.instance_concurrency == one || self.isolation != crate::Isolation::Request,
            "instance_concurrency: more than 1 contradicts isolation = \"request\"".to_owned(),
        );
        let most = u64::try_from(self.most_instances()).unwrap_or(u64::MAX);
        let most = most.min(u64::from(self.concurrency.get()));
        let reserved = self.reserved_concurrency;
        require(
            reserved.is_none_or(|reserved| reserved <= Self::MAX_CONCURRENCY),
            format!(
                "reserved_concurrency: {} must be at most {}",
                reserved.unwrap_or(0),
                Self::MAX_CONCURRENCY
            ),
        );
        require(
            reserved != Some(0) || !self.is_kept(),
            "reserved_concurrency: 0 turns the function off; provisioned instances and a schedule would be for nobody"
                .to_owned(),
        );
        require(
            u64::from(self.provisioned) <= most,
            format!(
                "provisioned: {} must be at most concurrency and max_instances ({most})",
                self.provisioned
            ),
        );
        require(
            u64::from(self.min_instances) <= most,
            format!(
                "min_instances: {} must be at most concurrency and max_instances ({most})",
                self.min_instances
            ),
        );
        require(
            self.target_concurrency
                .is_none_or(|target| (1..=100).contains(&target.0)),
            format!(
                "target_concurrency: {} is outside 1%..100%",
                self.target_concurrency.unwrap_or(Percent(0))
            ),
        );
        require(
            (110..=1000).contains(&self.panic_threshold.0),
            format!(
                "panic_threshold: {} is outside 110%..1000%",
                self.panic_threshold
            ),
        );
        require(
            self.stable_window >= Period::secs(6) && self.stable_window <= Period::secs(3600),
            format!("stable_window: {} is outside 6s..1h", self.stable_window),
        );
        require(
            self.panic_window >= Period::secs(1) && self.panic_window <= self.stable_window,
            format!(
                "panic_window: {} is outside 1s..stable_window ({})",
                self.panic_window, self.stable_window
            ),
        );
        require(
            self.scale_down_delay <= Period::secs(3600),
            format!(
                "scale_down_delay: {} must be at most 1h",
                self.scale_down_delay
            ),
        );
        require(
            self.schedule.len() <= MAX_WINDOWS,
            format!("schedule: at most {MAX_WINDOWS} windows"),
        );
        for (number, window) in self.schedule.iter().enumerate().take(MAX_WINDOWS) {
            let asked = u64::from(window.provisioned.max(window.min_instances));
            let problem = window.problem().or_else(|| {
                (asked > most).then(|| {
                    format!("{asked} instances are more than concurrency or max_instances ({most})")
                })
            });
            require(
                problem.is_none(),
                format!("schedule[{number}]: {}", problem.unwrap_or_default()),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::ByteSize;

    #[test]
    fn percentages_parse_and_print() {
        assert_eq!("70%".parse::<Percent>().unwrap().to_string(), "70%");
        for bad in ["70", "%", "-1%", "1.5%", "99999999%"] {
            assert!(bad.parse::<Percent>().is_err(), "{bad}");
        }
    }

    #[test]
    fn no_more_are_in_flight_than_the_instances_can_serve() {
        let config = |max_instances, each: u32, reserved_concurrency| FunctionConfig {
            concurrency: NonZeroU32::MIN.saturating_add(49),
            max_instances: NonZeroU32::new(max_instances),
            instance_concurrency: NonZeroU32::MIN.saturating_add(each - 1),
            reserved_concurrency,
            ..FunctionConfig::default()
        };
        for (config, expected) in [
            (config(0, 1, None), 50),
            (config(0, 1, Some(7)), 7),
            (config(3, 1, None), 3),
            (config(3, 4, None), 12),
            (config(30, 4, None), 50),
            (config(3, 4, Some(0)), 0),
        ] {
            assert_eq!(config.most_in_flight(), expected);
        }
    }

    #[test]
    fn contradictions_are_told_with_their_key() {
        let config = FunctionConfig {
            instance_concurrency: NonZeroU32::MIN.saturating_add(500),
            max_instances: NonZeroU32::new(3),
            provisioned: 4,
            min_instances: 5,
            reserved_concurrency: Some(0),
            target_concurrency: Some(Percent(0)),
            panic_threshold: Percent(100),
            stable_window: Period::secs(1),
            panic_window: Period::secs(2),
            scale_down_delay: Period::secs(7200),
            schedule: vec![crate::schedule::ScheduleWindow {
                cron: "never".into(),
                time_zone: "UTC".into(),
                duration: Period::secs(60),
                provisioned: 1,
                min_instances: 0,
                ramp_down: Period::secs(0),
            }],
            ..FunctionConfig::default()
        };
        let problems = config.problems(ByteSize::mib(512));
        for key in [
            "instance_concurrency:",
            "provisioned:",
            "min_instances:",
            "reserved_concurrency:",
            "target_concurrency:",
            "panic_threshold:",
            "stable_window:",
            "panic_window:",
            "scale_down_delay:",
            "schedule[0]:",
        ] {
            assert!(
                problems.iter().any(|problem| problem.starts_with(key)),
                "{key} in {problems:?}"
            );
        }
        assert_eq!(problems.len(), 10, "{problems:?}");
    }
}
