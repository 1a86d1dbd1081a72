//! What sets the trigger off: `every`, `cron`, `stream` or `webhook`, and what goes with it.

use super::{Steps, within};
use crate::cron::{Cron, Fault, ZONE_DEFAULT};
use crate::diagnostic::{Code, Diagnostic};
use crate::keys;
use crate::limits;
use crate::model::{Fires, Missed, Overlap};
use crate::read::{head, is_misspelt};
use crate::text::shown;
use crate::tree::{Content, Entry, Node};

/// The keys that say how a trigger fires; each with whether it is by ticks.
const WAYS: [(&str, bool); 4] = [
    ("every", true),
    ("cron", true),
    ("stream", true),
    ("webhook", false),
];

/// Whether the trigger says that it is fired by ticks.
pub(super) fn is_ticked(node: &Node) -> bool {
    WAYS.iter()
        .any(|(way, by_ticks)| *by_ticks && node.entry(way).is_some())
}

/// The key that says how the trigger fires.
pub(super) fn way(node: &Node) -> &'static str {
    WAYS.iter()
        .map(|(way, _)| *way)
        .find(|way| node.entry(way).is_some())
        .unwrap_or("every")
}

impl Steps<'_, '_> {
    /// What sets the trigger off.
    pub(super) fn fires(&mut self, node: &Node) -> Option<Fires> {
        let mut ways: Vec<&Entry> = WAYS.iter().filter_map(|(way, _)| node.entry(way)).collect();
        ways.sort_by_key(|entry| entry.key_span.start);
        let mut read: Vec<Option<Fires>> = ways
            .iter()
            .map(|entry| match &*entry.key {
                "every" => self.every(entry),
                "cron" => self.cron(entry, node.entry("timezone")),
                "stream" => self.only_true(entry).map(|()| Fires::Stream),
                // What is in a mapping is read with the webhook itself.
                _ if matches!(entry.value.content, Content::Mapping(_)) => Some(Fires::Webhook),
                _ => self.only_true(entry).map(|()| Fires::Webhook),
            })
            .collect();
        match ways.as_slice() {
            [] => {
                self.never_fires(node);
                None
            }
            [_] => read.pop().flatten(),
            [first, second, ..] => {
                self.reader.report(
                    Diagnostic::new(Code::FiresTwice, "the trigger has two ways to fire")
                        .at(second.key_span.clone())
                        .label("the second one")
                        .related(first.key_span.clone(), "the first one")
                        .help("make two flows of it, or leave one out"),
                );
                None
            }
        }
    }

    fn never_fires(&mut self, node: &Node) {
        // A reserved or misspelt way to fire is reported as an unknown key.
        let names: Vec<&str> = keys::STEP
            .iter()
            .chain(keys::TRIGGER)
            .map(|key| key.name)
            .collect();
        if node.entry("schedule").is_some()
            || WAYS.iter().any(|(way, _)| is_misspelt(node, way, &names))
        {
            return;
        }
        self.reader.report(
            Diagnostic::new(Code::NeverFires, "the trigger has no way to fire")
                .at(head(node))
                .label("none of `every`, `cron`, `stream` and `webhook` is here")
                .help("write `every: 30s`, `cron: \"0 6 * * MON-FRI\"`, `stream: true` or `webhook: true`"),
        );
    }

    fn every(&mut self, entry: &Entry) -> Option<Fires> {
        if let Content::Text(text) = &entry.value.content
            && Cron::read(text, ZONE_DEFAULT).is_ok()
        {
            self.reader.report(
                Diagnostic::new(
                    Code::BadDuration,
                    "`every` must be a duration such as `30s`",
                )
                .at(entry.value.span.clone())
                .label("this is a cron expression")
                .help(format!("write `cron: \"{text}\"`")),
            );
            return None;
        }
        self.reader
            .duration(&entry.value, "`every`", &limits::EVERY)
            .map(Fires::Every)
    }

