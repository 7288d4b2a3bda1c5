//! Which models may be in which host, given the deaths so far. Pure: history and `now` in, a decision out.
//!
//! A death in company proves nothing. Whoever was in flight is put into a host of its own for a while, longer each time; a
//! death there leaves no doubt. Only such deaths count towards quarantine, and what counts fades over hours: a killer that
//! waits between its deeds is remembered.
//!
//! Deaths are held against a model, and against the function that owns it: a guest that changes a byte of its model for
//! every load is one function all the same. A function with too many gets a host of its own for all that it owns, then
//! none. Once somebody is convicted, the deaths it was in are explained, and nobody else is suspected for them.

use super::fading::{Fading, HALF_LIFE};
use crate::sessions::SessionKey;
use fnctl_core::config::InferenceIsolation;
use fnctl_core::ids::FunctionName;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// How long a suspect stays alone after the first death it was in; twice as long after each further one that is remembered.
const PROBATION: Duration = Duration::from_secs(60);
/// The longest stay for deaths in company.
const LONGEST_PROBATION: Duration = Duration::from_secs(3600);
/// Answers that clear a suspect of its first death in company at once.
const CLEARING: u32 = 50;
/// How long a death in company is remembered.
const DOUBT: Duration = Duration::from_secs(6 * 3600);
/// Most of those that are remembered for one suspect; the stay is the longest long before.
const MOST_DOUBTS: usize = 16;
/// Deaths in company after which all of a function's models are put together into a host of their own.
const FUNCTION_DOUBTS: usize = 3;
/// Whose record has faded to this is forgotten.
const FORGOTTEN: f64 = 0.1;
/// Deaths fade from the moment they happen: so much less than the number is enough.
const SLACK: f64 = 0.5;
/// The longest quarantine, unless the setting asks for more.
const LONGEST_QUARANTINE: Duration = Duration::from_secs(4 * 3600);
/// Most suspects that are remembered; beyond, the lightest are forgotten first.
const MOST: usize = 10_000;

/// When a suspect is kept away.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Proven deaths of a model that are too many; of a function, twice as many.
    pub(crate) deaths: u32,
    /// For how long at first; twice as long each further time that is remembered.
    pub(crate) quarantine: Duration,
}

/// Whom deaths are held against.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Suspect {
    /// One model.
    Model(SessionKey),
    /// All that a function owns: models that it brings, and with a host of its own the declared ones as well.
    Function(FunctionName),
}

impl Suspect {
    /// The function behind it, if there is one alone.
    pub(crate) fn owner(&self) -> Option<&FunctionName> {
        match self {
            Self::Model(key) => key.owner.as_ref(),
            Self::Function(function) => Some(function),
        }
    }
}

/// Where a model may compute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Placement {
    /// Where it belongs.
    Usual,
    /// In a host of this suspect's own.
    Alone {
        who: Suspect,
        /// Nothing was proven, and there is little doubt: better with the others than not at all.
        may_return: bool,
    },
    /// Nowhere.
    Quarantined {
        who: Suspect,
        /// Deaths that were proven.
        deaths: u32,
        until: Instant,
    },
}

/// One death of a host that a model may have caused.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Evidence<'a> {
    /// Models that were computing or loading.
    pub(crate) suspects: &'a [SessionKey],
    /// Who was ever in that host.
    pub(crate) inhabitants: &'a Inhabitants,
}

/// Who was ever in a host, as far as blame needs it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Inhabitants {
    #[default]
    Nobody,
    Model(SessionKey),
    /// Several models, all owned by one function.
    Function(FunctionName),
    Many,
}

impl Inhabitants {
    /// A model came.
    pub(crate) fn add(&mut self, key: &SessionKey) {
        let owner = match self {
            Self::Nobody => {
                *self = Self::Model(key.clone());
                return;
            }
            Self::Model(one) if one == key => return,
            Self::Model(one) => one.owner.as_ref(),
            Self::Function(owner) => Some(&*owner),
            Self::Many => return,
        };
        *self = match owner {
            Some(owner) if key.owner.as_ref() == Some(owner) => Self::Function(owner.clone()),
            _ => Self::Many,
        };
    }

    /// The one model that can have done it.
    fn only_model(&self) -> Option<&SessionKey> {
        match self {
            Self::Model(key) => Some(key),
            Self::Nobody | Self::Function(_) | Self::Many => None,
        }
    }

    /// The one function that owns all that can have done it.
    fn only_function(&self) -> Option<&FunctionName> {
        match self {
            Self::Model(key) => key.owner.as_ref(),
            Self::Function(owner) => Some(owner),
            Self::Nobody | Self::Many => None,
        }
    }
}

