//! Reads the items of a document while it arrives, holding one at a time.
//!
//! # Invariants
//!
//! - `a_large_document_is_never_held`: beside what `each` keeps, no more of a document is in memory
//!   than one item and what is not an item, and both have a limit.
//! - `what_is_beside_the_items_is_kept`: what is returned is the same document with an empty list in
//!   the place of the items, so that a path leads to the same place in it.

use std::cell::Cell;
use std::fmt;
use std::io::{self, Read};

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::path::{NotAList, Path};

/// What was read of a document.
#[derive(Debug)]
pub struct Rest {
    /// The document, with an empty list in the place of its items.
    pub document: Box<RawValue>,
    /// How many items there were.
    pub count: u64,
}

/// Why the items of a document could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// It cannot be read.
    #[error("the document cannot be read")]
    Source(#[source] io::Error),
    /// It is not JSON.
    #[error("it is not JSON")]
    NotJson(#[source] serde_json::Error),
    /// It has no list where one should be.
    #[error(transparent)]
    NotAList(#[from] NotAList),
    /// An item, or what is beside the items, is larger than may be held.
    #[error("{0} is larger than {1} bytes")]
    TooLarge(&'static str, usize),
    /// Whoever takes the items wants no more.
    #[error("nobody takes the items any more")]
    Stopped,
}

/// Reads the items of a document: at `path`, or, without one, the document itself or its only member
/// that is a list. In the latter case the document is held as a whole, because which list is meant
/// shows at its end.
///
/// No more than `held_max` bytes are held. `each` is given each item; when it says `false`, reading
/// stops.
pub fn stream_items(
    source: impl Read,
    path: Option<&Path>,
    held_max: usize,
    each: impl FnMut(Box<RawValue>) -> bool,
) -> Result<Rest, StreamError> {
    let held = Cell::new(0);
    let too_large = Cell::new(false);
    let mut state = State {
        rest: String::new(),
        count: 0,
        held: &held,
        held_max,
        refusal: None,
        each,
    };
    let mut reader = serde_json::Deserializer::from_reader(Bounded {
        source,
        held: &held,
        held_max,
        too_large: &too_large,
    });
    let parts: Vec<&str> = path.map(Path::parts).unwrap_or_default();
    let walked = match path {
        Some(path) => Walk {
            parts: &parts,
            path,
            state: &mut state,
        }
        .deserialize(&mut reader),
        None => Top { state: &mut state }.deserialize(&mut reader),
    };
    let walked = walked.and_then(|()| reader.end());
    if let Err(error) = walked {
        if let Some(refusal) = state.refusal {
            return Err(refusal);
        }
        if too_large.get() {
            let what = if state.count > 0 || path.is_some() {
                "an item"
            } else {
                "the document"
            };
            return Err(StreamError::TooLarge(what, held_max));
        }
        return Err(if error.is_io() {
            StreamError::Source(error.into())
        } else {
            StreamError::NotJson(error)
        });
    }
    let document = RawValue::from_string(state.rest).map_err(StreamError::NotJson)?;
    Ok(Rest {
        document,
        count: state.count,
    })
}

/// What the visitors below share.
struct State<'a, F> {
    /// The document without its items, as far as it was read.
    rest: String,
    count: u64,
    /// How much was read since the last item was given away.
    held: &'a Cell<usize>,
    held_max: usize,
    /// Why reading was stopped, if it was stopped from here.
    refusal: Option<StreamError>,
    each: F,
}

impl<F: FnMut(Box<RawValue>) -> bool> State<'_, F> {
    fn refuse<E: serde::de::Error>(&mut self, why: impl Into<StreamError>) -> E {
        let why = why.into();
        let error = E::custom(&why);
        self.refusal = Some(why);
        error
    }

    fn give<E: serde::de::Error>(&mut self, item: Box<RawValue>) -> Result<(), E> {
        self.held.set(0);
        self.count += 1;
        if (self.each)(item) {
            Ok(())
        } else {
            Err(self.refuse(StreamError::Stopped))
        }
    }

    /// Adds to what is beside the items.
    fn keep<E: serde::de::Error>(&mut self, text: &str) -> Result<(), E> {
        if self.rest.len() + text.len() > self.held_max {
            let what = "what is beside the items";
            return Err(self.refuse(StreamError::TooLarge(what, self.held_max)));
        }
        self.rest.push_str(text);
        Ok(())
    }

    fn keep_key<E: serde::de::Error>(&mut self, key: &str, is_first: bool) -> Result<(), E> {
        let key = serde_json::to_string(key).map_err(E::custom)?;
        self.keep(if is_first { "" } else { "," })?;
        self.keep(&key)?;
        self.keep(":")
    }
}

/// Follows the rest of a path from here, and keeps what is beside it.
struct Walk<'w, 's, F> {
    parts: &'w [&'w str],
    path: &'w Path,
    state: &'w mut State<'s, F>,
}

