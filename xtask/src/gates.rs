//! The house style's rules that a machine can check.

use crate::process;
use anyhow::bail;

/// Most lines of a file.
const MAX_LINES: usize = 600;
const MAX_LINES_TESTS: usize = 900;

pub(crate) fn run() -> anyhow::Result<()> {
    println!("\n== gates");
    let mut problems = Vec::new();
    let files = process::output(
        "git",
        &["ls-files", "--cached", "--others", "--exclude-standard"],
    )?;
    for name in files.lines() {
        let path = crate::root().join(name);
        if name.ends_with(".rs") {
            let Ok(text) = std::fs::read_to_string(&path) else {
                continue;
            };
            check_source(name, &text, &mut problems);
        }
        if let Ok(metadata) = path.metadata()
            && metadata.len() > 4 << 20
        {
            problems.push(format!(
                "{name}: {} bytes; files over 4 MiB are fetched, not committed",
                metadata.len()
            ));
        }
    }
    if problems.is_empty() {
        println!("every gate holds");
        return Ok(());
    }
    bail!(
        "{} problem(s):\n  {}",
        problems.len(),
        problems.join("\n  ")
    )
}

fn check_source(name: &str, text: &str, problems: &mut Vec<String>) {
    let lines = text.lines().count();
    let limit = if name.starts_with("tests/") {
        MAX_LINES_TESTS
    } else {
        MAX_LINES
    };
    if lines > limit {
        problems.push(format!(
            "{name}: {lines} lines, more than {limit}; split it by idea"
        ));
    }
    let is_crate_code = !name.starts_with("examples/") && !name.starts_with("tests/");
    if is_crate_code && !text.starts_with("//!") {
        problems.push(format!("{name}: begins without //! that says what it owns"));
    }
    // Written in two pieces, so that this file does not find itself.
    for forbidden in [
        concat!("#[", "ignore"),
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
    ] {
        if text.contains(forbidden) {
            problems.push(format!("{name}: contains {forbidden}"));
        }
    }
    let may_be_unsafe = ["worker/", "inference/", "tests/fixtures/guests/"];
    if text.contains(concat!("unsafe", " {"))
        && !may_be_unsafe.iter().any(|folder| name.starts_with(folder))
    {
        problems.push(format!(
            "{name}: unsafe code belongs in worker and inference"
        ));
    }
    for (crate_name, owner) in [
        ("sled::", "store/"),
        ("wasmtime::", "worker/"),
        ("ort::", "inference/"),
        ("hyper::", "gateway/"),
    ] {
        let uses = text.lines().any(|line| {
            let code = line.trim_start();
            !code.starts_with("//")
                && code.match_indices(crate_name).any(|(at, _)| {
                    !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
                })
        });
        let is_allowed = name.starts_with(owner) || !is_crate_code || name.starts_with("xtask/");
        if uses && !is_allowed {
            problems.push(format!("{name}: names {crate_name} which only {owner} may"));
        }
    }
}
