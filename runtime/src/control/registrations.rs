//! Triggers that register the flow's URL at their source: calling them, and letting flows go.
//!
//! [`crate::registration`] decides; here it is done. A call goes to one agent of the trigger, and the
//! office records what it answers.
//!
//! # Invariants
//!
//! - A call is recorded before it is made.
//! - `a_flow_goes_when_its_trigger_has_taken_back_what_it_registered`, and not before, unless whoever
//!   deletes it says so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;
use towpath_flow::{Fires, Flow, Step};
use towpath_protocol::MessageId;
use towpath_protocol::office::{AgentState, Register, RegistrationAct, ToAgent};

use super::Control;
use super::error::ControlError;
use super::view::{RegistrationState, RegistrationView};
use crate::broker::topology::Entries;
use crate::engine::{Image, chain};
use crate::inquiry::Address;
use crate::reconcile::DesiredStep;
use crate::registration::{CallState, Decision, Registration, Subject, decide};
use crate::store::flows::{Deletion, FlowRecord};

/// The longest time between two looks.
const LOOK: Duration = Duration::from_secs(5);

/// The shortest.
const PACE: Duration = Duration::from_millis(200);

/// How old the last word of an agent may be that is called.
const FRESH_MS: u64 = 30_000;

/// What cannot be looked at, by flow, so that it is said once.
type Troubled = BTreeMap<String, String>;

