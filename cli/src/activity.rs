//! What `GET activity` says, and what two of its answers say about the time between them: rates, the share of cold
//! starts, percentiles. Pure.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One answer of the platform. Counters only grow.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Activity {
    deployed: u64,
    instances_limit: u64,
    sessions: u64,
    hosts: Hosts,
    memory: Memory,
    functions: BTreeMap<String, Counters>,
}

/// Bytes by rung of the ladder.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Memory {
    /// The platform's process.
    pub(crate) resident_bytes: u64,
    /// The processes of the inference hosts.
    pub(crate) host_bytes: u64,
    /// Instances.
    pub(crate) sandbox_bytes: u64,
    /// Model sessions.
    pub(crate) session_bytes: u64,
    /// Most of them.
    pub(crate) session_limit_bytes: u64,
}

/// The inference hosts.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Hosts {
    /// Those that run.
    pub(crate) running: u64,
    /// Those that ended without being told to, since the platform's start.
    pub(crate) restarts: u64,
    /// Models that are kept away from them.
    pub(crate) quarantined_models: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Counters {
    instances: BTreeMap<String, u64>,
    queued: u64,
    starts: BTreeMap<String, u64>,
    errors: u64,
    throttles: u64,
    memory_bytes: u64,
    run_seconds: Buckets,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Buckets {
    count: u64,
    sum: f64,
    buckets: Vec<(f64, u64)>,
}

/// The time between two answers.
#[derive(Debug, Serialize)]
pub(crate) struct Snapshot {
    /// Its length.
    pub(crate) seconds: f64,
    /// Functions that are deployed.
    pub(crate) deployed: u64,
    /// Those of them without an instance.
    pub(crate) at_zero: u64,
    /// Instances now, and most of them.
    pub(crate) instances: u64,
    pub(crate) instances_limit: u64,
    /// Model sessions now.
    pub(crate) sessions: u64,
    pub(crate) hosts: Hosts,
    pub(crate) memory: Memory,
    /// Invocations a second that got an instance.
    pub(crate) per_second: f64,
    /// Share of them that met a cold start; nothing if there were none.
    pub(crate) cold_rate: Option<f64>,
    pub(crate) functions: Vec<FunctionRow>,
}

/// One function in that time.
#[derive(Debug, Serialize)]
pub(crate) struct FunctionRow {
    pub(crate) name: String,
    pub(crate) idle: u64,
    pub(crate) busy: u64,
    pub(crate) starting: u64,
    pub(crate) queued: u64,
    pub(crate) per_second: f64,
    pub(crate) cold_rate: Option<f64>,
    pub(crate) errors_per_second: f64,
    pub(crate) throttles_per_second: f64,
    /// Milliseconds of a run, by the histogram's buckets; nothing if none ended.
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p95_ms: Option<f64>,
    pub(crate) memory_bytes: u64,
}

/// By what rows are ordered.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Order {
    /// Invocations a second, most first.
    #[default]
    Rate,
    /// Share of cold starts, most first.
    Cold,
    /// Linear memory of the instances, most first.
    Memory,
    /// Waiting invocations, most first.
    Queue,
    /// Errors a second, most first.
    Errors,
    /// By name.
    Name,
}

impl Snapshot {
    /// What happened from `before` to `after`, `seconds` later.
    pub(crate) fn between(before: &Activity, after: &Activity, seconds: f64, order: Order) -> Self {
        let nothing = Counters::default();
        let mut functions: Vec<_> = after
            .functions
            .iter()
            .map(|(name, now)| {
                let then = before.functions.get(name).unwrap_or(&nothing);
                FunctionRow::between(name, then, now, seconds)
            })
            .collect();
        functions.sort_by(|a, b| {
            let key = |row: &FunctionRow| match order {
                Order::Rate => row.per_second,
                Order::Cold => row.cold_rate.unwrap_or(-1.0),
                Order::Memory => row.memory_bytes as f64,
                Order::Queue => row.queued as f64,
                Order::Errors => row.errors_per_second + row.throttles_per_second,
                Order::Name => 0.0,
            };
            key(b).total_cmp(&key(a)).then_with(|| a.name.cmp(&b.name))
        });
        let active = functions
            .iter()
            .filter(|row| row.instances() > 0 && row.name != "_other")
            .count() as u64;
        let starts = |activity: &Activity| {
            activity.functions.values().fold((0, 0), |(all, cold), of| {
                (
                    all + of.starts.values().sum::<u64>(),
                    cold + of.starts.get("cold").copied().unwrap_or(0),
                )
            })
        };
        let ((all, cold), (all_before, cold_before)) = (starts(after), starts(before));
        let started = all.saturating_sub(all_before);
        Self {
            seconds,
            deployed: after.deployed,
            at_zero: after.deployed.saturating_sub(active),
            instances: functions.iter().map(FunctionRow::instances).sum(),
            instances_limit: after.instances_limit,
            sessions: after.sessions,
            hosts: after.hosts,
            memory: after.memory,
            per_second: per_second(started, seconds),
            cold_rate: share(cold.saturating_sub(cold_before), started),
            functions,
        }
    }
}

