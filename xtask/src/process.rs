//! Running other programs, with errors that say which.

use anyhow::{Context, ensure};
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs a program in the repository's root and waits for it.
pub(crate) fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    check(
        Command::new(program)
            .args(arguments)
            .current_dir(crate::root()),
    )
}

/// Runs cargo.
pub(crate) fn cargo(arguments: &[&str]) -> anyhow::Result<()> {
    println!("\n== cargo {}", arguments.join(" "));
    run("cargo", arguments)
}

/// Runs a prepared command and waits for it.
pub(crate) fn check(command: &mut Command) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command
        .status()
        .with_context(|| format!("{name} cannot be started; is it installed?"))?;
    ensure!(status.success(), "{name} failed: {status}");
    Ok(())
}

/// Whether a program runs and succeeds; its output is dropped.
pub(crate) fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(crate::root())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// What a program prints.
pub(crate) fn output(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(crate::root())
        .output()
        .with_context(|| format!("{program} cannot be started; is it installed?"))?;
    ensure!(
        output.status.success(),
        "{program} failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Copies a file over one that may be open or running.
pub(crate) fn install(from: &Path, to: &Path) -> anyhow::Result<()> {
    let temporary = to.with_extension("part");
    std::fs::copy(from, &temporary)
        .with_context(|| format!("{} cannot be copied", from.display()))?;
    std::fs::rename(&temporary, to).with_context(|| format!("{} cannot be written", to.display()))
}
