//! Why a host ended, and whose doing that was.

use super::quarantine::{Inhabitants, Suspect};
use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// Why a host ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reason {
    /// It was told to.
    Stopped,
    /// Somebody outside killed it, or stopped it for so long that the platform did.
    Killed,
    /// A signal that a program brings upon itself, or an exit nobody asked for.
    Crashed(String),
    /// The system was out of memory.
    OutOfMemory,
    /// It did not answer, or a run did not end.
    Hung(&'static str),
    /// It said something that cannot be true.
    Lied(&'static str),
}

impl Reason {
    /// The labels of deaths that nobody asked for.
    pub(crate) const LABELS: [&str; 5] = ["killed", "crashed", "out_of_memory", "hung", "lied"];

    /// The metric label.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Killed => "killed",
            Self::Crashed(_) => "crashed",
            Self::OutOfMemory => "out_of_memory",
            Self::Hung(_) => "hung",
            Self::Lied(_) => "lied",
        }
    }

    /// Whether a model in it may be the cause.
    pub(crate) fn blames_a_model(&self) -> bool {
        match self {
            Self::Stopped | Self::Killed => false,
            Self::Crashed(_) | Self::OutOfMemory | Self::Hung(_) | Self::Lied(_) => true,
        }
    }

    /// From how the process ended, if the platform did not end it itself. `oom_kills` says whether the system killed a
    /// process for memory meanwhile.
    pub(crate) fn of_exit(status: ExitStatus, oom_kills: bool) -> Self {
        match (status.signal(), status.code()) {
            // SIGKILL: a model cannot send it. The system can, on a model's account.
            (Some(9), _) if oom_kills => Self::OutOfMemory,
            (Some(1 | 2 | 3 | 9 | 15), _) => Self::Killed,
            (Some(signal), _) => Self::Crashed(name(signal)),
            (None, code) => Self::Crashed(format!(
                "exit code {}",
                code.map_or_else(|| "unknown".to_owned(), |code| code.to_string())
            )),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => f.write_str("it was stopped"),
            Self::Killed => f.write_str("it was killed from outside"),
            Self::Crashed(how) => write!(f, "it crashed ({how})"),
            Self::OutOfMemory => f.write_str("the system was out of memory"),
            Self::Hung(how) => write!(f, "it hung ({how})"),
            Self::Lied(how) => write!(f, "it sent what cannot be ({how})"),
        }
    }
}

fn name(signal: i32) -> String {
    match signal {
        4 => "SIGILL".to_owned(),
        6 => "SIGABRT".to_owned(),
        7 => "SIGBUS".to_owned(),
        8 => "SIGFPE".to_owned(),
        11 => "SIGSEGV".to_owned(),
        31 => "SIGSYS: a system call it may not make".to_owned(),
        other => format!("signal {other}"),
    }
}

/// One death, as it was found.
#[derive(Debug, Clone)]
pub(crate) struct Death {
    pub(crate) reason: Reason,
    /// Who was loading or computing.
    pub(crate) suspects: Vec<Suspect>,
    /// Who was ever in this host.
    pub(crate) inhabitants: Inhabitants,
    /// Computes it had answered.
    pub(crate) answered: u64,
}

/// The system's count of processes it killed for memory, where it tells.
pub(crate) fn oom_kills() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/vmstat").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "))?;
    line.trim().parse().ok()
}

/// Whether a process is stopped by a signal, as the system says.
pub(crate) fn is_stopped(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit_once(')')
            .is_some_and(|(_, rest)| rest.trim_start().starts_with(['T', 't']))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_from_outside_blames_nobody_and_a_fault_does() {
        let of = |raw| Reason::of_exit(ExitStatus::from_raw(raw), false);
        for raw in [9, 15, 2] {
            assert!(!of(raw).blames_a_model(), "{raw}");
        }
        for raw in [4, 6, 7, 8, 11, 31, 1 << 8, 0] {
            assert!(of(raw).blames_a_model(), "{raw}");
        }
        assert_eq!(
            Reason::of_exit(ExitStatus::from_raw(9), true),
            Reason::OutOfMemory
        );
    }

    #[test]
    fn this_process_is_not_stopped() {
        assert!(!is_stopped(std::process::id()));
    }

    #[test]
    fn every_death_that_nobody_asked_for_has_a_label() {
        let deaths = [
            Reason::Killed,
            Reason::Crashed(String::new()),
            Reason::OutOfMemory,
            Reason::Hung(""),
            Reason::Lied(""),
        ];
        assert_eq!(deaths.map(|death| death.label()), Reason::LABELS);
    }
}
