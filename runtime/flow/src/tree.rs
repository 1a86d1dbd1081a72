//! A YAML file as a tree in which every key and every value knows its place.
//!
//! The parser's events are read by hand: types made by serde stop at the first mistake, and this
//! must go on.
//!
//! # Invariants
//!
//! - Nothing here recurses deeper than [`NESTING_MAX`].
//! - No value is there more often than it was written: aliases are refused.

use std::collections::HashMap;
use std::ops::Range;

use serde_json::{Map, Number, Value};
use serde_saphyr::granit_parser::{self, ErrorKind, Event, Parser, ScalarStyle, ScanError};

use crate::diagnostic::{Code, Diagnostic};
use crate::limits::NESTING_MAX;
use crate::text::shown;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    /// Where it is; of what has several lines, the first.
    pub(crate) span: Range<usize>,
    /// Where all of it is.
    pub(crate) extent: Range<usize>,
    pub(crate) content: Content,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Content {
    Null,
    Flag(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    Mapping(Vec<Entry>),
}

/// A key and its value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_span: Range<usize>,
    pub(crate) value: Node,
}

impl Node {
    /// What it is, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self.content {
            Content::Null => "nothing",
            Content::Flag(_) => "true or false",
            Content::Number(_) => "a number",
            Content::Text(_) => "text",
            Content::List(_) => "a list",
            Content::Mapping(_) => "a mapping",
        }
    }

    /// As JSON.
    pub(crate) fn to_json(&self) -> Value {
        match &self.content {
            Content::Null => Value::Null,
            Content::Flag(flag) => Value::Bool(*flag),
            Content::Number(number) => Value::Number(number.clone()),
            Content::Text(text) => Value::String(text.clone()),
            Content::List(items) => items.iter().map(Node::to_json).collect(),
            Content::Mapping(entries) => Value::Object(
                entries
                    .iter()
                    .map(|entry| (entry.key.clone(), entry.value.to_json()))
                    .collect::<Map<_, _>>(),
            ),
        }
    }

    /// The entry of a mapping.
    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.content {
            Content::Mapping(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    /// The items of a list; of anything else none.
    pub(crate) fn items(&self) -> &[Node] {
        match &self.content {
            Content::List(items) => items,
            _ => &[],
        }
    }

    /// Every text in it, itself included.
    pub(crate) fn texts(&self) -> Vec<(&Node, &str)> {
        match &self.content {
            Content::Text(text) => vec![(self, text.as_str())],
            Content::List(items) => items.iter().flat_map(Node::texts).collect(),
            Content::Mapping(entries) => entries
                .iter()
                .flat_map(|entry| entry.value.texts())
                .collect(),
            _ => Vec::new(),
        }
    }
}

/// Reads a file. What can be gone on after is only noted; the tree is then still good enough to
/// look for more.
pub(crate) fn parse(text: &str, found: &mut Vec<Diagnostic>) -> Option<Node> {
    let options = granit_parser::options! {
        emit_unresolved_aliases: true,
        emit_anchor_events: true,
        emit_comments: false,
        flow_nesting_limit: NESTING_MAX,
        block_nesting_limit: NESTING_MAX,
    };
    let mut builder = Builder {
        text,
        found,
        open: Vec::new(),
        root: None,
        documents: 0,
    };
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = match event {
            Ok((event, span)) => {
                if let Some(tag) = span.tag_span() {
                    builder.refuse(builder.range(tag), "a tag", "leave it out");
                }
                (event, builder.range(span))
            }
            Err(error) => {
                let diagnostic = unreadable(text, &error);
                builder.found.push(diagnostic);
                return None;
            }
        };
        if !builder.event(event, span) {
            return None;
        }
    }
    if builder.root.is_none() {
        let empty = Diagnostic::new(Code::Empty, "the file is empty")
            .help("a flow begins with `flow: <name>`; see docs/flow-file.md");
        builder.found.push(empty);
    }
    builder.root
}

/// A list or mapping that is not yet closed.
enum Open {
    List {
        start: usize,
        items: Vec<Node>,
    },
    Mapping {
        start: usize,
        entries: Vec<Entry>,
        /// Where in the file each key of `entries` is.
        keys: HashMap<String, Range<usize>>,
        key: Option<Node>,
    },
}

struct Builder<'a, 'f> {
    text: &'a str,
    found: &'f mut Vec<Diagnostic>,
    open: Vec<Open>,
    root: Option<Node>,
    documents: usize,
}

