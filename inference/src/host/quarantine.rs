//! Which models may be in which host, given the deaths so far. Pure: history and `now` in, a decision out.
//!
//! A death in company proves nothing. Whoever was in flight is put into a host of its own for a while: the innocent are
//! cleared there, and a death there leaves no doubt. Only such deaths count towards quarantine.

use crate::sessions::SessionKey;
use crate::status::Quarantined;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// How long a suspect stays alone after the last death it was in.
const PROBATION: Duration = Duration::from_secs(60);
/// Computes that clear a suspect that nothing was proven against.
const CLEARING: u32 = 50;
/// Most models that are remembered; the oldest harmless ones are forgotten first.
const MOST: usize = 10_000;

/// When a model is kept away.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Proven deaths that are too many.
    pub(crate) deaths: u32,
    /// Within this time.
    pub(crate) window: Duration,
    /// For how long.
    pub(crate) quarantine: Duration,
}

/// Where a model may compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placement {
    /// Where it belongs.
    Usual,
    /// In a host of its own, for now.
    Alone,
    /// Nowhere.
    Quarantined {
        /// Deaths that were proven.
        deaths: u32,
        until: Instant,
    },
}

#[derive(Debug, Default)]
struct Record {
    proven: VecDeque<Instant>,
    alone_until: Option<Instant>,
    answered: u32,
    quarantined: Option<(u32, Instant)>,
}

/// The record of every model that was in a death.
#[derive(Debug)]
pub(crate) struct Ledger {
    limits: Limits,
    records: HashMap<SessionKey, Record>,
}

