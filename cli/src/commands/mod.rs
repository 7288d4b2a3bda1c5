//! One file per group of commands.

pub(crate) mod change;
pub(crate) mod config;
pub(crate) mod deploy;
pub(crate) mod invoke;
pub(crate) mod serve;
pub(crate) mod show;
pub(crate) mod status;

use crate::args::Cli;
use clap::CommandFactory;

/// Prints a completion script.
pub(crate) fn completions(shell: clap_complete::Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "fnctl", &mut script);
    crate::output::write(&script)
}
