//! Five times more requests than a function can serve, for a minute: what still gets served, how long that takes, what
//! it does to memory and to another function.
//!
//! The load is open: requests are due at fixed times, whether or not earlier ones were answered, as callers on the
//! internet are. So many connections stand by that those that wait for an answer do not hold up the next.
//!
//! All of it runs on the processors of the load. What that alone costs is measured in the same minute, in the same way:
//! a thread of this very program that answers anything at once is the machine's floor, `/healthz`, which the platform
//! answers without a function, is every function's, and `echo` is a function without a model.

use super::http::{Connection, Timed};
use super::memory::resident;
use super::percentile;
use super::report::Report;
use super::server::Server;
use anyhow::Context;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Requests at a time that the function takes.
const CONCURRENCY: usize = 8;
/// Its longest wait in the queue.
const QUEUE: Duration = Duration::from_secs(1);
/// Times its capacity.
const TIMES: f64 = 5.0;
/// Between two calls of one that stands beside the load.
const PAUSE: Duration = Duration::from_millis(25);

/// One that is called beside the load.
struct Beside {
    address: String,
    /// As the report calls it.
    name: &'static str,
    method: &'static str,
    path: &'static str,
    body: String,
}

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
    server.deploy(program, &["examples/echo"])?;
    let sample = |name: &str| -> anyhow::Result<String> {
        let path = crate::root().join(format!("examples/{name}/request.json"));
        Ok(std::fs::read_to_string(path)?.trim_end().to_owned())
    };
    let body = sample("embeddings")?;
    let besides = [
        Beside {
            address: server.address().to_owned(),
            name: "another function",
            method: "POST",
            path: "/fn/fraud",
            body: sample("fraud")?,
        },
        Beside {
            address: server.address().to_owned(),
            name: "a function without a model",
            method: "POST",
            path: "/fn/echo",
            body: "x".to_owned(),
        },
        Beside {
            address: server.address().to_owned(),
            name: "floor of a function, /healthz",
            method: "GET",
            path: "/healthz",
            body: String::new(),
        },
        Beside {
            address: answering()?,
            name: "floor of the machine, a thread that answers",
            method: "GET",
            path: "/",
            body: String::new(),
        },
    ];

    // Warm, then as many callers as it takes at a time.
    closed(&server, &body, Duration::from_secs(3))?;
    let calm = Duration::from_secs(u64::from(seconds.clamp(5, 15)));
    let capacity = closed(&server, &body, calm)?;
    let before = resident(server.pid())?;
    report.count("overload: capacity of the function", capacity, "/s", "");

    // What is promised: one other function beside it. The floors take processors as well, so they have a load of their own.
    let (other, floors) = besides.split_at(1);
    let quiet = |besides: &[Beside]| together(besides, calm, &AtomicBool::new(false));
    let (calm_other, calm_floors) = (quiet(other)?, quiet(floors)?);
    let rate = capacity * TIMES;
    let load = overload(&server, &body, rate, time, other)?;
    let floor_time = (time / 4).max(Duration::from_secs(10)).min(time);
    let with_floors = overload(&server, &body, rate, floor_time, floors)?;
    let Loaded {
        answers,
        offered,
        beside,
        peak,
    } = load;

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
    let calm = calm_other.iter().chain(&calm_floors);
    let loaded = beside.iter().chain(&with_floors.beside);
    for ((beside, calm), loaded) in besides.iter().zip(calm).zip(loaded) {
        tell(beside.name, calm, loaded, report);
    }
    report.memory("  memory at capacity", before, "");
    report.memory("  most memory under the load", peak, "bounded");
    Ok(())
}

/// What came of an overload.
struct Loaded {
    answers: Vec<Answer>,
    /// Requests a second that were really offered.
    offered: f64,
    /// The calls of each of those beside it.
    beside: Vec<Vec<Timed>>,
    /// Most memory of the platform, in bytes.
    peak: f64,
}

