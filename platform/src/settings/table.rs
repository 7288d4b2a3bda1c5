//! The table of every setting: key, meaning, and how each is read from and written to text.

use super::Setting;
use fnctl_core::units::{ByteSize, Period};
use std::path::PathBuf;
use std::str::FromStr;

fn parsed<T: FromStr>(text: &str) -> Result<T, String>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error: T::Err| error.to_string())
}

fn positive<T: FromStr + PartialOrd + Default>(text: &str) -> Result<T, String>
where
    T::Err: std::fmt::Display,
{
    let value: T = parsed(text)?;
    if value > T::default() {
        Ok(value)
    } else {
        Err("must be more than 0".to_owned())
    }
}

fn count(text: &str) -> Result<usize, String> {
    let count: usize = positive(text)?;
    if count <= 1_000_000 {
        Ok(count)
    } else {
        Err("at most 1000000".to_owned())
    }
}

fn period(text: &str) -> Result<Period, String> {
    let period: Period = parsed(text)?;
    if period > Period::secs(0) {
        Ok(period)
    } else {
        Err("must be more than 0s".to_owned())
    }
}

macro_rules! setting {
    ($key:literal, $help:literal, $($field:ident).+, $parse:expr) => {
        Setting {
            key: $key,
            help: $help,
            get: |config| config.$($field).+.to_string(),
            set: |config, text| {
                config.$($field).+ = $parse(text)?;
                Ok(())
            },
        }
    };
}

