//! Five times more requests than a function can serve, for a minute: what still gets served, how long that takes, what
//! it does to memory and to another function.
//!
//! The load is open: requests are due at fixed times, whether or not earlier ones were answered, as callers on the
//! internet are. So many connections stand by that those that wait for an answer do not hold up the next.

use super::http::Connection;
use super::memory::resident;
use super::percentile;
use super::report::Report;
use super::server::Server;
use anyhow::Context;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Requests at a time that the function takes.
const CONCURRENCY: usize = 8;
/// Its longest wait in the queue.
const QUEUE: Duration = Duration::from_secs(1);
/// Times its capacity.
const TIMES: f64 = 5.0;
/// Between two calls of the other function.
const PAUSE: Duration = Duration::from_millis(25);

/// One answered request.
struct Answer {
    served: bool,
    took: Duration,
}

pub(crate) fn measure(program: &Path, seconds: u32, report: &mut Report) -> anyhow::Result<()> {
    let time = Duration::from_secs(u64::from(seconds));
    let server = Server::fnctl(program, &[])?;
    let busy = [
        "examples/embeddings",
        "--concurrency",
        &CONCURRENCY.to_string(),
    ];
    server.deploy(program, &with_queue(&busy)?.arguments())?;
    server.deploy(program, &["examples/fraud"])?;
    let sample = |name: &str| -> anyhow::Result<String> {
        let path = crate::root().join(format!("examples/{name}/request.json"));
        Ok(std::fs::read_to_string(path)?.trim_end().to_owned())
    };
    let (body, other) = (sample("embeddings")?, sample("fraud")?);

    // Warm, then as many callers as it takes at a time.
    closed(&server, &body, Duration::from_secs(3))?;
    let calm = Duration::from_secs(u64::from(seconds.clamp(5, 15)));
    let capacity = closed(&server, &body, calm)?;
    let unloaded = sorted(&sequential(&server, &other, calm, &AtomicBool::new(false))?);
    let before = resident(server.pid())?;
    report.count("overload: capacity of the function", capacity, "/s", "");

    let stop = AtomicBool::new(false);
    let (answers, offered, beside, peak) = std::thread::scope(|scope| -> anyhow::Result<_> {
        let beside = scope.spawn(|| sequential(&server, &other, time * 2, &stop));
        let peak = scope.spawn(|| -> anyhow::Result<f64> {
            let mut peak = 0f64;
            while !stop.load(Ordering::SeqCst) {
                peak = peak.max(resident(server.pid())?);
                std::thread::park_timeout(Duration::from_millis(100));
            }
            Ok(peak)
        });
        let loaded = open(&server, &body, capacity * TIMES, time);
        stop.store(true, Ordering::SeqCst);
        let panicked = |_| anyhow::anyhow!("a thread panicked");
        let beside = beside.join().map_err(panicked)??;
        let peak = peak.join().map_err(panicked)??;
        let (answers, offered) = loaded?;
        Ok((answers, offered, beside, peak))
    })?;

    let served: Vec<_> = answers.iter().filter(|answer| answer.served).collect();
    let times: Vec<_> = served.iter().map(|answer| answer.took).collect();
    let refused: Vec<_> = answers
        .iter()
        .filter(|answer| !answer.served)
        .map(|answer| answer.took)
        .collect();
    #[allow(clippy::cast_precision_loss, reason = "counts of requests")]
    let goodput = served.len() as f64 / time.as_secs_f64();
    report.ratio("  offered, to capacity", offered / capacity, "5");
    report.ratio("  goodput, to capacity", goodput / capacity, "0.9");
    report.latency(
        "  accepted, p99",
        percentile(&sorted(&times), 0.99),
        "the queue's limit, 1000 ms, and a run",
    );
    report.latency("  refused, p99", percentile(&sorted(&refused), 0.99), "");
    let (calm, loaded) = (
        percentile(&unloaded, 0.99),
        percentile(&sorted(&beside), 0.99),
    );
    report.latency("  another function, p99 without the load", calm, "");
    report.latency("  another function, p99 beside the load", loaded, "");
    report.ratio("  ratio of the two", loaded / calm, "2");
    report.memory("  memory at capacity", before, "");
    report.memory("  most memory under the load", peak, "bounded");
    Ok(())
}

/// A copy of the example's folder whose function.toml has the queue's limit; flags have none for it.
struct Folder {
    folder: tempfile::TempDir,
    flags: Vec<String>,
}

impl Folder {
    fn arguments(&self) -> Vec<&str> {
        let path = self.folder.path().to_str().unwrap_or_default();
        std::iter::once(path)
            .chain(self.flags.iter().map(String::as_str))
            .collect()
    }
}

