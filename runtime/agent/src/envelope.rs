//! The head of a message's line: its id, its lineage, its counts. The body is not looked at.
//!
//! Lines are written by agents and by the control plane, keys in a fixed order, so a line that
//! begins as nearly all do is read with a few comparisons; any other goes through serde.
//!
//! # Invariants
//!
//! - `the_fast_path_says_what_serde_says` for every line that is a message.

use std::ops::Range;

use towpath_protocol::MessageId;
use towpath_protocol::message::Message;

/// The head of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Its id.
    pub id: MessageId,
    /// Where its lineage is in the line.
    pub lineage: Range<usize>,
    /// Its ordering key.
    pub key: Option<Box<str>>,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// How often it was rebounded.
    pub rebounds: u32,
    /// How often it was replayed.
    pub replays: u32,
    /// It says that it may have been handled before.
    pub uncertain: bool,
}

/// Reads the head of a line.
pub fn read(line: &[u8]) -> Result<Envelope, String> {
    if let Some(envelope) = read_plain(line) {
        return Ok(envelope);
    }
    let message = parse(line)?;
    let start = message.lineage.get().as_ptr().addr() - line.as_ptr().addr();
    Ok(Envelope {
        id: message.id,
        lineage: start..start + message.lineage.get().len(),
        key: message.key.map(|key| key.into_owned().into_boxed_str()),
        attempt: message.attempt,
        rebounds: message.rebounds,
        replays: message.replays,
        uncertain: message.uncertain,
    })
}

/// Reads all of a line.
pub fn parse(line: &[u8]) -> Result<Message<'_>, String> {
    let text = std::str::from_utf8(line).map_err(|_| "it is not UTF-8".to_owned())?;
    serde_json::from_str(text).map_err(|error| format!("it is not a message: {error}"))
}

const ID: &[u8] = b"{\"id\":\"";
const LINEAGE: &[u8] = b"\",\"lineage\":";
const PARENT: &[u8] = b"\"parent\":\"";
const BODY: &[u8] = b"\"body\":";

/// Reads a first attempt at a message with neither key nor headers: nearly every one.
fn read_plain(line: &[u8]) -> Option<Envelope> {
    let rest = line.strip_prefix(ID)?;
    let id = MessageId::decode(rest.get(..MessageId::TEXT_LEN)?)?;
    let rest = rest[MessageId::TEXT_LEN..].strip_prefix(LINEAGE)?;
    let start = line.len() - rest.len();
    let end = start + object_len(rest)?;
    let mut rest = line[end..].strip_prefix(b",")?;
    if let Some(after) = rest.strip_prefix(PARENT) {
        MessageId::decode(after.get(..MessageId::TEXT_LEN)?)?;
        rest = after[MessageId::TEXT_LEN..].strip_prefix(b"\",")?;
    }
    let body = rest.strip_prefix(BODY)?;
    if body.len() < 2 || *body.last()? != b'}' {
        return None;
    }
    Some(Envelope {
        id,
        lineage: start..end,
        key: None,
        attempt: 1,
        rebounds: 0,
        replays: 0,
        uncertain: false,
    })
}

/// Returns the length of the object of plain strings and numbers that the text begins with.
/// Nested objects and escapes are left to serde.
fn object_len(text: &[u8]) -> Option<usize> {
    if *text.first()? != b'{' {
        return None;
    }
    let mut in_string = false;
    for (index, byte) in text.iter().enumerate().skip(1) {
        match byte {
            b'"' => in_string = !in_string,
            b'\\' | 0..=31 => return None,
            b'}' if !in_string => return Some(index + 1),
            b'{' | b'[' if !in_string => return None,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slow(line: &[u8]) -> Envelope {
        let message = parse(line).unwrap();
        let start = message.lineage.get().as_ptr().addr() - line.as_ptr().addr();
        Envelope {
            id: message.id,
            lineage: start..start + message.lineage.get().len(),
            key: message.key.map(|key| key.into_owned().into_boxed_str()),
            attempt: message.attempt,
            rebounds: message.rebounds,
            replays: message.replays,
            uncertain: message.uncertain,
        }
    }

    const PLAIN: &str = r#"{"id":"00000000000000000000000000000001","lineage":{"run":"x","version":3},"parent":"00000000000000000000000000000002","body":{"a":1}}"#;

    #[test]
    fn a_plain_line_needs_no_serde() {
        let envelope = read_plain(PLAIN.as_bytes()).expect("it is plain");
        assert_eq!(
            &PLAIN[envelope.lineage.clone()],
            r#"{"run":"x","version":3}"#
        );
        assert_eq!(envelope, slow(PLAIN.as_bytes()));
    }

    #[test]
    fn what_is_not_a_message_is_an_error() {
        for line in ["", "x", "{}", "[]", r#"{"id":"1","lineage":{},"body":1}"#] {
            assert!(read(line.as_bytes()).is_err(), "{line}");
        }
        assert!(read(b"\xff\xfe").is_err());
    }

    proptest! {
        #[test]
        fn the_fast_path_says_what_serde_says(
            id in any::<u128>(),
            trace in proptest::option::of(any::<String>()),
            parent in proptest::option::of(any::<u128>()),
            key in proptest::option::of(any::<String>()),
            attempt in 1..4_u32,
            rebounds in 0..3_u32,
            body in any::<String>(),
        ) {
            let lineage = serde_json::json!({"run": format!("{id:032x}"), "version": 3, "trace": trace});
            let lineage = serde_json::value::to_raw_value(&lineage).unwrap();
            let body = serde_json::value::to_raw_value(&body).unwrap();
            let mut message = Message::root(MessageId::from_bytes(id.to_be_bytes()), &lineage, &body);
            message.parent = parent.map(|parent| MessageId::from_bytes(parent.to_be_bytes()));
            message.key = key.map(Into::into);
            message.attempt = attempt;
            message.rebounds = rebounds;
            let line = serde_json::to_vec(&message).unwrap();
            prop_assert_eq!(read(&line).unwrap(), slow(&line));
        }
    }
}
