//! The verdicts: facts in, findings out. Nothing here looks at the machine.

use super::{Finding, Level};
use crate::build::Missing;
use fnctl_core::units::ByteSize;
use fnctl_platform::MemoryLimit;
use fnctl_platform::machine::{self, Memory};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Free space in the data folder under which deploys are likely to fail, and under which they will.
const LITTLE_DISK: u64 = 2 << 30;
const NO_DISK: u64 = 256 << 20;
/// File descriptors beside those of connections: the store, the engine, models being read.
const OWN_FILES: u64 = 256;
/// A clock before this is not set: 2025-01-01, in seconds since 1970.
const PAST: u64 = 1_735_689_600;
/// Difference to the platform's clock from which logs of the two no longer fit together.
const SKEW: Duration = Duration::from_secs(30);

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// The settings of `serve`, each problem by itself.
pub(crate) fn settings(problems: &[String]) -> Finding {
    const CHECK: &str = "settings";
    if problems.is_empty() {
        return Finding::ok(CHECK, "right");
    }
    Finding::bad(
        CHECK,
        Level::Fail,
        problems.join("; "),
        "correct fnctl.toml and FNCTL_* variables; `fnctl config check` tells when they are right",
    )
}

/// ONNX Runtime: the library that would be used, or why none can; and paths that were named and lead nowhere.
pub(crate) fn library(
    probed: &Result<(PathBuf, u32), String>,
    nowhere: &[(String, PathBuf)],
) -> Finding {
    const CHECK: &str = "onnxruntime";
    const FIX: &str = "run `cargo xtask setup` in fnctl's source; or `pip download --no-deps onnxruntime`, unzip the wheel, and set ORT_DYLIB_PATH to its onnxruntime/capi/libonnxruntime.so*";
    match (probed, nowhere.first()) {
        (Err(error), _) => Finding::bad(CHECK, Level::Fail, error.clone(), FIX),
        (Ok((path, _)), Some((name, wrong))) => Finding::bad(
            CHECK,
            Level::Warn,
            format!(
                "{name} names {}, which is no file; {} is used instead",
                wrong.display(),
                path.display()
            ),
            format!("unset {name}, or set it to a libonnxruntime.so"),
        ),
        (Ok((path, version)), None) => {
            Finding::ok(CHECK, format!("1.{version}, {}", path.display()))
        }
    }
}

/// An inference host that was started to look at it: milliseconds that took, and what the system does not enforce of its
/// confinement.
pub(crate) fn inference_host(probed: &Result<(u128, Vec<String>), String>) -> Finding {
    const CHECK: &str = "inference";
    match probed {
        Ok((ms, missing)) if missing.is_empty() => Finding::ok(
            CHECK,
            format!("a host of its own, wholly confined, is up in {ms} ms"),
        ),
        Ok((_, missing)) => Finding::bad(
            CHECK,
            Level::Warn,
            format!(
                "the system does not confine inference hosts wholly: {}",
                missing.join("; ")
            ),
            "run a kernel with seccomp and Landlock (Linux 5.13 or later, `landlock` in its lsm list); inference.require_confinement refuses to serve without",
        ),
        Err(error) => Finding::bad(
            CHECK,
            Level::Fail,
            format!("no inference host can be started: {error}"),
            "see onnxruntime above; inference.process = \"in-process\" does without hosts",
        ),
    }
}

/// What a language's functions are built with.
pub(crate) fn tool_chain(check: &'static str, found: &Result<String, Missing>) -> Finding {
    match found {
        Ok(found) => Finding::ok(check, found.clone()),
        Err(missing) => Finding::bad(
            check,
            Level::Warn,
            format!(
                "{} is missing; only building functions needs it",
                missing.what
            ),
            missing.fix.clone(),
        ),
    }
}

/// What an address is used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Port {
    Free,
    /// A platform answers there.
    Platform,
    /// It cannot be had.
    Taken(String),
}

/// The address that `serve` would listen on.
pub(crate) fn port(listen: &str, port: &Port) -> Finding {
    const CHECK: &str = "port";
    match port {
        Port::Free => Finding::ok(CHECK, format!("{listen} is free")),
        Port::Platform => Finding::ok(CHECK, format!("{listen} is a platform's")),
        Port::Taken(cause) => Finding::bad(
            CHECK,
            Level::Fail,
            format!("{listen} cannot be listened on: {cause}"),
            "choose another with --listen or gateway.listen, or stop the program that has it",
        ),
    }
}