fn with_queue(arguments: &[&str]) -> anyhow::Result<Folder> {
    let (example, flags) = arguments.split_first().context("an example")?;
    let source = crate::root().join(example);
    let folder = tempfile::tempdir()?;
    let text = std::fs::read_to_string(source.join("function.toml"))?;
    // Top-level keys stand before the first table.
    let text = format!("queue_timeout = \"{}s\"\n{text}", QUEUE.as_secs());
    std::fs::write(folder.path().join("function.toml"), text)?;
    for entry in std::fs::read_dir(&source)? {
        let entry = entry?;
        let to = folder.path().join(entry.file_name());
        if !to.exists() {
            std::os::unix::fs::symlink(entry.path(), to)?;
        }
    }
    Ok(Folder {
        folder,
        flags: flags.iter().map(ToString::to_string).collect(),
    })
}

/// Requests a second that `CONCURRENCY` callers get served, each waiting for its answer.
fn closed(server: &Server, body: &str, time: Duration) -> anyhow::Result<f64> {
    let since = Instant::now();
    let count = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..CONCURRENCY)
            .map(|_| {
                scope.spawn(|| -> anyhow::Result<()> {
                    let mut connection = Connection::open(server.address())?;
                    while since.elapsed() < time {
                        connection.request("POST", "/fn/embeddings", body)?;
                        count.fetch_add(1, Ordering::SeqCst);
                    }
                    Ok(())
                })
            })
            .collect();
        callers.into_iter().try_for_each(joined)
    })?;
    #[allow(clippy::cast_precision_loss, reason = "a count of requests")]
    let rate = count.load(Ordering::SeqCst) as f64 / since.elapsed().as_secs_f64();
    Ok(rate)
}

/// Requests at a fixed rate. Returns the answers and the rate that was really offered.
fn open(
    server: &Server,
    body: &str,
    rate: f64,
    time: Duration,
) -> anyhow::Result<(Vec<Answer>, f64)> {
    let next = AtomicUsize::new(0);
    let since = Instant::now();
    // Accepted ones wait for a second at most, the others are back at once.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a number of threads"
    )]
    let callers = (rate / TIMES * 1.5 + 64.0).clamp(64.0, 1_500.0) as usize;
    let answers = std::thread::scope(|scope| -> anyhow::Result<Vec<Answer>> {
        let callers: Vec<_> = (0..callers)
            .map(|_| {
                let next = &next;
                std::thread::Builder::new()
                    .stack_size(128 << 10)
                    .spawn_scoped(scope, move || -> anyhow::Result<Vec<Answer>> {
                        let mut connection = Connection::open(server.address())?;
                        let mut answers = Vec::new();
                        loop {
                            #[allow(clippy::cast_precision_loss, reason = "a count of requests")]
                            let due = Duration::from_secs_f64(
                                next.fetch_add(1, Ordering::SeqCst) as f64 / rate,
                            );
                            if due >= time {
                                return Ok(answers);
                            }
                            while let Some(left) = due.checked_sub(since.elapsed()) {
                                std::thread::park_timeout(left);
                            }
                            let (status, timed) =
                                connection.exchange("POST", "/fn/embeddings", body)?;
                            answers.push(Answer {
                                served: status == 200,
                                took: timed.took,
                            });
                        }
                    })
            })
            .collect::<Result<_, _>>()?;
        let mut all = Vec::new();
        for caller in callers {
            all.extend(
                caller
                    .join()
                    .map_err(|_| anyhow::anyhow!("a caller panicked"))??,
            );
        }
        Ok(all)
    })?;
    #[allow(clippy::cast_precision_loss, reason = "a count of requests")]
    let offered = answers.len() as f64 / since.elapsed().max(time).as_secs_f64();
    Ok((answers, offered))
}

/// Calls of the other function, one after the other with a pause, until told to stop or the time is over.
fn sequential(
    server: &Server,
    body: &str,
    time: Duration,
    stop: &AtomicBool,
) -> anyhow::Result<Vec<Duration>> {
    let mut connection = Connection::open(server.address())?;
    connection.request("POST", "/fn/fraud", body)?;
    let since = Instant::now();
    let mut times = Vec::new();
    while since.elapsed() < time && !stop.load(Ordering::SeqCst) {
        times.push(connection.request("POST", "/fn/fraud", body)?.took);
        std::thread::park_timeout(PAUSE);
    }
    Ok(times)
}

fn joined(thread: std::thread::ScopedJoinHandle<'_, anyhow::Result<()>>) -> anyhow::Result<()> {
    thread
        .join()
        .map_err(|_| anyhow::anyhow!("a caller panicked"))?
}

/// In milliseconds, ascending.
fn sorted(times: &[Duration]) -> Vec<f64> {
    let mut times: Vec<_> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
    times.sort_by(f64::total_cmp);
    times
}
