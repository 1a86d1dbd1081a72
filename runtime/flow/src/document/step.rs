//! The keys that all steps have: types, limits, defaults.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use towpath_protocol::start::{Mode, Retry};

use super::schedule::is_ticked;
use super::{Draft, Steps, within};
use crate::diagnostic::{Code, Diagnostic};
use crate::keys;
use crate::limits;
use crate::model::{Access, Handing, Limits, Replicas, Step};
use crate::placeholder::{self, Piece};
use crate::read::head;
use crate::text::{self, shown};
use crate::tree::{Content, Entry, Node};

impl Steps<'_, '_> {
    /// The keys that all steps have.
    pub(super) fn step<'t>(
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
            when_span: 0..0,
            to: None,
            to_span: 0..0,
            with: node.entry("with"),
            order_span: 0..0,
            validate: node.entry("validate"),
            batch: node.entry("batch"),
            folders: node.entry("folders"),
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
                .missing(node, what, "id", head(node), "name it: `id: orders`"),
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
        self.once(node, &mut draft.step);
        self.handing(node, &mut draft.step.handing);
        self.limits(node, &mut draft.step.limits);
        if let Some(entry) = draft.folders {
            draft.step.limits.folders = self.folders(&entry.value);
        }
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
        if let Some(entry) = node.entry("replicas")
            && let Some(replicas) = self.replicas(entry, step.is_trigger)
        {
            step.replicas = replicas;
        }
        let reader = &mut self.reader;
        let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
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
            let is_poll = step.is_trigger && is_ticked(node);
            if !is_poll && (timeout.is_zero() || timeout > limits::TIMEOUT_WARNING) {
                reader.report(long_timeout(entry, timeout));
            }
        }
        if let Some(entry) = node.entry("retry") {
            self.retry(&entry.value, &mut step.retry);
        }
    }

    /// `once`, which has a meaning for actions alone.
    fn once(&mut self, node: &Node, step: &mut Step) {
        let Some(entry) = node.entry("once") else {
            return;
        };
        let flag = self.reader.flag(&entry.value, "`once`").unwrap_or_default();
        if !step.is_trigger {
            step.once = flag;
            return;
        }
        let why = if is_ticked(node) {
            "a trigger that is fired by ticks goes on from its checkpoint, and what it emits twice has the same id: the actions that must not repeat it are to say `once: true`"
        } else {
            "a request to a webhook has no name that a second one could be recognised by: the actions that must not repeat it are to say `once: true`"
        };
        self.reader.report(
            Diagnostic::new(Code::OnceTrigger, "a trigger cannot be `once`")
                .at(entry.key_span.clone())
                .label("only actions can")
                .help(why),
        );
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
            if node.entry("initial").is_none() {
                retry.initial_ms = retry.initial_ms.min(retry.max_ms);
            }
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

    fn folders(&mut self, node: &Node) -> BTreeMap<String, Access> {
        if node.content == Content::Null {
            return BTreeMap::new();
        }
        let mut folders = BTreeMap::new();
        for entry in self.reader.entries(node, "`folders`").unwrap_or_default() {
            let what = "what a step may do with a folder";
            let access = match self.reader.choice(&entry.value, what, &["read", "write"]) {
                Some("write") => Access::Write,
                _ => Access::Read,
            };
            folders.insert(entry.key.clone(), access);
        }
        folders
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

    /// Every placeholder in it must be one.
    pub(super) fn placeholders(&mut self, node: &Node) {
        for (at, text) in node.texts() {
            let bad: Vec<_> = placeholder::pieces(text)
                .into_iter()
                .filter_map(|piece| match piece {
                    Piece::Bad(raw, why) => Some((raw, why)),
                    _ => None,
                })
                .collect();
            for (raw, why) in bad.into_iter().take(limits::DIAGNOSTICS_MAX) {
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

fn plain_step(is_trigger: bool, timeout: Duration) -> Step {
    Step {
        id: String::new(),
        is_trigger,
        after: Vec::new(),
        order: None,
        when: None,
        image: String::new(),
        command: Vec::new(),
        mode: Mode::Frames,
        with: Value::Object(serde_json::Map::new()),
        env: BTreeMap::new(),
        replicas: Replicas::Fixed(1),
        concurrency: None,
        timeout,
        retry: limits::RETRY_DEFAULT,
        once: false,
        handing: Handing::default(),
        limits: Limits {
            memory_bytes: limits::MEMORY_BYTES_DEFAULT,
            cpus: limits::CPUS_DEFAULT,
            pids: limits::PIDS_DEFAULT,
            writable: false,
            image_privileges: false,
            folders: BTreeMap::new(),
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
