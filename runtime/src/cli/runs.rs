//! `towpath runs`

use clap::{Args, Subcommand, ValueEnum};
use reqwest::Method;
use serde_json::{Value, json};

use super::printer::{Printer, Tone};
use super::problem::Problem;
use super::verbs::done;
use super::words::{apart, count, moment, until};
use super::{Context, ExitStatus};
use crate::control::view::{AnswerView, Done, RunList, RunMessages, RunView};
use crate::store::now_ms;

/// The most characters of a note in a list.
const NOTE_CHARS: usize = 70;

/// The most characters of an answer: `--output json` has all of it.
const ANSWER_CHARS: usize = 400;

/// What to do with runs.
#[derive(Debug, Subcommand)]
pub(super) enum Runs {
    /// Lists the last runs of a flow, newest first
    List(List),
    /// Says how a run is, and what came of it, step by step
    Show(Show),
    /// Cancels a run: its trigger leaves it; what it emitted goes on
    Cancel(Show),
}

/// Which ones.
#[derive(Debug, Args)]
pub(super) struct List {
    /// The flow
    flow: String,
    /// Those that are so only
    #[arg(long, value_enum)]
    state: Option<State>,
    /// At most this many, up to 100
    #[arg(long, default_value_t = 20)]
    limit: u32,
}

/// Which one.
#[derive(Debug, Args)]
pub(super) struct Show {
    /// The run: an id that `towpath runs list` shows
    run: String,
}

/// How a run is.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum State {
    /// Its trigger has not taken it yet
    Queued,
    /// Its trigger is at work, or messages of it are under way
    Running,
    /// Its trigger asked to be fired later
    RateLimited,
    /// What it waits for is paused or stopped
    Paused,
    /// Nothing was heard of it for long
    Stalled,
    /// Everything that came of it is done
    Done,
    /// Everything is settled, and some of it was given up
    DoneWithDeadLetters,
    /// Its trigger gave it up
    Failed,
    /// An operator cancelled it
    Cancelled,
    /// Not everything that came of it is known
    Unknown,
}

pub(super) async fn run(command: &Runs, context: &Context) -> Result<ExitStatus, Problem> {
    match command {
        Runs::List(command) => list(command, context).await,
        Runs::Show(command) => show(command, context).await,
        Runs::Cancel(command) => cancel(command, context).await,
    }
}

async fn list(command: &List, context: &Context) -> Result<ExitStatus, Problem> {
    let mut query = vec![("limit", command.limit.to_string())];
    if let Some(word) = command.state.and_then(|state| state.to_possible_value()) {
        query.push(("state", word.get_name().replace('-', "_")));
    }
    let path = ["flows", &command.flow, "runs"];
    let list: RunList = context.client()?.get(&path, &query).await?;
    if context.printer.is_json() {
        context.printer.json(&list);
    } else {
        context
            .printer
            .line(&table(&list, now_ms(), context.printer));
    }
    Ok(ExitStatus::Done)
}

async fn show(command: &Show, context: &Context) -> Result<ExitStatus, Problem> {
    let run: RunView = context.client()?.get(&["runs", &command.run], &[]).await?;
    if context.printer.is_json() {
        context.printer.json(&run);
    } else {
        context.printer.line(&page(&run, now_ms(), context.printer));
    }
    Ok(ExitStatus::Done)
}

async fn cancel(command: &Show, context: &Context) -> Result<ExitStatus, Problem> {
    let path = ["runs", &command.run, "cancel"];
    let answer: Done = context
        .client()?
        .send(Method::POST, &path, &[], &json!({}))
        .await?;
    Ok(done(&answer, context))
}

/// How a run is, as people say it.
pub(super) fn state(run: &RunView) -> String {
    run.state.replace('_', " ")
}

/// What came of a run, in a line.
pub(super) fn sums(messages: &RunMessages) -> String {
    let mut text = format!("{} messages", count(messages.emitted));
    for (number, what) in [
        (messages.open - messages.retrying, "under way"),
        (messages.retrying, "to be tried again"),
        (messages.dead, "dead"),
    ] {
        if number > 0 {
            text = format!("{text}, {} {what}", count(number));
        }
    }
    text
}

fn tone(run: &RunView) -> Tone {
    match run.state.as_str() {
        "done" => Tone::Good,
        "failed" | "stalled" | "done_with_dead_letters" | "unknown" => Tone::Bad,
        "cancelled" => Tone::Faint,
        _ => Tone::Fair,
    }
}

fn table(list: &RunList, now: u64, printer: Printer) -> String {
    if list.runs.is_empty() {
        return "there are no such runs".to_owned();
    }
    let rows = list.runs.iter().map(|run| {
        let number = |count_of: fn(&RunMessages) -> u64| {
            run.messages
                .map_or("-".to_owned(), |it| count(count_of(&it)))
        };
        vec![
            run.id.clone(),
            format!("{} ago", apart(now, run.due)),
            run.why.clone(),
            printer.tone(&state(run), tone(run)),
            took(run, now),
            run.messages
                .map(|it| it.emitted)
                .or(run.emitted)
                .map_or("-".to_owned(), count),
            number(|it| it.open),
            number(|it| it.retrying),
            number(|it| it.dead),
            cut(run.note.as_deref().unwrap_or_default()),
        ]
    });
    let heads = [
        "RUN",
        "DUE",
        "WHY",
        "STATE",
        ">TOOK",
        ">MESSAGES",
        ">OPEN",
        ">RETRYING",
        ">DEAD",
        "NOTE",
    ];
    printer.table(&heads, rows.collect())
}

