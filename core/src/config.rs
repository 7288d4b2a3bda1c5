//! What a user may say about a function: `function.toml` without its paths, or the flags of `fnctl deploy`.

use crate::ids::Digest;
use crate::scaling::Percent;
use crate::schedule::ScheduleWindow;
use crate::units::{ByteSize, Period};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::num::NonZeroU32;

/// Whether a sandbox serves one request or many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// One sandbox serves one request after another.
    #[default]
    Instance,
    /// Every request has a fresh sandbox; the models stay resident.
    Request,
}

/// How long idle instances are kept, and whether one is started ahead of demand: docs/policies.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeepAlivePolicy {
    /// For `keep_alive`.
    Fixed,
    /// By the function's idle times in bins of a minute.
    Histogram,
    /// While it is expected to save more than it costs.
    Adaptive,
}

/// Whether a function's models share an inference host with those of other functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InferenceIsolation {
    /// One host for all functions that say so.
    #[default]
    Shared,
    /// A host of the function's own.
    Dedicated,
}

/// A token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// Tokens added per second.
    pub requests_per_second: NonZeroU32,
    /// Tokens the bucket holds.
    pub burst: NonZeroU32,
}

/// The limits, scaling and environment of one version of a function.
///
/// Unknown keys are an error: a misspelt limit must not silently be no limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FunctionConfig {
    /// For people.
    pub description: String,
    /// Most linear memory of one sandbox.
    pub memory: ByteSize,
    /// Most wall time of one invocation, from admission to the last byte of the answer.
    pub timeout: Period,
    /// Most CPU time of the guest in one invocation, in steps of the epoch tick; inference is not counted.
    pub cpu: Period,
    /// Most wall time of `init`.
    pub start_timeout: Period,
    /// Most invocations in flight over all versions.
    pub concurrency: NonZeroU32,
    /// Most invocations waiting for one of those places.
    pub queue_size: u32,
    /// Most wall time in the queue.
    pub queue_timeout: Period,
    /// Part of the platform's concurrency that is this function's alone, and the most it gets; 0 turns it off, unset
    /// shares what nobody reserved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserved_concurrency: Option<u32>,
    /// Most requests that one instance serves at the same time.
    pub instance_concurrency: NonZeroU32,
    /// Instances kept initialised whatever the traffic.
    pub provisioned: u32,
    /// Instances that keep-alive leaves once the function has been called.
    pub min_instances: u32,
    /// Most instances of a version; unset = as many as `concurrency` needs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_instances: Option<NonZeroU32>,
    /// Times at which more instances are kept.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub schedule: Vec<ScheduleWindow>,
    /// How much of an instance's concurrency is to be in use on average; more than that starts instances ahead of
    /// demand. Unset = instances are started for requests that wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_concurrency: Option<Percent>,
    /// Over how long the load is averaged.
    pub stable_window: Period,
    /// Over how long a sudden load is averaged.
    pub panic_window: Period,
    /// Load in the panic window, as a percentage of what the instances are there for, at which panic begins.
    pub panic_threshold: Percent,
    /// How long the load must be lower before fewer instances are wanted.
    pub scale_down_delay: Period,
    /// How long an idle instance is kept.
    pub keep_alive: Period,
    /// What decides how long instead; unset = `scheduler.keep_alive_policy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_alive_policy: Option<KeepAlivePolicy>,
    /// Whether sandboxes are reused.
    pub isolation: Isolation,
    /// Whether the models have an inference host of their own.
    pub inference_isolation: InferenceIsolation,
    /// Invocations after which a sandbox is replaced; unset = never for that reason.
    pub max_uses: Option<NonZeroU32>,
    /// Limits the rate of invocations; unset = no limit.
    pub rate_limit: Option<RateLimit>,
    /// Most bytes of a request body.
    pub request_body: ByteSize,
    /// Most bytes of a response body.
    pub response_body: ByteSize,
    /// Most bytes of guest output kept per invocation.
    pub log_bytes: ByteSize,
    /// Most elements of each Wasm table.
    pub table_elements: u32,
    /// Most bytes of a model that the guest passes to `load` itself; `0B` forbids it.
    pub guest_model: ByteSize,
    /// Environment variables of the guest.
    pub env: BTreeMap<String, String>,
    /// Hosts that outgoing HTTP may reach: `api.example.com`, `*.example.com`, or either with `:port`.
    pub allow_hosts: Vec<String>,
}

impl Default for FunctionConfig {
    fn default() -> Self {
        Self {
            description: String::new(),
            memory: ByteSize::mib(128),
            timeout: Period::secs(30),
            cpu: Period::secs(10),
            start_timeout: Period::secs(30),
            concurrency: NonZeroU32::MIN.saturating_add(49),
            queue_size: 500,
            queue_timeout: Period::secs(10),
            reserved_concurrency: None,
            instance_concurrency: NonZeroU32::MIN,
            provisioned: 0,
            min_instances: 0,
            max_instances: None,
            schedule: Vec::new(),
            target_concurrency: None,
            stable_window: Period::secs(60),
            panic_window: Period::secs(6),
            panic_threshold: Percent(200),
            scale_down_delay: Period::secs(0),
            keep_alive: Period::secs(60),
            keep_alive_policy: None,
            isolation: Isolation::Instance,
            inference_isolation: InferenceIsolation::Shared,
            max_uses: None,
            rate_limit: None,
            request_body: ByteSize::mib(16),
            response_body: ByteSize::mib(64),
            log_bytes: ByteSize::kib(64),
            table_elements: 20_000,
            guest_model: ByteSize(0),
            env: BTreeMap::new(),
            allow_hosts: Vec::new(),
        }
    }
}

