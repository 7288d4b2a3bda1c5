//! The metrics of inference hosts; docs/metrics.md lists them.

use super::death::Reason;
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

pub(crate) struct HostMetrics {
    pub(crate) hosts: IntGaugeVec,
    pub(crate) restarts: IntCounterVec,
    pub(crate) start_seconds: Histogram,
    pub(crate) silence: Gauge,
    pub(crate) resident: IntGauge,
    pub(crate) quarantined: IntGauge,
    pub(crate) reruns: IntCounter,
}

impl HostMetrics {
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            hosts: IntGaugeVec::new(
                Opts::new(
                    "fnctl_inference_hosts",
                    "Inference hosts that run, by kind (shared, dedicated, alone, spare).",
                ),
                &["kind"],
            )?,
            restarts: IntCounterVec::new(
                Opts::new(
                    "fnctl_inference_host_restarts_total",
                    "Inference hosts that ended without being told to, by reason.",
                ),
                &["reason"],
            )?,
            start_seconds: Histogram::with_opts(
                HistogramOpts::new(
                    "fnctl_inference_host_start_seconds",
                    "Time from starting an inference host to its being ready.",
                )
                .buckets(prometheus::exponential_buckets(0.005, 2.0, 12)?),
            )?,
            silence: Gauge::new(
                "fnctl_inference_host_heartbeat_age_seconds",
                "Longest time since a host that has work was last heard of, or got that work.",
            )?,
            resident: IntGauge::new(
                "fnctl_inference_host_resident_bytes",
                "Resident memory of all inference hosts.",
            )?,
            quarantined: IntGauge::new(
                "fnctl_inference_quarantined_models",
                "What is kept away from hosts because it killed too many: a model in one function's hands, the loading of a model, or a function; each counts as one.",
            )?,
            reruns: IntCounter::new(
                "fnctl_inference_reruns_total",
                "Loads and inferences done again because their host died.",
            )?,
        };
        // There from the start: the first death of a kind is seen as an increase.
        for reason in Reason::LABELS {
            metrics.restarts.with_label_values(&[reason]);
        }
        registry.register(Box::new(metrics.hosts.clone()))?;
        registry.register(Box::new(metrics.restarts.clone()))?;
        registry.register(Box::new(metrics.start_seconds.clone()))?;
        registry.register(Box::new(metrics.silence.clone()))?;
        registry.register(Box::new(metrics.resident.clone()))?;
        registry.register(Box::new(metrics.quarantined.clone()))?;
        registry.register(Box::new(metrics.reruns.clone()))?;
        Ok(metrics)
    }
}

/// Resident memory of a process in bytes, 0 if it is gone.
pub(crate) fn resident_bytes(pid: u32) -> u64 {
    let read = || -> Option<u64> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
        let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
        Some(pages.saturating_mul(rustix::param::page_size() as u64))
    };
    read().unwrap_or(0)
}
