//! What the keep-alive policies learned and what the scheduler measured, kept over a restart in one file of the data
//! folder.
//!
//! It is disposable: a file that is missing, damaged, too large or of another format is as good as none. Policies that
//! know nothing of a function keep its instances for at least its `keep_alive`, and what was not measured is measured
//! with the first calls.

use fnctl_core::ids::FunctionName;
use fnctl_scheduler::policy::History;
use fnctl_scheduler::{MeasuredVersion, Scheduler};
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
    measured: Vec<MeasuredVersion>,
}

/// The file of a data folder.
pub(crate) fn path(folder: &Path) -> PathBuf {
    folder.join("keep-alive.json")
}

/// Gives the scheduler what an earlier run had learned.
pub(crate) fn restore(path: &Path, scheduler: &Scheduler) {
    match read(path) {
        Ok(file) => {
            scheduler.restore_histories(file.histories);
            scheduler.restore_measured(file.measured);
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "what keep-alive policies had learned and what was measured is lost; both begin anew");
        }
    }
}

fn read(path: &Path) -> io::Result<File> {
    let mut text = Vec::new();
    std::fs::File::open(path)?
        .take(MOST)
        .read_to_end(&mut text)?;
    let file: File = serde_json::from_slice(&text)?;
    if file.format == FORMAT {
        Ok(file)
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
        measured: scheduler.measured(),
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
        tracing::warn!(path = %path.display(), %error, "what keep-alive policies learned and what was measured was not written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> io::Result<File> {
        let folder = tempfile::tempdir()?;
        let path = path(folder.path());
        std::fs::write(&path, text)?;
        read(&path)
    }

    #[test]
    fn a_file_is_read_and_one_that_is_damaged_or_older_is_not() {
        let numbers = r#"{"service":[0.01,3],"start":[0.1,1],"cost":900,"memory":3145728}"#;
        let one = format!(r#"{{"format":2,"histories":[],"measured":[["echo",2,{numbers}]]}}"#);
        let read = read_text(&one).unwrap();
        let (function, number, _) = &read.measured[0];
        assert_eq!((function.as_str(), number.0), ("echo", 2));
        for damaged in [
            "",
            "{\"format\":2,\"histories\":[",
            "{\"format\":1,\"histories\":[],\"measured\":[]}",
            // A time that no call took.
            &one.replace("0.01", "1e300"),
            &one.replace("\"echo\"", "\"../echo\""),
        ] {
            assert!(read_text(damaged).is_err(), "{damaged}");
        }
    }
}
