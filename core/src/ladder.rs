//! The ladder of what an instance stands on: its sandbox on the template of its code and the sessions of its models, which
//! others may share. What each rung took to make, and until when it is kept when nobody uses it.

use crate::ids::FunctionName;
use std::time::Duration;
use tokio::time::Instant;

/// What one rung costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RungCost {
    /// How long making it took the last time that it was made from what is on the disk.
    pub took: Duration,
    /// Bytes of memory that it takes.
    pub bytes: u64,
}

impl RungCost {
    /// Of two that are made one after the other.
    pub fn and(self, other: Self) -> Self {
        Self {
            took: self.took.saturating_add(other.took),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }
}

/// What the rungs below a sandbox cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LowerRungs {
    /// The sessions of its models.
    pub session: RungCost,
    /// Its compiled code.
    pub template: RungCost,
}

/// Until when the rungs below a sandbox are kept after it has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptUntil {
    /// The sessions of its models.
    pub session: Instant,
    /// Its compiled code.
    pub template: Instant,
}

/// Why what nobody uses is let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// The platform's time for it has passed.
    TimeToLive,
    /// No function's policy wants it any more.
    Policy,
}

impl Over {
    /// The reason, as a metric's label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TimeToLive => "ttl",
            Self::Policy => "policy",
        }
    }
}

/// How long the functions that share something want it kept: the last word of each, until its time has passed.
#[derive(Debug, Default)]
pub struct Wishes(Vec<Wish>);

#[derive(Debug)]
struct Wish {
    function: FunctionName,
    said: Instant,
    /// Nothing: for the time-to-live from when it was said.
    until: Option<Instant>,
}

impl Wish {
    fn end(&self, ttl: Duration) -> (Instant, Over) {
        match self.until {
            Some(until) => (until, Over::Policy),
            None => (self.said + ttl, Over::TimeToLive),
        }
    }
}

impl Wishes {
    /// A function that does not use it any more says until when it wants it kept; nothing for the time-to-live.
    pub fn say(&mut self, function: &FunctionName, until: Option<Instant>, now: Instant) {
        let wish = Wish {
            function: function.clone(),
            said: now,
            until,
        };
        match self.0.iter_mut().find(|known| known.function == *function) {
            Some(known) => *known = wish,
            None => self.0.push(wish),
        }
    }

    /// What a function said does not hold any more: from now on it has the time-to-live.
    pub fn forget(&mut self, function: &FunctionName, now: Instant) {
        if self.0.iter().any(|known| known.function == *function) {
            self.say(function, None, now);
        }
    }

    /// Why it is to go, if it is. Without any wish it has the time-to-live from `since`. Wishes whose time has passed are
    /// forgotten, but for the one that lasted longest.
    pub fn over(&mut self, since: Instant, now: Instant, ttl: Duration) -> Option<Over> {
        let last = self
            .0
            .iter()
            .map(|wish| wish.end(ttl))
            .max_by_key(|(end, _)| *end);
        let (end, why) = last.unwrap_or((since + ttl, Over::TimeToLive));
        self.0.retain(|wish| wish.end(ttl).0 >= end.min(now));
        (end <= now).then_some(why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(300);

    #[test]
    fn what_is_shared_goes_when_the_last_of_its_functions_wants_it_no_longer() {
        let now = Instant::now();
        let after = |secs| now + Duration::from_secs(secs);
        let [a, b, c] = ["a", "b", "c"].map(|name| name.parse::<FunctionName>().unwrap());
        let mut wishes = Wishes::default();
        let over = |wishes: &mut Wishes, secs| wishes.over(now, after(secs), TTL);
        // By the platform's time, while nobody has said anything.
        assert_eq!(over(&mut wishes, 299), None);
        assert_eq!(over(&mut wishes, 300), Some(Over::TimeToLive));
        // Sooner than that, and later.
        wishes.say(&a, Some(after(10)), now);
        assert_eq!(over(&mut wishes, 9), None);
        assert_eq!(over(&mut wishes, 10), Some(Over::Policy));
        wishes.say(&b, Some(after(1000)), now);
        assert_eq!(over(&mut wishes, 999), None);
        assert_eq!(wishes.0.len(), 1, "what has passed is forgotten");
        // A function's last word counts, not its longest.
        wishes.say(&b, Some(after(20)), after(5));
        assert_eq!(over(&mut wishes, 20), Some(Over::Policy));
        // Who has no opinion has the platform's time from its own last use, and that is the reason then.
        wishes.say(&c, None, after(30));
        assert_eq!(over(&mut wishes, 329), None);
        assert_eq!(over(&mut wishes, 330), Some(Over::TimeToLive));
        // What a removed function wanted holds no longer.
        wishes.say(&b, Some(after(9000)), after(400));
        wishes.forget(&b, after(500));
        wishes.forget(&a, after(600));
        assert_eq!(over(&mut wishes, 799), None);
        assert_eq!(over(&mut wishes, 800), Some(Over::TimeToLive));
    }
}
