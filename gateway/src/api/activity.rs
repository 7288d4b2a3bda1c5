//! `GET activity`: what every function did so far and holds now, for `fnctl top`. Read from the registered metrics, so
//! that it and the dashboards never disagree. Counters only grow; whoever asks twice has the rates.

use prometheus::proto::{Metric, MetricFamily};
use serde::Serialize;
use std::collections::BTreeMap;

/// The platform at one moment.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Activity {
    /// Functions that are deployed, active or not.
    pub(crate) deployed: usize,
    /// Most instances on this node.
    instances_limit: u64,
    memory: Memory,
    /// Model sessions in memory.
    sessions: u64,
    hosts: Hosts,
    /// Functions that have metrics; those at zero for long have none.
    functions: BTreeMap<String, FunctionActivity>,
}

/// Bytes by rung of the ladder.
#[derive(Debug, Default, Serialize)]
struct Memory {
    /// The platform's process.
    resident_bytes: u64,
    /// The processes of the inference hosts.
    host_bytes: u64,
    /// Linear memory of instances: what each version's last run took, times its instances.
    sandbox_bytes: u64,
    /// What ONNX Runtime holds for sessions and runs.
    session_bytes: u64,
    /// Most that it may hold.
    session_limit_bytes: u64,
}

/// The inference hosts.
#[derive(Debug, Default, Serialize)]
struct Hosts {
    /// Those that run.
    running: u64,
    /// Those that ended without being told to.
    restarts: u64,
    /// Models that are kept away from them.
    quarantined_models: u64,
}

/// One function, over its versions.
#[derive(Debug, Default, Serialize)]
struct FunctionActivity {
    /// Instances by state.
    instances: BTreeMap<String, u64>,
    /// Invocations waiting for a permit.
    queued: u64,
    /// Invocations that got an instance, by how it came to be.
    starts: BTreeMap<String, u64>,
    /// Failed invocations, throttled ones included.
    errors: u64,
    /// Refused because limit and queue were full.
    throttles: u64,
    /// Instances retired, by reason.
    reaps: BTreeMap<String, u64>,
    /// Linear memory of its instances.
    memory_bytes: u64,
    /// Seconds of runs: upper bounds with cumulative counts, as Prometheus has them.
    run_seconds: Buckets,
}

#[derive(Debug, Default, Serialize)]
struct Buckets {
    count: u64,
    sum: f64,
    buckets: Vec<(f64, u64)>,
}

impl Buckets {
    fn add(&mut self, histogram: &prometheus::proto::Histogram) {
        self.count += histogram.get_sample_count();
        self.sum += histogram.get_sample_sum();
        for (index, bucket) in histogram.get_bucket().iter().enumerate() {
            // Of one metric, so with the same bounds in every version.
            match self.buckets.get_mut(index) {
                Some((_, count)) => *count += bucket.cumulative_count(),
                None => self
                    .buckets
                    .push((bucket.upper_bound(), bucket.cumulative_count())),
            }
        }
    }
}

impl Activity {
    /// Sums up what the metrics say.
    pub(crate) fn of(families: &[MetricFamily], deployed: usize) -> Self {
        let mut activity = Self {
            deployed,
            ..Self::default()
        };
        for family in families {
            for metric in family.get_metric() {
                activity.add(family.name(), metric);
            }
        }
        activity.weigh(families);
        activity
    }

    fn add(&mut self, name: &str, metric: &Metric) {
        let gauge = || whole(metric.get_gauge().get_value());
        let counter = || whole(metric.get_counter().get_value());
        match name {
            "fnctl_instances_limit" => self.instances_limit = gauge(),
            "process_resident_memory_bytes" => self.memory.resident_bytes = gauge(),
            "fnctl_inference_memory_bytes" => self.memory.session_bytes = gauge(),
            "fnctl_inference_memory_limit_bytes" => self.memory.session_limit_bytes = gauge(),
            "fnctl_inference_sessions" => self.sessions = gauge(),
            "fnctl_inference_host_resident_bytes" => self.memory.host_bytes = gauge(),
            "fnctl_inference_hosts" => self.hosts.running += gauge(),
            "fnctl_inference_host_restarts_total" => self.hosts.restarts += counter(),
            "fnctl_inference_quarantined_models" => self.hosts.quarantined_models = gauge(),
            "fnctl_instances" => {
                let state = label(metric, "state");
                *self.function(metric).instances.entry(state).or_default() += gauge();
            }
            "fnctl_queue_depth" => self.function(metric).queued += gauge(),
            "fnctl_starts_total" => {
                let kind = label(metric, "kind");
                *self.function(metric).starts.entry(kind).or_default() += counter();
            }
            "fnctl_invocation_errors_total" => self.function(metric).errors += counter(),
            "fnctl_throttles_total" => self.function(metric).throttles += counter(),
            "fnctl_reaps_total" => {
                let reason = label(metric, "reason");
                *self.function(metric).reaps.entry(reason).or_default() += counter();
            }
            "fnctl_invocation_duration_seconds" => {
                self.function(metric)
                    .run_seconds
                    .add(metric.get_histogram());
            }
            _ => {}
        }
    }