impl Control {
    /// Sees to it that triggers are registered as they should be, until `stop`.
    pub async fn run_registrations(self: Arc<Self>, stop: CancellationToken) {
        let mut live = self.live.subscribe();
        let mut troubled = Troubled::new();
        loop {
            let next = self.look_at_registrations(&mut troubled).await;
            let now = (self.scheduler.clock)();
            let rest = Duration::from_millis(next.saturating_sub(now)).clamp(PACE, LOOK);
            // All are cancel-safe: they only wait.
            tokio::select! {
                () = stop.cancelled() => return,
                changed = live.changed() => if changed.is_err() { return },
                () = self.registrations_changed.notified() => {}
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    /// Looks at every flow once; returns when to look again at the latest.
    async fn look_at_registrations(&self, troubled: &mut Troubled) -> u64 {
        let store = &self.catalog.store;
        let (records, called) = match tokio::try_join!(store.flows(), store.registrations()) {
            Ok(both) => both,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "cannot look at registrations; trying on");
                return u64::MAX;
            }
        };
        let mut next = u64::MAX;
        for record in &records {
            let was_called = called.contains_key(&record.name);
            match self.look_at_registration(record, was_called).await {
                Ok(until) => {
                    next = next.min(until);
                    troubled.remove(&record.name);
                }
                Err(error) => {
                    let text = error.to_string();
                    let before = troubled.insert(record.name.clone(), text.clone());
                    if before.as_ref() != Some(&text) {
                        tracing::warn!(
                            flow = record.name,
                            error = text,
                            "its trigger cannot be registered, or its registration taken back, now; trying on"
                        );
                    }
                }
            }
        }
        let names: BTreeSet<&String> = records.iter().map(|record| &record.name).collect();
        troubled.retain(|flow, _| names.contains(flow));
        next
    }

    /// Looks at one flow: calls its trigger if that is due, lets the flow go if it may. Returns when to
    /// look again.
    async fn look_at_registration(
        &self,
        record: &FlowRecord,
        was_called: bool,
    ) -> Result<u64, ControlError> {
        let flow = self.catalog.flow(record)?;
        let last = if was_called {
            self.catalog.store.registration(&record.name).await?
        } else {
            None
        };
        if last.is_none() && record.deleting.is_some() {
            self.finish_delete(&record.name).await?;
            return Ok(u64::MAX);
        }
        if last.is_none() && !self.registers(record, &flow).await? {
            return Ok(u64::MAX);
        }
        let Some((trigger, subject)) = self.desired_trigger(record).await? else {
            return Ok(u64::MAX);
        };
        let wanted = Some(subject).filter(|_| record.deleting.is_none());
        let now = (self.scheduler.clock)();
        match decide(wanted.as_ref(), last.as_ref(), now) {
            Decision::Nothing => Ok(u64::MAX),
            Decision::Wait { until } => Ok(until),
            Decision::Unanswered => {
                if let Some(last) = &last {
                    self.failed(last.call, "nothing was heard of the last call in time")
                        .await?;
                }
                Ok(now)
            }
            Decision::Call(act) => {
                let Some(agent) = self.agent_to_call(record, &trigger, now) else {
                    return Ok(u64::MAX);
                };
                self.call(record, last, act, wanted.as_ref(), &agent, now)
                    .await?;
                Ok(u64::MAX)
            }
        }
    }

    /// Records a call, and makes it.
    async fn call(
        &self,
        record: &FlowRecord,
        last: Option<Registration>,
        act: RegistrationAct,
        wanted: Option<&Subject>,
        agent: &Address,
        now: u64,
    ) -> Result<(), ControlError> {
        let call = MessageId::from_bytes(uuid::Uuid::now_v7().into_bytes());
        let Some(next) = Registration::called(&record.name, last, act, wanted, call, now) else {
            return Ok(());
        };
        let kept = next.kept.clone();
        let register = ToAgent::Register(Register {
            call,
            act,
            url: next.subject.url.clone(),
            kept: kept.and_then(|kept| RawValue::from_string(kept).ok()),
        });
        self.catalog.store.registration_called(next).await?;
        let flow = &record.name;
        tracing::info!(flow, %call, ?act, replica = agent.identity.replica, "called its trigger to register or to take that back");
        let body = serde_json::to_vec(&register).expect("a call is JSON");
        let sent = self
            .broker
            .reply(&agent.reply_to, &call.to_string(), body.into())
            .await;
        if let Err(error) = sent {
            self.failed(call, &format!("it cannot be called: {}", chain(&error)))
                .await?;
        }
        Ok(())
    }

    async fn failed(&self, call: MessageId, reason: &str) -> Result<(), ControlError> {
        let now = (self.scheduler.clock)();
        let failed = |last: Registration| Some(last.failed(reason, None, false, now));
        self.catalog
            .store
            .registration_answered(call, failed)
            .await?;
        Ok(())
    }

    /// Deletes a flow of which nothing is registered any more, unless messages wait in its queues and
    /// are to be kept.
    async fn finish_delete(&self, flow: &str) -> Result<(), ControlError> {
        let _alone = self.applying.lock().await;
        // It may have been applied again, or be gone.
        let Some(record) = self.catalog.store.flow(flow).await? else {
            return Ok(());
        };
        let Some(deleting) = record.deleting else {
            return Ok(());
        };
        let checked = self.catalog.flow(&record)?;
        self.delete_now(&checked, deleting == Deletion::WithMessages)
            .await
    }

    /// Whether the trigger of a flow registers by itself: its image says so.
    pub(super) async fn registers(
        &self,
        record: &FlowRecord,
        flow: &Flow,
    ) -> Result<bool, ControlError> {
        let Some(trigger) = trigger(flow) else {
            return Ok(false);
        };
        let Some(id) = record.images.get(&trigger.image) else {
            return Ok(false);
        };
        let image = self.catalog.image(&trigger.image, id).await;
        let image = image.map_err(|error| ControlError::engine(&error))?;
        Ok(image.is_ok_and(|image| registers(&image)))
    }

    /// The trigger of a flow as it should be, and what that is to register; none if it cannot be made.
    async fn desired_trigger(
        &self,
        record: &FlowRecord,
    ) -> Result<Option<(DesiredStep, Subject)>, ControlError> {
        // What it hands over, and to whom, makes no difference to what is registered.
        let entries: Entries = self.catalog.entries().await?;
        let desired = self.catalog.desired_of(record, &entries).await;
        let desired = desired.map_err(|error| ControlError::engine(&error))?;
        let id = desired.flow.trigger_id.clone();
        let trigger = desired.steps.into_iter().find(|step| step.id == id);
        let subject = |trigger: &DesiredStep| {
            let key = record.webhook_key.as_ref()?;
            let blueprint = trigger.blueprint.as_ref()?;
            Some(Subject {
                url: self.webhook_url(&record.name, key),
                made_with: blueprint.configured(&self.catalog.ground.key),
            })
        };
        Ok(trigger.and_then(|trigger| subject(&trigger).map(|subject| (trigger, subject))))
    }

    /// An agent of the trigger, as it should be now, that can be called.
    fn agent_to_call(
        &self,
        record: &FlowRecord,
        trigger: &DesiredStep,
        now: u64,
    ) -> Option<Address> {
        let ready: BTreeSet<_> = self
            .seen(&record.name, &trigger.id)
            .into_iter()
            .filter(|report| {
                matches!(
                    report.state,
                    AgentState::Running | AgentState::Paused | AgentState::HeldBack
                ) && report.identity.spec == trigger.spec
            })
            .map(|report| report.identity)
            .collect();
        let mut addresses = self
            .reports
            .addresses(now.saturating_sub(FRESH_MS))
            .into_iter();
        addresses.find(|address| ready.contains(&address.identity))
    }

    /// How the registration of a flow is, if its trigger registers.
    pub(super) async fn registration_view(
        &self,
        record: &FlowRecord,
        flow: &Flow,
        last: Option<&Registration>,
    ) -> Result<Option<RegistrationView>, ControlError> {
        if last.is_none() && !self.registers(record, flow).await? {
            return Ok(None);
        }
        Ok(Some(view(record, last)))
    }
}

/// How a registration is.
fn view(record: &FlowRecord, last: Option<&Registration>) -> RegistrationView {
    let waits = || format!("waits for a container of its trigger in `{}`", record.name);
    let Some(last) = last else {
        return RegistrationView {
            state: RegistrationState::Registering,
            url: None,
            since: None,
            attempts: 0,
            next_at: None,
            reason: Some(waits()),
        };
    };
    let state = match (last.act, last.is_registered(), record.deleting) {
        (_, _, Some(_)) | (RegistrationAct::Deactivate, ..) => RegistrationState::Unregistering,
        (RegistrationAct::Activate, true, None) => RegistrationState::Registered,
        (RegistrationAct::Activate, false, None) => RegistrationState::Registering,
    };
    let is_failed = last.state == CallState::Failed;
    RegistrationView {
        state,
        url: Some(last.subject.url.clone()),
        since: last.is_registered().then_some(last.at),
        attempts: last.attempts,
        next_at: is_failed.then_some(last.next_at),
        reason: last.reason.clone(),
    }
}

/// The trigger of a flow, if it is a webhook that runs as a container.
pub(super) fn trigger(flow: &Flow) -> Option<&Step> {
    let mut steps = flow.steps.iter();
    steps.find(|step| step.is_trigger && flow.fires == Fires::Webhook)
}

/// Whether an image says that it registers by itself.
pub(super) fn registers(image: &Image) -> bool {
    let manifest = image.manifest.as_ref();
    manifest.is_some_and(|manifest| manifest.registers)
}

#[cfg(test)]
#[path = "registrations_tests.rs"]
mod tests;
