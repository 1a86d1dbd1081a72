//! A trigger that registers the flow's URL at its source, when the control plane calls it to.
//!
//! A call is no message: it is handed over beside them, also while the agent is paused, and is neither
//! retried here nor ever a dead letter. What came of it is told as news; if that is lost, or the call
//! was, the control plane calls again.
//!
//! # Invariants
//!
//! - `a_call_to_register_is_told_however_it_ends` (tests/registering.rs): answered, taken too long, or
//!   left by a process that died.
//! - `an_answer_to_a_call_that_was_given_up_changes_nothing`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::value::RawValue;
use towpath_protocol::frame::{Activate, Cancel, Deactivate, Failed, Fate, ToStep};
use towpath_protocol::office::{
    NEWS_KEY, News, REGISTRATION_MS, Register, RegistrationAct, RegistrationOutcome,
};
use towpath_protocol::{KEPT_BYTES_MAX, MessageId};

use super::{Core, Step};
use crate::broker::{Command, Content, Publish};
use crate::clock::Now;

/// What the trigger is called to do.
#[derive(Default)]
pub(super) struct Registering {
    open: Option<Call>,
    /// Calls that the step has and nobody waits for any more.
    given_up: BTreeSet<MessageId>,
}

struct Call {
    register: Register,
    deadline: Instant,
    /// The step has it.
    is_handed: bool,
}

impl Core {
    /// Takes a call. It takes the place of one that is under way: nobody waits for that any more.
    pub(super) fn on_register(&mut self, register: Register, now: Now) {
        self.give_up_call();
        let text = format!("the trigger is called to {}", words(register.act));
        self.logger.agent("info", Some(register.call), &text);
        self.registering.open = Some(Call {
            register,
            deadline: now.instant + Duration::from_millis(REGISTRATION_MS),
            is_handed: false,
        });
        if self.drain.is_some() {
            self.leave_call();
        }
        self.hand_call();
    }

    /// Hands the call over, if there is one and the step is there.
    pub(super) fn hand_call(&mut self) {
        let Some(call) = &mut self.registering.open else {
            return;
        };
        if self.step != Step::Ready || call.is_handed {
            return;
        }
        call.is_handed = true;
        let Register {
            call: id,
            act,
            url,
            kept,
        } = &call.register;
        let (id, url, kept) = (*id, url.as_str().into(), kept.as_deref());
        let frame = match act {
            RegistrationAct::Activate => ToStep::Activate(Activate { id, url, kept }),
            RegistrationAct::Deactivate => ToStep::Deactivate(Deactivate { id, url, kept }),
        };
        serde_json::to_writer(&mut self.to_step, &frame).expect("a frame is JSON");
        self.to_step.push(b'\n');
    }

    /// Whether the step has, or had, a call of this id.
    pub(super) fn has_call(&self, id: MessageId) -> bool {
        let open = self.registering.open.as_ref();
        open.is_some_and(|open| open.register.call == id) || self.registering.given_up.contains(&id)
    }

    /// The step has registered.
    pub(super) fn on_activated(&mut self, id: MessageId, kept: Option<&RawValue>) {
        let bytes = kept.map_or(0, |kept| kept.get().len());
        let outcome = if bytes > KEPT_BYTES_MAX {
            failure(format!(
                "what the step wants to be kept has {bytes} bytes, and at most {KEPT_BYTES_MAX} are allowed"
            ))
        } else {
            RegistrationOutcome::Activated {
                kept: kept.map(ToOwned::to_owned),
            }
        };
        self.call_answered(id, Some(RegistrationAct::Activate), outcome);
    }

    /// The step has taken back what it registered.
    pub(super) fn on_deactivated(&mut self, id: MessageId) {
        let outcome = RegistrationOutcome::Deactivated;
        self.call_answered(id, Some(RegistrationAct::Deactivate), outcome);
    }

