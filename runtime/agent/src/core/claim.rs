//! The ledger: asking whether messages may be handed over, and telling what became of them.
//!
//! With `once: true` every message is asked about before it is handed over, ahead of free places in
//! the step's hands. Without it, only a message of a delivery that came back again and again, which
//! is handed over alone, so that if the container dies of it, it is known which message it was.
//!
//! A claim holds for its **lease**: how old it may be when its message is handed over
//! ([`crate::limits::Limits::claim_margin`]), and what the step may then take (its time limit, and
//! the grace before a step that does not keep it is killed). So when a lease ends, its message is in
//! no step's hands. Claims are asked for again long before; only those of an agent that is cut off
//! from the broker run out, and what such an agent has in hand by then is taken from its step.
//!
//! # Invariants
//!
//! - `what_is_settled_is_not_handled_again`, `a_step_without_once_needs_no_ledger`,
//!   `two_replicas_never_have_the_same_message_in_hand`,
//!   `a_message_that_kills_the_container_becomes_a_dead_letter_and_its_neighbours_do_not`
//!   (tests/simulation.rs).
//! - What is told is confirmed before a delivery is acknowledged, and after everything that was
//!   published for its messages (`nothing_is_lost_wherever_it_is_cut_with_once`).
//! - What may have been handled is never handed over as if it were new: `uncertain` is in the line of
//!   what is sent back because somebody else has it, and a claim on what was in hand is not given
//!   up but taken over.
//! - A message that is left is not asked for again before the ledger knows that it was left: a late
//!   word would give it to another.

use std::time::{Duration, Instant};

use bytes::Bytes;
use towpath_protocol::manifest::Kind;
use towpath_protocol::office::{Claim, Claimed, Grant, LEDGER_KEY, LedgerEntry};
use towpath_protocol::start::DELAY_UNIT_MS;

use super::{Core, Step};
use crate::broker::{Command, Content, Publish};
use crate::claims::{Asked, Purpose};
use crate::clock::Now;
use crate::ladder;
use crate::lanes::{LaneId, Member, SETTLEMENT};
use crate::record::{Resolution, State};
use crate::settle::Outcome;

/// Silences that are shorter are not worth a word.
const SILENCE_MIN: Duration = Duration::from_secs(5);

/// Says of which attempt a container died.
pub(super) fn death(how: Option<&str>, attempt: u32) -> String {
    match how {
        Some(how) => {
            format!("its container died with it alone in hand: {how}; attempt {attempt}")
        }
        None => format!("its container died with it alone in hand; attempt {attempt}"),
    }
}

impl Core {
    /// Returns whether every message is to be claimed.
    pub(super) fn is_once(&self) -> bool {
        self.setup.settings.once && self.setup.kind == Kind::Action
    }

    /// Returns how long a claim holds.
    fn lease(&self) -> Duration {
        let limits = &self.setup.limits;
        match self.setup.settings.timeout_ms {
            0 => limits.claim_lease.max(limits.claim_margin),
            timeout => Duration::from_millis(timeout) + limits.cancel_grace + limits.claim_margin,
        }
    }

    /// Takes lines and asks for their messages, so that the step does not wait for answers.
    pub(super) fn claim_ahead(&mut self, now: Now) {
        if !self.is_once() || self.order.is_some() {
            return;
        }
        let most = self.claimed_ahead_max();
        while self.claims.waiting() + self.again.len() < most && self.take(now) {}
    }

    /// Has a message asked for (again).
    pub(super) fn claim(&mut self, number: u32, now: Now) {
        let Some(asked) = self.asked(number) else {
            return;
        };
        self.records.get(number).state = State::Claiming;
        self.claims.want(asked, now.instant);
    }

    fn asked(&mut self, number: u32) -> Option<Asked> {
        let record = self.records.get(number);
        Some(Asked {
            record: number,
            id: record.id?,
            replays: record.replays,
        })
    }

    /// Returns whether a message was granted, and so lately that it may be handed over.
    pub(super) fn is_granted(&mut self, number: u32, now: Now) -> bool {
        let margin = self.setup.limits.claim_margin;
        let granted_at = self.records.get(number).claim.granted_at;
        granted_at.is_some_and(|at| now.instant < at + margin)
    }

