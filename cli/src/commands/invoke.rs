//! `fnctl invoke`.

use crate::args::{Connection, InvokeArgs};
use crate::client::{Client, ClientError};
use crate::output;
use anyhow::{Context, bail};
use std::io::Read;

pub(crate) fn run(connection: &Connection, args: &InvokeArgs) -> anyhow::Result<()> {
    let body = body(args.data.as_deref())?;
    let mut headers = Vec::new();
    for header in &args.header {
        let Some((name, value)) = header.split_once(':') else {
            bail!("--header '{header}' has no colon; write it like 'Accept: text/plain'")
        };
        headers.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
    }
    if !body.is_empty() && !headers.iter().any(|(name, _)| name == "content-type") {
        let kind = if std::str::from_utf8(&body).is_ok() {
            "application/json"
        } else {
            "application/octet-stream"
        };
        headers.push(("content-type".to_owned(), kind.to_owned()));
    }
    let method = args
        .method
        .clone()
        .unwrap_or_else(|| if body.is_empty() { "GET" } else { "POST" }.to_owned());
    let path = if args.path.starts_with('/') {
        args.path.clone()
    } else {
        format!("/{}", args.path)
    };
    let client = Client::new(connection);
    let mut response = client.invoke(&args.target, &path, &method, &headers, body)?;
    if args.verbose {
        output::note(format!("status         {}", response.status()));
        for name in [
            "x-fnctl-start",
            "x-fnctl-version",
            "x-request-id",
            "server-timing",
            "content-type",
        ] {
            if let Some(value) = response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
            {
                output::note(format!("{name:<15}{value}"));
            }
        }
    }
    if response.status().is_success() {
        return stream(&mut response.body_mut().as_reader());
    }
    match client.refused(response) {
        // The function's own error answer, or nothing of ours.
        ClientError::NotFnctl { status, .. } => {
            bail!("the function answered with status {status}; -v shows more")
        }
        refused => Err(refused.into()),
    }
}

fn body(data: Option<&str>) -> anyhow::Result<Vec<u8>> {
    match data {
        None => Ok(Vec::new()),
        Some("@-") => {
            let mut bytes = Vec::new();
            std::io::stdin().lock().read_to_end(&mut bytes)?;
            Ok(bytes)
        }
        Some(data) => match data.strip_prefix('@') {
            Some(path) => std::fs::read(path).with_context(|| format!("{path} cannot be read")),
            None => Ok(data.as_bytes().to_vec()),
        },
    }
}

fn stream(reader: &mut impl Read) -> anyhow::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = reader.read(&mut buffer).context("the answer broke off")?;
        match buffer.get(..count) {
            Some(read) if count > 0 => output::write(read)?,
            _ => return Ok(()),
        }
    }
}
