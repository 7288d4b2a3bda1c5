//! The scheduler's metrics, per function and version; docs/metrics.md lists them.
//!
//! Each version's children are looked up once, and removed when its pool goes. At most a set number of versions have
//! their own; the rest share the labels `_other`.

use crate::node::Node;
use dashmap::DashMap;
use fnctl_core::ErrorKind;
use fnctl_core::ids::FunctionName;
use fnctl_core::invocation::{ColdStart, Phase, StartKind};
use fnctl_core::version::VersionKey;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    PullingGauge, Registry,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

const VERSION: [&str; 2] = ["function", "version"];

#[derive(Clone)]
pub(crate) struct Metrics(Arc<Families>);

struct Families {
    invocations: IntCounterVec,
    errors: IntCounterVec,
    throttles: IntCounterVec,
    duration: HistogramVec,
    inference: HistogramVec,
    starts: IntCounterVec,
    phases: HistogramVec,
    start_failures: IntCounterVec,
    instances: IntGaugeVec,
    memory: IntGaugeVec,
    queue_depth: IntGaugeVec,
    queue_wait: HistogramVec,
    reaps: IntCounterVec,
    /// Over all functions, with the rung, which other parts count for theirs.
    evictions: IntCounterVec,
    drops: IntCounterVec,
    desired: IntGaugeVec,
    panicking: IntGaugeVec,
    provisioned: IntGaugeVec,
    reserved: IntGaugeVec,
    tracked: DashMap<VersionKey, ()>,
    count: AtomicUsize,
    max_tracked: usize,
}

impl Metrics {
    pub(crate) fn register(registry: &Registry, max_tracked: usize) -> prometheus::Result<Self> {
        let counter =
            |name: &str, help: &str, extra: &[&str]| -> prometheus::Result<IntCounterVec> {
                let family =
                    IntCounterVec::new(Opts::new(name, help), &[&VERSION, extra].concat())?;
                registry.register(Box::new(family.clone()))?;
                Ok(family)
            };
        let gauge = |name: &str, help: &str, extra: &[&str]| -> prometheus::Result<IntGaugeVec> {
            let family = IntGaugeVec::new(Opts::new(name, help), &[&VERSION, extra].concat())?;
            registry.register(Box::new(family.clone()))?;
            Ok(family)
        };
        let histogram = |name: &str,
                         help: &str,
                         extra: &[&str],
                         first: f64,
                         count: usize|
         -> prometheus::Result<HistogramVec> {
            let buckets = prometheus::exponential_buckets(first, 2.5, count)?;
            let family = HistogramVec::new(
                HistogramOpts::new(name, help).buckets(buckets),
                &[&VERSION, extra].concat(),
            )?;
            registry.register(Box::new(family.clone()))?;
            Ok(family)
        };
        let evictions = IntCounterVec::new(
            Opts::new(
                "fnctl_evictions_total",
                "What was let go, by rung of the ladder and reason.",
            )
            .const_label("rung", "sandbox"),
            &["reason"],
        )?;
        registry.register(Box::new(evictions.clone()))?;
        Ok(Self(Arc::new(Families {
            evictions,
            invocations: counter(
                "fnctl_invocations_total",
                "Invocations that were run by a guest.",
                &[],
            )?,
            errors: counter(
                "fnctl_invocation_errors_total",
                "Invocations that failed, by kind.",
                &["kind"],
            )?,
            throttles: counter(
                "fnctl_throttles_total",
                "Invocations refused because concurrency limit and queue were full.",
                &[],
            )?,
            duration: histogram(
                "fnctl_invocation_duration_seconds",
                "Time from lease to the guest's return.",
                &[],
                0.000_1,
                14,
            )?,
            inference: histogram(
                "fnctl_invocation_inference_seconds",
                "Time inside compute, of invocations that computed.",
                &[],
                0.000_02,
                14,
            )?,
            starts: counter(
                "fnctl_starts_total",
                "Invocations by how their instance came to be (cold, prewarmed, warm).",
                &["kind"],
            )?,
            phases: histogram(
                "fnctl_cold_start_seconds",
                "Cold starts by phase.",
                &["phase"],
                0.000_01,
                16,
            )?,
            start_failures: counter(
                "fnctl_start_failures_total",
                "Instances that failed to start, by kind.",
                &["kind"],
            )?,
            instances: gauge(
                "fnctl_instances",
                "Instances by state (idle, busy, starting).",
                &["state"],
            )?,
            memory: gauge(
                "fnctl_instance_memory_bytes",
                "Linear memory of the instance that ran last.",
                &[],
            )?,
            queue_depth: gauge(
                "fnctl_queue_depth",
                "Invocations waiting for a permit.",
                &[],
            )?,
            queue_wait: histogram(
                "fnctl_queue_wait_seconds",
                "Time waited for a permit.",
                &[],
                0.000_01,
                16,
            )?,
            reaps: counter(
                "fnctl_reaps_total",
                "Idle instances retired, by reason (keep_alive, policy, demoted, node_full).",
                &["reason"],
            )?,
            drops: counter(
                "fnctl_drops_total",
                "Invocations that got no turn, by reason (queue_full, too_late, queue_timeout, node_busy, turned_off).",
                &["reason"],
            )?,
            desired: gauge(
                "fnctl_instances_desired",
                "Instances that the autoscaler wants, of versions with target_concurrency.",
                &[],
            )?,
            panicking: gauge(
                "fnctl_autoscaler_panic",
                "1 while the autoscaler panics, of versions with target_concurrency.",
                &[],
            )?,
            provisioned: gauge(
                "fnctl_instances_provisioned",
                "Instances that are to be kept whatever the traffic, by configuration and schedule.",
                &[],
            )?,
            reserved: {
                let family = IntGaugeVec::new(
                    Opts::new(
                        "fnctl_concurrency_reserved",
                        "Concurrency that a function has reserved.",
                    ),
                    &["function"],
                )?;
                registry.register(Box::new(family.clone()))?;
                family
            },
            tracked: DashMap::new(),
            count: AtomicUsize::new(0),
            max_tracked,
        })))
    }

