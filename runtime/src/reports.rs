//! What agents report, added up: how each replica is, and what each step has done and is doing.
//!
//! # Invariants
//!
//! - `totals_never_go_back`: not when an agent starts again and counts from zero, not when a report
//!   comes late or twice, not when a replica is gone.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use towpath_protocol::office::{Counters, LATENCY_BOUNDS_US, Latency, Report};
use towpath_protocol::start::Identity;

use crate::inquiry::Address;

/// Over how much time rates are computed: long enough for several reports of each agent, short
/// enough to see what is going on now.
pub const RATE_WINDOW_MS: u64 = 20_000;

/// How long a silent replica is remembered: what it did is kept in the totals.
pub const FORGET_AFTER_MS: u64 = 10 * 60_000;

/// A step of a flow.
pub type StepKey = (String, String);

/// The reports of all agents. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Reports {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    replicas: BTreeMap<Identity, Seen>,
    /// Where each of them can be asked: its newest direct reply-to.
    addresses: BTreeMap<Identity, String>,
    steps: BTreeMap<StepKey, Step>,
}

/// The last report of a replica.
#[derive(Debug, Clone)]
pub struct Seen {
    /// What it said.
    pub report: Report,
    /// When it was received, in milliseconds since 1970.
    pub received_at: u64,
}

/// What a step has done, all its replicas together, in messages.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Totals {
    /// The counters.
    pub counters: Counters,
    /// How long its handlers took.
    pub latency: Latency,
    /// How often step processes were started again.
    pub restarts: u64,
}

/// What a step is doing now.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Rates {
    /// Messages taken, a second.
    pub received: f64,
    /// Messages emitted, a second.
    pub emitted: f64,
    /// Attempts that failed, a second.
    pub failed: f64,
}

#[derive(Debug, Default)]
struct Step {
    /// What was counted in incarnations that are over.
    over: Totals,
    window: VecDeque<Sample>,
    /// The messages in a delivery, of late.
    messages_per_delivery: Option<f64>,
}

/// What one agent did from one report to the next.
#[derive(Debug)]
struct Sample {
    from: u64,
    to: u64,
    done: Counters,
}

