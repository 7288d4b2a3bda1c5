//! Schedule windows: times of the week at which a function is to have instances, as cron expressions in a time zone.
//!
//! Owns what a window is, whether it can be read, and what it asks for at a moment. Pure: every method takes the time.
//! The names of zones come from the database that is built in, so that a machine without one knows them too.

use crate::units::Period;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Timestamp, Zoned};
use serde::{Deserialize, Serialize};
use std::time::SystemTime;

/// Longest window: a month.
pub const MAX_DURATION: Period = Period::secs(31 * 86_400);
/// Longest time over which a window's instances are let go.
pub const MAX_RAMP_DOWN: Period = Period::secs(86_400);

/// One `[[schedule]]` of function.toml.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleWindow {
    /// When the window opens: minute, hour, day of month, month, day of week.
    pub cron: String,
    /// The time zone of these, by its IANA name.
    #[serde(default = "utc")]
    pub time_zone: String,
    /// How long it stays open.
    pub duration: Period,
    /// `provisioned` while it is open, if that is more than the function's own.
    #[serde(default)]
    pub provisioned: u32,
    /// `min_instances` while it is open, if that is more than the function's own.
    #[serde(default)]
    pub min_instances: u32,
    /// Over how long the instances are let go once it has closed.
    #[serde(default = "ramp_down")]
    pub ramp_down: Period,
}

fn utc() -> String {
    "UTC".to_owned()
}

const fn ramp_down() -> Period {
    Period::secs(300)
}

impl ScheduleWindow {
    /// What is wrong with it; nothing if it can be used.
    pub fn problem(&self) -> Option<String> {
        if self.duration == Period::secs(0) || self.duration > MAX_DURATION {
            return Some(format!(
                "duration {} must be more than 0s and at most {MAX_DURATION}",
                self.duration
            ));
        }
        if self.ramp_down > MAX_RAMP_DOWN {
            return Some(format!(
                "ramp_down {} must be at most {MAX_RAMP_DOWN}",
                self.ramp_down
            ));
        }
        if self.provisioned == 0 && self.min_instances == 0 {
            return Some("it asks for nothing; set provisioned or min_instances".to_owned());
        }
        Window::compile(self).err()
    }
}

/// A window that can be asked.
#[derive(Debug, Clone)]
pub struct Window {
    cron: Cron,
    zone: TimeZone,
    duration: SignedDuration,
    ramp_down: SignedDuration,
    provisioned: u32,
    min_instances: u32,
    /// The last opening before the time that was asked for, and the first one after it: searching a calendar at every
    /// look would cost more than everything else a look does.
    known: Option<(Option<Timestamp>, Option<Timestamp>)>,
}

/// What windows ask for at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Asked {
    /// Provisioned instances.
    pub provisioned: u32,
    /// Instances that keep-alive leaves.
    pub min_instances: u32,
}

impl Asked {
    /// The larger of each.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            provisioned: self.provisioned.max(other.provisioned),
            min_instances: self.min_instances.max(other.min_instances),
        }
    }
}

impl Window {
    /// Reads the expression and finds the zone; the error says what is wrong with them.
    pub fn compile(window: &ScheduleWindow) -> Result<Self, String> {
        let text = window.cron.trim();
        // Five fields, as crontab(5) has them; a window of seconds would open and close between two looks.
        if text.len() > 100 || text.split_whitespace().count() != 5 {
            return Err(format!(
                "cron '{}' must have five fields: minute hour day-of-month month day-of-week",
                shown(text)
            ));
        }
        let cron = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .build()
            .parse(text)
            .map_err(|error| format!("cron '{}': {error}", shown(text)))?;
        let zone = TimeZoneDatabase::bundled()
            .get(&window.time_zone)
            .map_err(|_| {
                format!(
                    "time_zone '{}' is unknown; use an IANA name like \"Europe/Berlin\"",
                    shown(&window.time_zone)
                )
            })?;
        let signed = |period: Period| {
            SignedDuration::try_from(period.duration()).map_err(|error| error.to_string())
        };
        Ok(Self {
            cron,
            zone,
            duration: signed(window.duration)?,
            ramp_down: signed(window.ramp_down)?,
            provisioned: window.provisioned,
            min_instances: window.min_instances,
            known: None,
        })
    }

    /// What it asks for at `now`, on top of what the function has anyway (`base`): all of it while it is open, then
    /// less and less over `ramp_down`.
    pub fn asks(&mut self, now: SystemTime, base: Asked) -> Asked {
        let Ok(now) = Timestamp::try_from(now) else {
            return base;
        };
        let Some(opened) = self.last_opening(now) else {
            return base;
        };
        let since_close = now.duration_since(opened) - self.duration;
        let left = if since_close.is_negative() {
            1.0
        } else if since_close >= self.ramp_down {
            return base;
        } else {
            1.0 - since_close.as_secs_f64() / self.ramp_down.as_secs_f64()
        };
        let part = |full: u32, base: u32| {
            let extra = f64::from(full.saturating_sub(base)) * left;
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "between 0 and a u32"
            )]
            let extra = extra.ceil() as u32;
            base + extra
        };
        Asked {
            provisioned: part(self.provisioned, base.provisioned),
            min_instances: part(self.min_instances, base.min_instances),
        }
    }

    /// When it opened last, at `now` or before.
    fn last_opening(&mut self, now: Timestamp) -> Option<Timestamp> {
        let known = self.known.filter(|(last, next)| {
            last.is_none_or(|last| last <= now) && next.is_none_or(|next| now < next)
        });
        let (last, _) = known.unwrap_or_else(|| {
            let here = now.to_zoned(self.zone.clone());
            let found = |found: Result<Zoned, _>| found.ok().map(|at: Zoned| at.timestamp());
            let around = (
                found(self.cron.find_previous_occurrence(&here, true)),
                found(self.cron.find_next_occurrence(&here, false)),
            );
            self.known = Some(around);
            around
        });
        last
    }
}

