//! What the inference host takes away from itself before it serves: descriptors, files, network, other processes.
//!
//! ONNX Runtime parses files that strangers made. Whoever takes it over shall find a process that can compute on the
//! memory and the descriptors it was given, and nothing else. [`confine`] is called once, after the library is loaded, its
//! environment is made and the control socket is open; it cannot be undone. Three independent layers: kernel limits
//! (`limits`), Landlock (`landlock`: files, TCP, signals) and seccomp (`seccomp`: the list of system calls).
//!
//! What the process may still do is the list in `seccomp`. Rules for whoever lives in it:
//! - a descriptor comes from the control socket (`SCM_RIGHTS`) or a memfd, never from a path. Its length comes from
//!   `rustix::fs::fstat` or `seek`: the C library's `fstat`, and so `File::metadata`, is a lookup by path to the kernel.
//! - the control socket is a stream or a sequenced-packet socket. A datagram socket could write to any other one.
//! - no mapping is executable any more: nothing is loaded with `dlopen` afterwards.
//! - ONNX Runtime is started with `ORT_DISABLE_TELEMETRY=1` in its environment, or its own uploader tries, in vain, to.
//!
//! Invariants: what the kernel does not have is reported, never passed over; every thread of the process is covered by
//! seccomp, whenever it was started.

#[cfg(target_os = "linux")]
mod landlock;
#[cfg(target_os = "linux")]
mod limits;
#[cfg(target_os = "linux")]
mod seccomp;
#[cfg(target_os = "linux")]
mod siblings;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests;

use std::fmt;

/// How much the process may still take. Every number is a ceiling; a lower one that is in force already stays.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Most descriptors open at once (`RLIMIT_NOFILE`). Those open already stay open even above it.
    pub(crate) open_files: u64,
    /// Most bytes of private memory from now on, on top of what the process has at the call (`RLIMIT_DATA`). It counts what
    /// could be touched, not what was: 2 MiB for each thread of Rust's and 8 MiB for each of C++'s. None = unbounded.
    pub(crate) memory: Option<u64>,
    /// Size in bytes of the largest memfd that the process may make or grow (`RLIMIT_FSIZE`). 0 = it may make none, and
    /// works with those it is given; together with `open_files` this bounds the shared memory it can take. Growing one
    /// further ends the process (`SIGXFSZ`). Not set where standard output or error is a file: give it a pipe.
    pub(crate) shared_memory: u64,
    /// The process that must not be outlived: its id as this process sees it. The kernel kills this process when the
    /// **thread** that started it ends, so start it from a thread that lives as long as the platform. None = no such tie.
    pub(crate) parent: Option<u32>,
}

/// How far one measure is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Measure {
    /// All of it.
    Enforced,
    /// Not all of it; the text says what is missing and why.
    Partial(String),
    /// None of it; the text says why.
    Absent(String),
    /// Not asked for.
    Unwanted,
}

/// What is in force after [`confine`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Confinement {
    /// No core dumps, not readable by other processes of the same user, descriptors bounded.
    pub(crate) process: Measure,
    /// Private memory bounded. What does not fit fails as an allocation: an error from ONNX Runtime, an abort from Rust.
    pub(crate) memory: Measure,
    /// Size of shared memory (and of any file) bounded.
    pub(crate) shared_memory: Measure,
    /// Killed with its parent.
    pub(crate) parent: Measure,
    /// Chosen by the kernel before the platform when memory runs out.
    pub(crate) first_to_die: Measure,
    /// No capability left, and none to be had from an executable.
    pub(crate) privileges: Measure,
    /// No path, no TCP port, no signal to another process.
    pub(crate) landlock: Measure,
    /// Only the listed system calls.
    pub(crate) seccomp: Measure,
}

/// Why the process could not be confined although the kernel knows how; it must not serve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfineError {
    /// The platform ended before its inference host was ready.
    #[error("the platform that started this inference host is gone")]
    ParentGone,
    /// A limit or a property of the process was refused.
    #[error("the inference host cannot set {what}: {source}")]
    Refused {
        /// What was to be set.
        what: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Landlock is there and refused the rules.
    #[error("the inference host cannot give up its file access by Landlock: {0}")]
    Landlock(String),
    /// seccomp is there and refused the filter.
    #[error("the inference host cannot give up system calls by seccomp: {0}")]
    Seccomp(String),
}

