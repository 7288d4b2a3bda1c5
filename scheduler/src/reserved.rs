//! Reserved concurrency: parts of the node's concurrency that belong to one function each, and what is left for all
//! others (AWS Lambda's meaning). Pure.

use fnctl_core::FunctionName;
use std::collections::HashMap;

/// Who has reserved how much.
#[derive(Debug)]
pub struct Reservations {
    total: usize,
    parts: HashMap<FunctionName, usize>,
    /// What versions that are about to become live will have.
    claims: HashMap<FunctionName, Vec<usize>>,
}

/// A reservation that leaves too little for the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMuch {
    /// What may be reserved at most.
    pub available: usize,
}

impl Reservations {
    /// Nothing is reserved of `total`.
    pub fn new(total: usize) -> Self {
        Self {
            total,
            parts: HashMap::new(),
            claims: HashMap::new(),
        }
    }

    /// Always left for functions without a reservation: a tenth, and at least one.
    pub fn least_shared(&self) -> usize {
        self.total.div_ceil(10).max(1)
    }

    fn taken(&self) -> usize {
        self.parts.values().sum()
    }

    /// The most that functions other than this will have, whichever of the claims is carried out.
    fn held_by_others(&self, function: &FunctionName) -> usize {
        let claimed = self.claims.iter().filter_map(|(name, parts)| {
            let most = parts.iter().max()?;
            let has = self.parts.get(name).copied().unwrap_or(0);
            Some((name, most.saturating_sub(has)))
        });
        self.parts
            .iter()
            .map(|(name, part)| (name, *part))
            .chain(claimed)
            .filter(|(name, _)| *name != function)
            .map(|(_, part)| part)
            .sum()
    }

    /// Claims `part` for `function` instead of what it has, if that leaves enough for the others. Until it is given back
    /// nobody else gets it; check and claim are one step.
    pub fn claim(&mut self, function: &FunctionName, part: Option<usize>) -> Result<(), TooMuch> {
        let available = self
            .total
            .saturating_sub(self.held_by_others(function))
            .saturating_sub(self.least_shared());
        match part {
            Some(part) if part > available => Err(TooMuch { available }),
            Some(part) => {
                self.claims.entry(function.clone()).or_default().push(part);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Gives a claim back: by now [`Self::set`] has said what the function has.
    pub fn unclaim(&mut self, function: &FunctionName, part: Option<usize>) {
        let Some(claims) = self.claims.get_mut(function) else {
            return;
        };
        if let Some(place) = claims.iter().position(|claim| Some(*claim) == part) {
            claims.swap_remove(place);
        }
        if claims.is_empty() {
            self.claims.remove(function);
        }
    }

    /// Takes note of what a function has now.
    pub fn set(&mut self, function: &FunctionName, part: Option<usize>) {
        match part {
            // 0 reserves nothing: it turns the function off.
            Some(part) if part > 0 => {
                self.parts.insert(function.clone(), part);
            }
            _ => {
                self.parts.remove(function);
            }
        }
    }

    /// What functions without a reservation share. Versions that were accepted under a larger total may have reserved
    /// more than there is: the rest still gets what it always gets.
    pub fn shared(&self) -> usize {
        self.total
            .saturating_sub(self.taken())
            .max(self.least_shared())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> FunctionName {
        text.parse().unwrap()
    }

    #[test]
    fn the_rest_is_shared_and_a_tenth_of_all_stays() {
        let mut parts = Reservations::new(100);
        let allows = |parts: &mut Reservations, function: &str, part| {
            let claimed = parts.claim(&name(function), Some(part));
            if claimed.is_ok() {
                parts.unclaim(&name(function), Some(part));
            }
            claimed
        };
        parts.set(&name("a"), Some(40));
        assert_eq!(parts.shared(), 60);
        assert_eq!(allows(&mut parts, "b", 50), Ok(()));
        assert_eq!(allows(&mut parts, "b", 51), Err(TooMuch { available: 50 }));
        assert_eq!(allows(&mut parts, "a", 90), Ok(()), "it replaces its own");
        parts.set(&name("b"), Some(0));
        assert_eq!(parts.shared(), 60, "0 reserves nothing");
        parts.set(&name("a"), None);
        assert_eq!(parts.shared(), 100);
        parts.set(&name("a"), Some(500));
        assert_eq!(parts.shared(), 10, "the rest is never starved");
    }

    #[test]
    fn what_is_claimed_is_nobody_elses() {
        let mut parts = Reservations::new(100);
        let too_much = |available| Err(TooMuch { available });
        parts.claim(&name("a"), Some(60)).unwrap();
        assert_eq!(parts.claim(&name("b"), Some(31)), too_much(30));
        assert_eq!(parts.shared(), 100, "nothing is taken yet");
        // The larger of two claims of one function counts, and what it has counts until it has less.
        parts.claim(&name("a"), Some(20)).unwrap();
        parts.unclaim(&name("a"), Some(60));
        parts.claim(&name("b"), Some(70)).unwrap();
        parts.set(&name("b"), Some(70));
        parts.unclaim(&name("b"), Some(70));
        parts.claim(&name("b"), Some(5)).unwrap();
        assert_eq!(parts.claim(&name("c"), Some(1)), too_much(0));
        parts.set(&name("b"), Some(5));
        assert_eq!(parts.claim(&name("c"), Some(66)), too_much(65));
        assert_eq!(parts.claim(&name("c"), None), Ok(()));
    }
}
