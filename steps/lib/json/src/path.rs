//! A dotted path to a member of a JSON document: `data.items`, `links.0.href`.

use std::borrow::Cow;
use std::fmt;

use schemars::JsonSchema;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// A dotted path: names of members of objects, and indices (from 0) of lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Path(String);

impl Path {
    /// Finds what the path leads to; nothing if a part of it is not there.
    pub fn find<'a>(&self, document: &'a RawValue) -> Option<&'a RawValue> {
        self.parts().into_iter().try_fold(document, |at, part| {
            let mut reader = serde_json::Deserializer::from_str(at.get());
            Member(part).deserialize(&mut reader).ok().flatten()
        })
    }

    /// The names and indices that it is made of.
    pub(crate) fn parts(&self) -> Vec<&str> {
        let parts = self.0.split('.');
        parts.filter(|part| !part.is_empty()).collect()
    }

    /// Finds what the path leads to, unless it is null.
    pub fn find_some<'a>(&self, document: &'a RawValue) -> Option<&'a RawValue> {
        self.find(document).filter(|found| found.get() != "null")
    }

    /// Says whether the path leads to `true`.
    pub fn is_true(&self, document: &RawValue) -> bool {
        self.find(document)
            .is_some_and(|found| found.get() == "true")
    }
}

impl From<&str> for Path {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The text of a string, or a number or a boolean as it is written.
pub fn text(value: &RawValue) -> Option<Cow<'_, str>> {
    match value.get().as_bytes().first()? {
        b'"' => serde_json::from_str::<String>(value.get())
            .ok()
            .map(Cow::Owned),
        b'{' | b'[' | b'n' => None,
        _ => Some(Cow::Borrowed(value.get())),
    }
}

/// Why a document has no list of items.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotAList {
    /// The path leads nowhere.
    Missing(Path),
    /// The path leads to something that is not a list.
    Other(Path),
    /// Without a path, a document must be a list, or an object with exactly one member that is
    /// one; these are the members that are lists.
    Unclear(Vec<String>),
}

impl fmt::Display for NotAList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(path) => write!(f, "there is nothing at `{path}`"),
            Self::Other(path) => write!(f, "what is at `{path}` is not a list"),
            Self::Unclear(lists) if lists.is_empty() => {
                f.write_str("it is not a list and has none: set `items` to the path of one")
            }
            Self::Unclear(lists) => write!(
                f,
                "it is not a list, and which of its lists ({}) is meant is unclear: set `items`",
                lists.join(", ")
            ),
        }
    }
}

impl std::error::Error for NotAList {}

/// Finds the items of a document: at `path`, or, without one, the document itself or its only
/// member that is a list.
pub fn items<'a>(
    document: &'a RawValue,
    path: Option<&Path>,
) -> Result<Vec<&'a RawValue>, NotAList> {
    if let Some(path) = path {
        let found = path
            .find(document)
            .ok_or_else(|| NotAList::Missing(path.clone()))?;
        // An empty page is written as null by some.
        if found.get() == "null" {
            return Ok(Vec::new());
        }
        return list(found).ok_or_else(|| NotAList::Other(path.clone()));
    }
    if let Some(items) = list(document) {
        return Ok(items);
    }
    let mut reader = serde_json::Deserializer::from_str(document.get());
    let lists = reader
        .deserialize_any(Lists)
        .map_err(|_| NotAList::Unclear(Vec::new()))?;
    match lists.as_slice() {
        [(_, only)] => list(only).ok_or_else(|| NotAList::Unclear(Vec::new())),
        _ => Err(NotAList::Unclear(
            lists.into_iter().map(|(name, _)| name).collect(),
        )),
    }
}

fn list(value: &RawValue) -> Option<Vec<&RawValue>> {
    if !value.get().starts_with('[') {
        return None;
    }
    serde_json::from_str(value.get()).ok()
}

/// Reads one member of an object or of a list and skips the others.
struct Member<'p>(&'p str);

