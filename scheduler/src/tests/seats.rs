//! The pool with instances of several seats against a naive model, under random operations.

use crate::pool::{Place, PoolState, Take};
use crate::seats::Shareable;
use proptest::prelude::*;
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU32;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;

/// A handle of an instance; all handles count its uses together.
#[derive(Debug)]
struct Handle {
    id: u64,
    uses: Rc<Cell<u64>>,
}

impl Shareable for Handle {
    fn id(&self) -> u64 {
        self.id
    }

    fn share(&self) -> Option<Self> {
        Some(Self {
            id: self.id,
            uses: self.uses.clone(),
        })
    }

    fn uses(&self) -> u64 {
        self.uses.get()
    }
}

#[derive(Debug, Clone)]
enum Operation {
    Take,
    Leave(usize),
    StartSucceeds,
    StartFails,
    /// A caller is done; whether it had begun.
    Release(usize, bool),
    /// A caller is done, and nobody new may use its instance.
    Retire(usize),
    Expire,
    Evict,
    Demote,
    Max(usize),
    Measure(u64, u64),
    Relieve,
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        12 => Just(Operation::Take),
        1 => (0usize..8).prop_map(Operation::Leave),
        4 => Just(Operation::StartSucceeds),
        1 => Just(Operation::StartFails),
        8 => (0usize..16, prop::bool::weighted(0.9)).prop_map(|(lease, begun)| Operation::Release(lease, begun)),
        1 => (0usize..16).prop_map(Operation::Retire),
        1 => Just(Operation::Expire),
        1 => Just(Operation::Evict),
        1 => Just(Operation::Demote),
        1 => (1usize..6).prop_map(Operation::Max),
        1 => (1u64..2000, 1u64..2000).prop_map(|(service, start)| Operation::Measure(service, start)),
        1 => Just(Operation::Relieve),
    ]
}

/// What the model knows of an instance.
#[derive(Debug)]
struct Known {
    leases: usize,
    retired: bool,
    generation: u64,
}

struct Model {
    state: PoolState<Handle, u32>,
    seats: usize,
    uses: Option<u32>,
    now: Instant,
    instances: BTreeMap<u64, Known>,
    leases: Vec<Handle>,
    waiting: VecDeque<(u64, u32)>,
    starting: usize,
    callers: u32,
}

type Checked = Result<(), TestCaseError>;

impl Model {
    fn new(seats: usize, uses: Option<u32>) -> Self {
        let mut state = PoolState::default();
        state.set_seats(seats);
        state.set_uses(uses.and_then(NonZeroU32::new));
        Self {
            state,
            seats,
            uses,
            now: Instant::now(),
            instances: BTreeMap::new(),
            leases: Vec::new(),
            waiting: VecDeque::new(),
            starting: 0,
            callers: 0,
        }
    }

    /// A caller was given a seat.
    fn leased(&mut self, handle: Handle) -> Checked {
        let generation = self.state.generation();
        let known = self.instances.get_mut(&handle.id);
        prop_assert!(known.is_some(), "an instance that is gone was handed out");
        let Some(known) = known else { return Ok(()) };
        prop_assert!(
            !known.retired,
            "a seat of a retired instance was handed out"
        );
        prop_assert_eq!(
            known.generation,
            generation,
            "of one that was to be let go of"
        );
        known.leases += 1;
        prop_assert!(known.leases <= self.seats, "more leases than seats");
        let most = self.uses.map_or(u64::MAX, u64::from);
        let begun = self
            .leases
            .iter()
            .filter(|lease| lease.id == handle.id)
            .count();
        // None of those that are out has begun, as far as anybody knows.
        prop_assert!(
            handle.uses.get() + begun as u64 <= most,
            "it serves too many"
        );
        self.leases.push(handle);
        Ok(())
    }

    fn waiter(&mut self, waiter: u32) -> Checked {
        let first = self.waiting.pop_front().map(|(_, waiter)| waiter);
        prop_assert_eq!(Some(waiter), first, "in their order");
        Ok(())
    }

