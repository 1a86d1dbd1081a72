//! The registration of a trigger at its source: what is known of it, and what to do about it. Pure.
//!
//! A trigger that registers (`registers` in its manifest) is called to register the flow's URL, and to
//! take that back before the flow goes. What is to be done follows from what should be registered and
//! from the record of the last call, each time anew. A call is only a message to one agent: if nothing
//! is heard of it, there is another one.
//!
//! # Invariants
//!
//! - `a_trigger_is_called_until_what_should_be_registered_is`.
//! - `what_may_be_registered_is_taken_back`: a record is there before the first call is made, and goes
//!   when the step says that nothing is registered.
//! - `an_answer_to_an_earlier_call_changes_nothing`: it does not say what is at the source now.

use towpath_protocol::MessageId;
use towpath_protocol::office::{REGISTRATION_MS, RegistrationAct, RegistrationOutcome};

/// After how long a call is taken as not answered: the agent says itself that it took too long.
const ANSWER_MS: u64 = REGISTRATION_MS + 15_000;

/// The wait after the first failure; each further one doubles it.
const WAIT_MS: u64 = 1_000;

/// The longest wait.
const WAIT_MS_MAX: u64 = 5 * 60_000;

/// The wait when the step says that it can never succeed as it is configured: what it minds may be at
/// the source, where nobody tells of a change.
const WAIT_MS_PERMANENT: u64 = 15 * 60_000;

/// What a trigger is to register, or was called to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The URL to which the source is to send its events.
    pub url: String,
    /// Names what the trigger is configured with: if that changes, it registers again.
    pub made_with: String,
}

/// The last call to a trigger, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// The flow.
    pub flow: String,
    /// Names the call.
    pub call: MessageId,
    /// What it was to do.
    pub act: RegistrationAct,
    /// With what. Of a call to take it back: what it was called to register before.
    pub subject: Subject,
    /// What came of it.
    pub state: CallState,
    /// When it was made, or answered, in milliseconds since 1970.
    pub at: u64,
    /// What the step wants to be kept: JSON.
    pub kept: Option<String>,
    /// How many calls in a row failed.
    pub attempts: u32,
    /// When the next one is made if this one failed, in milliseconds since 1970.
    pub next_at: u64,
    /// Why it failed.
    pub reason: Option<String>,
}

/// What came of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallState {
    /// Nothing was heard of it yet.
    Open,
    /// What it was for is done.
    Done,
    /// It failed, or nothing was heard of it in time.
    Failed,
}

/// What to do about a registration now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// All is as it should be.
    Nothing,
    /// Look again then.
    Wait {
        /// When, in milliseconds since 1970.
        until: u64,
    },
    /// Nothing is heard of the last call any more: it failed.
    Unanswered,
    /// Call the trigger.
    Call(RegistrationAct),
}

/// Decides what to do. `wanted` is what should be registered, if something should; `record` is the
/// last call, unless nothing is registered, for sure.
pub fn decide(wanted: Option<&Subject>, record: Option<&Registration>, now: u64) -> Decision {
    let Some(record) = record else {
        return wanted.map_or(Decision::Nothing, |_| {
            Decision::Call(RegistrationAct::Activate)
        });
    };
    let act = match wanted {
        Some(_) => RegistrationAct::Activate,
        None => RegistrationAct::Deactivate,
    };
    let is_same = record.act == act && wanted.is_none_or(|wanted| *wanted == record.subject);
    match record.state {
        CallState::Open if now < record.at.saturating_add(ANSWER_MS) => Decision::Wait {
            until: record.at.saturating_add(ANSWER_MS),
        },
        CallState::Open => Decision::Unanswered,
        CallState::Done if is_same => Decision::Nothing,
        CallState::Failed if is_same && now < record.next_at => Decision::Wait {
            until: record.next_at,
        },
        CallState::Done | CallState::Failed => Decision::Call(act),
    }
}

