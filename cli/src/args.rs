//! The command line.

use crate::commands::context::ContextArgs;
use crate::commands::inference::InferenceArgs;
use crate::commands::logs::LogsArgs;
use crate::commands::policy::PolicyArgs;
use crate::commands::shell::{CompletionsArgs, ManArgs};
use crate::commands::status::StatusArgs;
use crate::commands::top::TopArgs;
use crate::commands::trace::TraceArgs;
use crate::output::OutputArgs;
use crate::target::Connection;
use clap::{Args, Parser, Subcommand};
use fnctl_core::FunctionName;
use fnctl_core::config::{InferenceIsolation, Isolation, KeepAlivePolicy};
use fnctl_core::ids::{AliasName, IdError};
use fnctl_core::units::{ByteSize, Period};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;

/// A self-hosted, scale-to-zero function platform for ML inference.
#[derive(Parser, Debug)]
#[command(
    name = "fnctl",
    version,
    about,
    propagate_version = true,
    after_help = crate::help::EXAMPLES
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) connection: Connection,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Start a platform.
    Serve(ServeArgs),
    /// Make a project from a template.
    New(crate::commands::new::NewArgs),
    /// Build the project in a folder.
    Build(crate::commands::build::BuildArgs),
    /// Build, serve and redeploy a project at every save.
    Dev(crate::commands::dev::DevArgs),
    /// Check this machine for what fnctl needs, and say how to repair it.
    Doctor(crate::commands::doctor::DoctorArgs),
    /// Deploy a function as its next version and make it live.
    Deploy(Box<DeployArgs>),
    /// Invoke a function and print its answer.
    Invoke(InvokeArgs),
    /// Show what a function said, and follow it.
    Logs(LogsArgs),
    /// Watch what the functions do now: rates, cold starts, instances, memory.
    Top(TopArgs),
    /// List the functions.
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  fnctl ls\n  fnctl ls --json | jq -r '.[].name'"
    )]
    Ls,
    /// Show one function: live version, limits, aliases, instances.
    #[command(after_help = "Examples:\n  fnctl get fraud\n  fnctl get fraud --json")]
    Get {
        /// The function.
        name: FunctionName,
    },
    /// List the versions of a function, the newest first.
    #[command(after_help = "Examples:\n  fnctl versions fraud\n  fnctl versions fraud --json")]
    Versions {
        /// The function.
        name: FunctionName,
    },
    /// Make an earlier version live again.
    #[command(
        after_help = "Examples:\n  fnctl rollback fraud            # the version before the live one\n  fnctl rollback fraud --to 3"
    )]
    Rollback {
        /// The function.
        name: FunctionName,
        /// The version; without it, the one before the live one.
        #[arg(long, value_name = "VERSION")]
        to: Option<u32>,
    },
    /// Point an alias at a version, or at two with a percentage.
    Alias(AliasArgs),
    /// Remove functions with all their versions.
    #[command(
        visible_alias = "remove",
        after_help = "Examples:\n  fnctl rm fraud\n  fnctl rm fraud echo counter"
    )]
    Rm {
        /// The functions.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<FunctionName>,
    },
    /// Say whether the platform is ready; exits with 0 only if it is.
    Status(StatusArgs),
    /// Print the admin API's token, from --token, the token file or the context.
    #[command(
        after_help = "Examples:\n  FNCTL_TOKEN_FILE=fnctl-data/token fnctl token\n  export FNCTL_TOKEN=$(docker compose exec -T fnctl fnctl token)"
    )]
    Token,
    /// Simulate and compare keep-alive policies on traces.
    Policy(PolicyArgs),
    /// Write what was invoked on a platform as a trace.
    Trace(TraceArgs),
    /// Look at the processes that models compute in, and replace them.
    Inference(InferenceArgs),
    /// Load models and compute for the `fnctl serve` that started it.
    #[command(
        hide = true,
        after_help = "Examples:\n  fnctl serve    # starts its inference-host by itself"
    )]
    InferenceHost,
    /// Check or show the settings of `serve`.
    Config(ConfigArgs),
    /// Keep the addresses and tokens of platforms under names.
    #[command(visible_alias = "ctx")]
    Context(ContextArgs),
    /// Print a completion script for a shell.
    Completions(CompletionsArgs),
    /// Print a man page, or write them all.
    Man(ManArgs),
}

#[derive(Args, Debug)]
#[command(
    after_help = "Settings come from fnctl.toml, then FNCTL_* variables, then flags; docs/config.md lists them.\n\nExamples:\n  fnctl serve\n  fnctl serve --listen 0.0.0.0:8080 --data /var/lib/fnctl\n  FNCTL_TOKEN=secret fnctl serve --set inference.memory=8GiB"
)]
pub(crate) struct ServeArgs {
    /// Address and port to listen on.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<String>,
    /// Folder of everything that is kept.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
    /// How log lines look: text for a terminal, json otherwise.
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
    /// Which lines are logged, as in `info,access=debug,guest=off`.
    #[arg(long, env = "FNCTL_LOG", default_value = "info", value_name = "FILTER")]
    pub(crate) log: String,
}

