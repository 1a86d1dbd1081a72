//! `towpath list`

use super::printer::Tone;
use super::problem::Problem;
use super::words::{apart, count, maybe_count};
use super::{Context, ExitStatus, status};
use crate::control::view::FlowList;
use crate::store::now_ms;

pub(super) async fn run(context: &Context) -> Result<ExitStatus, Problem> {
    let list: FlowList = context.client()?.get(&["flows"], &[]).await?;
    if context.printer.is_json() {
        context.printer.json(&list);
        return Ok(ExitStatus::Done);
    }
    context.printer.line(&table(&list, context));
    Ok(ExitStatus::Done)
}

/// The flows as a table.
pub(super) fn table(list: &FlowList, context: &Context) -> String {
    let printer = context.printer;
    if list.flows.is_empty() {
        return "there are no flows yet; `towpath apply <file>` makes one".to_owned();
    }
    let now = now_ms();
    let rows = list.flows.iter().map(|flow| {
        let tone = if flow.reason.is_some() {
            Tone::Bad
        } else {
            status::flow_tone(flow.state)
        };
        let state = status::state_word(flow.state);
        let dead = count(flow.dead_letters);
        vec![
            flow.flow.clone(),
            printer.tone(
                if flow.reason.is_some() {
                    "in trouble"
                } else {
                    state
                },
                tone,
            ),
            flow.version.to_string(),
            flow.fires.clone(),
            flow.steps.to_string(),
            format!("{}/{}", flow.running, flow.desired),
            maybe_count(flow.queued),
            if flow.dead_letters > 0 {
                printer.tone(&dead, Tone::Bad)
            } else {
                dead
            },
            format!("{} ago", apart(now, flow.applied_at)),
        ]
    });
    let heads = [
        "FLOW",
        "STATE",
        ">VERSION",
        "FIRES",
        ">STEPS",
        ">REPLICAS",
        ">QUEUED",
        ">DEAD",
        ">APPLIED",
    ];
    let mut text = printer.table(&heads, rows.collect());
    for flow in &list.flows {
        if let Some(reason) = &flow.reason {
            text = format!("{text}\n{}: {reason}", flow.flow);
        }
    }
    text
}
