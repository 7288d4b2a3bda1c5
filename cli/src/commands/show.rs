//! `fnctl ls`, `get` and `versions`.

use crate::args::Connection;
use crate::client::Client;
use crate::output;
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

pub(crate) fn list(connection: &Connection, json: bool) -> anyhow::Result<()> {
    let functions: Vec<Value> = Client::new(connection).json("GET", "functions", None)?;
    if json {
        return output::json(&functions);
    }
    if functions.is_empty() {
        return output::line("no functions yet; deploy one with `fnctl deploy examples/echo`");
    }
    let rows = functions.iter().map(|function| {
        [
            "name",
            "live",
            "versions",
            "instances",
            "busy",
            "memory",
            "keep_alive",
            "models",
        ]
        .iter()
        .map(|key| text(function, key))
        .collect()
    });
    output::table(
        &[
            "NAME",
            "LIVE",
            "VERSIONS",
            "INSTANCES",
            "BUSY",
            "MEMORY",
            "KEEP-ALIVE",
            "MODELS",
        ],
        rows.collect(),
    )
}

pub(crate) fn get(connection: &Connection, name: &str, json: bool) -> anyhow::Result<()> {
    let function: Value =
        Client::new(connection).json("GET", &format!("functions/{name}"), None)?;
    if json {
        return output::json(&function);
    }
    let version = function.get("version").cloned().unwrap_or_default();
    let config = version.get("config").cloned().unwrap_or_default();
    let mut lines = vec![
        ("name", text(&function, "name")),
        ("live version", text(&function, "live")),
        ("deployed", age(&version)),
        ("artifact", text(&version, "artifact")),
    ];
    if let Some(models) = version.get("models").and_then(Value::as_object) {
        for (name, model) in models {
            lines.push((
                "model",
                format!(
                    "{name} ({} bytes, {})",
                    text(model, "size"),
                    text(model, "digest")
                ),
            ));
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
        "keep_alive",
        "isolation",
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
            lines.push((
                "alias",
                format!(
                    "{alias} -> version {}{}",
                    text(to, "version"),
                    split.unwrap_or_default()
                ),
            ));
        }
    }
    let instances = function
        .get("instances")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let state = |name: &str| {
        instances
            .iter()
            .filter(|instance| instance.get("state").and_then(Value::as_str) == Some(name))
            .count()
    };
    lines.push((
        "instances",
        format!(
            "{} idle, {} busy, {} starting",
            state("idle"),
            state("busy"),
            state("starting")
        ),
    ));
    for (name, value) in lines {
        output::line(format!("{name:<14} {value}"))?;
    }
    Ok(())
}

pub(crate) fn versions(connection: &Connection, name: &str, json: bool) -> anyhow::Result<()> {
    let versions: Vec<Value> =
        Client::new(connection).json("GET", &format!("functions/{name}/versions"), None)?;
    if json {
        return output::json(&versions);
    }
    let rows = versions.iter().map(|version| {
        let artifact: String = text(version, "artifact").chars().take(12).collect();
        let models = version
            .get("models")
            .and_then(Value::as_object)
            .map(|models| models.keys().cloned().collect::<Vec<_>>().join(", "));
        vec![
            text(version, "version"),
            text(version, "aliases"),
            age(version),
            artifact,
            models
                .filter(|text| !text.is_empty())
                .unwrap_or_else(|| "-".into()),
        ]
    });
    output::table(
        &["VERSION", "ALIASES", "DEPLOYED", "ARTIFACT", "MODELS"],
        rows.collect(),
    )
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
