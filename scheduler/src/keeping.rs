//! Which version of each function is live, and what its configuration and schedule ask to be kept.
//!
//! This is all that is held of a function that is at zero: a name, a shared version, and a few measured numbers.

use crate::config::Clock;
use crate::measured::Measured;
use dashmap::DashMap;
use fnctl_core::FunctionName;
use fnctl_core::schedule::{Asked, Window};
use fnctl_core::version::{Version, VersionKey};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

pub(crate) struct Live {
    versions: DashMap<FunctionName, Arc<Version>>,
    /// Of those that may have instances without being called, the windows of their schedules.
    kept: Mutex<HashMap<FunctionName, Vec<Window>>>,
    /// What was measured of versions that are live and at zero.
    measured: DashMap<VersionKey, Measured>,
    clock: Clock,
}

impl Live {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            versions: DashMap::new(),
            kept: Mutex::default(),
            measured: DashMap::new(),
            clock,
        }
    }

    /// `version` answers for its function from now on.
    pub(crate) fn set(&self, version: &Arc<Version>) {
        let function = &version.function;
        let before = self.versions.insert(function.clone(), version.clone());
        if let Some(before) = before.filter(|before| before.number != version.number) {
            self.measured.remove(&before.key());
        }
        let mut kept = self.kept.lock();
        if version.config.is_kept() {
            let compile = |window| match Window::compile(window) {
                Ok(window) => Some(window),
                Err(problem) => {
                    // It was checked at its deploy, by an fnctl that knew other zones.
                    tracing::warn!(version = %version.key(), "a schedule window is left out: {problem}; deploy the function again");
                    None
                }
            };
            let windows = version.config.schedule.iter().filter_map(compile).collect();
            kept.insert(function.clone(), windows);
        } else {
            kept.remove(function);
        }
    }

    /// Forgets a version; says whether it was the live one.
    pub(crate) fn remove(&self, key: &VersionKey) -> bool {
        let removed = self
            .versions
            .remove_if(&key.function, |_, live| live.number == key.number);
        self.measured.remove(key);
        if removed.is_some() {
            self.kept.lock().remove(&key.function);
        }
        removed.is_some()
    }

    pub(crate) fn of(&self, function: &FunctionName) -> Option<Arc<Version>> {
        self.versions.get(function).map(|live| live.value().clone())
    }

    /// Whether this version is the live one of its function.
    pub(crate) fn is_live(&self, version: &Version) -> bool {
        let live = self.versions.get(&version.function);
        live.is_some_and(|live| live.number == version.number)
    }

    /// Keeps what was measured of a version whose pool goes, if it is live.
    pub(crate) fn remember(&self, version: &Version, measured: Measured) {
        if self.is_live(version) {
            self.measured.insert(version.key(), measured);
        }
    }

    /// What was measured before.
    pub(crate) fn recall(&self, version: &Version) -> Measured {
        let measured = self.measured.get(&version.key());
        measured.map(|measured| *measured).unwrap_or_default()
    }

    /// Takes over what was measured before a restart.
    pub(crate) fn restore(&self, key: VersionKey, measured: Measured) {
        self.measured.insert(key, measured);
    }

    /// What was measured of versions that are live, as their pools left it.
    pub(crate) fn measured(&self) -> BTreeMap<VersionKey, Measured> {
        let entries = self.measured.iter();
        let known: Vec<_> = entries
            .map(|entry| (entry.key().clone(), *entry.value()))
            .collect();
        let is_live = |key: &VersionKey| {
            let live = self.versions.get(&key.function);
            live.is_some_and(|live| live.number == key.number)
        };
        known.into_iter().filter(|(key, _)| is_live(key)).collect()
    }

    /// What is asked for a version now: by configuration and windows together, and by the windows. Nothing if it is not
    /// the live one.
    pub(crate) fn asked(&self, version: &Version) -> (Asked, Asked) {
        if !self.is_live(version) {
            return Default::default();
        }
        let base = Asked {
            provisioned: version.config.provisioned,
            min_instances: version.config.min_instances,
        };
        let mut kept = self.kept.lock();
        let windows = kept
            .get_mut(&version.function)
            .map_or_else(Asked::default, |windows| {
                ask(windows, self.clock.now(), base)
            });
        (base.max(windows), windows)
    }

    /// The live versions that are to have instances now although nobody calls them: provisioned ones, or the minimum of
    /// one that was called before and went to zero.
    pub(crate) fn wanted(&self) -> Vec<Arc<Version>> {
        let mut names: Vec<_> = self.kept.lock().keys().cloned().collect();
        // What happens to them happens in an order that can be repeated.
        names.sort_unstable();
        names
            .iter()
            .filter_map(|name| self.of(name))
            .filter(|version| {
                let (asked, _) = self.asked(version);
                asked.provisioned > 0
                    || (asked.min_instances > 0 && self.recall(version).is_called())
            })
            .collect()
    }
}

/// What windows ask for beyond what there is anyway.
fn ask(windows: &mut [Window], now: SystemTime, base: Asked) -> Asked {
    let asked = windows
        .iter_mut()
        .map(|window| window.asks(now, base))
        .fold(base, Asked::max);
    Asked {
        provisioned: beyond(asked.provisioned, base.provisioned),
        min_instances: beyond(asked.min_instances, base.min_instances),
    }
}

const fn beyond(asked: u32, base: u32) -> u32 {
    if asked > base { asked } else { 0 }
}
