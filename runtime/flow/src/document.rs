//! The tree of a file, read as a flow: every key, its type, its limits and its default. How steps
//! hang together is looked at in [`crate::graph`], how they fit their images in [`crate::fit`].

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use serde_json::Value;
use towpath_protocol::DEFAULT_PORT;
use towpath_protocol::start::{Mode, Retry};

use crate::diagnostic::{Code, Diagnostic};
use crate::keys;
use crate::limits;
use crate::model::{Fires, Limits, Step};
use crate::placeholder::{self, Piece};
use crate::read::{Reader, head};
use crate::text::{self, shown};
use crate::tree::{Content, Entry, Node};

/// A flow whose parts were read, one by one.
#[derive(Debug)]
pub(crate) struct Document<'t> {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) fires: Option<Fires>,
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
    pub(crate) with: Option<&'t Entry>,
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
        drafts: Vec::new(),
    };
    let reader = &mut steps.reader;
    if reader.mapping(root, "the flow", &[keys::FLOW]).is_none() {
        return document;
    }
    let place = head(root);
    match root.entry("flow") {
        Some(entry) => {
            document.name = reader
                .name(&entry.value, "`flow`")
                .unwrap_or_default()
                .to_owned();
        }
        None => reader.missing(
            "the flow",
            "flow",
            place.clone(),
            "begin with its name: `flow: orders-to-crm`",
        ),
    }
    if let Some(entry) = root.entry("description") {
        document.description = steps.description(&entry.value);
    }
    match root.entry("trigger") {
        Some(entry) => {
            let (draft, fires) = steps.trigger(&entry.value);
            document.fires = fires;
            document.drafts.extend(draft);
        }
        None => steps.reader.missing(
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
            .missing("the flow", "actions", place, NO_ACTIONS),
    }
    document
}

