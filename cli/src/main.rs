//! The `fnctl` command. `serve` starts a platform; every other command talks to a running one over HTTP.

mod args;
mod client;
mod commands;
mod function_file;
mod logging;
mod output;
mod upload;

use args::{Cli, Command};
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Serve(serve) => commands::serve::run(&serve),
        Command::Config(config) => commands::config::run(&config),
        Command::Status(status) => commands::status::run(&cli.connection, &status),
        Command::Token => commands::status::token(&cli.connection),
        Command::Completions { shell } => commands::completions(shell),
        Command::Deploy(deploy) => commands::deploy::run(&cli.connection, &deploy),
        Command::Invoke(invoke) => commands::invoke::run(&cli.connection, &invoke),
        Command::Ls { json } => commands::show::list(&cli.connection, json),
        Command::Get { name, json } => commands::show::get(&cli.connection, &name, json),
        Command::Versions { name, json } => commands::show::versions(&cli.connection, &name, json),
        Command::Rollback { name, to } => commands::change::rollback(&cli.connection, &name, to),
        Command::Alias(alias) => commands::change::alias(&cli.connection, &alias),
        Command::Rm { names } => commands::change::remove(&cli.connection, &names),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => output::report(&error),
    }
}
