//! Where a model may be: with the others, in a host of its own, or nowhere for now.

use super::death::Reason;
use super::group::{Group, GroupKey};
use super::quarantine::{Placement, Suspect};
use super::supervisor::{LOOK_AGAIN, Supervisor};
use crate::sessions::SessionKey;
use crate::timed_out;
use fnctl_core::ids::FunctionName;
use fnctl_core::inference::{InferenceError, InferenceErrorKind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// Most hosts for suspects at once; further suspects wait for one.
const MOST_ALONE: usize = 4;
/// Most of them for one function: its own, and one of its models'. As many for the loading of shared models.
const MOST_ALONE_OF_ONE: usize = 2;
/// How long a suspect of little waits for a host of its own before it goes back to the others.
const PATIENCE: Duration = Duration::from_secs(1);

impl Supervisor {
    pub(super) fn group(&self, key: GroupKey) -> Result<Arc<Group>, InferenceError> {
        if key == GroupKey::Shared {
            return Ok(self.shared.clone());
        }
        let mut others = self.others.lock();
        if let Some(group) = others.get(&key) {
            return Ok(group.clone());
        }
        // Suspects' hosts have a limit of their own, see `alone`.
        let is_dedicated = |key: &GroupKey| matches!(key, GroupKey::Dedicated(_));
        let dedicated = others.keys().filter(|key| is_dedicated(key)).count();
        if is_dedicated(&key) && dedicated >= self.plan.config.max_hosts {
            return Err(InferenceError::new(
                InferenceErrorKind::TooLarge,
                format!(
                    "{dedicated} functions have inference hosts of their own already; raise inference.max_hosts, or use inference_isolation = \"shared\"",
                ),
            ));
        }
        let group = Group::new(key.clone());
        others.insert(key, group.clone());
        Ok(group)
    }

    /// Whether a function may have a use of a model now, wherever that is. The session may be there already, for others.
    pub(super) fn admit(
        &self,
        key: &SessionKey,
        function: &FunctionName,
    ) -> Result<(), InferenceError> {
        if !self.suspicion.load(Ordering::Relaxed) {
            return Ok(());
        }
        let now = Instant::now();
        match self.ledger.lock().placement(key, function, now) {
            Placement::Quarantined { who, deaths, until } => {
                Err(quarantined(&who, deaths, until.duration_since(now)))
            }
            Placement::Usual | Placement::Alone { .. } => Ok(()),
        }
    }

    /// The session that a function gets. A suspect's is its own, also of a model that functions share: nobody waits for
    /// the place that it has to wait for, and nobody believes what a host that it may have taken over says of the model.
    pub(super) fn apart(&self, key: SessionKey, function: &FunctionName) -> SessionKey {
        if key.owner.is_some() || !self.suspicion.load(Ordering::Relaxed) {
            return key;
        }
        let now = Instant::now();
        let ledger = self.ledger.lock();
        let alone = matches!(
            ledger.placement(&key, function, now),
            Placement::Alone { who, .. } if who.function().is_some()
        );
        // What is held against the loading of the bytes holds wherever the session belongs.
        if alone && !ledger.is_alone(&Suspect::Loading(key.digest), now) {
            return SessionKey {
                owner: Some(function.clone()),
                ..key
            };
        }
        key
    }

    /// The group where a model may be now, for this function.
    pub(super) async fn place(
        &self,
        key: &SessionKey,
        function: &FunctionName,
        deadline: Instant,
    ) -> Result<Arc<Group>, InferenceError> {
        let since = Instant::now();
        // Half of the time that is left, at most: the rest is for the work itself.
        let patience = PATIENCE.min(deadline.saturating_duration_since(since) / 2);
        loop {
            if !self.suspicion.load(Ordering::Relaxed) {
                return self.group(GroupKey::usual(key));
            }
            let now = Instant::now();
            let placement = self.ledger.lock().placement(key, function, now);
            match placement {
                Placement::Usual => return self.group(GroupKey::usual(key)),
                Placement::Quarantined { who, deaths, until } => {
                    return Err(quarantined(&who, deaths, until.duration_since(now)));
                }
                Placement::Alone { who, may_return } => {
                    if let Some(group) = self.alone(who) {
                        return Ok(group);
                    }
                    if may_return && now.saturating_duration_since(since) >= patience {
                        return self.group(GroupKey::usual(key));
                    }
                    // A little before, so that the caller learns what it waited for.
                    if now + LOOK_AGAIN >= deadline {
                        return Err(timed_out(
                            "the model is suspected of killing inference hosts and waits for one of its own, but all of those are busy; try again later",
                        ));
                    }
                    let next = (now + LOOK_AGAIN).min(deadline - LOOK_AGAIN);
                    tokio::time::sleep_until(next).await;
                }
            }
        }
    }

    /// A suspect's own place: the one it has, or a new one if there are not too many. The look and the deed are one, under
    /// one lock. Makes room where there is none: a host that no suspect uses at the moment is ended.
    fn alone(&self, who: Suspect) -> Option<Arc<Group>> {
        let mut others = self.others.lock();
        let key = GroupKey::Alone(who);
        if let Some(group) = others.get(&key) {
            return Some(group.clone());
        }
        // Nobody comes to a group while `others` is locked, so what only the map knows stays unused.
        others.retain(|other, group| {
            !matches!(other, GroupKey::Alone(_))
                || group.live.read().is_some()
                || Arc::strong_count(group) > 1
        });
        let mut alone = 0;
        // Those whose end makes room for this one: its own function's, if that has too many.
        let mut same = Vec::new();
        let mut all = Vec::new();
        for (other, group) in others.iter() {
            if !matches!(other, GroupKey::Alone(_)) {
                continue;
            }
            alone += 1;
            all.push(group);
            // Those for the loading of a model have no function: they count together, as one function may declare many.
            if other.function() == key.function() {
                same.push(group);
            }
        }
        let candidates = if same.len() >= MOST_ALONE_OF_ONE {
            same
        } else if alone >= MOST_ALONE {
            all
        } else {
            let group = Group::new(key.clone());
            others.insert(key, group.clone());
            return Some(group);
        };
        let hosts: Vec<_> = candidates
            .into_iter()
            .map(|group| (group, group.alive()))
            .collect();
        // One that ends, or begins, makes room soon enough.
        if hosts.iter().all(|(_, host)| host.is_some()) {
            let idle = hosts.into_iter().find_map(|(group, host)| {
                // The map, and the host's own word of its death: nobody has it in hand.
                host.filter(|host| host.is_idle() && Arc::strong_count(group) <= 2)
                    .map(|host| (group, host))
            });
            if let Some((group, host)) = idle {
                group.take(&host);
                host.finish(Reason::Stopped);
            }
        }
        None
    }
}

/// A suspect, as messages call it.
pub(super) fn named(who: &Suspect) -> String {
    match who {
        Suspect::Model(digest, function) => format!("function {function} with the model {digest}"),
        Suspect::Loading(digest) => format!("the loading of the model {digest}"),
        Suspect::Function(function) => format!("function {function}, with one model or another,"),
    }
}

fn quarantined(who: &Suspect, deaths: u32, left: Duration) -> InferenceError {
    InferenceError::new(
        InferenceErrorKind::Quarantined,
        format!(
            "{} killed an inference host {deaths} times and is kept away from one for another {}s; deploy the function again to lift that at once",
            named(who),
            left.as_secs().max(1)
        ),
    )
}