impl<F: FnMut(Box<RawValue>) -> bool> Walk<'_, '_, F> {
    /// What is here is not what the path needs.
    fn wrong<E: serde::de::Error>(self) -> E {
        self.state.refuse(if self.parts.is_empty() {
            NotAList::Other(self.path.clone())
        } else {
            NotAList::Missing(self.path.clone())
        })
    }
}

impl<'de, F: FnMut(Box<RawValue>) -> bool> DeserializeSeed<'de> for Walk<'_, '_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de, F: FnMut(Box<RawValue>) -> bool> Visitor<'de> for Walk<'_, '_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or a list")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((part, parts)) = self.parts.split_first() else {
            return Err(self.wrong());
        };
        self.state.keep("{")?;
        let (mut is_first, mut is_found) = (true, false);
        while let Some(key) = map.next_key::<String>()? {
            self.state.keep_key(&key, is_first)?;
            is_first = false;
            if key == *part && !is_found {
                is_found = true;
                let (path, state) = (self.path, &mut *self.state);
                map.next_value_seed(Walk { parts, path, state })?;
            } else {
                let value: Box<RawValue> = map.next_value()?;
                self.state.keep(value.get())?;
            }
        }
        self.state.keep("}")?;
        if is_found { Ok(()) } else { Err(self.wrong()) }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Some((part, parts)) = self.parts.split_first() else {
            self.state.keep("[]")?;
            while let Some(item) = list.next_element()? {
                self.state.give(item)?;
            }
            return Ok(());
        };
        let Ok(index) = part.parse::<usize>() else {
            return Err(self.wrong());
        };
        self.state.keep("[")?;
        for at in 0.. {
            if at == index {
                self.state.keep(if at == 0 { "" } else { "," })?;
                let (path, state) = (self.path, &mut *self.state);
                let seed = Walk { parts, path, state };
                if list.next_element_seed(seed)?.is_none() {
                    return Err(self.wrong());
                }
            } else {
                let Some(value) = list.next_element::<Box<RawValue>>()? else {
                    if at < index {
                        return Err(self.wrong());
                    }
                    break;
                };
                self.state.keep(if at == 0 { "" } else { "," })?;
                self.state.keep(value.get())?;
            }
        }
        self.state.keep("]")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        // An empty page is written as null by some.
        if self.parts.is_empty() {
            self.state.keep("null")
        } else {
            Err(self.wrong())
        }
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<(), E> {
        Err(self.wrong())
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<(), E> {
        Err(self.wrong())
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<(), E> {
        Err(self.wrong())
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<(), E> {
        Err(self.wrong())
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<(), E> {
        Err(self.wrong())
    }
}

/// Reads a document that is a list, or whose only list is meant.
struct Top<'w, 's, F> {
    state: &'w mut State<'s, F>,
}

impl<'de, F: FnMut(Box<RawValue>) -> bool> DeserializeSeed<'de> for Top<'_, '_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de, F: FnMut(Box<RawValue>) -> bool> Visitor<'de> for Top<'_, '_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        self.state.keep("[]")?;
        while let Some(item) = list.next_element()? {
            self.state.give(item)?;
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut lists = Vec::new();
        self.state.keep("{")?;
        let mut is_first = true;
        while let Some((key, value)) = map.next_entry::<String, Box<RawValue>>()? {
            self.state.keep_key(&key, is_first)?;
            is_first = false;
            if value.get().starts_with('[') {
                self.state.keep("[]")?;
                lists.push((key, value));
            } else {
                self.state.keep(value.get())?;
            }
        }
        self.state.keep("}")?;
        let [(_, only)] = lists.as_slice() else {
            let names = lists.into_iter().map(|(name, _)| name).collect();
            return Err(self.state.refuse(NotAList::Unclear(names)));
        };
        let items: Vec<&RawValue> = serde_json::from_str(only.get()).map_err(A::Error::custom)?;
        for item in items {
            self.state.give(item.to_owned())?;
        }
        Ok(())
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        Err(self.state.refuse(NotAList::Unclear(Vec::new())))
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<(), E> {
        self.visit_unit()
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<(), E> {
        self.visit_unit()
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<(), E> {
        self.visit_unit()
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<(), E> {
        self.visit_unit()
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<(), E> {
        self.visit_unit()
    }
}

/// Refuses to read on when too much was read since the last item was given away.
struct Bounded<'a, R> {
    source: R,
    held: &'a Cell<usize>,
    held_max: usize,
    too_large: &'a Cell<bool>,
}

impl<R: Read> Read for Bounded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.held.get() > self.held_max {
            self.too_large.set(true);
            return Err(io::Error::other("more than may be held"));
        }
        let count = self.source.read(buffer)?;
        self.held.set(self.held.get() + count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(
        document: &str,
        path: Option<&str>,
        held_max: usize,
    ) -> Result<(Vec<String>, String), String> {
        let mut items = Vec::new();
        let path = path.map(Path::from);
        let each = |item: Box<RawValue>| {
            items.push(item.get().to_owned());
            true
        };
        let rest = stream_items(document.as_bytes(), path.as_ref(), held_max, each);
        let rest = rest.map_err(|error| error.to_string())?;
        assert_eq!(rest.count, items.len() as u64);
        Ok((items, rest.document.get().to_owned()))
    }

    #[track_caller]
    fn gives(document: &str, path: Option<&str>, items: &[&str], rest: &str) {
        let (found, beside) = read(document, path, 1000).unwrap();
        assert_eq!(
            (
                found.iter().map(String::as_str).collect::<Vec<_>>(),
                beside.as_str()
            ),
            (items.to_vec(), rest)
        );
    }

    #[track_caller]
    fn fails(document: &str, path: Option<&str>, reason: &str) {
        assert_eq!(read(document, path, 1000).unwrap_err(), reason);
    }

    #[test]
    fn what_is_beside_the_items_is_kept() {
        gives("[ 1, {\"a\": [2]} ]", None, &["1", "{\"a\": [2]}"], "[]");
        gives(
            r#"{"n":1,"rows":[{"a":[]}],"next":"x"}"#,
            None,
            &[r#"{"a":[]}"#],
            r#"{"n":1,"rows":[],"next":"x"}"#,
        );
        gives(
            r#"{"a\"b":[7], "data": {"items": [ 1.50, "x" ], "more": true}, "next": {"href":"/2"}}"#,
            Some("data.items"),
            &["1.50", "\"x\""],
            r#"{"a\"b":[7],"data":{"items":[],"more":true},"next":{"href":"/2"}}"#,
        );
        gives(
            r#"[{"rows":[1]},2]"#,
            Some("0.rows"),
            &["1"],
            r#"[{"rows":[]},2]"#,
        );
        gives(r#"{"items":null}"#, Some("items"), &[], r#"{"items":null}"#);
        gives("[1]", Some(""), &["1"], "[]");
    }

    #[test]
    fn a_document_without_the_list_says_so() {
        fails(r#"{"a":1}"#, Some("b"), "there is nothing at `b`");
        fails("7", Some("b"), "there is nothing at `b`");
        fails(r#"{"a":{}}"#, Some("a"), "what is at `a` is not a list");
        fails(r#"{"a":1}"#, Some("a"), "what is at `a` is not a list");
        fails(r#"[1]"#, Some("3"), "there is nothing at `3`");
        fails(
            "7",
            None,
            "it is not a list and has none: set `items` to the path of one",
        );
        fails(
            r#"{"rows":[],"errors":[]}"#,
            None,
            "it is not a list, and which of its lists (rows, errors) is meant is unclear: set `items`",
        );
        for no_json in ["[1, 2", "[1] 2", "<html>", ""] {
            fails(no_json, None, "it is not JSON");
        }
    }

    #[test]
    fn a_large_document_is_never_held() {
        let item = format!("\"{}\"", "x".repeat(500));
        let many = format!("[{}]", vec![item.as_str(); 100].join(","));
        assert_eq!(read(&many, None, 1000).unwrap().0.len(), 100);
        let large = format!("[1,\"{}\"]", "x".repeat(2000));
        assert_eq!(
            read(&large, None, 1000).unwrap_err(),
            "an item is larger than 1000 bytes"
        );
        let beside = format!(
            "{{\"a\":\"{0}\",\"rows\":[1],\"b\":\"{0}\"}}",
            "x".repeat(700)
        );
        assert_eq!(
            read(&beside, Some("rows"), 1000).unwrap_err(),
            "what is beside the items is larger than 1000 bytes"
        );
        assert_eq!(
            read(&format!("{{\"rows\":{many}}}"), None, 1000).unwrap_err(),
            "the document is larger than 1000 bytes"
        );
    }

    #[test]
    fn reading_stops_when_nobody_takes_the_items() {
        let mut taken = 0;
        let each = |_| {
            taken += 1;
            taken < 3
        };
        let error = stream_items("[1,2,3,4,5".as_bytes(), None, 100, each).unwrap_err();
        assert!(matches!(error, StreamError::Stopped));
        assert_eq!(taken, 3);
    }
}
