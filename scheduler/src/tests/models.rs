//! The pure states against naive models, under random operations.

use crate::limit::{Admission, LimitState};
use crate::pool::{Place, PoolState, Take};
use proptest::prelude::*;
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

#[derive(Debug, Clone)]
enum LimitOperation {
    Admit,
    Release,
    Leave(usize),
    Resize(usize, usize),
}

fn limit_operation() -> impl Strategy<Value = LimitOperation> {
    prop_oneof![
        4 => Just(LimitOperation::Admit),
        3 => Just(LimitOperation::Release),
        1 => (0usize..8).prop_map(LimitOperation::Leave),
        1 => (1usize..5, 0usize..5).prop_map(|(limit, queue)| LimitOperation::Resize(limit, queue)),
    ]
}

proptest! {
    /// Permits out never exceed the limit that was in force when they were granted, nobody overtakes, nobody is lost.
    #[test]
    fn the_limit_agrees_with_a_naive_one(operations in prop::collection::vec(limit_operation(), 0..200)) {
        let (mut limit, mut max_queue) = (2, 2);
        let mut state = LimitState::new(limit, max_queue);
        let mut out = 0usize;
        let mut queue: VecDeque<(u64, u32)> = VecDeque::new();
        let mut next_waiter = 0u32;
        for operation in operations {
            match operation {
                LimitOperation::Admit => {
                    next_waiter += 1;
                    match state.admit(next_waiter) {
                        Admission::Granted => {
                            prop_assert!(queue.is_empty() && out < limit);
                            out += 1;
                        }
                        Admission::Queued(ticket) => {
                            prop_assert!(queue.len() < max_queue && (out >= limit || !queue.is_empty()));
                            queue.push_back((ticket, next_waiter));
                        }
                        Admission::Full(waiter) => {
                            prop_assert_eq!(waiter, next_waiter);
                            prop_assert!(queue.len() >= max_queue && (out >= limit || !queue.is_empty()));
                        }
                    }
                }
                LimitOperation::Release if out > 0 => {
                    out -= 1;
                    let woken = state.release();
                    if out < limit {
                        let expected = queue.pop_front().map(|(_, waiter)| waiter);
                        out += usize::from(expected.is_some());
                        prop_assert_eq!(woken, expected);
                    } else {
                        prop_assert_eq!(woken, None);
                    }
                }
                LimitOperation::Release => {}
                LimitOperation::Leave(index) => {
                    if let Some((ticket, _)) = queue.get(index).copied() {
                        state.leave(ticket);
                        queue.remove(index);
                    }
                }
                LimitOperation::Resize(new_limit, new_queue) => {
                    (limit, max_queue) = (new_limit, new_queue);
                    let woken = state.resize(limit, max_queue);
                    let mut expected = Vec::new();
                    while out < limit && let Some((_, waiter)) = queue.pop_front() {
                        out += 1;
                        expected.push(waiter);
                    }
                    prop_assert_eq!(woken, expected);
                }
            }
            prop_assert_eq!((state.in_flight(), state.queued()), (out, queue.len()));
        }
    }
}

#[derive(Debug, Clone)]
enum PoolOperation {
    Take,
    Leave(usize),
    StartSucceeds,
    StartFails,
    StartRefused,
    Release(usize),
    Retire(usize),
    Expire,
    Evict,
    Demote,
    StartGivenUp,
    Provision(usize),
    Floor(usize, usize),
    Max(usize),
    Measure(u64, u64),
    Relieve,
}

fn pool_operation() -> impl Strategy<Value = PoolOperation> {
    prop_oneof![
        6 => Just(PoolOperation::Take),
        1 => (0usize..8).prop_map(PoolOperation::Leave),
        4 => Just(PoolOperation::StartSucceeds),
        1 => Just(PoolOperation::StartFails),
        1 => Just(PoolOperation::StartGivenUp),
        1 => Just(PoolOperation::StartRefused),
        4 => (0usize..8).prop_map(PoolOperation::Release),
        1 => (0usize..8).prop_map(PoolOperation::Retire),
        1 => Just(PoolOperation::Expire),
        1 => Just(PoolOperation::Evict),
        1 => Just(PoolOperation::Demote),
        1 => (0usize..3).prop_map(PoolOperation::Provision),
        1 => (0usize..3, 0usize..5).prop_map(|(provisioned, floor)| PoolOperation::Floor(provisioned, floor)),
        1 => (1usize..9).prop_map(PoolOperation::Max),
        1 => (1u64..2000, 1u64..2000).prop_map(|(service, start)| PoolOperation::Measure(service, start)),
        1 => Just(PoolOperation::Relieve),
    ]
}

