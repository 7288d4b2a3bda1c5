//! Landlock: no path can be opened, changed or run, no TCP port bound or reached, no other process signalled. Descriptors
//! that are open already, and those received later, stay usable: Landlock looks when a file is opened.
//!
//! Rules: <https://docs.kernel.org/userspace-api/landlock.html>.

use super::{ConfineError, Measure};
use landlock::{
    ABI, Access, AccessFs, AccessNet, LandlockStatus, RestrictSelfAttr, Ruleset, RulesetAttr,
    RulesetCreated, RulesetError, RulesetStatus, Scope,
};
use std::os::fd::OwnedFd;

/// The newest version whose rights are asked for; the kernel grants what it knows.
const WANTED: ABI = ABI::V9;

/// What each version of the interface brought that matters here.
const BROUGHT: [(ABI, &str); 6] = [
    (ABI::V2, "links between folders"),
    (ABI::V3, "truncation"),
    (ABI::V4, "TCP ports"),
    (ABI::V5, "device commands"),
    (ABI::V6, "abstract sockets and signals"),
    (ABI::V9, "sockets in the file system"),
];

fn failed(error: impl std::fmt::Display) -> ConfineError {
    ConfineError::Landlock(error.to_string())
}

/// Rules that allow nothing of all that Landlock knows; nothing is in force yet.
pub(super) fn rules() -> Result<RulesetCreated, ConfineError> {
    let create = || -> Result<_, RulesetError> {
        Ruleset::default()
            .handle_access(AccessFs::from_all(WANTED))?
            .handle_access(AccessNet::from_all(WANTED))?
            .scope(Scope::from_all(WANTED))?
            .create()?
            .all_threads(true)
    };
    create().map_err(failed)
}

/// The rules as a descriptor, for the threads that have to enforce them themselves. None without Landlock.
pub(super) fn descriptor(rules: &RulesetCreated) -> Result<Option<OwnedFd>, ConfineError> {
    Ok(rules.try_clone().map_err(failed)?.into())
}

/// Puts the rules in force for the calling thread and, from version 8 on, for all. `uncovered`: threads that did not do so
/// themselves, if that is known.
pub(super) fn enforce(
    rules: RulesetCreated,
    uncovered: Option<usize>,
) -> Result<Measure, ConfineError> {
    let status = rules.restrict_self().map_err(failed)?;
    let abi = match status.landlock {
        LandlockStatus::Available { effective_abi, .. } => effective_abi,
        LandlockStatus::NotEnabled => {
            return Ok(Measure::Absent("it is not enabled at boot".into()));
        }
        LandlockStatus::NotImplemented => {
            return Ok(Measure::Absent("the kernel does not have it".into()));
        }
    };
    if status.ruleset == RulesetStatus::NotEnforced {
        return Ok(Measure::Absent("the kernel did not enforce it".into()));
    }
    Ok(judge(
        abi,
        if status.all_threads {
            Some(0)
        } else {
            uncovered
        },
    ))
}

fn judge(abi: ABI, uncovered: Option<usize>) -> Measure {
    let mut missing: Vec<_> = BROUGHT
        .iter()
        .filter(|(since, _)| abi < *since)
        .map(|(_, what)| (*what).to_owned())
        .collect();
    match uncovered {
        Some(0) => {}
        Some(uncovered) => missing.push(format!("{uncovered} of the threads that ran before")),
        None => missing.push("threads that ran before".into()),
    }
    if missing.is_empty() {
        Measure::Enforced
    } else {
        Measure::Partial(format!(
            "the kernel's version {} does not cover: {}",
            abi as i32,
            missing.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_older_kernel_lacks_is_named() {
        assert_eq!(judge(ABI::V9, Some(0)), Measure::Enforced);
        let partial = |abi, uncovered| match judge(abi, uncovered) {
            Measure::Partial(why) => why,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            partial(ABI::V7, Some(0)),
            "the kernel's version 7 does not cover: sockets in the file system"
        );
        assert!(partial(ABI::V9, Some(2)).ends_with("2 of the threads that ran before"));
        assert!(partial(ABI::V9, None).ends_with("threads that ran before"));
        let oldest = partial(ABI::V1, Some(0));
        assert!(
            BROUGHT.iter().all(|(_, what)| oldest.contains(what)),
            "{oldest}"
        );
    }
}