/// Offers so many requests a second for a while, with others beside them.
fn overload(
    server: &Server,
    body: &str,
    rate: f64,
    time: Duration,
    besides: &[Beside],
) -> anyhow::Result<Loaded> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let beside = scope.spawn(|| together(besides, time * 2, &stop));
        let peak = scope.spawn(|| -> anyhow::Result<f64> {
            let mut peak = 0f64;
            while !stop.load(Ordering::SeqCst) {
                peak = peak.max(resident(server.pid())?);
                std::thread::park_timeout(Duration::from_millis(100));
            }
            Ok(peak)
        });
        let loaded = open(server, body, rate, time);
        stop.store(true, Ordering::SeqCst);
        let panicked = |_| anyhow::anyhow!("a thread panicked");
        let beside = beside.join().map_err(panicked)??;
        let peak = peak.join().map_err(panicked)??;
        let (answers, offered) = loaded?;
        Ok(Loaded {
            answers,
            offered,
            beside,
            peak,
        })
    })
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

/// What the load did to one beside it.
fn tell(name: &str, calm: &[Timed], loaded: &[Timed], report: &mut Report) {
    let p99 = |calls: &[Timed], time: &dyn Fn(&Timed) -> f64| {
        let mut times: Vec<_> = calls.iter().map(time).collect();
        times.sort_by(f64::total_cmp);
        percentile(&times, 0.99)
    };
    let took = |call: &Timed| call.took.as_secs_f64() * 1e3;
    let wanted = if name == "another function" { "2" } else { "" };
    report.latency(
        &format!("  {name}, p99 without the load"),
        p99(calm, &took),
        "",
    );
    report.latency(
        &format!("  {name}, p99 beside the load"),
        p99(loaded, &took),
        "",
    );
    report.ratio(
        "  ratio of the two",
        p99(loaded, &took) / p99(calm, &took),
        wanted,
    );
    if loaded.iter().any(|call| !call.phases.is_empty()) {
        for (phase, name) in [("in the queue", "queue"), ("the run", "run")] {
            let time = |call: &Timed| call.phase(name);
            let (calm, loaded) = (p99(calm, &time), p99(loaded, &time));
            report.latency(&format!("  ... {phase}, without the load"), calm, "");
            report.latency(&format!("  ... {phase}, beside the load"), loaded, "");
        }
    }
}

/// Calls of each of them, side by side.
fn together(
    besides: &[Beside],
    time: Duration,
    stop: &AtomicBool,
) -> anyhow::Result<Vec<Vec<Timed>>> {
    std::thread::scope(|scope| {
        let callers: Vec<_> = besides
            .iter()
            .map(|beside| scope.spawn(|| sequential(beside, time, stop)))
            .collect();
        callers
            .into_iter()
            .map(|caller| {
                caller
                    .join()
                    .map_err(|_| anyhow::anyhow!("a caller panicked"))?
            })
            .collect()
    })
}

/// Calls of one, one after the other with a pause, until told to stop or the time is over.
fn sequential(beside: &Beside, time: Duration, stop: &AtomicBool) -> anyhow::Result<Vec<Timed>> {
    let mut connection = Connection::open(&beside.address)?;
    connection.request(beside.method, beside.path, &beside.body)?;
    let since = Instant::now();
    let mut calls = Vec::new();
    while since.elapsed() < time && !stop.load(Ordering::SeqCst) {
        calls.push(connection.request(beside.method, beside.path, &beside.body)?);
        std::thread::park_timeout(PAUSE);
    }
    Ok(calls)
}

/// The address of a thread that answers whatever it is asked, connection by connection, as long as this program runs.
fn answering() -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    let answer = |mut stream: TcpStream| -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut request = [0; 4096];
        // A request without a body, far smaller than this, is read at once.
        while stream.read(&mut request)? > 0 {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")?;
        }
        Ok(())
    };
    std::thread::Builder::new().spawn(move || {
        for stream in listener.incoming().flatten() {
            // Its caller sees that it is gone.
            let _ = answer(stream);
        }
    })?;
    Ok(address)
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
