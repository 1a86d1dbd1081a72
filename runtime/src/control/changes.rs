//! What is different between two versions of a flow, step by step, each with its reason: pure.
//!
//! # Invariants
//!
//! - `every_change_has_a_reason`.
//! - `what_is_not_named_is_not_touched`: a step is replaced exactly if the hash of what it is made
//!   from differs.

use towpath_flow::{Fires, Flow, Missed, Overlap, ScaleBy, Step};

use super::view::{Change, ChangeAction};
use crate::reconcile::{DesiredFlow, DesiredStep};
use crate::store::flows::FlowRecord;

/// Lists what changes from `old` to `new`.
pub(super) fn changes(
    before: Option<&FlowRecord>,
    old: Option<&DesiredFlow>,
    new: &DesiredFlow,
) -> Vec<Change> {
    let mut changes = Vec::new();
    let change = |action, step: Option<&str>, reason: String| Change {
        action,
        step: step.map(str::to_owned),
        reason,
    };
    let Some(old) = old else {
        for step in &new.steps {
            let reason = format!("the flow is new: {}", replicas(step));
            changes.push(change(ChangeAction::Create, Some(&step.id), reason));
        }
        for handover in &new.flow.handovers {
            let reason = format!("the flow is new: messages go to `{}`", handover.to);
            changes.push(change(ChangeAction::Create, Some(&handover.id), reason));
        }
        return changes;
    };
    let (from, to) = (&old.flow, &new.flow);
    if from.fires != to.fires {
        let reason = format!(
            "it fires `{}` in place of `{}`",
            fires(&to.fires),
            fires(&from.fires)
        );
        changes.push(change(ChangeAction::Update, Some(&to.trigger_id), reason));
    }
    if (from.overlap, from.missed) != (to.overlap, to.missed) {
        let reason = format!(
            "what is due while it runs {}, and what is due while nobody is there {}",
            overlap(to.overlap),
            missed(to.missed)
        );
        changes.push(change(ChangeAction::Update, Some(&to.trigger_id), reason));
    }
    if from.fires == to.fires && from.webhook != to.webhook {
        let reason = "what its webhook asks of requests changed".to_owned();
        changes.push(change(ChangeAction::Update, Some(&to.trigger_id), reason));
    }
    for step in &new.steps {
        let model = to.steps.iter().find(|it| it.id == step.id);
        let was = old.steps.iter().find(|it| it.id == step.id);
        let model_was = from.steps.iter().find(|it| it.id == step.id);
        let (Some(model), Some(was), Some(model_was)) = (model, was, model_was) else {
            let reason = "it is new in the file".to_owned();
            changes.push(change(ChangeAction::Create, Some(&step.id), reason));
            continue;
        };
        if was.spec != step.spec {
            let reason = differences(model_was, model, was, step);
            changes.push(change(ChangeAction::Replace, Some(&step.id), reason));
        }
        if model_was.when != model.when {
            let reason = condition(model.when.as_deref());
            changes.push(change(ChangeAction::Update, Some(&step.id), reason));
        }
        if (was.replicas, was.autoscale) != (step.replicas, step.autoscale) {
            let reason = format!("{} in place of {}", replicas(step), replicas(was));
            changes.push(change(ChangeAction::Scale, Some(&step.id), reason));
        }
    }
    for step in &old.steps {
        if new.steps.iter().all(|it| it.id != step.id) {
            let reason = "it is no longer in the file".to_owned();
            changes.push(change(ChangeAction::Remove, Some(&step.id), reason));
        }
    }
    for (action, step, reason) in handed(from, to) {
        changes.push(change(action, Some(step), reason));
    }
    if changes.is_empty() {
        let reason = if from.description != to.description {
            "its description changed; nothing that runs is touched"
        } else if before.is_some() {
            "the file changed in a way that touches nothing that runs"
        } else {
            "it is stored"
        };
        changes.push(change(ChangeAction::Update, None, reason.to_owned()));
    }
    changes
}

