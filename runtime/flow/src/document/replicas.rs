//! `replicas`: a number, or how the work counts them.

use super::Steps;
use crate::diagnostic::{Code, Diagnostic};
use crate::keys;
use crate::limits;
use crate::model::{Autoscale, Replicas, ScaleBy};
use crate::read::{head, is_misspelt};
use crate::tree::{Content, Entry, Node};

const BOTH_WAYS: &str = "write `replicas: { min: 1, max: 8, backlog_per_replica: 500 }` or `replicas: { min: 1, max: 8, latency: 30s }`";

impl Steps<'_, '_> {
    /// Reads how many replicas a step has; none if that cannot be read.
    pub(super) fn replicas(&mut self, entry: &Entry, is_trigger: bool) -> Option<Replicas> {
        let node = &entry.value;
        if !matches!(node.content, Content::Mapping(_)) {
            let count = self.reader.whole(node, "`replicas`", &limits::REPLICAS)?;
            return Some(Replicas::Fixed(small(count)));
        }
        if is_trigger {
            self.reader.report(
                Diagnostic::new(
                    Code::TriggerScaled,
                    "the replicas of a trigger cannot be counted by the work",
                )
                .at(entry.key_span.clone())
                .label("this can only be a number")
                .help("scale the actions after it: nothing waits in front of a trigger"),
            );
            return None;
        }
        self.autoscale(node).map(Replicas::Auto)
    }

    fn autoscale(&mut self, node: &Node) -> Option<Autoscale> {
        let reader = &mut self.reader;
        reader.mapping(node, "`replicas`", &[keys::AUTOSCALE])?;
        let min = match node.entry("min") {
            Some(entry) => reader
                .whole(&entry.value, "`min`", &limits::REPLICAS_MIN)
                .map(small),
            None => Some(1),
        };
        let max = if let Some(entry) = node.entry("max") {
            reader
                .whole(&entry.value, "`max`", &limits::REPLICAS)
                .map(small)
        } else {
            self.without_max(node);
            None
        };
        let by = self.scale_by(node);
        let (min, max) = (min?, max?);
        if let (true, Some(entry)) = (min > max, node.entry("min").or(node.entry("max"))) {
            self.reader.report(
                Diagnostic::new(
                    Code::OutOfRange,
                    format!("`min` cannot be {min}, which is more than `max`"),
                )
                .at(entry.value.span.clone())
                .label(format!("it can be from 0 to {max}")),
            );
            return None;
        }
        Some(Autoscale { min, max, by: by? })
    }

    fn without_max(&mut self, node: &Node) {
        let names: Vec<&str> = keys::AUTOSCALE.iter().map(|key| key.name).collect();
        if is_misspelt(node, "max", &names) {
            return; // It is reported as an unknown key.
        }
        self.reader.report(
            Diagnostic::new(Code::MissingKey, "`replicas` has no `max`")
                .at(head(node))
                .label("`max` is missing")
                .help("say how many containers there may be: `max: 8`"),
        );
    }

    /// Exactly one of the two ways to count.
    fn scale_by(&mut self, node: &Node) -> Option<ScaleBy> {
        let reader = &mut self.reader;
        match (node.entry("backlog_per_replica"), node.entry("latency")) {
            (Some(entry), None) => {
                let range = &limits::BACKLOG_PER_REPLICA;
                let count = reader.whole(&entry.value, "`backlog_per_replica`", range)?;
                Some(ScaleBy::Backlog {
                    per_replica: small(count),
                })
            }
            (None, Some(entry)) => reader
                .duration(&entry.value, "`latency`", &limits::SCALE_LATENCY)
                .map(ScaleBy::Latency),
            (Some(one), Some(other)) => {
                let (first, second) = if one.key_span.start < other.key_span.start {
                    (one, other)
                } else {
                    (other, one)
                };
                reader.report(
                    Diagnostic::new(Code::ScaleWays, "`replicas` has two ways to count the work")
                        .at(second.key_span.clone())
                        .label("the second one")
                        .related(first.key_span.clone(), "the first one")
                        .help("leave one out"),
                );
                None
            }
            (None, None) => {
                let names: Vec<&str> = keys::AUTOSCALE.iter().map(|key| key.name).collect();
                let is_meant = ["backlog_per_replica", "latency"]
                    .iter()
                    .any(|key| is_misspelt(node, key, &names));
                if !is_meant {
                    reader.report(
                        Diagnostic::new(
                            Code::ScaleWays,
                            "`replicas` does not say how to count the work",
                        )
                        .at(head(node))
                        .label("neither `backlog_per_replica` nor `latency` is here")
                        .help(BOTH_WAYS),
                    );
                }
                None
            }
        }
    }
}

fn small(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
