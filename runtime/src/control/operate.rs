//! What an operator does to a flow: scale and delete.
//!
//! # Invariants
//!
//! - `only_delete_with_drop_messages_drops_messages`.
//! - Every verb may be repeated: the second time changes nothing, and says so.

use std::sync::Arc;

use towpath_flow::limits::REPLICAS;
use towpath_flow::{Flow, Replicas, nearest};

use super::Control;
use super::error::{ControlError, ErrorKind};
use super::view::Done;
use crate::broker::topology::Names;
use crate::store::flows::{Deletion, FlowRecord};

/// What may be given up for a flow to be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeleteChoices {
    /// The messages in its queues.
    pub drop_messages: bool,
    /// That its trigger takes back what it registered at its source.
    pub leave_registered: bool,
}

impl Control {
    /// Says how many replicas a step should have, whatever the flow file says.
    pub async fn scale(&self, flow: &str, step: &str, replicas: u32) -> Result<Done, ControlError> {
        let _alone = self.applying.lock().await;
        let (record, checked) = self.record(flow).await?;
        let model = find_step(&checked, step)?;
        if model.is_trigger {
            let message =
                format!("`{step}` is the trigger of `{flow}`, and a trigger has one replica");
            return Err(
                ControlError::new(ErrorKind::Conflict, "trigger_not_scalable", message)
                    .hint("two would read the same source twice; scale the steps after it"),
            );
        }
        if !REPLICAS.contains(&u64::from(replicas)) {
            let message = format!(
                "a step has from {} to {} replicas",
                REPLICAS.start(),
                REPLICAS.end()
            );
            return Err(ControlError::new(ErrorKind::Bad, "bad_replicas", message)
                .hint("`towpath stop` removes all containers and keeps the messages"));
        }
        let now = match record.scales.get(step) {
            Some(count) => Replicas::Fixed(*count),
            None => model.replicas,
        };
        let is_new = now != Replicas::Fixed(replicas);
        if is_new {
            self.catalog.store.set_scale(flow, step, replicas).await?;
            tracing::info!(flow, step, replicas, before = %now, "scaled");
            self.changed().await?;
        }
        Ok(Done {
            changed: is_new,
            message: if is_new {
                format!("`{step}` of `{flow}` goes from {now} to {replicas}")
            } else {
                format!("`{step}` of `{flow}` has {replicas} already")
            },
        })
    }

    /// Lets the flow file say again how many replicas a step has.
    pub async fn unscale(&self, flow: &str, step: &str) -> Result<Done, ControlError> {
        let _alone = self.applying.lock().await;
        let (record, checked) = self.record(flow).await?;
        let model = find_step(&checked, step)?;
        let is_held = record.scales.contains_key(step);
        if is_held {
            self.catalog.store.clear_scale(flow, step).await?;
            tracing::info!(flow, step, replicas = %model.replicas, "scaled as the file says");
            self.changed().await?;
        }
        let when = if is_held { "again" } else { "already" };
        Ok(Done {
            changed: is_held,
            message: format!(
                "`{step}` of `{flow}` has as many replicas as the flow file says {when}: {}",
                model.replicas
            ),
        })
    }

    /// Forgets a flow and removes all it made. Refused while its queues hold something, unless
    /// that may be dropped. If its trigger is registered at its source, it takes that back first,
    /// unless it may be left there.
    pub async fn delete(&self, flow: &str, choices: DeleteChoices) -> Result<Done, ControlError> {
        let DeleteChoices {
            drop_messages,
            leave_registered,
        } = choices;
        let _alone = self.applying.lock().await;
        let (record, checked) = self.record(flow).await?;
        let called = self.catalog.store.registrations().await?;
        if leave_registered || !called.contains_key(flow) {
            self.delete_now(&checked, drop_messages).await?;
            return Ok(Done {
                changed: true,
                message: format!("`{flow}` is deleted"),
            });
        }
        self.refuse_delete(&checked, drop_messages).await?;
        let deletion = if drop_messages {
            Deletion::WithMessages
        } else {
            Deletion::WhenEmpty
        };
        let changed = record.deleting != Some(deletion);
        if changed {
            self.catalog
                .store
                .set_deleting(flow, Some(deletion))
                .await?;
            tracing::info!(
                flow,
                drop_messages,
                "it goes when nothing of it is registered"
            );
            self.changed().await?;
        }
        Ok(Done {
            changed,
            message: format!(
                "`{flow}` is being deleted: `{}` takes back what it registered at its source first; `towpath status {flow}` shows it, and `--leave-registered` does not wait for it",
                checked.trigger_id
            ),
        })
    }