impl Builder<'_, '_> {
    /// Takes one event; false ends the reading.
    fn event(&mut self, event: Event<'_>, span: Range<usize>) -> bool {
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    self.found.push(
                        Diagnostic::new(
                            Code::SeveralDocuments,
                            "there are several documents in the file",
                        )
                        .at(span)
                        .label("another one begins here")
                        .help("a file holds one flow: put the others into files of their own"),
                    );
                    return false;
                }
            }
            Event::Anchor(..) => self.refuse(span, "an anchor", "leave it out"),
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                self.refuse(span.clone(), "an alias", "write the value out");
                self.add(span, Content::Null);
            }
            Event::Scalar(value, style, ..) => {
                let content = self.scalar(&value, style, &span);
                self.add(span, content);
            }
            Event::SequenceStart(..) => self.open.push(Open::List {
                start: span.start,
                items: Vec::new(),
            }),
            Event::MappingStart(..) => self.open.push(Open::Mapping {
                start: span.start,
                entries: Vec::new(),
                keys: HashMap::new(),
                key: None,
            }),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::List { start, items }) => {
                    self.add(start..span.end, Content::List(items));
                }
                Some(Open::Mapping { start, entries, .. }) => {
                    self.add(start..span.end, Content::Mapping(entries));
                }
                None => return false,
            },
            _ => {}
        }
        true
    }

    /// Puts a value where it belongs.
    fn add(&mut self, extent: Range<usize>, content: Content) {
        let node = Node {
            span: self.first_line(extent.clone()),
            extent,
            content,
        };
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::List { items, .. }) => items.push(node),
            Some(Open::Mapping {
                key: key @ None, ..
            }) => *key = Some(node),
            Some(Open::Mapping {
                entries, keys, key, ..
            }) => {
                let Some(key) = key.take() else { return };
                let Some(name) = key_name(self.text, &key) else {
                    self.found.push(
                        Diagnostic::new(Code::WrongType, "a key must be text")
                            .at(key.span.clone())
                            .label(format!("this is {}", key.kind())),
                    );
                    return;
                };
                if name == "<<" {
                    self.refuse(key.span, "a merge key", "write the keys out");
                } else if let Some(first) = keys.get(&name) {
                    self.found.push(
                        Diagnostic::new(
                            Code::DuplicateKey,
                            format!("the key {} is there twice", shown(&name)),
                        )
                        .at(key.span)
                        .label("the second one")
                        .related(first.clone(), "the first one"),
                    );
                } else {
                    keys.insert(name.clone(), key.span.clone());
                    entries.push(Entry {
                        key: name,
                        key_span: key.span,
                        value: node,
                    });
                }
            }
        }
    }

    fn refuse(&mut self, span: Range<usize>, what: &str, help: &str) {
        self.found.push(
            Diagnostic::new(
                Code::NotSupportedYaml,
                format!("a flow file cannot have {what}"),
            )
            .at(span)
            .label("YAML has it, flow files do not")
            .help(help),
        );
    }

    fn scalar(&mut self, value: &str, style: ScalarStyle, span: &Range<usize>) -> Content {
        if style != ScalarStyle::Plain {
            return Content::Text(value.to_owned());
        }
        plain(value).unwrap_or_else(|| {
            self.found.push(
                Diagnostic::new(
                    Code::BadNumber,
                    format!("the number {} cannot be held", shown(value)),
                )
                .at(self.first_line(span.clone()))
                .label("too large, or not a number at all")
                .help("put it in quotes to keep it as text"),
            );
            Content::Number(0.into())
        })
    }

    fn range(&self, span: granit_parser::Span) -> Range<usize> {
        let offset = |marker: granit_parser::Marker| {
            self.text
                .floor_char_boundary(marker.byte_offset().unwrap_or(0).min(self.text.len()))
        };
        let start = offset(span.start);
        start..offset(span.end).max(start)
    }

    /// A span without its further lines, and without the space at its end.
    fn first_line(&self, span: Range<usize>) -> Range<usize> {
        let line = self.text[span.clone()]
            .lines()
            .next()
            .unwrap_or_default()
            .trim_end();
        span.start..span.start + line.len()
    }
}

/// The name that a key stands for: as it is written, whatever YAML makes of it.
fn key_name(text: &str, key: &Node) -> Option<String> {
    match &key.content {
        Content::Text(name) => Some(name.clone()),
        Content::Flag(_) | Content::Number(_) | Content::Null => {
            Some(text[key.span.clone()].to_owned())
        }
        Content::List(_) | Content::Mapping(_) => None,
    }
}

