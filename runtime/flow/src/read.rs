//! Reads values of a tree as what they should be, and notes what they are not.

use std::fmt::Display;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use crate::diagnostic::{Code, Diagnostic};
use crate::keys::{self, Key};
use crate::limits::{DIAGNOSTICS_MAX, NAME_CHARS_MAX};
use crate::text::{self, did_you_mean, either, list, shown};
use crate::tree::{Content, Entry, Node};
use crate::units::{self, Unreadable};

/// Where a mapping begins: its first key.
pub(crate) fn head(node: &Node) -> Range<usize> {
    match &node.content {
        Content::Mapping(entries) if !entries.is_empty() => entries[0].key_span.clone(),
        _ => node.span.clone(),
    }
}

/// Takes what is found.
pub(crate) struct Reader<'f> {
    pub(crate) found: &'f mut Vec<Diagnostic>,
}

impl Reader<'_> {
    pub(crate) fn report(&mut self, diagnostic: Diagnostic) {
        self.found.push(diagnostic);
    }

    fn wrong(&mut self, node: &Node, what: &str, expected: &str, help: Option<String>) {
        let missing = node.content == Content::Null;
        let label = if missing {
            "there is nothing here".to_owned()
        } else {
            format!("this is {}", node.kind())
        };
        self.report(
            Diagnostic::new(Code::WrongType, format!("{what} must be {expected}"))
                .at(node.span.clone())
                .label(label)
                .maybe_help(help),
        );
    }

    /// A mapping with keys of these tables and no others. Nothing is an empty one.
    pub(crate) fn mapping<'t>(
        &mut self,
        node: &'t Node,
        what: &str,
        tables: &[&[Key]],
    ) -> Option<&'t [Entry]> {
        let entries = self.entries(node, what)?;
        let names: Vec<&str> = tables
            .iter()
            .flat_map(|table| table.iter())
            .map(|key| key.name)
            .collect();
        for entry in unknown(entries, &names) {
            self.unknown_key(entry, what, &names);
        }
        Some(entries)
    }

    /// A mapping with whatever keys.
    pub(crate) fn entries<'t>(&mut self, node: &'t Node, what: &str) -> Option<&'t [Entry]> {
        if let Content::Mapping(entries) = &node.content {
            return Some(entries);
        }
        self.wrong(node, what, "a mapping", None);
        None
    }

    fn unknown_key(&mut self, entry: &Entry, what: &str, known: &[&str]) {
        let name = shown(&entry.key);
        let diagnostic = if let Some((_, until)) =
            keys::RESERVED.iter().find(|(word, _)| *word == entry.key)
        {
            Diagnostic::new(Code::UnknownKey, format!("{what} has no key {name} yet"))
                .label("a word of a later version")
                .help(format!("{name} is not supported yet: {until}"))
        } else {
            let diagnostic = Diagnostic::new(Code::UnknownKey, format!("{what} has no key {name}"))
                .label("unknown key");
            match (
                elsewhere(&entry.key),
                did_you_mean(&entry.key, known.iter().copied()),
            ) {
                (Some(place), _) => diagnostic.help(format!("{name} is a key of {place}")),
                (None, Some(meant)) => diagnostic.help(meant),
                (None, None) => diagnostic.help(format!("its keys are {}", list(known))),
            }
        };
        self.report(diagnostic.at(entry.key_span.clone()));
    }

    /// A key that must be there is not.
    pub(crate) fn missing(
        &mut self,
        node: &Node,
        what: &str,
        key: &str,
        at: Range<usize>,
        help: &str,
    ) {
        let tables = [keys::FLOW, keys::STEP, keys::TRIGGER, keys::ACTION];
        let known: Vec<&str> = tables
            .iter()
            .flat_map(|table| table.iter())
            .map(|key| key.name)
            .collect();
        if is_misspelt(node, key, &known) {
            return; // It is reported as an unknown key.
        }
        self.report(
            Diagnostic::new(Code::MissingKey, format!("{what} has no `{key}`"))
                .at(at)
                .label(format!("`{key}` is missing"))
                .help(help),
        );
    }

    pub(crate) fn items<'t>(
        &mut self,
        node: &'t Node,
        what: &str,
        help: &str,
    ) -> Option<&'t [Node]> {
        if let Content::List(items) = &node.content {
            return Some(items);
        }
        self.wrong(node, what, "a list", Some(help.to_owned()));
        None
    }

    pub(crate) fn text<'t>(&mut self, node: &'t Node, what: &str) -> Option<&'t str> {
        match &node.content {
            Content::Text(text) => Some(text),
            Content::Flag(_) | Content::Number(_) => {
                self.wrong(node, what, "text", Some("put it in quotes".to_owned()));
                None
            }
            _ => {
                self.wrong(node, what, "text", None);
                None
            }
        }
    }

    pub(crate) fn name<'t>(&mut self, node: &'t Node, what: &str) -> Option<&'t str> {
        let name = self.text(node, what)?;
        if is_name(name) {
            return Some(name);
        }
        let fixed = fixed_name(name);
        self.report(
            Diagnostic::new(Code::BadName, format!("{} is not a name", shown(name)))
                .at(node.span.clone())
                .label(format!(
                    "a name is a small letter, then small letters, digits and `-`, at most {NAME_CHARS_MAX}"
                ))
                .maybe_help(is_name(&fixed).then(|| format!("did you mean {}?", shown(&fixed)))),
        );
        None
    }

    pub(crate) fn flag(&mut self, node: &Node, what: &str) -> Option<bool> {
        let help = match &node.content {
            Content::Flag(flag) => return Some(*flag),
            Content::Text(text) => match text.to_lowercase().as_str() {
                "yes" | "on" | "y" | "true" => Some("write `true`".to_owned()),
                "no" | "off" | "n" | "false" => Some("write `false`".to_owned()),
                _ => None,
            },
            _ => None,
        };
        self.wrong(node, what, "true or false", help);
        None
    }

    /// One of a few words.
    pub(crate) fn choice(
        &mut self,
        node: &Node,
        what: &str,
        choices: &[&'static str],
    ) -> Option<&'static str> {
        let written = self.text(node, what)?;
        if let Some(choice) = choices.iter().find(|choice| **choice == written) {
            return Some(choice);
        }
        self.report(
            Diagnostic::new(
                Code::BadChoice,
                format!("{what} cannot be {}", shown(written)),
            )
            .at(node.span.clone())
            .label(format!("it can be {}", either(choices)))
            .maybe_help(did_you_mean(written, choices.iter().copied())),
        );
        None
    }

    pub(crate) fn whole(
        &mut self,
        node: &Node,
        what: &str,
        range: &RangeInclusive<u64>,
    ) -> Option<u64> {
        let Content::Number(number) = &node.content else {
            let help = unquoted(node, "3");
            self.wrong(node, what, "a whole number", help);
            return None;
        };
        match number.as_u64() {
            Some(number) => self.within(node, what, number, range, u64::to_string),
            None if number.is_i64() => self.outside(node, what, number, range, u64::to_string),
            None => {
                self.wrong(node, what, "a whole number", None);
                None
            }
        }
    }

    pub(crate) fn real(
        &mut self,
        node: &Node,
        what: &str,
        range: &RangeInclusive<f64>,
    ) -> Option<f64> {
        let Content::Number(number) = &node.content else {
            let help = unquoted(node, "0.5");
            self.wrong(node, what, "a number", help);
            return None;
        };
        self.within(node, what, number.as_f64()?, range, f64::to_string)
    }

    pub(crate) fn duration(
        &mut self,
        node: &Node,
        what: &str,
        range: &RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let duration = self.unit(
            node,
            what,
            "a duration such as `30s`",
            Code::BadDuration,
            units::parse_duration,
        )?;
        self.within(node, what, duration, range, |duration| {
            text::duration(*duration)
        })
    }

    /// A duration, or 0, which is without limit.
    pub(crate) fn duration_or_zero(
        &mut self,
        node: &Node,
        what: &str,
        range: &RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let is_zero = match &node.content {
            Content::Number(number) => number.as_f64() == Some(0.0),
            Content::Text(text) => units::parse_duration(text) == Ok(Duration::ZERO),
            _ => false,
        };
        if is_zero {
            Some(Duration::ZERO)
        } else {
            self.duration(node, what, range)
        }
    }

    pub(crate) fn size(
        &mut self,
        node: &Node,
        what: &str,
        range: &RangeInclusive<u64>,
    ) -> Option<u64> {
        let bytes = self.unit(
            node,
            what,
            "a size such as `256MiB`",
            Code::BadSize,
            units::parse_size,
        )?;
        self.within(node, what, bytes, range, |bytes| text::size(*bytes))
    }

    /// A number with a unit. A bare number is read as one without.
    fn unit<T>(
        &mut self,
        node: &Node,
        what: &str,
        expected: &str,
        code: Code,
        parse: impl Fn(&str) -> Result<T, Unreadable>,
    ) -> Option<T> {
        let written = match &node.content {
            Content::Text(text) => text.clone(),
            Content::Number(number) => number.to_string(),
            _ => {
                self.wrong(node, what, expected, None);
                return None;
            }
        };
        parse(&written)
            .map_err(|Unreadable { why, help }| {
                self.report(
                    Diagnostic::new(code, format!("{what} must be {expected}"))
                        .at(node.span.clone())
                        .label(why)
                        .help(help),
                );
            })
            .ok()
    }

    fn within<T: PartialOrd + Copy>(
        &mut self,
        node: &Node,
        what: &str,
        value: T,
        range: &RangeInclusive<T>,
        show: impl Fn(&T) -> String,
    ) -> Option<T> {
        if range.contains(&value) {
            return Some(value);
        }
        let written = show(&value);
        self.outside(node, what, written, range, show)
    }

    fn outside<T, N>(
        &mut self,
        node: &Node,
        what: &str,
        written: impl Display,
        range: &RangeInclusive<T>,
        show: impl Fn(&T) -> String,
    ) -> Option<N> {
        let (least, most) = (show(range.start()), show(range.end()));
        self.report(
            Diagnostic::new(Code::OutOfRange, format!("{what} cannot be {written}"))
                .at(node.span.clone())
                .label(format!("it can be from {least} to {most}")),
        );
        None
    }
}