/// A text of a user's for a message.
fn shown(text: &str) -> String {
    text.chars().take(60).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(cron: &str, zone: &str, duration: &str) -> ScheduleWindow {
        ScheduleWindow {
            cron: cron.into(),
            time_zone: zone.into(),
            duration: duration.parse().unwrap(),
            provisioned: 4,
            min_instances: 0,
            ramp_down: Period::secs(400),
        }
    }

    fn at(text: &str) -> SystemTime {
        text.parse::<Timestamp>().unwrap().into()
    }

    fn provisioned(window: &ScheduleWindow, times: &[&str]) -> Vec<u32> {
        let mut compiled = Window::compile(window).unwrap();
        times
            .iter()
            .map(|time| compiled.asks(at(time), Asked::default()).provisioned)
            .collect()
    }

    #[test]
    fn a_window_opens_by_the_clock_of_its_zone_and_closes_gradually() {
        // Berlin is one hour ahead of UTC in winter, two in summer.
        let office = window("0 8 * * 1-5", "Europe/Berlin", "10h");
        let winter = [
            "2026-01-05T06:59:59Z",
            "2026-01-05T07:00:00Z",
            "2026-01-05T16:59:59Z",
            "2026-01-05T17:00:00Z",
            "2026-01-05T17:01:40Z",
            "2026-01-05T17:05:00Z",
            "2026-01-05T17:06:40Z",
        ];
        assert_eq!(provisioned(&office, &winter), [0, 4, 4, 4, 3, 1, 0]);
        let summer = ["2026-07-06T05:59:59Z", "2026-07-06T06:00:00Z"];
        assert_eq!(provisioned(&office, &summer), [0, 4]);
        // Saturday.
        assert_eq!(provisioned(&office, &["2026-01-10T09:00:00Z"]), [0]);
    }

    #[test]
    fn a_clock_that_goes_back_is_believed() {
        let nightly = window("0 2 * * *", "UTC", "1h");
        let times = [
            "2026-01-06T02:30:00Z",
            "2026-01-05T12:00:00Z",
            "2026-01-05T02:10:00Z",
        ];
        assert_eq!(provisioned(&nightly, &times), [4, 0, 4]);
    }

    #[test]
    fn a_window_across_the_change_of_the_clock_lasts_its_duration() {
        // On 2026-03-29 clocks in Berlin jump from 2 to 3: what opens at 1:30 for 2 hours closes at 4:30.
        let night = window("30 1 * * *", "Europe/Berlin", "2h");
        let times = ["2026-03-29T02:29:59Z", "2026-03-29T02:30:00Z"];
        let mut compiled = Window::compile(&night).unwrap();
        let asked: Vec<_> = times
            .iter()
            .map(|time| {
                let open = compiled.asks(at(time), Asked::default()).provisioned == 4;
                let since = compiled.known.unwrap().0.unwrap().to_string();
                (open, since)
            })
            .collect();
        let opened = "2026-03-29T00:30:00Z".to_owned();
        assert_eq!(asked, [(true, opened.clone()), (true, opened)]);
    }

    #[test]
    fn what_the_function_has_anyway_is_not_added_to() {
        let mut compiled = Window::compile(&window("0 0 * * *", "UTC", "1h")).unwrap();
        let base = Asked {
            provisioned: 6,
            min_instances: 1,
        };
        assert_eq!(compiled.asks(at("2026-01-05T00:10:00Z"), base), base);
    }

    #[test]
    fn every_mistake_is_told() {
        for (wrong, word) in [
            (window("0 8 * *", "UTC", "1h"), "five fields"),
            (window("0 0 8 * * *", "UTC", "1h"), "five fields"),
            (window("61 8 * * *", "UTC", "1h"), "cron '61 8 * * *'"),
            (window("0 8 * * *", "Europe/Atlantis", "1h"), "time_zone"),
            (window("0 8 * * *", "UTC", "0s"), "duration"),
            (window("0 8 * * *", "UTC", "800h"), "duration"),
        ] {
            let problem = wrong.problem().unwrap_or_default();
            assert!(problem.contains(word), "{word} in {problem}");
        }
        let nothing = ScheduleWindow {
            provisioned: 0,
            ..window("0 8 * * *", "UTC", "1h")
        };
        assert!(nothing.problem().unwrap().contains("asks for nothing"));
        assert_eq!(
            window("*/5 8-18 1,15 JAN MON-FRI", "America/New_York", "1h").problem(),
            None
        );
    }
}