#[derive(Debug, Default)]
struct Record {
    /// Deaths that nobody else can have caused.
    proven: Fading,
    /// Their number, for people.
    deaths: u32,
    /// Deaths in company: their numbers, and when.
    doubts: Vec<(u64, Instant)>,
    alone_until: Option<Instant>,
    answered: u32,
    quarantined: Option<(u32, Instant)>,
    convictions: u32,
}

impl Record {
    fn quarantined(&self, now: Instant) -> Option<(u32, Instant)> {
        self.quarantined.filter(|(_, until)| *until > now)
    }

    fn is_alone(&self, now: Instant) -> bool {
        self.alone_until.is_some_and(|until| until > now)
    }

    fn stay_alone(&mut self, until: Instant) {
        self.alone_until = self.alone_until.max(Some(until));
    }

    fn doubt(&mut self, death: u64, now: Instant) {
        self.answered = 0;
        if self.doubts.last().is_some_and(|(known, _)| *known == death) {
            return;
        }
        if self.doubts.len() >= MOST_DOUBTS {
            self.doubts.remove(0);
        }
        self.doubts.push((death, now));
    }

    /// How long the deaths in company keep it alone.
    fn probation(&self) -> Duration {
        let doublings = u32::try_from(self.doubts.len().saturating_sub(1)).unwrap_or(u32::MAX);
        PROBATION
            .saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX))
            .min(LONGEST_PROBATION)
    }

    fn prove(&mut self, now: Instant) {
        self.answered = 0;
        self.proven.add(now);
        self.deaths = self.deaths.saturating_add(1);
    }

    /// Whether as many deaths as this were proven, less what has faded meanwhile.
    fn reaches(&self, deaths: u32, now: Instant) -> bool {
        self.proven.at(now) >= f64::from(deaths.max(1)) - SLACK
    }

    fn convict(&mut self, first: Duration, now: Instant) {
        let times = 1_u32.checked_shl(self.convictions).unwrap_or(u32::MAX);
        let length = first
            .saturating_mul(times)
            .min(LONGEST_QUARANTINE.max(first));
        self.convictions = self.convictions.saturating_add(1);
        self.quarantined = Some((self.deaths, now + length));
        // Then it has one more chance, alone; with the next death it is back here.
        self.stay_alone(now + length + HALF_LIFE);
    }

    /// What is lost if it is forgotten.
    fn weight(&self, now: Instant) -> f64 {
        let held = u8::from(self.quarantined(now).is_some());
        f64::from(held) * 1e6 + self.proven.at(now) * 1e3 + self.doubts.len() as f64
    }

    fn matters(&self, now: Instant) -> bool {
        self.quarantined(now).is_some()
            || self.is_alone(now)
            || !self.doubts.is_empty()
            || self.proven.at(now) > FORGOTTEN
    }
}

/// The record of everybody who was in a death.
#[derive(Debug)]
pub(crate) struct Ledger {
    limits: Limits,
    records: HashMap<Suspect, Record>,
    /// Deaths so far.
    number: u64,
}