impl Ledger {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            records: HashMap::new(),
        }
    }

    /// Where a model may compute now.
    pub(crate) fn placement(&self, key: &SessionKey, now: Instant) -> Placement {
        let Some(record) = self.records.get(key) else {
            return Placement::Usual;
        };
        match (record.quarantined, record.alone_until) {
            (Some((deaths, until)), _) if until > now => Placement::Quarantined { deaths, until },
            (_, Some(until)) if until > now => Placement::Alone,
            _ => Placement::Usual,
        }
    }

    /// A host died with these models in flight; `alone` says that only one model was ever in it. Returns the models that
    /// are quarantined from now on.
    pub(crate) fn death(
        &mut self,
        suspects: &[SessionKey],
        alone: bool,
        now: Instant,
    ) -> Vec<SessionKey> {
        self.forget(now);
        let mut convicted = Vec::new();
        let proven = alone && suspects.len() == 1;
        for key in suspects {
            let record = self.records.entry(key.clone()).or_default();
            record.alone_until = Some(now + PROBATION);
            record.answered = 0;
            if !proven {
                continue;
            }
            record.proven.push_back(now);
            let window = self.limits.window;
            record
                .proven
                .retain(|death| now.saturating_duration_since(*death) < window);
            let deaths = u32::try_from(record.proven.len()).unwrap_or(u32::MAX);
            if deaths >= self.limits.deaths.max(1) {
                record.quarantined = Some((deaths, now + self.limits.quarantine));
                // After the quarantine it has one more chance, alone; the next death brings it back here.
                record.alone_until = Some(now + self.limits.quarantine + PROBATION);
                convicted.push(key.clone());
            }
        }
        convicted
    }

    /// A model on its own has answered. Says whether that cleared it.
    pub(crate) fn answered(&mut self, key: &SessionKey) -> bool {
        let Some(record) = self.records.get_mut(key) else {
            return false;
        };
        record.answered = record.answered.saturating_add(1);
        // What was proven is not made up for by a few answers.
        let cleared = record.proven.is_empty() && record.answered >= CLEARING;
        if cleared {
            self.records.remove(key);
        }
        cleared
    }

    /// A model was deployed again: whatever is known of it does not count any more.
    pub(crate) fn forgive(&mut self, forgiven: impl Fn(&SessionKey) -> bool) {
        self.records.retain(|key, _| !forgiven(key));
    }

    /// Models in quarantine.
    pub(crate) fn quarantined(&self, now: Instant) -> usize {
        let quarantined =
            |record: &&Record| record.quarantined.is_some_and(|(_, until)| until > now);
        self.records.values().filter(quarantined).count()
    }

    /// The same, one by one, for an operator.
    pub(crate) fn list(&self, now: Instant) -> Vec<Quarantined> {
        let listed = |(key, record): (&SessionKey, &Record)| {
            let (deaths, until) = record.quarantined.filter(|(_, until)| *until > now)?;
            Some(Quarantined {
                model: Some(key.digest),
                function: key.owner.clone(),
                deaths,
                left: until.duration_since(now),
            })
        };
        self.records.iter().filter_map(listed).collect()
    }

    fn forget(&mut self, now: Instant) {
        let window = self.limits.window;
        let matters = |record: &Record| {
            record.alone_until.is_some_and(|until| until > now)
                || record.quarantined.is_some_and(|(_, until)| until > now)
                || record
                    .proven
                    .back()
                    .is_some_and(|death| now.saturating_duration_since(*death) < window)
        };
        self.records.retain(|_, record| matters(record));
        if self.records.len() >= MOST {
            self.records.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fnctl_core::config::InferenceIsolation;
    use fnctl_core::ids::Digest;

    fn key(name: &str) -> SessionKey {
        SessionKey {
            digest: Digest::of(name.as_bytes()),
            owner: None,
            isolation: InferenceIsolation::Shared,
        }
    }

    fn ledger() -> Ledger {
        Ledger::new(Limits {
            deaths: 3,
            window: Duration::from_secs(600),
            quarantine: Duration::from_secs(600),
        })
    }

    fn secs(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn three_proven_deaths_are_quarantine_and_it_ends() {
        let (mut ledger, now) = (ledger(), Instant::now());
        let bad = key("bad");
        assert_eq!(ledger.placement(&bad, now), Placement::Usual);
        for second in 0..2 {
            assert!(
                ledger
                    .death(std::slice::from_ref(&bad), true, now + secs(second))
                    .is_empty()
            );
            assert_eq!(ledger.placement(&bad, now + secs(second)), Placement::Alone);
        }
        assert_eq!(
            ledger.death(std::slice::from_ref(&bad), true, now + secs(2)),
            std::slice::from_ref(&bad)
        );
        let until = now + secs(602);
        assert_eq!(
            ledger.placement(&bad, now + secs(3)),
            Placement::Quarantined { deaths: 3, until }
        );
        assert_eq!(ledger.quarantined(now + secs(3)), 1);
        assert_eq!(
            ledger.placement(&bad, until),
            Placement::Alone,
            "one more chance"
        );
        assert_eq!(ledger.placement(&bad, until + secs(60)), Placement::Usual);
        ledger.death(std::slice::from_ref(&bad), true, now + secs(4));
        ledger.forgive(|key| *key == bad);
        assert_eq!(ledger.placement(&bad, now + secs(5)), Placement::Usual);
    }

    #[test]
    fn deaths_in_company_or_long_ago_convict_nobody() {
        let (mut ledger, now) = (ledger(), Instant::now());
        let (bad, good) = (key("bad"), key("good"));
        for second in 0..100 {
            let at = now + secs(second);
            assert!(
                ledger
                    .death(&[bad.clone(), good.clone()], false, at)
                    .is_empty()
            );
            // The only one in flight, but not the only one that was ever there.
            assert!(
                ledger
                    .death(std::slice::from_ref(&good), false, at)
                    .is_empty()
            );
        }
        assert_eq!(ledger.placement(&good, now + secs(100)), Placement::Alone);
        for _ in 1..CLEARING {
            assert!(!ledger.answered(&good));
        }
        assert!(ledger.answered(&good));
        assert_eq!(ledger.placement(&good, now + secs(100)), Placement::Usual);
        for round in 0..10 {
            let at = now + secs(1000 + 300 * round);
            assert!(
                ledger
                    .death(std::slice::from_ref(&bad), true, at)
                    .is_empty(),
                "two in ten minutes"
            );
        }
    }

    #[test]
    fn a_proven_death_is_not_made_up_for_by_answers() {
        let (mut ledger, now) = (ledger(), Instant::now());
        let bad = key("bad");
        ledger.death(std::slice::from_ref(&bad), true, now);
        for _ in 0..1000 {
            assert!(!ledger.answered(&bad));
        }
        assert_eq!(ledger.placement(&bad, now + secs(1)), Placement::Alone);
    }
}
