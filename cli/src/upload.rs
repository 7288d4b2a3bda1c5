//! Uploading an artifact, unless the platform has it already.

use crate::client::Client;
use crate::output::Steps;
use anyhow::Context;
use fnctl_core::Digest;
use fnctl_core::units::ByteSize;
use serde::Deserialize;
use std::fs::File;
use std::io::Seek;
use std::path::Path;
use ureq::SendBody;

#[derive(Deserialize)]
struct Uploaded {
    digest: Digest,
}

/// What an upload came to.
pub(crate) struct Upload {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// Whether the platform had it already.
    pub(crate) known: bool,
}

/// Makes sure that the platform has the file's bytes.
pub(crate) fn upload(client: &Client, path: &Path, steps: &mut Steps) -> anyhow::Result<Upload> {
    let mut file = File::open(path).with_context(|| {
        format!(
            "{} cannot be opened; build the function first (see its README), or correct the path",
            path.display()
        )
    })?;
    let digest = Digest::of_reader(&mut file)
        .with_context(|| format!("{} cannot be read", path.display()))?;
    let size = file.stream_position()?;
    if client.has_artifact(&digest.to_string())? {
        return Ok(Upload {
            digest,
            size,
            known: true,
        });
    }
    file.rewind()?;
    let name = path
        .file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy();
    let bar = steps.transfer(format!("upload {name}"), ByteSize(size));
    let mut reader = bar.wrap_read(file);
    let mut response = client.api("POST", "artifacts", SendBody::from_reader(&mut reader))?;
    bar.finish_and_clear();
    let uploaded: Uploaded = serde_json::from_str(&response.body_mut().read_to_string()?)?;
    anyhow::ensure!(
        uploaded.digest == digest,
        "{} changed while it was uploaded; deploy again",
        path.display()
    );
    Ok(Upload {
        digest,
        size,
        known: false,
    })
}