/// How long a run took, or has taken so far.
fn took(run: &RunView, now: u64) -> String {
    let is_over = matches!(run.state.as_str(), "failed" | "cancelled");
    let ended_at = match (run.tracked && !is_over, run.finished_at, run.ended_at) {
        (true, finished_at, _) => finished_at,
        (false, _, ended_at) => ended_at,
    };
    apart(ended_at.unwrap_or(now), run.started_at)
}

fn page(run: &RunView, now: u64, printer: Printer) -> String {
    let mut lines = vec![format!(
        "run {} of `{}`: {}",
        run.id,
        run.flow,
        printer.tone(&state(run), tone(run))
    )];
    if let Some(note) = &run.note {
        lines.push(format!("  {note}"));
    }
    lines.push(String::new());
    let at =
        |time: Option<u64>| time.map(|time| format!("{}, {} ago", moment(time), apart(now, time)));
    let next = run
        .next_at
        .filter(|next| *next > now)
        .map(|next| until(now, next));
    let facts = [
        ("why", Some(format!("{}, version {}", run.why, run.version))),
        ("due", at(Some(run.due))),
        ("trigger began", at(run.began_at)),
        ("last word", at(run.progress_at)),
        ("trigger ended", at(run.ended_at)),
        ("finished", at(run.finished_at)),
        (
            "attempts that failed",
            (run.attempts > 0).then(|| run.attempts.to_string()),
        ),
        ("tried again", next),
        ("reason", run.reason.clone()),
        ("answered", at(run.answer.as_ref().map(|answer| answer.at))),
        ("answer", run.answer.as_ref().map(answer)),
        ("checkpoint before", run.checkpoint_before.clone()),
        ("checkpoint after", run.checkpoint_after.clone()),
        ("messages", run.messages.as_ref().map(sums)),
        (
            "messages",
            run.emitted
                .filter(|_| run.messages.is_none())
                .map(|emitted| format!("{} brought in", count(emitted))),
        ),
    ];
    for (what, fact) in facts {
        if let Some(fact) = fact {
            lines.push(format!("  {what:<20}  {fact}"));
        }
    }
    if !run.tracked {
        lines.push("  what came of them is not noted: the flow says `track: false`, or it has a webhook and does not say `track: true`".to_owned());
    }
    if !run.steps.is_empty() {
        let rows = run.steps.iter().map(|step| {
            let bad = match step.dead {
                0 => "0".to_owned(),
                dead => printer.tone(&count(dead), Tone::Bad),
            };
            vec![
                step.step.clone(),
                count(step.emitted),
                count(step.open),
                count(step.done),
                bad,
            ]
        });
        let heads = ["STEP", ">MESSAGES", ">OPEN", ">DONE", ">DEAD"];
        lines.push(String::new());
        lines.push(printer.table(&heads, rows.collect()));
    }
    lines.join("\n")
}

/// What a flow answered, in a line.
fn answer(answer: &AnswerView) -> String {
    let headers = answer.headers.iter();
    let headers: Vec<String> = headers
        .map(|(name, value)| format!("{name}: {value}"))
        .collect();
    let body = match &answer.body {
        Value::Null => String::new(),
        body => body.to_string(),
    };
    let parts = [answer.status.to_string(), headers.join(", "), body];
    let parts = parts.iter().filter(|part| !part.is_empty());
    cut_at(
        &parts.map(String::as_str).collect::<Vec<_>>().join("  "),
        ANSWER_CHARS,
    )
}

fn cut(note: &str) -> String {
    cut_at(note, NOTE_CHARS)
}

fn cut_at(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::printer::{Color, Output};
    use super::*;
    use crate::control::view::RunStepView;

    const NOW: u64 = 1_795_222_861_000;

    fn view() -> RunView {
        let messages = RunMessages {
            emitted: 40,
            open: 6,
            retrying: 4,
            done: 31,
            dead: 3,
        };
        RunView {
            id: "0".repeat(32),
            flow: "orders".into(),
            trigger: "poll".into(),
            connection: "default".into(),
            version: 3,
            why: "schedule".into(),
            state: "running".into(),
            note: Some("4 of its 6 open messages wait to be tried again".into()),
            tick: "done".into(),
            due: NOW - 90_000,
            started_at: NOW - 90_000,
            began_at: Some(NOW - 89_000),
            progress_at: Some(NOW - 2_000),
            ended_at: Some(NOW - 60_000),
            finished_at: None,
            checkpoint_before: Some("\"2026-11-20\"".into()),
            checkpoint_after: Some("\"2026-11-21\"".into()),
            tracked: true,
            messages: Some(messages),
            steps: vec![RunStepView {
                step: "crm".into(),
                emitted: 40,
                open: 6,
                done: 31,
                dead: 3,
            }],
            emitted: Some(40),
            attempts: 0,
            next_at: None,
            reason: None,
            answer: None,
        }
    }

    #[test]
    fn what_a_person_sees() {
        let printer = Printer::new(Output::Table, Color::Never, true);
        let mut failed = view();
        failed.state = "done_with_dead_letters".into();
        failed.finished_at = Some(NOW - 1_000);
        let list = RunList {
            runs: vec![view(), failed],
        };
        let mut answered = view();
        answered.answer = Some(AnswerView {
            at: NOW - 3_000,
            status: 201,
            headers: [("location".into(), "/orders/7".into())].into(),
            body: json!({"id": 7}),
        });
        let text = format!(
            "{}\n\n{}",
            table(&list, NOW, printer),
            page(&answered, NOW, printer)
        );
        insta::assert_snapshot!(text);
    }
}
