//! What watching costs: requests/s of `echo` with a log follower against none, and with a line per request and with
//! traces against a silent function, in turns.

use super::load::{self, Target};
use super::report::Report;
use super::server::Server;
use anyhow::Context;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// `fnctl logs -f`, for as long as the value lives.
struct Follower(Child);

impl Follower {
    fn start(program: &Path, server: &Server, function: &str) -> anyhow::Result<Self> {
        let child = Command::new(program)
            .args(["--server", &server.url(""), "logs", function, "--follow"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("fnctl logs cannot be started")?;
        // It only has to be there when the load begins; the warm-up is longer than this.
        std::thread::park_timeout(Duration::from_millis(300));
        Ok(Self(child))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Measures all three.
pub(crate) fn measure(
    program: &Path,
    rounds: usize,
    seconds: u32,
    report: &mut Report,
) -> anyhow::Result<()> {
    let plain = server(program, &[])?;
    let watched = server(program, &[])?;
    for (what, function) in [
        ("echo, 32 connections, a log follower", "echo"),
        (
            "echo, 32 connections, a line per request and a log follower",
            "echo-logged",
        ),
    ] {
        // The same process with and without: two processes of one program differ by more than this costs.
        let target = load(&watched, &format!("/fn/{function}"));
        load::run(&target, 1)?;
        let followed = |seconds| {
            let _follower = Follower::start(program, &watched, function)?;
            load::run(&target, seconds)
        };
        let figures = load::side_by_side(rounds, seconds, followed, Some(&target))?;
        report.throughput(what, &figures, "unfollowed");
    }
    row(
        "echo, 32 connections, a line per request",
        ("/fn/echo-logged", &watched),
        &plain,
        (rounds, seconds),
        report,
    )?;
    let endpoint = format!("traces.endpoint=http://{}", collector()?);
    for ratio in ["0.01", "1"] {
        let settings = [endpoint.clone(), format!("traces.ratio={ratio}")];
        let settings: Vec<_> = settings.iter().map(String::as_str).collect();
        let traced = server(program, &settings)?;
        row(
            &format!("echo, 32 connections, traces.ratio={ratio}"),
            ("/fn/echo", &traced),
            &plain,
            (rounds, seconds),
            report,
        )?;
    }
    Ok(())
}

fn server(program: &Path, settings: &[&str]) -> anyhow::Result<Server> {
    let server = Server::fnctl(program, settings)?;
    server.deploy(program, &["examples/echo"])?;
    let logged = ["examples/echo", "--name", "echo-logged", "--env", "LOG=1"];
    server.deploy(program, &logged)?;
    Ok(server)
}

fn load(server: &Server, path: &str) -> Target {
    Target {
        url: server.url(path),
        connections: 32,
        body: None,
        pid: server.pid(),
    }
}

fn row(
    what: &str,
    (path, watched): (&str, &Server),
    plain: &Server,
    (rounds, seconds): (usize, u32),
    report: &mut Report,
) -> anyhow::Result<()> {
    let (ours, base) = (load(watched, path), load(plain, "/fn/echo"));
    load::run(&base, 1)?;
    let figures = load::side_by_side(
        rounds,
        seconds,
        |seconds| load::run(&ours, seconds),
        Some(&base),
    )?;
    report.throughput(what, &figures, "silent and unwatched");
    Ok(())
}

/// An OTLP/HTTP receiver that takes everything and keeps nothing: a collector's own work is not fnctl's.
fn collector() -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    std::thread::Builder::new()
        .name("collector".into())
        .spawn(move || {
            for stream in listener.incoming().flatten() {
                // A sender that goes away ends its connection, not the collector.
                let _ = take_all(stream);
            }
        })?;
    Ok(address)
}

/// Answers every request of a connection with an empty success.
fn take_all(mut stream: TcpStream) -> std::io::Result<()> {
    let mut seen = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        while let Some(length) = whole_request(&seen) {
            seen.drain(..length);
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n")?;
        }
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => seen.extend_from_slice(buffer.get(..count).unwrap_or_default()),
        }
    }
}

/// The length of the first request, if all of it is there.
fn whole_request(bytes: &[u8]) -> Option<usize> {
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(bytes.get(..head)?).to_ascii_lowercase();
    let body: usize = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))?
        .trim()
        .parse()
        .ok()?;
    (bytes.len() >= head + body).then_some(head + body)
}
