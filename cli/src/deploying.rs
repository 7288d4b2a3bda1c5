//! A deploy as its client sees it: upload what is new, ask for the next version, follow the events to the last one.
//!
//! Owns the sequence; how it is shown belongs to the caller.

use crate::client::{Client, ClientError, Refusal};
use crate::function_file::Deployment;
use crate::output::Steps;
use crate::upload;
use anyhow::bail;
use fnctl_core::FunctionName;
use fnctl_core::deploy::{DeployRequest, Progress, Step};
use fnctl_core::ids::VersionNumber;
use fnctl_core::units::ByteSize;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::time::Instant;
use ureq::SendBody;

/// Deploys, and returns the version that is live. `steps` shows the uploads, `event` whatever else is told.
pub(crate) fn deploy(
    client: &Client,
    name: &FunctionName,
    deployment: &Deployment,
    steps: &mut Steps,
    mut event: impl FnMut(&mut Steps, &Progress) -> anyhow::Result<()>,
) -> anyhow::Result<VersionNumber> {
    deployment.check_built()?;
    let since = Instant::now();
    let artifact = upload::upload(client, &deployment.artifact, steps)?;
    let mut models = BTreeMap::new();
    let (mut bytes, mut sent) = (artifact.size, u32::from(!artifact.known));
    for (model, path) in &deployment.models {
        let uploaded = upload::upload(client, path, steps)?;
        bytes += uploaded.size;
        sent += u32::from(!uploaded.known);
        models.insert(model.clone(), uploaded.digest);
    }
    let uploaded = Progress::Finished {
        step: Step::Upload,
        ms: since.elapsed().as_secs_f64() * 1e3,
        detail: format!("{} file(s), {}, {sent} new", 1 + models.len(), size(bytes)),
    };
    event(steps, &uploaded)?;

    let request = DeployRequest {
        artifact: artifact.digest,
        models,
        config: deployment.config.clone(),
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
        let progress: Progress = serde_json::from_str(&line?)?;
        event(steps, &progress)?;
        match progress {
            Progress::Deployed { version, .. } => return Ok(version),
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

/// A number of bytes for people.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => ByteSize(bytes).to_string(),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}
