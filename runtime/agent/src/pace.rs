//! How fast messages may be handed over (`rate`): this replica's share of its step's rate.
//!
//! The control plane says what the share is, in answer to reports; an agent that hears nothing keeps
//! what it has. It begins with none: others may have all of it.
//!
//! # Invariants
//!
//! - `in_no_time_is_more_handed_over_than_the_share_and_its_burst`, however the share changes.
//! - `only_the_answer_to_the_last_report_counts`: what is said in a report is true until the next
//!   one, unless it is answered; so whoever reads it knows what this replica may do at most.
//! - `a_share_that_is_used_is_used_up_to_the_last_message`.

use std::time::{Duration, Instant};

use towpath_protocol::handing::{BURST_PART, Rate};
use towpath_protocol::office::{Pacing, Share};

/// How much more than what it is about to hand over a replica takes from its queue: this is what it
/// hands over in so many seconds.
const AHEAD_SECONDS: f64 = 2.0;

/// Rates below this many messages a second are **slow**: of such a step a replica takes one message
/// at a time from its queue, when it may hand it over. What waits for longer than half an hour in an
/// agent would be taken from it by the broker.
const SLOW: f64 = 1.0;

/// A message, give or take what is lost when parts of one are added up.
const WHOLE: f64 = 1.0 - 1e-9;

/// Whether a step has so low a rate that no message is taken before its turn.
pub fn is_slow(rate: Rate) -> bool {
    rate.per_second() < SLOW
}

/// A replica's share of a rate, and what it may hand over now.
#[derive(Debug)]
pub struct Pace {
    rate: Rate,
    /// Messages a second.
    share: f64,
    /// Messages that may be handed over at [`Self::at`]; never more than the burst.
    level: f64,
    at: Instant,
    /// The number of the last report.
    reported: u64,
    /// What it said.
    said: f64,
    /// Something waited for its turn since then.
    has_waited: bool,
}