/// What changes of what is handed to other flows.
fn handed<'f>(from: &'f Flow, to: &'f Flow) -> Vec<(ChangeAction, &'f str, String)> {
    let mut changes = Vec::new();
    for is in &to.handovers {
        let Some(was) = from.handovers.iter().find(|it| it.id == is.id) else {
            let reason = format!("it is new in the file: messages go to `{}`", is.to);
            changes.push((ChangeAction::Create, is.id.as_str(), reason));
            continue;
        };
        if was.to != is.to {
            let reason = format!("messages go to `{}` in place of `{}`", is.to, was.to);
            changes.push((ChangeAction::Update, &is.id, reason));
        }
        if was.when != is.when {
            changes.push((ChangeAction::Update, &is.id, condition(is.when.as_deref())));
        }
    }
    let gone = from.handovers.iter();
    let gone = gone.filter(|was| to.handovers.iter().all(|is| is.id != was.id));
    changes.extend(gone.map(|was| {
        let reason = "it is no longer in the file".to_owned();
        (ChangeAction::Remove, was.id.as_str(), reason)
    }));
    changes
}

/// What comes to a step with this condition.
fn condition(when: Option<&str>) -> String {
    match when {
        Some(when) => format!("it takes only what `{when}` holds for"),
        None => "it takes everything that comes to it".to_owned(),
    }
}

/// How many replicas a step has, and what counts them.
fn replicas(step: &DesiredStep) -> String {
    match (step.autoscale, step.replicas) {
        (Some(auto), _) => match auto.by {
            ScaleBy::Backlog { per_replica } => {
                format!("{auto} replicas, one for {per_replica} messages")
            }
            ScaleBy::Latency(target) => {
                format!("{auto} replicas, to finish within {}", span(target))
            }
        },
        (None, 1) => "1 replica".to_owned(),
        (None, count) => format!("{count} replicas"),
    }
}

/// What sets a flow off that takes what others hand over.
pub(crate) const FROM_FLOWS: &str = "from flows";

/// What sets a flow off, in a word or two.
pub(super) fn fires(fires: &Fires) -> String {
    match fires {
        Fires::Webhook => "webhook".to_owned(),
        Fires::Flows => FROM_FLOWS.to_owned(),
        Fires::Stream => "stream".to_owned(),
        Fires::Cron(cron) => format!("cron {cron}"),
        Fires::Every(duration) => format!("every {}", span(*duration)),
    }
}

fn overlap(overlap: Overlap) -> &'static str {
    match overlap {
        Overlap::Skip => "is left out",
        Overlap::QueueOne => "comes once when it has ended",
    }
}

fn missed(missed: Missed) -> &'static str {
    match missed {
        Missed::Skip => "is left out",
        Missed::Once => "comes once",
    }
}

/// A duration in the largest unit that says it exactly.
fn span(duration: std::time::Duration) -> String {
    let ms = duration.as_millis();
    for (unit, length) in [
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1_000),
    ] {
        if ms >= length && ms.is_multiple_of(length) {
            return format!("{}{unit}", ms / length);
        }
    }
    format!("{ms}ms")
}

fn differences(from: &Step, to: &Step, was: &DesiredStep, is: &DesiredStep) -> String {
    let id = |step: &DesiredStep| step.image.as_ref().map(|image| image.id.clone());
    let mut parts = Vec::new();
    if from.image != to.image {
        parts.push(format!(
            "`image` is `{}` in place of `{}`",
            to.image, from.image
        ));
    } else if id(was) != id(is) {
        parts.push(format!("`{}` is another image now", to.image));
    }
    let named = [
        (from.with != to.with, "with"),
        (from.env != to.env, "env"),
        (from.command != to.command, "command"),
        (from.mode != to.mode, "mode"),
        (from.concurrency != to.concurrency, "concurrency"),
        (from.timeout != to.timeout, "timeout"),
        (from.retry != to.retry, "retry"),
        (from.limits != to.limits, "limits"),
        (from.order != to.order, "order_by"),
    ];
    parts.extend(
        named
            .iter()
            .filter(|(differs, _)| *differs)
            .map(|(_, key)| format!("`{key}` changed")),
    );
    if parts.is_empty() {
        // Neither the step's own keys nor its image: what its outputs lead to, or a value that a
        // placeholder stands for.
        parts.push("what follows it, or a value of its environment, changed".to_owned());
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_schedule_is_said_in_its_largest_exact_unit() {
        for (ms, expect) in [
            (30_000, "30s"),
            (90_000, "90s"),
            (120_000, "2m"),
            (1_500, "1500ms"),
        ] {
            assert_eq!(span(Duration::from_millis(ms)), expect);
        }
        assert_eq!(
            fires(&Fires::Every(Duration::from_secs(43_200))),
            "every 12h"
        );
    }
}
