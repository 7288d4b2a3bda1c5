//! What the keep-alive policies learned, kept over a restart in one file of the data folder.
//!
//! It is disposable: a file that is missing, damaged, too large or of another format is as good as none, and policies
//! that know nothing of a function keep its instances for at least its `keep_alive`.

use fnctl_core::ids::FunctionName;
use fnctl_scheduler::Scheduler;
use fnctl_scheduler::policy::History;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// The format of the file. Another one is not read.
const FORMAT: u32 = 2;
/// Most bytes that are read.
const MOST: u64 = 256 << 20;

#[derive(Serialize, Deserialize)]
struct File {
    format: u32,
    histories: Vec<(FunctionName, History)>,
}

/// The file of a data folder.
pub(crate) fn path(folder: &Path) -> PathBuf {
    folder.join("keep-alive.json")
}

/// Gives the scheduler what an earlier run had learned.
pub(crate) fn restore(path: &Path, scheduler: &Scheduler) {
    match read(path) {
        Ok(histories) => scheduler.restore_histories(histories),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "what keep-alive policies had learned is lost; they learn again");
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<(FunctionName, History)>> {
    let mut text = Vec::new();
    std::fs::File::open(path)?
        .take(MOST)
        .read_to_end(&mut text)?;
    let file: File = serde_json::from_slice(&text)?;
    if file.format == FORMAT {
        Ok(file.histories)
    } else {
        Err(io::Error::other(format!(
            "its format is {}, not {FORMAT}",
            file.format
        )))
    }
}

/// Writes what was learned until now: a new file in the old one's place, so that there is always a whole one.
pub(crate) fn save(path: &Path, scheduler: &Scheduler) {
    let file = File {
        format: FORMAT,
        histories: scheduler.histories(),
    };
    let fresh = path.with_extension("json.new");
    let written = serde_json::to_vec(&file)
        .map_err(io::Error::other)
        .and_then(|text| {
            let mut out = std::fs::File::create(&fresh)?;
            out.write_all(&text)?;
            std::fs::rename(&fresh, path)
        });
    if let Err(error) = written {
        tracing::warn!(path = %path.display(), %error, "what keep-alive policies learned was not written");
    }
}
