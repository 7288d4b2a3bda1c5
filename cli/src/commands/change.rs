//! `fnctl rollback`, `alias` and `rm`.

use crate::app::App;
use crate::args::AliasArgs;
use crate::exit::usage;
use fnctl_core::FunctionName;
use serde_json::{Value, json};

pub(crate) fn rollback(app: &App, name: &FunctionName, to: Option<u32>) -> anyhow::Result<()> {
    let path = format!("functions/{name}/rollback");
    let answer: Value = app
        .client()?
        .json("POST", &path, Some(&json!({ "to": to })))?;
    let version = answer.get("version").cloned().unwrap_or_default();
    app.out.show(&answer, |page| {
        page.done(format!("{name} version {version} is live"))
    })
}

pub(crate) fn alias(app: &App, args: &AliasArgs) -> anyhow::Result<()> {
    let split = args.split.as_ref().map(split).transpose()?;
    let client = app.client()?;
    let path = format!("functions/{}/aliases/{}", args.name, args.alias);
    let Some(version) = args.to.filter(|_| !args.remove) else {
        let answer: Value = client.json("DELETE", &path, None)?;
        return app.out.show(&answer, |page| {
            page.done(format!("alias {} of {} is removed", args.alias, args.name))
        });
    };
    let answer: Value = client.json(
        "PUT",
        &path,
        Some(&json!({ "version": version, "split": split })),
    )?;
    app.out.show(&answer, |page| {
        page.done(format!(
            "{}:{} points to version {version}",
            args.name, args.alias
        ));
    })
}

/// `VERSION=PERCENT` as the API takes it.
fn split((version, percent): &(String, String)) -> anyhow::Result<Value> {
    let version: u32 = version
        .parse()
        .map_err(|_| usage("--split needs a version before the '='"))?;
    let percent: u8 = percent
        .parse()
        .map_err(|_| usage("--split needs a percentage from 1 to 99 behind the '='"))?;
    Ok(json!({ "version": version, "percent": percent }))
}

pub(crate) fn remove(app: &App, names: &[FunctionName]) -> anyhow::Result<()> {
    let client = app.client()?;
    let mut removed = Vec::new();
    let mut outcome = Ok(());
    for name in names {
        match client.json::<Value>("DELETE", &format!("functions/{name}"), None) {
            Ok(_) => removed.push(name),
            Err(error) => {
                outcome = Err(error);
                break;
            }
        }
    }
    // What is gone is told even if another could not be removed.
    if !removed.is_empty() {
        app.out.show(&json!({ "removed": removed }), |page| {
            for name in &removed {
                page.done(format!("{name} is removed"));
            }
        })?;
    }
    outcome
}