    /// The metrics of one version.
    pub(crate) fn of(&self, key: &VersionKey) -> VersionMetrics {
        let families = &self.0;
        let known = families.tracked.contains_key(key);
        let own = known || families.count.load(Ordering::Relaxed) < families.max_tracked;
        if own && families.tracked.insert(key.clone(), ()).is_none() {
            families.count.fetch_add(1, Ordering::Relaxed);
        }
        let labels = if own {
            (key.function.to_string(), key.number.to_string())
        } else {
            ("_other".into(), "_other".into())
        };
        let [f, v] = [labels.0.as_str(), labels.1.as_str()];
        let state = |state| families.instances.with_label_values(&[f, v, state]);
        let start = |kind: StartKind| families.starts.with_label_values(&[f, v, kind.as_str()]);
        VersionMetrics {
            invocations: families.invocations.with_label_values(&[f, v]),
            throttles: families.throttles.with_label_values(&[f, v]),
            duration: families.duration.with_label_values(&[f, v]),
            inference: families.inference.with_label_values(&[f, v]),
            cold: start(StartKind::Cold),
            prewarmed: start(StartKind::Prewarmed),
            warm: start(StartKind::Warm),
            idle: state("idle"),
            busy: state("busy"),
            starting: state("starting"),
            memory: families.memory.with_label_values(&[f, v]),
            queue_depth: families.queue_depth.with_label_values(&[f, v]),
            queue_wait: families.queue_wait.with_label_values(&[f, v]),
            provisioned: AtomicU32::new(0),
            families: self.clone(),
            labels,
            key: own.then(|| key.clone()),
        }
    }

    /// Removes everything about a version: it is not live any more, and nothing of it runs.
    pub(crate) fn forget(&self, key: &VersionKey) {
        let families = &self.0;
        if families.tracked.remove(key).is_none() {
            return;
        }
        families.count.fetch_sub(1, Ordering::Relaxed);
        let (f, v) = (key.function.as_str(), key.number.to_string());
        // A child that was never made is no error.
        for family in [&families.instances] {
            for state in ["idle", "busy", "starting"] {
                let _ = family.remove_label_values(&[f, &v, state]);
            }
        }
        for reason in NoTurn::ALL {
            let _ = families
                .drops
                .remove_label_values(&[f, &v, reason.as_str()]);
        }
        for family in [
            &families.memory,
            &families.queue_depth,
            &families.desired,
            &families.panicking,
            &families.provisioned,
        ] {
            let _ = family.remove_label_values(&[f, &v]);
        }
        for family in [&families.invocations, &families.throttles] {
            let _ = family.remove_label_values(&[f, &v]);
        }
        for family in [
            &families.duration,
            &families.inference,
            &families.queue_wait,
        ] {
            let _ = family.remove_label_values(&[f, &v]);
        }
        for kind in ErrorKind::ALL {
            let _ = families.errors.remove_label_values(&[f, &v, kind.code()]);
            let _ = families
                .start_failures
                .remove_label_values(&[f, &v, kind.code()]);
        }
        for kind in [StartKind::Cold, StartKind::Prewarmed, StartKind::Warm] {
            let _ = families.starts.remove_label_values(&[f, &v, kind.as_str()]);
        }
        for phase in Phase::ALL {
            let _ = families
                .phases
                .remove_label_values(&[f, &v, phase.as_str()]);
        }
        for reason in ["keep_alive", "policy", "demoted", "node_full"] {
            let _ = families.reaps.remove_label_values(&[f, &v, reason]);
        }
    }
}

