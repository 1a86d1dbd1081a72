//! Which fault comes when: pure, from a seed.
//!
//! # Invariants
//!
//! - `the_same_seed_is_the_same_schedule`.
//! - `every_kind_comes_in_every_round`.
//! - `what_holds_the_same_does_not_overlap`: healing one fault does not heal another.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};

use crate::fault::{Kind, Resource};

/// How long the flow runs before the first fault.
const HEAD: Duration = Duration::from_secs(5);

/// A fault, before it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Planned {
    /// Its number.
    pub(crate) number: usize,
    /// What it is.
    pub(crate) kind: Kind,
    /// When it begins.
    pub(crate) at: Duration,
    /// How long it lasts.
    pub(crate) lasts: Duration,
    /// Chooses what it hits.
    pub(crate) pick: u64,
}

impl fmt::Display for Planned {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{:>6.1} s  {:<24} {:>4.1} s",
            self.at.as_secs_f64(),
            self.kind.name(),
            self.lasts.as_secs_f64()
        )
    }
}

/// What happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    /// When.
    pub(crate) at: Duration,
    /// What.
    pub(crate) what: What,
}

/// A beginning or an end, of the fault with this index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum What {
    /// It begins.
    Inject(usize),
    /// It ends.
    Heal(usize),
}

/// Plans `count` faults, `gap` apart on average.
pub(crate) fn plan(seed: u64, count: usize, gap: Duration, kinds: &[Kind]) -> Vec<Planned> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut deck = Vec::new();
    let mut free_at: BTreeMap<Resource, Duration> = BTreeMap::new();
    let mut at = HEAD;
    let mut planned = Vec::with_capacity(count);
    for number in 0..count {
        if deck.is_empty() {
            for kind in kinds {
                deck.extend(std::iter::repeat_n(*kind, kind.weight()));
            }
            deck.shuffle(&mut random);
        }
        let Some(kind) = deck.pop() else { break };
        at += gap.mul_f64(random.random_range(0.2..1.8));
        let (least, most) = kind.lasts();
        // Most are short: the cube favours them.
        let lasts = least
            + most
                .saturating_sub(least)
                .mul_f64(random.random_range(0.0_f64..1.0).powi(3));
        let mut begins = at;
        if let Some(resource) = kind.holds() {
            let free = free_at.entry(resource).or_default();
            begins = begins.max(*free);
            *free = begins + lasts + Duration::from_secs(1);
        }
        let pick = random.random();
        planned.push(Planned {
            number,
            kind,
            at: begins,
            lasts,
            pick,
        });
    }
    planned
}

/// How long the schedule is: until the last fault has ended, and a gap more.
pub(crate) fn length(planned: &[Planned], gap: Duration) -> Duration {
    let end = planned.iter().map(|fault| fault.at + fault.lasts).max();
    end.unwrap_or(HEAD) + gap
}

/// Lists all beginnings and ends, in order.
pub(crate) fn steps(planned: &[Planned]) -> Vec<Step> {
    let mut steps: Vec<Step> = planned
        .iter()
        .enumerate()
        .flat_map(|(index, fault)| {
            [
                Step {
                    at: fault.at,
                    what: What::Inject(index),
                },
                Step {
                    at: fault.at + fault.lasts,
                    what: What::Heal(index),
                },
            ]
        })
        .collect();
    steps.sort_by_key(|step| (step.at, step.what));
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    const GAP: Duration = Duration::from_secs(5);

    #[test]
    fn the_same_seed_is_the_same_schedule() {
        let one = plan(7, 200, GAP, &Kind::ALL);
        assert_eq!(one, plan(7, 200, GAP, &Kind::ALL));
        assert_ne!(one, plan(8, 200, GAP, &Kind::ALL));
    }

    #[test]
    fn every_kind_comes_in_every_round() {
        let round: usize = Kind::ALL.iter().map(|kind| kind.weight()).sum();
        for seed in 0..20 {
            let planned = plan(seed, 3 * round, GAP, &Kind::ALL);
            for kind in Kind::ALL {
                let count = planned.iter().filter(|fault| fault.kind == kind).count();
                assert_eq!(count, 3 * kind.weight(), "{} of seed {seed}", kind.name());
            }
        }
    }

    #[test]
    fn what_holds_the_same_does_not_overlap() {
        for seed in 0..20 {
            let planned = plan(seed, 200, GAP, &Kind::ALL);
            for one in &planned {
                for other in &planned {
                    let before = one.number < other.number;
                    if before
                        && one.kind.holds().is_some()
                        && one.kind.holds() == other.kind.holds()
                    {
                        assert!(one.at + one.lasts < other.at, "{one} and {other}");
                    }
                }
            }
        }
    }

    #[test]
    fn each_fault_begins_before_it_ends() {
        let planned = plan(3, 100, GAP, &Kind::ALL);
        let steps = steps(&planned);
        for index in 0..planned.len() {
            let place = |what| steps.iter().position(|step| step.what == what);
            assert!(place(What::Inject(index)) < place(What::Heal(index)));
        }
        assert!(steps.is_sorted_by_key(|step| step.at));
    }
}
