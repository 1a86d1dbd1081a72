//! The tree of a file, read as a flow: every key, its type, its limits and its default. How steps
//! hang together is looked at in [`crate::graph`], how they fit their images in [`crate::fit`].

use std::ops::Range;
use std::time::Duration;

use towpath_protocol::DEFAULT_PORT;

use crate::diagnostic::{Code, Diagnostic};
use crate::keys;
use crate::limits;
use crate::model::{Fires, Missed, Overlap, Replicas, Step};
use crate::read::{Reader, head, is_name};
use crate::text::shown;
use crate::tree::{Content, Entry, Node};
use crate::webhook::Webhook;

mod handing;
mod order;
mod replicas;
mod schedule;
mod step;
mod webhook;

pub(crate) use order::ORDER_HELP;

pub(crate) use webhook::AUTH_TYPES;

/// A flow whose parts were read, one by one.
#[derive(Debug)]
pub(crate) struct Document<'t> {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) fires: Option<Fires>,
    pub(crate) overlap: Overlap,
    pub(crate) missed: Missed,
    /// What `track` says, if it says something.
    pub(crate) track: Option<bool>,
    /// What its webhook asks of requests, if it has one.
    pub(crate) webhook: Option<Webhook>,
    /// The trigger first, if there is one, then the actions.
    pub(crate) drafts: Vec<Draft<'t>>,
}

/// A step whose keys were read. What could not be read has its default.
#[derive(Debug)]
pub(crate) struct Draft<'t> {
    /// The step; its id is empty if there is none. `after` is filled in by the graph.
    pub(crate) step: Step,
    /// Whether it runs as a container: a webhook trigger may have no image.
    pub(crate) has_image: bool,
    /// Where its id is, or where it begins.
    pub(crate) place: Range<usize>,
    pub(crate) image_span: Range<usize>,
    /// What `after` says; none if it says nothing.
    pub(crate) after: Option<Vec<After>>,
    /// Where its condition is.
    pub(crate) when_span: Range<usize>,
    /// The flow that it hands messages to; empty if that cannot be read.
    pub(crate) to: Option<String>,
    pub(crate) to_span: Range<usize>,
    pub(crate) with: Option<&'t Entry>,
    /// Where its `order_by` is.
    pub(crate) order_span: Range<usize>,
    pub(crate) validate: Option<&'t Entry>,
    pub(crate) batch: Option<&'t Entry>,
    pub(crate) folders: Option<&'t Entry>,
}

/// An entry of `after`.
#[derive(Debug)]
pub(crate) struct After {
    pub(crate) step: String,
    pub(crate) port: String,
    pub(crate) span: Range<usize>,
}

/// Reads the tree.
pub(crate) fn read<'t>(root: &'t Node, text: &str, found: &mut Vec<Diagnostic>) -> Document<'t> {
    let mut steps = Steps {
        reader: Reader { found },
        text,
    };
    let mut document = Document {
        name: String::new(),
        description: String::new(),
        fires: None,
        overlap: Overlap::default(),
        missed: Missed::default(),
        track: None,
        webhook: None,
        drafts: Vec::new(),
    };
    let reader = &mut steps.reader;
    if reader.mapping(root, "the flow", &[keys::FLOW]).is_none() {
        return document;
    }
    let place = head(root);
    match root.entry("flow") {
        Some(entry) => {
            reader
                .name(&entry.value, "`flow`")
                .unwrap_or_default()
                .clone_into(&mut document.name);
        }
        None => reader.missing(
            root,
            "the flow",
            "flow",
            place.clone(),
            "begin with its name: `flow: orders-to-crm`",
        ),
    }
    if let Some(entry) = root.entry("description") {
        document.description = steps.description(&entry.value);
    }
    let track = root.entry("track");
    if let Some(entry) = track {
        document.track = steps.reader.flag(&entry.value, "`track`");
    }
    match root.entry("trigger") {
        Some(entry) => {
            let (draft, fires) = steps.trigger(&entry.value);
            (document.overlap, document.missed) = steps.policies(&entry.value, fires.as_ref());
            document.fires = fires;
            if let (Some(Fires::Flows), Some(track)) = (&document.fires, track) {
                steps.reader.report(schedule::tracked_elsewhere(track));
            }
            document.webhook = entry
                .value
                .entry("webhook")
                .map(|entry| steps.webhook(&entry.value));
            document.drafts.extend(draft);
            steps.reply_is_tracked(root, &document);
        }
        None => steps.reader.missing(
            root,
            "the flow",
            "trigger",
            place.clone(),
            "a trigger brings messages in: `trigger: { id: orders, webhook: true }`",
        ),
    }
    match root.entry("actions") {
        Some(entry) => document.drafts.extend(steps.actions(entry)),
        None => steps
            .reader
            .missing(root, "the flow", "actions", place, NO_ACTIONS),
    }
    document
}

const NO_ACTIONS: &str =
    "list what is to happen: `actions: [{ id: log, image: \"towpath/log:1\" }]`";

/// How conditions are written.
pub(crate) const CONDITION_HELP: &str =
    "write a jq filter on the body, for instance `.total > 100` or `.kind == \"order\"`";