    fn cron(&mut self, entry: &Entry, zone: Option<&Entry>) -> Option<Fires> {
        let text = self.reader.text(&entry.value, "`cron`");
        let place = match zone {
            Some(zone) => self.reader.text(&zone.value, "`timezone`"),
            None => Some(ZONE_DEFAULT),
        };
        // Both are looked at, also if the other one is wrong.
        if let (Some(zone), Some(place)) = (zone, place)
            && let Err(Fault::NoZone(meant)) = Cron::read("@daily", place)
        {
            let help = match meant {
                Some(meant) => format!("did you mean {}?", shown(meant)),
                None => "write the name of a place, such as `Europe/Berlin`; `UTC` is one as well"
                    .to_owned(),
            };
            self.reader.report(
                Diagnostic::new(
                    Code::UnknownZone,
                    format!("there is no time zone {}", shown(place)),
                )
                .at(zone.value.span.clone())
                .label("no such time zone")
                .help(help),
            );
        }
        let text = text?;
        let node = &entry.value;
        match Cron::read(text, ZONE_DEFAULT) {
            Err(Fault::Unreadable(fault)) => {
                let span = match &fault.part {
                    Some(part) => within(self.text, node, part),
                    None => node.span.clone(),
                };
                self.reader.report(
                    Diagnostic::new(Code::BadCron, "`cron` must be a cron expression")
                        .at(span)
                        .label(fault.why)
                        .help(fault.help),
                );
                None
            }
            Err(Fault::Never) => {
                self.reader.report(
                    Diagnostic::new(Code::CronNever, format!("{} never fires", shown(text)))
                        .at(node.span.clone())
                        .label("no month has such a day")
                        .help("`L` in the third field is the last day of a month"),
                );
                None
            }
            Err(Fault::NoZone(_)) | Ok(_) => {
                Cron::read(text, place?).ok().map(Box::new).map(Fires::Cron)
            }
        }
    }

    fn only_true(&mut self, entry: &Entry) -> Option<()> {
        let what = format!("`{}`", entry.key);
        let flag = self.reader.flag(&entry.value, &what);
        if flag == Some(false) {
            let (label, help) = if entry.key == "webhook" {
                (
                    "it can be `true` or a mapping",
                    "leave it out if the flow has no webhook",
                )
            } else {
                (
                    "it can be `true`",
                    "leave it out if the trigger does not run for ever",
                )
            };
            self.reader.report(
                Diagnostic::new(Code::BadChoice, format!("{what} cannot be `false`"))
                    .at(entry.value.span.clone())
                    .label(label)
                    .help(help),
            );
        }
        flag.filter(|flag| *flag).map(|_| ())
    }

    /// `overlap` and `missed`, and whether they and `timezone` have a meaning here.
    pub(super) fn policies(&mut self, node: &Node, fires: Option<&Fires>) -> (Overlap, Missed) {
        let mut overlap = Overlap::default();
        // An interval says how old what is known may be: it is made up for. A time of day does not.
        let mut missed = match fires {
            Some(Fires::Every(_)) => Missed::Once,
            _ => Missed::default(),
        };
        let has_schedule = node.entry("every").is_some() || node.entry("cron").is_some();
        if let Some(entry) = node.entry("overlap") {
            let choice = self
                .reader
                .choice(&entry.value, "`overlap`", &["skip", "queue-one"]);
            if choice == Some("queue-one") {
                overlap = Overlap::QueueOne;
            }
            if !has_schedule {
                self.without_schedule(node, entry, "`every` or `cron`");
            }
        }
        if let Some(entry) = node.entry("missed") {
            match self
                .reader
                .choice(&entry.value, "`missed`", &["skip", "once"])
            {
                Some("once") => missed = Missed::Once,
                Some(_) => missed = Missed::Skip,
                None => {}
            }
            if !has_schedule {
                self.without_schedule(node, entry, "`every` or `cron`");
            }
        }
        if let Some(entry) = node.entry("timezone")
            && node.entry("cron").is_none()
        {
            self.without_schedule(node, entry, "`cron`");
        }
        (overlap, missed)
    }

    fn without_schedule(&mut self, node: &Node, entry: &Entry, needs: &str) {
        let is_fired = WAYS.iter().any(|(way, _)| node.entry(way).is_some());
        if !is_fired {
            return; // That the trigger has no way to fire is said already.
        }
        let why = match (&*entry.key, way(node)) {
            ("timezone", "every") => {
                "an interval is the same everywhere: leave it out, or write `cron` in place of `every`"
            }
            (_, "stream") => "what runs for ever is never due while it runs: leave it out",
            (_, "webhook") => "a request comes when it comes: leave it out",
            _ => "leave it out",
        };
        self.reader.report(
            Diagnostic::new(
                Code::NeedsSchedule,
                format!("`{}` has no meaning without {needs}", entry.key),
            )
            .at(entry.key_span.clone())
            .label(format!("the trigger fires by `{}`", way(node)))
            .help(why),
        );
    }
}
