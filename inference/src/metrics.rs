//! The inference host's metrics; docs/metrics.md lists them.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

pub(crate) struct Metrics {
    sessions: IntGauge,
    bytes: IntGauge,
    fullest: IntGauge,
    pub(crate) load_seconds: Histogram,
    pub(crate) compute_seconds: Histogram,
    pub(crate) unloads: IntCounterVec,
    pub(crate) refused: IntCounter,
}

impl Metrics {
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let histogram = |name: &str, help: &str, first: f64, factor: f64, count: usize| {
            let buckets = prometheus::exponential_buckets(first, factor, count)?;
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))
        };
        let metrics = Self {
            sessions: IntGauge::new("fnctl_inference_sessions", "Model sessions in memory.")?,
            bytes: IntGauge::new(
                "fnctl_inference_memory_bytes",
                "Bytes that ONNX Runtime has allocated for sessions and runs.",
            )?,
            fullest: IntGauge::new(
                "fnctl_inference_fullest_host_bytes",
                "Bytes that ONNX Runtime has allocated in the process where it has most; each may have inference.memory.",
            )?,
            load_seconds: histogram(
                "fnctl_inference_load_seconds",
                "Time to load a model.",
                0.001,
                2.0,
                14,
            )?,
            compute_seconds: histogram(
                "fnctl_inference_compute_seconds",
                "Time of one inference, waiting for a thread included.",
                0.000_02,
                2.5,
                14,
            )?,
            unloads: IntCounterVec::new(
                Opts::new(
                    "fnctl_inference_unloads_total",
                    "Sessions unloaded, by reason (ttl, policy, budget, memory).",
                ),
                &["reason"],
            )?,
            refused: IntCounter::new(
                "fnctl_inference_budget_refusals_total",
                "Models refused because they need more than the memory budget.",
            )?,
        };
        registry.register(Box::new(metrics.sessions.clone()))?;
        registry.register(Box::new(metrics.bytes.clone()))?;
        registry.register(Box::new(metrics.fullest.clone()))?;
        registry.register(Box::new(metrics.load_seconds.clone()))?;
        registry.register(Box::new(metrics.compute_seconds.clone()))?;
        registry.register(Box::new(metrics.unloads.clone()))?;
        registry.register(Box::new(metrics.refused.clone()))?;
        Ok(metrics)
    }

    /// A model was loaded.
    pub(crate) fn loaded(&self, took: std::time::Duration) {
        self.load_seconds.observe(took.as_secs_f64());
    }

    /// Takes note of all sessions, of the bytes of each process that has some, and of none where there is no process.
    pub(crate) fn observe(&self, sessions: usize, bytes: impl IntoIterator<Item = u64>) {
        let (all, most) = bytes.into_iter().fold((0_u64, 0), |(all, most), one| {
            (all.saturating_add(one), one.max(most))
        });
        self.sessions
            .set(i64::try_from(sessions).unwrap_or(i64::MAX));
        self.bytes.set(i64::try_from(all).unwrap_or(i64::MAX));
        self.fullest.set(i64::try_from(most).unwrap_or(i64::MAX));
    }
}
