//! `towpath dead list`, `towpath dead groups`

use clap::Args;

use super::super::problem::Problem;
use super::super::words::{apart, count};
use super::super::{Context, ExitStatus};
use super::select::Which;
use crate::control::dead::view::{GroupList, LeftOut};
use crate::control::view::DeadList;
use crate::store::now_ms;

/// The most characters of a reason in a list.
const REASON_CHARS: usize = 80;

/// The most in one answer of the API.
const PAGE: usize = 1_000;

/// Which ones.
#[derive(Debug, Args)]
pub(in crate::cli) struct List {
    #[command(flatten)]
    which: Which,
    /// In this state
    #[arg(long, default_value = "open", value_parser = ["open", "replaying", "replayed", "discarded", "all"])]
    state: String,
    /// In any state
    #[arg(long, conflicts_with = "state")]
    all: bool,
    /// At most this many
    #[arg(long, default_value_t = 100)]
    limit: usize,
}

/// Of which steps.
#[derive(Debug, Args)]
pub(in crate::cli) struct Groups {
    /// Of this flow only
    #[arg(long)]
    flow: Option<String>,
    /// Of this step only
    #[arg(long)]
    step: Option<String>,
}

pub(super) async fn run(command: &List, context: &Context) -> Result<ExitStatus, Problem> {
    let mut query = command.which.query();
    let state = if command.all { "all" } else { &command.state };
    query.push(("state", state.to_owned()));
    let mut letters = page(&query, command.limit, context).await?;
    while let Some(next) = &letters.next
        && letters.dead.len() < command.limit
    {
        let mut query = query.clone();
        query.push(("before", next.clone()));
        let more = page(&query, command.limit - letters.dead.len(), context).await?;
        letters.dead.extend(more.dead);
        letters.next = more.next;
    }
    let printer = context.printer;
    if printer.is_json() {
        printer.json(&letters);
        return Ok(ExitStatus::Done);
    }
    let now = now_ms();
    let rows: Vec<_> = letters
        .dead
        .iter()
        .map(|letter| {
            let edited = if letter.edited { " (edited)" } else { "" };
            vec![
                letter.id.clone(),
                letter.flow.clone(),
                letter.step.clone(),
                format!("{} ago", apart(now, letter.last_at)),
                letter.cause.clone(),
                letter.attempts.len().to_string(),
                format!("{}{edited}", letter.state),
                letter.group.clone(),
                cut(&letter.reason),
            ]
        })
        .collect();
    if rows.is_empty() {
        printer.line("there are no dead letters like that");
    } else {
        let heads = [
            ">ID",
            "FLOW",
            "STEP",
            ">WHEN",
            "CAUSE",
            ">ATTEMPTS",
            "STATE",
            "GROUP",
            "REASON",
        ];
        printer.line(&printer.table(&heads, rows));
    }
    left_out(letters.left_out.as_slice(), context);
    if letters.next.is_some() {
        printer.note("there are more; `--limit` shows them, `towpath dead groups` counts them");
    }
    Ok(ExitStatus::Done)
}

async fn page(
    query: &[(&str, String)],
    limit: usize,
    context: &Context,
) -> Result<DeadList, Problem> {
    let mut query = query.to_vec();
    query.push(("limit", limit.clamp(1, PAGE).to_string()));
    context.client()?.get(&["dead"], &query).await
}

/// Says what is left out.
pub(super) fn left_out(left: &[LeftOut], context: &Context) {
    for left in left {
        context
            .printer
            .note(&format!("{} left out: {}", left.count, left.why));
    }
}

pub(super) async fn groups(command: &Groups, context: &Context) -> Result<ExitStatus, Problem> {
    let mut query = Vec::new();
    query.extend(command.flow.iter().map(|flow| ("flow", flow.clone())));
    query.extend(command.step.iter().map(|step| ("step", step.clone())));
    let list: GroupList = context.client()?.get(&["dead", "groups"], &query).await?;
    let printer = context.printer;
    if printer.is_json() {
        printer.json(&list);
        return Ok(ExitStatus::Done);
    }
    if list.groups.is_empty() {
        printer.line("there are no open dead letters there");
        return Ok(ExitStatus::Done);
    }
    let now = now_ms();
    let rows = list.groups.iter().map(|group| {
        let letters = match group.repeats {
            0 => count(group.count),
            repeats => format!("{} (+{} repeats)", count(group.count), count(repeats)),
        };
        vec![
            group.group.clone(),
            letters,
            group.flow.clone(),
            group.step.clone(),
            group.cause.clone(),
            format!("{} ago", apart(now, group.first_at)),
            format!("{} ago", apart(now, group.last_at)),
            group.example.clone(),
            cut(&group.pattern),
        ]
    });
    let heads = [
        "GROUP", ">COUNT", "FLOW", "STEP", "CAUSE", ">FIRST", ">LAST", ">EXAMPLE", "PATTERN",
    ];
    printer.line(&printer.table(&heads, rows.collect()));
    Ok(ExitStatus::Done)
}

fn cut(reason: &str) -> String {
    let line = reason.lines().next().unwrap_or_default();
    match line.char_indices().nth(REASON_CHARS) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line.to_owned(),
    }
}