    fn place(&mut self, place: Place<Handle, u32>, was: u64) -> Checked {
        match place {
            Place::Waiter(handle, waiter) => {
                self.waiter(waiter)?;
                self.leased(handle)?;
                while let Some((handle, waiter)) = self.state.seat() {
                    self.waiter(waiter)?;
                    self.leased(handle)?;
                }
            }
            Place::Idle => self.starting += self.state.missing_after_retire(),
            Place::Retire(_) => {
                let known = self.instances.get_mut(&was);
                if let Some(known) = known {
                    known.retired = true;
                    if known.leases == 0 {
                        self.instances.remove(&was);
                    }
                }
                self.starting += self.state.missing_after_retire();
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, operation: &Operation) -> Checked {
        self.now += Duration::from_secs(1);
        let generation = self.state.generation();
        match *operation {
            Operation::Take => {
                self.callers += 1;
                let caller = self.callers;
                // The most loaded one with room, so that the others can go idle.
                let free = |known: &&Known| {
                    let usable = !known.retired && known.generation == generation;
                    usable && known.leases > 0 && known.leases < self.seats
                };
                let packed = self
                    .instances
                    .values()
                    .filter(free)
                    .map(|it| it.leases)
                    .max();
                match self.state.take(|| caller) {
                    Take::Warm(handle) => {
                        let before = self.instances.get(&handle.id).map(|known| known.leases);
                        if self.uses.is_none() {
                            prop_assert_eq!(before, Some(packed.unwrap_or(0)), "packed");
                        }
                        self.leased(handle)?;
                    }
                    Take::Queued { ticket, start } => {
                        if self.uses.is_none() {
                            prop_assert!(packed.is_none(), "nobody waits while a seat is free");
                        }
                        prop_assert!(self.state.idle().is_empty());
                        self.waiting.push_back((ticket, caller));
                        self.starting += usize::from(start);
                    }
                    Take::Closed => prop_assert!(false, "nobody closed it"),
                }
            }
            Operation::Leave(index) => {
                if let Some((ticket, _)) = self.waiting.remove(index) {
                    self.state.leave(ticket);
                }
            }
            Operation::StartSucceeds if self.starting > 0 => {
                self.starting -= 1;
                let id = u64::from(self.callers) << 32 | self.instances.len() as u64;
                let id = (id..)
                    .find(|id| !self.instances.contains_key(id))
                    .unwrap_or(id);
                let known = Known {
                    leases: 0,
                    retired: false,
                    generation,
                };
                self.instances.insert(id, known);
                let handle = Handle {
                    id,
                    uses: Rc::default(),
                };
                let place = self.state.started(handle, generation, self.now);
                self.place(place, id)?;
            }
            Operation::StartFails if self.starting > 0 => {
                self.starting -= 1;
                let told = self.state.start_failed();
                for waiter in told {
                    self.waiter(waiter)?;
                }
                self.starting += self.state.missing_after_retire();
            }
            Operation::Release(index, begun) if index < self.leases.len() => {
                let handle = self.leases.swap_remove(index);
                let id = handle.id;
                handle.uses.set(handle.uses.get() + u64::from(begun));
                let Some(known) = self.instances.get_mut(&id) else {
                    return Err(TestCaseError::fail("a lease of nothing"));
                };
                known.leases -= 1;
                let worn = self
                    .uses
                    .is_some_and(|uses| handle.uses.get() >= u64::from(uses));
                if worn {
                    self.retire(handle);
                } else {
                    let born = known.generation;
                    let place = self.state.released(handle, born, self.now);
                    self.place(place, id)?;
                }
            }
            Operation::Retire(index) if index < self.leases.len() => {
                let handle = self.leases.swap_remove(index);
                if let Some(known) = self.instances.get_mut(&handle.id) {
                    known.leases -= 1;
                }
                self.retire(handle);
            }
            Operation::Expire => {
                for handle in self
                    .state
                    .expire(self.now, |idle| idle.since + Duration::from_secs(5))
                {
                    self.goes(&handle)?;
                }
            }
            Operation::Evict => {
                if let Some(handle) = self.state.evict() {
                    self.goes(&handle)?;
                }
            }
            Operation::Demote => {
                for handle in self.state.demote() {
                    self.goes(&handle)?;
                }
            }
            Operation::Max(most) => self.state.set_max(most),
            Operation::Measure(service, start) => {
                self.state.served(Duration::from_millis(service));
                self.state.start_took(Duration::from_millis(start));
            }
            Operation::Relieve => self.starting += self.state.relieve(self.now),
            _ => {}
        }
        Ok(())
    }

    fn retire(&mut self, handle: Handle) {
        let id = handle.id;
        let (gone, more) = self.state.retire(handle);
        drop(gone);
        self.starting += more;
        if let Some(known) = self.instances.get_mut(&id) {
            known.retired = true;
            if known.leases == 0 {
                self.instances.remove(&id);
            }
        }
    }

    /// An instance that nobody uses goes.
    fn goes(&mut self, handle: &Handle) -> Checked {
        let known = self.instances.remove(&handle.id);
        prop_assert!(
            known.is_some_and(|known| known.leases == 0),
            "one that is in use went"
        );
        Ok(())
    }

    fn check(&self) -> Checked {
        let busy = self.instances.values().filter(|it| it.leases > 0).count();
        let idle = self.instances.len() - busy;
        let state = &self.state;
        prop_assert_eq!(
            (
                state.busy(),
                state.leased(),
                state.idle().len(),
                state.starting(),
                state.waiting()
            ),
            (
                busy,
                self.leases.len(),
                idle,
                self.starting,
                self.waiting.len()
            )
        );
        prop_assert!(
            self.waiting.is_empty() || self.starting + busy > 0,
            "somebody waits for nothing"
        );
        Ok(())
    }
}

proptest! {
    /// Every lease has a seat of its own, of an instance that may still be used; the fullest instance is used first;
    /// nobody waits while a seat is free.
    #[test]
    fn the_pool_keeps_its_books_of_seats(
        seats in 2usize..5,
        uses in prop::option::of(1u32..7),
        operations in prop::collection::vec(operation(), 0..300),
    ) {
        let mut model = Model::new(seats, uses);
        for operation in operations {
            model.carry_out(&operation)?;
            model.check()?;
        }
    }
}
