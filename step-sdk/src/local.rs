//! `run-local`: tries a step on a laptop, with inputs from standard input and outputs on standard
//! output.

use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::sync::Arc;

use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::mpsc;
use towpath_protocol::frame::{Failed, Fate, Tick, ToStep, Why};
use towpath_protocol::manifest::Kind;
use towpath_protocol::message::Message;
use towpath_protocol::{DEFAULT_PORT, MessageId};

use crate::error::{Result, ResultExt, StepError};
use crate::handler::Handler;
use crate::outbox::Outbox;
use crate::rehearsal::{Line, Part, Said, rehearse};
use crate::step::{Setup, Step};

/// How many messages the step has at a time, unless it says itself.
const CONCURRENCY: u32 = 16;

/// The command's options.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// The file that holds the configuration.
    config: Option<String>,
    /// The file that holds a poll trigger's checkpoint.
    checkpoint: Option<String>,
    /// Print outputs with port, key and headers.
    full: bool,
}

impl Options {
    /// Reads them from the words after `run-local`.
    pub(crate) fn parse(words: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut words = words.into_iter();
        let mut options = Self::default();
        while let Some(word) = words.next() {
            let mut value = || {
                let missing = || StepError::permanent(format!("`{word}` needs a file"));
                words.next().ok_or_else(missing)
            };
            match word.as_str() {
                "--config" => options.config = Some(value()?),
                "--checkpoint" => options.checkpoint = Some(value()?),
                "--full" => options.full = true,
                // What follows is the step's own.
                "--" => break,
                _ => return Err(StepError::permanent(format!("unknown option `{word}`"))),
            }
        }
        Ok(options)
    }
}