    /// Returns whether the first of the suspects may be handed over, which nothing else is in hand
    /// beside; asks for it if need be. A claim that is made earlier would be for a message that is
    /// not alone.
    pub(super) fn may_hand_alone(&mut self, number: u32, now: Now) -> bool {
        let is_once = self.is_once();
        if !is_once && !self.records.get(number).is_suspect {
            return true;
        }
        if self.is_granted(number, now) {
            return true;
        }
        let patience = self.setup.limits.suspect_patience;
        let record = self.records.get(number);
        let since = *record.claim.since.get_or_insert(now.instant);
        if !is_once && (record.claim.is_waived || now.instant >= since + patience) {
            if !std::mem::replace(&mut record.claim.is_waived, true) {
                let id = record.id;
                let text = "the control plane does not answer: the message is handed over, alone, though it may kill the container";
                self.logger.agent("warn", id, text);
            }
            return true;
        }
        if record.state == State::Ready
            && let Some(asked) = self.asked(number)
        {
            self.records.get(number).state = State::Claiming;
            self.put(Purpose::TakeAlone, vec![asked], now);
        }
        false
    }

    /// Asks for what is wanted, if it is time to.
    pub(super) fn ask_ledger(&mut self, now: Now) {
        loop {
            let records = &mut self.records;
            let is_wanted = |asked: &Asked| {
                records.exists(asked.record) && {
                    let record = records.get(asked.record);
                    record.id == Some(asked.id) && record.state == State::Claiming
                }
            };
            let limits = &self.setup.limits;
            let Some(question) = self.claims.next(limits, now.instant, is_wanted) else {
                return;
            };
            let (number, members) = (question.number, question.members.clone());
            self.publish_question(number, false, &members, now);
        }
    }

    /// Asks a question now.
    fn put(&mut self, purpose: Purpose, members: Vec<Asked>, now: Now) {
        let limits = &self.setup.limits;
        let question = self.claims.ask(purpose, members, limits, now.instant);
        let (number, members) = (question.number, question.members.clone());
        let is_alone = matches!(purpose, Purpose::TakeAlone | Purpose::KeepAlone);
        self.publish_question(number, is_alone, &members, now);
    }

    fn publish_question(&mut self, question: u64, alone: bool, members: &[Asked], now: Now) {
        for asked in members {
            let claim = &mut self.records.get(asked.record).claim;
            claim.is_asked = true;
            claim.is_alone = alone;
            claim.since.get_or_insert(now.instant);
        }
        let entry = LedgerEntry::Claim(Claim {
            identity: self.setup.identity.clone(),
            incarnation: self.setup.incarnation.clone(),
            question,
            lease_ms: u64::try_from(self.lease().as_millis()).unwrap_or(u64::MAX),
            alone,
            messages: members
                .iter()
                .map(|asked| (asked.id, asked.replays))
                .collect(),
        });
        let payload = serde_json::to_vec(&entry).expect("an entry of the ledger is JSON");
        // Not in a lane: what is not confirmed is not answered either, and asked again.
        let publish = Publish {
            number: self.lanes.take_number(),
            exchange: self.setup.routes.office_exchange.as_str().into(),
            key: LEDGER_KEY.into(),
            content: Content::Ledger,
            count: 1,
            payload: Bytes::from(payload),
            answer: Some(question.to_string().into()),
        };
        self.tell(Command::Publish(publish));
    }

    /// The control plane answered.
    pub(super) fn on_claimed(&mut self, answer: &Claimed, now: Now) {
        let Some(question) = self.claims.answered(answer.question) else {
            return;
        };
        let (asked, granted) = (question.members.len(), answer.grants.len());
        if asked != granted {
            let text = format!(
                "the control plane answers for {granted} messages where it was asked for {asked}: asked again"
            );
            self.logger.agent("error", None, &text);
        }
        let is_complete = asked == granted;
        for (index, asked) in question.members.into_iter().enumerate() {
            let is_there = self.records.exists(asked.record) && {
                let record = self.records.get(asked.record);
                record.id == Some(asked.id)
                    && record.replays == asked.replays
                    && !record.claim.is_told
            };
            match (is_there, is_complete) {
                (true, true) => {
                    let grant = &answer.grants[index];
                    self.on_grant(asked.record, grant, question.asked_at, now);
                }
                (true, false) => self.ask_again(asked.record, now),
                (false, _) => {}
            }
        }
    }

    /// A question came to nothing.
    fn ask_again(&mut self, number: u32, now: Now) {
        if self.records.get(number).state != State::Claiming {
            return;
        }
        if self.suspects.front() == Some(&number) {
            self.records.get(number).state = State::Ready;
        } else {
            self.claim(number, now);
        }
    }

