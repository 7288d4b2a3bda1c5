//! The table of a run.

use super::load::Figure;
use anyhow::Context;
use serde::Serialize;
use std::path::Path;

/// One measured row.
#[derive(Serialize)]
struct Row {
    what: String,
    value: String,
    peer: String,
    ratio: String,
    reach: String,
}

/// All rows of a run.
#[derive(Default)]
pub(crate) struct Report(Vec<Row>);

impl Report {
    fn push(&mut self, what: &str, value: String, peer: String, ratio: String, reach: &str) {
        println!("{what:<66} {value:>34} {peer:>46} {ratio:>6}");
        self.0.push(Row {
            what: what.to_owned(),
            value,
            peer,
            ratio,
            reach: reach.to_owned(),
        });
    }

    pub(crate) fn throughput(
        &mut self,
        what: &str,
        (ours, theirs): &(Figure, Option<Figure>),
        peer: &str,
    ) {
        let show = |figure: &Figure| {
            format!(
                "{:.0}/s, p50 {:.2} p99 {:.2} ms, {:.3} ms CPU",
                figure.per_second, figure.p50_ms, figure.p99_ms, figure.cpu_ms
            )
        };
        let their = theirs
            .as_ref()
            .map(|theirs| format!("{peer}: {}", show(theirs)))
            .unwrap_or_default();
        let ratio = theirs
            .as_ref()
            .map(|theirs| format!("{:.2}", ours.per_second / theirs.per_second))
            .unwrap_or_default();
        self.push(what, show(ours), their, ratio, "");
    }

    pub(crate) fn latency(&mut self, what: &str, ms: f64, reach: &str) {
        self.push(
            what,
            format!("{ms:.3} ms"),
            String::new(),
            String::new(),
            reach,
        );
    }

    pub(crate) fn memory(&mut self, what: &str, megabytes: f64, reach: &str) {
        self.push(
            what,
            format!("{megabytes:.1} MB"),
            String::new(),
            String::new(),
            reach,
        );
    }

    pub(crate) fn count(&mut self, what: &str, value: f64, unit: &str, reach: &str) {
        self.push(
            what,
            format!("{value:.0} {unit}"),
            String::new(),
            String::new(),
            reach,
        );
    }

    pub(crate) fn ratio(&mut self, what: &str, ratio: f64, reach: &str) {
        self.push(
            what,
            format!("{ratio:.2}"),
            String::new(),
            String::new(),
            reach,
        );
    }

    /// Prints the table as Markdown.
    pub(crate) fn print(&self) {
        println!("\n| what | fnctl | peer | ratio | to reach |\n|---|---|---|---|---|");
        for row in &self.0 {
            println!(
                "| {} | {} | {} | {} | {} |",
                row.what.trim(),
                row.value,
                row.peer,
                row.ratio,
                row.reach
            );
        }
    }

    /// Keeps the table as JSON.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(path.parent().context("a path without a folder")?)?;
        std::fs::write(path, serde_json::to_string_pretty(&self.0)? + "\n")?;
        println!("\nkept in {}", path.display());
        Ok(())
    }
}
