//! `fnctl rollback`, `alias` and `rm`.

use crate::args::{AliasArgs, Connection};
use crate::client::Client;
use crate::output;
use anyhow::Context;
use serde_json::{Value, json};

pub(crate) fn rollback(connection: &Connection, name: &str, to: Option<u32>) -> anyhow::Result<()> {
    let body = json!({ "to": to });
    let answer: Value =
        Client::new(connection).json("POST", &format!("functions/{name}/rollback"), Some(&body))?;
    let version = answer.get("version").cloned().unwrap_or_default();
    output::line(format!("{name} version {version} is live"))
}

pub(crate) fn alias(connection: &Connection, args: &AliasArgs) -> anyhow::Result<()> {
    let client = Client::new(connection);
    let path = format!("functions/{}/aliases/{}", args.name, args.alias);
    let Some(version) = args.to.filter(|_| !args.remove) else {
        let _answer: Value = client.json("DELETE", &path, None)?;
        return output::line(format!("alias {} of {} is removed", args.alias, args.name));
    };
    let split = args
        .split
        .as_ref()
        .map(|(version, percent)| -> anyhow::Result<Value> {
            let version: u32 = version
                .parse()
                .context("--split needs a version before the '='")?;
            let percent: u8 = percent
                .parse()
                .context("--split needs a percentage from 1 to 99 behind the '='")?;
            Ok(json!({ "version": version, "percent": percent }))
        })
        .transpose()?;
    let _answer: Value = client.json(
        "PUT",
        &path,
        Some(&json!({ "version": version, "split": split })),
    )?;
    output::line(format!(
        "{}:{} points to version {version}",
        args.name, args.alias
    ))
}

pub(crate) fn remove(connection: &Connection, names: &[String]) -> anyhow::Result<()> {
    let client = Client::new(connection);
    for name in names {
        let _answer: Value = client.json("DELETE", &format!("functions/{name}"), None)?;
        output::line(format!("{name} is removed"))?;
    }
    Ok(())
}