impl Registration {
    /// The record of the next call, after this one.
    pub fn called(
        flow: &str,
        before: Option<Self>,
        act: RegistrationAct,
        wanted: Option<&Subject>,
        call: MessageId,
        now: u64,
    ) -> Option<Self> {
        let subject = wanted
            .cloned()
            .or_else(|| before.as_ref().map(|it| it.subject.clone()))?;
        let (kept, attempts, reason) = before.map_or((None, 0, None), |before| {
            let goes_on = before.act == act && before.subject == subject;
            let reason = before.reason.filter(|_| goes_on);
            (
                before.kept,
                if goes_on { before.attempts } else { 0 },
                reason,
            )
        });
        Some(Self {
            flow: flow.to_owned(),
            call,
            act,
            subject,
            state: CallState::Open,
            at: now,
            kept,
            attempts,
            next_at: now,
            reason,
        })
    }

    /// What is to be recorded when an answer to the last call is heard; none if nothing is registered
    /// any more.
    #[must_use]
    pub fn answered(mut self, outcome: RegistrationOutcome, now: u64) -> Option<Self> {
        match (outcome, self.act) {
            (RegistrationOutcome::Activated { kept }, RegistrationAct::Activate) => {
                self.state = CallState::Done;
                self.at = now;
                self.kept = kept.map(|kept| kept.get().to_owned());
                self.attempts = 0;
                self.reason = None;
                Some(self)
            }
            (RegistrationOutcome::Deactivated, RegistrationAct::Deactivate) => None,
            (
                RegistrationOutcome::Failed {
                    reason,
                    delay_ms,
                    is_permanent,
                },
                _,
            ) => Some(self.failed(reason, delay_ms, is_permanent, now)),
            // An agent does not say it; whoever says it does not speak of this call.
            (RegistrationOutcome::Activated { .. } | RegistrationOutcome::Deactivated, _) => {
                Some(self)
            }
        }
    }

    /// What is to be recorded when the last call failed. A later failure does not undo what was done.
    #[must_use]
    pub fn failed(
        mut self,
        reason: impl Into<String>,
        delay_ms: Option<u64>,
        is_permanent: bool,
        now: u64,
    ) -> Self {
        if self.state == CallState::Done {
            return self;
        }
        let wait = if is_permanent {
            WAIT_MS_PERMANENT
        } else {
            let doubled = 1 << self.attempts.min(20);
            WAIT_MS.saturating_mul(doubled).min(WAIT_MS_MAX)
        };
        let wait = delay_ms.map_or(wait, |delay| delay.clamp(WAIT_MS, WAIT_MS_PERMANENT));
        self.state = CallState::Failed;
        self.attempts = self.attempts.saturating_add(1);
        self.at = now;
        self.next_at = now.saturating_add(wait);
        self.reason = Some(reason.into());
        self
    }