    /// The instances' memory: bytes of one, times their number, version by version.
    fn weigh(&mut self, families: &[MetricFamily]) {
        let of = |name: &'static str| {
            families
                .iter()
                .filter(move |family| family.name() == name)
                .flat_map(MetricFamily::get_metric)
        };
        let version = |metric: &Metric| (label(metric, "function"), label(metric, "version"));
        let mut counts: BTreeMap<_, u64> = BTreeMap::new();
        for metric in of("fnctl_instances") {
            // One that is starting has no memory of its own yet.
            if label(metric, "state") != "starting" {
                *counts.entry(version(metric)).or_default() +=
                    whole(metric.get_gauge().get_value());
            }
        }
        for metric in of("fnctl_instance_memory_bytes") {
            let instances = counts.get(&version(metric)).copied().unwrap_or(0);
            let bytes = whole(metric.get_gauge().get_value()).saturating_mul(instances);
            self.function(metric).memory_bytes += bytes;
            self.memory.sandbox_bytes += bytes;
        }
    }

    fn function(&mut self, metric: &Metric) -> &mut FunctionActivity {
        self.functions.entry(label(metric, "function")).or_default()
    }
}

fn label(metric: &Metric, name: &str) -> String {
    metric
        .get_label()
        .iter()
        .find(|label| label.name() == name)
        .map(|label| label.value().to_owned())
        .unwrap_or_default()
}

/// A count or a number of bytes out of a metric's float.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a float saturates, and counts are not negative"
)]
fn whole(value: f64) -> u64 {
    value as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry};

    #[test]
    fn versions_are_summed_up_and_memory_is_weighed() {
        let registry = Registry::new();
        let labels = ["function", "version"];
        let gauges = |name: &str, labels: &[&str]| {
            let gauges = IntGaugeVec::new(Opts::new(name, "help"), labels).unwrap();
            registry.register(Box::new(gauges.clone())).unwrap();
            gauges
        };
        let instances = gauges("fnctl_instances", &["function", "version", "state"]);
        let memory = gauges("fnctl_instance_memory_bytes", &labels);
        for (version, idle, busy, starting, bytes) in [("1", 2, 0, 5, 1000), ("2", 1, 3, 0, 10)] {
            for (state, count) in [("idle", idle), ("busy", busy), ("starting", starting)] {
                instances
                    .with_label_values(&["fraud", version, state])
                    .set(count);
            }
            memory.with_label_values(&["fraud", version]).set(bytes);
        }
        let starts = IntCounterVec::new(
            Opts::new("fnctl_starts_total", "help"),
            &["function", "version", "kind"],
        )
        .unwrap();
        registry.register(Box::new(starts.clone())).unwrap();
        starts.with_label_values(&["fraud", "1", "cold"]).inc_by(2);
        starts.with_label_values(&["fraud", "2", "cold"]).inc_by(1);
        starts.with_label_values(&["echo", "1", "warm"]).inc_by(9);
        let seconds = HistogramVec::new(
            HistogramOpts::new("fnctl_invocation_duration_seconds", "help").buckets(vec![0.1, 1.0]),
            &labels,
        )
        .unwrap();
        registry.register(Box::new(seconds.clone())).unwrap();
        seconds.with_label_values(&["fraud", "1"]).observe(0.05);
        seconds.with_label_values(&["fraud", "2"]).observe(0.5);

        let hosts = gauges("fnctl_inference_hosts", &["kind"]);
        hosts.with_label_values(&["shared"]).set(1);
        hosts.with_label_values(&["alone"]).set(2);
        gauges("fnctl_inference_quarantined_models", &[])
            .with_label_values::<&str>(&[])
            .set(1);

        let activity = Activity::of(&registry.gather(), 7);
        let value = serde_json::to_value(&activity).unwrap();
        assert_eq!(value["deployed"], 7);
        let fraud = &value["functions"]["fraud"];
        assert_eq!(fraud["instances"]["idle"], 3);
        assert_eq!(fraud["instances"]["busy"], 3);
        assert_eq!(fraud["memory_bytes"], 2 * 1000 + 4 * 10);
        assert_eq!(value["memory"]["sandbox_bytes"], 2040);
        assert_eq!(value["hosts"]["running"], 3);
        assert_eq!(value["hosts"]["quarantined_models"], 1);
        assert_eq!(fraud["starts"]["cold"], 3);
        assert_eq!(fraud["run_seconds"]["buckets"][0][1], 1);
        assert_eq!(fraud["run_seconds"]["buckets"][1][1], 2);
        assert_eq!(value["functions"]["echo"]["starts"]["warm"], 9);
    }
}
