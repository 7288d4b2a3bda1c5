//! The alert rules: promtool's checks and unit tests, and whether each can fire on what a real platform exports.

use super::evaluate;
use super::prometheus::{Programs, Prometheus, Rule, Window};
use crate::process;
use anyhow::{Context, bail, ensure};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

const FOLDER: &str = "deploy/prometheus";
/// Fires once the platform is gone; nothing else does then.
pub(crate) const DOWN: &str = "FnctlDown";
/// Not provoked: three restarts would throw away what the dashboards show. Its unit tests make it fire.
const NOT_PROVOKED: &[&str] = &["FnctlRestarts", "FnctlDiskLow"];

/// promtool's, and amtool's if it is here, on the files as they are.
pub(crate) fn check_files(programs: &Programs) -> anyhow::Result<()> {
    let promtool = programs.promtool.to_string_lossy().into_owned();
    let file = |name: &str| format!("{FOLDER}/{name}");
    for arguments in [
        ["check", "rules", &file("alerts.yml")],
        ["check", "config", &file("prometheus.yml")],
        ["test", "rules", &file("alerts.test.yml")],
    ] {
        println!("\n== promtool {}", arguments.join(" "));
        process::run(&promtool, &arguments)?;
    }
    if process::succeeds("amtool", &["--version"]) {
        println!("\n== amtool check-config {}", file("alertmanager.yml"));
        process::run("amtool", &["check-config", &file("alertmanager.yml")])?;
    } else {
        println!(
            "\n{} was not checked: amtool is not installed (Debian: prometheus-alertmanager)",
            file("alertmanager.yml")
        );
    }
    Ok(())
}

/// The rules without their patience, so that what would fire in minutes fires in seconds.
pub(crate) fn write_impatient(to: &Path) -> anyhow::Result<()> {
    let from = crate::root().join(FOLDER).join("alerts.yml");
    let text = std::fs::read_to_string(&from)
        .with_context(|| format!("{} cannot be read", from.display()))?;
    let lines: Vec<_> = text
        .lines()
        .map(|line| match line.trim_start().starts_with("for: ") {
            true => line.split("for: ").next().unwrap_or_default().to_owned() + "for: 0s",
            false => line.to_owned(),
        })
        .collect();
    std::fs::write(to, lines.join("\n") + "\n")?;
    Ok(())
}

/// Whether Prometheus can evaluate each rule, on metrics that exist, and each alert says where its runbook is.
pub(crate) fn check_rules(
    prometheus: &Prometheus,
    window: Window,
) -> anyhow::Result<(Vec<Rule>, Vec<String>)> {
    let page = std::fs::read_to_string(crate::root().join("docs/alerts.md"))?;
    let rules = prometheus.rules()?;
    ensure!(!rules.is_empty(), "Prometheus has loaded no rules");
    let mut problems = Vec::new();
    for rule in &rules {
        let mut say = |text: String| problems.push(format!("{}: {text}", rule.name));
        if let Some(error) = rule.error() {
            say(error.to_owned());
        }
        for problem in evaluate::unmatched(prometheus, &rule.expr, window) {
            say(problem.to_string());
        }
        if !rule.is_alert() {
            continue;
        }
        if !rule.labels.contains_key("severity") {
            say("no severity".to_owned());
        }
        for annotation in ["summary", "description"] {
            if !rule.annotations.contains_key(annotation) {
                say(format!("no {annotation}"));
            }
        }
        let runbook = format!("docs/alerts.md#{}", rule.name.to_ascii_lowercase());
        if rule.annotations.get("runbook_url") != Some(&runbook) {
            say(format!("runbook_url is not {runbook}"));
        }
        if !page.lines().any(|line| line == format!("## {}", rule.name)) {
            say("docs/alerts.md has no section on it".to_owned());
        }
    }
    Ok((rules, problems))
}

/// Waits until each alert that the load provokes fires, and reads what it says.
pub(crate) fn wait_for_load(prometheus: &Prometheus, rules: &[Rule]) -> anyhow::Result<usize> {
    let wanted: BTreeSet<&str> = rules
        .iter()
        .filter(|rule| rule.is_alert())
        .map(|rule| rule.name.as_str())
        .filter(|name| *name != DOWN && !NOT_PROVOKED.contains(name))
        .collect();
    wait_until_firing(prometheus, &wanted, Duration::from_secs(30))?;
    Ok(wanted.len())
}

/// Waits until every alert of these has fired.
pub(crate) fn wait_until_firing(
    prometheus: &Prometheus,
    wanted: &BTreeSet<&str>,
    patience: Duration,
) -> anyhow::Result<()> {
    let until = Instant::now() + patience;
    let mut missing = wanted.clone();
    loop {
        for alert in prometheus.alerts()? {
            let Some(name) = alert.firing() else { continue };
            missing.remove(name);
            for text in alert.annotations.values() {
                // What Prometheus writes where a template fails.
                if text.contains("<no value>") || text.contains("<error") {
                    bail!("{name} cannot write its text: {text}");
                }
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        if Instant::now() > until {
            bail!("the load provoked these alerts, but they did not fire: {missing:?}");
        }
        std::thread::park_timeout(Duration::from_millis(500));
    }
}