/// Free space where the data lies, in bytes.
pub(crate) fn disk(folder: &Path, free: Option<u64>) -> Finding {
    const CHECK: &str = "disk";
    let Some(free) = free else {
        return Finding::bad(
            CHECK,
            Level::Warn,
            format!("the free space of {} is unknown", folder.display()),
            "check it with `df`",
        );
    };
    let found = format!("{} free for {}", mib(free), folder.display());
    let status = match free {
        0..NO_DISK => Level::Fail,
        NO_DISK..LITTLE_DISK => Level::Warn,
        _ => return Finding::ok(CHECK, found),
    };
    Finding::bad(
        CHECK,
        status,
        found,
        "free some, or put platform.data on a larger disk",
    )
}

/// Open files: the soft and the hard limit (none = unlimited) against the connections that are allowed.
pub(crate) fn open_files(soft: Option<u64>, hard: Option<u64>, max_connections: usize) -> Finding {
    const CHECK: &str = "open files";
    let wanted = u64::try_from(max_connections)
        .unwrap_or(u64::MAX)
        .saturating_add(OWN_FILES);
    let Some(limit) = soft.filter(|soft| *soft < wanted) else {
        let limit = soft.map_or_else(|| "unlimited".to_owned(), |soft| soft.to_string());
        return Finding::ok(CHECK, format!("{limit} (limit)"));
    };
    let status = if limit < OWN_FILES {
        Level::Fail
    } else {
        Level::Warn
    };
    let fix = if hard.is_none_or(|hard| hard >= wanted) {
        format!("run `ulimit -n {wanted}` before `fnctl serve`, or set LimitNOFILE in its service")
    } else {
        format!(
            "raise the hard limit to {wanted} (limits.conf, LimitNOFILE), or lower gateway.max_connections"
        )
    };
    Finding::bad(
        CHECK,
        status,
        format!(
            "{limit} (limit), but gateway.max_connections = {max_connections} may use {wanted}"
        ),
        fix,
    )
}

/// Whether the engine could reserve its address space; if not, what limits it. `limit` is RLIMIT_AS in bytes,
/// `overcommit` is `vm.overcommit_memory`.
pub(crate) fn address_space(
    reserved: &Result<(), String>,
    limit: Option<u64>,
    overcommit: Option<u32>,
) -> Finding {
    const CHECK: &str = "address space";
    match reserved {
        Ok(()) => Finding::ok(
            CHECK,
            "the engine can reserve what worker.max_instances needs",
        ),
        Err(error) => {
            let lower = "lower worker.max_instances or worker.max_memory";
            let fix = match (limit, overcommit) {
                (Some(limit), _) => format!("raise `ulimit -v` (now {}), or {lower}", mib(limit)),
                (None, Some(2)) => format!(
                    "set vm.overcommit_memory to 0 or 1 (`sysctl vm.overcommit_memory=0`), or {lower}"
                ),
                _ => lower.to_owned(),
            };
            Finding::bad(CHECK, Level::Fail, error.clone(), fix)
        }
    }
}

/// The memory that this process may use, in bytes, against what models may take.
pub(crate) fn memory(limit: Option<Memory>, models: ByteSize, together: MemoryLimit) -> Finding {
    const CHECK: &str = "memory";
    let Some(limit) = limit else {
        return Finding::ok(CHECK, format!("limit unknown; models may take {models}"));
    };
    let settled = match (together, machine::settle(together, Some(limit))) {
        (MemoryLimit::Auto, MemoryLimit::At(size)) => format!("auto ({})", mib(size.bytes())),
        (said, _) => said.to_string(),
    };
    let found = format!(
        "{} ({}); scheduler.memory is {settled}, inference.memory is {models}",
        mib(limit.bytes),
        limit.whose
    );
    let limit = limit.bytes;
    if together.bytes() >= limit {
        return Finding::bad(
            CHECK,
            Level::Warn,
            format!("{found}: the kernel would end the platform before idle instances make room"),
            "set scheduler.memory to auto, or to less than there is",
        );
    }
    if models.bytes() < limit / 10 * 9 {
        return Finding::ok(CHECK, found);
    }
    Finding::bad(
        CHECK,
        Level::Warn,
        format!("{found}: the kernel would end the platform before the budget does"),
        format!(
            "set inference.memory to at most {}MiB, or give it more memory",
            (limit / 4 * 3) >> 20
        ),
    )
}

/// What is known of the data folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Folder {
    /// With its permission bits, and whether it can be written to.
    There {
        mode: u32,
        writable: Result<(), String>,
    },
    /// It would be made in a folder that can, or cannot, be written to.
    Absent { writable: Result<(), String> },
}

