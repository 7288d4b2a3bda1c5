//! Which models may be in which host for whom, given the deaths so far. Pure: history and `now` in, a decision out.
//!
//! A death in company proves nothing. Whoever was in flight is put into a host of its own for a while, longer each time; a
//! death there leaves no doubt. Only such deaths count towards quarantine, and what counts fades over hours: a killer that
//! waits between its deeds is remembered.
//!
//! A compute is its function's doing: functions share a declared model and its session, and one of them may know an input
//! that kills. So a death while computing is held against the model in the hands of that function, and never against the
//! same model in the hands of another. A load of a declared model has no function's input: what its bytes do, they do for
//! everybody, so it is held against the bytes. But only in a host in which nobody ever computed: an earlier compute may have
//! spoilt the memory that the load then trips over. Bytes that a guest brought, and all models of a function with a host of
//! its own, are that function's in any case.
//!
//! Deaths are held against the function as well: one that changes a byte of its model for every load, or declares many, is
//! one function all the same. A function with too many gets a host of its own for all that it computes, then none. Three
//! convicted functions do not make a model guilty: one tenant can have three. Once somebody is convicted, the deaths it was
//! in are explained, and nobody else is suspected for them.

use super::fading::{Fading, HALF_LIFE};
use super::few::Few;
use crate::sessions::SessionKey;
use fnctl_core::config::InferenceIsolation;
use fnctl_core::ids::{Digest, FunctionName};
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
    /// A model in the hands of one function: its computes and, if nobody else has that session, its loads.
    Model(Digest, FunctionName),
    /// The loading of a model that functions share.
    Loading(Digest),
    /// All that a function computes.
    Function(FunctionName),
}

impl Suspect {
    /// Who computes, if `caller` does with this session.
    pub(crate) fn computing(key: &SessionKey, caller: &FunctionName) -> Self {
        Self::Model(key.digest, key.owner.as_ref().unwrap_or(caller).clone())
    }

    /// Who loads, if this session is loaded.
    pub(crate) fn loading(key: &SessionKey) -> Self {
        match &key.owner {
            Some(owner) => Self::Model(key.digest, owner.clone()),
            None => Self::Loading(key.digest),
        }
    }

    /// The function behind it, if there is one alone.
    pub(crate) fn function(&self) -> Option<&FunctionName> {
        match self {
            Self::Model(_, function) | Self::Function(function) => Some(function),
            Self::Loading(_) => None,
        }
    }

    /// The model, if it is about one.
    pub(crate) fn model(&self) -> Option<&Digest> {
        match self {
            Self::Model(digest, _) | Self::Loading(digest) => Some(digest),
            Self::Function(_) => None,
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
    /// Who was computing or loading.
    pub(crate) suspects: &'a [Suspect],
    /// Who was ever in that host.
    pub(crate) inhabitants: &'a Inhabitants,
}

/// Who was ever in a host, as far as blame needs it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Inhabitants {
    /// Sessions that were loaded.
    models: Few<SessionKey>,
    /// Functions that computed.
    callers: Few<FunctionName>,
    /// Functions for which anything was loaded or computed.
    functions: Few<FunctionName>,
}

impl Inhabitants {
    /// So many that nobody can be told from the others.
    pub(crate) fn many() -> Self {
        Self {
            models: Few::Many,
            callers: Few::Many,
            functions: Few::Many,
        }
    }

    /// A session is loaded for a function.
    pub(crate) fn loads(&mut self, key: &SessionKey, function: &FunctionName) {
        self.models.add(key);
        self.functions.add(function);
    }

    /// A function computes.
    pub(crate) fn computes(&mut self, function: &FunctionName) {
        self.callers.add(function);
        self.functions.add(function);
    }

    /// The one model, in the one pair of hands, that can have done it.
    fn only_model(&self) -> Option<Suspect> {
        let key = self.models.only()?;
        match &self.callers {
            Few::None => Some(Suspect::loading(key)),
            Few::One(caller) => Some(Suspect::computing(key, caller)),
            Few::Many => None,
        }
    }

