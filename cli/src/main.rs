//! The `fnctl` command. `serve` starts a platform; every other command talks to a running one over HTTP.

mod activity;
mod app;
mod args;
mod build;
mod client;
mod commands;
mod contexts;
mod deploying;
mod dev_log;
mod doctor;
mod exit;
mod function_file;
mod help;
mod log_stream;
mod logging;
mod output;
mod policy_plot;
mod report;
mod suggest;
mod target;
mod templates;
mod trace_file;
mod upload;
mod watch;

use app::App;
use args::{Cli, Command};
use clap::FromArgMatches;
use std::process::ExitCode;

fn main() -> ExitCode {
    let matches = help::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let app = App::new(cli.output, cli.connection);
    let outcome = match cli.command {
        Command::Serve(serve) => commands::serve::run(&app, &serve),
        Command::InferenceHost => commands::inference_host::run(),
        Command::Status(status) => commands::status::run(&app, &status),
        Command::Token => commands::status::token(&app),
        Command::Policy(policy) => commands::policy::run(&app, &policy),
        Command::Trace(trace) => commands::trace::run(&app, &trace),
        Command::Inference(inference) => commands::inference::run(&app, &inference),
        Command::Config(config) => commands::config::run(&app, &config),
        Command::Context(context) => commands::context::run(&app, &context),
        Command::Completions(completions) => commands::shell::completions(&app, &completions),
        Command::Man(man) => commands::shell::man(&app, &man),
        Command::New(new) => commands::new::run(&app, &new),
        Command::Build(build) => commands::build::run(&app, &build),
        Command::Dev(dev) => commands::dev::run(&app, &dev),
        Command::Doctor(doctor) => commands::doctor::run(&app, &doctor),
        Command::Deploy(deploy) => commands::deploy::run(&app, &deploy),
        Command::Invoke(invoke) => commands::invoke::run(&app, &invoke),
        Command::Logs(logs) => commands::logs::run(&app, &logs),
        Command::Top(top) => commands::top::run(&app, &top),
        Command::Ls => commands::show::list(&app),
        Command::Get { name } => commands::show::get(&app, &name),
        Command::Versions { name } => commands::show::versions(&app, &name),
        Command::Rollback { name, to } => commands::change::rollback(&app, &name, to),
        Command::Alias(alias) => commands::change::alias(&app, &alias),
        Command::Rm { names } => commands::change::remove(&app, &names),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<output::PipeGone>() => ExitCode::SUCCESS,
        Err(error) => app.fail(&error),
    }
}