    /// Refuses to delete a flow that others hand messages to, or that has messages which are to be
    /// kept.
    async fn refuse_delete(&self, flow: &Flow, drop_messages: bool) -> Result<(), ControlError> {
        self.refuse_if_handed_to(&flow.name, "would be gone")
            .await?;
        if drop_messages {
            return Ok(());
        }
        let steps: Vec<String> = flow.steps.iter().map(|step| step.id.clone()).collect();
        self.refuse_full_queues(&flow.name, &steps).await
    }

    /// Forgets a flow and removes all it made.
    pub(super) async fn delete_now(
        &self,
        checked: &Flow,
        drop_messages: bool,
    ) -> Result<(), ControlError> {
        self.refuse_delete(checked, drop_messages).await?;
        let flow = &*checked.name;
        // With a queue it goes when the last of them does.
        let has_queues = !checked.steps.is_empty();
        self.catalog
            .store
            .delete_flow(flow, queue_parts(checked), drop_messages)
            .await?;
        self.reports.forget_flow(flow);
        tracing::info!(flow, drop_messages, "deleted a flow");
        self.changed().await?;
        self.removals.notify_one();
        if !has_queues && let Err(trouble) = self.remove_exchanges(vec![flow.to_owned()]).await {
            tracing::warn!(flow, "the exchange of a deleted flow stays: {trouble}");
        }
        Ok(())
    }

    /// Refuses if messages are in one of the steps' queues, in hand, or to be tried again, with counts.
    async fn refuse_full_queues(&self, flow: &str, steps: &[String]) -> Result<(), ControlError> {
        if steps.is_empty() {
            return Ok(());
        }
        let of_steps: Vec<Vec<String>> = steps
            .iter()
            .map(|step| self.queues_of(flow, step))
            .collect();
        let depths = self.broker.depths(&of_steps.concat()).await?;
        let mut full = Vec::new();
        for (step, queues) in steps.iter().zip(&of_steps) {
            let ready = queues.iter().filter_map(|queue| depths.get(queue));
            let ready = ready.map(|depth| depth.ready).sum::<u64>();
            let held = self.held(flow, step);
            if ready + held > 0 {
                let messages = self.messages_in(flow, step, ready).max(ready) + held;
                full.push(format!("`{step}` about {messages}"));
            }
        }
        let all: Vec<&str> = steps.iter().map(String::as_str).collect();
        let waiting = self.waiting(flow, &all).await?;
        if waiting > 0 {
            full.push(format!("{waiting} that are to be tried again"));
        }
        if full.is_empty() {
            return Ok(());
        }
        let message = format!(
            "messages wait for a step that would be deleted: {}",
            full.join(", ")
        );
        Err(ControlError::new(ErrorKind::Conflict, "queues_not_empty", message).hint(
            "let the flow finish them first, or drop them with `--drop-messages` (`drop_messages` in the API)",
        ))
    }

    /// A flow's record and its checked form.
    pub(super) async fn record(&self, flow: &str) -> Result<(FlowRecord, Arc<Flow>), ControlError> {
        let record = self.catalog.store.flow(flow).await?;
        let Some(record) = record else {
            return Err(self.no_flow(flow).await);
        };
        let checked = self.catalog.flow(&record)?;
        Ok((record, checked))
    }

    /// There is no such flow; but there may be one with a name that is near.
    pub(super) async fn no_flow(&self, flow: &str) -> ControlError {
        let names: Vec<String> = match self.catalog.store.flows().await {
            Ok(flows) => flows.into_iter().map(|flow| flow.name).collect(),
            Err(error) => return error.into(),
        };
        let error = ControlError::no_flow(flow);
        match nearest(flow, names.iter().map(String::as_str)) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None => error,
        }
    }
}

/// The ends of the names of all queues of a flow's steps.
pub(super) fn queue_parts(flow: &Flow) -> Vec<String> {
    let steps = flow.steps.iter();
    steps
        .flat_map(|step| {
            let partitions = step.order.as_ref().map(|order| order.partitions);
            Names::queue_parts(&step.id, partitions)
        })
        .collect()
}

/// A step of a flow, by its id.
pub(super) fn find_step<'a>(
    flow: &'a Flow,
    step: &str,
) -> Result<&'a towpath_flow::Step, ControlError> {
    flow.steps.iter().find(|it| it.id == step).ok_or_else(|| {
        let steps: Vec<&str> = flow.steps.iter().map(|it| it.id.as_str()).collect();
        ControlError::no_step(&flow.name, step, &steps)
    })
}