const NO_ACTIONS: &str =
    "list what is to happen: `actions: [{ id: log, image: \"towpath/log:1\" }]`";

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
        if !draft.has_image {
            self.need_image(&draft);
        }
        Some(draft)
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
        let is_poll = node.entry("every").is_some() || matches!(fires, Some(Fires::Every(_)));
        let timeout = if is_poll {
            Duration::ZERO
        } else {
            limits::TIMEOUT_DEFAULT
        };
        let mut draft = self.step(node, "the trigger", true, timeout);
        if !draft.has_image {
            if fires == Some(Fires::Webhook) && node.entry("image").is_none() {
                self.without_image(node);
            } else {
                self.need_image(&draft);
            }
        }
        if let (true, Some(entry)) = (is_poll && draft.step.replicas > 1, node.entry("replicas")) {
            self.reader.report(
                Diagnostic::new(
                    Code::OutOfRange,
                    format!("`replicas` cannot be {} with `every`", draft.step.replicas),
                )
                .at(entry.value.span.clone())
                .label("it can only be 1")
                .help("a trigger that fires on a schedule has one checkpoint, and so one replica"),
            );
            draft.step.replicas = 1;
        }
        (Some(draft), fires)
    }

    fn fires(&mut self, node: &Node) -> Option<Fires> {
        let every = node.entry("every");
        let webhook = node.entry("webhook");
        let interval = every.and_then(|entry| {
            let help = matches!(&entry.value.content, Content::Text(text) if text.contains(' ') && text.contains('*'));
            if help {
                self.reader.report(
                    Diagnostic::new(Code::BadDuration, "`every` must be a duration such as `30s`")
                        .at(entry.value.span.clone())
                        .label("this is a cron expression")
                        .help("cron schedules are not supported yet: write `30s`, `5m`, `2h` or `1d`"),
                );
                return None;
            }
            self.reader.duration(&entry.value, "`every`", &limits::EVERY)
        });
        let is_webhook = webhook.and_then(|entry| {
            let flag = self.reader.flag(&entry.value, "`webhook`");
            if flag == Some(false) {
                self.reader.report(
                    Diagnostic::new(Code::BadChoice, "`webhook` cannot be `false`")
                        .at(entry.value.span.clone())
                        .label("it can be `true`")
                        .help("leave it out if the flow has no webhook"),
                );
            }
            flag
        });
        match (every, webhook) {
            (Some(every), Some(webhook)) => {
                let (first, second) = if every.key_span.start < webhook.key_span.start {
                    (every, webhook)
                } else {
                    (webhook, every)
                };
                self.reader.report(
                    Diagnostic::new(Code::FiresTwice, "the trigger has two ways to fire")
                        .at(second.key_span.clone())
                        .label("the second one")
                        .related(first.key_span.clone(), "the first one")
                        .help("make two flows of it, or leave one out"),
                );
                None
            }
            (None, None) => {
                // A reserved way to fire was reported as such.
                if !["cron", "schedule"]
                    .iter()
                    .any(|word| node.entry(word).is_some())
                {
                    self.reader.report(
                        Diagnostic::new(Code::NeverFires, "the trigger has no way to fire")
                            .at(head(node))
                            .label("neither `every` nor `webhook` is here")
                            .help("write `every: 30s` or `webhook: true`"),
                    );
                }
                None
            }
            (Some(_), None) => interval.map(Fires::Every),
            (None, Some(_)) => is_webhook.filter(|flag| *flag).map(|_| Fires::Webhook),
        }
    }

    fn need_image(&mut self, draft: &Draft<'_>) {
        // One that is there and wrong was reported as such.
        if draft.image_span.is_empty() {
            let what = describe(&draft.step);
            self.reader.missing(
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
            if entry.key != "id" && keys::STEP.iter().any(|key| key.name == entry.key) {
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

    /// The keys that all steps have.
    fn step<'t>(
        &mut self,
        node: &'t Node,
        what: &str,
        is_trigger: bool,
        timeout: Duration,
    ) -> Draft<'t> {
        let mut draft = Draft {
            step: plain_step(is_trigger, timeout),
            has_image: false,
            place: head(node),
            image_span: 0..0,
            after: None,
            with: node.entry("with"),
        };
        match node.entry("id") {
            Some(entry) => {
                draft.place = entry.value.span.clone();
                draft.step.id = self
                    .reader
                    .name(&entry.value, "`id`")
                    .unwrap_or_default()
                    .to_owned();
            }
            None => self
                .reader
                .missing(what, "id", head(node), "name it: `id: orders`"),
        }
        if let Some(entry) = node.entry("image") {
            draft.image_span = entry.value.span.clone();
            if let Some(image) = self.image(&entry.value) {
                draft.has_image = true;
                draft.step.image = image;
            }
        }
        self.texts(node, &mut draft.step);
        self.numbers(node, &mut draft.step);
        self.limits(node, &mut draft.step.limits);
        draft
    }

    fn image(&mut self, node: &Node) -> Option<String> {
        let image = self.reader.text(node, "`image`")?;
        if let Some(fault) = crate::image::fault(image) {
            let lower = image.to_lowercase();
            let meant = (crate::image::fault(&lower).is_none()).then_some(lower);
            self.reader.report(
                Diagnostic::new(
                    Code::BadImage,
                    format!("{} is not the name of an image", shown(image)),
                )
                .at(node.span.clone())
                .label(fault)
                .maybe_help(meant.map(|meant| format!("did you mean {}?", shown(&meant)))),
            );
            return None;
        }
        Some(image.to_owned())
    }

    /// `with`, `env`, `command`: where placeholders are.
    fn texts(&mut self, node: &Node, step: &mut Step) {
        if let Some(entry) = node.entry("with") {
            if entry.value.content != Content::Null {
                self.reader.entries(&entry.value, "`with`");
                step.with = entry.value.to_json();
            }
            self.placeholders(&entry.value);
        }
        if let Some(entry) = node.entry("env") {
            self.placeholders(&entry.value);
            step.env = self.environment(&entry.value);
        }
        if let Some(entry) = node.entry("command") {
            self.placeholders(&entry.value);
            let help = "write every word by itself: `command: [python3, step.py]`";
            let items = self
                .reader
                .items(&entry.value, "`command`", help)
                .unwrap_or_default();
            let words: Vec<Option<&str>> = items
                .iter()
                .map(|item| self.reader.text(item, "a word of `command`"))
                .collect();
            step.command = words.into_iter().flatten().map(str::to_owned).collect();
        }
        if let Some(entry) = node.entry("mode") {
            step.mode = match self
                .reader
                .choice(&entry.value, "`mode`", &["frames", "lines"])
            {
                Some("lines") => Mode::Lines,
                _ => Mode::Frames,
            };
        }
    }

    fn environment(&mut self, node: &Node) -> BTreeMap<String, String> {
        if node.content == Content::Null {
            return BTreeMap::new();
        }
        let mut environment = BTreeMap::new();
        for entry in self.reader.entries(node, "`env`").unwrap_or_default() {
            if !placeholder::is_env_name(&entry.key) {
                self.reader.report(
                    Diagnostic::new(
                        Code::BadName,
                        format!(
                            "{} is not the name of an environment variable",
                            shown(&entry.key)
                        ),
                    )
                    .at(entry.key_span.clone())
                    .label("it has letters, digits and `_`, and does not begin with a digit"),
                );
            }
            if let Some(text) = self.reader.text(&entry.value, "a value of `env`") {
                environment.insert(entry.key.clone(), text.to_owned());
            }
        }
        environment
    }

    fn numbers(&mut self, node: &Node, step: &mut Step) {
        let reader = &mut self.reader;
        let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        if let Some(entry) = node.entry("replicas")
            && let Some(number) = reader.whole(&entry.value, "`replicas`", &limits::REPLICAS)
        {
            step.replicas = small(number);
        }
        if let Some(entry) = node.entry("concurrency") {
            step.concurrency = reader
                .whole(&entry.value, "`concurrency`", &limits::CONCURRENCY)
                .map(small);
        }
        if let Some(entry) = node.entry("timeout")
            && let Some(timeout) =
                reader.duration_or_zero(&entry.value, "`timeout`", &limits::TIMEOUT)
        {
            step.timeout = timeout;
            let is_poll = step.is_trigger && node.entry("every").is_some();
            if !is_poll && (timeout.is_zero() || timeout > limits::TIMEOUT_WARNING) {
                reader.report(long_timeout(entry, timeout));
            }
        }
        if let Some(entry) = node.entry("retry") {
            self.retry(&entry.value, &mut step.retry);
        }
    }

    fn retry(&mut self, node: &Node, retry: &mut Retry) {
        let reader = &mut self.reader;
        if node.content == Content::Null
            || reader.mapping(node, "`retry`", &[keys::RETRY]).is_none()
        {
            return;
        }
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        if let Some(entry) = node.entry("attempts")
            && let Some(number) = reader.whole(&entry.value, "`attempts`", &limits::RETRY_ATTEMPTS)
        {
            retry.attempts = u32::try_from(number).unwrap_or(u32::MAX);
        }
        if let Some(entry) = node.entry("initial")
            && let Some(wait) = reader.duration(&entry.value, "`initial`", &limits::RETRY_WAIT)
        {
            retry.initial_ms = ms(wait);
            // A long first wait alone is no mistake: the longest is at least that.
            retry.max_ms = retry.max_ms.max(retry.initial_ms);
        }
        if let Some(entry) = node.entry("factor")
            && let Some(factor) = reader.real(&entry.value, "`factor`", &limits::RETRY_FACTOR)
        {
            retry.factor = factor;
        }
        if let Some(entry) = node.entry("max")
            && let Some(wait) = reader.duration(&entry.value, "`max`", &limits::RETRY_WAIT)
        {
            retry.max_ms = ms(wait);
            if retry.max_ms < retry.initial_ms {
                reader.report(
                    Diagnostic::new(
                        Code::OutOfRange,
                        format!(
                            "`max` cannot be {}, which is less than `initial`",
                            text::duration(wait)
                        ),
                    )
                    .at(entry.value.span.clone())
                    .label(format!(
                        "it can be {} or more",
                        text::duration(Duration::from_millis(retry.initial_ms))
                    )),
                );
            }
        }
        if let Some(entry) = node.entry("jitter")
            && let Some(jitter) = reader.real(&entry.value, "`jitter`", &limits::RETRY_JITTER)
        {
            retry.jitter = jitter;
        }
    }

    fn limits(&mut self, node: &Node, limits: &mut Limits) {
        let reader = &mut self.reader;
        if let Some(entry) = node.entry("memory")
            && let Some(bytes) = reader.size(&entry.value, "`memory`", &limits::MEMORY_BYTES)
        {
            limits.memory_bytes = bytes;
        }
        if let Some(entry) = node.entry("cpus")
            && let Some(cpus) = reader.real(&entry.value, "`cpus`", &limits::CPUS)
        {
            limits.cpus = cpus;
        }
        if let Some(entry) = node.entry("pids")
            && let Some(pids) = reader.whole(&entry.value, "`pids`", &limits::PIDS)
        {
            limits.pids = u32::try_from(pids).unwrap_or(u32::MAX);
        }
        if let Some(entry) = node.entry("writable") {
            limits.writable = reader.flag(&entry.value, "`writable`").unwrap_or_default();
        }
        if let Some(entry) = node.entry("privileges") {
            limits.image_privileges = reader
                .choice(&entry.value, "`privileges`", &["image"])
                .is_some();
        }
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
            Content::List(items) => items.iter().collect(),
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

    /// Every placeholder in it must be one.
    fn placeholders(&mut self, node: &Node) {
        for (at, text) in node.texts() {
            let bad: Vec<_> = placeholder::pieces(text)
                .into_iter()
                .filter_map(|piece| match piece {
                    Piece::Bad(raw, why) => Some((raw, why)),
                    _ => None,
                })
                .collect();
            for (raw, why) in bad {
                let span = within(self.text, at, raw);
                self.reader.report(
                    Diagnostic::new(
                        Code::BadPlaceholder,
                        format!("{} is not a placeholder", shown(raw)),
                    )
                    .at(span)
                    .label(why)
                    .help("write `$${` for a `${` that is meant as it stands"),
                );
            }
        }
    }
}

/// Where a part of a text is in the file; all of the text if it is written otherwise there.
pub(crate) fn within(text: &str, node: &Node, part: &str) -> Range<usize> {
    match text[node.span.clone()].find(part) {
        Some(at) => node.span.start + at..node.span.start + at + part.len(),
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

fn plain_step(is_trigger: bool, timeout: Duration) -> Step {
    Step {
        id: String::new(),
        is_trigger,
        after: Vec::new(),
        image: String::new(),
        command: Vec::new(),
        mode: Mode::Frames,
        with: Value::Object(serde_json::Map::new()),
        env: BTreeMap::new(),
        replicas: 1,
        concurrency: None,
        timeout,
        retry: limits::RETRY_DEFAULT,
        limits: Limits {
            memory_bytes: limits::MEMORY_BYTES_DEFAULT,
            cpus: limits::CPUS_DEFAULT,
            pids: limits::PIDS_DEFAULT,
            writable: false,
            image_privileges: false,
        },
    }
}

fn long_timeout(entry: &Entry, timeout: Duration) -> Diagnostic {
    let label = if timeout.is_zero() {
        "without limit".to_owned()
    } else {
        format!("longer than {}", text::duration(limits::TIMEOUT_WARNING))
    };
    Diagnostic::new(
        Code::LongTimeout,
        "the broker waits 30m for a message to be settled",
    )
    .at(entry.value.span.clone())
    .label(label)
    .help("a message that takes longer is delivered again while it is still worked on")
}
