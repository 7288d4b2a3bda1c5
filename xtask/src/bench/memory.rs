//! Resident memory of an idle platform, and after a burst that has been reaped.

use super::http::Connection;
use super::report::Report;
use super::server::Server;
use anyhow::Context;
use std::path::Path;
use std::time::Duration;

pub(crate) fn measure(program: &Path, report: &mut Report) -> anyhow::Result<()> {
    let fresh = Server::fnctl(program, &[])?;
    std::thread::park_timeout(Duration::from_millis(500));
    report.memory(
        "idle platform, nothing deployed",
        resident(fresh.pid())?,
        "60 MB",
    );
    drop(fresh);

    let body = std::fs::read_to_string(crate::root().join("examples/embeddings/request.json"))?;
    let server = Server::fnctl(program, &["inference.session_ttl=500ms"])?;
    server.deploy(
        program,
        &[
            "examples/embeddings",
            "--keep-alive",
            "500ms",
            "--concurrency",
            "8",
        ],
    )?;
    std::thread::park_timeout(Duration::from_secs(3));
    let idle = resident(server.pid())?;
    report.memory(
        "idle platform, zero instances, after a deploy of MiniLM",
        idle,
        "60 MB",
    );
    let address = server.address().to_owned();
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (address, body) = (address.clone(), body.clone());
            std::thread::spawn(move || -> anyhow::Result<()> {
                let mut connection = Connection::open(&address)?;
                for _ in 0..25 {
                    connection.request("POST", "/fn/embeddings", body.trim_end())?;
                }
                Ok(())
            })
        })
        .collect();
    for caller in callers {
        caller
            .join()
            .map_err(|_| anyhow::anyhow!("a caller panicked"))??;
    }
    let burst = resident(server.pid())?;
    report.memory("at the end of a burst of 200 over MiniLM", burst, "");
    std::thread::park_timeout(Duration::from_secs(4));
    let after = resident(server.pid())?;
    report.memory(
        "after that burst has been reaped",
        after,
        "within 20 % of idle",
    );
    report.ratio("  ratio to idle", after / idle, "1.2");
    Ok(())
}

/// VmRSS in megabytes of 1,000,000 bytes.
pub(crate) fn resident(pid: u32) -> anyhow::Result<f64> {
    let status =
        std::fs::read_to_string(format!("/proc/{pid}/status")).context("the server is gone")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("no VmRSS")?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kilobytes * 1024.0 / 1e6)
}