impl<'de> DeserializeSeed<'de> for Member<'_> {
    type Value = Option<&'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Member<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or a list")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(is_it) = map.next_key_seed(Named(self.0))? {
            if is_it {
                found = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let index: Option<usize> = self.0.parse().ok();
        let mut found = None;
        let mut at = 0;
        while let Some(value) = list.next_element::<&RawValue>()? {
            if Some(at) == index {
                found = Some(value);
            }
            at += 1;
        }
        Ok(found)
    }
}

/// Says whether a key has a name.
struct Named<'p>(&'p str);

impl<'de> DeserializeSeed<'de> for Named<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<bool, D::Error> {
        reader.deserialize_str(self)
    }
}

impl Visitor<'_> for Named<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<bool, E> {
        Ok(key == self.0)
    }
}

/// Reads the members of an object that are lists.
struct Lists;

impl<'de> Visitor<'de> for Lists {
    type Value = Vec<(String, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut lists = Vec::new();
        while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
            if value.get().starts_with('[') {
                lists.push((name, value));
            }
        }
        Ok(lists)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str =
        r#"{"data": {"items": [ {"id":1}, {"id":2} ], "more": true, "none": null, "a\u0062": 7}}"#;

    #[track_caller]
    fn check_find(path: &str, expect: Option<&str>) {
        let document: &RawValue = serde_json::from_str(DOCUMENT).unwrap();
        assert_eq!(Path::from(path).find(document).map(RawValue::get), expect);
    }

    #[track_caller]
    fn check_items(document: &str, path: Option<&str>, expect: Result<Vec<&str>, &str>) {
        let document: &RawValue = serde_json::from_str(document).unwrap();
        let found = items(document, path.map(Path::from).as_ref());
        let found = found.map(|items| items.into_iter().map(RawValue::get).collect());
        assert_eq!(
            found.map_err(|error| error.to_string()),
            expect.map_err(str::to_owned)
        );
    }

    #[test]
    fn a_path_leads_through_objects_and_lists() {
        check_find("data.items.1.id", Some("2"));
        check_find("data.more", Some("true"));
        check_find("data.ab", Some("7"));
        check_find("data.items.2", None);
        check_find("data.more.deeper", None);
        check_find("nothing", None);
        check_find("", Some(DOCUMENT));
    }

    #[test]
    fn items_are_where_the_path_says_or_where_there_is_no_doubt() {
        check_items("[1, 2]", None, Ok(vec!["1", "2"]));
        check_items(
            r#"{"n":1,"rows":[{"a":[]}]}"#,
            None,
            Ok(vec![r#"{"a":[]}"#]),
        );
        check_items(r#"{"data":{"items":[]}}"#, Some("data.items"), Ok(vec![]));
        check_items(r#"{"items":null}"#, Some("items"), Ok(vec![]));
        check_items(
            r#"{"rows":[],"errors":[]}"#,
            None,
            Err(
                "it is not a list, and which of its lists (rows, errors) is meant is unclear: set `items`",
            ),
        );
        check_items(
            r#"{"message":"hello"}"#,
            None,
            Err("it is not a list and has none: set `items` to the path of one"),
        );
        check_items(
            "7",
            None,
            Err("it is not a list and has none: set `items` to the path of one"),
        );
        check_items(r#"{"a":1}"#, Some("b"), Err("there is nothing at `b`"));
        check_items(r#"{"a":1}"#, Some("a"), Err("what is at `a` is not a list"));
    }

    #[test]
    fn text_is_what_a_person_would_read() {
        let read = |json: &str| {
            let raw: &RawValue = serde_json::from_str(json).unwrap();
            text(raw).map(Cow::into_owned)
        };
        assert_eq!(read(r#""a\"b""#).as_deref(), Some("a\"b"));
        assert_eq!(
            read("12345678901234567890").as_deref(),
            Some("12345678901234567890")
        );
        assert_eq!(read("null"), None);
        assert_eq!(read("{}"), None);
    }
}
