//! `towpath dead show`

use serde_json::Value;

use super::super::printer::{Printer, Tone};
use super::super::problem::Problem;
use super::super::words::{apart, moment};
use super::super::{Context, ExitStatus};
use crate::control::view::DeadView;
use crate::json_text::pretty;
use crate::store::now_ms;

pub(super) async fn run(id: &str, context: &Context) -> Result<ExitStatus, Problem> {
    let letter: DeadView = context.client()?.get(&["dead", id], &[]).await?;
    if context.printer.is_json() {
        context.printer.json(&letter);
    } else {
        context
            .printer
            .line(&page(&letter, now_ms(), context.printer));
    }
    Ok(ExitStatus::Done)
}

/// Everything about a dead letter: what, why, when, how often, the message, and what to do next.
pub(super) fn page(letter: &DeadView, now: u64, printer: Printer) -> String {
    let head = |word: &str| printer.tone(&format!("{word:10}"), Tone::Faint);
    let mut lines = Vec::new();
    about(letter, now, printer, &mut lines);
    attempts(letter, printer, &mut lines);
    for other in &letter.others {
        let when = if other.replays < letter.replays {
            "before"
        } else {
            "again"
        };
        lines.push(format!(
            "{} dead letter {} at {} ({}), {}: {}",
            head(when),
            other.id,
            moment(other.at),
            other.state,
            other.cause.replace('_', " "),
            other.reason
        ));
    }
    if let Some(message) = &letter.message {
        if let Some(headers) = message.get("headers").filter(|it| !it.is_null()) {
            lines.push(format!("{} {headers}", head("headers")));
        }
        if let Some(key) = message.get("key").and_then(Value::as_str) {
            lines.push(format!("{} {key}", head("key")));
        }
    }
    if let Some(body) = &letter.body {
        lines.push(head(if letter.edited {
            "body, edited"
        } else {
            "body"
        }));
        lines.push(pretty(body));
    }
    if let Some(body) = &letter.original_body {
        lines.push(head("original body"));
        lines.push(pretty(body));
    }
    lines.push(String::new());
    lines.extend(next(letter).into_iter().map(|(command, what)| {
        format!(
            "{} {}",
            printer.tone(&format!("{command:52}"), Tone::Strong),
            what
        )
    }));
    lines.join("\n")
}

fn about(letter: &DeadView, now: u64, printer: Printer, lines: &mut Vec<String>) {
    let head = |word: &str| printer.tone(&format!("{word:10}"), Tone::Faint);
    let who = match letter.replica {
        0 => "the broker".to_owned(),
        replica => format!("replica {replica}"),
    };
    let job = letter
        .job
        .as_ref()
        .map(|job| format!(", job {job}"))
        .unwrap_or_default();
    let port = letter
        .port
        .as_ref()
        .map(|port| format!(", lost behind its port `{port}`"));
    lines.push(format!(
        "{} {} ({}{job})",
        head("dead"),
        letter.id,
        letter.state
    ));
    let (version, entered) = match &letter.entered {
        None => (format!(", version {}", letter.version), None),
        // Its lineage is that of the flow it entered.
        Some(flow) => {
            let entered = format!("{flow}, version {}, which handed it over", letter.version);
            (String::new(), Some(entered))
        }
    };
    lines.push(format!(
        "{} {}/{}{}{version}, given up by {who}",
        head("step"),
        letter.flow,
        letter.step,
        port.unwrap_or_default(),
    ));
    lines.extend(entered.map(|entered| format!("{} {entered}", head("entered"))));
    lines.push(format!(
        "{} {} UTC, {} ago",
        head("when"),
        moment(letter.at),
        apart(now, letter.at)
    ));
    if letter.repeats > 0 {
        lines.push(format!(
            "{} {} times since, last at {} UTC",
            head("repeated"),
            letter.repeats,
            moment(letter.last_at)
        ));
    }
    lines.push(format!(
        "{} {}",
        head("cause"),
        letter.cause.replace('_', " ")
    ));
    lines.push(format!(
        "{} {}",
        head("reason"),
        printer.tone(&letter.reason, Tone::Bad)
    ));
    lines.extend(
        letter
            .chain
            .iter()
            .map(|cause| format!("{} {cause}", head("because"))),
    );
    lines.push(format!("{} {}", head("group"), letter.group));
    lines.push(format!("{} {}", head("message"), letter.message_id));
    lines.extend(
        letter
            .run
            .iter()
            .map(|run| format!("{} {run}", head("run"))),
    );
    if letter.connection != towpath_protocol::DEFAULT_CONNECTION {
        lines.push(format!("{} {}", head("connection"), letter.connection));
    }
    if letter.replays > 0 {
        let times = if letter.replays == 1 { "once" } else { "times" };
        let count = if letter.replays == 1 {
            String::new()
        } else {
            format!("{} ", letter.replays)
        };
        lines.push(format!("{} {count}{times} before this", head("replayed")));
    }
}

fn attempts(letter: &DeadView, printer: Printer, lines: &mut Vec<String>) {
    let head = |word: &str| printer.tone(&format!("{word:10}"), Tone::Faint);
    for attempt in &letter.attempts {
        let number = |key: &str| attempt[key].as_u64().unwrap_or(0);
        lines.push(format!(
            "{} {} at {} by replica {}: {}",
            head("attempt"),
            number("attempt"),
            moment(number("at")),
            number("replica"),
            attempt["reason"].as_str().unwrap_or_default()
        ));
        let log = attempt["log"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        lines.extend(
            log.iter()
                .filter_map(Value::as_str)
                .map(|line| format!("{} {}", head("    log"), printer.tone(line, Tone::Faint))),
        );
    }
}

/// What can be done now.
fn next(letter: &DeadView) -> Vec<(String, &'static str)> {
    let id = &letter.id;
    match letter.state.as_str() {
        "open" => {
            let mut next = vec![
                (
                    format!("towpath dead replay {id}"),
                    "sends it to its step again",
                ),
                (format!("towpath dead edit {id}"), "changes its body first"),
                (
                    format!("towpath dead discard {id}"),
                    "says that it is not needed",
                ),
                (
                    format!("towpath dead replay --group {} --dry-run", letter.group),
                    "all that failed in the same way",
                ),
            ];
            if letter.edited {
                next.insert(
                    2,
                    (
                        format!("towpath dead edit {id} --undo"),
                        "brings its own body back",
                    ),
                );
            }
            next
        }
        "replaying" => vec![(
            "towpath dead jobs".to_owned(),
            "shows how far its replay is",
        )],
        _ => vec![(
            format!("towpath why {}", letter.message_id),
            "shows what became of the message",
        )],
    }
}
