//! `towpath dead`

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};

use super::printer::{Printer, Tone};
use super::problem::Problem;
use super::words::{apart, moment};
use super::{Context, ExitStatus, verbs};
use crate::control::view::{DeadList, DeadView, Done, ReplayRequest};
use crate::store::now_ms;

/// The most characters of a reason in a list.
const REASON_CHARS: usize = 80;

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub(super) enum Dead {
    /// Lists dead letters, newest first
    List(List),
    /// Shows a dead letter: why, every attempt, and the message
    Show(One),
    /// Sends a dead letter's message to its step again
    Replay(Replay),
    /// Says that a dead letter is not needed
    Discard(Discard),
}

/// Which ones.
#[derive(Debug, Args)]
pub(super) struct List {
    /// Of this flow only
    #[arg(long)]
    flow: Option<String>,
    /// Of this step only
    #[arg(long)]
    step: Option<String>,
    /// Those that were replayed or discarded as well
    #[arg(long)]
    all: bool,
    /// At most this many
    #[arg(long, default_value_t = 100)]
    limit: u32,
}

/// Which one.
#[derive(Debug, Args)]
pub(super) struct One {
    /// Its number
    id: String,
}

/// Which ones, and with what.
#[derive(Debug, Args)]
pub(super) struct Replay {
    /// Their numbers
    #[arg(required_unless_present = "flow")]
    ids: Vec<String>,
    /// All open ones of this flow
    #[arg(long, conflicts_with_all = ["ids", "body"])]
    flow: Option<String>,
    /// Of that flow, this step only
    #[arg(long, requires = "flow")]
    step: Option<String>,
    /// A body in place of its own: any JSON
    #[arg(long, value_name = "JSON", value_parser = parse)]
    body: Option<Value>,
}

/// Which ones.
#[derive(Debug, Args)]
pub(super) struct Discard {
    /// Their numbers
    #[arg(required_unless_present = "flow")]
    ids: Vec<String>,
    /// All open ones of this flow
    #[arg(long, conflicts_with = "ids")]
    flow: Option<String>,
    /// Of that flow, this step only
    #[arg(long, requires = "flow")]
    step: Option<String>,
}

fn parse(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}"))
}

pub(super) async fn run(command: &Dead, context: &Context) -> Result<ExitStatus, Problem> {
    match command {
        Dead::List(command) => list(command, context).await,
        Dead::Show(command) => show(command, context).await,
        Dead::Replay(command) => {
            let ids = which(
                &command.ids,
                command.flow.as_ref(),
                command.step.as_ref(),
                context,
            )
            .await?;
            let request = ReplayRequest {
                body: command
                    .body
                    .as_ref()
                    .and_then(|body| serde_json::value::to_raw_value(body).ok()),
                from: None,
            };
            let request = serde_json::to_value(request).unwrap_or_default();
            each(&ids, "replaying", context, |id| {
                (Method::POST, vec!["dead", id, "replay"], request.clone())
            })
            .await
        }
        Dead::Discard(command) => {
            let ids = which(
                &command.ids,
                command.flow.as_ref(),
                command.step.as_ref(),
                context,
            )
            .await?;
            each(&ids, "discarding", context, |id| {
                (Method::DELETE, vec!["dead", id], json!({}))
            })
            .await
        }
    }
}

async fn list(command: &List, context: &Context) -> Result<ExitStatus, Problem> {
    let mut query = vec![("limit", command.limit.to_string())];
    query.extend(command.flow.iter().map(|flow| ("flow", flow.clone())));
    query.extend(command.step.iter().map(|step| ("step", step.clone())));
    if command.all {
        query.push(("state", "all".to_owned()));
    }
    let letters: DeadList = context.client()?.get(&["dead"], &query).await?;
    let printer = context.printer;
    if printer.is_json() {
        printer.json(&letters);
        return Ok(ExitStatus::Done);
    }
    if letters.dead.is_empty() {
        printer.line("there are no dead letters");
        return Ok(ExitStatus::Done);
    }
    let now = now_ms();
    let rows = letters.dead.iter().map(|letter| {
        vec![
            letter.id.clone(),
            letter.flow.clone(),
            letter.step.clone(),
            format!("{} ago", apart(now, letter.at)),
            letter.cause.clone(),
            letter.attempts.len().to_string(),
            letter.state.clone(),
            cut(&letter.reason),
        ]
    });
    let heads = [
        ">ID",
        "FLOW",
        "STEP",
        ">WHEN",
        "CAUSE",
        ">ATTEMPTS",
        "STATE",
        "REASON",
    ];
    printer.line(&printer.table(&heads, rows.collect()));
    if letters.next.is_some() {
        printer.note("there are more; `--limit` shows them");
    }
    Ok(ExitStatus::Done)
}

