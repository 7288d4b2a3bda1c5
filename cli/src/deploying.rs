//! A deploy as its client sees it: upload what is new, ask for the next version, follow the events to the last one.
//!
//! Owns the sequence; how it is shown belongs to the caller.

use crate::client::{Client, ClientError};
use crate::function_file::Deployment;
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

/// Deploys, and returns the version that is live. `quiet` shows no upload bars.
pub(crate) fn deploy(
    client: &Client,
    name: &FunctionName,
    deployment: &Deployment,
    quiet: bool,
    mut event: impl FnMut(&Progress) -> anyhow::Result<()>,
) -> anyhow::Result<VersionNumber> {
    deployment.check_built()?;
    event(&Progress::Started { step: Step::Upload })?;
    let since = Instant::now();
    let artifact = upload::upload(client, &deployment.artifact, quiet)?;
    let mut models = BTreeMap::new();
    let (mut bytes, mut sent) = (artifact.size, u32::from(!artifact.known));
    for (model, path) in &deployment.models {
        let uploaded = upload::upload(client, path, quiet)?;
        bytes += uploaded.size;
        sent += u32::from(!uploaded.known);
        models.insert(model.clone(), uploaded.digest);
    }
    event(&Progress::Finished {
        step: Step::Upload,
        ms: since.elapsed().as_secs_f64() * 1e3,
        detail: format!("{} file(s), {}, {sent} new", 1 + models.len(), size(bytes)),
    })?;

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
        event(&progress)?;
        match progress {
            Progress::Deployed { version, .. } => return Ok(version),
            Progress::Failed {
                step,
                code,
                message,
            } => {
                return Err(ClientError::Refused {
                    status: 422,
                    code: code.code().to_owned(),
                    message: format!(
                        "the deploy failed at '{}' and changed nothing: {message}",
                        step.as_str()
                    ),
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

/// A number of bytes for people.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => ByteSize(bytes).to_string(),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}
