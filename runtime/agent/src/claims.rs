//! Questions to the ledger: which messages are to be asked about, and which questions are under way.
//!
//! Questions are batched as everything else is: one message alone is asked about at once, and what
//! comes meanwhile is asked about together.
//!
//! # Invariants
//!
//! - `a_lone_message_is_asked_about_at_once`, `what_comes_meanwhile_is_asked_about_together`.
//! - `while_nobody_answers_one_small_question_is_asked_now_and_then`, for ever: the broker must not
//!   fill up with questions of an agent that cannot work.
//! - `a_late_answer_is_an_answer`: a control plane that is slow is not asked in vain.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use towpath_protocol::MessageId;

use crate::limits::Limits;

/// A message that is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Its record.
    pub record: u32,
    /// Its id: records are used again.
    pub id: MessageId,
    /// How often it was replayed.
    pub replays: u32,
}

/// Why messages are asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To hand them over as soon as there is room.
    Take,
    /// To hand over this one, alone.
    TakeAlone,
    /// To keep what was granted before.
    Keep,
    /// To keep what was granted to be handed over alone.
    KeepAlone,
}

/// A question under way.
#[derive(Debug, Clone)]
pub struct Question {
    /// Its number.
    pub number: u64,
    /// Why it is asked.
    pub purpose: Purpose,
    /// When it was asked: what is granted holds from then on.
    pub asked_at: Instant,
    /// The messages, in the order of the question.
    pub members: Vec<Asked>,
    /// When it is overdue; none if it is already.
    due_at: Option<Instant>,
}

/// How many questions that were not answered in time are remembered, should the answer come yet.
const OVERDUE_MAX: usize = 64;

/// All questions of an agent.
#[derive(Debug, Default)]
pub struct Claims {
    wanted: VecDeque<Asked>,
    /// Since when the oldest of `wanted` waits.
    since: Option<Instant>,
    questions: BTreeMap<u64, Question>,
    numbers: u64,
    /// Questions in a row that were not answered in time.
    silences: u32,
    silent_since: Option<Instant>,
}

impl Claims {
    /// Has a message asked about with the next question.
    pub fn want(&mut self, asked: Asked, now: Instant) {
        self.wanted.push_back(asked);
        self.since.get_or_insert(now);
    }

    /// Makes the next question, if one is to be asked now, of the messages that are still wanted.
    pub fn next(
        &mut self,
        limits: &Limits,
        now: Instant,
        mut is_wanted: impl FnMut(&Asked) -> bool,
    ) -> Option<&Question> {
        let (most, open_max) = if self.silences > 0 {
            (limits.claim_probe, 1)
        } else {
            (limits.claim_batch, limits.claim_questions)
        };
        let open = self.open(Purpose::Take);
        if self.wanted.is_empty() || open >= open_max {
            return None;
        }
        let is_old = self
            .since
            .is_some_and(|since| now >= since + limits.batch_age);
        if open > 0 && self.wanted.len() < most && !is_old {
            return None;
        }
        let mut members = Vec::with_capacity(most.min(self.wanted.len()));
        while members.len() < most
            && let Some(asked) = self.wanted.pop_front()
        {
            if is_wanted(&asked) {
                members.push(asked);
            }
        }
        self.since = (!self.wanted.is_empty()).then_some(now);
        if members.is_empty() {
            return None;
        }
        Some(self.ask(Purpose::Take, members, limits, now))
    }

    /// Makes a question at once.
    pub fn ask(
        &mut self,
        purpose: Purpose,
        members: Vec<Asked>,
        limits: &Limits,
        now: Instant,
    ) -> &Question {
        while self.questions.len() > OVERDUE_MAX
            && let Some(first) = self.questions.first_entry()
            && first.get().due_at.is_none()
        {
            first.remove();
        }
        self.numbers += 1;
        let patience = self.patience(limits);
        let question = Question {
            number: self.numbers,
            purpose,
            asked_at: now,
            members,
            due_at: Some(now + patience),
        };
        self.questions.entry(self.numbers).or_insert(question)
    }

    fn patience(&self, limits: &Limits) -> Duration {
        limits
            .claim_again
            .saturating_mul(1 << self.silences.min(8))
            .min(limits.claim_again_longest)
    }

    /// An answer came: takes the question.
    pub fn answered(&mut self, number: u64) -> Option<Question> {
        self.silences = 0;
        self.silent_since = None;
        self.questions.remove(&number)
    }

    /// Looks for questions that were not answered in time. What they asked for is wanted again;
    /// calls with the messages that were asked for alone, who have to be asked for by themselves.
    pub fn check(&mut self, now: Instant, mut alone: impl FnMut(Asked)) {
        let mut is_silent = None;
        let mut again = Vec::new();
        for question in self.questions.values_mut() {
            if question.due_at.is_none_or(|due_at| now < due_at) {
                continue;
            }
            question.due_at = None;
            if matches!(question.purpose, Purpose::Keep | Purpose::KeepAlone) {
                continue;
            }
            is_silent.get_or_insert(question.asked_at);
            match question.purpose {
                Purpose::TakeAlone => question.members.iter().copied().for_each(&mut alone),
                _ => again.extend(question.members.iter().copied()),
            }
        }
        for asked in again.into_iter().rev() {
            self.wanted.push_front(asked);
            self.since.get_or_insert(now);
        }
        if let Some(since) = is_silent {
            self.silences += 1;
            self.silent_since.get_or_insert(since);
        }
    }

