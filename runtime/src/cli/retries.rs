//! `towpath retries`

use clap::{Args, Subcommand};
use reqwest::Method;

use super::printer::{Printer, Tone};
use super::problem::Problem;
use super::words::{apart, count, until};
use super::{Context, ExitStatus};
use crate::control::view::{RetriesMoved, RetryList, RetrySelection, RetryView};
use crate::store::now_ms;

/// The most characters of a reason in a list.
const REASON_CHARS: usize = 80;

/// What to do with messages that wait to be tried again.
#[derive(Debug, Subcommand)]
pub(super) enum Retries {
    /// Lists what waits: why, since when, and when it comes back
    List(List),
    /// Brings messages back to their step at once
    Now(Which),
    /// Makes dead letters of messages, so that they do not come back
    Cancel(Which),
}

/// Which ones.
#[derive(Debug, Args)]
pub(super) struct List {
    /// The flow
    flow: String,
    /// Of this step only
    #[arg(long)]
    step: Option<String>,
    /// At most this many messages; all are counted
    #[arg(long, default_value_t = 50)]
    limit: u32,
}

/// Which ones.
#[derive(Debug, Args)]
pub(super) struct Which {
    /// The flow
    flow: String,
    /// Their ids
    #[arg(required_unless_present_any = ["all", "step"], conflicts_with_all = ["all", "step"])]
    ids: Vec<String>,
    /// All that wait in the flow
    #[arg(long, conflicts_with = "step")]
    all: bool,
    /// All that wait for this step
    #[arg(long)]
    step: Option<String>,
    /// Says how many it would be, and does nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(command: &Retries, context: &Context) -> Result<ExitStatus, Problem> {
    match command {
        Retries::List(command) => list(command, context).await,
        Retries::Now(which) => take_out("now", which, context).await,
        Retries::Cancel(which) => take_out("cancel", which, context).await,
    }
}

async fn take_out(verb: &str, which: &Which, context: &Context) -> Result<ExitStatus, Problem> {
    let selection = RetrySelection {
        ids: which.ids.clone(),
        step: which.step.clone(),
        all: which.all,
        dry_run: which.dry_run,
    };
    let path = ["flows", &which.flow, "retries", verb];
    let moved: RetriesMoved = context
        .client()?
        .send(Method::POST, &path, &[], &selection)
        .await?;
    if context.printer.is_json() {
        context.printer.json(&moved);
    } else {
        context.printer.line(&moved.message);
        for id in &moved.not_found {
            context.printer.note(&format!("{id} came back meanwhile"));
        }
    }
    Ok(ExitStatus::Done)
}

async fn list(command: &List, context: &Context) -> Result<ExitStatus, Problem> {
    let mut query = vec![("limit", command.limit.to_string())];
    query.extend(command.step.iter().map(|step| ("step", step.clone())));
    let path = ["flows", &command.flow, "retries"];
    let list: RetryList = context.client()?.get(&path, &query).await?;
    if context.printer.is_json() {
        context.printer.json(&list);
    } else {
        let now = now_ms();
        context.printer.line(&shown(&list, now, context.printer));
        if (list.waiting.len() as u64) < list.total {
            context.printer.note(&format!(
                "{} of {} are shown, the next ones first; `--limit` shows more",
                list.waiting.len(),
                list.total
            ));
        }
        if let Some(unnoted) = list.unnoted {
            context.printer.note(&format!(
                "the delay ladder of this Towpath holds {} more deliveries than are noted; \
                 `retries now` and `retries cancel` with `--all` or `--step` find them too",
                count(unnoted)
            ));
        }
    }
    Ok(ExitStatus::Done)
}

fn shown(list: &RetryList, now: u64, printer: Printer) -> String {
    if list.total == 0 {
        return "nothing is known to wait".to_owned();
    }
    let groups = list.groups.iter().map(|group| {
        vec![
            group.step.clone(),
            count(group.count),
            until(now, group.next),
            until(now, group.last),
            kind(group.is_rebound).to_owned(),
            cut(&group.pattern),
        ]
    });
    let heads = ["STEP", ">MESSAGES", ">NEXT", ">LAST", "KIND", "WHY"];
    let groups = printer.table(&heads, groups.collect());
    let rows = list.waiting.iter().map(|one| row(one, now));
    let heads = ["ID", "STEP", "ATTEMPT", ">SINCE", ">NEXT", "WHY"];
    let waiting = printer.table(&heads, rows.collect());
    let total = match list.total {
        1 => "1 message waits".to_owned(),
        total => format!("{total} messages wait"),
    };
    format!(
        "{}\n\n{groups}\n\n{waiting}",
        printer.tone(&total, Tone::Strong)
    )
}

fn kind(is_rebound: bool) -> &'static str {
    if is_rebound { "not yet" } else { "failed" }
}

fn row(one: &RetryView, now: u64) -> Vec<String> {
    let attempt = if one.is_rebound {
        format!("rebound {}", one.rebounds)
    } else {
        format!("{} of {}", one.attempt, one.attempts)
    };
    vec![
        one.id.clone(),
        one.step.clone(),
        attempt,
        format!("{} ago", apart(now, one.since)),
        until(now, one.due),
        cut(&one.reason),
    ]
}

fn cut(reason: &str) -> String {
    let line = reason.lines().next().unwrap_or_default();
    match line.char_indices().nth(REASON_CHARS) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::printer::{Color, Output};
    use super::*;
    use crate::control::view::RetryGroupView;

    #[test]
    fn a_list_says_why_and_when() {
        let list = RetryList {
            total: 2,
            groups: vec![RetryGroupView {
                step: "crm".into(),
                pattern: "the CRM answered 503".into(),
                is_rebound: false,
                count: 2,
                next: 201_000,
                last: 10_000_000,
            }],
            waiting: vec![RetryView {
                id: "0".repeat(32),
                step: "crm".into(),
                run: "1".repeat(32),
                connection: "default".into(),
                attempt: 3,
                attempts: 5,
                rebounds: 0,
                replays: 0,
                is_rebound: false,
                reason: "the CRM answered 503\nand more".into(),
                since: 1_000,
                due: 201_000,
            }],
            unnoted: None,
        };
        let printer = Printer::new(Output::Table, Color::Never, true);
        let text = shown(&list, 1_000, printer);
        for part in [
            "2 messages wait",
            "3 of 5",
            "in 3m 20s",
            "in 2h 46m",
            "the CRM answered 503",
        ] {
            assert!(text.contains(part), "no `{part}` in\n{text}");
        }
        assert!(!text.contains("and more"), "{text}");
    }
}
