//! `fnctl doctor`.

use crate::app::App;
use crate::args::SettingsArgs;
use crate::doctor::{Finding, Level, checks, facts};
use crate::output::Tone;
use clap::Args;
use fnctl_platform::inference::Process;
use fnctl_platform::{Config, cache_folder, probe_engine, probe_host, probe_library, settings};
use serde::Serialize;
use std::path::Path;
use std::time::SystemTime;

#[derive(Args, Debug)]
#[command(
    after_help = "Each line is ok, warn or fail, with what to do. The exit code is 1 if one is fail.\n\nExamples:\n  fnctl doctor\n  fnctl doctor --json | jq '.checks[] | select(.status != \"ok\")'\n  fnctl doctor --set platform.data=/var/lib/fnctl"
)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
}

#[derive(Serialize)]
struct Report {
    ok: bool,
    checks: Vec<Finding>,
}

pub(crate) fn run(app: &App, args: &DoctorArgs) -> anyhow::Result<()> {
    let checks = look(app, args);
    let failed = checks
        .iter()
        .filter(|finding| finding.status == Level::Fail)
        .count();
    let report = Report {
        ok: failed == 0,
        checks,
    };
    app.out.show(&report, |page| {
        for finding in &report.checks {
            let tone = match finding.status {
                Level::Ok => Tone::Good,
                Level::Warn => Tone::Warn,
                Level::Fail => Tone::Bad,
            };
            page.pieces([
                (format!("{:<4}", finding.status.as_str()), tone),
                (
                    format!("  {:<13}  {}", finding.check, finding.found),
                    Tone::Plain,
                ),
            ]);
            if let Some(fix) = &finding.fix {
                page.line(format!("{:<19}  fix: {fix}", ""));
            }
        }
    })?;
    anyhow::ensure!(failed == 0, "{failed} check(s) failed; the fixes are above");
    Ok(())
}

/// Every check, in the order in which problems are best solved.
fn look(app: &App, args: &DoctorArgs) -> Vec<Finding> {
    let file = args.settings.config.as_deref().or_else(|| {
        let default = Path::new("fnctl.toml");
        default.is_file().then_some(default)
    });
    // What can be judged without right settings is judged with the defaults.
    let (config, problems) = match settings::load(file, std::env::vars_os(), &args.settings.flags())
    {
        Ok(loaded) => (loaded.config, Vec::new()),
        Err(problems) => (Config::default(), problems),
    };
    let (soft, hard) = facts::open_files();
    let engine = probe_engine(&config.worker).map_err(|failure| match failure.cause {
        Some(cause) => format!("{}: {cause}", failure.message),
        None => failure.message.into_owned(),
    });
    let library = probe_library(&config.inference).map_err(|error| error.to_string());
    let data = &config.store.folder;
    let cache = cache_folder();
    let cache_writable = cache.as_deref().map_or(Ok(()), facts::cache_folder);
    let (server, reach, date) = facts::platform(app);
    let mut findings = vec![
        checks::settings(&problems),
        checks::library(
            &library,
            &facts::named_nowhere(config.inference.library.as_deref()),
        ),
    ];
    findings.extend(inference_host(&config).map(|probed| checks::inference_host(&probed)));
    findings.extend([
        checks::address_space(&engine, facts::address_space(), facts::overcommit()),
        checks::open_files(soft, hard, config.gateway.max_connections),
        checks::memory(
            fnctl_platform::machine::memory(),
            config.inference.memory,
            config.scheduler.memory,
        ),
        checks::data(data, &facts::data_folder(data)),
        checks::disk(data, facts::free_space(data)),
        checks::cache(cache.as_deref(), &cache_writable),
        checks::port(&config.gateway.listen, &facts::port(&config.gateway.listen)),
        checks::platform(&server, &reach),
        checks::clock(SystemTime::now(), date),
    ]);
    findings.extend(
        facts::tool_chains()
            .iter()
            .map(|(language, found)| checks::tool_chain(language, found)),
    );
    findings
}

/// Starts an inference host and ends it, unless models are to compute in the platform's own process.
fn inference_host(config: &Config) -> Option<Result<(u128, Vec<String>), String>> {
    let hosted = config.inference.process == Process::Host;
    hosted.then(|| match probe_host(&config.inference) {
        Ok(probed) => Ok((probed.took.as_millis(), probed.unconfined)),
        Err(error) => Err(error.to_string()),
    })
}