struct Steps<'a, 'f> {
    reader: Reader<'f>,
    text: &'a str,
}

impl Steps<'_, '_> {
    fn description(&mut self, node: &Node) -> String {
        let text = self
            .reader
            .text(node, "`description`")
            .unwrap_or_default()
            .trim();
        let length = text.chars().count();
        if length > limits::DESCRIPTION_CHARS_MAX {
            self.reader.report(
                Diagnostic::new(
                    Code::OutOfRange,
                    format!("`description` cannot have {length} characters"),
                )
                .at(node.span.clone())
                .label(format!(
                    "it can have up to {}",
                    limits::DESCRIPTION_CHARS_MAX
                )),
            );
        }
        text.to_owned()
    }

    /// Whoever waits is given the id of the run, and told when nothing can come of it any more.
    fn reply_is_tracked(&mut self, root: &Node, document: &Document<'_>) {
        let replies = document
            .webhook
            .as_ref()
            .is_some_and(|it| it.reply.is_some());
        if let (true, Some(false), Some(entry)) = (replies, document.track, root.entry("track")) {
            self.reader.report(
                Diagnostic::new(
                    Code::ReplyUntracked,
                    "`track` cannot be `false` in a flow whose webhook has `reply`",
                )
                .at(entry.value.span.clone())
                .label("the answer is kept with the run")
                .help("leave it out: with `reply` it is `true`"),
            );
        }
    }