impl FunctionConfig {
    /// Largest concurrency of one function.
    pub const MAX_CONCURRENCY: u32 = 1_000;
    /// Longest queue of one function.
    pub const MAX_QUEUE: u32 = 10_000;
    /// Most bytes of environment, names and values together.
    pub const MAX_ENV_BYTES: usize = 32 << 10;

    /// Every rule this configuration breaks, each with the key to change. `max_memory` is the platform's largest
    /// sandbox.
    pub fn problems(&self, max_memory: ByteSize) -> Vec<String> {
        let mut problems = Vec::new();
        let mut require = |holds: bool, problem: String| {
            if !holds {
                problems.push(problem);
            }
        };
        require(
            self.memory.bytes() >= 1 << 16 && self.memory <= max_memory,
            format!(
                "memory: {} is outside 64KiB..{max_memory} (the upper end is worker.max_memory)",
                self.memory
            ),
        );
        for (key, value, max) in [
            ("timeout", self.timeout, Period::secs(15 * 60)),
            ("cpu", self.cpu, Period::secs(15 * 60)),
            ("start_timeout", self.start_timeout, Period::secs(15 * 60)),
            ("queue_timeout", self.queue_timeout, Period::secs(15 * 60)),
        ] {
            require(
                value > Period::secs(0) && value <= max,
                format!("{key}: {value} must be more than 0s and at most {max}"),
            );
        }
        require(
            self.concurrency.get() <= Self::MAX_CONCURRENCY,
            format!(
                "concurrency: {} must be at most {}",
                self.concurrency,
                Self::MAX_CONCURRENCY
            ),
        );
        require(
            self.queue_size <= Self::MAX_QUEUE,
            format!(
                "queue_size: {} must be at most {}",
                self.queue_size,
                Self::MAX_QUEUE
            ),
        );
        require(
            self.request_body <= ByteSize::mib(1024) && self.response_body <= ByteSize::mib(1024),
            "request_body, response_body: at most 1GiB each".to_owned(),
        );
        require(
            self.log_bytes <= ByteSize::mib(16),
            format!("log_bytes: {} must be at most 16MiB", self.log_bytes),
        );
        require(
            (1..=1_000_000).contains(&self.table_elements),
            format!(
                "table_elements: {} is outside 1..1000000",
                self.table_elements
            ),
        );
        require(
            self.description.len() <= 1024,
            "description: at most 1024 bytes".to_owned(),
        );
        let env_bytes: usize = self
            .env
            .iter()
            .map(|(name, value)| name.len() + value.len() + 2)
            .sum();
        require(
            env_bytes <= Self::MAX_ENV_BYTES,
            format!(
                "env: {env_bytes} bytes are more than {}",
                Self::MAX_ENV_BYTES
            ),
        );
        for (name, value) in &self.env {
            require(
                !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0'),
                format!("env: '{}' is not a usable variable", name.escape_debug()),
            );
        }
        require(
            self.allow_hosts.len() <= 100,
            "allow_hosts: at most 100 entries".to_owned(),
        );
        for host in &self.allow_hosts {
            require(
                is_host_pattern(host),
                format!(
                    "allow_hosts: '{}' is no host; write it like \"api.example.com\", \"*.example.com\" or \"localhost:9000\"",
                    host.escape_debug()
                ),
            );
        }
        self.scaling_problems(|problem| problems.push(problem));
        problems
    }
}

fn is_host_pattern(text: &str) -> bool {
    let (host, port) = text
        .rsplit_once(':')
        .map_or((text, None), |(host, port)| (host, Some(port)));
    let host = host.strip_prefix("*.").unwrap_or(host);
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    !host.is_empty()
        && host.len() <= 253
        && host.bytes().all(plain)
        && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// A declared model of a version, as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFile {
    /// The model's bytes.
    pub digest: Digest,
    /// Their number.
    pub size: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(
            FunctionConfig::default().problems(ByteSize::mib(512)),
            Vec::<String>::new()
        );
    }

    #[test]
    fn every_problem_is_reported_at_once_with_its_key() {
        let config = FunctionConfig {
            memory: ByteSize::mib(4096),
            timeout: Period::secs(0),
            provisioned: 51,
            allow_hosts: vec!["http://example.com/".into()],
            env: BTreeMap::from([("A=B".into(), "x".into())]),
            ..FunctionConfig::default()
        };
        let problems = config.problems(ByteSize::mib(512));
        for key in [
            "memory:",
            "timeout:",
            "provisioned:",
            "allow_hosts:",
            "env:",
        ] {
            assert!(
                problems.iter().any(|problem| problem.starts_with(key)),
                "{key} in {problems:?}"
            );
        }
        assert_eq!(problems.len(), 5);
    }

    #[test]
    fn an_unknown_key_is_an_error() {
        let error = serde_json_like("{\"memroy\":\"1MiB\"}");
        assert!(error.contains("unknown field `memroy`"), "{error}");
    }

    fn serde_json_like(text: &str) -> String {
        serde_json::from_str::<FunctionConfig>(text)
            .unwrap_err()
            .to_string()
    }
}
