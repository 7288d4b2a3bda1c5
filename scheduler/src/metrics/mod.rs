//! The scheduler's metrics, per function and version; docs/metrics.md lists them.
//!
//! Each version's numbers are made once, and go when its pool has gone and it is not live. At most a set number of
//! versions have their own; the rest share the labels `_other`.

mod numbers;
mod scrape;

pub(crate) use numbers::NoTurn;

use crate::node::Node;
use dashmap::DashMap;
use fnctl_core::ErrorKind;
use fnctl_core::ids::FunctionName;
use fnctl_core::invocation::{ColdStart, Phase, StartKind};
use fnctl_core::version::VersionKey;
use numbers::{Numbers, REAPS, add, appear};
use prometheus::{IntCounterVec, IntGaugeVec, Opts, PullingGauge, Registry};
use scrape::Scrape;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Both labels of the versions that have no labels of their own.
const OTHER: &str = "_other";

#[derive(Clone)]
pub(crate) struct Metrics(Arc<Families>);

struct Families {
    /// Over all functions, with the rung, which other parts count for theirs.
    evictions: IntCounterVec,
    reserved: IntGaugeVec,
    tracked: DashMap<VersionKey, Arc<Numbers>>,
    count: AtomicUsize,
    max_tracked: usize,
    other: OnceLock<Arc<Numbers>>,
}

impl Families {
    /// The numbers that there are now, with their labels.
    fn all(&self) -> Vec<(String, String, Arc<Numbers>)> {
        let own = self.tracked.iter().map(|entry| {
            let key = entry.key();
            let labels = (key.function.to_string(), key.number.to_string());
            (labels.0, labels.1, entry.value().clone())
        });
        let other = self.other.get().cloned();
        own.chain(other.map(|numbers| (OTHER.to_owned(), OTHER.to_owned(), numbers)))
            .collect()
    }
}

impl Metrics {
    pub(crate) fn register(registry: &Registry, max_tracked: usize) -> prometheus::Result<Self> {
        let evictions = IntCounterVec::new(
            Opts::new(
                "fnctl_evictions_total",
                "What was let go, by rung of the ladder and reason.",
            )
            .const_label("rung", "sandbox"),
            &["reason"],
        )?;
        registry.register(Box::new(evictions.clone()))?;
        let reserved = IntGaugeVec::new(
            Opts::new(
                "fnctl_concurrency_reserved",
                "Concurrency that a function has reserved.",
            ),
            &["function"],
        )?;
        registry.register(Box::new(reserved.clone()))?;
        let families = Arc::new(Families {
            evictions,
            reserved,
            tracked: DashMap::new(),
            count: AtomicUsize::new(0),
            max_tracked,
            other: OnceLock::new(),
        });
        registry.register(Box::new(Scrape::new(families.clone())?))?;
        Ok(Self(families))
    }

    /// The metrics of one version.
    pub(crate) fn of(&self, key: &VersionKey) -> VersionMetrics {
        let families = &self.0;
        let known = families.tracked.get(key).map(|known| known.clone());
        let own = known.or_else(|| {
            let has_room = families.count.load(Ordering::Relaxed) < families.max_tracked;
            has_room.then(|| {
                let entry = families.tracked.entry(key.clone());
                let numbers = entry.or_insert_with(|| {
                    families.count.fetch_add(1, Ordering::Relaxed);
                    Arc::default()
                });
                numbers.clone()
            })
        });
        let is_shared = own.is_none();
        VersionMetrics {
            numbers: own.unwrap_or_else(|| families.other.get_or_init(Arc::default).clone()),
            is_shared,
            told: Default::default(),
            families: self.clone(),
        }
    }

