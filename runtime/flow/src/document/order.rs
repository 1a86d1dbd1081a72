//! `order_by` and `partitions`: how the messages of an action are kept in order.

use std::time::Duration;

use super::{Draft, Steps};
use crate::diagnostic::{Code, Diagnostic};
use crate::limits;
use crate::model::{Order, Replicas};
use crate::text;
use crate::tree::Node;

/// How keys are written.
pub(crate) const ORDER_HELP: &str =
    "write a jq expression on the body that gives one value, for instance `.customer.id`";

impl Steps<'_, '_> {
    /// Reads both keys of an action, and looks whether the rest of it goes with them.
    pub(super) fn order(&mut self, node: &Node, draft: &mut Draft<'_>) {
        let Some(entry) = node.entry("order_by") else {
            if let Some(partitions) = node.entry("partitions") {
                self.reader.report(
                    Diagnostic::new(Code::PartitionsAlone, "`partitions` needs `order_by`")
                        .at(partitions.key_span.clone())
                        .label("of what?")
                        .help("say by what the messages are ordered, for instance `order_by: .customer.id`"),
                );
            }
            return;
        };
        draft.order_span = entry.value.span.clone();
        let by = self.order_by(&entry.value);
        let partitions = node.entry("partitions").and_then(|entry| {
            let allowed = &limits::PARTITIONS;
            self.reader.whole(&entry.value, "`partitions`", allowed)
        });
        let partitions = partitions.map_or(limits::PARTITIONS_DEFAULT, |number| {
            u32::try_from(number).unwrap_or(u32::MAX)
        });
        let Some(by) = by else {
            return;
        };
        self.order_fits(node, draft, partitions);
        draft.step.order = Some(Order { by, partitions });
    }

    /// The expression, as far as it can be read without compiling it.
    fn order_by(&mut self, node: &Node) -> Option<String> {
        let text = self.reader.text(node, "`order_by`")?;
        let fault = if text.trim().is_empty() {
            "it is empty".to_owned()
        } else if text.len() > limits::CONDITION_BYTES_MAX {
            let (bytes, most) = (text.len(), limits::CONDITION_BYTES_MAX);
            format!("it has {bytes} bytes; {most} are the most")
        } else {
            return Some(text.to_owned());
        };
        self.reader.report(
            Diagnostic::new(Code::BadOrder, "`order_by` is not a jq expression")
                .at(node.span.clone())
                .label(fault)
                .help(ORDER_HELP),
        );
        None
    }

    fn order_fits(&mut self, node: &Node, draft: &Draft<'_>, partitions: u32) {
        let longest = Duration::from_millis(draft.step.retry.max_ms);
        if longest > limits::HELD_MAX {
            let at = node
                .entry("retry")
                .map_or(draft.order_span.clone(), |it| it.value.span.clone());
            let most = text::duration(limits::HELD_MAX);
            self.reader.report(
                Diagnostic::new(
                    Code::LongHold,
                    format!(
                        "a step with `order_by` cannot wait {} for the next attempt",
                        text::duration(longest)
                    ),
                )
                .at(at)
                .label(format!("{most} at most"))
                .help("all that is behind a message in its partition waits with it, and the broker waits 30m for it to be settled: use a shorter `max`"),
            );
        }
        if let Some(rate) = draft.step.handing.rate
            && rate.per_second() < limits::ORDERED_RATE_MIN
            && let Some(entry) = node.entry("rate")
        {
            self.reader.report(
                Diagnostic::new(
                    Code::LongHold,
                    "a step with `order_by` cannot have so low a rate",
                )
                .at(entry.value.span.clone())
                .label("1/s at least")
                .help("a message that waits for its turn in a partition is not settled meanwhile, and the broker waits 30m for that"),
            );
        }
        if let Some(entry) = node.entry("batch") {
            self.reader.report(
                Diagnostic::new(Code::BatchClash, "`batch` does not go with `order_by`")
                    .at(entry.key_span.clone())
                    .label("of each partition one message at a time is handed over")
                    .help("leave one of them out"),
            );
        }
        let replicas = match draft.step.replicas {
            Replicas::Fixed(count) => count,
            Replicas::Auto(auto) => auto.max,
        };
        if replicas > partitions
            && let Some(entry) = node.entry("replicas")
        {
            self.reader.report(
                Diagnostic::new(
                    Code::IdleReplicas,
                    format!("{replicas} replicas share {partitions} partitions"),
                )
                .at(entry.value.span.clone())
                .label("some of them will have nothing to do")
                .help(format!("of each partition one message at a time is handled: `partitions: {replicas}` or more")),
            );
        }
    }
}
