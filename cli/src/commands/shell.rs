//! `fnctl completions` and `man`: what a shell and `man` read.

use crate::app::App;
use crate::exit::{MissingError, usage};
use crate::{help, suggest};
use anyhow::Context;
use clap::Args;
use clap_mangen::Man;
use std::path::PathBuf;

#[derive(Args, Debug)]
#[command(
    after_help = "Commands, flags and their fixed values are completed; names of functions are not.\n\nInstall, for one user:\n  bash   fnctl completions bash > ~/.local/share/bash-completion/completions/fnctl   (needs the package bash-completion)\n  zsh    mkdir -p ~/.zfunc && fnctl completions zsh > ~/.zfunc/_fnctl   (with `fpath+=~/.zfunc; autoload -Uz compinit; compinit` in ~/.zshrc)\n  fish   fnctl completions fish > ~/.config/fish/completions/fnctl.fish\n\nExamples:\n  source <(fnctl completions bash)      # this shell only\n  source <(fnctl completions zsh)       # this shell only, after compinit\n  fnctl completions fish | source       # this shell only"
)]
pub(crate) struct CompletionsArgs {
    /// The shell.
    shell: clap_complete::Shell,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  fnctl man | man -l -\n  fnctl man deploy | man -l -\n  fnctl man --dir ~/.local/share/man/man1    # then: man fnctl-deploy"
)]
pub(crate) struct ManArgs {
    /// The command whose page is printed; fnctl's own without it.
    #[arg(value_name = "COMMAND", conflicts_with = "dir")]
    command: Vec<String>,
    /// Write the pages of all commands into this folder.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Prints a completion script.
pub(crate) fn completions(app: &App, args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut help::command(), "fnctl", &mut script);
    app.out.raw(&script)
}

/// Prints a man page, or writes them all.
pub(crate) fn man(app: &App, args: &ManArgs) -> anyhow::Result<()> {
    // `fnctl help` would bring a page for each command once more.
    let mut command = help::command().disable_help_subcommand(true);
    if let Some(folder) = &args.dir {
        std::fs::create_dir_all(folder)
            .and_then(|()| clap_mangen::generate_to(command, folder))
            .with_context(|| format!("man pages cannot be written to {}", folder.display()))?;
        return app
            .out
            .show(&serde_json::json!({ "folder": folder }), |page| {
                page.done(format!("man pages are in {}", folder.display()));
            });
    }
    command.build();
    let mut wanted = &command;
    for name in &args.command {
        wanted = wanted.find_subcommand(name).ok_or_else(|| {
            let names = wanted.get_subcommands().map(clap::Command::get_name);
            match suggest::nearest(name, names) {
                Some(near) => MissingError(format!(
                    "there is no command '{name}'; did you mean '{near}'?"
                ))
                .into(),
                None => usage(format!(
                    "there is no command '{name}'; `fnctl --help` lists them"
                )),
            }
        })?;
    }
    let mut text = Vec::new();
    Man::new(wanted.clone()).render(&mut text)?;
    app.out.raw(&text)
}
