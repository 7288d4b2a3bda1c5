//! `fnctl deploy`.

use crate::app::App;
use crate::args::DeployArgs;
use crate::deploying::deploy;
use crate::exit::usage;
use crate::function_file::Deployment;
use crate::output::{Output, Steps};
use fnctl_core::FunctionName;
use fnctl_core::deploy::Progress;
use std::path::PathBuf;

pub(crate) fn run(app: &App, args: &DeployArgs) -> anyhow::Result<()> {
    let mut deployment = Deployment::read(&args.path)?;
    override_with(&mut deployment, args);
    let Some(name) = &deployment.name else {
        return Err(usage(
            "the function needs a name: pass --name, or deploy a folder with function.toml",
        ));
    };
    let name: FunctionName = name.parse()?;
    let client = app.client()?;
    let mut steps = app.out.steps();
    deploy(&client, &name, &deployment, &mut steps, |steps, event| {
        tell(&app.out, steps, client.server(), event)
    })?;
    Ok(())
}

fn override_with(deployment: &mut Deployment, args: &DeployArgs) {
    let config = &mut deployment.config;
    if let Some(name) = &args.name {
        deployment.name = Some(name.to_string());
    }
    for (name, path) in &args.models {
        deployment.models.insert(name.clone(), PathBuf::from(path));
    }
    for (name, value) in &args.env {
        config.env.insert(name.clone(), value.clone());
    }
    config.allow_hosts.extend(args.allow_host.iter().cloned());
    config.memory = args.memory.unwrap_or(config.memory);
    config.timeout = args.timeout.unwrap_or(config.timeout);
    config.cpu = args.cpu.unwrap_or(config.cpu);
    config.concurrency = args.concurrency.unwrap_or(config.concurrency);
    config.keep_alive_policy = args.keep_alive_policy.or(config.keep_alive_policy);
    config.provisioned = args.provisioned.unwrap_or(config.provisioned);
    config.keep_alive = args.keep_alive.unwrap_or(config.keep_alive);
    config.isolation = args.isolation.unwrap_or(config.isolation);
    config.inference_isolation = args
        .inference_isolation
        .unwrap_or(config.inference_isolation);
}

/// Tells an event: for programs each is a result, for people only the last.
fn tell(out: &Output, steps: &mut Steps, server: &str, event: &Progress) -> anyhow::Result<()> {
    if out.is_for_programs() {
        return out.item(event, |_| {});
    }
    match event {
        Progress::Started { step } => steps.begin(step.as_str()),
        Progress::Finished { step, ms, detail } => steps.finished(step.as_str(), *ms, detail),
        Progress::Deployed { function, version } => {
            steps.end();
            return out.item(event, |page| {
                page.done(format!(
                    "{function} version {version} is live at {server}/fn/{function}"
                ));
            });
        }
        Progress::Failed { .. } => steps.end(),
    }
    Ok(())
}
