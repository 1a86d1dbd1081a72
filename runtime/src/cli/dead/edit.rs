//! `towpath dead edit`
//!
//! # Invariants
//!
//! - `what_was_typed_is_never_lost`: a text that cannot be stored stays in a file that is named.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use reqwest::Method;
use serde_json::json;
use serde_json::value::RawValue;

use super::super::problem::Problem;
use super::super::{Context, ExitStatus, verbs};
use super::many;
use super::select::Which;
use crate::control::dead::view::{EditManyRequest, EditRequest, ManyAnswer};
use crate::control::view::{DeadView, Done};
use crate::json_text::{compact, pretty};

/// The editor if the environment names none.
const EDITOR: &str = "vi";

/// Changes the body of a dead letter in `$VISUAL` or `$EDITOR`, or the bodies of many with a jq
/// expression. The original is kept; `--undo` brings it back.
#[derive(Debug, Args)]
pub(in crate::cli) struct Edit {
    /// Their numbers; one alone is opened in an editor
    ids: Vec<String>,
    #[command(flatten)]
    which: Which,
    /// All open ones
    #[arg(long)]
    all: bool,
    /// From the body as it is now to the new one; `$message` is the letter, as `dead export` shows it
    #[arg(long, value_name = "EXPRESSION")]
    jq: Option<String>,
    /// Brings the original bodies back
    #[arg(long, conflicts_with = "jq")]
    undo: bool,
    /// Only shows the first changes
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(command: &Edit, context: &Context) -> Result<ExitStatus, Problem> {
    if command.jq.is_some() || command.undo {
        return edit_many(command, context).await;
    }
    let ([id], true, false) = (&command.ids[..], command.which.is_empty(), command.all) else {
        return Err(
            Problem::no("only one dead letter at a time is edited in an editor")
                .hint("name one, or pass `--jq '<expression>'`"),
        );
    };
    let letter: DeadView = context.client()?.get(&["dead", id], &[]).await?;
    if letter.state != "open" {
        return Err(Problem::no(format!("dead letter {id} is {}", letter.state))
            .hint("only the body of an open one is edited"));
    }
    let Some(before) = letter.body else {
        return Err(Problem::could_not(
            "the control plane's answer holds no body",
        ));
    };
    let edited = in_editor(id, &before, &context.env)?;
    if compact(&edited.body).get() == compact(&before).get() {
        context.printer.line("nothing was changed");
        return edited.done().map(|()| ExitStatus::Done);
    }
    if command.dry_run {
        let before = pretty(&before) + "\n";
        let after = pretty(&edited.body) + "\n";
        let diff = similar::TextDiff::from_lines(&before, &after);
        let diff = diff.unified_diff().context_radius(2).to_string();
        context.printer.line(diff.trim_end());
        return edited.done().map(|()| ExitStatus::Done);
    }
    let request = EditRequest {
        body: edited.body.clone(),
    };
    let path = ["dead", id.as_str(), "body"];
    let done: Result<Done, Problem> = context
        .client()?
        .send(Method::PUT, &path, &[], &request)
        .await;
    let done = done.map_err(|problem| edited.kept(problem))?;
    edited.done()?;
    Ok(verbs::done(&done, context))
}

async fn edit_many(command: &Edit, context: &Context) -> Result<ExitStatus, Problem> {
    if let ([id], true, true, false) = (
        &command.ids[..],
        command.which.is_empty(),
        command.undo,
        command.dry_run,
    ) {
        let path = ["dead", id.as_str(), "body"];
        let done: Done = context
            .client()?
            .send(Method::DELETE, &path, &[], &json!({}))
            .await?;
        return Ok(verbs::done(&done, context));
    }
    let request = EditManyRequest {
        select: command.which.selection(&command.ids, command.all),
        jq: command.jq.clone(),
        undo: command.undo,
        dry_run: command.dry_run,
    };
    let answer: ManyAnswer = context
        .client()?
        .send(Method::POST, &["dead", "edit"], &[], &request)
        .await?;
    let (one, many) = if command.dry_run {
        ("would have another body", "would have other bodies")
    } else {
        ("has another body", "have other bodies")
    };
    many::done(&answer, one, many, context);
    Ok(ExitStatus::Done)
}

/// What came out of the editor.
#[derive(Debug)]
pub(super) struct Edited {
    /// The new body.
    pub(super) body: Box<RawValue>,
    /// Where it is, until it is stored.
    path: PathBuf,
}

impl Edited {
    /// It is stored, or not wanted: nothing of it stays.
    fn done(&self) -> Result<(), Problem> {
        std::fs::remove_file(&self.path).map_err(|error| {
            let message = format!("cannot remove `{}`", self.path.display());
            Problem::could_not(message).because(&error)
        })
    }

    /// It cannot be stored: it stays where it is.
    fn kept(&self, problem: Problem) -> Problem {
        let kept = kept(&self.path);
        let hint = match &problem.hint {
            Some(hint) => format!("{hint}; {kept}"),
            None => kept,
        };
        problem.hint(hint)
    }
}

fn kept(path: &Path) -> String {
    format!("what was typed is in `{}`", path.display())
}

/// Opens a body in the editor that the environment names, and reads what was saved.
pub(super) fn in_editor(
    id: &str,
    body: &RawValue,
    env: &BTreeMap<String, String>,
) -> Result<Edited, Problem> {
    let cannot = |what: &str, error: &std::io::Error| {
        Problem::could_not(format!("cannot {what} the text to edit")).because(error)
    };
    let file = tempfile::Builder::new()
        .prefix(&format!("dead-letter-{id}-"))
        .suffix(".json")
        .tempfile()
        .map_err(|error| cannot("make", &error))?;
    let (mut file, path) = file.keep().map_err(|error| cannot("keep", &error.error))?;
    writeln!(file, "{}", pretty(body)).map_err(|error| cannot("write", &error))?;
    drop(file);
    let named = ["VISUAL", "EDITOR"];
    let editor = named
        .iter()
        .find_map(|name| env.get(*name).filter(|value| !value.trim().is_empty()))
        .map_or(EDITOR, String::as_str);
    // Through a shell, because it may have options: `code --wait`.
    let status = Command::new("sh")
        .args(["-c", &format!("{editor} \"$1\""), "sh"])
        .arg(&path)
        .status()
        .map_err(|error| {
            Problem::could_not(format!("the editor `{editor}` cannot be started")).because(&error)
        })?;
    if !status.success() {
        return Err(
            Problem::no(format!("the editor `{editor}` ended with {status}")).hint(format!(
                "`VISUAL` or `EDITOR` names another; {}",
                kept(&path)
            )),
        );
    }
    let text = std::fs::read_to_string(&path).map_err(|error| cannot("read", &error))?;
    let body = serde_json::from_str::<Box<RawValue>>(text.trim_end()).map_err(|error| {
        Problem::no(format!(
            "the body is not JSON: line {}, column {}",
            error.line(),
            error.column()
        ))
        .because(&error)
        .hint(format!("nothing was changed; {}", kept(&path)))
    })?;
    Ok(Edited { body, path })
}