/// Why an invocation got no turn.
#[derive(Debug, Clone, Copy)]
pub(crate) enum NoTurn {
    QueueFull,
    TooLate,
    QueueTimeout,
    NodeBusy,
    TurnedOff,
}

impl NoTurn {
    const ALL: [Self; 5] = [
        Self::QueueFull,
        Self::TooLate,
        Self::QueueTimeout,
        Self::NodeBusy,
        Self::TurnedOff,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::TooLate => "too_late",
            Self::QueueTimeout => "queue_timeout",
            Self::NodeBusy => "node_busy",
            Self::TurnedOff => "turned_off",
        }
    }
}

impl Metrics {
    /// What a function has reserved; nothing takes its gauge away.
    pub(crate) fn reserved(&self, function: &FunctionName, part: Option<u32>) {
        let family = &self.0.reserved;
        match part {
            Some(part) => family
                .with_label_values(&[function.as_str()])
                .set(i64::from(part)),
            None => {
                let _ = family.remove_label_values(&[function.as_str()]);
            }
        }
    }

    /// Idle instances that were let go, for all reasons.
    #[cfg(test)]
    pub(crate) fn all_gone(&self) -> u64 {
        ["keep_alive", "policy", "demoted", "node_full"]
            .map(|reason| self.0.evictions.with_label_values(&[reason]).get())
            .iter()
            .sum()
    }

    /// What all functions share, told when somebody asks.
    pub(crate) fn register_node(registry: &Registry, node: &Arc<Node>) -> prometheus::Result<()> {
        type Read = fn(&Node) -> usize;
        let gauges: [(&str, &str, Read); 7] = [
            (
                "fnctl_running",
                "Invocations that use a processor.",
                |node| node.running.fill().0,
            ),
            (
                "fnctl_running_limit",
                "Most invocations that use a processor at once (scheduler.max_running).",
                |node| node.running.fill().1,
            ),
            (
                "fnctl_running_waiting",
                "Invocations that wait for their turn on a processor.",
                |node| node.running.waiting(),
            ),
            (
                "fnctl_concurrency_shared",
                "Invocations in flight of functions that have reserved nothing.",
                |node| node.shared.fill().0,
            ),
            (
                "fnctl_concurrency_shared_limit",
                "scheduler.max_concurrency without what functions have reserved.",
                |node| node.shared.fill().1,
            ),
            (
                "fnctl_memory_bytes",
                "Memory of instances and sessions, as it was measured.",
                |node| usize::try_from(node.memory.used()).unwrap_or(usize::MAX),
            ),
            (
                "fnctl_memory_limit_bytes",
                "scheduler.memory; 0 = no limit.",
                |node| usize::try_from(node.memory.limit()).unwrap_or(usize::MAX),
            ),
        ];
        for (name, help, read) in gauges {
            let node = node.clone();
            #[allow(clippy::cast_precision_loss, reason = "a gauge is a float")]
            let value = Box::new(move || read(&node) as f64);
            registry.register(Box::new(PullingGauge::new(name, help, value)?))?;
        }
        Ok(())
    }
}

/// One version's children.
pub(crate) struct VersionMetrics {
    families: Metrics,
    labels: (String, String),
    /// The version that these are of, unless they are shared.
    key: Option<VersionKey>,
    invocations: IntCounter,
    throttles: IntCounter,
    duration: Histogram,
    inference: Histogram,
    cold: IntCounter,
    prewarmed: IntCounter,
    warm: IntCounter,
    idle: IntGauge,
    busy: IntGauge,
    starting: IntGauge,
    memory: IntGauge,
    queue_depth: IntGauge,
    queue_wait: Histogram,
    provisioned: AtomicU32,
}