impl Ledger {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            records: HashMap::new(),
            number: 0,
        }
    }

    /// Where a model may compute now.
    pub(crate) fn placement(&self, key: &SessionKey, now: Instant) -> Placement {
        let model = Suspect::Model(key.clone());
        let function = key.owner.clone().map(Suspect::Function);
        let of_model = self.records.get(&model);
        let of_function = function.as_ref().and_then(|who| self.records.get(who));
        let quarantine = |who: &Suspect, record: Option<&Record>| {
            let (deaths, until) = record?.quarantined(now)?;
            let who = who.clone();
            Some(Placement::Quarantined { who, deaths, until })
        };
        let found =
            quarantine(&model, of_model).or_else(|| quarantine(function.as_ref()?, of_function));
        if let Some(quarantined) = found {
            return quarantined;
        }
        if let Some(record) = of_model.filter(|record| record.is_alone(now)) {
            return Placement::Alone {
                who: model,
                may_return: record.deaths == 0 && record.doubts.len() < FUNCTION_DOUBTS,
            };
        }
        match (function, of_function) {
            // A dedicated function is with nobody else already.
            (Some(who), Some(record))
                if record.is_alone(now) && key.isolation == InferenceIsolation::Shared =>
            {
                Placement::Alone {
                    who,
                    may_return: false,
                }
            }
            _ => Placement::Usual,
        }
    }

    /// Whether a host of its own is where a suspect may be.
    pub(crate) fn is_alone(&self, who: &Suspect, now: Instant) -> bool {
        let record = self.records.get(who);
        record.is_some_and(|record| record.quarantined(now).is_none() && record.is_alone(now))
    }

    /// A host died. Returns who is quarantined from now on.
    pub(crate) fn death(&mut self, evidence: Evidence<'_>, now: Instant) -> Vec<Suspect> {
        self.forget(now);
        self.number += 1;
        let (number, limits) = (self.number, self.limits);
        let mut convicted = Vec::new();
        let mut known_killer = false;
        if let Some(key) = evidence.inhabitants.only_model() {
            let who = Suspect::Model(key.clone());
            let record = self.records.entry(who.clone()).or_default();
            known_killer = record.convictions > 0;
            record.prove(now);
            record.stay_alone(now + HALF_LIFE);
            if record.reaches(limits.deaths, now) {
                record.convict(limits.quarantine, now);
                convicted.push(who);
            }
        } else {
            for key in evidence.suspects {
                let who = Suspect::Model(key.clone());
                let record = self.records.entry(who).or_default();
                record.doubt(number, now);
                record.stay_alone(now + record.probation());
            }
        }
        if let Some(function) = evidence.inhabitants.only_function() {
            // What a model does that was convicted before says nothing new of its function.
            if !known_killer {
                let who = Suspect::Function(function.clone());
                let record = self.records.entry(who.clone()).or_default();
                record.prove(now);
                if record.reaches(limits.deaths, now) {
                    record.stay_alone(now + HALF_LIFE);
                }
                if record.reaches(limits.deaths.saturating_mul(2), now) {
                    record.convict(limits.quarantine, now);
                    convicted.push(who);
                }
            }
        } else {
            for owner in evidence.suspects.iter().filter_map(|key| key.owner.clone()) {
                let record = self.records.entry(Suspect::Function(owner)).or_default();
                record.doubt(number, now);
                if record.doubts.len() >= FUNCTION_DOUBTS {
                    record.stay_alone(now + record.probation());
                }
            }
        }
        for who in &convicted {
            self.explain(who);
        }
        convicted
    }

    /// The deaths that a convicted one was in, are its own: nobody else is suspected for them any more.
    fn explain(&mut self, who: &Suspect) {
        let Some(record) = self.records.get_mut(who) else {
            return;
        };
        let explained: Vec<u64> = record.doubts.drain(..).map(|(number, _)| number).collect();
        self.records.retain(|_, record| {
            let before = record.doubts.len();
            record
                .doubts
                .retain(|(number, _)| !explained.contains(number));
            let cleared = before > 0 && record.doubts.is_empty() && record.deaths == 0;
            !cleared
        });
    }

    /// A model on its own has answered. Says whether that cleared it.
    pub(crate) fn answered(&mut self, key: &SessionKey) -> bool {
        let Some(record) = self.records.get_mut(&Suspect::Model(key.clone())) else {
            return false;
        };
        record.answered = record.answered.saturating_add(1);
        // What was proven is not made up for by a few answers, and neither is being there every time.
        let cleared = record.answered == CLEARING && record.deaths == 0 && record.doubts.len() <= 1;
        if cleared {
            record.alone_until = None;
        }
        cleared
    }

    /// Whatever is known of these does not count any more.
    pub(crate) fn forgive(&mut self, forgiven: impl Fn(&Suspect) -> bool) {
        self.records.retain(|who, _| !forgiven(who));
    }

    /// Who is in quarantine, how many deaths were proven, and until when.
    pub(crate) fn quarantined(
        &self,
        now: Instant,
    ) -> impl Iterator<Item = (&Suspect, u32, Instant)> {
        self.records.iter().filter_map(move |(who, record)| {
            let (deaths, until) = record.quarantined(now)?;
            Some((who, deaths, until))
        })
    }

    /// Forgets what has faded. Says whether anything is left.
    pub(crate) fn forget(&mut self, now: Instant) -> bool {
        self.records.retain(|_, record| {
            record
                .doubts
                .retain(|(_, when)| now.saturating_duration_since(*when) < DOUBT);
            record.matters(now)
        });
        if self.records.len() > MOST {
            let mut lightest: Vec<_> = self
                .records
                .iter()
                .map(|(who, record)| (record.weight(now), who.clone()))
                .collect();
            lightest.sort_by(|(one, _), (other, _)| one.total_cmp(other));
            for (_, who) in lightest.into_iter().take(self.records.len() - MOST / 2) {
                self.records.remove(&who);
            }
        }
        !self.records.is_empty()
    }
}
