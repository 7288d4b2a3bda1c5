//! `fnctl serve`.

use crate::app::App;
use crate::args::{ServeArgs, SettingsArgs};
use crate::logging;
use crate::output::PipeGone;
use anyhow::Context;
use fnctl_platform::settings::{self, Loaded};
use fnctl_platform::{Config, Platform};
use std::path::{Path, PathBuf};
use tokio::signal::unix::{SignalKind, signal};

pub(crate) fn run(app: &App, args: &ServeArgs) -> anyhow::Result<()> {
    let loaded = load(&args.settings, &args.flags())?;
    logging::init(&args.log, args.log_format)?;
    let mut config = loaded.config;
    crash_test_hook(&mut config);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .on_thread_start(fnctl_platform::answer_promptly)
        .build()
        .context("the runtime cannot start")?;
    let finished = runtime.block_on(serve(app, config))?;
    // Blocking work of what was cut off must not hold up the end.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    anyhow::ensure!(
        finished,
        "some invocations did not finish within platform.grace and were ended"
    );
    Ok(())
}

/// The settings of file, environment and flags.
pub(crate) fn load(args: &SettingsArgs, flags: &[(&str, String)]) -> anyhow::Result<Loaded> {
    let default = Path::new("fnctl.toml");
    let file: Option<PathBuf> = args
        .config
        .clone()
        .or_else(|| default.is_file().then(|| default.to_path_buf()));
    settings::load(file.as_deref(), std::env::vars_os(), flags).map_err(|problems| {
        anyhow::anyhow!(
            "the settings have {} problem(s):\n  {}",
            problems.len(),
            problems.join("\n  ")
        )
    })
}

async fn serve(app: &App, config: Config) -> anyhow::Result<bool> {
    // Both are caught before anything starts: a signal in between must not be lost.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let data = config.store.folder.display().to_string();
    let platform = Platform::start(config).await?;
    let address = platform.address();
    tracing::info!(%address, data, "fnctl is ready");
    let ready = serde_json::json!({ "address": format!("http://{address}"), "data": data });
    let told = app.out.item(&ready, |page| {
        page.line(format!(
            "fnctl is ready on http://{address} (data in {data}); stop it with Ctrl-C"
        ));
    });
    // A platform serves on, whoever has stopped reading what it says.
    told.or_else(|error| {
        if error.is::<PipeGone>() {
            Ok(())
        } else {
            Err(error)
        }
    })?;
    loop {
        tokio::select! {
            _ = terminate.recv() => {
                tracing::info!("SIGTERM");
                break;
            }
            _ = interrupt.recv() => {
                tracing::info!("SIGINT");
                break;
            }
            _ = hang_up.recv() => {}
        }
        tokio::select! {
            replaced = platform.replace_inference_hosts() => match replaced {
                Ok(count) => tracing::info!(count, "SIGHUP: inference hosts replaced"),
                Err(error) => tracing::warn!("SIGHUP: inference hosts stay as they are: {error}"),
            },
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    Ok(platform.drain().await)
}

/// Lets a crash test stop the store before a chosen write: `FNCTL_TEST_PAUSE=7:/path/of/marker`. Debug builds only.
fn crash_test_hook(config: &mut Config) {
    if !cfg!(debug_assertions) {
        return;
    }
    let Ok(text) = std::env::var("FNCTL_TEST_PAUSE") else {
        return;
    };
    if let Some((write, marker)) = text.split_once(':')
        && let Ok(write) = write.parse()
    {
        let at = fnctl_platform::PauseAt {
            write,
            marker: PathBuf::from(marker),
        };
        config.store.steps = fnctl_platform::WriteSteps::pause_at(at);
    }
}
