//! A plan: for each rung of the ladder, the windows of time in which it is to be in memory.

use super::{LONGEST, seconds};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A stretch of time in which a rung is to be in memory, in seconds since the function went idle.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Window {
    /// Its beginning. Zero: what is there when the function goes idle is kept. Otherwise it is started ahead.
    pub from: f32,
    /// Its end.
    pub to: f32,
}

/// Most windows of a rung.
pub const WINDOWS: usize = 4;

/// The windows of one rung, the earliest first, apart from each other.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
struct Windows {
    all: [Window; WINDOWS],
    count: usize,
}

impl Windows {
    /// Adds one behind the others. One that is empty or does not fit any more is left out; one that touches the last one
    /// extends it.
    fn push(&mut self, from: f32, to: f32) {
        let (from, to) = (from.max(0.0), to.min(LONGEST));
        if from >= to || from.is_nan() || to.is_nan() {
            return;
        }
        let last = self
            .count
            .checked_sub(1)
            .and_then(|at| self.all.get_mut(at));
        match last {
            Some(last) if from <= last.to => last.to = last.to.max(to),
            _ => {
                if let Some(slot) = self.all.get_mut(self.count) {
                    *slot = Window { from, to };
                    self.count += 1;
                }
            }
        }
    }

    fn get(&self) -> &[Window] {
        self.all.get(..self.count).unwrap_or_default()
    }

    fn covers(&self, age: f32) -> bool {
        self.get()
            .iter()
            .any(|window| window.from <= age && age < window.to)
    }

    /// Seconds in windows before this age.
    fn before(&self, age: f32) -> f32 {
        self.get()
            .iter()
            .map(|window| (window.to.min(age) - window.from).max(0.0))
            .sum()
    }

    /// The end of the window that `age` is in, or has just left: ages are not exact.
    fn end(&self, age: f32) -> Option<f32> {
        let slack = 0.01 + age * 1e-6;
        self.get()
            .iter()
            .find(|window| window.from <= age && age <= window.to + slack)
            .map(|window| window.to)
    }
}

/// A rung below the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LowerRung {
    /// The sessions of its models.
    Session,
    /// Its compiled code.
    Template,
}

/// When what a function needs is to be in memory while nobody calls it.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Plan {
    sandbox: Windows,
    /// Of session and template. Nothing: the policy has no opinion, they go by the platform's times.
    lower: Option<[Windows; 2]>,
}

impl Plan {
    /// Kept for this many seconds, then let go for good.
    pub fn keep_for(seconds: f32) -> Self {
        let mut plan = Self::default();
        plan.push(0.0, seconds);
        plan
    }

    /// All rungs are kept for this many seconds, then let go for good.
    pub fn keep_all_for(seconds: f32) -> Self {
        let mut plan = Self::of_all_rungs();
        plan.push(0.0, seconds);
        plan.push_lower(LowerRung::Session, 0.0, seconds);
        plan.push_lower(LowerRung::Template, 0.0, seconds);
        plan
    }

    /// Without any window, for the rungs below the sandbox as well.
    pub fn of_all_rungs() -> Self {
        Self {
            sandbox: Windows::default(),
            lower: Some(Default::default()),
        }
    }

    /// Adds a window of the sandbox behind the others.
    pub fn push(&mut self, from: f32, to: f32) {
        self.sandbox.push(from, to);
    }

    /// Adds a window of a rung below, if this plan is about those.
    pub fn push_lower(&mut self, rung: LowerRung, from: f32, to: f32) {
        if let Some([session, template]) = &mut self.lower {
            match rung {
                LowerRung::Session => session.push(from, to),
                LowerRung::Template => template.push(from, to),
            }
        }
    }

    fn lower(&self, rung: LowerRung) -> Option<&Windows> {
        let [session, template] = self.lower.as_ref()?;
        Some(match rung {
            LowerRung::Session => session,
            LowerRung::Template => template,
        })
    }

    /// Whether it says nothing about any rung.
    pub fn is_empty(&self) -> bool {
        self.windows().is_empty() && self.lower.is_none()
    }

    /// The windows of the sandbox, the earliest first.
    pub fn windows(&self) -> &[Window] {
        self.sandbox.get()
    }

    /// How long the instance that became idle is kept.
    pub fn keep(&self) -> Duration {
        match self.windows().first() {
            Some(first) if first.from == 0.0 => seconds(first.to),
            _ => Duration::ZERO,
        }
    }

    /// Until which age a rung below the sandbox is kept whose last sandbox goes at this age. Nothing: the platform's time
    /// decides.
    pub fn lower_until(&self, rung: LowerRung, age: f32) -> Option<f32> {
        let windows = self.lower(rung)?;
        Some(windows.end(age).map_or(age, |end| end.max(age)))
    }

    /// The first window that is not over `age` seconds after the function went idle, if it is one to start for. One that
    /// is nearly over is over, as times are not exact: nothing is started twice for it.
    pub fn ahead(&self, age: f32) -> Option<Window> {
        let age = age + 0.01 + age * 1e-6;
        self.windows()
            .iter()
            .copied()
            .find(|window| window.from > 0.0 && window.to > age)
    }

    /// Whether an instance would be warm at this age.
    pub fn covers(&self, age: f32) -> bool {
        self.sandbox.covers(age)
    }

    /// Whether a rung below would be in memory at this age. Not if the plan has no opinion.
    pub fn covers_lower(&self, rung: LowerRung, age: f32) -> bool {
        self.lower(rung).is_some_and(|windows| windows.covers(age))
    }

    /// Seconds that an instance would be warm before this age.
    pub fn warm_until(&self, age: f32) -> f32 {
        self.sandbox.before(age)
    }

    /// Seconds that a rung below would be in memory before this age; as long as the sandbox if the plan has no opinion.
    pub fn lower_warm_until(&self, rung: LowerRung, age: f32) -> f32 {
        self.lower(rung).unwrap_or(&self.sandbox).before(age)
    }

    /// Instances that would be started ahead before this age.
    pub fn starts_until(&self, age: f32) -> usize {
        self.windows()
            .iter()
            .filter(|window| window.from > 0.0 && window.from < age)
            .count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rung_below_is_kept_to_the_end_of_the_window_in_which_its_sandbox_goes() {
        let mut plan = Plan::of_all_rungs();
        plan.push(0.0, 60.0);
        plan.push(3500.0, 3600.0);
        plan.push_lower(LowerRung::Session, 0.0, 600.0);
        plan.push_lower(LowerRung::Session, 3500.0, 3600.0);
        plan.push_lower(LowerRung::Template, 0.0, 4000.0);
        let until = |rung, age| plan.lower_until(rung, age);
        assert_eq!(until(LowerRung::Session, 60.0), Some(600.0));
        assert_eq!(until(LowerRung::Session, 3600.005), Some(3600.005));
        assert_eq!(until(LowerRung::Template, 3600.0), Some(4000.0));
        // Later than any window: it goes with its sandbox.
        assert_eq!(until(LowerRung::Template, 5000.0), Some(5000.0));
        assert_eq!(
            Plan::keep_for(60.0).lower_until(LowerRung::Session, 60.0),
            None
        );
    }
}