    fn on_grant(&mut self, number: u32, grant: &Grant, asked_at: Instant, now: Now) {
        let record = self.records.get(number);
        match (record.state, grant) {
            (
                State::Claiming,
                Grant::Yours {
                    uncertain,
                    deaths,
                    death,
                },
            ) => {
                record.is_uncertain |= uncertain;
                record.claim.deaths = *deaths;
                record.claim.death = death.as_deref().map(Into::into);
                self.granted(number, asked_at, now);
            }
            (State::Claiming, Grant::Settled) => {
                self.logger.agent(
                    "debug",
                    record.id,
                    "it was settled before: it is not handled again",
                );
                self.refuse(number, Resolution::Repeated, now);
            }
            (State::Claiming, Grant::Busy { again_ms }) => {
                let units = ladder::units(*again_ms);
                self.logger.agent(
                    "debug",
                    record.id,
                    &format!("somebody else has it: seen again in {again_ms} ms"),
                );
                self.refuse(number, Resolution::Busy { units }, now);
            }
            (_, Grant::Yours { .. }) => {
                let newest = record
                    .claim
                    .granted_at
                    .map_or(asked_at, |at| at.max(asked_at));
                record.claim.granted_at = Some(newest);
            }
            // It is asked for once more before it is handed over.
            (State::Ready | State::Held, _) => record.claim.granted_at = None,
            (State::InHand, _) => {
                let id = record.id;
                let text = "somebody else took the message over while the step has it in hand";
                self.logger.agent("warn", id, text);
            }
            _ => {}
        }
    }

    /// A message may be handed over, unless too many containers died of it.
    fn granted(&mut self, number: u32, asked_at: Instant, now: Now) {
        self.renew_at
            .get_or_insert(now.instant + self.setup.limits.claim_renew);
        let attempts = self.setup.settings.retry.attempts;
        let record = self.records.get(number);
        record.claim.granted_at = Some(asked_at);
        record.state = State::Ready;
        let (id, tries, deaths) = (record.id, record.tries(), record.claim.deaths);
        let is_first = self.suspects.front() == Some(&number);
        if deaths > 0 {
            let reason = death(record.claim.death.as_deref(), tries - 1);
            if tries > attempts {
                // The last of the deaths is this failure, those before are its past.
                record.claim.deaths -= 1;
                if is_first {
                    self.suspects.pop_front();
                }
                self.fail(number, Outcome::Crashed, &reason, &[], now);
                return;
            }
            self.logger.agent("warn", id, &reason);
        }
        if !is_first {
            self.line_up(number, now);
        }
    }

    /// A message is not to be handled.
    fn refuse(&mut self, number: u32, resolution: Resolution, now: Now) {
        if self.suspects.front() == Some(&number) {
            self.suspects.pop_front();
        }
        let record = self.records.get(number);
        // It is another's, or nobody's: there is nothing to tell of it.
        record.claim.is_asked = false;
        record.claim.granted_at = None;
        if let (Resolution::Busy { units }, Some(_)) = (&resolution, record.partition) {
            // To be seen again it needs not go anywhere: what comes after it must not overtake it.
            let wait = Duration::from_millis(u64::from(*units) * DELAY_UNIT_MS);
            record.is_uncertain = true;
            self.hold_as_it_is(number, wait, now);
            return;
        }
        record.resolution = Some(resolution);
        for delivery in &record.deliveries {
            self.deliveries.begin(*delivery);
        }
        self.issue(number, now);
    }

    /// Tells the ledger what became of a message. Returns whether that still has to be confirmed.
    pub(super) fn tell_ledger(&mut self, number: u32, now: Now) -> bool {
        let record = self.records.get(number);
        let lane = match record.resolution {
            Some(Resolution::Done | Resolution::Dead { .. }) => LaneId::Settled,
            _ => LaneId::Released,
        };
        self.tell_once(number, lane, now)
    }

    /// Tells the ledger that a message is left to whoever gets it next. Returns whether that still
    /// has to be confirmed.
    pub(super) fn tell_released(&mut self, number: u32, now: Now) -> bool {
        // It is leaving for good: that the agent is gone says it as well.
        if self.drain.is_some() && !self.is_up {
            return false;
        }
        // What may have been handled stays claimed until the lease ends: only to be taken over says
        // to whoever has it next that it is uncertain.
        let record = self.records.get(number);
        if record.is_uncertain || record.handed_at.is_some() {
            return false;
        }
        self.tell_once(number, LaneId::Released, now)
    }

