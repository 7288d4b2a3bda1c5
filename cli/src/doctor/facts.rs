//! Asking the machine. Every question is bounded in time and changes nothing that stays.

use super::checks::{Folder, Port, Reach};
use crate::app::App;
use crate::build::{Missing, RustFacts, on_path, tool_advice};
use crate::client::{Client, ClientError};
use crate::target::{Origin, Target};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

/// How long a platform may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Whether a file can be made in a folder, which must be there.
fn can_write(folder: &Path) -> Result<(), String> {
    tempfile::Builder::new()
        .prefix(".fnctl-doctor-")
        .tempfile_in(folder)
        .map(drop)
        // The path of a file that was never made helps nobody.
        .map_err(|error| std::io::Error::from(error.kind()).to_string())
}

/// The nearest folder above (or at) a path that exists.
fn existing(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    absolute
        .ancestors()
        .find(|folder| folder.is_dir())
        .unwrap_or(Path::new("/"))
        .to_path_buf()
}

pub(crate) fn data_folder(path: &Path) -> Folder {
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => Folder::There {
            mode: metadata.permissions().mode(),
            writable: can_write(path),
        },
        Ok(_) => Folder::Absent {
            writable: Err("it is a file".to_owned()),
        },
        Err(_) => Folder::Absent {
            writable: can_write(&existing(path)),
        },
    }
}

/// Whether the cache folder, or the one it would be made in, can be written to.
pub(crate) fn cache_folder(path: &Path) -> Result<(), String> {
    can_write(&existing(path))
}

/// Bytes that this user may still write where a path lies.
pub(crate) fn free_space(path: &Path) -> Option<u64> {
    let space = rustix::fs::statvfs(existing(path)).ok()?;
    space.f_bavail.checked_mul(space.f_frsize)
}

/// The soft and the hard limit of open files; none = unlimited.
pub(crate) fn open_files() -> (Option<u64>, Option<u64>) {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    (limit.current, limit.maximum)
}

/// RLIMIT_AS in bytes; none = unlimited.
pub(crate) fn address_space() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::As).current
}

/// `vm.overcommit_memory`; none where there is no such thing.
pub(crate) fn overcommit() -> Option<u32> {
    std::fs::read_to_string("/proc/sys/vm/overcommit_memory")
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// The platform that commands talk to, what it says, and its clock.
pub(crate) fn platform(app: &App) -> (String, Reach, Option<SystemTime>) {
    let target = match app.target() {
        Ok(target) => target,
        Err(error) => {
            return (
                "the platform".to_owned(),
                Reach::Nobody(error.to_string()),
                None,
            );
        }
    };
    let server = target.server.clone();
    match Client::new(&target) {
        Ok(client) => (server, reach(&client), client.clock(ANSWER)),
        Err(error) => (server, Reach::Nobody(error.to_string()), None),
    }
}

fn reach(client: &Client) -> Reach {
    match client.probe("/api/v1/status", ANSWER) {
        Ok((200, _)) => Reach::Answers,
        Ok((401 | 403, _)) => Reach::Refuses,
        Ok((status, _)) => Reach::Nobody(format!(
            "something else answers there, with status {status}"
        )),
        Err(error) => match error.downcast_ref::<ClientError>() {
            Some(ClientError::Unreachable { cause, .. }) => Reach::Nobody(cause.clone()),
            _ => Reach::Nobody(error.to_string()),
        },
    }
}

/// Whether an address can be listened on, or a platform does already.
pub(crate) fn port(listen: &str) -> Port {
    let Err(error) = TcpListener::bind(listen) else {
        return Port::Free;
    };
    let target = Target {
        server: format!("http://{}", listen.replace("0.0.0.0", "127.0.0.1")),
        token: None,
        ca_file: None,
        origin: Origin::Default,
    };
    match Client::new(&target).map(|client| reach(&client)) {
        Ok(Reach::Answers | Reach::Refuses) => Port::Platform,
        _ => Port::Taken(error.to_string()),
    }
}

/// Paths of the library that somebody named and that are no files.
pub(crate) fn named_nowhere(setting: Option<&Path>) -> Vec<(String, PathBuf)> {
    let variable = std::env::var_os("ORT_DYLIB_PATH")
        .filter(|path| !path.is_empty())
        .map(|path| ("ORT_DYLIB_PATH".to_owned(), PathBuf::from(path)));
    let setting = setting.map(|path| ("inference.library".to_owned(), path.to_path_buf()));
    [setting, variable]
        .into_iter()
        .flatten()
        .filter(|(_, path)| !path.is_file())
        .collect()
}

/// What each language's functions are built with.
pub(crate) fn tool_chains() -> Vec<(&'static str, Result<String, Missing>)> {
    let here = Path::new(".");
    let program = |name: &str| {
        on_path(name)
            .map(|path| path.display().to_string())
            .ok_or_else(|| Missing {
                what: name.to_owned(),
                fix: tool_advice(name, here),
            })
    };
    let zig = program("zig").or_else(|missing| {
        let mut python = Command::new("python3");
        python.args(["-m", "ziglang", "version"]);
        says(python)
            .map(|version| format!("python3 -m ziglang {version}"))
            .ok_or(missing)
    });
    vec![
        ("rust", crate::build::rust_advice(&RustFacts::gather(here))),
        ("python", program("componentize-py")),
        (
            "javascript",
            program("node").and_then(|node| program("npm").map(|_| node)),
        ),
        ("c", zig),
    ]
}

/// The first line a program prints, if it succeeds.
fn says(mut command: Command) -> Option<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_and_ports_are_told_apart() {
        let home = tempfile::tempdir().unwrap();
        let there = data_folder(home.path());
        assert!(
            matches!(
                there,
                Folder::There {
                    writable: Ok(()),
                    ..
                }
            ),
            "{there:?}"
        );
        let absent = data_folder(&home.path().join("a/b"));
        assert_eq!(absent, Folder::Absent { writable: Ok(()) });
        assert!(
            std::fs::read_dir(home.path()).unwrap().next().is_none(),
            "nothing stays behind"
        );
        let file = home.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(
            data_folder(&file),
            Folder::Absent { writable: Err(_) }
        ));
        assert!(free_space(&home.path().join("a/b")).unwrap() > 0);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        // Whoever connects is turned away at once.
        let thread = std::thread::spawn(move || drop(listener.accept()));
        assert!(matches!(port(&address), Port::Taken(_)));
        thread.join().unwrap();
        assert_eq!(port(&address), Port::Free);
    }
}
