//! What the platform as a whole tells: its version, its process, its limits, and what the store keeps. The parts
//! register their own; docs/metrics.md lists all.

use crate::Config;
use fnctl_core::ports::FunctionStore;
use fnctl_store::Store;
use prometheus::{IntCounterVec, IntGauge, IntGaugeVec, Opts, PullingGauge, Registry};
use std::path::Path;

/// The process and the version.
pub(crate) fn register_process(registry: &Registry) -> prometheus::Result<()> {
    #[cfg(target_os = "linux")]
    registry.register(Box::new(
        prometheus::process_collector::ProcessCollector::for_self(),
    ))?;
    let build = IntGaugeVec::new(
        Opts::new("fnctl_build_info", "Always 1; the label is the version."),
        &["version"],
    )?;
    build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    registry.register(Box::new(build))
}

/// The settings that "how full is it" is asked against: without them an alert could only repeat the defaults.
pub(crate) fn register_limits(registry: &Registry, config: &Config) -> prometheus::Result<()> {
    let limits = [
        (
            "fnctl_instances_limit",
            "Most instances at once, over all functions (worker.max_instances).",
            config.scheduler.max_instances as u64,
        ),
        (
            "fnctl_inference_memory_limit_bytes",
            "Most bytes that ONNX Runtime may allocate in one process (inference.memory).",
            config.inference.memory.bytes(),
        ),
        (
            "fnctl_http_connections_limit",
            "Most client connections at once (gateway.max_connections).",
            config.gateway.max_connections as u64,
        ),
    ];
    for (name, help, value) in limits {
        let gauge = IntGauge::new(name, help)?;
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(Box::new(gauge))?;
    }
    Ok(())
}

/// What was let go on the rungs below the sandbox, whose own evictions the scheduler counts under the same name.
#[derive(Debug, Clone)]
pub(crate) struct Evictions {
    sessions: IntCounterVec,
    templates: IntCounterVec,
}

impl Evictions {
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let rung = |rung: &str| -> prometheus::Result<IntCounterVec> {
            let family = IntCounterVec::new(
                Opts::new(
                    "fnctl_evictions_total",
                    "What was let go, by rung of the ladder and reason.",
                )
                .const_label("rung", rung),
                &["reason"],
            )?;
            registry.register(Box::new(family.clone()))?;
            Ok(family)
        };
        let evictions = Self {
            sessions: rung("session")?,
            templates: rung("template")?,
        };
        // There from the start, so that the first one is an increase.
        evictions.relieved(0);
        evictions.reaped(Default::default(), Default::default());
        Ok(evictions)
    }

    /// Counts sessions that went for want of memory.
    pub(crate) fn relieved(&self, sessions: usize) {
        self.sessions
            .with_label_values(&["memory"])
            .inc_by(sessions as u64);
    }

    /// Counts what a time-to-live or a policy has ended.
    pub(crate) fn reaped(
        &self,
        sessions: fnctl_inference::Reaped,
        templates: fnctl_worker::Reaped,
    ) {
        for (family, reason, count) in [
            (&self.sessions, "ttl", sessions.expired),
            (&self.sessions, "policy", sessions.by_policy),
            (&self.templates, "ttl", templates.expired),
            (&self.templates, "policy", templates.by_policy),
        ] {
            family.with_label_values(&[reason]).inc_by(count as u64);
        }
    }
}

/// What is stored, counted when somebody asks.
pub(crate) fn register_store(registry: &Registry, store: &Store) -> prometheus::Result<()> {
    #[allow(
        clippy::cast_precision_loss,
        reason = "nobody has 2^53 versions, and a gauge is a float"
    )]
    let count = |of: fn(&Store) -> usize| {
        let store = store.clone();
        Box::new(move || of(&store) as f64)
    };
    registry.register(Box::new(PullingGauge::new(
        "fnctl_store_functions",
        "Functions in the store.",
        count(|store| store.functions(None).len()),
    )?))?;
    registry.register(Box::new(PullingGauge::new(
        "fnctl_store_versions",
        "Versions in the store, over all functions.",
        count(|store| {
            let functions = store.functions(None);
            functions.iter().map(|one| one.versions.len()).sum()
        }),
    )?))
}

/// The file system that the data folder is on: when it is full, nothing can be deployed or logged.
pub(crate) fn register_disk(registry: &Registry, folder: &Path) -> prometheus::Result<()> {
    #[allow(
        clippy::cast_precision_loss,
        reason = "a gauge is a float, and bytes beyond 2^53 are rounded"
    )]
    let bytes = |of: fn(&rustix::fs::StatVfs) -> u64| {
        let folder = folder.to_path_buf();
        // A folder that cannot be asked has no room that is known of.
        Box::new(move || {
            rustix::fs::statvfs(&folder).map_or(0.0, |space| {
                (of(&space).saturating_mul(space.f_frsize)) as f64
            })
        })
    };
    registry.register(Box::new(PullingGauge::new(
        "fnctl_data_free_bytes",
        "Bytes free on the file system of platform.data, for whoever is not root.",
        bytes(|space| space.f_bavail),
    )?))?;
    registry.register(Box::new(PullingGauge::new(
        "fnctl_data_size_bytes",
        "Size of the file system of platform.data.",
        bytes(|space| space.f_blocks),
    )?))
}
