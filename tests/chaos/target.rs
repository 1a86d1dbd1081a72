//! What the flow's last steps post to: slow at times, refusing at times, and counting.
//!
//! A post that was taken is an effect: a second one of the same order is a duplicate. A refusal is
//! always without effect, and what was taken is done although whoever asked is gone meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// A spell of bad weather comes so often.
const SPELL_EVERY: f64 = 25.0;

/// The longest spell, in seconds.
const SPELL_LONGEST: f64 = 3.0;

/// Where a message arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Branch {
    /// After the action without `once`.
    Plain,
    /// After the action with it.
    Once,
}

/// What a post is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// 429, in a second again.
    Busy,
    /// 503.
    Down,
    /// 201, after so long.
    Takes(Duration),
}

/// Counts arrivals.
pub(crate) struct Target {
    state: Mutex<State>,
}

struct State {
    random: StdRng,
    spell: (Instant, Instant),
    messages: u64,
    branches: BTreeMap<Branch, Arrivals>,
    last: Option<Instant>,
    refused: u64,
    /// Faults that are over, and nothing has arrived since.
    awaited: Vec<(usize, Instant)>,
    recovered: BTreeMap<usize, Duration>,
}

/// What arrived at one branch.
#[derive(Debug, Clone, Default)]
pub(crate) struct Arrivals {
    /// How many posts of an order were taken, and the keys they had.
    pub(crate) orders: BTreeMap<u64, u32>,
    /// How often a post with this key was taken; 0 while the first is being done.
    keys: HashMap<String, u32>,
    highest: u64,
    /// Orders that came after one with a higher number.
    pub(crate) inversions: u64,
}

/// What arrived, and what did not.
#[derive(Debug, Clone)]
pub(crate) struct Tally {
    /// How many orders there are in all.
    pub(crate) messages: u64,
    /// What arrived.
    pub(crate) branches: BTreeMap<Branch, Arrivals>,
    /// When something arrived last.
    pub(crate) last: Option<Instant>,
    /// How many posts were refused.
    pub(crate) refused: u64,
    /// How long after the end of each fault something arrived.
    pub(crate) recovered: BTreeMap<usize, Duration>,
}

impl Target {
    pub(crate) fn new(messages: u64, seed: u64) -> Self {
        let now = Instant::now();
        Self {
            state: Mutex::new(State {
                random: StdRng::seed_from_u64(seed ^ 0x7461_7267_6574),
                spell: (now, now),
                messages,
                branches: BTreeMap::from([
                    (Branch::Plain, Arrivals::default()),
                    (Branch::Once, Arrivals::default()),
                ]),
                last: None,
                refused: 0,
                awaited: Vec::new(),
                recovered: BTreeMap::new(),
            }),
        }
    }

    /// A post has come.
    pub(crate) fn arrives(&self, branch: Branch, key: &str) -> Answer {
        let mut state = self.state();
        let answer = state.answer(Instant::now());
        match answer {
            Answer::Takes(_) => {
                if let Some(arrivals) = state.branches.get_mut(&branch) {
                    arrivals.keys.entry(key.to_owned()).or_insert(0);
                }
            }
            Answer::Busy | Answer::Down => state.refused += 1,
        }
        answer
    }

    /// What was taken is done.
    pub(crate) fn is_done(&self, branch: Branch, key: &str, order: u64) {
        let now = Instant::now();
        let mut state = self.state();
        if let Some(arrivals) = state.branches.get_mut(&branch) {
            arrivals.take(key, order);
        }
        state.last = Some(now);
        for (fault, since) in std::mem::take(&mut state.awaited) {
            state
                .recovered
                .insert(fault, now.saturating_duration_since(since));
        }
    }

    /// Whether a key was done (true), is being done (false), or never came.
    pub(crate) fn knows(&self, branch: Branch, key: &str) -> Option<bool> {
        let state = self.state();
        let count = state.branches.get(&branch)?.keys.get(key)?;
        Some(*count > 0)
    }

    /// A fault is over: what arrives next tells how long the flow took to recover.
    pub(crate) fn await_recovery(&self, fault: usize) {
        self.state().awaited.push((fault, Instant::now()));
    }

