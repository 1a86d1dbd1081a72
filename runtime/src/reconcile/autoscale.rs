//! How many replicas the work of a step needs, and why: pure.
//!
//! Out quickly, in slowly: more replicas are wanted as soon as what waits says so, but not before
//! those that were wanted last are ready; fewer only when none of the last minute needed more.
//!
//! # Invariants
//!
//! - `more_are_wanted_at_once_but_not_before_the_last_ones_are_ready`.
//! - `fewer_only_after_a_calm_minute`, and not because the control plane started again.
//! - `a_bottleneck_after_it_is_not_made_worse`: who is held back, or leads to a queue that is half
//!   full, gets no more replicas.
//! - `a_paused_step_keeps_what_it_has`, and so does one of which nothing is known.
//! - `it_sleeps_when_nothing_comes_and_wakes_at_the_first_message`.
//! - `it_does_not_flap`: in a simulation, neither steady load nor load on the edge moves it to and
//!   fro.

use std::collections::VecDeque;

use towpath_flow::{Autoscale, ScaleBy};

/// For how long no more may have been wanted before there are fewer: a minute, so that what comes
/// in waves finds replicas that are warm.
pub const CALM_MS: u64 = 60_000;

/// There are fewer only if they would have no more than this part of what each is for: load on the
/// edge between two numbers does not move it to and fro.
const SLACK: f64 = 0.8;

/// How much of a newly measured rate counts, against what was measured before.
const NEW_RATE: f64 = 0.3;

/// What is known of a step when it is decided about.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Signals {
    /// How many replicas are wanted now.
    pub replicas: u32,
    /// How many of them are ready.
    pub ready: u32,
    /// About how many messages wait in its queue; none if the broker does not say.
    pub waiting: Option<u64>,
    /// How many messages its agents hold.
    pub held: u64,
    /// Messages taken a second, by all replicas.
    pub rate: f64,
    /// Whether its replicas have as much in their hands as they can.
    pub is_busy: bool,
    /// Why there are not to be more now, if something stands against it.
    pub obstacle: Option<String>,
    /// Whether it is told not to consume.
    pub is_paused: bool,
}

/// What is remembered of a step from one decision to the next.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct History {
    /// Messages a second that one replica handles when it has enough to do.
    pub rate: Option<f64>,
    /// How many were needed, and when, in the last minute.
    needed: VecDeque<(u64, u32)>,
    /// Since when that is known without a gap.
    since: Option<u64>,
}

/// How many replicas there should be.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// So many.
    pub replicas: u32,
    /// Why, for people.
    pub reason: String,
    /// What is remembered for the next decision.
    pub history: History,
}

/// Says how many replicas there should be.
pub fn decide(signals: &Signals, history: &History, policy: Autoscale, now: u64) -> Decision {
    let current = signals.replicas.clamp(policy.min, policy.max);
    let mut history = History {
        rate: learn(history.rate, signals),
        ..history.clone()
    };
    let Some(waiting) = signals.waiting else {
        history.forget();
        return keep(
            current,
            policy,
            "the broker does not say what waits",
            history,
        );
    };
    if signals.is_paused {
        history.forget();
        return keep(current, policy, "it is paused", history);
    }
    let work = Work {
        backlog: waiting + signals.held,
        rate: signals.rate,
        of_one: history.rate,
        policy,
    };
    let needed = work.needed(current, 1.0);
    let enough = work.enough(current);
    let recently = history.note(now, enough.max(needed));
    let (replicas, also) = if needed > current {
        more(signals, current, needed)
    } else if recently < current && history.is_calm(now) {
        (recently, None)
    } else if enough < current {
        (current, Some("fewer once it stays so".to_owned()))
    } else {
        (current, None)
    };
    let mut reason = work.words(replicas);
    if let Some(also) = also {
        reason = format!("{reason}; {also}");
    }
    Decision {
        replicas,
        reason,
        history,
    }
}

/// More are needed: whether there are to be more now, or why not.
fn more(signals: &Signals, current: u32, needed: u32) -> (u32, Option<String>) {
    if let Some(obstacle) = &signals.obstacle {
        return (current, Some(format!("no more, because {obstacle}")));
    }
    if signals.ready < current {
        let also = format!(
            "more once all {current} are ready, {} are now",
            signals.ready
        );
        return (current, Some(also));
    }
    (needed, None)
}

fn keep(current: u32, policy: Autoscale, why: &str, history: History) -> Decision {
    Decision {
        replicas: current,
        reason: format!("{current} of {policy}: {why}"),
        history,
    }
}

