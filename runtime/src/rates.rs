//! Who of a step's replicas may hand over how much of its `rate`: pure, but for what it remembers.
//!
//! Each replica says in its reports what its share is, and keeps it until a report is answered with
//! another one. So what a replica may do at most is what it said last, or what it was answered to
//! that: the larger of the two is what it **holds**. A share is made larger only by what nobody
//! holds; it is made smaller at any time. A replica that is gone holds nothing; one that was there
//! before this control plane and has said nothing yet may hold all.
//!
//! # Invariants
//!
//! - `the_shares_are_never_more_than_the_rate`: with replicas that come, go, and are silent, with
//!   reports and answers that are lost or late, and with control planes that start again.
//! - `everybody_gets_an_equal_share_in_the_end`.
//! - `while_the_control_plane_is_away_nothing_changes`: what it was told is what a replica does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use towpath_protocol::office::{Report, Share};
use towpath_protocol::start::Identity;

/// The containers there are, as they were seen last.
#[derive(Debug, Clone, Default)]
pub struct Containers {
    /// When it was begun to look, in milliseconds since 1970; 0 if nobody looked yet.
    pub looked_at: u64,
    /// Those that have not ended.
    pub there: Vec<Identity>,
}

/// What is known of the shares. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Rates {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Those that were there when this control plane looked first, and of which nothing is known:
    /// an earlier one may have given them a share.
    strange: Option<BTreeSet<Identity>>,
    known: BTreeMap<Identity, Held>,
}

/// What a replica holds.
#[derive(Debug, Clone)]
struct Held {
    rate: f64,
    /// What it said, and what it was answered.
    share: f64,
    incarnation: String,
    number: u64,
    /// When it said so, in milliseconds since 1970.
    heard_at: u64,
}

impl Rates {
    /// Answers a report; none if there is no rate, or nothing is known of the containers. `is_fresh`
    /// says that no earlier control plane was given the report.
    pub fn answer(
        &self,
        report: &Report,
        is_fresh: bool,
        containers: &Containers,
        now: u64,
    ) -> Option<Share> {
        let pacing = report.pacing.as_ref()?;
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.look(containers);
        if !is_fresh && !inner.known.contains_key(&report.identity) {
            // An earlier control plane may have answered it, or one after it.
            return None;
        }
        let is_old = inner.known.get(&report.identity).is_some_and(|before| {
            before.incarnation == report.incarnation && pacing.number <= before.number
        });
        if is_old {
            // It came twice, or late; what it was answered may be on its way.
            return None;
        }
        let mine = Held {
            rate: pacing.rate.per_second(),
            share: pacing.share,
            incarnation: report.incarnation.clone(),
            number: pacing.number,
            heard_at: now,
        };
        inner.known.insert(report.identity.clone(), mine);
        if containers.looked_at == 0 {
            return None;
        }
        let per_second = inner.share(&report.identity, pacing.share, containers);
        if let Some(held) = inner.known.get_mut(&report.identity) {
            held.share = held.share.max(per_second);
        }
        Some(Share {
            number: pacing.number,
            per_second,
        })
    }
}

impl Inner {
    /// Takes in which containers there are.
    fn look(&mut self, containers: &Containers) {
        if containers.looked_at == 0 {
            return;
        }
        let there: BTreeSet<&Identity> = containers.there.iter().collect();
        match &mut self.strange {
            None => self.strange = Some(containers.there.iter().cloned().collect()),
            Some(strange) => strange.retain(|it| there.contains(it)),
        }
        // Who was heard of since then may have come since then.
        self.known
            .retain(|it, held| there.contains(it) || held.heard_at >= containers.looked_at);
    }

    fn share(&self, mine: &Identity, said: f64, containers: &Containers) -> f64 {
        let is_of_step = |it: &&Identity| (&it.flow, &it.step) == (&mine.flow, &mine.step);
        let known = || self.known.iter().filter(|(it, _)| is_of_step(it));
        let silent: Vec<&Identity> = containers
            .there
            .iter()
            .filter(is_of_step)
            .filter(|it| !self.known.contains_key(it))
            .collect();
        // While a flow changes, the lower of two rates is kept.
        let rate = known()
            .map(|(_, held)| held.rate)
            .fold(f64::INFINITY, f64::min);
        let others: f64 = known()
            .filter(|(it, _)| *it != mine)
            .map(|(_, held)| held.share)
            .sum();
        let may_hold_all = |it: &&Identity| {
            self.strange
                .as_ref()
                .is_none_or(|strange| strange.contains(*it))
        };
        let free = if silent.iter().any(may_hold_all) {
            0.0
        } else {
            (rate - others).max(0.0)
        };
        let fair = rate / (known().count() + silent.len()) as f64;
        fair.min(free.max(said))
    }
}

#[cfg(test)]
mod tests;
