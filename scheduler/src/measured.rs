//! What was measured of a version: how fast it starts and serves, what a run costs, what an instance takes.
//!
//! It outlives the version's pool, so that a herd on a function at zero meets what is known, and, of live versions, the
//! process: the first herd after a restart finds everything at zero. What is read back is checked: a number that no
//! platform has measured is an error of the file, not one of scheduling.

use crate::Scheduler;
use crate::memory::Footprint;
use crate::service_rate::{Average, Pace};
use fnctl_core::ids::{FunctionName, VersionNumber};
use fnctl_core::version::VersionKey;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Longest time that is believed: no invocation and no start may take a day.
const MOST_TIME: Duration = Duration::from_secs(86_400);
/// Most versions of which anything is taken over from before a restart.
const MOST_VERSIONS: usize = 100_000;

/// See the module.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(try_from = "Numbers", into = "Numbers")]
pub struct Measured {
    pub(crate) pace: Pace,
    /// Processor time of an invocation on average, in microseconds; 0 = none was measured.
    pub(crate) cost: u64,
    pub(crate) footprint: Footprint,
    /// Whether it was called since it is live; not known after a restart, as `min_instances` begins with a call.
    pub(crate) called: bool,
}

impl Measured {
    /// Whether the version was called since it is live.
    pub(crate) fn is_called(&self) -> bool {
        self.called
    }
}

/// As it is written.
#[derive(Serialize, Deserialize)]
struct Numbers {
    /// Seconds for which an instance is leased, and the number of samples.
    service: (f64, u32),
    /// Seconds of a start, likewise.
    start: (f64, u32),
    /// Microseconds of processor time.
    cost: u64,
    /// Bytes of linear memory.
    memory: Option<u64>,
}

/// A number that was never measured.
#[derive(Debug, thiserror::Error)]
#[error("{0} is outside of what can be measured")]
struct Unbelievable(&'static str);

impl TryFrom<Numbers> for Measured {
    type Error = Unbelievable;

    fn try_from(numbers: Numbers) -> Result<Self, Unbelievable> {
        let average = |(seconds, samples): (f64, u32), name| {
            let is_one = (0.0..=MOST_TIME.as_secs_f64()).contains(&seconds);
            if is_one {
                Ok(Average::of(seconds, samples))
            } else {
                Err(Unbelievable(name))
            }
        };
        if u128::from(numbers.cost) > MOST_TIME.as_micros() {
            return Err(Unbelievable("a cost"));
        }
        Ok(Self {
            pace: Pace {
                service: average(numbers.service, "a service time")?,
                start: average(numbers.start, "a start time")?,
            },
            cost: numbers.cost,
            footprint: Footprint::of(numbers.memory),
            called: false,
        })
    }
}

impl From<Measured> for Numbers {
    fn from(measured: Measured) -> Self {
        Self {
            service: measured.pace.service.parts(),
            start: measured.pace.start.parts(),
            cost: measured.cost,
            memory: measured.footprint.known(),
        }
    }
}

/// What was measured of one version.
pub type MeasuredVersion = (FunctionName, VersionNumber, Measured);

impl Scheduler {
    /// What was measured of every live version, to be kept over a restart.
    pub fn measured(&self) -> Vec<MeasuredVersion> {
        let inner = &self.inner;
        let lanes = inner.lanes();
        let pools = lanes.iter().flat_map(|lane| lane.pools());
        let there = pools
            .filter(|pool| inner.live.is_live(&pool.version))
            .map(|pool| (pool.version.key(), pool.summary()));
        let mut all = inner.live.measured();
        all.extend(there);
        all.into_iter()
            .take(MOST_VERSIONS)
            .map(|(key, measured)| (key.function, key.number, measured))
            .collect()
    }

    /// Takes over what was measured before a restart, of versions that are not called yet.
    pub fn restore_measured(&self, measured: Vec<MeasuredVersion>) {
        for (function, number, measured) in measured.into_iter().take(MOST_VERSIONS) {
            let key = VersionKey { function, number };
            self.inner.live.restore(key, measured);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Measured, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn what_is_written_is_read_and_what_nobody_measured_is_refused() {
        let mut measured = Measured {
            cost: 1_500,
            called: true,
            ..Measured::default()
        };
        measured.pace.service.add(Duration::from_millis(10));
        measured.pace.start.add(Duration::from_millis(100));
        measured.footprint.add(3 << 20);
        let text = serde_json::to_string(&measured).unwrap();
        let again = read(&text).unwrap();
        assert_eq!(again.pace, measured.pace);
        assert_eq!(
            (again.cost, again.footprint, again.called),
            (1_500, measured.footprint, false)
        );
        let young = serde_json::to_string(&Measured::default()).unwrap();
        assert_eq!(read(&young).unwrap().pace.start.get(), None);
        for wrong in [
            r#"{"service":[1e300,9],"start":[0.1,1],"cost":1,"memory":null}"#,
            r#"{"service":[0.1,9],"start":[-1,1],"cost":1,"memory":null}"#,
            r#"{"service":[0.1,9],"start":[0.1,1],"cost":18446744073709551615,"memory":null}"#,
            r#"{"service":[0.1,9],"start":[0.1,1],"cost":1,"memory":-7}"#,
            r#"{"service":[0.1,9]}"#,
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
