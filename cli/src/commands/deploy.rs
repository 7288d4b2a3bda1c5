//! `fnctl deploy`.

use crate::args::{Connection, DeployArgs};
use crate::client::{Client, ClientError};
use crate::function_file::Deployment;
use crate::{output, upload};
use anyhow::bail;
use fnctl_core::FunctionName;
use fnctl_core::deploy::{DeployRequest, Progress, Step};
use fnctl_core::units::ByteSize;
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use ureq::SendBody;

pub(crate) fn run(connection: &Connection, args: &DeployArgs) -> anyhow::Result<()> {
    let mut deployment = Deployment::read(&args.path)?;
    override_with(&mut deployment, args);
    let Some(name) = &deployment.name else {
        bail!("the function needs a name: pass --name, or deploy a folder with function.toml");
    };
    let name: FunctionName = name.parse()?;
    let client = Client::new(connection);
    let mut steps = Steps::new(args.json);

    steps.begin(Step::Upload);
    let since = Instant::now();
    let artifact = upload::upload(&client, &deployment.artifact, args.json)?;
    let mut models = BTreeMap::new();
    let (mut bytes, mut sent) = (artifact.size, u32::from(!artifact.known));
    for (model, path) in &deployment.models {
        let uploaded = upload::upload(&client, path, args.json)?;
        bytes += uploaded.size;
        sent += u32::from(!uploaded.known);
        models.insert(model.clone(), uploaded.digest);
    }
    let detail = format!("{} file(s), {}, {sent} new", 1 + models.len(), size(bytes));
    steps.event(&Progress::Finished {
        step: Step::Upload,
        ms: since.elapsed().as_secs_f64() * 1e3,
        detail,
    })?;

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
        steps.event(&event)?;
        match event {
            Progress::Deployed { function, version } => {
                if !args.json {
                    output::line(format!(
                        "{function} version {version} is live at {}/fn/{function}",
                        connection.server.trim_end_matches('/')
                    ))?;
                }
                return Ok(());
            }
            Progress::Failed {
                step,
                code,
                message,
            } => {
                let message = format!(
                    "the deploy failed at '{}' and changed nothing: {message}",
                    step.as_str()
                );
                return Err(ClientError::Refused {
                    status: 422,
                    code: code.code().to_owned(),
                    message,
                    request_id,
                }
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

/// Shows the steps: a spinner while one runs, a line when it is done. In a pipe there are only the lines.
struct Steps {
    json: bool,
    spinner: ProgressBar,
}

impl Steps {
    fn new(json: bool) -> Self {
        let spinner = if json {
            ProgressBar::hidden()
        } else {
            ProgressBar::new_spinner()
        };
        spinner.set_style(
            ProgressStyle::with_template("{spinner} {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner()),
        );
        spinner.enable_steady_tick(Duration::from_millis(100));
        Self { json, spinner }
    }

    fn begin(&self, step: Step) {
        self.spinner.set_message(step.as_str());
    }

    fn event(&mut self, event: &Progress) -> anyhow::Result<()> {
        if self.json {
            return output::line(serde_json::to_string(event)?);
        }
        match event {
            Progress::Started { step } => self.begin(*step),
            Progress::Finished { step, ms, detail } => {
                let line = format!("  {:<10} {ms:>8.1} ms  {detail}", step.as_str());
                self.spinner.suspend(|| output::note(line));
            }
            Progress::Deployed { .. } | Progress::Failed { .. } => self.spinner.finish_and_clear(),
        }
        Ok(())
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        self.spinner.finish_and_clear();
    }
}