    /// The one function for which all was done that can have done it.
    fn only_function(&self) -> Option<&FunctionName> {
        self.functions.only()
    }
}

/// How long as many deaths in company keep somebody alone.
fn probation(deaths: usize) -> Duration {
    let doublings = u32::try_from(deaths.saturating_sub(1)).unwrap_or(u32::MAX);
    PROBATION
        .saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX))
        .min(LONGEST_PROBATION)
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
        probation(self.doubts.len())
    }

    /// Until when they do, if so many of them are enough for that.
    fn stay(&self, enough: usize) -> Option<Instant> {
        let doubts = (1..).zip(&self.doubts).skip(enough - 1);
        doubts
            .map(|(count, (_, when))| *when + probation(count))
            .max()
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

    /// Where a function may load a model and compute with it now.
    pub(crate) fn placement(
        &self,
        key: &SessionKey,
        function: &FunctionName,
        now: Instant,
    ) -> Placement {
        // In this order: whom less is held against shall not be with whom more is.
        let suspects = [
            Some(Suspect::computing(key, function)),
            Some(Suspect::Function(function.clone())),
            key.owner.is_none().then_some(Suspect::Loading(key.digest)),
        ];
        let known: Vec<(Suspect, &Record)> = suspects
            .into_iter()
            .flatten()
            .filter_map(|who| {
                let record = self.records.get(&who)?;
                Some((who, record))
            })
            .collect();
        for (who, record) in &known {
            if let Some((deaths, until)) = record.quarantined(now) {
                let who = who.clone();
                return Placement::Quarantined { who, deaths, until };
            }
        }
        let alone = known.into_iter().find(|(who, record)| {
            // A dedicated function is with nobody else already.
            let apart = matches!(who, Suspect::Function(_))
                && key.isolation == InferenceIsolation::Dedicated;
            record.is_alone(now) && !apart
        });
        match alone {
            Some((who, record)) => Placement::Alone {
                may_return: !matches!(who, Suspect::Function(_))
                    && record.deaths == 0
                    && record.doubts.len() < FUNCTION_DOUBTS,
                who,
            },
            None => Placement::Usual,
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
        let only = evidence.inhabitants.only_model();
        if let Some(who) = &only {
            let record = self.records.entry(who.clone()).or_default();
            known_killer = record.convictions > 0;
            record.prove(now);
            record.stay_alone(now + HALF_LIFE);
            if record.reaches(limits.deaths, now) {
                record.convict(limits.quarantine, now);
                convicted.push(who.clone());
            }
        } else {
            for who in evidence.suspects {
                let record = self.records.entry(who.clone()).or_default();
                record.doubt(number, now);
                record.stay_alone(now + record.probation());
            }
        }
        let function = evidence.inhabitants.only_function();
        match function {
            // Its bytes did it, for whomever they were loaded.
            Some(_) if matches!(only, Some(Suspect::Loading(_))) => {}
            // What a model does that was convicted before says nothing new of its function.
            Some(_) if known_killer => {}
            Some(function) => {
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
            None => {
                for function in evidence.suspects.iter().filter_map(Suspect::function) {
                    let who = Suspect::Function(function.clone());
                    let record = self.records.entry(who).or_default();
                    record.doubt(number, now);
                    if record.doubts.len() >= FUNCTION_DOUBTS {
                        record.stay_alone(now + record.probation());
                    }
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
        self.records.retain(|who, record| {
            let before = record.doubts.len();
            record
                .doubts
                .retain(|(number, _)| !explained.contains(number));
            let fewer = record.doubts.len() < before;
            if fewer && record.deaths == 0 {
                let enough = match who {
                    Suspect::Function(_) => FUNCTION_DOUBTS,
                    Suspect::Model(..) | Suspect::Loading(_) => 1,
                };
                // No longer than if the others alone had been.
                record.alone_until = record.alone_until.min(record.stay(enough));
            }
            !fewer || !record.doubts.is_empty() || record.deaths > 0
        });
    }

    /// A suspect in a host of its own was answered. Says whether that cleared it.
    pub(crate) fn answered(&mut self, who: &Suspect) -> bool {
        let Some(record) = self.records.get_mut(who) else {
            return false;
        };
        record.answered = record.answered.saturating_add(1);
        // What was proven is not made up for by a few answers, and neither is being there every time.
        let cleared = record.answered >= CLEARING
            && record.alone_until.is_some()
            && record.deaths == 0
            && record.doubts.len() <= 1;
        if cleared {
            record.alone_until = None;
        }
        cleared
    }

    /// These have one more chance, alone as after any quarantine. What they did is not forgotten: who deploys after each
    /// death would have any number of them.
    pub(crate) fn forgive(&mut self, forgiven: impl Fn(&Suspect) -> bool) {
        for (who, record) in &mut self.records {
            if forgiven(who) {
                record.quarantined = None;
            }
        }
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
