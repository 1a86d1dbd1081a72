//! `towpath logs`

use clap::Args;
use futures_util::StreamExt;
use towpath_protocol::log::{LogLine, LogSource};

use super::printer::{Printer, Tone};
use super::problem::Problem;
use super::{Context, ExitStatus, words};

/// Shows the logs of a flow's steps, all replicas together.
#[derive(Debug, Args)]
pub(super) struct Logs {
    /// The flow
    flow: String,
    /// Of this step only
    step: Option<String>,
    /// Goes on as lines come
    #[arg(long, short)]
    follow: bool,
    /// How many of the last lines of each replica
    #[arg(long, value_name = "LINES", default_value_t = 100)]
    tail: u32,
}

pub(super) async fn run(command: &Logs, context: &Context) -> Result<ExitStatus, Problem> {
    let mut query = vec![
        ("tail", command.tail.to_string()),
        ("follow", command.follow.to_string()),
    ];
    if let Some(step) = &command.step {
        query.push(("step", step.clone()));
    }
    let progress = context.printer.progress("reading logs");
    let response = context
        .client()?
        .stream(&["flows", &command.flow, "logs"], &query)
        .await;
    drop(progress);
    let mut chunks = response?.bytes_stream();
    let mut rest: Vec<u8> = Vec::new();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| {
            Problem::could_not("the control plane broke off").because(&error.without_url())
        })?;
        rest.extend_from_slice(&chunk);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            print(&line, context.printer);
        }
    }
    Ok(ExitStatus::Done)
}

fn print(line: &[u8], printer: Printer) {
    let Ok(line) = std::str::from_utf8(line).map(str::trim_end) else {
        return;
    };
    match serde_json::from_str::<LogLine<'_>>(line) {
        Ok(parsed) if !printer.is_json() => printer.line(&text(&parsed, printer)),
        _ => printer.line(line),
    }
}

fn text(line: &LogLine<'_>, printer: Printer) -> String {
    let tone = match &*line.level {
        "error" => Tone::Bad,
        "warn" => Tone::Fair,
        "debug" | "trace" => Tone::Faint,
        _ => Tone::Good,
    };
    let who = format!("{}/{}", line.step, line.replica);
    let source = match line.source {
        LogSource::Agent => " agent:",
        LogSource::Stderr => " stderr:",
        LogSource::Stdout | LogSource::Step => "",
    };
    let id = line
        .message_id
        .map(|id| printer.tone(&format!(" [{id}]"), Tone::Faint))
        .unwrap_or_default();
    format!(
        "{} {} {who}{}{id} {}",
        printer.tone(&words::time_of_day(line.at), Tone::Faint),
        printer.tone(&format!("{:5}", line.level), tone),
        printer.tone(source, Tone::Faint),
        line.text
    )
}