/// Where settings come from besides the environment.
#[derive(Args, Debug)]
pub(crate) struct SettingsArgs {
    /// The settings file; without it, fnctl.toml in this folder if there is one.
    #[arg(long, env = "FNCTL_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Any setting, as `key=value`; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub(crate) set: Vec<(String, String)>,
}

#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  fnctl config check --config fnctl.toml\n  fnctl config show")]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    pub(crate) action: ConfigAction,
}

#[derive(Subcommand, Debug)]
pub(crate) enum ConfigAction {
    /// Say every problem of the settings, or that there is none.
    #[command(
        after_help = "Examples:\n  fnctl config check\n  fnctl config check --config fnctl.toml"
    )]
    Check(SettingsArgs),
    /// Print every setting with where its value came from.
    #[command(
        after_help = "Examples:\n  fnctl config show\n  fnctl config show -o yaml --set gateway.listen=0.0.0.0:80"
    )]
    Show(SettingsArgs),
}

#[derive(Args, Debug)]
#[command(
    after_help = "A folder needs a function.toml. Flags override it.\n\nExamples:\n  fnctl deploy                         # the project in this folder\n  fnctl deploy examples/fraud\n  fnctl deploy examples/fraud --memory 256MiB --provisioned 2\n  fnctl deploy model.wasm --name fraud --model fraud=fraud_mlp16.onnx --env THRESHOLD=0.5"
)]
pub(crate) struct DeployArgs {
    /// A folder with function.toml, or a .wasm file.
    #[arg(default_value = ".")]
    pub(crate) path: PathBuf,
    /// The function's name.
    #[arg(long)]
    pub(crate) name: Option<FunctionName>,
    /// A model the guest may load by name; may be repeated.
    #[arg(long = "model", value_name = "NAME=FILE", value_parser = pair)]
    pub(crate) models: Vec<(String, String)>,
    /// Most linear memory of a sandbox, as in 128MiB.
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<ByteSize>,
    /// Most wall time of an invocation, as in 30s.
    #[arg(long, value_name = "TIME")]
    pub(crate) timeout: Option<Period>,
    /// Most CPU time of the guest in an invocation.
    #[arg(long, value_name = "TIME")]
    pub(crate) cpu: Option<Period>,
    /// Most invocations at once.
    #[arg(long, value_name = "COUNT")]
    pub(crate) concurrency: Option<NonZeroU32>,
    /// Instances kept initialised whatever the traffic.
    #[arg(long, value_name = "COUNT")]
    pub(crate) provisioned: Option<u32>,
    /// How long an idle instance is kept.
    #[arg(long, value_name = "TIME")]
    pub(crate) keep_alive: Option<Period>,
    /// What decides how long instead: fixed, histogram or adaptive.
    #[arg(long, value_name = "POLICY", value_parser = keep_alive_policy)]
    pub(crate) keep_alive_policy: Option<KeepAlivePolicy>,
    /// Whether a sandbox serves many requests (instance) or one (request).
    #[arg(long, value_name = "instance|request", value_parser = isolation)]
    pub(crate) isolation: Option<Isolation>,
    /// Whether the models share an inference host (shared) or have one of their own (dedicated).
    #[arg(long, value_name = "shared|dedicated", value_parser = inference_isolation)]
    pub(crate) inference_isolation: Option<InferenceIsolation>,
    /// An environment variable of the guest; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) env: Vec<(String, String)>,
    /// A host that outgoing HTTP may reach; may be repeated.
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) allow_host: Vec<String>,
}

#[derive(Args, Debug)]
#[command(
    after_help = "The answer goes to stdout, what was measured to stderr with -v. With --json or -o yaml both are one result.\n\nExamples:\n  fnctl invoke fraud -d @examples/fraud/request.json\n  fnctl invoke file-type --data-binary @photo.png -v\n  echo '{\"text\":\"hi\"}' | fnctl invoke embeddings -d @-\n  fnctl invoke fraud:2 -d '{\"features\":[...]}'\n  fnctl invoke fraud --stats -d @examples/fraud/request.json"
)]
pub(crate) struct InvokeArgs {
    /// The function, with a version or alias behind a colon if not the live one.
    #[arg(value_parser = invocation_target)]
    pub(crate) target: String,
    /// The request body: text, @file, or @- for stdin. Sent as it is, as JSON unless -H says otherwise.
    #[arg(short, long, visible_alias = "data-binary", value_name = "BODY")]
    pub(crate) data: Option<String>,
    /// The method; POST if there is a body, otherwise GET.
    #[arg(short = 'X', long, value_name = "METHOD")]
    pub(crate) method: Option<String>,
    /// A header; may be repeated.
    #[arg(short = 'H', long, value_name = "NAME: VALUE")]
    pub(crate) header: Vec<String>,
    /// The path and query behind the function's name.
    #[arg(long, default_value = "/", value_name = "PATH")]
    pub(crate) path: String,
    /// Say status, start kind and phases on stderr.
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// Say what the invocation took on stderr: phases, CPU time, inference, memory.
    #[arg(long)]
    pub(crate) stats: bool,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  fnctl alias fraud stable 3\n  fnctl alias fraud canary 4 --split 3=90\n  fnctl alias fraud canary --remove"
)]
pub(crate) struct AliasArgs {
    /// The function.
    pub(crate) name: FunctionName,
    /// The alias.
    pub(crate) alias: AliasName,
    /// The version it points to.
    #[arg(required_unless_present = "remove", value_name = "VERSION")]
    pub(crate) to: Option<u32>,
    /// A second version and the percentage of calls that go to it.
    #[arg(long, value_name = "VERSION=PERCENT", value_parser = pair)]
    pub(crate) split: Option<(String, String)>,
    /// Remove the alias.
    #[arg(long, conflicts_with_all = ["to", "split"])]
    pub(crate) remove: bool,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it like name=value".to_owned()),
    }
}

