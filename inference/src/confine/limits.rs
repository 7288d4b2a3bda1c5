//! Kernel limits and properties of the process: descriptors, memory, core dumps, privileges, the tie to the parent.
//!
//! Not set, on purpose: `RLIMIT_NPROC` counts all threads of the user, the platform's too, so any number would either be
//! meaningless or stop this process from starting a thread; new processes are seccomp's to refuse. `RLIMIT_AS` counts
//! addresses, of which models mapped from files and glibc's arenas take many times what they use.

use super::siblings::NO_CAPABILITIES;
use super::{ConfineError, Measure};
use rustix::fs::FileType;
use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal, getrlimit, setrlimit};
use std::os::fd::AsFd;

/// From -1000 to 1000; half of the machine's memory on top of what it really has makes it the first to go.
const OUT_OF_MEMORY_SCORE: &str = "500";

fn refused(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> ConfineError {
    move |errno| ConfineError::Refused {
        what,
        source: errno.into(),
    }
}

/// Sets a soft and hard limit; one that is lower already stays.
fn lower(resource: Resource, what: &'static str, to: u64) -> Result<(), ConfineError> {
    let old = getrlimit(resource);
    let maximum = old.maximum.map_or(to, |maximum| maximum.min(to));
    let current = old.current.map_or(maximum, |current| current.min(maximum));
    setrlimit(
        resource,
        Rlimit {
            current: Some(current),
            maximum: Some(maximum),
        },
    )
    .map_err(refused(what))
}

/// Makes the kernel prefer this process when memory runs out: models are loaded again, the platform is not.
pub(super) fn first_to_die() -> Measure {
    match std::fs::write("/proc/self/oom_score_adj", OUT_OF_MEMORY_SCORE) {
        Ok(()) => Measure::Enforced,
        Err(error) => Measure::Absent(format!("/proc/self/oom_score_adj: {error}")),
    }
}

/// Bounds private memory at what there is plus `more` bytes.
pub(super) fn memory(more: Option<u64>) -> Result<Measure, ConfineError> {
    let Some(more) = more else {
        return Ok(Measure::Unwanted);
    };
    // The sixth number is data and stack in pages; the limit counts data only, so this errs by the main thread's stack.
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|numbers| numbers.split_whitespace().nth(5)?.parse::<u64>().ok());
    let Some(pages) = pages else {
        return Ok(Measure::Absent("/proc/self/statm cannot be read".into()));
    };
    let now = pages.saturating_mul(rustix::param::page_size() as u64);
    lower(
        Resource::Data,
        "the limit of private memory (RLIMIT_DATA)",
        now.saturating_add(more),
    )?;
    Ok(Measure::Enforced)
}

/// Bounds the size of files, and a memfd is one.
pub(super) fn shared_memory(bytes: u64) -> Result<Measure, ConfineError> {
    // The limit ends a process that writes to a long log file, too: the platform gives its hosts a pipe.
    let log_is_file = [std::io::stdout().as_fd(), std::io::stderr().as_fd()]
        .into_iter()
        .any(|descriptor| {
            rustix::fs::fstat(descriptor)
                .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
        });
    if log_is_file {
        return Ok(Measure::Absent(
            "standard output or error is a file, which the limit would cut off".into(),
        ));
    }
    lower(
        Resource::Fsize,
        "the limit of file sizes (RLIMIT_FSIZE)",
        bytes,
    )?;
    Ok(Measure::Enforced)
}

/// Gives up every capability of the calling thread, and the way to get any from an executable. Returns whether it had one.
pub(super) fn privileges() -> Result<bool, ConfineError> {
    rustix::thread::set_no_new_privs(true).map_err(refused("no_new_privs"))?;
    let before = rustix::thread::capabilities(None).map_err(refused("capabilities"))?;
    rustix::thread::set_capabilities(None, NO_CAPABILITIES).map_err(refused("capabilities"))?;
    Ok(!before.permitted.is_empty() || !before.inheritable.is_empty())
}

/// No core dumps (they would hold models and inputs), no look from outside, few descriptors.
pub(super) fn process(open_files: u64) -> Result<Measure, ConfineError> {
    lower(Resource::Core, "no core dumps (RLIMIT_CORE)", 0)?;
    lower(
        Resource::Nofile,
        "the limit of descriptors (RLIMIT_NOFILE)",
        open_files,
    )?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(refused("not dumpable"))?;
    Ok(Measure::Enforced)
}

/// Has the kernel kill this process with `parent`.
pub(super) fn parent(parent: Option<u32>) -> Result<Measure, ConfineError> {
    let Some(parent) = parent else {
        return Ok(Measure::Unwanted);
    };
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(refused("the tie to its parent"))?;
    // It may have ended just before: then no signal comes any more, and somebody else is the parent.
    let now = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
    if now == Some(parent) {
        Ok(Measure::Enforced)
    } else {
        Err(ConfineError::ParentGone)
    }
}
