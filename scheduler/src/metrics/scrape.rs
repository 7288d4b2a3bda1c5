//! The families of metrics that have one child for each version, put together when somebody asks for them.

use super::Families;
use super::numbers::{NoTurn, Numbers, REAPS, Run, Spread, Wait, get};
use fnctl_core::ErrorKind;
use fnctl_core::invocation::{Phase, StartKind};
use prometheus::core::{Collector, Desc};
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A family: its name, what it says, its third label if it has one, and how a version's children are read.
struct Row {
    name: &'static str,
    help: &'static str,
    label: Option<&'static str>,
    shape: MetricType,
    read: fn(&Numbers, &mut Children<'_>),
}

/// Every family. The order of the labels is that of their names, as everywhere in the registry.
const ROWS: &[Row] = &[
    Row {
        name: "fnctl_invocations_total",
        help: "Invocations that were run by a guest.",
        label: None,
        shape: MetricType::COUNTER,
        read: |numbers, to| to.count("", get(&numbers.invocations)),
    },
    Row {
        name: "fnctl_invocation_errors_total",
        help: "Invocations that failed, by kind.",
        label: Some("kind"),
        shape: MetricType::COUNTER,
        read: |numbers, to| {
            if let Some(rare) = numbers.known_rare() {
                to.counts(ErrorKind::ALL.iter().map(|kind| kind.code()), &rare.errors);
            }
        },
    },
    Row {
        name: "fnctl_throttles_total",
        help: "Invocations refused because concurrency limit and queue were full.",
        label: None,
        shape: MetricType::COUNTER,
        read: |numbers, to| to.count("", get(&numbers.throttles)),
    },
    Row {
        name: "fnctl_invocation_duration_seconds",
        help: "Time from lease to the guest's return.",
        label: None,
        shape: MetricType::HISTOGRAM,
        read: |numbers, to| {
            let sum = numbers.run_sum.seconds();
            to.spread("", Run::ends(), numbers.run.counts(), sum);
        },
    },
    Row {
        name: "fnctl_invocation_inference_seconds",
        help: "Time inside compute, of invocations that computed.",
        label: None,
        shape: MetricType::HISTOGRAM,
        read: |numbers, to| match numbers.inference.get() {
            Some(inference) => to.summed("", &inference.spread, inference.sum.seconds()),
            None => to.summed("", &Spread::<20, 15>::default(), 0.0),
        },
    },
    Row {
        name: "fnctl_starts_total",
        help: "Invocations by how their instance came to be (cold, prewarmed, warm).",
        label: Some("kind"),
        shape: MetricType::COUNTER,
        read: |numbers, to| {
            to.count(StartKind::Cold.as_str(), get(&numbers.cold));
            to.count(StartKind::Prewarmed.as_str(), get(&numbers.prewarmed));
            to.count(StartKind::Warm.as_str(), get(&numbers.warm));
        },
    },
    Row {
        name: "fnctl_cold_start_seconds",
        help: "Cold starts by phase.",
        label: Some("phase"),
        shape: MetricType::HISTOGRAM,
        read: |numbers, to| {
            let phases = numbers.phases.get().into_iter().flat_map(|all| all.iter());
            for (phase, times) in Phase::ALL.iter().zip(phases) {
                to.summed(phase.as_str(), &times.spread, times.sum.seconds());
            }
        },
    },
    Row {
        name: "fnctl_start_failures_total",
        help: "Instances that failed to start, by kind.",
        label: Some("kind"),
        shape: MetricType::COUNTER,
        read: |numbers, to| {
            if let Some(rare) = numbers.known_rare() {
                let kinds = ErrorKind::ALL.iter().map(|kind| kind.code());
                to.counts(kinds, &rare.start_failures);
            }
        },
    },
    Row {
        name: "fnctl_instances",
        help: "Instances by state (idle, busy, starting).",
        label: Some("state"),
        shape: MetricType::GAUGE,
        read: |numbers, to| {
            for (state, count) in ["idle", "busy", "starting"].iter().zip(&numbers.instances) {
                to.gauge(state, f64::from(count.load(Ordering::Relaxed)));
            }
        },
    },
    Row {
        name: "fnctl_instance_memory_bytes",
        help: "Linear memory of the instance that ran last.",
        label: None,
        shape: MetricType::GAUGE,
        read: |numbers, to| to.gauge("", float(get(&numbers.memory))),
    },
    Row {
        name: "fnctl_queue_depth",
        help: "Invocations waiting for a permit.",
        label: None,
        shape: MetricType::GAUGE,
        read: |numbers, to| {
            to.gauge("", f64::from(numbers.queue_depth.load(Ordering::Relaxed)));
        },
    },
    Row {
        name: "fnctl_queue_wait_seconds",
        help: "Time waited for a permit.",
        label: None,
        shape: MetricType::HISTOGRAM,
        read: |numbers, to| {
            let sum = numbers.wait_sum.seconds();
            to.spread("", Wait::ends(), numbers.wait.counts(), sum);
        },
    },
    Row {
        name: "fnctl_reaps_total",
        help: "Idle instances retired, by reason (keep_alive, policy, demoted, node_full).",
        label: Some("reason"),
        shape: MetricType::COUNTER,
        read: |numbers, to| to.counts(REAPS.into_iter(), &numbers.reaps),
    },
    Row {
        name: "fnctl_drops_total",
        help: "Invocations that got no turn, by reason (queue_full, too_late, queue_timeout, node_busy, turned_off).",
        label: Some("reason"),
        shape: MetricType::COUNTER,
        read: |numbers, to| {
            if let Some(rare) = numbers.known_rare() {
                to.counts(NoTurn::ALL.into_iter().map(NoTurn::as_str), &rare.drops);
            }
        },
    },
    Row {
        name: "fnctl_instances_desired",
        help: "Instances that the autoscaler wants, of versions with target_concurrency.",
        label: None,
        shape: MetricType::GAUGE,
        read: |numbers, to| {
            let rare = numbers.known_rare();
            to.appeared(rare.and_then(|rare| rare.desired.get()));
        },
    },
    Row {
        name: "fnctl_autoscaler_panic",
        help: "1 while the autoscaler panics, of versions with target_concurrency.",
        label: None,
        shape: MetricType::GAUGE,
        read: |numbers, to| {
            let rare = numbers.known_rare();
            to.appeared(rare.and_then(|rare| rare.panicking.get()));
        },
    },
    Row {
        name: "fnctl_instances_provisioned",
        help: "Instances that are to be kept whatever the traffic, by configuration and schedule.",
        label: None,
        shape: MetricType::GAUGE,
        read: |numbers, to| {
            let rare = numbers.known_rare();
            to.appeared(rare.and_then(|rare| rare.provisioned.get()));
        },
    },
];

/// The children of one family, version after version.
struct Children<'a> {
    function: &'a str,
    version: &'a str,
    label: Option<&'static str>,
    metrics: Vec<Metric>,
}

