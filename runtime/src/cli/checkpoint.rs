//! `towpath checkpoint show`, `set`, `reset`

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::Value;

use super::problem::Problem;
use super::words::{apart, moment};
use super::{Context, ExitStatus};
use crate::control::view::{CheckpointValue, CheckpointView};
use crate::store::now_ms;

/// Shows and changes where a flow's trigger is in its source.
#[derive(Debug, Subcommand)]
pub(super) enum Checkpoint {
    /// Shows it: the position, its version, when it was saved and by which run
    Show {
        /// The flow
        flow: String,
    },
    /// Says where the trigger is to go on from
    Set {
        /// The flow
        flow: String,
        /// The position: the JSON that the trigger saves
        #[arg(value_name = "JSON", value_parser = json)]
        value: Value,
        #[command(flatten)]
        choice: Choice,
    },
    /// Takes it away: the trigger begins from the beginning
    Reset {
        /// The flow
        flow: String,
        #[command(flatten)]
        choice: Choice,
    },
}

/// When it is written.
#[derive(Debug, Args)]
pub(super) struct Choice {
    /// Only if this is its version: nobody has written it since it was looked at
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
    /// Also while a run is under way, which then can save no more
    #[arg(long)]
    force: bool,
}

impl Choice {
    fn query(&self) -> Vec<(&'static str, String)> {
        let mut query = vec![("force", self.force.to_string())];
        query.extend(
            self.if_version
                .map(|version| ("version", version.to_string())),
        );
        query
    }
}

fn json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}"))
}

pub(super) async fn run(command: Checkpoint, context: &Context) -> Result<ExitStatus, Problem> {
    let client = context.client()?;
    let path = |flow: &'_ str| ["flows".to_owned(), flow.to_owned(), "checkpoint".to_owned()];
    let (view, is_written): (CheckpointView, bool) = match command {
        Checkpoint::Show { flow } => {
            let path = path(&flow);
            (
                client
                    .get(&path.each_ref().map(String::as_str), &[])
                    .await?,
                false,
            )
        }
        Checkpoint::Set {
            flow,
            value,
            choice,
        } => {
            let path = path(&flow);
            let path = path.each_ref().map(String::as_str);
            let body = CheckpointValue { value };
            let view = client
                .send(Method::PUT, &path, &choice.query(), &body)
                .await?;
            (view, true)
        }
        Checkpoint::Reset { flow, choice } => {
            let path = path(&flow);
            let path = path.each_ref().map(String::as_str);
            let view = client
                .send(Method::DELETE, &path, &choice.query(), &Value::Null)
                .await?;
            (view, true)
        }
    };
    if context.printer.is_json() {
        context.printer.json(&view);
    } else {
        context.printer.line(&words(&view, is_written, now_ms()));
    }
    Ok(ExitStatus::Done)
}

fn words(view: &CheckpointView, is_written: bool, now: u64) -> String {
    let trigger = format!("`{}` of `{}`", view.step, view.flow);
    let Some(saved_at) = view.saved_at else {
        return format!("{trigger} has saved nothing yet: it begins from the beginning");
    };
    let by = match &view.run {
        Some(run) => format!("by run {run}"),
        None => "by hand".to_owned(),
    };
    let mut lines = Vec::new();
    match (&view.value, is_written) {
        (Some(_), true) => lines.push(format!("{trigger} goes on from here with its next run")),
        (None, true) => lines.push(format!(
            "{trigger} begins from the beginning with its next run"
        )),
        (None, false) => lines.push(format!("{trigger} begins from the beginning")),
        (Some(_), false) => {}
    }
    if let Some(value) = &view.value {
        lines.push(format!("checkpoint  {value}"));
    }
    lines.push(format!("version     {}", view.version));
    lines.push(format!(
        "saved       {} ago, {} UTC, {by}",
        apart(now, saved_at),
        moment(saved_at)
    ));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_where_the_trigger_is_and_who_said_so() {
        let mut view = CheckpointView {
            flow: "orders-to-crm".into(),
            step: "orders".into(),
            connection: "default".into(),
            version: 7,
            value: Some(serde_json::json!({"since": "2026-11-21T10:03:11Z"})),
            saved_at: Some(1_795_737_600_000),
            run: Some("0199a3b2".into()),
        };
        let now = 1_795_737_660_000;
        insta::assert_snapshot!(words(&view, false, now), @r#"
        checkpoint  {"since":"2026-11-21T10:03:11Z"}
        version     7
        saved       60s ago, 2026-11-27 00:00:00 UTC, by run 0199a3b2
        "#);
        view.run = None;
        view.value = None;
        insta::assert_snapshot!(words(&view, true, now), @r"
        `orders` of `orders-to-crm` begins from the beginning with its next run
        version     7
        saved       60s ago, 2026-11-27 00:00:00 UTC, by hand
        ");
        view.saved_at = None;
        insta::assert_snapshot!(words(&view, false, now), @"`orders` of `orders-to-crm` has saved nothing yet: it begins from the beginning");
    }
}
