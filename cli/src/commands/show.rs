//! `fnctl ls`, `get` and `versions`.

use crate::app::App;
use crate::output::{Table, Tone};
use fnctl_core::FunctionName;
use serde_json::Value;
use std::time::{SystemTime, UNIX_EPOCH};

fn text(value: &Value, key: &str) -> String {
    match value.get(key) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => "-".to_owned(),
        Some(Value::Array(items)) if items.is_empty() => "-".to_owned(),
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| {
                item.as_str()
                    .map_or_else(|| item.to_string(), str::to_owned)
            })
            .collect::<Vec<_>>()
            .join(", "),
        Some(other) => other.to_string(),
    }
}

/// The columns of `ls`: header, key of the API.
const COLUMNS: [(&str, &str); 8] = [
    ("NAME", "name"),
    ("LIVE", "live"),
    ("VERSIONS", "versions"),
    ("INSTANCES", "instances"),
    ("BUSY", "busy"),
    ("MEMORY", "memory"),
    ("KEEP-ALIVE", "keep_alive"),
    ("MODELS", "models"),
];

pub(crate) fn list(app: &App) -> anyhow::Result<()> {
    let functions: Vec<Value> = app.client()?.json("GET", "functions", None)?;
    app.out.show(&functions, |page| {
        if functions.is_empty() {
            page.line("no functions yet; deploy one with `fnctl deploy examples/echo`");
            return;
        }
        let mut table = Table::new(&COLUMNS.map(|(header, _)| header));
        for function in &functions {
            table.row(COLUMNS.map(|(_, key)| {
                let value = text(function, key);
                let tone = match key {
                    "name" => Tone::Strong,
                    "instances" | "busy" if value != "0" => Tone::Good,
                    _ => Tone::Plain,
                };
                (value, tone)
            }));
        }
        page.table(table);
    })
}

pub(crate) fn get(app: &App, name: &FunctionName) -> anyhow::Result<()> {
    let function: Value = app
        .client()?
        .json("GET", &format!("functions/{name}"), None)?;
    app.out
        .show(&function, |page| page.fields(details(&function)))
}

/// A function as people read it.
fn details(function: &Value) -> Vec<(&'static str, String)> {
    let version = function.get("version").cloned().unwrap_or_default();
    let config = version.get("config").cloned().unwrap_or_default();
    let mut lines = vec![
        ("name", text(function, "name")),
        ("live version", text(function, "live")),
        ("deployed", age(&version)),
        ("artifact", text(&version, "artifact")),
    ];
    if let Some(models) = version.get("models").and_then(Value::as_object) {
        for (name, model) in models {
            let facts = format!(
                "{name} ({} bytes, {})",
                text(model, "size"),
                text(model, "digest")
            );
            lines.push(("model", format!("{facts}{}", quarantine(model))));
        }
    }
    for key in [
        "memory",
        "timeout",
        "cpu",
        "concurrency",
        "queue_size",
        "queue_timeout",
        "provisioned",
        "min_instances",
        "max_instances",
        "reserved_concurrency",
        "target_concurrency",
        "keep_alive",
        "isolation",
        "inference_isolation",
    ] {
        lines.push((key, text(&config, key)));
    }
    if let Some(aliases) = function.get("aliases").and_then(Value::as_object) {
        for (alias, to) in aliases {
            let split = to.get("split").map(|split| {
                format!(
                    ", {}% to version {}",
                    text(split, "percent"),
                    text(split, "version")
                )
            });
            let line = format!(
                "{alias} -> version {}{}",
                text(to, "version"),
                split.unwrap_or_default()
            );
            lines.push(("alias", line));
        }
    }
    let instances = function
        .get("instances")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let count = |state: &str| {
        instances
            .iter()
            .filter(|instance| instance.get("state").and_then(Value::as_str) == Some(state))
            .count()
    };
    lines.push((
        "instances",
        format!(
            "{} idle, {} busy, {} starting",
            count("idle"),
            count("busy"),
            count("starting")
        ),
    ));
    let wanted = config.get("schedule").and_then(Value::as_array);
    for window in wanted.into_iter().flatten() {
        lines.push(("schedule", schedule(window)));
    }
    // A node full of instances of one function is no reason to print hundreds of lines.
    lines.extend(
        instances
            .iter()
            .take(SHOWN)
            .map(|one| ("instance", instance(one))),
    );
    if instances.len() > SHOWN {
        let more = format!("and {} more; --json shows all", instances.len() - SHOWN);
        lines.push(("instance", more));
    }
    lines
}

/// Why a model does not compute now, if it does not.
fn quarantine(model: &Value) -> String {
    let Some(quarantine) = model.get("quarantine") else {
        return String::new();
    };
    let seconds = quarantine
        .get("for_ms")
        .and_then(Value::as_u64)
        .map_or(0, |ms| ms.div_ceil(1000));
    format!(
        ": IN QUARANTINE, it killed its inference host {} times; tried again in {seconds}s, or deploy it again",
        text(quarantine, "deaths")
    )
}

/// Most instances that are printed for people.
const SHOWN: usize = 20;

/// An instance: which, in which state, and why it exists.
fn instance(one: &Value) -> String {
    let id = match one.get("id").and_then(Value::as_u64) {
        None | Some(0) => "-".to_owned(),
        Some(id) => id.to_string(),
    };
    format!(
        "{id} (version {}): {}, {} uses; {}",
        text(one, "version"),
        text(one, "state"),
        text(one, "uses"),
        text(one, "why")
    )
}

fn schedule(window: &Value) -> String {
    format!(
        "{} {} for {}: provisioned {}, min_instances {}",
        text(window, "cron"),
        text(window, "time_zone"),
        text(window, "duration"),
        text(window, "provisioned"),
        text(window, "min_instances")
    )
}

pub(crate) fn versions(app: &App, name: &FunctionName) -> anyhow::Result<()> {
    let versions: Vec<Value> =
        app.client()?
            .json("GET", &format!("functions/{name}/versions"), None)?;
    app.out.show(&versions, |page| {
        let mut table = Table::new(&["VERSION", "ALIASES", "DEPLOYED", "ARTIFACT", "MODELS"]);
        for version in &versions {
            let artifact: String = text(version, "artifact").chars().take(12).collect();
            let models = version.get("models").and_then(Value::as_object);
            let models: Vec<_> = models
                .into_iter()
                .flat_map(serde_json::Map::keys)
                .cloned()
                .collect();
            let models = if models.is_empty() {
                "-".to_owned()
            } else {
                models.join(", ")
            };
            let is_live = version.get("live").and_then(Value::as_bool) == Some(true);
            let tone = if is_live { Tone::Good } else { Tone::Plain };
            table.row([
                (text(version, "version"), tone),
                (text(version, "aliases"), tone),
                (age(version), Tone::Plain),
                (artifact, Tone::Dim),
                (models, Tone::Plain),
            ]);
        }
        page.table(table);
    })
}

/// How long ago a version was deployed.
fn age(version: &Value) -> String {
    let Some(created) = version.get("created_ms").and_then(Value::as_u64) else {
        return "-".to_owned();
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
    let seconds = now.saturating_sub(created) / 1000;
    match seconds {
        0..60 => format!("{seconds}s ago"),
        60..3600 => format!("{}m ago", seconds / 60),
        3600..172_800 => format!("{}h ago", seconds / 3600),
        _ => format!("{}d ago", seconds / 86_400),
    }
}