impl Children<'_> {
    /// A child of this version; `value` is that of the third label.
    fn child(&self, value: &str) -> Metric {
        let pair = |name: &str, value: &str| {
            let mut pair = LabelPair::default();
            pair.set_name(name.to_owned());
            pair.set_value(value.to_owned());
            pair
        };
        // The third label's name lies between the two in the alphabet.
        let labels = std::iter::once(("function", self.function))
            .chain(self.label.map(|name| (name, value)))
            .chain([("version", self.version)])
            .map(|(name, value)| pair(name, value));
        Metric::from_label(labels.collect())
    }

    fn count(&mut self, value: &str, count: u64) {
        let mut counter = Counter::default();
        counter.set_value(float(count));
        let mut metric = self.child(value);
        metric.set_counter(counter);
        self.metrics.push(metric);
    }

    /// Those that have counted something.
    fn counts<'a>(&mut self, values: impl Iterator<Item = &'a str>, counts: &[AtomicU64]) {
        for (value, count) in values.zip(counts.iter().map(get)) {
            if count > 0 {
                self.count(value, count);
            }
        }
    }

    fn gauge(&mut self, value: &str, number: f64) {
        let mut gauge = Gauge::default();
        gauge.set_value(number);
        let mut metric = self.child(value);
        metric.set_gauge(gauge);
        self.metrics.push(metric);
    }

    #[allow(clippy::cast_precision_loss, reason = "a gauge is a float")]
    fn appeared(&mut self, number: Option<&std::sync::atomic::AtomicI64>) {
        if let Some(number) = number {
            self.gauge("", number.load(Ordering::Relaxed) as f64);
        }
    }

    fn summed<const FIRST: u32, const N: usize>(
        &mut self,
        value: &str,
        spread: &Spread<FIRST, N>,
        sum: f64,
    ) {
        self.spread(value, Spread::<FIRST, N>::ends(), spread.counts(), sum);
    }

    fn spread(
        &mut self,
        value: &str,
        ends: impl Iterator<Item = f64>,
        counts: impl Iterator<Item = u64>,
        sum: f64,
    ) {
        let mut all = 0;
        let mut counts = counts.map(|count| {
            all += count;
            all
        });
        let mut buckets = Vec::new();
        // The bucket without an end is left: it is the count of all.
        for (end, up_to) in ends.zip(&mut counts) {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(end);
            bucket.set_cumulative_count(up_to);
            buckets.push(bucket);
        }
        let last = counts.last();
        let below = buckets.last().map_or(0, Bucket::cumulative_count);
        let mut histogram = Histogram::default();
        histogram.set_sample_count(last.unwrap_or(below));
        histogram.set_sample_sum(sum);
        histogram.set_bucket(buckets);
        let mut metric = self.child(value);
        metric.set_histogram(histogram);
        self.metrics.push(metric);
    }
}

#[allow(clippy::cast_precision_loss, reason = "a metric is a float")]
fn float(number: u64) -> f64 {
    number as f64
}

/// Answers the registry.
pub(super) struct Scrape {
    families: Arc<Families>,
    descriptions: Vec<Desc>,
}

impl Scrape {
    pub(super) fn new(families: Arc<Families>) -> prometheus::Result<Self> {
        let describe = |row: &Row| {
            let labels = ["function"]
                .into_iter()
                .chain(row.label)
                .chain(["version"])
                .map(str::to_owned);
            Desc::new(
                row.name.to_owned(),
                row.help.to_owned(),
                labels.collect(),
                HashMap::new(),
            )
        };
        Ok(Self {
            families,
            descriptions: ROWS.iter().map(describe).collect::<Result<_, _>>()?,
        })
    }
}

impl Collector for Scrape {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let versions = self.families.all();
        let family = |row: &Row| {
            let mut family = MetricFamily::default();
            family.set_name(row.name.to_owned());
            family.set_help(row.help.to_owned());
            family.set_field_type(row.shape);
            let mut metrics = Vec::new();
            for (function, version, numbers) in &versions {
                let mut children = Children {
                    function,
                    version,
                    label: row.label,
                    metrics,
                };
                (row.read)(numbers, &mut children);
                metrics = children.metrics;
            }
            family.set_metric(metrics);
            family
        };
        ROWS.iter().map(family).collect()
    }
}