/// What a plain scalar is, by the core schema of YAML 1.2; none for a number that JSON has not.
fn plain(value: &str) -> Option<Content> {
    match value {
        "" | "~" | "null" | "Null" | "NULL" => return Some(Content::Null),
        "true" | "True" | "TRUE" => return Some(Content::Flag(true)),
        "false" | "False" | "FALSE" => return Some(Content::Flag(false)),
        ".nan" | ".NaN" | ".NAN" => return None,
        _ => {}
    }
    let unsigned = value.strip_prefix(['-', '+']).unwrap_or(value);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") {
        return None;
    }
    let radix = |digits: &str, radix| {
        (!digits.is_empty() && digits.chars().all(|digit| digit.is_digit(radix)))
            .then(|| u64::from_str_radix(digits, radix).ok())
    };
    let other = value
        .strip_prefix("0x")
        .and_then(|digits| radix(digits, 16))
        .or_else(|| value.strip_prefix("0o").and_then(|digits| radix(digits, 8)));
    if let Some(number) = other {
        return number.map(|number| Content::Number(number.into()));
    }
    if !is_decimal(unsigned) {
        return Some(Content::Text(value.to_owned()));
    }
    let value = value.strip_prefix('+').unwrap_or(value);
    if unsigned.bytes().all(|byte| byte.is_ascii_digit()) {
        let whole = value.parse::<u64>().map(Number::from);
        return whole
            .or_else(|_| value.parse::<i64>().map(Number::from))
            .ok()
            .map(Content::Number);
    }
    value
        .parse::<f64>()
        .ok()
        .and_then(Number::from_f64)
        .map(Content::Number)
}

/// `[0-9]* [. [0-9]*] [e [+-] [0-9]+]`, with a digit before the exponent.
fn is_decimal(text: &str) -> bool {
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let exponent_fits = exponent.is_none_or(|exponent| {
        let unsigned = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
        !unsigned.is_empty() && digits(unsigned)
    });
    !(whole.is_empty() && fraction.is_empty()) && digits(whole) && digits(fraction) && exponent_fits
}

/// Why the parser stopped.
fn unreadable(text: &str, error: &ScanError) -> Diagnostic {
    let at = text.floor_char_boundary(error.marker().byte_offset().unwrap_or(0).min(text.len()));
    let end = at
        + text[at..]
            .chars()
            .next()
            .filter(|c| *c != '\n')
            .map_or(0, char::len_utf8);
    if matches!(error.kind(), ErrorKind::RecursionLimitExceeded) {
        return Diagnostic::new(
            Code::TooDeep,
            format!("values are nested deeper than {NESTING_MAX} levels"),
        )
        .at(at..end)
        .label("one level too many");
    }
    let line_start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
    let line_end = text[at..]
        .find('\n')
        .map_or(text.len(), |newline| at + newline);
    let line = &text[line_start..line_end];
    let indent = &line[..line.len() - line.trim_start().len()];
    let help = indent
        .contains('\t')
        .then(|| "YAML is indented with spaces, never with tabs".to_owned());
    Diagnostic::new(Code::NotYaml, "the file is not YAML")
        .at(at..end)
        .label(error.info())
        .maybe_help(help)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(text: &str, expect: &Value) {
        let mut found = Vec::new();
        let node = parse(text, &mut found).unwrap();
        assert_eq!(found, []);
        assert_eq!(node.to_json(), *expect);
    }

    #[test]
    fn scalars_are_what_yaml_1_2_says() {
        check(
            "[1, -2, +3, 0x1f, 0o17, 1.5, -.5, 1e3, 18446744073709551615]",
            &json!([
                1,
                -2,
                3,
                31,
                15,
                1.5,
                -0.5,
                1000.0,
                18_446_744_073_709_551_615_u64
            ]),
        );
        check(
            "[yes, no, on, 012x, 1.2.3, 30s, '1', \"true\", +, e3]",
            &json!([
                "yes", "no", "on", "012x", "1.2.3", "30s", "1", "true", "+", "e3"
            ]),
        );
        check(
            "[true, False, ~, null, '']",
            &json!([true, false, null, null, ""]),
        );
        check(
            "a: |\n  x\n  y\nb: >-\n  x\n  y\n",
            &json!({"a": "x\ny\n", "b": "x y"}),
        );
        check("{1: a, true: b}", &json!({"1": "a", "true": "b"}));
    }

    #[test]
    fn every_value_knows_its_place() {
        let text = "\u{feff}# ä\na: 'ü'\nb:\n  - {c: 1}\n";
        let node = parse(text, &mut Vec::new()).unwrap();
        let b = &node.entry("b").unwrap();
        assert_eq!(&text[node.entry("a").unwrap().value.span.clone()], "'ü'");
        assert_eq!(&text[b.key_span.clone()], "b");
        let Content::List(items) = &b.value.content else {
            panic!("{b:?}")
        };
        assert_eq!(&text[items[0].span.clone()], "{c: 1}");
    }
}
