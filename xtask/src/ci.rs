//! What CI runs, in order; the first failure ends it.

use crate::{gates, process, setup};
use std::process::Command;

pub(crate) fn run() -> anyhow::Result<()> {
    process::cargo(&["fmt", "--all", "--check"])?;
    gates::run()?;
    process::cargo(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ])?;
    println!("\n== cargo doc");
    process::check(
        Command::new("cargo")
            .args(["doc", "--workspace", "--no-deps", "--quiet"])
            .env("RUSTDOCFLAGS", "-D warnings")
            .current_dir(crate::root()),
    )?;
    println!("\n== cargo deny");
    let deny = setup::cargo_deny()?.display().to_string();
    // The advisory database is fetched from a server that CI may not reach: docs/adr/0006.
    process::run(
        &deny,
        &[
            "--all-features",
            "check",
            "--hide-inclusion-graph",
            "bans",
            "licenses",
            "sources",
        ],
    )?;
    crate::test(&[])
}