/// The data folder: it holds the functions' environment variables, which may be secret.
pub(crate) fn data(path: &Path, folder: &Folder) -> Finding {
    const CHECK: &str = "data folder";
    let path = path.display();
    match folder {
        Folder::There {
            writable: Err(cause),
            ..
        }
        | Folder::Absent {
            writable: Err(cause),
        } => Finding::bad(
            CHECK,
            Level::Fail,
            format!("{path} cannot be written to: {cause}"),
            "run as its owner (`chown`), or choose another with --data or platform.data",
        ),
        Folder::There { mode, .. } if mode & 0o007 != 0 => Finding::bad(
            CHECK,
            Level::Warn,
            format!(
                "{path} is open to every user of this machine (mode {:03o}), and holds the functions' environment",
                mode & 0o777
            ),
            format!("run `chmod o-rwx {path}`"),
        ),
        Folder::There { .. } => {
            Finding::ok(CHECK, format!("{path} is there and can be written to"))
        }
        Folder::Absent { .. } => Finding::ok(CHECK, format!("{path} will be made")),
    }
}

/// The cache folder of downloads and tool chains.
pub(crate) fn cache(path: Option<&Path>, writable: &Result<(), String>) -> Finding {
    const CHECK: &str = "cache folder";
    match (path, writable) {
        (None, _) => Finding::bad(
            CHECK,
            Level::Warn,
            "there is no HOME",
            "set FNCTL_CACHE to a folder",
        ),
        (Some(path), Ok(())) => Finding::ok(CHECK, path.display().to_string()),
        (Some(path), Err(cause)) => Finding::bad(
            CHECK,
            Level::Warn,
            format!("{} cannot be written to: {cause}", path.display()),
            "correct its permissions, or set FNCTL_CACHE to another folder",
        ),
    }
}

/// What came of asking the platform that commands would talk to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reach {
    Answers,
    /// It wants another token.
    Refuses,
    Nobody(String),
}

/// The platform that commands talk to.
pub(crate) fn platform(server: &str, reach: &Reach) -> Finding {
    const CHECK: &str = "platform";
    match reach {
        Reach::Answers => Finding::ok(CHECK, format!("answers at {server}")),
        Reach::Refuses => Finding::bad(
            CHECK,
            Level::Fail,
            format!("{server} refuses this token"),
            "set FNCTL_TOKEN to the one that the platform was started with",
        ),
        Reach::Nobody(cause) => Finding::bad(
            CHECK,
            Level::Warn,
            format!("none answers at {server} ({cause})"),
            "start one with `fnctl serve`, or name it with --server or FNCTL_SERVER",
        ),
    }
}