    /// Adds everything up.
    pub(crate) fn tally(&self) -> Tally {
        let state = self.state();
        Tally {
            messages: state.messages,
            branches: state.branches.clone(),
            last: state.last,
            refused: state.refused,
            recovered: state.recovered.clone(),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn answer(&mut self, now: Instant) -> Answer {
        if now > self.spell.1 {
            let begins = now + Duration::from_secs_f64(self.random.random_range(1.0..SPELL_EVERY));
            let lasts = Duration::from_secs_f64(self.random.random_range(0.5..SPELL_LONGEST));
            self.spell = (begins, begins + lasts);
        }
        if now >= self.spell.0 {
            return Answer::Down;
        }
        match self.random.random_range(0..1000) {
            0..15 => Answer::Busy,
            15..40 => Answer::Down,
            40..80 => Answer::Takes(Duration::from_millis(self.random.random_range(100..2000))),
            _ => Answer::Takes(Duration::ZERO),
        }
    }
}

impl Arrivals {
    fn take(&mut self, key: &str, order: u64) {
        *self.keys.entry(key.to_owned()).or_insert(0) += 1;
        let count = self.orders.entry(order).or_insert(0);
        *count += 1;
        if *count == 1 {
            if order < self.highest {
                self.inversions += 1;
            }
            self.highest = self.highest.max(order);
        }
    }

    /// How many posts were taken beyond the first of each order.
    pub(crate) fn duplicates(&self) -> u64 {
        self.orders
            .values()
            .map(|count| u64::from(*count) - 1)
            .sum()
    }

    /// The orders that were done more than once, and how often.
    pub(crate) fn repeated(&self) -> Vec<(u64, u32)> {
        let repeated = self.orders.iter().filter(|(_, count)| **count > 1);
        repeated.map(|(order, count)| (*order, *count)).collect()
    }

    /// The keys that were done more than once.
    pub(crate) fn repeated_keys(&self) -> Vec<String> {
        let repeated = self.keys.iter().filter(|(_, count)| **count > 1);
        repeated.map(|(key, _)| key.clone()).collect()
    }
}

impl Tally {
    /// The orders that did not arrive everywhere, and where not.
    pub(crate) fn missing(&self) -> Vec<(u64, Branch)> {
        let missing = |branch: Branch, arrivals: &Arrivals| {
            (1..=self.messages)
                .filter(|order| !arrivals.orders.contains_key(order))
                .map(|order| (order, branch))
                .collect::<Vec<_>>()
        };
        self.branches
            .iter()
            .flat_map(|(branch, arrivals)| missing(*branch, arrivals))
            .collect()
    }

    /// How many orders arrived everywhere.
    pub(crate) fn distinct(&self) -> u64 {
        let everywhere = |order: &u64| {
            self.branches
                .values()
                .all(|arrivals| arrivals.orders.contains_key(order))
        };
        (1..=self.messages).filter(everywhere).count() as u64
    }

    /// Says how far it is, on a line.
    pub(crate) fn progress(&self) -> String {
        let arrived: Vec<String> = self
            .branches
            .iter()
            .map(|(branch, arrivals)| {
                format!(
                    "{branch:?}: {} ({} repeated)",
                    arrivals.orders.len(),
                    arrivals.duplicates()
                )
            })
            .collect();
        format!("of {} orders, {}", self.messages, arrived.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_and_what_came_twice_is_named() {
        let target = Target::new(4, 1);
        target.is_done(Branch::Plain, "a", 1);
        target.is_done(Branch::Plain, "c", 3);
        target.is_done(Branch::Plain, "b", 2);
        target.is_done(Branch::Plain, "c", 3);
        target.is_done(Branch::Once, "z", 1);
        let tally = target.tally();
        let plain = &tally.branches[&Branch::Plain];
        assert_eq!(plain.duplicates(), 1);
        assert_eq!(plain.repeated(), [(3, 2)]);
        assert_eq!(plain.repeated_keys(), ["c"]);
        assert_eq!(plain.inversions, 1);
        assert_eq!(tally.distinct(), 1);
        assert_eq!(
            tally.missing(),
            [
                (4, Branch::Plain),
                (2, Branch::Once),
                (3, Branch::Once),
                (4, Branch::Once)
            ]
        );
    }

    #[test]
    fn what_is_being_done_is_neither_known_nor_unknown() {
        let target = Target::new(1, 1);
        assert_eq!(target.knows(Branch::Once, "k"), None);
        while !matches!(target.arrives(Branch::Once, "k"), Answer::Takes(_)) {
            assert_eq!(
                target.knows(Branch::Once, "k"),
                None,
                "a refusal is no effect"
            );
        }
        assert_eq!(target.knows(Branch::Once, "k"), Some(false));
        target.is_done(Branch::Once, "k", 1);
        assert_eq!(target.knows(Branch::Once, "k"), Some(true));
    }
}