/// Every setting, in the order of the documentation.
pub static SETTINGS: &[Setting] = &[
    Setting {
        key: "platform.data",
        help: "Folder of everything that is kept: versions, artifacts, compiled code.",
        get: |config| config.store.folder.display().to_string(),
        set: |config, text| {
            config.set_data(text);
            Ok(())
        },
    },
    setting!(
        "platform.grace",
        "How long running invocations have to finish when the platform stops.",
        grace,
        period
    ),
    setting!(
        "gateway.listen",
        "Address and port to listen on.",
        gateway.listen,
        |text: &str| {
            if text.contains(':') {
                Ok(text.to_owned())
            } else {
                Err("write it like 127.0.0.1:8080".to_owned())
            }
        }
    ),
    Setting {
        key: "gateway.token",
        help: "The admin API's token. Without one it answers on this machine only. FNCTL_TOKEN sets it too.",
        get: |config| {
            if config.gateway.token.is_some() {
                "(set)".to_owned()
            } else {
                String::new()
            }
        },
        set: |config, text| {
            config.gateway.token = (!text.is_empty()).then(|| text.to_owned());
            Ok(())
        },
    },
    Setting {
        key: "gateway.token_file",
        help: "Where the token is kept if gateway.token is empty; made with a random one if it is missing. FNCTL_TOKEN_FILE sets it too.",
        get: |config| {
            config
                .token_file
                .as_ref()
                .map(|path| path.display().to_string())
                .unwrap_or_default()
        },
        set: |config, text| {
            config.token_file = (!text.is_empty()).then(|| PathBuf::from(text));
            Ok(())
        },
    },
    setting!(
        "gateway.max_connections",
        "Most connections at once.",
        gateway.max_connections,
        count
    ),
    setting!(
        "gateway.header_timeout",
        "Most time for a request's head to arrive, and for a connection to be idle.",
        gateway.header_timeout,
        period
    ),
    setting!(
        "gateway.body_timeout",
        "Most time between two pieces of a request body.",
        gateway.body_timeout,
        period
    ),
    setting!(
        "gateway.write_timeout",
        "Most time that a client may not read its response.",
        gateway.write_timeout,
        period
    ),
    setting!(
        "gateway.max_header",
        "Most bytes of a request's head.",
        gateway.max_header,
        parsed::<ByteSize>
    ),
    setting!(
        "gateway.max_artifact",
        "Most bytes of an uploaded artifact.",
        gateway.max_artifact,
        parsed::<ByteSize>
    ),
    setting!(
        "scheduler.max_concurrency",
        "Most invocations in flight, over all functions; reserved_concurrency is taken out of it, and at least a tenth stays for functions without.",
        scheduler.max_concurrency,
        count
    ),
    setting!(
        "scheduler.max_running",
        "Most invocations that use a processor at once; functions share them fairly. One that waits for something outside does not count.",
        scheduler.max_running,
        count
    ),
    setting!(
        "scheduler.memory",
        "Most memory of instances and models together, as it was measured; idle instances make room. auto = three quarters of the machine's memory or of the cgroup's limit, whichever is less; 0B = no limit.",
        scheduler.memory,
        parsed::<fnctl_scheduler::MemoryLimit>
    ),
    setting!(
        "scheduler.max_tracked_versions",
        "Most versions with metrics of their own.",
        scheduler.max_tracked_versions,
        positive
    ),
    Setting {
        key: "scheduler.keep_alive_policy",
        help: "What decides how long idle instances are kept, unless function.toml says: `fixed`, `histogram`, `adaptive`.",
        get: |config| config.scheduler.keep_alive_policy.to_string(),
        set: |config, text| {
            config.scheduler.keep_alive_policy = text
                .parse()
                .map_err(|error: fnctl_scheduler::policy::SpecError| error.to_string())?;
            Ok(())
        },
    },
    setting!(
        "scheduler.trace_size",
        "Invocations remembered for `fnctl trace export`; 0 remembers none.",
        scheduler.trace_size,
        |text: &str| parsed::<usize>(text).and_then(|count| {
            (count <= 10_000_000)
                .then_some(count)
                .ok_or_else(|| "at most 10000000".to_owned())
        })
    ),
    Setting {
        key: "worker.max_instances",
        help: "Most instances at once, over all functions.",
        get: |config| config.worker.max_instances.to_string(),
        set: |config, text| {
            let count: u32 = positive(text)?;
            if count > 10_000 {
                return Err("at most 10000: each reserves 4 GiB of address space".to_owned());
            }
            config.worker.max_instances = count;
            config.scheduler.max_instances = count as usize;
            Ok(())
        },
    },
    setting!(
        "worker.max_memory",
        "Largest linear memory that a function may ask for.",
        worker.max_memory,
        |text: &str| {
            let size: ByteSize = parsed(text)?;
            if size <= ByteSize::mib(4096) && size >= ByteSize::kib(64) {
                Ok(size)
            } else {
                Err("must be 64KiB to 4GiB".to_owned())
            }
        }
    ),
    setting!(
        "worker.epoch_tick",
        "Step of CPU limits, and how long a guest runs before others on its thread get a turn.",
        worker.epoch_tick,
        period
    ),
    setting!(
        "worker.keep_resident",
        "Bytes of a free memory slot that stay resident for the next sandbox.",
        worker.keep_resident,
        parsed::<ByteSize>
    ),
    setting!(
        "worker.template_ttl",
        "How long unused compiled code stays in memory. The adaptive policy decides for its functions.",
        worker.template_ttl,
        period
    ),
    Setting {
        key: "inference.library",
        help: "The ONNX Runtime library; looked for when empty (ORT_DYLIB_PATH, beside fnctl, cache folder, system).",
        get: |config| {
            config
                .inference
                .library
                .as_ref()
                .map(|path| path.display().to_string())
                .unwrap_or_default()
        },
        set: |config, text| {
            config.inference.library = (!text.is_empty()).then(|| PathBuf::from(text));
            Ok(())
        },
    },
    setting!(
        "inference.memory",
        "Most bytes that ONNX Runtime may allocate for all models and their runs; each inference host has as many.",
        inference.memory,
        parsed::<ByteSize>
    ),
    setting!(
        "inference.constant_folding",
        "Whether constant parts of a graph are computed while it loads. This happens outside inference.memory: turn it off for models you do not trust.",
        inference.constant_folding,
        parsed::<bool>
    ),
    setting!(
        "inference.session_ttl",
        "How long an unused model stays loaded. The adaptive policy decides for its functions.",
        inference.session_ttl,
        parsed::<Period>
    ),
    setting!(
        "inference.compute_threads",
        "Most inferences at once, of models that take longer than a millisecond; those that take less have as many threads of their own besides as there are processors, at most 4.",
        inference.compute_threads,
        count
    ),
    setting!(
        "inference.compute_queue",
        "Most inferences waiting for a thread.",
        inference.compute_queue,
        count
    ),
    setting!(
        "inference.intra_threads",
        "Threads that split single operators; 0 = as many as cores.",
        inference.intra_threads,
        parsed::<usize>
    ),
    setting!(
        "inference.parallel_loads",
        "Most models loading at once.",
        inference.parallel_loads,
        count
    ),
    setting!(
        "inference.process",
        "Where ONNX Runtime runs: host (processes of its own, which may die) or in-process.",
        inference.process,
        parsed
    ),
    setting!(
        "inference.require_confinement",
        "Whether inference hosts do not serve where the system cannot enforce all of their confinement (old kernels); otherwise they do, and say what is missing.",
        inference.require_confinement,
        parsed::<bool>
    ),
    setting!(
        "inference.host_ttl",
        "How long an inference host without a model stays.",
        inference.host_ttl,
        parsed::<Period>
    ),
    setting!(
        "inference.spare_host",
        "Whether a bare inference host is kept ready, so that the first model does not wait for its start.",
        inference.spare_host,
        parsed::<bool>
    ),
    setting!(
        "inference.heartbeat",
        "How often an inference host that has work is asked for a sign of life.",
        inference.heartbeat,
        period
    ),
    setting!(
        "inference.hang_after",
        "How long an inference host may give no sign of life, and how long an inference may go on after it was to end, before the host is killed.",
        inference.hang_after,
        period
    ),
    setting!(
        "inference.shared_memory",
        "Most bytes of tensors in the memory that is shared with one inference host; small tensors need none of it.",
        inference.shared_memory,
        parsed::<ByteSize>
    ),
    setting!(
        "inference.max_hosts",
        "Most inference hosts besides the shared one.",
        inference.max_hosts,
        count
    ),
    setting!(
        "inference.quarantine_after",
        "Times that a function may kill inference hosts with one model before it is quarantined with that model; each counts half as much every three hours. With model after model, twice as many.",
        inference.quarantine_after,
        positive
    ),
    setting!(
        "inference.quarantine",
        "How long a quarantined model is kept away from inference hosts; twice as long each further time, up to four hours.",
        inference.quarantine,
        period
    ),
    Setting {
        key: "store.artifact_grace",
        help: "How long an artifact that no version names is kept.",
        get: |config| Period(config.store.artifact_grace).to_string(),
        set: |config, text| {
            config.store.artifact_grace = period(text)?.duration();
            Ok(())
        },
    },
    setting!(
        "store.keep_versions",
        "Versions kept per function; older ones that no alias names are forgotten.",
        store.keep_versions,
        positive
    ),
    setting!(
        "logs.max_bytes",
        "Most bytes kept of one function's log lines; the oldest go first.",
        logs.max_bytes,
        |text: &str| {
            let size: ByteSize = parsed(text)?;
            if size >= ByteSize::kib(64) {
                Ok(size)
            } else {
                Err("at least 64KiB".to_owned())
            }
        }
    ),
    setting!(
        "logs.max_age",
        "How long a log line is kept at most.",
        logs.max_age,
        period
    ),
    Setting {
        key: "traces.endpoint",
        help: "Where spans go by OTLP, like http://collector:4318 (http) or http://collector:4317 (grpc); empty = no traces.",
        get: |config| config.traces.endpoint.clone().unwrap_or_default(),
        set: |config, text| {
            let usable =
                text.is_empty() || text.starts_with("http://") || text.starts_with("https://");
            if !usable {
                return Err("write it like http://127.0.0.1:4318".to_owned());
            }
            config.traces.endpoint = (!text.is_empty()).then(|| text.to_owned());
            Ok(())
        },
    },
    setting!(
        "traces.protocol",
        "How spans are sent: http (protobuf) or grpc.",
        traces.protocol,
        parsed
    ),
    setting!(
        "traces.ratio",
        "Share of invocations that are recorded, from 0 to 1.",
        traces.ratio,
        |text: &str| {
            let ratio: f64 = parsed(text)?;
            if (0.0..=1.0).contains(&ratio) {
                Ok(ratio)
            } else {
                Err("must be 0 to 1".to_owned())
            }
        }
    ),
    setting!(
        "traces.follow_caller",
        "Whether a caller that records its own part, as its traceparent says, has its invocations recorded. Turn it off for callers you do not trust.",
        traces.follow_caller,
        parsed::<bool>
    ),
];