/// Messages a second of one replica: measured while there is enough to do. While there is not, a
/// replica that does more than was thought is believed as well.
fn learn(before: Option<f64>, signals: &Signals) -> Option<f64> {
    let is_measurable = signals.ready > 0 && signals.rate > 0.0 && signals.obstacle.is_none();
    if !is_measurable || signals.is_paused {
        return before;
    }
    let now = signals.rate / f64::from(signals.ready);
    let has_enough = signals.is_busy || signals.waiting.is_some_and(|it| it > 0);
    Some(match before {
        None => now,
        Some(before) if has_enough => before * (1.0 - NEW_RATE) + now * NEW_RATE,
        Some(before) => before.max(now),
    })
}

impl History {
    /// Forgets what was needed: there is a gap.
    fn forget(&mut self) {
        self.needed.clear();
        self.since = None;
    }

    /// Takes in what is needed, and returns the most that was in the last minute.
    fn note(&mut self, now: u64, needed: u32) -> u32 {
        self.since.get_or_insert(now);
        self.needed.push_back((now, needed));
        while self
            .needed
            .front()
            .is_some_and(|(at, _)| at + CALM_MS < now)
        {
            self.needed.pop_front();
        }
        self.needed
            .iter()
            .map(|(_, needed)| *needed)
            .max()
            .unwrap_or(needed)
    }

    fn is_calm(&self, now: u64) -> bool {
        self.since
            .is_some_and(|since| now.saturating_sub(since) >= CALM_MS)
    }
}

/// What there is to do.
struct Work {
    backlog: u64,
    rate: f64,
    of_one: Option<f64>,
    policy: Autoscale,
}

impl Work {
    /// How many replicas it takes, if each gets this part of what it is for.
    fn needed(&self, current: u32, part: f64) -> u32 {
        let backlog = self.backlog as f64;
        let count = match (self.policy.by, self.of_one) {
            (ScaleBy::Backlog { per_replica }, _) => backlog / (f64::from(per_replica) * part),
            (ScaleBy::Latency(target), Some(rate)) => {
                backlog / (rate * target.as_secs_f64() * part)
            }
            // Nothing was measured yet: one will show.
            (ScaleBy::Latency(_), None) => {
                if self.backlog > 0 {
                    f64::from(current.max(1))
                } else {
                    0.0
                }
            }
        };
        self.clamp(count)
    }

    /// How many replicas would be enough, with some to spare, for what waits and for what comes:
    /// a backlog that is gone because four work it off does not mean that one could.
    fn enough(&self, current: u32) -> u32 {
        let comes = match self.of_one {
            Some(rate) if self.rate > 0.0 => self.rate / (rate * SLACK),
            _ if self.rate > 0.0 => f64::from(current),
            _ => 0.0,
        };
        let waits = self.needed(current, SLACK);
        waits
            .max(self.clamp(comes))
            .min(current.max(self.policy.min))
    }

    fn clamp(&self, count: f64) -> u32 {
        let Autoscale { min, max, .. } = self.policy;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is not negative, and cut to 64 at most"
        )]
        let count = count.ceil().clamp(0.0, f64::from(max)) as u32;
        count.clamp(min, max)
    }

    /// `4 of 1–8: 1,230 waiting, 300 a replica`.
    fn words(&self, replicas: u32) -> String {
        let Self {
            backlog, policy, ..
        } = self;
        if replicas == 0 {
            return format!("0 of {policy}: asleep, the first message wakes it");
        }
        let backlog = grouped(*backlog);
        match (policy.by, self.of_one) {
            (ScaleBy::Backlog { per_replica }, _) => format!(
                "{replicas} of {policy}: {backlog} waiting, {} a replica",
                grouped(per_replica.into())
            ),
            (ScaleBy::Latency(target), Some(rate)) => format!(
                "{replicas} of {policy}: {backlog} waiting, {} a replica, {} s to finish",
                rate_words(rate),
                target.as_secs()
            ),
            (ScaleBy::Latency(_), None) => {
                format!("{replicas} of {policy}: {backlog} waiting, nothing measured yet")
            }
        }
    }
}

fn rate_words(rate: f64) -> String {
    if rate >= 10.0 {
        format!("{rate:.0}/s")
    } else if rate >= 0.1 {
        format!("{rate:.1}/s")
    } else {
        format!("{:.1}/min", rate * 60.0)
    }
}

/// `1,230`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests;
