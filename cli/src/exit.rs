//! Exit codes: what a script learns without reading. `fnctl --help` and docs/cli.md say the same.

use fnctl_core::{ErrorKind, Fault};
use std::process::ExitCode;

/// How the command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    Refused = 4,
    Unavailable = 5,
    Guest = 6,
}

impl Exit {
    /// Every code, in order.
    pub(crate) const ALL: [Self; 7] = [
        Self::Done,
        Self::Failed,
        Self::Usage,
        Self::NotFound,
        Self::Refused,
        Self::Unavailable,
        Self::Guest,
    ];

    /// The number that the shell sees.
    pub(crate) const fn number(self) -> u8 {
        self as u8
    }

    /// What it means.
    pub(crate) const fn meaning(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed on this side: a file, the settings, a broken connection",
            Self::Usage => "wrong usage: nothing was asked of the platform",
            Self::NotFound => "no such function, version, alias, artifact or context",
            Self::Refused => {
                "refused, and the caller's to change: token, limits, configuration, conflict"
            }
            Self::Unavailable => "no platform reached, or it cannot: full, draining, its own fault",
            Self::Guest => {
                "the function failed: trap, memory, timeout, invalid artifact or model, its own error answer"
            }
        }
    }

    /// The code of an error that the platform told.
    pub(crate) const fn of_kind(kind: ErrorKind) -> Self {
        match (kind, kind.fault()) {
            (ErrorKind::NotFound, _) => Self::NotFound,
            (_, Fault::Caller) => Self::Refused,
            (_, Fault::Platform) => Self::Unavailable,
            (_, Fault::Guest) => Self::Guest,
        }
    }

    /// The code of an error whose kind this fnctl does not know, by its HTTP status.
    pub(crate) const fn of_status(status: u16) -> Self {
        match status {
            404 => Self::NotFound,
            400..=499 => Self::Refused,
            502 | 504 => Self::Guest,
            _ => Self::Unavailable,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.number())
    }
}

/// The command line asks for something that cannot be.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(String);

/// An error of usage; say how to write it instead.
pub(crate) fn usage(text: impl Into<String>) -> anyhow::Error {
    UsageError(text.into()).into()
}

/// Something that is looked for on this side is not there.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct MissingError(pub(crate) String);

/// A platform answers, but does not do what it is for.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UnavailableError(pub(crate) String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_the_code_of_who_has_to_act() {
        for kind in ErrorKind::ALL {
            let exit = Exit::of_kind(*kind);
            let expected = match kind.fault() {
                Fault::Caller if *kind == ErrorKind::NotFound => 3,
                Fault::Caller => 4,
                Fault::Platform => 5,
                Fault::Guest => 6,
            };
            assert_eq!(exit.number(), expected, "{kind}");
        }
    }

    #[test]
    fn the_numbers_count_from_zero() {
        for (number, exit) in Exit::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(exit.number()), number);
        }
    }

    #[test]
    fn the_document_has_every_code_and_the_kinds_that_lead_to_it() {
        let document =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cli.md"))
                .unwrap();
        for exit in Exit::ALL {
            let row = document
                .lines()
                .find(|line| line.starts_with(&format!("| {} |", exit.number())))
                .unwrap_or_else(|| {
                    panic!("docs/cli.md has no row for exit code {}", exit.number())
                });
            assert!(row.contains(exit.meaning()), "docs/cli.md says: {row}");
            let told: Vec<_> = row.split('`').skip(1).step_by(2).collect();
            let kinds: Vec<_> = ErrorKind::ALL
                .iter()
                .filter(|kind| Exit::of_kind(**kind) == exit)
                .map(|kind| kind.code())
                .collect();
            assert_eq!(told, kinds, "the kinds of exit code {}", exit.number());
        }
    }
}