    /// Whether the URL is registered, as far as is known.
    pub fn is_registered(&self) -> bool {
        self.act == RegistrationAct::Activate && self.state == CallState::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::value::RawValue;

    const NOW: u64 = 1_000_000;

    fn subject(url: &str) -> Subject {
        Subject {
            url: url.into(),
            made_with: "with".into(),
        }
    }

    fn id(number: u8) -> MessageId {
        MessageId::from_bytes([number; 16])
    }

    fn called(act: RegistrationAct, url: &str) -> Registration {
        Registration::called("hooked", None, act, Some(&subject(url)), id(1), NOW).unwrap()
    }

    fn activated() -> Registration {
        let kept = RawValue::from_string("{\"id\":7}".into()).unwrap();
        let outcome = RegistrationOutcome::Activated { kept: Some(kept) };
        let record = called(RegistrationAct::Activate, "u");
        record.answered(outcome, NOW).unwrap()
    }

    fn failure(delay_ms: Option<u64>, is_permanent: bool) -> RegistrationOutcome {
        RegistrationOutcome::Failed {
            reason: "the source says 500".into(),
            delay_ms,
            is_permanent,
        }
    }

    #[test]
    fn a_trigger_is_called_until_what_should_be_registered_is() {
        use RegistrationAct::{Activate, Deactivate};
        let (wanted, other) = (subject("u"), subject("v"));
        let open = called(Activate, "u");
        let failed = open.clone().answered(failure(None, false), NOW).unwrap();
        let done = activated();
        let late = NOW + ANSWER_MS;
        let check = |wanted: Option<&Subject>, record: Option<&Registration>, now, expect| {
            assert_eq!(decide(wanted, record, now), expect, "{wanted:?} {record:?}");
        };
        check(None, None, NOW, Decision::Nothing);
        check(Some(&wanted), None, NOW, Decision::Call(Activate));
        check(
            Some(&wanted),
            Some(&open),
            NOW,
            Decision::Wait { until: late },
        );
        check(Some(&wanted), Some(&open), late, Decision::Unanswered);
        let until = NOW + WAIT_MS;
        check(Some(&wanted), Some(&failed), NOW, Decision::Wait { until });
        check(
            Some(&wanted),
            Some(&failed),
            until,
            Decision::Call(Activate),
        );
        check(Some(&wanted), Some(&done), late, Decision::Nothing);
        // Another URL is registered at once, also if the last one could not be.
        check(Some(&other), Some(&failed), NOW, Decision::Call(Activate));
        check(Some(&other), Some(&done), NOW, Decision::Call(Activate));
        // What is under way is heard first: what it kept is needed to take it back.
        check(None, Some(&open), NOW, Decision::Wait { until: late });
        check(None, Some(&failed), NOW, Decision::Call(Deactivate));
        check(None, Some(&done), NOW, Decision::Call(Deactivate));
    }

    #[test]
    fn what_may_be_registered_is_taken_back() {
        use RegistrationAct::Deactivate;
        let next = |before: Registration, number| {
            Registration::called("hooked", Some(before), Deactivate, None, id(number), NOW).unwrap()
        };
        let record = next(activated(), 2);
        assert_eq!(record.kept.as_deref(), Some("{\"id\":7}"));
        assert_eq!(record.subject, subject("u"));
        let failed = record.answered(failure(None, false), NOW).unwrap();
        let wait = decide(None, Some(&failed), NOW);
        assert_eq!(
            wait,
            Decision::Wait {
                until: NOW + WAIT_MS
            }
        );
        // Wanted again in the meantime: it is registered again.
        let again = decide(Some(&subject("u")), Some(&failed), NOW);
        assert_eq!(again, Decision::Call(RegistrationAct::Activate));
        let record = next(failed, 3);
        assert_eq!((record.attempts, record.state), (1, CallState::Open));
        assert_eq!(record.answered(RegistrationOutcome::Deactivated, NOW), None);
    }

    #[test]
    fn each_wait_is_longer_and_none_is_too_long() {
        let mut record = called(RegistrationAct::Activate, "u");
        let mut waits = Vec::new();
        for _ in 0..12 {
            record.state = CallState::Open;
            record = record.answered(failure(None, false), NOW).unwrap();
            waits.push(record.next_at - NOW);
        }
        assert_eq!(waits[..4], [1_000, 2_000, 4_000, 8_000]);
        assert_eq!(waits[11], WAIT_MS_MAX);
        let wait = |delay, is_permanent| {
            let open = called(RegistrationAct::Activate, "u");
            let failed = open.answered(failure(delay, is_permanent), NOW).unwrap();
            failed.next_at - NOW
        };
        assert_eq!(wait(None, true), WAIT_MS_PERMANENT);
        assert_eq!(wait(Some(30_000), false), 30_000);
        assert_eq!(wait(Some(0), false), WAIT_MS);
        assert_eq!(wait(Some(u64::MAX), false), WAIT_MS_PERMANENT);
    }

    #[test]
    fn what_was_done_is_not_undone_by_a_failure_told_later() {
        let record = activated().answered(failure(None, false), NOW).unwrap();
        assert!(record.is_registered());
        assert_eq!(record.reason, None);
        // Nor does an agent say of one act that it was the other.
        let record = record.answered(RegistrationOutcome::Deactivated, NOW);
        assert!(record.unwrap().is_registered());
    }
}
