//! How messages are handed to an action: `validate`.

use super::Steps;
use crate::model::{Handing, Validate};
use crate::tree::Node;

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
    }
}