    /// Forgets all: the connection is gone, and answers with it.
    pub fn forget(&mut self) {
        self.wanted.clear();
        self.since = None;
        self.questions.clear();
        self.silences = 0;
        self.silent_since = None;
    }

    /// Returns when to look again without an event.
    pub fn next_deadline(&self, limits: &Limits) -> Option<Instant> {
        let due = self
            .questions
            .values()
            .filter_map(|question| question.due_at);
        let may_ask = self.silences == 0 && self.open(Purpose::Take) < limits.claim_questions;
        let old = self.since.filter(|_| may_ask);
        due.chain(old.map(|since| since + limits.batch_age)).min()
    }

    /// Returns how many messages wait to be asked about, or for an answer.
    pub fn waiting(&self) -> usize {
        let open = self
            .questions
            .values()
            .filter(|question| question.due_at.is_some() && question.purpose == Purpose::Take);
        self.wanted.len() + open.map(|question| question.members.len()).sum::<usize>()
    }

    /// Returns since when the control plane does not answer; none if it does.
    pub fn silent_since(&self) -> Option<Instant> {
        self.silent_since
    }

    fn open(&self, purpose: Purpose) -> usize {
        let open = self.questions.values();
        open.filter(|question| question.due_at.is_some() && question.purpose == purpose)
            .count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(record: u32) -> Asked {
        Asked {
            record,
            id: MessageId::from_bytes(u128::from(record).to_be_bytes()),
            replays: 0,
        }
    }

    fn limits() -> Limits {
        Limits {
            claim_batch: 3,
            claim_probe: 1,
            claim_questions: 2,
            ..Limits::default()
        }
    }

    fn next(claims: &mut Claims, now: Instant) -> Option<(u64, Vec<u32>)> {
        let question = claims.next(&limits(), now, |_| true)?;
        let members = question.members.iter().map(|asked| asked.record).collect();
        Some((question.number, members))
    }

    #[test]
    fn a_lone_message_is_asked_about_at_once() {
        let (mut claims, now) = (Claims::default(), Instant::now());
        assert_eq!(next(&mut claims, now), None);
        claims.want(asked(7), now);
        assert_eq!(next(&mut claims, now), Some((1, vec![7])));
        assert_eq!((next(&mut claims, now), claims.waiting()), (None, 1));
    }

    #[test]
    fn what_comes_meanwhile_is_asked_about_together() {
        let (mut claims, now) = (Claims::default(), Instant::now());
        for record in 1..=2 {
            claims.want(asked(record), now);
            assert_eq!(next(&mut claims, now).is_some(), record == 1);
        }
        claims.want(asked(3), now);
        assert_eq!(next(&mut claims, now), None, "one is under way");
        let later = now + Duration::from_millis(10);
        assert_eq!(claims.next_deadline(&limits()), Some(later));
        assert_eq!(next(&mut claims, later), Some((2, vec![2, 3])), "it is old");
        for record in 4..=8 {
            claims.want(asked(record), now);
        }
        assert_eq!(next(&mut claims, later), None, "two are under way");
        assert_eq!(
            claims.answered(1).map(|it| it.members),
            Some(vec![asked(1)])
        );
        assert_eq!(
            next(&mut claims, later),
            Some((3, vec![4, 5, 6])),
            "it is full"
        );
    }

    #[test]
    fn while_nobody_answers_one_small_question_is_asked_now_and_then() {
        let (mut claims, mut now) = (Claims::default(), Instant::now());
        for record in 1..=9 {
            claims.want(asked(record), now);
        }
        let mut count = 0;
        let end = now + Duration::from_secs(3600);
        while now < end {
            while next(&mut claims, now).is_some() {
                count += 1;
            }
            now = claims
                .next_deadline(&limits())
                .expect("it goes on for ever");
            claims.check(now, |_| panic!("none is asked about alone"));
        }
        assert!((235..245).contains(&count), "{count} in an hour");
        assert!(claims.silent_since().is_some());
        claims.answered(1);
        assert_eq!(claims.silent_since(), None);
    }

    #[test]
    fn a_late_answer_is_an_answer() {
        let (mut claims, now) = (Claims::default(), Instant::now());
        claims.want(asked(1), now);
        next(&mut claims, now);
        let later = now + Duration::from_secs(6);
        claims.check(later, |_| ());
        assert_eq!(next(&mut claims, later), Some((2, vec![1])), "asked again");
        assert_eq!(claims.answered(1).map(|it| it.asked_at), Some(now));
    }

    #[test]
    fn what_is_asked_about_alone_is_asked_about_again_by_whoever_asked() {
        let (mut claims, now) = (Claims::default(), Instant::now());
        claims.ask(Purpose::TakeAlone, vec![asked(4)], &limits(), now);
        claims.ask(Purpose::Keep, vec![asked(5)], &limits(), now);
        let mut alone = Vec::new();
        claims.check(now + Duration::from_secs(60), |it| alone.push(it.record));
        assert_eq!((alone, claims.waiting()), (vec![4], 0));
    }
}
