//! What a flow speaks of: images, secrets, environment variables and conditions. Whoever checks a file asks
//! for these first, to know what to find out.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::limits::{ACTIONS_MAX, CONDITION_BYTES_MAX};
use crate::model::Flow;
use crate::placeholder::{Piece, pieces};
use crate::source::Source;
use crate::tree::{self, Content};
use crate::webhook::Webhook;

/// What a flow speaks of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct References {
    /// The images of its steps.
    pub images: BTreeSet<String>,
    /// The names of its `${secrets.…}`.
    pub secrets: BTreeSet<String>,
    /// The names of its `${env.…}`.
    pub env: BTreeSet<String>,
    /// The conditions of its steps, and what they order messages by.
    pub conditions: BTreeSet<String>,
}

impl References {
    fn text(&mut self, text: &str) {
        for piece in pieces(text) {
            match piece {
                Piece::Secret(name) => _ = self.secrets.insert(name.to_owned()),
                Piece::Env(name) => _ = self.env.insert(name.to_owned()),
                Piece::Literal(_) | Piece::Bad(..) => {}
            }
        }
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::String(text) => self.text(text),
            Value::Array(items) => items.iter().for_each(|item| self.value(item)),
            Value::Object(entries) => entries.values().for_each(|item| self.value(item)),
            _ => {}
        }
    }
}

/// What a checked flow speaks of.
pub fn references(flow: &Flow) -> References {
    let mut references = References::default();
    for text in flow.webhook.iter().flat_map(Webhook::texts) {
        references.text(text);
    }
    for step in &flow.steps {
        references.images.insert(step.image.clone());
        references.conditions.extend(step.when.clone());
        let order = step.order.as_ref().map(|order| order.by.clone());
        references.conditions.extend(order);
        references.value(&step.with);
        step.env
            .values()
            .chain(&step.command)
            .for_each(|text| references.text(text));
    }
    references
}

/// What a file speaks of, as far as it can be read: it may still be wrong in every other way.
pub fn references_in(source: &Source) -> References {
    let mut references = References::default();
    let root = source
        .text()
        .ok()
        .and_then(|text| tree::parse(text, &mut Vec::new()));
    let Some(root) = root else { return references };
    let trigger = root.entry("trigger").map(|entry| &entry.value);
    let actions = root
        .entry("actions")
        .map(|entry| entry.value.items())
        .unwrap_or_default();
    for step in trigger.into_iter().chain(actions.iter().take(ACTIONS_MAX)) {
        if let Some(Content::Text(image)) = step.entry("image").map(|entry| &entry.value.content)
            && crate::image::fault(image).is_none()
        {
            references.images.insert(image.clone());
        }
        for key in ["when", "order_by"] {
            if let Some(Content::Text(filter)) = step.entry(key).map(|entry| &entry.value.content)
                && filter.len() <= CONDITION_BYTES_MAX
            {
                references.conditions.insert(filter.clone());
            }
        }
        for key in ["with", "env", "command", "webhook"] {
            for (_, text) in step
                .entry(key)
                .map(|entry| entry.value.texts())
                .unwrap_or_default()
            {
                references.text(text);
            }
        }
    }
    references
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_read_of_a_wrong_file_is_found() {
        let source = Source::new(
            "f",
            "trigger: {image: 'a:1', with: {a: ['${env.A}']}, wrong: '${env.B}'}\n\
             actions: [{image: b, when: .a, order_by: .b, env: {X: '${secrets.s}'}}, {image: 'NO'}, 3]",
        );
        let found = references_in(&source);
        assert_eq!(
            found.images,
            BTreeSet::from(["a:1".to_owned(), "b".to_owned()])
        );
        assert_eq!(found.env, BTreeSet::from(["A".to_owned()]));
        assert_eq!(found.secrets, BTreeSet::from(["s".to_owned()]));
        let filters = [".a".to_owned(), ".b".to_owned()];
        assert_eq!(found.conditions, BTreeSet::from(filters));
        assert_eq!(
            references_in(&Source::new("f", "a: [")),
            References::default()
        );
    }
}
