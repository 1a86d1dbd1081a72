//! Which items were brought in, in few bytes: what a checkpoint remembers of them.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The most items that are remembered. Written down they are 54 KB, and a checkpoint may have 64.
pub(crate) const KNOWN_MAX: usize = 4_000;

/// A hash of five bytes. Two are kept of each item, so that another item is mistaken for a known one
/// once in 10^20 times, and a change for none once in 10^12.
type Mark = [u8; 5];

/// Items by name, each with its content, as hashes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Known(BTreeMap<Mark, Mark>);

/// An item as it is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Marks {
    name: Mark,
    content: Mark,
}

impl Marks {
    /// Makes them from the name of an item and its content.
    pub(crate) fn of(name: &str, content: &str) -> Self {
        let mark = |text: &str| {
            let hash = blake3::hash(text.as_bytes());
            let mut mark = Mark::default();
            mark.copy_from_slice(&hash.as_bytes()[..5]);
            mark
        };
        Self {
            name: mark(name),
            content: mark(content),
        }
    }

    /// Returns both in one number.
    pub(crate) fn hash(self) -> u64 {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&self.name[..4]);
        bytes[4..].copy_from_slice(&self.content[..4]);
        u64::from_be_bytes(bytes)
    }

    /// Returns the content as text.
    pub(crate) fn content(self) -> String {
        self.content.iter().fold(String::new(), |mut text, byte| {
            use std::fmt::Write as _;
            write!(text, "{byte:02x}").expect("a string takes all");
            text
        })
    }
}

/// What is known of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Knowledge {
    /// It was not seen.
    New,
    /// It was seen with other content.
    Changed,
    /// It was seen as it is.
    Same,
}

impl Known {
    /// Says what is known of an item.
    pub(crate) fn look(&self, marks: Marks) -> Knowledge {
        match self.0.get(&marks.name) {
            None => Knowledge::New,
            Some(content) if *content == marks.content => Knowledge::Same,
            Some(_) => Knowledge::Changed,
        }
    }

    /// Remembers an item, unless there are too many, and says whether it did.
    pub(crate) fn insert(&mut self, marks: Marks) -> bool {
        if self.0.len() >= KNOWN_MAX && !self.0.contains_key(&marks.name) {
            return false;
        }
        self.0.insert(marks.name, marks.content);
        true
    }

    /// Returns all that is known.
    pub(crate) fn marks(&self) -> impl Iterator<Item = Marks> {
        let pairs = self.0.iter();
        pairs.map(|(name, content)| Marks {
            name: *name,
            content: *content,
        })
    }

    /// Says whether nothing is known.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Known {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = self
            .0
            .iter()
            .flat_map(|(name, content)| name.iter().chain(content))
            .copied()
            .collect();
        serializer.serialize_str(&STANDARD_NO_PAD.encode(bytes))
    }
}

impl<'de> Deserialize<'de> for Known {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD_NO_PAD.decode(text).map_err(de::Error::custom)?;
        let (pairs, rest) = bytes.as_chunks::<10>();
        if !rest.is_empty() {
            return Err(de::Error::custom("`known` is cut off"));
        }
        let mut known = Self::default();
        for pair in pairs {
            let mut marks = Marks {
                name: Mark::default(),
                content: Mark::default(),
            };
            marks.name.copy_from_slice(&pair[..5]);
            marks.content.copy_from_slice(&pair[5..]);
            known.insert(marks);
        }
        Ok(known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_fits_into_a_checkpoint_and_comes_back() {
        let mut known = Known::default();
        for n in 0..2 * KNOWN_MAX {
            let is_in = known.insert(Marks::of(&format!("order-{n}@2026"), "{}"));
            assert_eq!(is_in, n < KNOWN_MAX);
        }
        let json = serde_json::to_string(&known).unwrap();
        assert!(json.len() < 60 << 10, "{}", json.len());
        assert_eq!(serde_json::from_str::<Known>(&json).unwrap(), known);
        assert!(serde_json::from_str::<Known>("\"AAAA\"").is_err());
    }

    #[test]
    fn a_known_item_is_told_from_a_changed_and_a_new_one() {
        let mut known = Known::default();
        known.insert(Marks::of("a@1", "one"));
        let look = |name, content| known.look(Marks::of(name, content));
        assert_eq!(look("a@1", "one"), Knowledge::Same);
        assert_eq!(look("a@1", "two"), Knowledge::Changed);
        assert_eq!(look("b@1", "one"), Knowledge::New);
    }
}
