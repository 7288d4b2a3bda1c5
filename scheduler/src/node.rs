//! What all functions of the node share: concurrency, processors and memory, and who has reserved a part of it.

use crate::config::Config;
use crate::gate::{First, Flow, Gate, Pass};
use crate::memory::Budget;
use crate::reserved::Reservations;
use fnctl_core::{ErrorKind, Failure, FunctionConfig, FunctionName};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// See the module.
#[derive(Debug)]
pub(crate) struct Node {
    /// Concurrency that nobody has reserved.
    pub(crate) shared: Arc<Gate>,
    /// The processors.
    pub(crate) running: Arc<Gate>,
    pub(crate) memory: Arc<Budget>,
    reservations: Arc<Mutex<Reservations>>,
}

/// A part that is kept free for a version that is to become live.
#[derive(Debug)]
pub(crate) struct Claimed {
    reservations: Arc<Mutex<Reservations>>,
    function: FunctionName,
    part: Option<usize>,
}

impl Drop for Claimed {
    fn drop(&mut self) {
        self.reservations.lock().unclaim(&self.function, self.part);
    }
}

/// What an invocation has of the node for as long as it is in flight.
#[derive(Debug)]
pub(crate) struct Admitted {
    /// Its place in what is shared; nothing for a function that has reserved its own.
    pub(crate) _shared: Option<Pass>,
    /// Its right to begin computing.
    pub(crate) pass: Pass,
}

impl Node {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            shared: Arc::new(Gate::new(config.max_concurrency, First::InTurn)),
            running: Arc::new(Gate::new(config.max_running, First::Always)),
            memory: Arc::new(Budget::new(config.memory.bytes())),
            reservations: Arc::new(Mutex::new(Reservations::new(config.max_concurrency))),
        }
    }

    /// Takes both places at once, if they are free and nobody waits for them.
    pub(crate) fn try_admit(&self, flow: &Flows, is_reserved: bool) -> Option<Admitted> {
        let shared = match is_reserved {
            true => None,
            false => Some(self.shared.try_enter(&flow.shared)?),
        };
        let pass = self.running.try_enter(&flow.running)?;
        Some(Admitted {
            _shared: shared,
            pass,
        })
    }

    /// Waits for both places in fair order. Callers bound the wait.
    pub(crate) async fn admit(
        &self,
        flow: &Flows,
        is_reserved: bool,
        cost: Duration,
    ) -> Option<Admitted> {
        let shared = match is_reserved {
            true => None,
            false => Some(self.shared.enter(&flow.shared, cost).await?),
        };
        let pass = self.running.enter(&flow.running, cost).await?;
        Some(Admitted {
            _shared: shared,
            pass,
        })
    }

    /// Claims a configuration's reservation, if it leaves enough for the others.
    pub(crate) fn claim(
        &self,
        function: &FunctionName,
        config: &FunctionConfig,
    ) -> Result<Claimed, Failure> {
        let part = config.reserved_concurrency.map(|part| part as usize);
        let mut reservations = self.reservations.lock();
        let claimed = reservations.claim(function, part);
        claimed.map_err(|too_much| {
            Failure::new(
                ErrorKind::InvalidConfig,
                format!(
                    "reserved_concurrency: at most {} of scheduler.max_concurrency can be reserved, as {} stay for functions without; reserve less, or raise scheduler.max_concurrency",
                    too_much.available,
                    reservations.least_shared()
                ),
            )
        })?;
        Ok(Claimed {
            reservations: self.reservations.clone(),
            function: function.clone(),
            part,
        })
    }

    /// Takes note of what a function reserves from now on.
    pub(crate) fn reserve(&self, function: &FunctionName, part: Option<u32>) {
        let mut reservations = self.reservations.lock();
        reservations.set(function, part.map(|part| part as usize));
        // Under the lock: of two that reserve at the same time, the second's sum is to stay.
        self.shared.resize(reservations.shared());
    }
}

/// A function at both gates.
#[derive(Debug)]
pub(crate) struct Flows {
    shared: Arc<Flow>,
    pub(crate) running: Arc<Flow>,
}

impl Flows {
    /// Its flow at the gate of what is shared.
    #[cfg(test)]
    pub(crate) fn shared(&self) -> &Flow {
        &self.shared
    }

    pub(crate) fn new(function: &FunctionName) -> Self {
        Self {
            shared: Arc::new(Flow::new(function.clone())),
            running: Arc::new(Flow::new(function.clone())),
        }
    }
}