fn cut(reason: &str) -> String {
    let line = reason.lines().next().unwrap_or_default();
    match line.char_indices().nth(REASON_CHARS) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line.to_owned(),
    }
}

async fn show(command: &One, context: &Context) -> Result<ExitStatus, Problem> {
    let letter: DeadView = context.client()?.get(&["dead", &command.id], &[]).await?;
    if context.printer.is_json() {
        context.printer.json(&letter);
    } else {
        context.printer.line(&one(&letter, context.printer));
    }
    Ok(ExitStatus::Done)
}

fn one(letter: &DeadView, printer: Printer) -> String {
    let head = |word: &str| printer.tone(&format!("{word:10}"), Tone::Faint);
    let who = match letter.replica {
        0 => "the broker".to_owned(),
        replica => format!("replica {replica}"),
    };
    let mut lines = vec![
        format!("{} {} ({})", head("dead"), letter.id, letter.state),
        format!(
            "{} {}/{}, given up by {who}",
            head("step"),
            letter.flow,
            letter.step
        ),
        format!("{} {} UTC", head("when"), moment(letter.at)),
        format!("{} {}", head("cause"), letter.cause.replace('_', " ")),
        format!(
            "{} {}",
            head("reason"),
            printer.tone(&letter.reason, Tone::Bad)
        ),
    ];
    lines.extend(
        letter
            .chain
            .iter()
            .map(|cause| format!("{} {cause}", head("because"))),
    );
    lines.push(format!("{} {}", head("message"), letter.message_id));
    lines.extend(
        letter
            .run
            .iter()
            .map(|run| format!("{} {run}", head("run"))),
    );
    if letter.replays > 0 {
        lines.push(format!(
            "{} {} times before",
            head("replayed"),
            letter.replays
        ));
    }
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
    }
    if let Some(message) = &letter.message {
        let body = message.get("body").unwrap_or(message);
        lines.push(head("body"));
        lines.push(serde_json::to_string_pretty(body).unwrap_or_default());
    }
    lines.join("\n")
}

/// The ones that were named, or all open ones of a flow.
async fn which(
    ids: &[String],
    flow: Option<&String>,
    step: Option<&String>,
    context: &Context,
) -> Result<Vec<String>, Problem> {
    let Some(flow) = flow else {
        return Ok(ids.to_vec());
    };
    let mut query = vec![("flow", flow.clone()), ("limit", "1000".to_owned())];
    query.extend(step.map(|step| ("step", step.clone())));
    let mut found = Vec::new();
    loop {
        let page: DeadList = context.client()?.get(&["dead"], &query).await?;
        found.extend(page.dead.into_iter().map(|letter| letter.id));
        let Some(next) = page.next else { break };
        query.retain(|(key, _)| *key != "before");
        query.push(("before", next));
    }
    if found.is_empty() {
        return Err(Problem::no(format!(
            "`{flow}` has no open dead letters there"
        )));
    }
    // Oldest first: as they came.
    found.reverse();
    Ok(found)
}

/// Does one thing to each of them; the first that is refused ends it.
async fn each<'a>(
    ids: &'a [String],
    doing: &str,
    context: &Context,
    request: impl Fn(&'a str) -> (Method, Vec<&'a str>, Value),
) -> Result<ExitStatus, Problem> {
    let progress = context.printer.progress(doing);
    for (index, id) in ids.iter().enumerate() {
        progress.say(format!("{doing} {} of {}", index + 1, ids.len()));
        let (method, path, body) = request(id);
        let done: Done = context.client()?.send(method, &path, &[], &body).await?;
        verbs::done(&done, context);
    }
    Ok(ExitStatus::Done)
}
