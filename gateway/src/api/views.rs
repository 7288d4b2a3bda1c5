//! What the admin API shows of functions and versions.

use crate::Shared;
use fnctl_core::config::FunctionConfig;
use fnctl_core::hosts::InferenceStatus;
use fnctl_core::ids::{AliasName, Digest, FunctionName, VersionNumber};
use fnctl_core::ports::InstanceStatus;
use fnctl_core::version::{Alias, Function, Version};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

/// A row of `fnctl ls`.
#[derive(Serialize)]
pub(crate) struct Summary {
    name: FunctionName,
    live: Option<VersionNumber>,
    latest: Option<VersionNumber>,
    versions: usize,
    models: Vec<String>,
    instances: usize,
    busy: usize,
    memory: String,
    keep_alive: String,
    provisioned: u32,
    description: String,
}

/// Everything about one function.
#[derive(Serialize)]
pub(crate) struct Details {
    name: FunctionName,
    live: Option<VersionNumber>,
    aliases: BTreeMap<AliasName, Alias>,
    version: Option<VersionView>,
    versions: Vec<VersionNumber>,
    instances: Vec<InstanceStatus>,
}

/// One version.
#[derive(Serialize)]
pub(crate) struct VersionView {
    version: VersionNumber,
    live: bool,
    aliases: Vec<AliasName>,
    artifact: Digest,
    models: BTreeMap<String, ModelView>,
    created_ms: u64,
    config: FunctionConfig,
}

#[derive(Serialize)]
struct ModelView {
    digest: Digest,
    size: u64,
    /// Why it does not compute now.
    #[serde(skip_serializing_if = "Option::is_none")]
    quarantine: Option<QuarantineView>,
}

#[derive(Serialize)]
struct QuarantineView {
    deaths: u32,
    for_ms: u64,
}

/// The platform.
#[derive(Serialize)]
pub(crate) struct Status {
    version: &'static str,
    functions: usize,
    draining: bool,
}

fn live(function: &Function) -> Option<VersionNumber> {
    function.live().map(|alias| alias.version)
}

pub(crate) fn summary(shared: &Shared, function: &Function) -> Summary {
    let version = live(function).and_then(|number| function.versions.get(&number));
    let config = version.map(|version| &version.config);
    let instances = shared.backend.invoker.status(&function.name);
    Summary {
        name: function.name.clone(),
        live: live(function),
        latest: function.latest().map(|version| version.number),
        versions: function.versions.len(),
        models: version
            .map(|version| version.models.keys().cloned().collect())
            .unwrap_or_default(),
        instances: instances.len(),
        busy: instances
            .iter()
            .filter(|instance| instance.state == "busy")
            .count(),
        memory: config
            .map(|config| config.memory.to_string())
            .unwrap_or_default(),
        keep_alive: config
            .map(|config| config.keep_alive.to_string())
            .unwrap_or_default(),
        provisioned: config.map_or(0, |config| config.provisioned),
        description: config
            .map(|config| config.description.clone())
            .unwrap_or_default(),
    }
}

pub(crate) fn details(shared: &Shared, function: &Function) -> Details {
    let version = live(function).and_then(|number| function.versions.get(&number));
    let inference = shared.backend.inference.status();
    Details {
        name: function.name.clone(),
        live: live(function),
        aliases: function.aliases.clone(),
        version: version.map(|version| view(&inference, function, version)),
        versions: function.versions.keys().copied().collect(),
        instances: shared.backend.invoker.status(&function.name),
    }
}

pub(crate) fn versions(shared: &Shared, function: &Function) -> Vec<VersionView> {
    let inference = shared.backend.inference.status();
    function
        .versions
        .values()
        .rev()
        .map(|version| view(&inference, function, version))
        .collect()
}

fn view(inference: &InferenceStatus, function: &Function, version: &Version) -> VersionView {
    let names = |alias: &Alias| {
        alias.version == version.number
            || alias
                .split
                .is_some_and(|split| split.version == version.number)
    };
    VersionView {
        version: version.number,
        live: live(function) == Some(version.number),
        aliases: function
            .aliases
            .iter()
            .filter(|(_, alias)| names(alias))
            .map(|(name, _)| name.clone())
            .collect(),
        artifact: version.artifact,
        models: version
            .models
            .iter()
            .map(|(name, model)| {
                let quarantine = inference.quarantine_of(
                    &model.digest,
                    &function.name,
                    version.config.inference_isolation,
                );
                let view = ModelView {
                    digest: model.digest,
                    size: model.size,
                    quarantine: quarantine.map(|quarantine| QuarantineView {
                        deaths: quarantine.deaths,
                        for_ms: quarantine.for_ms,
                    }),
                };
                (name.clone(), view)
            })
            .collect(),
        created_ms: version.created_ms,
        config: version.config.clone(),
    }
}

pub(crate) fn status(shared: &Shared) -> Status {
    Status {
        version: env!("CARGO_PKG_VERSION"),
        functions: shared.backend.functions.functions(None).len(),
        draining: shared.draining.load(Ordering::SeqCst),
    }
}
