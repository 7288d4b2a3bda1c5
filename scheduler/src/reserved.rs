//! Reserved concurrency: parts of the node's concurrency that belong to one function each, and what is left for all
//! others (AWS Lambda's meaning). Pure.

use fnctl_core::FunctionName;
use std::collections::HashMap;

/// Who has reserved how much.
#[derive(Debug)]
pub struct Reservations {
    total: usize,
    parts: HashMap<FunctionName, usize>,
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
        }
    }

    /// Always left for functions without a reservation: a tenth, and at least one.
    pub fn least_shared(&self) -> usize {
        self.total.div_ceil(10).max(1)
    }

    fn taken(&self) -> usize {
        self.parts.values().sum()
    }

    /// Whether `function` may have `part` instead of what it has.
    pub fn allows(&self, function: &FunctionName, part: Option<usize>) -> Result<(), TooMuch> {
        let others = self.taken() - self.parts.get(function).copied().unwrap_or(0);
        let available = self
            .total
            .saturating_sub(others)
            .saturating_sub(self.least_shared());
        match part {
            Some(part) if part > available => Err(TooMuch { available }),
            _ => Ok(()),
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

    #[test]
    fn the_rest_is_shared_and_a_tenth_of_all_stays() {
        let name = |text: &str| text.parse::<FunctionName>().unwrap();
        let mut parts = Reservations::new(100);
        parts.set(&name("a"), Some(40));
        assert_eq!(parts.shared(), 60);
        assert_eq!(parts.allows(&name("b"), Some(50)), Ok(()));
        assert_eq!(
            parts.allows(&name("b"), Some(51)),
            Err(TooMuch { available: 50 })
        );
        assert_eq!(
            parts.allows(&name("a"), Some(90)),
            Ok(()),
            "it replaces its own"
        );
        parts.set(&name("b"), Some(0));
        assert_eq!(parts.shared(), 60, "0 reserves nothing");
        parts.set(&name("a"), None);
        assert_eq!(parts.shared(), 100);
        parts.set(&name("a"), Some(500));
        assert_eq!(parts.shared(), 10, "the rest is never starved");
    }
}
