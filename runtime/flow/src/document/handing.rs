//! How messages are handed to an action: `validate`, `rate`, `batch`.

use towpath_protocol::handing::{Batch, Rate};

use super::Steps;
use crate::diagnostic::{Code, Diagnostic};
use crate::keys;
use crate::limits;
use crate::model::{Handing, Validate};
use crate::text::shown;
use crate::tree::{Entry, Node};
use crate::units::parse_rate;

impl Steps<'_, '_> {
    /// The keys of actions about how messages are handed to them.
    pub(super) fn handing(&mut self, node: &Node, handing: &mut Handing) {
        if let Some(entry) = node.entry("validate") {
            let choices = ["off", "warn", "dead-letter"];
            handing.validate = match self.reader.choice(&entry.value, "`validate`", &choices) {
                Some("warn") => Validate::Warn,
                Some("dead-letter") => Validate::DeadLetter,
                _ => Validate::Off,
            };
        }
        if let Some(entry) = node.entry("rate") {
            handing.rate = self.step_rate(&entry.value);
        }
        if let Some(entry) = node.entry("batch") {
            handing.batch = self.batch(entry, node, handing.rate);
        }
    }

    fn batch(&mut self, entry: &Entry, step: &Node, rate: Option<Rate>) -> Option<Batch> {
        let node = &entry.value;
        self.reader.mapping(node, "`batch`", &[keys::BATCH])?;
        if let Some(concurrency) = step.entry("concurrency") {
            self.reader.report(
                Diagnostic::new(
                    Code::BatchClash,
                    "`concurrency` has no meaning with `batch`",
                )
                .at(concurrency.key_span.clone())
                .label("one batch is in the hands of a replica at a time")
                .help("leave it out: `max` says how many messages that is at most"),
            );
        }
        if let Some(rate) = rate.filter(|rate| rate.per_second() < limits::BATCH_RATE_MIN) {
            let span = step.entry("rate").map(|rate| rate.value.span.clone());
            self.reader.report(
                Diagnostic::new(
                    Code::BatchClash,
                    format!("a `rate` of {rate} is too low for `batch`"),
                )
                .at(span.unwrap_or_else(|| entry.key_span.clone()))
                .label("what is gathered for the next batch would wait for too long")
                .help("write `1/s` or more, or leave `batch` out"),
            );
        }
        let Some(max) = node.entry("max") else {
            let help = "write how many are handed over together: `batch: { max: 500, wait: 1s }`";
            self.reader
                .missing(node, "`batch`", "max", entry.key_span.clone(), help);
            return None;
        };
        let max = self.reader.whole(&max.value, "`max`", &limits::BATCH_MAX);
        let wait = node.entry("wait").and_then(|wait| {
            self.reader
                .duration_or_zero(&wait.value, "`wait`", &limits::BATCH_WAIT)
        });
        Some(Batch {
            max: u32::try_from(max?).expect("it is in its range"),
            wait_ms: u64::try_from(wait.unwrap_or_default().as_millis())
                .expect("it is in its range"),
        })
    }

    fn step_rate(&mut self, node: &Node) -> Option<Rate> {
        let text = self.reader.text(node, "`rate`")?;
        let (count, per_ms) = match parse_rate(text) {
            Ok(rate) => rate,
            Err(unreadable) => {
                self.reader.report(
                    Diagnostic::new(Code::BadStepRate, format!("{} is not a rate", shown(text)))
                        .at(node.span.clone())
                        .label(unreadable.why)
                        .help(unreadable.help),
                );
                return None;
            }
        };
        let (least, most) = (*limits::RATE_COUNT.start(), *limits::RATE_COUNT.end());
        let count = u32::try_from(count)
            .ok()
            .filter(|it| limits::RATE_COUNT.contains(&u64::from(*it)));
        if count.is_none() {
            self.reader.report(
                Diagnostic::new(
                    Code::OutOfRange,
                    format!("`rate` cannot be {}", shown(text)),
                )
                .at(node.span.clone())
                .label(format!("it can be {least} to {most} in its time"))
                .help("`stop` or `pause` the step to hand it nothing"),
            );
        }
        Some(Rate {
            count: count?,
            per_ms,
        })
    }
}