    fn tell_once(&mut self, number: u32, lane: LaneId, now: Now) -> bool {
        let record = self.records.get(number);
        let Some(id) = record.id.filter(|_| record.claim.is_asked) else {
            return false;
        };
        if std::mem::replace(&mut record.claim.is_told, true) {
            return false;
        }
        record.unconfirmed += 1;
        let message = (id, record.replays);
        let member = Member {
            record: number,
            epoch: SETTLEMENT,
            count: 1,
        };
        self.lanes.tell(lane, message, member, now);
        true
    }

    /// Looks at what waits for answers, and at claims that get old.
    pub(super) fn check_claims(&mut self, now: Now) {
        let mut alone = Vec::new();
        if self.is_up {
            self.claims
                .check(now.instant, |asked| alone.push(asked.record));
            for number in alone {
                if self.records.exists(number) && self.suspects.front() == Some(&number) {
                    self.ask_again(number, now);
                }
            }
            if self.renew_at.is_some_and(|at| now.instant >= at) {
                self.renew(now);
            }
        }
        self.check_leases(now);
    }

    /// Asks once more for what was granted some time ago.
    fn renew(&mut self, now: Now) {
        let limits = &self.setup.limits;
        let (age, most) = (limits.claim_renew, limits.claim_batch);
        let mut due = Vec::new();
        let mut alone = None;
        let mut has_claims = false;
        for (number, record) in self.records.iter() {
            let (Some(id), Some(granted_at)) = (record.id, record.claim.granted_at) else {
                continue;
            };
            let is_kept = matches!(
                record.state,
                State::Ready
                    | State::Held
                    | State::InHand
                    | State::Bound
                    | State::Settling
                    | State::Parked
            );
            if record.claim.is_told || !is_kept {
                continue;
            }
            has_claims = true;
            if now.instant < granted_at + age {
                continue;
            }
            let asked = Asked {
                record: number,
                id,
                replays: record.replays,
            };
            if record.claim.is_alone {
                alone = Some(asked);
            } else {
                due.push(asked);
            }
        }
        for members in due.chunks(most) {
            self.put(Purpose::Keep, members.to_vec(), now);
        }
        if let Some(asked) = alone {
            self.put(Purpose::KeepAlone, vec![asked], now);
        }
        self.renew_at = has_claims.then(|| now.instant + age);
    }

    /// Returns when the first claim runs out of what is in hand and whose delivery was lost:
    /// somebody else may have it then. As long as the delivery is there, nobody else gets it.
    fn next_lease_end(&self) -> Option<(Instant, u32)> {
        if !self.has_detached {
            return None;
        }
        let lease = self.lease().saturating_sub(self.setup.limits.cancel_grace);
        let detached = self.records.iter().filter(|(_, record)| {
            record.state == State::InHand && record.deliveries.is_empty() && !record.claim.is_lost
        });
        detached
            .filter_map(|(number, record)| Some((record.claim.granted_at? + lease, number)))
            .min()
    }

    /// Takes from the step what somebody else may have as soon as its claim has run out.
    fn check_leases(&mut self, now: Now) {
        if !self.has_detached || self.step == Step::Dying {
            return;
        }
        loop {
            let Some((end, number)) = self.next_lease_end() else {
                self.has_detached = !self.is_up;
                return;
            };
            if now.instant < end {
                return;
            }
            let record = self.records.get(number);
            record.claim.is_lost = true;
            let id = record.id;
            self.logger.agent(
                "warn",
                id,
                "cut off from the broker for too long: somebody else may have the message, and the step is told to leave it",
            );
            if id.is_some_and(|id| !self.cancelled.contains_key(&id)) {
                self.cancel(number, "claim", now);
            }
        }
    }

    /// Returns when to look at claims if nothing happens before.
    pub(super) fn next_claim_deadline(&self) -> Option<Instant> {
        let questions = self.claims.next_deadline(&self.setup.limits);
        let asked = questions.into_iter().chain(self.renew_at);
        let asked = asked.min().filter(|_| self.is_up);
        let lease = self.next_lease_end().filter(|_| self.step != Step::Dying);
        asked.into_iter().chain(lease.map(|(end, _)| end)).min()
    }

    /// Says that messages wait for the control plane, if they do.
    pub(super) fn waits_for_ledger(&self, now: Now) -> Option<String> {
        let since = self.claims.silent_since()?;
        let silence = now.instant.saturating_duration_since(since);
        if silence < SILENCE_MIN {
            return None;
        }
        let count = self.claims.waiting().max(self.suspects.len());
        Some(format!(
            "{count} messages wait for the control plane, which has not answered for {} s: only it knows whether they were handled before",
            silence.as_secs()
        ))
    }
}
