//! A minimal client that times single requests on a kept connection.

use anyhow::{Context, bail};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// A response, and how long it took from the first byte sent to the last received.
pub(crate) struct Timed {
    pub(crate) took: Duration,
    pub(crate) start: String,
    pub(crate) phases: Vec<(String, f64)>,
}

impl Timed {
    /// Milliseconds of all phases but the run.
    pub(crate) fn before_run(&self) -> f64 {
        self.phases
            .iter()
            .filter(|(name, _)| name != "run")
            .map(|(_, ms)| ms)
            .sum()
    }

    /// Milliseconds of one phase.
    pub(crate) fn phase(&self, name: &str) -> f64 {
        self.phases
            .iter()
            .find(|(phase, _)| phase == name)
            .map_or(0.0, |(_, ms)| *ms)
    }
}

/// A kept connection.
pub(crate) struct Connection(BufReader<TcpStream>);

impl Connection {
    pub(crate) fn open(address: &str) -> anyhow::Result<Self> {
        let stream =
            TcpStream::connect(address).with_context(|| format!("nobody listens on {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Sends a request and reads the response, which must be a success with a declared length.
    pub(crate) fn request(
        &mut self,
        method: &str,
        path: &str,
        body: &str,
    ) -> anyhow::Result<Timed> {
        let (status, timed) = self.exchange(method, path, body)?;
        if status != 200 {
            bail!("{method} {path}: status {status}");
        }
        Ok(timed)
    }

    /// Sends a request and reads the response, whatever its status.
    pub(crate) fn exchange(
        &mut self,
        method: &str,
        path: &str,
        body: &str,
    ) -> anyhow::Result<(u16, Timed)> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let since = Instant::now();
        self.0.get_mut().write_all(request.as_bytes())?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let status = line.trim_end().to_owned();
        let (mut length, mut start, mut phases) = (0, String::new(), Vec::new());
        loop {
            line.clear();
            self.0.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else {
                break;
            };
            match name {
                "content-length" => length = value.parse()?,
                "x-fnctl-start" => start = value.to_owned(),
                "server-timing" => {
                    let entries = value
                        .split(", ")
                        .filter_map(|entry| entry.split_once(";dur="));
                    phases = entries
                        .filter_map(|(name, ms)| Some((name.to_owned(), ms.parse().ok()?)))
                        .collect();
                }
                _ => {}
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        let took = since.elapsed();
        let status = status
            .split_ascii_whitespace()
            .nth(1)
            .and_then(|code| code.parse().ok())
            .with_context(|| format!("no status line: {status}"))?;
        let timed = Timed {
            took,
            start,
            phases,
        };
        Ok((status, timed))
    }
}