    /// Removes everything about a version: it is not live any more, and nothing of it runs.
    pub(crate) fn forget(&self, key: &VersionKey) {
        if self.0.tracked.remove(key).is_some() {
            self.0.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

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

    /// Whether these are the numbers that are told of a version.
    #[cfg(test)]
    pub(crate) fn tells(&self, key: &VersionKey, of: &VersionMetrics) -> bool {
        let known = self.0.tracked.get(key);
        known.is_some_and(|known| Arc::ptr_eq(&known, &of.numbers))
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

/// One version's numbers. They outlive its pool; what still runs of a version that was forgotten counts where nobody looks.
pub(crate) struct VersionMetrics {
    numbers: Arc<Numbers>,
    /// Whether other versions count here too.
    is_shared: bool,
    /// What this one contributes to gauges that are shared.
    told: [AtomicU32; 3],
    families: Metrics,
}

/// Counts a waiting invocation for as long as it lives.
pub(crate) struct QueueDepth<'a>(&'a AtomicU32);

impl Drop for QueueDepth<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn gauge(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

impl VersionMetrics {
    pub(crate) fn failed(&self, kind: ErrorKind) {
        if let Some(count) = self.numbers.rare().errors.get(kind as usize) {
            add(count, 1);
        }
    }

    pub(crate) fn start_failed(&self, kind: ErrorKind) {
        if let Some(count) = self.numbers.rare().start_failures.get(kind as usize) {
            add(count, 1);
        }
    }

    pub(crate) fn throttled(&self) {
        add(&self.numbers.throttles, 1);
    }

    pub(crate) fn dropped(&self, reason: NoTurn) {
        if let Some(count) = self.numbers.rare().drops.get(reason as usize) {
            add(count, 1);
        }
    }

    pub(crate) fn scaled(&self, desired: usize, panicking: bool) {
        let rare = self.numbers.rare();
        appear(&rare.desired, i64::from(gauge(desired)));
        appear(&rare.panicking, i64::from(panicking));
    }

    /// The gauge appears with the first provisioned instance.
    pub(crate) fn provisioned(&self, count: u32) {
        let known = self.numbers.known_rare();
        let is_there = known.is_some_and(|rare| rare.provisioned.get().is_some());
        if is_there || count > 0 {
            appear(&self.numbers.rare().provisioned, i64::from(count));
        }
    }

    pub(crate) fn queue_depth(&self) -> QueueDepth<'_> {
        let depth = &self.numbers.queue_depth;
        depth.fetch_add(1, Ordering::Relaxed);
        QueueDepth(depth)
    }

    pub(crate) fn queued(&self, wait: Duration) {
        self.numbers.waited(wait);
    }

    pub(crate) fn started(&self, kind: StartKind, phases: &ColdStart) {
        let numbers = &self.numbers;
        match kind {
            StartKind::Warm => add(&numbers.warm, 1),
            StartKind::Prewarmed => add(&numbers.prewarmed, 1),
            StartKind::Cold => {
                add(&numbers.cold, 1);
                let known = numbers.phases.get_or_init(Box::default);
                for (phase, times) in Phase::ALL.iter().zip(known.iter()) {
                    times.observe(phases.get(*phase));
                }
            }
        }
    }

    pub(crate) fn ran(&self, took: Duration, inference: Duration, memory: u64) {
        self.numbers.ran(took, inference, memory);
    }

    /// To be told under the pool's lock.
    pub(crate) fn instances(&self, idle: usize, busy: usize, starting: usize) {
        let now = [gauge(idle), gauge(busy), gauge(starting)];
        for ((gauge, told), now) in self.numbers.instances.iter().zip(&self.told).zip(now) {
            if self.is_shared {
                // A sum that wraps comes back: what is added is taken away again.
                let before = told.swap(now, Ordering::Relaxed);
                gauge.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
            } else {
                gauge.store(now, Ordering::Relaxed);
            }
        }
    }

    /// What the gauges say: idle, busy, starting.
    #[cfg(test)]
    pub(crate) fn gauges(&self) -> [i64; 3] {
        let gauges = if self.is_shared {
            &self.told
        } else {
            &self.numbers.instances
        };
        gauges
            .each_ref()
            .map(|gauge| i64::from(gauge.load(Ordering::Relaxed)))
    }

    fn gone(&self, count: usize, reason: &str) {
        if count > 0 {
            let all = self.families.0.evictions.with_label_values(&[reason]);
            all.inc_by(count as u64);
            let place = REAPS.iter().position(|known| *known == reason);
            if let Some(reaps) = place.and_then(|place| self.numbers.reaps.get(place)) {
                add(reaps, count as u64);
            }
        }
    }

    pub(crate) fn reaped(&self, count: usize, reason: &str) {
        self.gone(count, reason);
    }

    pub(crate) fn evicted(&self, count: usize) {
        self.gone(count, "node_full");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fnctl_core::ids::VersionNumber;

    fn key(name: &str) -> VersionKey {
        VersionKey {
            function: name.parse().unwrap(),
            number: VersionNumber(3),
        }
    }

    fn text(registry: &Registry) -> String {
        let text = prometheus::TextEncoder::new();
        text.encode_to_string(&registry.gather()).unwrap()
    }

    #[test]
    fn what_was_counted_is_told_until_the_version_is_forgotten() {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry, 10).unwrap();
        let echo = metrics.of(&key("echo"));
        echo.ran(Duration::from_micros(200), Duration::ZERO, 4096);
        echo.started(StartKind::Cold, &ColdStart::default());
        echo.failed(ErrorKind::Trap);
        echo.reaped(2, "policy");
        let told = text(&registry);
        for line in [
            "fnctl_invocations_total{function=\"echo\",version=\"3\"} 1",
            "fnctl_invocation_duration_seconds_bucket{function=\"echo\",version=\"3\",le=\"0.0001\"} 0",
            "fnctl_invocation_duration_seconds_bucket{function=\"echo\",version=\"3\",le=\"0.00025\"} 1",
            "fnctl_invocation_duration_seconds_bucket{function=\"echo\",version=\"3\",le=\"+Inf\"} 1",
            "fnctl_invocation_duration_seconds_sum{function=\"echo\",version=\"3\"} 0.0002",
            "fnctl_invocation_duration_seconds_count{function=\"echo\",version=\"3\"} 1",
            "fnctl_cold_start_seconds_count{function=\"echo\",phase=\"init\",version=\"3\"} 1",
            "fnctl_invocation_errors_total{function=\"echo\",kind=\"trap\",version=\"3\"} 1",
            "fnctl_reaps_total{function=\"echo\",reason=\"policy\",version=\"3\"} 2",
            "fnctl_starts_total{function=\"echo\",kind=\"warm\",version=\"3\"} 0",
            "fnctl_instance_memory_bytes{function=\"echo\",version=\"3\"} 4096",
        ] {
            assert!(told.lines().any(|told| told == line), "{line} in\n{told}");
        }
        assert!(!told.contains("fnctl_drops_total") && !told.contains("provisioned"));
        metrics.forget(&key("echo"));
        echo.failed(ErrorKind::Trap);
        assert!(!text(&registry).contains("echo"));
    }

    #[test]
    fn versions_beyond_the_most_are_counted_together() {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry, 1).unwrap();
        let [_, b, c] = ["a", "b", "c"].map(|name| metrics.of(&key(name)));
        b.instances(2, 1, 0);
        c.instances(1, 0, 0);
        b.instances(1, 2, 0);
        assert_eq!(b.gauges(), [1, 2, 0]);
        let told = text(&registry);
        for line in [
            "fnctl_instances{function=\"_other\",state=\"idle\",version=\"_other\"} 2",
            "fnctl_instances{function=\"_other\",state=\"busy\",version=\"_other\"} 2",
        ] {
            assert!(told.contains(line), "{line} in\n{told}");
        }
        // The same version again has the numbers that it had.
        metrics.of(&key("a")).throttled();
        metrics.of(&key("a")).throttled();
        let line = "fnctl_throttles_total{function=\"a\",version=\"3\"} 2";
        assert!(text(&registry).contains(line));
    }
}