/// Counts a waiting invocation for as long as it lives.
pub(crate) struct QueueDepth<'a>(&'a IntGauge);

impl Drop for QueueDepth<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn gauge(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl VersionMetrics {
    fn labels<'a>(&'a self, extra: &'a str) -> [&'a str; 3] {
        [&self.labels.0, &self.labels.1, extra]
    }

    /// Does something with the families, unless the version has been forgotten: what still ran then would bring back
    /// labels that nobody removes.
    fn with_families(&self, change: impl FnOnce(&Families)) {
        let families = &self.families.0;
        let tracked = self.key.as_ref().map(|key| families.tracked.get(key));
        if !matches!(tracked, Some(None)) {
            change(families);
        }
    }

    pub(crate) fn failed(&self, kind: ErrorKind) {
        self.with_families(|families| {
            let labels = self.labels(kind.code());
            families.errors.with_label_values(&labels).inc();
        });
    }

    pub(crate) fn start_failed(&self, kind: ErrorKind) {
        self.with_families(|families| {
            let labels = self.labels(kind.code());
            families.start_failures.with_label_values(&labels).inc();
        });
    }

    pub(crate) fn throttled(&self) {
        self.throttles.inc();
    }

    pub(crate) fn dropped(&self, reason: NoTurn) {
        self.with_families(|families| {
            let labels = self.labels(reason.as_str());
            families.drops.with_label_values(&labels).inc();
        });
    }

    pub(crate) fn scaled(&self, desired: usize, panicking: bool) {
        let labels = [self.labels.0.as_str(), self.labels.1.as_str()];
        self.with_families(|families| {
            let desired = gauge(desired);
            families.desired.with_label_values(&labels).set(desired);
            let panicking = i64::from(panicking);
            families.panicking.with_label_values(&labels).set(panicking);
        });
    }

    /// The gauge appears with the first provisioned instance.
    pub(crate) fn provisioned(&self, count: u32) {
        let known = self.provisioned.load(Ordering::Relaxed);
        if known != count {
            self.provisioned.store(count, Ordering::Relaxed);
            let labels = [self.labels.0.as_str(), self.labels.1.as_str()];
            self.with_families(|families| {
                let count = i64::from(count);
                families.provisioned.with_label_values(&labels).set(count);
            });
        }
    }

    pub(crate) fn queue_depth(&self) -> QueueDepth<'_> {
        self.queue_depth.inc();
        QueueDepth(&self.queue_depth)
    }

    pub(crate) fn queued(&self, wait: Duration) {
        self.queue_wait.observe(wait.as_secs_f64());
    }

    pub(crate) fn started(&self, kind: StartKind, phases: &ColdStart) {
        match kind {
            StartKind::Warm => self.warm.inc(),
            StartKind::Prewarmed => self.prewarmed.inc(),
            StartKind::Cold => {
                self.cold.inc();
                self.with_families(|families| {
                    for phase in Phase::ALL {
                        let labels = self.labels(phase.as_str());
                        let seconds = phases.get(phase).as_secs_f64();
                        families.phases.with_label_values(&labels).observe(seconds);
                    }
                });
            }
        }
    }

    pub(crate) fn ran(&self, took: Duration, inference: Duration, memory: u64) {
        self.invocations.inc();
        self.duration.observe(took.as_secs_f64());
        if !inference.is_zero() {
            self.inference.observe(inference.as_secs_f64());
        }
        self.memory.set(i64::try_from(memory).unwrap_or(i64::MAX));
    }

    pub(crate) fn instances(&self, idle: usize, busy: usize, starting: usize) {
        self.idle.set(gauge(idle));
        self.busy.set(gauge(busy));
        self.starting.set(gauge(starting));
    }

    /// What the gauges say: idle, busy, starting.
    #[cfg(test)]
    pub(crate) fn gauges(&self) -> [i64; 3] {
        [self.idle.get(), self.busy.get(), self.starting.get()]
    }

    fn gone(&self, count: usize, reason: &str) {
        if count > 0 {
            let all = self.families.0.evictions.with_label_values(&[reason]);
            all.inc_by(count as u64);
            self.with_families(|families| {
                let labels = self.labels(reason);
                families
                    .reaps
                    .with_label_values(&labels)
                    .inc_by(count as u64);
            });
        }
    }

    pub(crate) fn reaped(&self, count: usize, reason: &str) {
        self.gone(count, reason);
    }

    pub(crate) fn evicted(&self, count: usize) {
        self.gone(count, "node_full");
    }
}