proptest! {
    /// Every instance is in exactly one place, every waiting caller has an instance coming, and counts are what they are.
    #[test]
    fn the_pool_keeps_its_books(operations in prop::collection::vec(pool_operation(), 0..300)) {
        let mut state: PoolState<u32, u32> = PoolState::default();
        let mut now = Instant::now();
        let (mut max, mut floor) = (usize::MAX, 0);
        let (mut busy, mut idle, mut waiting) = (Vec::<(u32, u64)>::new(), BTreeSet::<u32>::new(), VecDeque::<(u64, u32)>::new());
        let (mut starting, mut next_instance, mut next_waiter) = (0usize, 0u32, 0u32);
        for operation in operations {
            now += Duration::from_secs(1);
            let generation = state.generation();
            match operation {
                PoolOperation::Take => {
                    next_waiter += 1;
                    match state.take(|| next_waiter) {
                        Take::Warm(instance) => {
                            prop_assert!(idle.remove(&instance), "an idle instance is handed out once");
                            busy.push((instance, generation));
                        }
                        Take::Queued { ticket, start } => {
                            prop_assert!(idle.is_empty(), "nobody waits while an instance is idle");
                            waiting.push_back((ticket, next_waiter));
                            prop_assert!(!start || state.total() <= max, "no more than the most");
                            prop_assert!(!start || starting < waiting.len(), "no more starts than callers");
                            starting += usize::from(start);
                        }
                        Take::Closed => prop_assert!(false, "nobody closed it"),
                    }
                }
                PoolOperation::Leave(index) => {
                    if let Some((ticket, _)) = waiting.get(index).copied() {
                        state.leave(ticket);
                        waiting.remove(index);
                    }
                }
                PoolOperation::StartSucceeds if starting > 0 => {
                    starting -= 1;
                    next_instance += 1;
                    place(state.started(next_instance, generation, now), next_instance, generation, &mut busy, &mut idle, &mut waiting)?;
                }
                PoolOperation::StartFails if starting > 0 => {
                    let starting_before = starting;
                    starting -= 1;
                    let told = state.start_failed();
                    if starting + busy.len() == 0 {
                        prop_assert_eq!(told.len(), waiting.len().div_ceil(2), "one failure is not everybody's");
                    } else if waiting.len() > starting {
                        prop_assert!(!told.is_empty() && told.len() <= waiting.len());
                    } else {
                        prop_assert!(told.is_empty());
                    }
                    let first: Vec<_> = waiting.drain(..told.len()).map(|(_, waiter)| waiter).collect();
                    prop_assert_eq!(told, first, "in their order");
                    starting += state.missing_after_retire();
                    prop_assert!(starting <= waiting.len().max(starting_before - 1), "no more starts than callers");
                }
                PoolOperation::StartGivenUp if starting > 0 => {
                    starting -= 1;
                    let told = state.start_given_up();
                    prop_assert!(starting + busy.len() > 0 || told.len() == waiting.len(), "nobody waits for nothing");
                    waiting.drain(..told.len());
                }
                PoolOperation::StartRefused if starting > 0 => {
                    starting -= 1;
                    let told = state.start_refused();
                    prop_assert_eq!(told.is_empty(), waiting.is_empty() || starting + busy.len() > 0);
                    waiting.drain(..told.len());
                }
                PoolOperation::Release(index) if index < busy.len() => {
                    let (instance, born) = busy.remove(index);
                    match state.released(instance, born, now) {
                        Place::Retire(retired) => {
                            prop_assert_eq!(retired, instance);
                            prop_assert!(born != generation, "only a demoted instance is retired");
                            starting += state.missing_after_retire();
                        }
                        other => {
                            prop_assert_eq!(born, generation);
                            place(other, instance, generation, &mut busy, &mut idle, &mut waiting)?;
                        }
                    }
                }
                PoolOperation::Retire(index) if index < busy.len() => {
                    let (instance, _) = busy.remove(index);
                    let (gone, more) = state.retire(instance);
                    prop_assert_eq!(gone, instance);
                    starting += more;
                }
                PoolOperation::Expire => {
                    for instance in state.expire(now, |idle| idle.since + Duration::from_secs(5)) {
                        prop_assert!(idle.remove(&instance));
                        prop_assert!(busy.len() + idle.len() + starting >= floor, "the floor is left");
                    }
                }
                PoolOperation::Evict => {
                    if let Some(instance) = state.evict() {
                        prop_assert!(idle.remove(&instance));
                    }
                }
                PoolOperation::Demote => {
                    for instance in state.demote() {
                        prop_assert!(idle.remove(&instance));
                    }
                    prop_assert!(idle.is_empty());
                }
                PoolOperation::Provision(count) => {
                    state.set_provisioned(count);
                    floor = count;
                    starting += state.missing_provisioned();
                    prop_assert!(state.total() >= count.min(max));
                }
                PoolOperation::Floor(provisioned, wanted) => {
                    state.set_floor(provisioned, wanted);
                    floor = wanted.max(provisioned);
                    starting += state.missing_floor();
                    prop_assert!(state.total() >= floor.min(max));
                }
                PoolOperation::Max(most) => {
                    state.set_max(most);
                    max = most;
                }
                PoolOperation::Measure(service, start) => {
                    state.served(Duration::from_millis(service));
                    state.start_took(Duration::from_millis(start));
                }
                PoolOperation::Relieve => {
                    let more = state.relieve(now);
                    prop_assert!(more == 0 || (starting + more <= waiting.len() && state.total() <= max));
                    starting += more;
                }
                PoolOperation::StartSucceeds | PoolOperation::StartFails | PoolOperation::StartGivenUp | PoolOperation::StartRefused | PoolOperation::Release(_) | PoolOperation::Retire(_) => {}
            }
            prop_assert_eq!((state.busy(), state.idle().len(), state.starting(), state.waiting()), (busy.len(), idle.len(), starting, waiting.len()));
            prop_assert!(waiting.is_empty() || starting + busy.len() > 0, "somebody waits for nothing");
        }
    }
}

fn place(
    place: Place<u32, u32>,
    instance: u32,
    generation: u64,
    busy: &mut Vec<(u32, u64)>,
    idle: &mut BTreeSet<u32>,
    waiting: &mut VecDeque<(u64, u32)>,
) -> Result<(), TestCaseError> {
    match place {
        Place::Waiter(placed, waiter) => {
            prop_assert_eq!(
                (placed, Some(waiter)),
                (instance, waiting.pop_front().map(|(_, waiter)| waiter))
            );
            busy.push((instance, generation));
        }
        Place::Idle => {
            prop_assert!(
                waiting.is_empty(),
                "nobody waits while an instance goes idle"
            );
            idle.insert(instance);
        }
        Place::Retire(_) => prop_assert!(false, "an instance of this generation is not retired"),
    }
    Ok(())
}