/// Where a key belongs that is known, but elsewhere.
fn elsewhere(key: &str) -> Option<&'static str> {
    let places = [
        (keys::TRIGGER, "`trigger`"),
        (keys::ACTION, "an action"),
        (keys::RETRY, "`retry`"),
        (keys::AUTOSCALE, "`replicas`"),
        (keys::FLOW, "the flow itself"),
        (keys::STEP, "a step"),
        (keys::WEBHOOK, "`webhook`"),
    ];
    places
        .into_iter()
        .find(|(table, _)| table.iter().any(|known| known.name == key))
        .map(|(_, place)| place)
}

/// For a number that is in quotes.
fn unquoted(node: &Node, example: &str) -> Option<String> {
    match &node.content {
        Content::Text(text) if text.parse::<f64>().is_ok_and(f64::is_finite) => {
            Some("write it without quotes".to_owned())
        }
        Content::Text(text) if crate::placeholder::has_any(text) => {
            Some("placeholders are filled in only within `with`, `env` and `command`".to_owned())
        }
        Content::Text(_) => Some(format!("write a number such as `{example}`")),
        _ => None,
    }
}

/// Whether a mapping has a key that is probably meant to be this one.
pub(crate) fn is_misspelt(node: &Node, key: &str, known: &[&str]) -> bool {
    let Content::Mapping(entries) = &node.content else {
        return false;
    };
    unknown(entries, known)
        .any(|entry| text::nearest(&entry.key, known.iter().copied()) == Some(key))
}

/// The entries whose keys are not known; no more than anyone wants to read of.
fn unknown<'t>(entries: &'t [Entry], known: &[&str]) -> impl Iterator<Item = &'t Entry> {
    entries
        .iter()
        .filter(|entry| !known.contains(&entry.key.as_str()))
        .take(DIAGNOSTICS_MAX)
}

/// `[a-z][a-z0-9-]{0,47}`.
pub(crate) fn is_name(name: &str) -> bool {
    name.len() <= NAME_CHARS_MAX
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

fn fixed_name(name: &str) -> String {
    name.trim()
        .to_lowercase()
        .replace([' ', '_', '.', '/'], "-")
        .chars()
        .take(NAME_CHARS_MAX)
        .collect()
}
