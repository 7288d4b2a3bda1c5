//! `fnctl dev`: build, serve, watch, redeploy.
//!
//! The platform runs in this process on a runtime; everything that follows a save happens on one thread, one save after
//! another, so builds never overlap. A build or deploy that fails leaves the version before it serving.

use crate::app::App;
use crate::args::SettingsArgs;
use crate::build::{Built, Children, Plan, Profile, Project};
use crate::client::Client;
use crate::deploying;
use crate::dev_log;
use crate::output::{Output, Tone};
use crate::target::{Origin, Target};
use crate::watch::{Rules, Watch};
use anyhow::Context;
use clap::Args;
use fnctl_core::FunctionName;
use fnctl_core::ids::VersionNumber;
use fnctl_core::units::Period;
use fnctl_platform::{Config, Platform};
use glob::Pattern;
use serde::Serialize;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// How long a deploy that is under way may take to end when the command is stopped.
const STOPPING: Duration = Duration::from_secs(5);
/// Files that say how a project is built: a change of theirs makes a new plan.
const MANIFESTS: [&str; 7] = [
    "Cargo.toml",
    "function.toml",
    "rust-toolchain",
    "rust-toolchain.toml",
    "package.json",
    "pyproject.toml",
    "requirements.txt",
];

#[derive(Args, Debug)]
#[command(
    after_help = "Nothing is kept: the platform's data lies in a temporary folder that goes with it. Ctrl-C lets running requests finish.\nRust is compiled quickly rather than well; --release compiles as `fnctl build` does.\n\nExamples:\n  fnctl dev\n  fnctl dev examples/fraud --listen 9000\n  fnctl dev --set inference.memory=1GiB --log debug"
)]
pub(crate) struct DevArgs {
    /// The project: a folder with function.toml.
    #[arg(default_value = ".", value_name = "DIR")]
    pub(crate) folder: PathBuf,
    /// Address and port to listen on; without it 127.0.0.1:8080, or a free port if that one is taken.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<String>,
    /// Compile as `fnctl build` does.
    #[arg(long)]
    pub(crate) release: bool,
    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
    /// Which lines are shown.
    #[arg(
        long,
        env = "FNCTL_LOG",
        default_value = "warn,guest=info,access=debug",
        value_name = "FILTER"
    )]
    pub(crate) log: String,
}

