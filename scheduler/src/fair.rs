//! A queue that is fair between flows: deficit round robin (Shreedhar and Varghese, SIGCOMM 1995) over estimated cost.
//!
//! Each flow, here a function, gets the same amount of cost in each round. One with cheap requests gets through more of
//! them, one with many waiting gets no more than the others. Pure; `W` is whoever waits.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// Cost that each flow is given per round. Costs are microseconds of estimated work.
const QUANTUM: u64 = 1_000;
/// Largest cost of one entry: what takes longer than a second is not made to wait for more.
pub const MAX_COST: u64 = 1_000_000;

#[derive(Debug)]
struct Flow<W> {
    entries: VecDeque<(u64, u64, W)>,
    deficit: u64,
}

/// The queue. `K` names a flow.
#[derive(Debug)]
pub struct FairQueue<K, W> {
    flows: HashMap<K, Flow<W>>,
    /// Flows that have entries; the first is being served.
    round: VecDeque<K>,
    /// Whether the first has had its quantum in this round.
    given: bool,
    len: usize,
    next: u64,
}

impl<K, W> Default for FairQueue<K, W> {
    fn default() -> Self {
        Self {
            flows: HashMap::new(),
            round: VecDeque::new(),
            given: false,
            len: 0,
            next: 0,
        }
    }
}

impl<K: Clone + Eq + Hash, W> FairQueue<K, W> {
    /// Adds an entry at the end of its flow. Returns the ticket to leave with.
    pub fn push(&mut self, flow: &K, cost: u64, waiter: W) -> u64 {
        let ticket = self.next;
        self.next += 1;
        let entry = (ticket, cost.clamp(1, MAX_COST), waiter);
        match self.flows.get_mut(flow) {
            Some(known) => known.entries.push_back(entry),
            None => {
                self.round.push_back(flow.clone());
                self.flows.insert(
                    flow.clone(),
                    Flow {
                        entries: VecDeque::from([entry]),
                        deficit: 0,
                    },
                );
            }
        }
        self.len += 1;
        ticket
    }

    /// Takes out the next entry in fair order.
    pub fn pop(&mut self) -> Option<W> {
        let mut fruitless = 0;
        loop {
            let key = self.round.front()?;
            let Some(flow) = self.flows.get_mut(key) else {
                self.round.pop_front();
                continue;
            };
            if !self.given {
                flow.deficit = flow.deficit.saturating_add(QUANTUM);
                self.given = true;
            }
            let cost = flow.entries.front().map_or(u64::MAX, |(_, cost, _)| *cost);
            if cost <= flow.deficit {
                let (_, _, waiter) = flow.entries.pop_front()?;
                flow.deficit -= cost;
                self.len -= 1;
                if flow.entries.is_empty() {
                    self.end_first();
                }
                return Some(waiter);
            }
            self.given = false;
            self.round.rotate_left(1);
            fruitless += 1;
            if fruitless >= self.round.len() {
                self.skip_rounds();
                fruitless = 0;
            }
        }
    }

    /// Takes out the first entry of this flow, before its turn. It is charged with what it has saved.
    pub fn pop_of(&mut self, flow: &K) -> Option<W> {
        let known = self.flows.get_mut(flow)?;
        let (_, cost, waiter) = known.entries.pop_front()?;
        known.deficit = known.deficit.saturating_sub(cost);
        self.len -= 1;
        if known.entries.is_empty() {
            self.end(flow);
        }
        Some(waiter)
    }

    /// A whole round served nobody: gives everyone at once what the rounds until somebody is served would give, so that
    /// expensive entries do not cost a turn of the loop for every quantum.
    fn skip_rounds(&mut self) {
        let rounds = self
            .flows
            .values()
            .filter_map(|flow| {
                let (_, cost, _) = flow.entries.front()?;
                Some(cost.saturating_sub(flow.deficit).div_ceil(QUANTUM))
            })
            .min()
            .unwrap_or(1);
        // The last of them is the one that is given in turn.
        let extra = rounds.saturating_sub(1).saturating_mul(QUANTUM);
        for flow in self.flows.values_mut() {
            flow.deficit = flow.deficit.saturating_add(extra);
        }
    }

    /// The first flow has nothing left: what it saved is gone with it.
    fn end_first(&mut self) {
        if let Some(key) = self.round.pop_front() {
            self.flows.remove(&key);
        }
        self.given = false;
    }

    /// A flow, whichever its place in the round, has nothing left.
    fn end(&mut self, flow: &K) {
        self.flows.remove(flow);
        if self.round.front() == Some(flow) {
            self.given = false;
        }
        self.round.retain(|key| key != flow);
    }

