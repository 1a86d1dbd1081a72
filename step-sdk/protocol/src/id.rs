//! The id of a message: 128 bits, written as 32 lower-case hexadecimal digits.
//!
//! # Invariants
//!
//! - `derived_ids_repeat`: the same parent, step, port and index always give the same id, on every
//!   machine and in every version: a retry or a redelivery produces the *same* outputs.
//! - `no_two_outputs_share_an_id`: different parents, steps, ports or indices give different ids.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The id of a message. The id of a run is the id of the tick that began it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId([u8; 16]);

impl MessageId {
    /// The number of characters of an id as text.
    pub const TEXT_LEN: usize = 32;

    /// Makes an id from its bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes of the id.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Derives the id of the output number `index` (from 0) that `step` emitted on `port` for `parent`.
    pub fn derive(parent: Self, step: &str, port: &str, index: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"towpath output 1\0");
        hasher.update(&parent.0);
        hasher.update(step.as_bytes());
        hasher.update(b"\0");
        hasher.update(port.as_bytes());
        hasher.update(b"\0");
        hasher.update(&index.to_le_bytes());
        Self::truncate(&hasher)
    }

    /// Returns what stands for several messages where an output was made from all of them: the same
    /// for the same messages, in whatever order. For one it is its own id.
    pub fn of_several(parents: &[Self]) -> Self {
        let mut parents = parents.to_vec();
        parents.sort_unstable();
        parents.dedup();
        if let [one] = parents.as_slice() {
            return *one;
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"towpath joint 1\0");
        for parent in parents {
            hasher.update(&parent.0);
        }
        Self::truncate(&hasher)
    }

    /// Derives the id of a root message from what its source calls it.
    ///
    /// The same `source_id` seen again, by a trigger of the same flow, is the same message.
    pub fn from_source(flow: &str, step: &str, port: &str, source_id: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"towpath source 1\0");
        for part in [flow, step, port, source_id] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        Self::truncate(&hasher)
    }

    /// Writes the id as text into a buffer, without allocating.
    pub fn encode(self, buffer: &mut [u8; Self::TEXT_LEN]) -> &str {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        for (pair, byte) in buffer.chunks_exact_mut(2).zip(self.0) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        std::str::from_utf8(buffer).expect("hexadecimal digits are ASCII")
    }

    /// Reads an id from exactly 32 hexadecimal digits.
    pub fn decode(text: &[u8]) -> Option<Self> {
        if text.len() != Self::TEXT_LEN {
            return None;
        }
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            *byte = (digit(pair[0])? << 4) | digit(pair[1])?;
        }
        Some(Self(bytes))
    }

    fn truncate(hasher: &blake3::Hasher) -> Self {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(bytes)
    }
}

const fn digit(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        b'A'..=b'F' => Some(character - b'A' + 10),
        _ => None,
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.encode(&mut [0; Self::TEXT_LEN]))
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidId;

impl fmt::Display for InvalidId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a message id is 32 hexadecimal digits")
    }
}

impl std::error::Error for InvalidId {}

impl FromStr for MessageId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        Self::decode(text.as_bytes()).ok_or(InvalidId)
    }
}

impl Serialize for MessageId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.encode(&mut [0; Self::TEXT_LEN]))
    }
}

impl<'de> Deserialize<'de> for MessageId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = MessageId;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("32 hexadecimal digits")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<MessageId, E> {
                MessageId::decode(text.as_bytes()).ok_or_else(|| E::custom(InvalidId))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const PARENT: MessageId = MessageId::from_bytes([7; 16]);

    #[test]
    fn derived_ids_repeat() {
        assert_eq!(
            MessageId::derive(PARENT, "shape", "out", 0).to_string(),
            "4896331340825714fe2804ebdccb2ecf",
            "this id is a contract: it must not change between versions"
        );
    }

    #[test]
    fn no_two_outputs_share_an_id() {
        let mut seen = HashSet::new();
        for step in ["a", "b"] {
            for port in ["out", "other"] {
                for index in 0..100 {
                    assert!(seen.insert(MessageId::derive(PARENT, step, port, index)));
                }
            }
        }
    }

    #[test]
    fn the_same_messages_stand_for_the_same_whatever_their_order() {
        let [a, b, c] = [1, 2, 3].map(|byte| MessageId::from_bytes([byte; 16]));
        let both = MessageId::of_several(&[a, b]);
        assert_eq!(both, MessageId::of_several(&[b, a, b]));
        assert_eq!(MessageId::of_several(&[c, c]), c);
        for other in [a, b, c, MessageId::of_several(&[a, b, c])] {
            assert_ne!(both, other);
        }
    }

    #[test]
    fn text_and_back() {
        let id = MessageId::derive(PARENT, "a", "out", 3);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("xyz".parse::<MessageId>(), Err(InvalidId));
    }
}