/// Runs a step on what comes on standard input. The exit code is 1 if a message was not handled.
pub(crate) fn run<H: Handler, P: Setup<H::Config, H::State>>(
    step: Step<H, P>,
    options: &Options,
) -> Result<ExitCode> {
    let config = options.config.as_deref().map_or_else(
        || Ok(RawValue::NULL.to_owned()),
        |path| read_json(path).with_context(|| format!("cannot read the configuration `{path}`")),
    )?;
    let concurrency = step.manifest().concurrency.unwrap_or(CONCURRENCY);
    let part = Part {
        flow: "local".into(),
        step: "local".into(),
        concurrency,
        config,
    };
    let lines = match step.handler.kind() {
        Kind::Poll => one_tick(options.checkpoint.as_deref())?,
        Kind::Action | Kind::Webhook => lines_of_stdin()?,
    };
    let outbox = Arc::new(Outbox::default());
    let mut printer = Printer {
        full: options.full,
        checkpoint: None,
        failed: false,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(rehearse(step, &part, &outbox, lines, |said| {
        printer.hear(&said);
    }));
    if let (Some(path), Some(checkpoint)) = (&options.checkpoint, &printer.checkpoint) {
        std::fs::write(path, checkpoint.get())
            .with_context(|| format!("cannot write the checkpoint `{path}`"))?;
    }
    Ok(ExitCode::from(u8::from(printer.failed)))
}

fn read_json(path: &str) -> Result<Box<RawValue>> {
    let text = std::fs::read_to_string(path)?;
    let value: serde_json::Value = serde_json::from_str(&text)?;
    Ok(to_raw_value(&value)?)
}

/// One tick, with the checkpoint that the file holds, if it is there.
fn one_tick(checkpoint: Option<&str>) -> Result<mpsc::Receiver<Line>> {
    let checkpoint = checkpoint
        .filter(|path| std::path::Path::new(path).exists())
        .map(|path| read_json(path).with_context(|| format!("cannot read the checkpoint `{path}`")))
        .transpose()?;
    let (sender, lines) = mpsc::channel(1);
    let id = numbered(1);
    let due = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap_or_default();
    let tick = ToStep::Tick(Tick {
        id,
        attempt: 1,
        why: Why::Manual,
        due: u64::try_from(due.as_millis()).unwrap_or(u64::MAX),
        checkpoint: checkpoint.as_deref(),
        payload: None,
    });
    let text = serde_json::to_string(&tick)?;
    sender
        .try_send(Line { id, text })
        .expect("there is room for one");
    Ok(lines)
}

/// Each line of standard input is a body. The thread ends with the process.
fn lines_of_stdin() -> Result<mpsc::Receiver<Line>> {
    let (sender, lines) = mpsc::channel(1);
    std::thread::Builder::new()
        .name("stdin".into())
        .spawn(move || {
            for (index, line) in io::stdin().lock().lines().enumerate() {
                let Ok(line) = line else { return };
                if line.trim().is_empty() {
                    continue;
                }
                match message(index + 1, &line) {
                    Ok(line) => {
                        if sender.blocking_send(line).is_err() {
                            return;
                        }
                    }
                    Err(error) => note(&format!("line {} is not JSON: {error}", index + 1)),
                }
            }
        })?;
    Ok(lines)
}

fn message(number: usize, body: &str) -> serde_json::Result<Line> {
    let body: serde_json::Value = serde_json::from_str(body)?;
    let body = to_raw_value(&body)?;
    let id = numbered(number);
    let lineage = to_raw_value(&serde_json::json!({"run": id, "version": 1, "at": 0}))?;
    let text = serde_json::to_string(&ToStep::Message(Message::root(id, &lineage, &body)))?;
    Ok(Line { id, text })
}

/// The id of the message on a line is its number.
fn numbered(number: usize) -> MessageId {
    MessageId::from_bytes((number as u128).to_be_bytes())
}

fn number_of(id: MessageId) -> u128 {
    u128::from_be_bytes(*id.as_bytes())
}

struct Printer {
    full: bool,
    checkpoint: Option<Box<RawValue>>,
    failed: bool,
}

impl Printer {
    fn hear(&mut self, said: &Said<'_>) {
        match said {
            Said::Emit(emit) if self.full => {
                print(&serde_json::to_string(emit).unwrap_or_default());
            }
            Said::Emit(emit) => {
                if let Some(port) = emit.port.as_deref().filter(|port| *port != DEFAULT_PORT) {
                    note(&format!("line {}: by port `{port}`:", number_of(emit.id)));
                }
                print(emit.body.get());
            }
            Said::Done(_) | Said::Activated(_) => {}
            Said::Failed(failed) => {
                self.failed = true;
                note(&failure(failed));
            }
            Said::Checkpoint(checkpoint) => {
                note(&format!(
                    "checkpoint {}: {}",
                    checkpoint.number,
                    checkpoint.value.get()
                ));
                self.checkpoint = Some(checkpoint.value.to_owned());
            }
            Said::Log(log) => note(&format!("{}: {}", log.level, log.text)),
            Said::Refused(reason) => {
                self.failed = true;
                note(&format!("the configuration is refused: {reason}"));
            }
        }
    }
}

fn failure(failed: &Failed<'_>) -> String {
    let fate = match failed.fate {
        Fate::Retry => "would be tried again",
        Fate::Permanent => "would be a dead letter",
        Fate::Rebound => "would come again later",
    };
    let delay = failed
        .delay_ms
        .map(|ms| format!(" after {ms} ms"))
        .unwrap_or_default();
    let mut text = format!(
        "line {}: {fate}{delay}: {}",
        number_of(failed.id),
        failed.reason
    );
    for cause in &failed.chain {
        text.push_str("\n  cause: ");
        text.push_str(cause);
    }
    text
}

fn print(line: &str) {
    // Nobody reads any more: as if it had been read.
    drop(writeln!(io::stdout().lock(), "{line}"));
}

fn note(line: &str) {
    drop(writeln!(io::stderr().lock(), "{line}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Result<Options> {
        Options::parse(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_are_read() {
        let options = words("--config a.json --full").unwrap();
        assert_eq!(options.config.as_deref(), Some("a.json"));
        assert!(options.full);
        assert_eq!(
            words("--config").unwrap_err().reason(),
            "`--config` needs a file"
        );
        assert_eq!(words("--x").unwrap_err().reason(), "unknown option `--x`");
    }
}
