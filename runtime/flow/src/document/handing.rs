//! How messages are handed to an action: `validate`, `rate`.

use towpath_protocol::handing::Rate;

use super::Steps;
use crate::diagnostic::{Code, Diagnostic};
use crate::limits;
use crate::model::{Handing, Validate};
use crate::text::shown;
use crate::tree::Node;
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
