//! A reader of the documents, who types their commands: in a folder that looks like a clone, with `fnctl` on the PATH and a
//! platform at localhost:8080.
//!
//! The clone is a folder of links into the repository, so what a document makes beside them leaves nothing behind.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Output};
use tempfile::TempDir;

/// Seconds that a block of commands may take.
const LIMIT: &str = "60";
/// What is in a working copy and not in a clone.
const NOT_CLONED: [&str; 4] = [".git", "target", "fnctl-data", ".fnctl"];

/// Types commands.
#[derive(Debug)]
pub struct Reader {
    clone: TempDir,
    path: OsString,
    address: String,
}

impl Reader {
    /// One who has the programs of a folder on the PATH and a platform at `address`.
    pub fn new(programs: &Path, address: &str) -> Self {
        let clone = tempfile::tempdir().expect("a temporary folder");
        for entry in std::fs::read_dir(crate::root()).expect("the repository can be listed") {
            let entry = entry.expect("the repository can be listed");
            let name = entry.file_name();
            if !NOT_CLONED.iter().any(|other| name == *other) {
                std::os::unix::fs::symlink(entry.path(), clone.path().join(name)).expect("a link");
            }
        }
        // curl draws its progress where the output is no terminal.
        let settings = clone.path().join(".curlrc");
        std::fs::write(settings, "silent\nshow-error\n").expect("curl's settings");
        let mut path = vec![programs.to_path_buf()];
        path.extend(
            std::env::var_os("PATH")
                .iter()
                .flat_map(std::env::split_paths),
        );
        Self {
            clone,
            path: std::env::join_paths(path).expect("a PATH"),
            address: address.to_owned(),
        }
    }

    /// Runs lines of a shell until one fails. What they start is ended after a minute.
    pub fn types(&self, lines: &str) -> Output {
        let lines = lines.replace("localhost:8080", &self.address);
        Command::new("timeout")
            .args([LIMIT, "sh", "-e", "-c", &lines])
            .env("PATH", &self.path)
            .env("FNCTL_SERVER", format!("http://{}", self.address))
            .env("CURL_HOME", self.clone.path())
            .env("XDG_CONFIG_HOME", self.clone.path().join(".config"))
            .env_remove("FNCTL_TOKEN")
            .env_remove("FNCTL_TOKEN_FILE")
            .env_remove("FNCTL_CONTEXT")
            .current_dir(self.clone.path())
            .output()
            .expect("a shell")
    }

    /// The same with everything on stdout, as a terminal shows it.
    pub fn sees(&self, lines: &str) -> Output {
        self.types(&format!("exec 2>&1\n{lines}"))
    }
}