/// This machine's clock, and the platform's if it told one.
pub(crate) fn clock(now: SystemTime, platform: Option<SystemTime>) -> Finding {
    const CHECK: &str = "clock";
    const FIX: &str = "set it, and keep it with NTP (`timedatectl set-ntp true`)";
    let since = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    if since < PAST {
        return Finding::bad(
            CHECK,
            Level::Fail,
            "it is before 2025, so TLS and ages cannot be right",
            FIX,
        );
    }
    let skew = platform.map(|platform| {
        now.duration_since(platform)
            .unwrap_or_else(|error| error.duration())
    });
    match skew {
        Some(skew) if skew > SKEW => Finding::bad(
            CHECK,
            Level::Warn,
            format!("{} s apart from the platform's", skew.as_secs()),
            FIX,
        ),
        Some(_) => Finding::ok(CHECK, "agrees with the platform's"),
        None => Finding::ok(CHECK, "set"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn has(gib: u64, whose: &'static str) -> Option<Memory> {
        let bytes = gib * GIB;
        Some(Memory { bytes, whose })
    }

    fn limited(gib: u64) -> MemoryLimit {
        ByteSize(gib * GIB).into()
    }

    fn missing() -> Result<String, Missing> {
        Err(Missing {
            what: "x".into(),
            fix: "get x".into(),
        })
    }

    #[test]
    fn every_verdict_by_its_facts() {
        let path = Path::new("/d");
        let no = || Err::<(), _>("denied".to_owned());
        let found = || Ok::<_, String>((PathBuf::from("/l.so"), 31));
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let there = |mode| Folder::There {
            mode,
            writable: Ok(()),
        };
        // What was judged, how bad it must be, and what the fix must say.
        let table = [
            (settings(&[]), Level::Ok, ""),
            (settings(&["a".into()]), Level::Fail, "config check"),
            (inference_host(&Ok((30, Vec::new()))), Level::Ok, ""),
            (
                inference_host(&Ok((30, vec!["landlock: absent".into()]))),
                Level::Warn,
                "Landlock",
            ),
            (
                inference_host(&Err("it ended".into())),
                Level::Fail,
                "in-process",
            ),
            (library(&found(), &[]), Level::Ok, ""),
            (
                library(&Err("none".into()), &[]),
                Level::Fail,
                "ORT_DYLIB_PATH",
            ),
            (
                library(&found(), &[("ORT_DYLIB_PATH".into(), "/no".into())]),
                Level::Warn,
                "unset ORT_DYLIB_PATH",
            ),
            (
                tool_chain("rust", &Ok("wasm32-wasip2".into())),
                Level::Ok,
                "",
            ),
            (tool_chain("rust", &missing()), Level::Warn, "get x"),
            (port("a:1", &Port::Free), Level::Ok, ""),
            (port("a:1", &Port::Platform), Level::Ok, ""),
            (
                port("a:1", &Port::Taken("in use".into())),
                Level::Fail,
                "--listen",
            ),
            (disk(path, Some(3 * GIB)), Level::Ok, ""),
            (disk(path, Some(GIB)), Level::Warn, "platform.data"),
            (disk(path, Some(1)), Level::Fail, "platform.data"),
            (disk(path, None), Level::Warn, "df"),
            (open_files(None, None, 1000), Level::Ok, ""),
            (open_files(Some(1256), None, 1000), Level::Ok, ""),
            (
                open_files(Some(1255), None, 1000),
                Level::Warn,
                "ulimit -n 1256",
            ),
            (
                open_files(Some(1024), Some(1024), 1000),
                Level::Warn,
                "hard limit",
            ),
            (
                open_files(Some(64), Some(64), 1000),
                Level::Fail,
                "hard limit",
            ),
            (address_space(&Ok(()), Some(1), Some(2)), Level::Ok, ""),
            (
                address_space(&no(), Some(GIB), Some(0)),
                Level::Fail,
                "ulimit -v` (now 1024 MiB)",
            ),
            (
                address_space(&no(), None, Some(2)),
                Level::Fail,
                "overcommit",
            ),
            (
                address_space(&no(), None, Some(0)),
                Level::Fail,
                "worker.max_instances",
            ),
            (
                memory(has(8, "this machine"), ByteSize(4 * GIB), MemoryLimit::Auto),
                Level::Ok,
                "",
            ),
            (
                memory(has(1, "cgroup"), ByteSize(4 * GIB), MemoryLimit::Auto),
                Level::Warn,
                "768MiB",
            ),
            (
                memory(has(8, "cgroup"), ByteSize(4 * GIB), limited(9)),
                Level::Warn,
                "scheduler.memory to auto",
            ),
            (
                memory(None, ByteSize(4 * GIB), MemoryLimit::Auto),
                Level::Ok,
                "",
            ),
            (data(path, &there(0o40_700)), Level::Ok, ""),
            (data(path, &there(0o40_755)), Level::Warn, "chmod o-rwx /d"),
            (
                data(
                    path,
                    &Folder::There {
                        mode: 0o700,
                        writable: no(),
                    },
                ),
                Level::Fail,
                "chown",
            ),
            (
                data(path, &Folder::Absent { writable: Ok(()) }),
                Level::Ok,
                "",
            ),
            (
                data(path, &Folder::Absent { writable: no() }),
                Level::Fail,
                "--data",
            ),
            (cache(Some(path), &Ok(())), Level::Ok, ""),
            (cache(Some(path), &no()), Level::Warn, "FNCTL_CACHE"),
            (cache(None, &Ok(())), Level::Warn, "FNCTL_CACHE"),
            (platform("http://x", &Reach::Answers), Level::Ok, ""),
            (
                platform("http://x", &Reach::Refuses),
                Level::Fail,
                "FNCTL_TOKEN",
            ),
            (
                platform("http://x", &Reach::Nobody("refused".into())),
                Level::Warn,
                "fnctl serve",
            ),
            (clock(at(PAST), None), Level::Ok, ""),
            (clock(at(PAST - 1), None), Level::Fail, "NTP"),
            (clock(at(PAST), Some(at(PAST + 31))), Level::Warn, "NTP"),
            (clock(at(PAST), Some(at(PAST - 30))), Level::Ok, ""),
        ];
        for (finding, status, fix) in table {
            assert_eq!(finding.status, status, "{finding:?}");
            assert_eq!(finding.fix.is_none(), status == Level::Ok, "{finding:?}");
            assert!(
                finding.fix.as_deref().unwrap_or("").contains(fix),
                "{finding:?}"
            );
            assert!(!finding.found.is_empty(), "{finding:?}");
        }
    }
}
