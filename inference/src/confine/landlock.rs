//! Landlock: no path can be opened, changed or run, no TCP port bound or reached, no other process signalled. Descriptors
//! that are open already, and those received later, stay usable: Landlock looks when a file is opened.
//!
//! Rules: <https://docs.kernel.org/userspace-api/landlock.html>.

use super::{ConfineError, Measure};
use landlock::{
    ABI, Access, AccessFs, AccessNet, LandlockStatus, RestrictSelfAttr, Ruleset, RulesetAttr,
    RulesetStatus, Scope,
};

/// The newest version whose rights are asked for; the kernel grants what it knows.
const WANTED: ABI = ABI::V9;

/// What each version of the interface brought that matters here.
const BROUGHT: [(ABI, &str); 7] = [
    (ABI::V2, "links between folders"),
    (ABI::V3, "truncation"),
    (ABI::V4, "TCP ports"),
    (ABI::V5, "device commands"),
    (ABI::V6, "abstract sockets and signals"),
    (ABI::V8, "threads that ran before"),
    (ABI::V9, "sockets in the file system"),
];

/// Gives up every right Landlock knows. `others`: threads besides the calling one.
pub(super) fn enforce(others: Option<usize>) -> Result<Measure, ConfineError> {
    let restrict = || {
        Ruleset::default()
            .handle_access(AccessFs::from_all(WANTED))?
            .handle_access(AccessNet::from_all(WANTED))?
            .scope(Scope::from_all(WANTED))?
            .create()?
            .all_threads(true)?
            .restrict_self()
    };
    let status = restrict()
        .map_err(|error: landlock::RulesetError| ConfineError::Landlock(error.to_string()))?;
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
    Ok(judge(abi, others))
}

fn judge(abi: ABI, others: Option<usize>) -> Measure {
    let missing: Vec<_> = BROUGHT
        .iter()
        .filter(|(since, _)| abi < *since)
        // Nothing is missing where there is no other thread.
        .filter(|(since, _)| *since != ABI::V8 || others != Some(0))
        .map(|(_, what)| *what)
        .collect();
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
        assert_eq!(judge(ABI::V9, Some(3)), Measure::Enforced);
        assert_eq!(judge(ABI::V9, None), Measure::Enforced);
        let partial = |abi, others| match judge(abi, others) {
            Measure::Partial(why) => why,
            other => panic!("{other:?}"),
        };
        let text = partial(ABI::V7, Some(0));
        assert_eq!(
            text,
            "the kernel's version 7 does not cover: sockets in the file system"
        );
        assert!(partial(ABI::V7, Some(1)).contains("threads that ran before"));
        assert!(partial(ABI::V7, None).contains("threads that ran before"));
        let oldest = partial(ABI::V1, Some(1));
        assert!(
            BROUGHT.iter().all(|(_, what)| oldest.contains(what)),
            "{oldest}"
        );
    }
}