    /// The step could do neither.
    pub(super) fn on_call_failed(&mut self, failed: &Failed<'_>) {
        let mut reason = failed.reason.to_string();
        for cause in &failed.chain {
            reason = format!("{reason}: {cause}");
        }
        let outcome = RegistrationOutcome::Failed {
            reason: self.setup.redact.apply(&reason),
            delay_ms: failed.delay_ms,
            is_permanent: failed.fate == Fate::Permanent,
        };
        self.call_answered(failed.id, None, outcome);
    }

    fn call_answered(
        &mut self,
        id: MessageId,
        act: Option<RegistrationAct>,
        outcome: RegistrationOutcome,
    ) {
        if self.registering.given_up.remove(&id) {
            return;
        }
        let open = self
            .registering
            .open
            .take_if(|open| open.register.call == id);
        let Some(open) = open else {
            return;
        };
        let is_odd = act.is_some_and(|act| act != open.register.act);
        let outcome = if is_odd {
            failure("the step answered another call than the one it had".to_owned())
        } else {
            outcome
        };
        self.tell_outcome(id, outcome);
    }

    /// The agent is about to leave.
    pub(super) fn leave_call(&mut self) {
        if let Some(id) = self.give_up_call() {
            self.tell_outcome(id, failure("its container is leaving".to_owned()));
        }
    }

    /// The step process is gone, with all it had. A call that it did not have yet is for the next one.
    pub(super) fn forget_calls(&mut self, reason: &str) {
        self.registering.given_up.clear();
        if let Some(open) = self.registering.open.take_if(|open| open.is_handed) {
            self.tell_outcome(open.register.call, failure(reason.to_owned()));
        }
    }

    /// Gives up a call that takes too long.
    pub(super) fn check_call(&mut self, now: Now) {
        let open = self.registering.open.as_ref();
        if open.is_none_or(|open| now.instant < open.deadline) {
            return;
        }
        let limit = crate::exit::duration(REGISTRATION_MS);
        let reason = format!("the step did not answer within {limit}");
        if let Some(id) = self.give_up_call() {
            self.tell_outcome(id, failure(reason));
        }
    }

    pub(super) fn next_call_deadline(&self) -> Option<Instant> {
        self.registering.open.as_ref().map(|open| open.deadline)
    }

    /// Has the step leave the call that it has.
    fn give_up_call(&mut self) -> Option<MessageId> {
        let open = self.registering.open.take()?;
        let id = open.register.call;
        if open.is_handed {
            let frame = ToStep::Cancel(Cancel {
                id,
                reason: "timeout".into(),
            });
            serde_json::to_writer(&mut self.to_step, &frame).expect("a frame is JSON");
            self.to_step.push(b'\n');
            self.registering.given_up.insert(id);
        }
        Some(id)
    }

    /// Tells the control plane. While the broker is away nothing is told, and it calls again.
    fn tell_outcome(&mut self, call: MessageId, outcome: RegistrationOutcome) {
        let text = match &outcome {
            RegistrationOutcome::Failed { reason, .. } => format!("the call failed: {reason}"),
            _ => "the call is done".to_owned(),
        };
        self.logger.agent("info", Some(call), &text);
        if !self.is_up {
            return;
        }
        let news = News::Registration {
            identity: self.setup.identity.clone(),
            call,
            outcome,
        };
        let payload = serde_json::to_vec(&news).expect("news is JSON");
        let publish = Publish {
            number: self.lanes.take_number(),
            exchange: self.setup.routes.office_exchange.as_str().into(),
            key: NEWS_KEY.into(),
            content: Content::News,
            count: 1,
            payload: Bytes::from(payload),
            answer: None,
        };
        self.tell(Command::Publish(publish));
    }
}

fn failure(reason: String) -> RegistrationOutcome {
    RegistrationOutcome::Failed {
        reason,
        delay_ms: None,
        is_permanent: false,
    }
}

fn words(act: RegistrationAct) -> &'static str {
    match act {
        RegistrationAct::Activate => "register at its source",
        RegistrationAct::Deactivate => "take back what it registered at its source",
    }
}