pub(crate) fn run(app: &App, args: &DevArgs) -> anyhow::Result<()> {
    let project = Project::open(&args.folder)?;
    let profile = if args.release {
        Profile::Release
    } else {
        Profile::Quick
    };
    // What is missing is told before anything starts.
    let plan = project.plan(profile)?;
    let data = tempfile::Builder::new()
        .prefix("fnctl-dev-")
        .tempdir()
        .context("there is no temporary folder")?;
    let config = config(args, data.path())?;
    dev_log::init(app.out, &args.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime cannot start")?;
    let watch = Watch::start(rules(&project, &plan)?)?;
    let developer = |client: Client| Developer {
        out: app.out,
        folder: project.folder.clone(),
        shown: args.folder.clone(),
        profile,
        children: Children::in_own_group(),
        client,
        plan: Some(plan),
        watch,
        live: None,
    };
    let outcome = runtime.block_on(serve(app.out, config, developer));
    runtime.shutdown_timeout(Duration::from_secs(2));
    data.close().context("the temporary data was not removed")?;
    outcome
}

/// The platform's settings: the file, the variables and the flags, but data that goes and an address that is free.
fn config(args: &DevArgs, data: &Path) -> anyhow::Result<Config> {
    let mut flags = args.settings.flags();
    flags.push(("platform.data", data.display().to_string()));
    if let Some(listen) = &args.listen {
        let address = match listen.parse::<u16>() {
            Ok(port) => format!("127.0.0.1:{port}"),
            Err(_) => listen.clone(),
        };
        flags.push(("gateway.listen", address));
    }
    let loaded = super::serve::load(&args.settings, &flags)?;
    let is_default = |key: &str| !loaded.origins.contains_key(key);
    let (listens_anywhere, waits_anyhow) =
        (is_default("gateway.listen"), is_default("platform.grace"));
    let mut config = loaded.config;
    if listens_anywhere && TcpListener::bind(config.gateway.listen.as_str()).is_err() {
        config.gateway.listen = format!("{}:0", Ipv4Addr::LOCALHOST);
    }
    if waits_anyhow {
        config.grace = Period::secs(5);
    }
    Ok(config)
}

/// Runs the platform and the developer's loop until a signal comes or the loop cannot go on.
async fn serve(
    out: Output,
    mut config: Config,
    developer: impl FnOnce(Client) -> Developer,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // The terminal was closed: the temporary data goes all the same.
    let mut hangup = signal(SignalKind::hangup())?;
    // No file: whoever develops is on this machine, and nothing of dev is to stay.
    config.token_file = None;
    let token = match &config.gateway.token {
        Some(text) => Some(
            text.parse()
                .map_err(|problem: String| anyhow::anyhow!("gateway.token: {problem}"))?,
        ),
        None => None,
    };
    let platform = Platform::start(config).await?;
    let developer = developer(Client::new(&Target {
        server: format!("http://{}", platform.address()),
        token,
        ca_file: None,
        origin: Origin::Default,
    })?);
    let (children, closer) = (developer.children.clone(), developer.watch.closer());
    let (tx, mut ended) = oneshot::channel();
    std::thread::Builder::new()
        .name("fnctl-dev".into())
        .spawn(move || {
            // Nobody listens any more when the waiting below is over.
            let _ = tx.send(developer.run());
        })?;
    let mut outcome = Ok(());
    let still_runs = tokio::select! {
        _ = terminate.recv() => true,
        _ = interrupt.recv() => true,
        _ = hangup.recv() => true,
        result = &mut ended => {
            outcome = result.context("the watching ended unexpectedly").flatten();
            false
        }
    };
    children.stop();
    closer.close();
    if still_runs {
        // A build ends at once, a deploy within a moment; what takes longer is left behind by the end of the process.
        let _ = tokio::time::timeout(STOPPING, ended).await;
    }
    out.note("stopping");
    let drain = platform.drain();
    tokio::select! {
        finished = drain => {
            if !finished {
                out.note("some requests did not finish in time and were ended");
            }
        }
        // Asked twice: at once.
        _ = interrupt.recv() => {}
    }
    outcome
}

/// Which files the project's builds read.
fn rules(project: &Project, plan: &Plan) -> anyhow::Result<Rules> {
    let globs = project
        .deployment
        .build
        .watch
        .iter()
        .map(|glob| {
            Pattern::new(glob)
                .with_context(|| format!("[build] watch '{glob}' is no glob such as src/**/*.py"))
        })
        .collect::<anyhow::Result<_>>()?;
    let mut always = vec![project.folder.join("function.toml")];
    always.extend(project.deployment.models.values().cloned());
    let mut roots = vec![project.folder.clone()];
    roots.extend_from_slice(plan.neighbours());
    Ok(Rules {
        roots,
        written: plan.written(),
        globs,
        always,
    })
}

/// What follows a save.
struct Developer {
    out: Output,
    folder: PathBuf,
    /// The folder as it was named on the command line.
    shown: PathBuf,
    profile: Profile,
    children: Children,
    client: Client,
    plan: Option<Plan>,
    watch: Watch,
    live: Option<(FunctionName, VersionNumber)>,
}

/// What came of a save, or of the first build.
struct Live {
    built: Built,
    deploying: Duration,
}

/// What is told, one line each.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Told<'a> {
    Serving {
        address: &'a str,
    },
    Introduced {
        function: &'a FunctionName,
        url: String,
    },
    Live {
        version: VersionNumber,
        compiler_seconds: f64,
        deploy_seconds: f64,
        /// From the save on.
        #[serde(skip_serializing_if = "Option::is_none")]
        seconds: Option<f64>,
    },
    Failed {
        message: String,
        /// What still answers.
        version: Option<VersionNumber>,
    },
}