fn keep_alive_policy(text: &str) -> Result<KeepAlivePolicy, String> {
    match text {
        "fixed" => Ok(KeepAlivePolicy::Fixed),
        "histogram" => Ok(KeepAlivePolicy::Histogram),
        "adaptive" => Ok(KeepAlivePolicy::Adaptive),
        _ => Err("use fixed, histogram or adaptive".to_owned()),
    }
}

/// `fraud`, `fraud:3` or `fraud:canary`: it becomes part of a path, so nothing else may.
fn invocation_target(text: &str) -> Result<String, String> {
    let (name, selector) = match text.split_once(':') {
        Some((name, selector)) => (name, Some(selector)),
        None => (text, None),
    };
    let name: FunctionName = name.parse().map_err(|error: IdError| error.to_string())?;
    if let Some(selector) = selector
        && selector.parse::<u32>().is_err()
    {
        selector
            .parse::<AliasName>()
            .map_err(|error| error.to_string())?;
    }
    Ok(selector.map_or_else(|| name.to_string(), |selector| format!("{name}:{selector}")))
}

fn isolation(text: &str) -> Result<Isolation, String> {
    match text {
        "instance" => Ok(Isolation::Instance),
        "request" => Ok(Isolation::Request),
        _ => Err("use instance or request".to_owned()),
    }
}

fn inference_isolation(text: &str) -> Result<InferenceIsolation, String> {
    match text {
        "shared" => Ok(InferenceIsolation::Shared),
        "dedicated" => Ok(InferenceIsolation::Dedicated),
        _ => Err("use shared or dedicated".to_owned()),
    }
}

impl ServeArgs {
    /// The flags that are settings, by key.
    pub(crate) fn flags(&self) -> Vec<(&str, String)> {
        let listen = self
            .listen
            .as_ref()
            .map(|listen| match listen.parse::<u16>() {
                // A bare port listens on this machine.
                Ok(port) => SocketAddr::from(([127, 0, 0, 1], port)).to_string(),
                Err(_) => listen.clone(),
            });
        let own = [
            listen.map(|listen| ("gateway.listen", listen)),
            self.data
                .as_ref()
                .map(|data| ("platform.data", data.display().to_string())),
        ];
        self.settings
            .flags()
            .into_iter()
            .chain(own.into_iter().flatten())
            .collect()
    }
}

impl SettingsArgs {
    /// `--set` by key.
    pub(crate) fn flags(&self) -> Vec<(&str, String)> {
        self.set
            .iter()
            .map(|(key, value)| (key.as_str(), value.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        crate::help::command().debug_assert();
    }

    #[test]
    fn what_becomes_part_of_a_path_is_a_name() {
        for line in [
            "get a/b",
            "versions ../functions",
            "rollback a?x",
            "rm fraud a/b",
            "rm Fraud",
            "logs a/b",
            "alias fraud a/b 1",
            "alias a/b canary 1",
            "invoke a/b",
            "invoke fraud:a/b",
            "invoke fraud:",
            "deploy --name a/b",
        ] {
            let words = std::iter::once("fnctl").chain(line.split(' '));
            let error = Cli::try_parse_from(words).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains("use 1 to 63 of a-z"), "{error}");
        }
        for target in ["fraud", "fraud:3", "fraud:canary"] {
            assert_eq!(invocation_target(target).as_deref(), Ok(target));
        }
    }

    #[test]
    fn every_command_says_what_it_does_and_gives_examples() {
        fn check(command: &clap::Command, path: &str) {
            for command in command.get_subcommands() {
                let path = format!("{path} {}", command.get_name());
                assert!(command.get_about().is_some(), "{path}");
                let help = command
                    .get_after_help()
                    .map(ToString::to_string)
                    .unwrap_or_default();
                let nested = command.has_subcommands();
                assert!(help.contains("Examples:"), "{path}");
                assert!(
                    nested
                        || help.contains(&path)
                        || help.contains(path.rsplit(' ').next().unwrap()),
                    "{path}"
                );
                check(command, &path);
            }
        }
        check(&Cli::command(), "fnctl");
    }
}
