//! Forcing bytes to disk, counted, with a place to stop for crash tests.

use parking_lot::Mutex;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Where a crash test wants the store to stop: before its n-th write, counting from 1, it makes the marker file and
/// waits there to be killed. Nothing of it is reachable in a release build.
#[derive(Debug, Clone)]
pub struct PauseAt {
    /// The write to stop before.
    pub write: u64,
    /// The file that says "now".
    pub marker: PathBuf,
}

/// The write steps of a store; does nothing unless a crash test says so.
#[derive(Debug, Clone, Default)]
pub struct WriteSteps(Option<Arc<(PauseAt, AtomicU64)>>);

impl WriteSteps {
    /// Stops before the given write.
    pub fn pause_at(at: PauseAt) -> Self {
        Self(Some(Arc::new((at, AtomicU64::new(0)))))
    }

    fn before_write(&self) {
        let Some(pause) = &self.0 else { return };
        let (at, count) = &**pause;
        if cfg!(debug_assertions) && count.fetch_add(1, Ordering::SeqCst) + 1 == at.write {
            let _ = std::fs::write(&at.marker, b"paused");
            loop {
                std::thread::park();
            }
        }
    }
}

#[derive(Debug)]
pub(crate) struct Durable {
    syncs: AtomicU64,
    steps: WriteSteps,
    /// sled has one writer here, so that two commits cannot be each other's half.
    pub(crate) writer: Mutex<()>,
}

impl Durable {
    pub(crate) fn new(steps: WriteSteps) -> Self {
        Self {
            syncs: AtomicU64::new(0),
            steps,
            writer: Mutex::new(()),
        }
    }

    /// To be called before every write that a crash could fall between.
    pub(crate) fn before_write(&self) {
        self.steps.before_write();
    }

    /// Forces a file, or a folder's entries, to disk.
    pub(crate) fn sync(&self, file: &File) -> io::Result<()> {
        self.before_write();
        file.sync_all()?;
        self.syncs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }
}
