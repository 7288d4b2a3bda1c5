//! `fnctl deploy`.

use crate::app::App;
use crate::args::DeployArgs;
use crate::client::{ClientError, Refusal};
use crate::exit::usage;
use crate::function_file::Deployment;
use crate::output::{Output, Steps};
use crate::upload;
use anyhow::bail;
use fnctl_core::FunctionName;
use fnctl_core::deploy::{DeployRequest, Progress, Step};
use fnctl_core::units::ByteSize;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::time::Instant;
use ureq::SendBody;

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

    let since = Instant::now();
    let artifact = upload::upload(&client, &deployment.artifact, &mut steps)?;
    let mut models = BTreeMap::new();
    let (mut bytes, mut sent) = (artifact.size, u32::from(!artifact.known));
    for (model, path) in &deployment.models {
        let uploaded = upload::upload(&client, path, &mut steps)?;
        bytes += uploaded.size;
        sent += u32::from(!uploaded.known);
        models.insert(model.clone(), uploaded.digest);
    }
    let detail = format!("{} file(s), {}, {sent} new", 1 + models.len(), size(bytes));
    let uploaded = Progress::Finished {
        step: Step::Upload,
        ms: since.elapsed().as_secs_f64() * 1e3,
        detail,
    };
    tell(&app.out, &mut steps, client.server(), &uploaded)?;

    let request = DeployRequest {
        artifact: artifact.digest,
        models,
        config: deployment.config,
    };
    let body = serde_json::to_vec(&request)?;
    let mut reader = body.as_slice();
    let mut response = client.api(
        "POST",
        &format!("functions/{name}/versions"),
        SendBody::from_reader(&mut reader),
    )?;
    let request_id = response
        .headers()
        .get("x-request-id")
        .and_then(|id| id.to_str().ok())
        .unwrap_or("?")
        .to_owned();
    for line in BufReader::new(response.body_mut().as_reader()).lines() {
        let event: Progress = serde_json::from_str(&line?)?;
        tell(&app.out, &mut steps, client.server(), &event)?;
        match event {
            Progress::Deployed { .. } => return Ok(()),
            Progress::Failed {
                step,
                code,
                message,
            } => {
                return Err(ClientError::Refused(Box::new(Refusal {
                    status: 422,
                    code: code.code().to_owned(),
                    kind: Some(code),
                    message: format!(
                        "the deploy failed at '{}' and changed nothing: {message}",
                        step.as_str()
                    ),
                    request_id,
                    retry_after: None,
                    subject: None,
                }))
                .into());
            }
            Progress::Started { .. } | Progress::Finished { .. } => {}
        }
    }
    bail!(
        "the platform stopped answering in the middle of the deploy; see `fnctl versions {name}` for what came of it"
    )
}

fn override_with(deployment: &mut Deployment, args: &DeployArgs) {
    let config = &mut deployment.config;
    if let Some(name) = &args.name {
        deployment.name = Some(name.clone());
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
    config.provisioned = args.provisioned.unwrap_or(config.provisioned);
    config.keep_alive = args.keep_alive.unwrap_or(config.keep_alive);
    config.isolation = args.isolation.unwrap_or(config.isolation);
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => ByteSize(bytes).to_string(),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
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
