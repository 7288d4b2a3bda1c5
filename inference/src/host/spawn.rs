//! Starting a host's process.
//!
//! From one thread that lives as long as the platform: a host asks to be killed when its parent dies, and for Linux the
//! parent is the thread that started it.

use super::socket;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use tokio::sync::oneshot;

/// The hidden subcommand of the same program.
pub const SUBCOMMAND: &str = "inference-host";

/// A process that was started, and our end of its control socket.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) child: Child,
    pub(crate) socket: OwnedFd,
}

struct Request {
    program: PathBuf,
    answer: oneshot::Sender<io::Result<Spawned>>,
}

static SPAWNER: OnceLock<io::Result<SyncSender<Request>>> = OnceLock::new();

fn start_spawner() -> io::Result<SyncSender<Request>> {
    let (tx, rx) = sync_channel::<Request>(64);
    std::thread::Builder::new()
        .name("fnctl-spawner".into())
        .spawn(move || {
            while let Ok(request) = rx.recv() {
                // Whoever does not wait any more gets a process that ends by itself: its socket is dropped.
                let _ = request.answer.send(spawn_now(&request.program));
            }
        })?;
    Ok(tx)
}

/// Starts a host.
pub(crate) async fn spawn(program: &Path) -> io::Result<Spawned> {
    let spawner = SPAWNER
        .get_or_init(start_spawner)
        .as_ref()
        .map_err(|error| io::Error::new(error.kind(), error.to_string()))?;
    let (answer, spawned) = oneshot::channel();
    let request = Request {
        program: program.to_path_buf(),
        answer,
    };
    spawner
        .try_send(request)
        .map_err(|_| io::Error::other("too many inference hosts start at once"))?;
    spawned
        .await
        .map_err(|_| io::Error::other("the thread that starts inference hosts is gone"))?
}

fn spawn_now(program: &Path) -> io::Result<Spawned> {
    let (ours, theirs) = socket::pair()?;
    // Nothing of the platform's environment: it may hold tokens.
    let keep: Vec<(&str, OsString)> = ["LD_LIBRARY_PATH", "MALLOC_ARENA_MAX", "RUST_BACKTRACE"]
        .into_iter()
        .filter_map(|name| Some((name, std::env::var_os(name)?)))
        .collect();
    let child = Command::new(program)
        .arg(SUBCOMMAND)
        .env_clear()
        .envs(keep)
        .env("ORT_DISABLE_TELEMETRY", "1")
        .current_dir("/")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // Ctrl-C is for the platform, which drains first: its hosts have to be there for that.
        .process_group(0)
        .spawn()?;
    Ok(Spawned {
        child,
        socket: ours,
    })
}