impl Confinement {
    /// The measures by name, in the order they are best told.
    pub(crate) fn measures(&self) -> [(&'static str, &Measure); 8] {
        [
            ("seccomp", &self.seccomp),
            ("landlock", &self.landlock),
            ("privileges", &self.privileges),
            ("process", &self.process),
            ("memory", &self.memory),
            ("shared_memory", &self.shared_memory),
            ("parent", &self.parent),
            ("first_to_die", &self.first_to_die),
        ]
    }

    /// What was asked for and nothing enforces, each with the reason. A part that only a newer Landlock covers is none
    /// as long as seccomp lets none of the system calls through that it would be needed for; nor is whom the kernel ends
    /// first, which confines nobody.
    pub(crate) fn gaps(&self) -> Vec<String> {
        let missing = |(name, measure): (&'static str, &Measure)| {
            let is_gap = match measure {
                Measure::Absent(_) => name != "first_to_die",
                Measure::Partial(_) => name != "landlock" || self.seccomp != Measure::Enforced,
                Measure::Enforced | Measure::Unwanted => false,
            };
            is_gap.then(|| format!("{name}: {measure}"))
        };
        self.measures().into_iter().filter_map(missing).collect()
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enforced => f.write_str("enforced"),
            Self::Partial(why) => write!(f, "partial ({why})"),
            Self::Absent(why) => write!(f, "absent ({why})"),
            Self::Unwanted => f.write_str("not asked for"),
        }
    }
}

impl fmt::Display for Confinement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, measure)) in self.measures().iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{name}: {measure}")?;
        }
        Ok(())
    }
}

/// Confines this process for the rest of its life: see the module. Call it once, with no signal blocked: threads that run
/// already give up what the kernel keeps for each alone (capabilities, Landlock before Linux 7.0) in a signal's handler,
/// each within 200 ms, and the result counts those that did not. `SIGRTMAX` is ignored afterwards.
#[cfg(target_os = "linux")]
pub(crate) fn confine(limits: &Limits) -> Result<Confinement, ConfineError> {
    use std::os::fd::AsFd;
    // Everything that reads or writes a file comes before Landlock, everything that is a forbidden call before seccomp.
    let first_to_die = limits::first_to_die();
    let memory = limits::memory(limits.memory)?;
    let shared_memory = limits::shared_memory(limits.shared_memory)?;
    let rules = landlock::rules()?;
    let uncovered = siblings::give_up(landlock::descriptor(&rules)?.as_ref().map(AsFd::as_fd));
    let was_privileged = limits::privileges()?;
    let process = limits::process(limits.open_files)?;
    // After the capabilities: giving them up can reset it.
    let parent = limits::parent(limits.parent)?;
    let landlock = landlock::enforce(rules, uncovered)?;
    let seccomp = seccomp::enforce(limits.shared_memory > 0)?;
    Ok(Confinement {
        process,
        memory,
        shared_memory,
        parent,
        first_to_die,
        privileges: match uncovered {
            Some(0) => Measure::Enforced,
            // Threads have what the process was started with, and that was nothing.
            _ if !was_privileged => Measure::Enforced,
            Some(uncovered) => Measure::Partial(format!(
                "{uncovered} of the threads that ran before keep their capabilities"
            )),
            None => Measure::Partial("threads that ran before keep their capabilities".into()),
        },
        landlock,
        seccomp,
    })
}

/// Nothing can be confined on this system, and the result says so.
#[cfg(not(target_os = "linux"))]
pub(crate) fn confine(_limits: &Limits) -> Result<Confinement, ConfineError> {
    let absent = || Measure::Absent("this system is not Linux".into());
    Ok(Confinement {
        process: absent(),
        memory: absent(),
        shared_memory: absent(),
        parent: absent(),
        first_to_die: absent(),
        privileges: absent(),
        landlock: absent(),
        seccomp: absent(),
    })
}
