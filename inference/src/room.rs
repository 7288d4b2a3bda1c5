//! Which idle sessions go when a model does not fit: as few as may be, its own function's first, and none if that cannot
//! help. Pure: what is there and `now` in, a decision out.

use crate::allocator::Shortage;
use fnctl_core::ids::FunctionName;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// How often room is made for one load or inference: what it lacks is known only up to where it was refused.
pub(crate) const ROUNDS: u32 = 3;
/// How long a function that took the others' room in vain may take no more of it.
const RESTRAINT: Duration = Duration::from_secs(600);
/// Most functions that are remembered for that.
const MOST: usize = 4096;

/// A session without a use.
#[derive(Debug, Clone)]
pub(crate) struct Idle<Id> {
    pub(crate) id: Id,
    /// Bytes that going gives back.
    pub(crate) bytes: u64,
    /// Whether it is of the function that needs the room.
    pub(crate) own: bool,
    pub(crate) since: Instant,
}

/// The sessions to give up. Empty if all together would not do.
pub(crate) fn choose<Id>(
    shortage: Shortage,
    budget: u64,
    others: bool,
    mut idle: Vec<Idle<Id>>,
) -> Vec<Id> {
    // What one session holds alone is over the budget, with or without anybody else.
    if shortage.wanted > budget {
        return Vec::new();
    }
    idle.retain(|one| one.bytes > 0 && (one.own || others));
    let all = idle
        .iter()
        .fold(0_u64, |all, one| all.saturating_add(one.bytes));
    if all < shortage.missing {
        return Vec::new();
    }
    idle.sort_by_key(|one| (!one.own, one.since));
    let mut freed = 0_u64;
    let enough = idle.into_iter().take_while(|one| {
        let more = freed < shortage.missing;
        freed = freed.saturating_add(one.bytes);
        more
    });
    enough.map(|one| one.id).collect()
}

/// Who may have others' idle sessions unloaded.
#[derive(Debug, Default)]
pub(crate) struct Rights(HashMap<FunctionName, Instant>);

impl Rights {
    /// Whether a function may, now.
    pub(crate) fn may(&self, function: &FunctionName, now: Instant) -> bool {
        self.0
            .get(function)
            .is_none_or(|since| now.saturating_duration_since(*since) >= RESTRAINT)
    }

    /// A function did, and its model did not fit all the same.
    pub(crate) fn in_vain(&mut self, function: &FunctionName, now: Instant) {
        if self.0.len() >= MOST {
            self.0
                .retain(|_, since| now.saturating_duration_since(*since) < RESTRAINT);
        }
        if self.0.len() < MOST {
            self.0.insert(function.clone(), now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idle(sessions: &[(&'static str, u64, bool)]) -> Vec<Idle<&'static str>> {
        let now = Instant::now();
        let of = |(index, (id, bytes, own)): (usize, &(&'static str, u64, bool))| Idle {
            id: *id,
            bytes: *bytes,
            own: *own,
            since: now + Duration::from_secs(index as u64),
        };
        sessions.iter().enumerate().map(of).collect()
    }

    fn short(missing: u64, wanted: u64) -> Shortage {
        Shortage { missing, wanted }
    }

    #[test]
    fn as_few_as_may_be_and_ones_own_first() {
        let there = [("old", 30, false), ("new", 30, false), ("own", 10, true)];
        let chosen = |missing| choose(short(missing, 50), 100, true, idle(&there));
        assert_eq!(chosen(10), ["own"]);
        assert_eq!(chosen(11), ["own", "old"]);
        assert_eq!(chosen(41), ["own", "old", "new"]);
    }

    #[test]
    fn nothing_goes_that_would_not_help() {
        let there = [("a", 30, false), ("empty", 0, true)];
        let none: [&str; 0] = [];
        assert_eq!(choose(short(31, 50), 100, true, idle(&there)), none);
        assert_eq!(choose(short(1, 101), 100, true, idle(&there)), none);
        assert_eq!(choose(short(1, 50), 100, false, idle(&there)), none);
    }

    #[test]
    fn who_took_room_in_vain_takes_no_more_for_a_while() {
        let (mut rights, now) = (Rights::default(), Instant::now());
        let function: FunctionName = "f".parse().unwrap();
        assert!(rights.may(&function, now));
        rights.in_vain(&function, now);
        assert!(!rights.may(&function, now + Duration::from_secs(599)));
        assert!(rights.may(&"g".parse().unwrap(), now));
        assert!(rights.may(&function, now + RESTRAINT));
    }
}