impl Reports {
    /// Takes a report in.
    pub fn record(&self, report: Report, now: u64) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let key = (report.identity.flow.clone(), report.identity.step.clone());
        let step = inner.steps.entry(key).or_default();
        let before = inner.replicas.get(&report.identity);
        if before.is_some_and(|before| report.at < before.report.at) {
            return;
        }
        if let Some(before) = before {
            let same = before.report.incarnation == report.incarnation;
            let done = if same {
                map(
                    &report.counters,
                    &before.report.counters,
                    u64::saturating_sub,
                )
            } else {
                step.over.add(&before.report);
                report.counters
            };
            step.sample(Sample {
                from: before.received_at,
                to: now,
                done,
            });
        }
        inner.replicas.insert(
            report.identity.clone(),
            Seen {
                report,
                received_at: now,
            },
        );
    }

    /// Notes where a replica can be asked.
    pub fn note_address(&self, identity: &Identity, reply_to: &str) {
        let mut inner = self.lock();
        match inner.addresses.get_mut(identity) {
            Some(known) if known == reply_to => {}
            Some(known) => reply_to.clone_into(known),
            None => {
                inner
                    .addresses
                    .insert(identity.clone(), reply_to.to_owned());
            }
        }
    }

    /// Where the replicas can be asked that said something since then, in milliseconds since 1970.
    pub fn addresses(&self, since: u64) -> Vec<Address> {
        let inner = self.lock();
        let recent = inner
            .replicas
            .iter()
            .filter(|(_, seen)| seen.received_at >= since);
        recent
            .filter_map(|(identity, _)| {
                Some(Address {
                    identity: identity.clone(),
                    reply_to: inner.addresses.get(identity)?.clone(),
                })
            })
            .collect()
    }

    /// The last report of a replica.
    pub fn latest(&self, identity: &Identity) -> Option<Report> {
        self.lock()
            .replicas
            .get(identity)
            .map(|seen| seen.report.clone())
    }

    /// The last reports of all replicas of a step that are remembered.
    pub fn of_step(&self, flow: &str, step: &str) -> Vec<Seen> {
        let is_of_step = |seen: &&Seen| {
            let identity = &seen.report.identity;
            identity.flow == flow && identity.step == step
        };
        self.lock()
            .replicas
            .values()
            .filter(is_of_step)
            .cloned()
            .collect()
    }

    /// What a step has done since this control plane first heard of its agents.
    pub fn totals(&self, flow: &str, step: &str) -> Totals {
        self.all_totals()
            .remove(&(flow.to_owned(), step.to_owned()))
            .unwrap_or_default()
    }

    /// What every step has done.
    pub fn all_totals(&self) -> BTreeMap<StepKey, Totals> {
        let inner = self.lock();
        let mut totals: BTreeMap<StepKey, Totals> = inner
            .steps
            .iter()
            .map(|(key, step)| (key.clone(), step.over.clone()))
            .collect();
        for seen in inner.replicas.values() {
            let identity = &seen.report.identity;
            let key = (identity.flow.clone(), identity.step.clone());
            totals.entry(key).or_default().add(&seen.report);
        }
        totals
    }

    /// What a step is doing now.
    pub fn rates(&self, flow: &str, step: &str, now: u64) -> Rates {
        let inner = self.lock();
        let Some(step) = inner.steps.get(&(flow.to_owned(), step.to_owned())) else {
            return Rates::default();
        };
        let since = now.saturating_sub(RATE_WINDOW_MS);
        let recent: Vec<&Sample> = step
            .window
            .iter()
            .filter(|sample| sample.to > since)
            .collect();
        let Some(from) = recent.iter().map(|sample| sample.from).min() else {
            return Rates::default();
        };
        let seconds = (now.saturating_sub(from).max(1_000)) as f64 / 1_000.0;
        let rate = |count: fn(&Counters) -> u64| {
            recent.iter().map(|sample| count(&sample.done)).sum::<u64>() as f64 / seconds
        };
        Rates {
            received: rate(|done| done.received),
            emitted: rate(|done| done.emitted),
            failed: rate(|done| done.failed),
        }
    }

    /// How many messages were in one delivery to this step of late; 1 if that is not known. The
    /// broker counts deliveries, people count messages.
    pub fn messages_per_delivery(&self, flow: &str, step: &str) -> f64 {
        let inner = self.lock();
        let step = inner.steps.get(&(flow.to_owned(), step.to_owned()));
        step.and_then(|step| step.messages_per_delivery)
            .unwrap_or(1.0)
    }

    /// Forgets replicas that have been silent for long; what they did stays in the totals.
    pub fn forget_silent(&self, now: u64) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let silent: Vec<Identity> = inner
            .replicas
            .iter()
            .filter(|(_, seen)| now.saturating_sub(seen.received_at) > FORGET_AFTER_MS)
            .map(|(identity, _)| identity.clone())
            .collect();
        for identity in silent {
            inner.addresses.remove(&identity);
            let Some(seen) = inner.replicas.remove(&identity) else {
                continue;
            };
            inner
                .steps
                .entry((identity.flow, identity.step))
                .or_default()
                .over
                .add(&seen.report);
        }
    }

    /// Forgets everything of a flow that was deleted.
    pub fn forget_flow(&self, flow: &str) {
        let mut inner = self.lock();
        inner.replicas.retain(|identity, _| identity.flow != flow);
        inner.addresses.retain(|identity, _| identity.flow != flow);
        inner.steps.retain(|(of, _), _| of != flow);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in here panics half-way through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Step {
    fn sample(&mut self, sample: Sample) {
        if sample.done.deliveries > 0 {
            let average = sample.done.received as f64 / sample.done.deliveries as f64;
            let smooth = self
                .messages_per_delivery
                .map_or(average, |before| before * 0.7 + average * 0.3);
            self.messages_per_delivery = Some(smooth.max(1.0));
        }
        let since = sample.to.saturating_sub(RATE_WINDOW_MS);
        self.window.push_back(sample);
        while self.window.front().is_some_and(|oldest| oldest.to <= since) {
            self.window.pop_front();
        }
    }
}

impl Totals {
    fn add(&mut self, report: &Report) {
        self.counters = map(&self.counters, &report.counters, u64::saturating_add);
        self.latency.counts.resize(LATENCY_BOUNDS_US.len() + 1, 0);
        for (sum, count) in self.latency.counts.iter_mut().zip(&report.latency.counts) {
            *sum += count;
        }
        self.latency.sum_us += report.latency.sum_us;
        self.restarts += report.restarts;
    }
}

/// The time that a part (0.5 is half) of what is counted took at most, in microseconds, as well as
/// the buckets tell; none if nothing is counted.
pub fn quantile_us(latency: &Latency, part: f64) -> Option<f64> {
    let total: u64 = latency.counts.iter().sum();
    if total == 0 {
        return None;
    }
    let wanted = total as f64 * part;
    let mut below = 0.0;
    for (index, count) in latency.counts.iter().enumerate() {
        let count = *count as f64;
        if below + count >= wanted && count > 0.0 {
            let low = index
                .checked_sub(1)
                .map_or(0, |index| LATENCY_BOUNDS_US[index]) as f64;
            // Above the last bound nothing is known but that.
            let high = LATENCY_BOUNDS_US
                .get(index)
                .map_or(low, |bound| *bound as f64);
            return Some(low + (high - low) * ((wanted - below) / count).clamp(0.0, 1.0));
        }
        below += count;
    }
    None
}

fn map(one: &Counters, other: &Counters, with: fn(u64, u64) -> u64) -> Counters {
    Counters {
        received: with(one.received, other.received),
        deliveries: with(one.deliveries, other.deliveries),
        emitted: with(one.emitted, other.emitted),
        unconnected: with(one.unconnected, other.unconnected),
        done: with(one.done, other.done),
        failed: with(one.failed, other.failed),
        retried: with(one.retried, other.retried),
        rebounded: with(one.rebounded, other.rebounded),
        dead: with(one.dead, other.dead),
        timed_out: with(one.timed_out, other.timed_out),
        crashed: with(one.crashed, other.crashed),
        repeated: with(one.repeated, other.repeated),
        sorted: with(one.sorted, other.sorted),
        unmatched: with(one.unmatched, other.unmatched),
        invalid: with(one.invalid, other.invalid),
    }
}

#[cfg(test)]
mod tests {
    use towpath_protocol::office::AgentState;

    use super::*;

    pub(crate) fn report(replica: u32, incarnation: &str, at: u64, received: u64) -> Report {
        let mut counts = vec![0; LATENCY_BOUNDS_US.len() + 1];
        counts[3] = received;
        Report {
            identity: Identity {
                instance: "t".into(),
                flow: "orders".into(),
                step: "crm".into(),
                replica,
                spec: "s".into(),
            },
            incarnation: incarnation.into(),
            at,
            state: AgentState::Running,
            reason: None,
            in_hand: 0,
            held: 0,
            unacknowledged: 0,
            counters: Counters {
                received,
                deliveries: received / 10,
                ..Counters::default()
            },
            latency: Latency {
                counts,
                sum_us: received * 700,
            },
            restarts: 1,
            step_resident_bytes: 0,
            agent_resident_bytes: 0,
            last_lines: Vec::new(),
            pacing: None,
        }
    }

    fn received(reports: &Reports) -> u64 {
        reports.totals("orders", "crm").counters.received
    }

    #[test]
    fn totals_never_go_back() {
        let reports = Reports::default();
        let mut last = 0;
        let mut check = |report: Report, expect: u64| {
            let now = report.at;
            reports.record(report, now);
            let received = received(&reports);
            assert_eq!(received, expect);
            assert!(received >= last);
            last = received;
        };
        check(report(1, "a", 1_000, 100), 100);
        check(report(1, "a", 1_000, 100), 100); // twice
        check(report(2, "b", 1_500, 10), 110);
        check(report(1, "a", 2_000, 150), 160);
        check(report(1, "a", 1_500, 120), 160); // late
        check(report(1, "c", 3_000, 5), 165); // started again
        check(report(1, "a", 2_100, 151), 165); // the last word of the one before, too late
        reports.forget_silent(3_000 + FORGET_AFTER_MS + 1);
        assert_eq!(received(&reports), 165);
        assert!(reports.latest(&report(1, "c", 0, 0).identity).is_none());
        let totals = reports.totals("orders", "crm");
        assert_eq!(totals.latency.counts[3], 165);
        assert_eq!(totals.restarts, 3);
    }

    #[test]
    fn rates_are_of_the_last_seconds() {
        let reports = Reports::default();
        for second in 0..60 {
            reports.record(report(1, "a", second * 1_000, second * 200), second * 1_000);
        }
        let rates = reports.rates("orders", "crm", 59_000);
        assert!((rates.received - 200.0).abs() < 1.0, "{rates:?}");
        // Silence is not work.
        assert_eq!(
            reports.rates("orders", "crm", 59_000 + RATE_WINDOW_MS),
            Rates::default()
        );
        assert!((reports.messages_per_delivery("orders", "crm") - 10.0).abs() < 0.1);
    }

    #[test]
    fn a_control_plane_that_starts_again_sees_no_burst() {
        let reports = Reports::default();
        reports.record(report(1, "a", 1_000, 1_000_000), 1_000);
        reports.record(report(1, "a", 3_000, 1_000_100), 3_000);
        let rates = reports.rates("orders", "crm", 3_000);
        assert!((rates.received - 50.0).abs() < 1.0, "{rates:?}");
    }

    #[test]
    fn quantiles_lie_in_their_bucket() {
        let mut latency = Latency {
            counts: vec![0; LATENCY_BOUNDS_US.len() + 1],
            sum_us: 0,
        };
        assert_eq!(quantile_us(&latency, 0.5), None);
        latency.counts[3] = 90; // up to a millisecond
        latency.counts[6] = 10; // up to ten
        let half = quantile_us(&latency, 0.5).unwrap();
        assert!((500.0..=1_000.0).contains(&half), "{half}");
        let most = quantile_us(&latency, 0.99).unwrap();
        assert!((5_000.0..=10_000.0).contains(&most), "{most}");
    }
}