    /// Takes an entry out. Says whether it was still there.
    pub fn leave(&mut self, flow: &K, ticket: u64) -> bool {
        let Some(known) = self.flows.get_mut(flow) else {
            return false;
        };
        let before = known.entries.len();
        known.entries.retain(|(queued, _, _)| *queued != ticket);
        let left = before != known.entries.len();
        self.len -= usize::from(left);
        if known.entries.is_empty() {
            self.end(flow);
        }
        left
    }

    /// Entries that wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Entries of one flow that wait.
    #[cfg(test)]
    pub(crate) fn len_of(&self, flow: &K) -> usize {
        self.flows.get(flow).map_or(0, |flow| flow.entries.len())
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn drain(
        queue: &mut FairQueue<&'static str, &'static str>,
        count: usize,
    ) -> HashMap<&'static str, usize> {
        let mut served = HashMap::new();
        for _ in 0..count {
            if let Some(who) = queue.pop() {
                *served.entry(who).or_default() += 1;
            }
        }
        served
    }

    #[test]
    fn a_burst_of_one_leaves_the_others_their_turns() {
        let mut queue = FairQueue::default();
        for _ in 0..1000 {
            queue.push(&"burst", 500, "burst");
        }
        for _ in 0..10 {
            queue.push(&"calm", 500, "calm");
        }
        let served = drain(&mut queue, 22);
        assert_eq!(served["calm"], 10, "{served:?}");
    }

    #[test]
    fn cost_is_shared_not_turns() {
        let mut queue = FairQueue::default();
        for _ in 0..1000 {
            queue.push(&"dear", 100_000, "dear");
            queue.push(&"cheap", 1_000, "cheap");
        }
        let served = drain(&mut queue, 505);
        let dear = served["dear"];
        assert!((4..=6).contains(&dear), "{served:?}");
    }

    #[test]
    fn who_leaves_is_not_served() {
        let mut queue = FairQueue::default();
        let first = queue.push(&1, 1, "first");
        queue.push(&1, 1, "second");
        assert!(queue.leave(&1, first));
        assert!(!queue.leave(&1, first));
        assert_eq!(
            (queue.pop(), queue.pop(), queue.len()),
            (Some("second"), None, 0)
        );
    }

    #[test]
    fn the_first_of_a_flow_is_served_before_its_turn() {
        let mut queue = FairQueue::default();
        for who in ["a1", "a2"] {
            queue.push(&"a", MAX_COST, who);
        }
        for who in ["b1", "b2"] {
            queue.push(&"b", MAX_COST, who);
        }
        assert_eq!(queue.pop_of(&"b"), Some("b1"));
        assert_eq!(queue.pop_of(&"b"), Some("b2"));
        assert_eq!((queue.pop_of(&"b"), queue.pop_of(&"c")), (None, None));
        assert_eq!(queue.len(), 2);
        assert_eq!(
            (queue.pop(), queue.pop(), queue.pop()),
            (Some("a1"), Some("a2"), None)
        );
    }

    proptest! {
        /// Nobody is lost or served twice, order within a flow is kept, and two flows that both have entries are served
        /// the same cost but for one quantum and one entry each.
        #[test]
        fn it_is_fair_and_loses_nobody(operations in prop::collection::vec((0u8..4, 1u64..20_000, any::<bool>()), 1..300)) {
            let mut queue: FairQueue<u8, (u8, u64)> = FairQueue::default();
            let mut naive: HashMap<u8, VecDeque<u64>> = HashMap::new();
            let mut tickets = HashMap::new();
            for (number, (flow, cost, serve)) in operations.into_iter().enumerate() {
                if serve {
                    match queue.pop() {
                        Some((flow, id)) => prop_assert_eq!(naive.get_mut(&flow).and_then(VecDeque::pop_front), Some(id)),
                        None => prop_assert!(naive.values().all(VecDeque::is_empty)),
                    }
                } else {
                    let id = number as u64;
                    tickets.insert(id, queue.push(&flow, cost, (flow, id)));
                    naive.entry(flow).or_default().push_back(id);
                }
                prop_assert_eq!(queue.len(), naive.values().map(VecDeque::len).sum::<usize>());
            }
        }

        #[test]
        fn busy_flows_get_the_same_cost(costs in prop::collection::vec(1u64..MAX_COST, 2..6)) {
            let mut queue: FairQueue<usize, usize> = FairQueue::default();
            for (flow, cost) in costs.iter().enumerate() {
                for _ in 0..2_000 {
                    queue.push(&flow, *cost, flow);
                }
            }
            let mut served = vec![0u64; costs.len()];
            for _ in 0..1_000 {
                let flow = queue.pop().unwrap();
                served[flow] += costs[flow];
            }
            let (least, most) = (served.iter().min().unwrap(), served.iter().max().unwrap());
            let dearest = costs.iter().max().unwrap();
            prop_assert!(most - least <= 2 * (dearest + QUANTUM), "{served:?} of {costs:?}");
        }
    }
}