impl FunctionRow {
    fn between(name: &str, then: &Counters, now: &Counters, seconds: f64) -> Self {
        let state = |state: &str| now.instances.get(state).copied().unwrap_or(0);
        // A counter that shrank belongs to a platform that was started again.
        let grown = |now: u64, then: u64| now.checked_sub(then).unwrap_or(now);
        let all = |of: &Counters| of.starts.values().sum::<u64>();
        let cold = |of: &Counters| of.starts.get("cold").copied().unwrap_or(0);
        let started = grown(all(now), all(then));
        Self {
            name: name.to_owned(),
            idle: state("idle"),
            busy: state("busy"),
            starting: state("starting"),
            queued: now.queued,
            per_second: per_second(started, seconds),
            cold_rate: share(grown(cold(now), cold(then)), started),
            errors_per_second: per_second(grown(now.errors, then.errors), seconds),
            throttles_per_second: per_second(grown(now.throttles, then.throttles), seconds),
            p50_ms: now.run_seconds.quantile(&then.run_seconds, 0.5),
            p95_ms: now.run_seconds.quantile(&then.run_seconds, 0.95),
            memory_bytes: now.memory_bytes,
        }
    }

    pub(crate) fn instances(&self) -> u64 {
        self.idle + self.busy + self.starting
    }
}

impl Buckets {
    /// A quantile of what came since `then`, in milliseconds, as Prometheus' `histogram_quantile` has it: evenly spread
    /// inside its bucket. What lies above the last bound is that bound.
    fn quantile(&self, then: &Self, quantile: f64) -> Option<f64> {
        let restarted = self.count < then.count;
        let earlier = |index: usize| {
            let bucket = if restarted {
                None
            } else {
                then.buckets.get(index)
            };
            bucket.map_or(0, |(_, count)| *count)
        };
        let total = self.count - if restarted { 0 } else { then.count };
        if total == 0 {
            return None;
        }
        let rank = quantile * total as f64;
        let (mut below, mut lower) = (0, 0.0);
        for (index, (bound, count)) in self.buckets.iter().enumerate() {
            let count = count.saturating_sub(earlier(index));
            if count as f64 >= rank && count > below {
                let inside = (rank - below as f64) / (count - below) as f64;
                return Some((lower + (bound - lower) * inside) * 1e3);
            }
            (below, lower) = (count, *bound);
        }
        Some(lower * 1e3)
    }
}

fn per_second(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 {
        count as f64 / seconds
    } else {
        0.0
    }
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn activity(cold: u64, warm: u64, buckets: [(f64, u64); 2]) -> Activity {
        let run = json!({"count": buckets[1].1, "sum": 1.0, "buckets": buckets});
        serde_json::from_value(json!({
            "deployed": 10, "instances_limit": 1000, "sessions": 1,
            "functions": {
                "fraud": {
                    "instances": {"idle": 2, "busy": 1, "starting": 0},
                    "starts": {"cold": cold, "warm": warm},
                    "run_seconds": run,
                },
                "quiet": {"instances": {"idle": 0}, "starts": {"cold": 3}},
            },
        }))
        .unwrap()
    }

    #[test]
    fn rates_shares_and_percentiles_are_of_the_time_between() {
        let before = activity(10, 100, [(0.1, 50), (0.2, 100)]);
        let after = activity(11, 119, [(0.1, 60), (0.2, 120)]);
        let snapshot = Snapshot::between(&before, &after, 2.0, Order::Rate);
        let fraud = &snapshot.functions[0];
        assert_eq!(
            (fraud.name.as_str(), fraud.idle, fraud.busy),
            ("fraud", 2, 1)
        );
        assert!((fraud.per_second - 10.0).abs() < 1e-9);
        assert!((fraud.cold_rate.unwrap() - 0.05).abs() < 1e-9);
        // 20 runs, 10 of them below 100 ms: the median is the bound, the 95th lies nine tenths into the next bucket.
        assert!((fraud.p50_ms.unwrap() - 100.0).abs() < 1e-9);
        assert!((fraud.p95_ms.unwrap() - 190.0).abs() < 1e-6);
        assert_eq!((snapshot.deployed, snapshot.at_zero), (10, 9));
        let quiet = &snapshot.functions[1];
        assert_eq!(
            (quiet.per_second, quiet.cold_rate, quiet.p50_ms),
            (0.0, None, None)
        );
    }

    #[test]
    fn a_platform_that_was_started_again_counts_from_zero() {
        let before = activity(10, 100, [(0.1, 50), (0.2, 100)]);
        let after = activity(1, 9, [(0.1, 10), (0.2, 10)]);
        let snapshot = Snapshot::between(&before, &after, 1.0, Order::Name);
        let fraud = &snapshot.functions[0];
        assert!((fraud.per_second - 10.0).abs() < 1e-9);
        assert!((fraud.p50_ms.unwrap() - 50.0).abs() < 1e-9);
    }

    #[test]
    fn rows_come_in_the_order_that_was_asked_for() {
        let activity = activity(1, 1, [(0.1, 1), (0.2, 1)]);
        let names = |order| {
            Snapshot::between(&Activity::default(), &activity, 1.0, order)
                .functions
                .into_iter()
                .map(|row| row.name)
                .collect::<Vec<_>>()
        };
        assert_eq!(names(Order::Name), ["fraud", "quiet"]);
        assert_eq!(names(Order::Cold), ["quiet", "fraud"]);
    }
}