impl Pace {
    /// Makes one that lets nothing through before it is told its share.
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self {
            rate,
            share: 0.0,
            level: 0.0,
            at: now,
            reported: 0,
            said: 0.0,
            has_waited: false,
        }
    }

    /// Whether the rate is so low that no message is taken before its turn.
    pub fn is_slow(&self) -> bool {
        is_slow(self.rate)
    }

    /// Returns whether no message may be handed over now.
    pub fn is_closed(&self, now: Instant) -> bool {
        self.level_at(now) < WHOLE
    }

    /// Returns whether a message may be handed over now.
    pub fn is_open(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.level >= WHOLE
    }

    /// Notes that a message is handed over.
    pub fn take(&mut self, now: Instant) {
        self.fill(now);
        self.level -= 1.0;
    }

    /// Notes that something waits for its turn.
    pub fn note_waiting(&mut self) {
        self.has_waited = true;
    }

    /// Returns when the next message may be handed over; none if one may be already, and while there
    /// is no share.
    pub fn next(&self) -> Option<Instant> {
        if self.level >= WHOLE {
            return None;
        }
        let missing = 1.0 - self.level;
        let wait = Duration::try_from_secs_f64(missing / self.share).ok()?;
        // Later by what a sum of parts may lack: whoever wakes up too early would not wake up again.
        self.at.checked_add(wait + Duration::from_millis(1))
    }

    /// Returns how many messages may wait here for their turn before no more are taken.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is not negative, and far below 2^52"
    )]
    pub fn ahead(&self) -> usize {
        (self.share * AHEAD_SECONDS).ceil().min(1e6) as usize
    }

    /// Says how it is in a report, and which answers count from now on.
    pub fn report(&self, now: Instant) -> Pacing {
        Pacing {
            number: self.reported + 1,
            rate: self.rate,
            share: self.share,
            is_waiting: self.has_waited || (self.is_slow() && self.is_closed(now)),
        }
    }

    /// The report was sent.
    pub fn is_reported(&mut self, pacing: &Pacing) {
        self.reported = pacing.number;
        self.said = pacing.share;
        self.has_waited = false;
    }

    /// Whether a report is due soon: others wait to hear that the share has become less, or this one
    /// waits for a share.
    pub fn has_news(&self) -> bool {
        #[expect(
            clippy::float_cmp,
            reason = "it is the same number, or it is another one"
        )]
        let is_other = self.said != self.share;
        is_other
    }

    /// Whether there is no share yet.
    pub fn has_none(&self) -> bool {
        self.share <= 0.0
    }

    /// Says why messages wait, if they do.
    pub fn words(&self, now: Instant) -> Option<String> {
        let rate = self.rate;
        if self.has_none() {
            return Some(format!(
                "held back by its rate of {rate}: it has no share of it yet"
            ));
        }
        let part = (self.share / rate.per_second() * 100.0).round();
        if self.is_slow() && self.is_closed(now) {
            let wait = self
                .next()
                .map_or(0, |at| at.saturating_duration_since(now).as_secs());
            return Some(format!(
                "held back by its rate of {rate}, of which it has {part} %: the next message may be handed over in {wait} s"
            ));
        }
        self.has_waited
            .then(|| format!("held back by its rate of {rate}, of which it has {part} %"))
    }

    /// The control plane answers a report.
    pub fn on_share(&mut self, share: &Share, now: Instant) {
        if share.number == self.reported && share.per_second.is_finite() {
            self.fill(now);
            self.share = share.per_second.max(0.0);
            self.level = self.level.min(self.burst());
        }
    }

    /// The most that is handed over at once, if nothing was for a while: timers are late, and what
    /// they are late by is not to be lost.
    fn burst(&self) -> f64 {
        (self.share * BURST_PART).max(1.0)
    }

    fn level_at(&self, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        (self.level + passed * self.share).min(self.burst())
    }

    fn fill(&mut self, now: Instant) {
        self.level = self.level_at(now);
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(count: u32, per_ms: u64) -> Rate {
        Rate { count, per_ms }
    }

    fn give(pace: &mut Pace, per_second: f64, now: Instant) {
        let pacing = pace.report(now);
        pace.is_reported(&pacing);
        let number = pacing.number;
        pace.on_share(&Share { number, per_second }, now);
    }

    #[test]
    fn it_begins_with_nothing() {
        let (now, hour) = (Instant::now(), Duration::from_secs(3_600));
        let mut pace = Pace::new(rate(10, 1_000), now);
        assert!(!pace.is_open(now + hour));
        assert_eq!(pace.next(), None);
        give(&mut pace, 10.0, now + hour);
        assert!(
            !pace.is_open(now + hour),
            "what was before counts for nothing"
        );
        assert!(pace.is_open(now + hour + Duration::from_millis(101)));
    }

    #[test]
    fn only_the_answer_to_the_last_report_counts() {
        let now = Instant::now();
        let mut pace = Pace::new(rate(10, 1_000), now);
        let share = |number, per_second| Share { number, per_second };
        pace.on_share(&share(1, 10.0), now);
        assert!(pace.has_none(), "it has said nothing yet");
        let first = pace.report(now);
        pace.is_reported(&first);
        let second = pace.report(now);
        pace.is_reported(&second);
        pace.on_share(&share(first.number, 10.0), now);
        assert!(pace.has_none());
        pace.on_share(&share(second.number, 2.5), now);
        assert!(pace.has_news());
        assert!((pace.report(now).share - 2.5).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn in_no_time_is_more_handed_over_than_the_share_and_its_burst(
            steps in prop::collection::vec((0_u64..400, prop::option::of(0.0_f64..200.0)), 1..300),
        ) {
            let most = 200.0;
            let mut now = Instant::now();
            let mut pace = Pace::new(rate(200, 1_000), now);
            let mut handed: Vec<Instant> = Vec::new();
            for (ms, share) in steps {
                now += Duration::from_millis(ms);
                if let Some(share) = share {
                    give(&mut pace, share, now);
                }
                while pace.is_open(now) {
                    pace.take(now);
                    handed.push(now);
                }
            }
            for (index, from) in handed.iter().enumerate() {
                for (count, to) in handed[index..].iter().enumerate() {
                    let seconds = to.duration_since(*from).as_secs_f64();
                    let bound = most * BURST_PART + 1.0 + most * seconds;
                    prop_assert!((count + 1) as f64 <= bound + 1e-6);
                }
            }
        }
    }

    #[test]
    fn a_share_that_is_used_is_used_up_to_the_last_message() {
        let begin = Instant::now();
        let mut pace = Pace::new(rate(1_000, 1_000), begin);
        give(&mut pace, 1_000.0, begin);
        let (mut now, mut count) = (begin, 0);
        while now < begin + Duration::from_secs(10) {
            // Whoever sleeps until a message may be handed over wakes up late.
            now += Duration::from_millis(7);
            while pace.is_open(now) {
                pace.take(now);
                count += 1;
            }
        }
        assert!((9_980..=10_100).contains(&count), "{count}");
    }
}