impl Developer {
    /// Builds and deploys now and at every save, until the watch is closed.
    fn run(mut self) -> anyhow::Result<()> {
        let address = self.client.server();
        self.out.item(&Told::Serving { address }, |page| {
            page.line(format!("serving on {address}; Ctrl-C stops it"));
        })?;
        let first = self.redeploy();
        self.tell(first, None)?;
        while let Some(saved) = self.watch.next()? {
            if saved.files.iter().any(|file| is_manifest(file)) {
                self.plan = None;
            }
            let outcome = self.redeploy();
            self.tell(outcome, Some(saved.since))?;
        }
        Ok(())
    }

    fn redeploy(&mut self) -> anyhow::Result<Live> {
        let project = Project::open(&self.folder)?;
        let plan = match self.plan.take() {
            Some(plan) => plan,
            None => {
                let plan = project.plan(self.profile)?;
                self.watch.set_rules(rules(&project, &plan)?)?;
                plan
            }
        };
        let built = plan.run(&self.children);
        self.plan = Some(plan);
        let built = built?;
        let name = project
            .deployment
            .name
            .as_deref()
            .context("function.toml has no name")?
            .parse::<FunctionName>()?;
        let since = Instant::now();
        let mut steps = self.out.steps();
        let version = deploying::deploy(
            &self.client,
            &name,
            &project.deployment,
            &mut steps,
            |_, _| Ok(()),
        )?;
        let is_first = self.live.is_none();
        self.live = Some((name, version));
        if is_first {
            self.introduce()?;
        }
        Ok(Live {
            built,
            deploying: since.elapsed(),
        })
    }

    /// Says how to reach what is live.
    fn introduce(&self) -> anyhow::Result<()> {
        let Some((name, _)) = &self.live else {
            return Ok(());
        };
        let url = format!("{}/fn/{name}", self.client.server());
        let request = self.shown.join("request.json");
        let body = if request.is_file() {
            let path = request.strip_prefix(".").unwrap_or(&request);
            format!("-d @{} ", path.display())
        } else {
            String::new()
        };
        let told = Told::Introduced {
            function: name,
            url: url.clone(),
        };
        self.out.item(&told, |page| {
            page.line(format!("{name} is live at {url}"));
            page.line(format!("  curl {body}{url}"));
        })
    }

    fn tell(&self, outcome: anyhow::Result<Live>, saved: Option<Instant>) -> anyhow::Result<()> {
        match outcome {
            Ok(live) => {
                let version = self
                    .live
                    .as_ref()
                    .map_or(VersionNumber(0), |(_, version)| *version);
                let seconds = saved.map(|since| since.elapsed().as_secs_f64());
                let (compiler, deploy) =
                    (live.built.took.as_secs_f64(), live.deploying.as_secs_f64());
                let told = Told::Live {
                    version,
                    compiler_seconds: compiler,
                    deploy_seconds: deploy,
                    seconds,
                };
                let parts = format!("compiler {compiler:.2} s, deploy {deploy:.2} s");
                self.out.item(&told, |page| match seconds {
                    Some(seconds) => page.done(format!(
                        "saved -> live in {seconds:.2} s ({parts}); version {version}"
                    )),
                    None => page.done(format!(
                        "version {version} is live ({parts}); watching for saves"
                    )),
                })
            }
            // The command is being stopped: that a build was cut off is no news.
            Err(_) if self.children.is_stopped() => Ok(()),
            Err(error) => {
                let told = Told::Failed {
                    message: format!("{error:#}"),
                    version: self.live.as_ref().map(|(_, version)| *version),
                };
                self.out.item(&told, |page| {
                    page.pieces([
                        ("error: ".to_owned(), Tone::Bad),
                        (format!("{error:#}"), Tone::Plain),
                    ]);
                    page.line(match &self.live {
                        Some((name, version)) => format!(
                            "not redeployed: version {version} of {name} still answers; save again to retry"
                        ),
                        None => "nothing is deployed yet; save again to retry".to_owned(),
                    });
                })
            }
        }
    }
}

fn is_manifest(file: &Path) -> bool {
    file.file_name()
        .is_some_and(|name| MANIFESTS.iter().any(|manifest| name == *manifest))
}