    fn actions<'t>(&mut self, entry: &'t Entry) -> Vec<Draft<'t>> {
        let items = match &entry.value.content {
            Content::Null => &[],
            _ => self
                .reader
                .items(&entry.value, "`actions`", "begin every action with `- id:`")
                .unwrap_or_default(),
        };
        let is_empty_list = matches!(&entry.value.content, Content::Null)
            || matches!(&entry.value.content, Content::List(items) if items.is_empty());
        if is_empty_list {
            self.reader.report(
                Diagnostic::new(Code::NoActions, "the flow has no actions")
                    .at(entry.key_span.clone())
                    .label("nothing is in it")
                    .help(NO_ACTIONS),
            );
        }
        if let Some(excess) = items.get(limits::ACTIONS_MAX) {
            self.reader.report(
                Diagnostic::new(
                    Code::OutOfRange,
                    format!("`actions` cannot have {} entries", items.len()),
                )
                .at(head(excess))
                .label(format!("this is one more than {}", limits::ACTIONS_MAX))
                .help("make two flows of it"),
            );
        }
        items
            .iter()
            .take(limits::ACTIONS_MAX)
            .filter_map(|item| self.action(item))
            .collect()
    }

    fn action<'t>(&mut self, node: &'t Node) -> Option<Draft<'t>> {
        self.reader
            .mapping(node, "an action", &[keys::STEP, keys::ACTION])?;
        let mut draft = self.step(node, "the action", false, limits::TIMEOUT_DEFAULT);
        draft.after = node.entry("after").map(|entry| self.after(&entry.value));
        if let Some(entry) = node.entry("when") {
            draft.when_span = entry.value.span.clone();
            draft.step.when = self.condition(&entry.value);
        }
        self.order(node, &mut draft);
        if let Some(entry) = node.entry("to") {
            self.handover(node, entry, &mut draft);
        } else if !draft.has_image {
            self.need_image(node, &draft);
        }
        Some(draft)
    }

    /// An action that hands messages to another flow runs nowhere, and has no other keys.
    fn handover(&mut self, node: &Node, entry: &Entry, draft: &mut Draft<'_>) {
        draft.has_image = false;
        draft.to_span = entry.value.span.clone();
        draft.to = Some(String::new());
        if let Some(text) = self.reader.text(&entry.value, "`to`") {
            match text.strip_prefix("flow/") {
                Some(name) if is_name(name) => draft.to = Some(name.to_owned()),
                _ => self.reader.report(
                    Diagnostic::new(Code::BadName, format!("{} names no flow", shown(text)))
                        .at(entry.value.span.clone())
                        .label("`to` is `flow/` and the name of a flow")
                        .help("write for instance `to: flow/invoices`"),
                ),
            }
        }
        let Content::Mapping(entries) = &node.content else {
            return;
        };
        for other in entries {
            let is_known = |keys: &[keys::Key]| keys.iter().any(|key| key.name == other.key);
            let is_used = matches!(&*other.key, "id" | "after" | "when" | "to");
            if !is_used && (is_known(keys::STEP) || is_known(keys::ACTION)) {
                self.reader.report(
                    Diagnostic::new(
                        Code::NeedsImage,
                        format!(
                            "{} hands messages over, and has no use for `{}`",
                            describe(&draft.step),
                            other.key
                        ),
                    )
                    .at(other.key_span.clone())
                    .label("this is for steps that run")
                    .related(entry.key_span.clone(), "it hands over here")
                    .help("make two actions of it: one that runs, and one after it with `to`"),
                );
            }
        }
    }

    fn trigger<'t>(&mut self, node: &'t Node) -> (Option<Draft<'t>>, Option<Fires>) {
        if self
            .reader
            .mapping(node, "the trigger", &[keys::STEP, keys::TRIGGER])
            .is_none()
        {
            return (None, None);
        }
        let fires = self.fires(node);
        let is_poll = schedule::is_ticked(node);
        let timeout = if is_poll {
            Duration::ZERO
        } else {
            limits::TIMEOUT_DEFAULT
        };
        let mut draft = self.step(node, "the trigger", true, timeout);
        if fires == Some(Fires::Flows) {
            draft.has_image = false;
            self.runs_nowhere(node);
        } else if !draft.has_image {
            if is_poll {
                self.need_image(node, &draft);
            } else if fires == Some(Fires::Webhook) && node.entry("image").is_none() {
                self.without_image(node);
            }
        }
        if let (true, Replicas::Fixed(count @ 2..), Some(entry)) =
            (is_poll, draft.step.replicas, node.entry("replicas"))
        {
            self.reader.report(
                Diagnostic::new(
                    Code::OutOfRange,
                    format!(
                        "`replicas` cannot be {count} with `{}`",
                        schedule::way(node)
                    ),
                )
                .at(entry.value.span.clone())
                .label("it can only be 1")
                .help("a trigger that is fired by ticks has one checkpoint, and so one replica"),
            );
            draft.step.replicas = Replicas::Fixed(1);
        }
        (Some(draft), fires)
    }

    fn need_image(&mut self, node: &Node, draft: &Draft<'_>) {
        // One that is there and wrong was reported as such.
        if draft.image_span.is_empty() {
            let what = describe(&draft.step);
            self.reader.missing(
                node,
                &what,
                "image",
                draft.place.clone(),
                "name what runs: `image: towpath/jq:1`",
            );
        }
    }

    /// A webhook trigger without an image takes no other keys.
    fn without_image(&mut self, node: &Node) {
        let Content::Mapping(entries) = &node.content else {
            return;
        };
        for entry in entries {
            if !matches!(&*entry.key, "id" | "once")
                && keys::STEP.iter().any(|key| key.name == entry.key)
            {
                self.reader.report(
                    Diagnostic::new(
                        Code::NeedsImage,
                        format!(
                            "the trigger has no image, and so no use for `{}`",
                            entry.key
                        ),
                    )
                    .at(entry.key_span.clone())
                    .label("this needs an `image`")
                    .help("without an image, each request goes straight to the first action"),
                );
            }
        }
    }

    /// A condition, as far as it can be read without compiling it.
    fn condition(&mut self, node: &Node) -> Option<String> {
        let text = self.reader.text(node, "`when`")?;
        let fault = if text.trim().is_empty() {
            "it is empty".to_owned()
        } else if text.len() > limits::CONDITION_BYTES_MAX {
            format!(
                "it has {} bytes; {} are the most",
                text.len(),
                limits::CONDITION_BYTES_MAX
            )
        } else {
            return Some(text.to_owned());
        };
        self.reader.report(
            Diagnostic::new(Code::BadCondition, "`when` is not a jq condition")
                .at(node.span.clone())
                .label(fault)
                .help(CONDITION_HELP),
        );
        None
    }

    fn after(&mut self, node: &Node) -> Vec<After> {
        let items: Vec<&Node> = match &node.content {
            Content::List(items) if items.is_empty() => {
                self.reader.report(
                    Diagnostic::new(Code::OutOfRange, "`after` cannot be empty")
                        .at(node.span.clone())
                        .label("it names at least one step")
                        .help("leave it out to follow the step before"),
                );
                Vec::new()
            }
            Content::List(items) => {
                if let Some(excess) = items.get(limits::AFTER_MAX) {
                    self.reader.report(
                        Diagnostic::new(
                            Code::OutOfRange,
                            format!("`after` cannot have {} entries", items.len()),
                        )
                        .at(excess.span.clone())
                        .label(format!("this is one more than {}", limits::AFTER_MAX)),
                    );
                }
                items.iter().take(limits::AFTER_MAX).collect()
            }
            _ => vec![node],
        };
        let mut all = Vec::new();
        for item in items {
            let Some(text) = self.reader.text(item, "`after`") else {
                continue;
            };
            let (step, port) = text.split_once('.').unwrap_or((text, DEFAULT_PORT));
            all.push(After {
                step: step.to_owned(),
                port: port.to_owned(),
                span: item.span.clone(),
            });
        }
        all
    }
}

/// Where a part of a text is in the file; all of the text if it is written otherwise there.
pub(crate) fn within(text: &str, node: &Node, part: &str) -> Range<usize> {
    match text[node.extent.clone()].find(part) {
        Some(at) => node.extent.start + at..node.extent.start + at + part.len(),
        None => node.span.clone(),
    }
}

/// "step `crm`", or "the trigger".
pub(crate) fn describe(step: &Step) -> String {
    match (step.id.as_str(), step.is_trigger) {
        ("", true) => "the trigger".to_owned(),
        ("", false) => "an action".to_owned(),
        (id, _) => format!("step {}", shown(id)),
    }
}
