//! `towpath status`

use std::time::Duration;

use clap::Args;

use super::printer::{Printer, Tone};
use super::problem::Problem;
use super::runs::{state, sums};
use super::words::{apart, count, maybe_count, millis, moment_at, rate};
use super::{Context, ExitStatus, drain, list, webhook};
use crate::control::FROM_FLOWS;
use crate::control::view::{
    FlowList, FlowStatus, HandoverView, RegistrationState, RegistrationView, RunView, StepStatus,
};
use crate::reconcile::FlowState;
use crate::store::now_ms;

/// How often `--watch` looks.
const LOOK: Duration = Duration::from_secs(1);

/// Shows how flows are: each step's replicas, what waits, what moves, what failed, and why.
#[derive(Debug, Args)]
pub(super) struct Status {
    /// The flow; all of them, in short, when left out
    flow: Option<String>,
    /// Shows it again every second
    #[arg(long, short)]
    watch: bool,
}

pub(super) async fn run(command: &Status, context: &Context) -> Result<ExitStatus, Problem> {
    loop {
        let text = if let Some(flow) = &command.flow {
            let status: FlowStatus = context.client()?.get(&["flows", flow], &[]).await?;
            if context.printer.is_json() {
                context.printer.json(&status);
                None
            } else {
                Some(one(&status, context.printer, now_ms()))
            }
        } else {
            let all: FlowList = context.client()?.get(&["flows"], &[]).await?;
            if context.printer.is_json() {
                context.printer.json(&all);
                None
            } else {
                Some(list::table(&all, context))
            }
        };
        match text {
            Some(text) if command.watch => context.printer.refresh(&text),
            Some(text) => context.printer.line(&text),
            None => {}
        }
        if !command.watch {
            return Ok(ExitStatus::Done);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What a flow should be doing, in a word.
pub(super) fn state_word(state: FlowState) -> &'static str {
    match state {
        FlowState::Running => "running",
        FlowState::Draining => "draining",
        FlowState::Paused => "paused",
        FlowState::Stopped => "stopped",
    }
}

/// How good that is.
pub(super) fn flow_tone(state: FlowState) -> Tone {
    match state {
        FlowState::Running => Tone::Good,
        FlowState::Draining | FlowState::Paused | FlowState::Stopped => Tone::Fair,
    }
}

fn one(status: &FlowStatus, printer: Printer, now: u64) -> String {
    let mut lines = vec![head(status, printer, now)];
    if !status.description.is_empty() {
        lines.push(format!(
            "  {}",
            printer.tone(&status.description, Tone::Faint)
        ));
    }
    if let Some(reason) = &status.reason {
        lines.push(format!("  {}", printer.tone(reason, Tone::Bad)));
    }
    if let Some(left) = status.left {
        lines.push(format!("  left     {}", drain::words_of(left)));
    }
    lines.push(format!("  fires    {}", fires(status, now)));
    lines.extend(status.hands.iter().map(|it| hands(it, printer)));
    lines.extend(intake(status, printer, now));
    lines.push(String::new());
    let rows = status.steps.iter().map(|step| row(step, printer)).collect();
    let heads = [
        "STEP",
        "STATE",
        ">REPLICAS",
        ">QUEUED",
        ">IN HAND",
        ">UNACKED",
        ">IN/S",
        ">OUT/S",
        ">DONE",
        ">FAILED",
        ">RETRIED",
        ">DEAD",
        ">RESTARTS",
        ">P50",
        ">P99",
    ];
    lines.push(printer.table(&heads, rows));
    let reasons: Vec<String> = status
        .steps
        .iter()
        .filter_map(|step| {
            let left = step.left.map(drain::words_of);
            let reason = [step.reason.clone(), left].into_iter().flatten();
            let reason = reason.collect::<Vec<_>>().join(": ");
            (!reason.is_empty()).then_some((step, reason))
        })
        .flat_map(|(step, reason)| {
            let again = match step.next_at {
                Some(next) if next > now => format!("; again in {}", apart(next, now)),
                _ => String::new(),
            };
            let line = format!("{reason}{again}");
            let line = format!(
                "  {}: {}",
                step.step,
                printer.tone(&line, tone_of(&step.state))
            );
            std::iter::once(line).chain(last_lines(step, printer))
        })
        .collect();
    if !reasons.is_empty() {
        lines.push(String::new());
        lines.extend(reasons);
    }
    let scaled: Vec<String> = status
        .steps
        .iter()
        .filter_map(|step| Some(format!("  {}: {}", step.step, step.scaling.as_ref()?)))
        .collect();
    if !scaled.is_empty() {
        lines.push(String::new());
        lines.extend(scaled);
    }
    let unmatched = unmatched(status);
    if !unmatched.is_empty() {
        lines.push(String::new());
        lines.extend(unmatched);
    }
    if status.dead_letters > 0 {
        lines.push(String::new());
        lines.push(format!(
            "  {} open; `towpath dead groups --flow {}` counts them by what failed",
            dead_letters(status.dead_letters),
            status.flow
        ));
    }
    let replayed: u64 = status.steps.iter().map(|step| step.replayed).sum();
    if replayed > 0 {
        lines.push(format!("  {replayed} replayed in the last 30 days"));
    }
    lines.join("\n")
}

/// What no condition held for.
fn unmatched(status: &FlowStatus) -> Vec<String> {
    let nowhere = "went nowhere: no condition (`when`) held";
    let requests = (status.unmatched_requests > 0)
        .then(|| format!("  {} requests {nowhere}", count(status.unmatched_requests)));
    let steps = status.steps.iter().filter(|step| step.unmatched > 0);
    let steps = steps.map(|step| {
        let number = count(step.unmatched);
        format!("  {}: {number} messages {nowhere}", step.step)
    });
    requests.into_iter().chain(steps).collect()
}

/// The last lines of a replica that fails: of the first one, the others say the same.
fn last_lines(step: &StepStatus, printer: Printer) -> Vec<String> {
    let lines = step
        .replicas
        .iter()
        .find(|replica| !replica.last_lines.is_empty())
        .map(|replica| replica.last_lines.as_slice())
        .unwrap_or_default();
    let shown = |line: &String| format!("    | {}", printer.tone(line, Tone::Faint));
    lines.iter().map(shown).collect()
}

fn head(status: &FlowStatus, printer: Printer, now: u64) -> String {
    let tone = if status.reason.is_some() {
        Tone::Bad
    } else {
        flow_tone(status.state)
    };
    let is_drained = status.left.is_some_and(|left| left.drained);
    let word = if is_drained {
        "drained"
    } else {
        state_word(status.state)
    };
    let settled = match (status.deleting, status.converged) {
        (true, _) => ", being deleted",
        (false, true) => "",
        (false, false) => ", changing",
    };
    format!(
        "{}  {}{settled}  version {}, applied {} ago",
        printer.tone(&status.flow, Tone::Strong),
        printer.tone(word, tone),
        status.version,
        apart(now, status.applied_at)
    )
}

fn dead_letters(count: u64) -> String {
    if count == 1 {
        "1 dead letter is".to_owned()
    } else {
        format!("{count} dead letters are")
    }
}

/// Where it takes requests, and whether its source knows.
fn intake(status: &FlowStatus, printer: Printer, now: u64) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(url) = &status.webhook_url {
        lines.push(format!("  webhook  {url}"));
        let former = status.webhook_former_until.iter();
        lines.extend(former.map(|until| format!("           {}", webhook::former(*until, now))));
    }
    let registered = status.registration.iter();
    lines.extend(registered.map(|it| registration(it, printer, now)));
    lines
}

/// How the URL is registered at the source.
fn registration(it: &RegistrationView, printer: Printer, now: u64) -> String {
    let (word, tone) = match it.state {
        RegistrationState::Registered => ("registered", Tone::Good),
        RegistrationState::Registering => ("not registered yet", Tone::Fair),
        RegistrationState::Unregistering => ("not taken back yet", Tone::Fair),
    };
    let tone = if it.attempts > 0 { Tone::Bad } else { tone };
    let mut text = printer.tone(word, tone);
    if let Some(since) = it.since {
        text = format!("{text} {} ago", apart(now, since));
    }
    // Why a call failed is said above, as what is wrong with the flow.
    match &it.reason {
        _ if it.attempts > 0 => text = format!("{text}: tried {} times", it.attempts),
        Some(reason) => text = format!("{text}: {reason}"),
        None => {}
    }
    match it.next_at {
        Some(next) if next > now => text = format!("{text}, again in {}", apart(next, now)),
        _ => {}
    }
    format!("  source   {text}")
}

/// What an action hands to another flow, and whether it waits there.
fn hands(handover: &HandoverView, printer: Printer) -> String {
    let HandoverView { step, to, state } = handover;
    let waits = match state {
        FlowState::Running => String::new(),
        state => format!(
            ", which is {}: it waits there",
            printer.tone(state_word(*state), flow_tone(*state))
        ),
    };
    format!("  {step} hands over to {to}{waits}")
}

fn fires(status: &FlowStatus, now: u64) -> String {
    let mut text = status.fires.clone();
    if let Some(run) = &status.last_run {
        text = format!(
            "{text}; last {} ago: {}",
            apart(now, run.due),
            run_words(run, now)
        );
    } else if !status.handed_by.is_empty() {
        text = format!("{text}: {}", status.handed_by.join(", "));
    } else if status.fires == FROM_FLOWS {
        text.push_str("; none hands messages to it");
    } else if status.webhook_url.is_none() {
        text.push_str("; not fired yet");
    }
    let is_under_way = status
        .last_run
        .as_ref()
        .is_some_and(|run| matches!(run.state.as_str(), "recorded" | "published"));
    match status.next_run_at {
        Some(next) if next > now => {
            text = format!("{text}; next in {}", apart(next, now));
            if let Some(zone) = &status.timezone {
                text = format!("{text}, {}", moment_at(next, zone));
            }
        }
        Some(_) if is_under_way => text.push_str("; next as soon as that has ended"),
        Some(_) => text.push_str("; next now"),
        None => {}
    }
    text
}

fn run_words(run: &RunView, now: u64) -> String {
    match (run.tick.as_str(), &run.reason, run.next_at) {
        ("recorded" | "published", Some(reason), Some(next)) if next > now => format!(
            "{}, tried {} times, again in {}: {reason}",
            state(run),
            run.attempts,
            apart(next, now)
        ),
        ("recorded" | "published", Some(reason), _) => {
            format!("{}, tried {} times: {reason}", state(run), run.attempts)
        }
        ("failed" | "abandoned", Some(reason), _) => format!("{}: {reason}", state(run)),
        _ => match (run.messages, run.emitted) {
            (Some(messages), _) => format!("{}, {}", state(run), sums(&messages)),
            (None, Some(emitted)) => format!("{}, {} messages", state(run), count(emitted)),
            (None, None) => state(run),
        },
    }
}

fn row(step: &StepStatus, printer: Printer) -> Vec<String> {
    let replicas = format!("{}/{}", step.running, step.desired);
    let bad = |number: u64| {
        let text = count(number);
        if number > 0 {
            printer.tone(&text, Tone::Bad)
        } else {
            text
        }
    };
    vec![
        step.step.clone(),
        printer.tone(&step.state.replace('_', " "), tone_of(&step.state)),
        if step.running < step.desired {
            printer.tone(&replicas, Tone::Fair)
        } else {
            replicas
        },
        maybe_count(step.queued),
        count(step.in_hand),
        count(step.unacknowledged),
        rate(step.in_rate),
        rate(step.out_rate),
        count(step.done),
        bad(step.failed),
        count(step.retried),
        bad(step.dead_letters),
        count(step.restarts),
        millis(step.p50_ms),
        millis(step.p99_ms),
    ]
}

fn tone_of(state: &str) -> Tone {
    match state {
        "running" | "asleep" => Tone::Good,
        "step_fails" | "backing_off" | "blocked" | "exited" | "waiting_for_broker" => Tone::Bad,
        _ => Tone::Fair,
    }
}
