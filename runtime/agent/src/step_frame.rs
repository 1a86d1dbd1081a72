//! The frames of a step, as the agent reads them.
//!
//! `emit` and `done` with their keys in the documented order are read with a few comparisons; any
//! other frame goes through serde. A body is checked to be JSON, because everything after this
//! agent trusts it, but nothing is made of it.
//!
//! # Invariants
//!
//! - `the_fast_path_says_what_serde_says` for every line, also for one that is no frame.

use std::borrow::Cow;

use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use towpath_protocol::MessageId;
use towpath_protocol::frame::{Done, Emit, FromStep};

/// An output.
#[derive(Debug, PartialEq, Eq)]
pub struct Output<'a> {
    /// The message it was made from.
    pub id: MessageId,
    /// Further messages that it was made from.
    pub with: Vec<MessageId>,
    /// Its port.
    pub port: Option<Cow<'a, str>>,
    /// Its ordering key.
    pub key: Option<Cow<'a, str>>,
    /// What its source calls it.
    pub source_id: Option<Cow<'a, str>>,
    /// Its headers, as JSON.
    pub headers: Option<&'a str>,
    /// Its body, as JSON.
    pub body: &'a str,
}

/// A frame.
#[derive(Debug)]
pub enum Frame<'a> {
    /// An output.
    Emit(Output<'a>),
    /// A message was handled.
    Done(MessageId),
    /// Any other frame.
    Other(FromStep<'a>),
}

const EMIT: &[u8] = b"{\"emit\":{\"id\":\"";
const WITH: &[u8] = b"\",\"with\":";
const BODY: &[u8] = b"\",\"body\":";
const DONE: &[u8] = b"{\"done\":{\"id\":\"";

/// Reads one line.
pub fn read(line: &[u8]) -> Result<Frame<'_>, String> {
    if let Some(id) = read_done(line) {
        return Ok(Frame::Done(id));
    }
    let text = std::str::from_utf8(line).map_err(|_| "it is not UTF-8".to_owned())?;
    if let Some(output) = read_emit(text) {
        return Ok(Frame::Emit(output));
    }
    read_slowly(text)
}

/// Returns the messages that the beginning of an `emit` is about, however the rest looks.
pub fn emit_begins(line: &[u8]) -> Option<Vec<MessageId>> {
    let id = emit_id(line)?;
    let mut ids = vec![id];
    let rest = &line[EMIT.len() + MessageId::TEXT_LEN..];
    if let Some(rest) = rest.strip_prefix(WITH) {
        let end = memchr::memchr(b']', rest)?;
        ids.extend(serde_json::from_slice::<Vec<MessageId>>(&rest[..=end]).ok()?);
    }
    Some(ids)
}

fn emit_id(line: &[u8]) -> Option<MessageId> {
    MessageId::decode(line.strip_prefix(EMIT)?.get(..MessageId::TEXT_LEN)?)
}

fn read_done(line: &[u8]) -> Option<MessageId> {
    let rest = line.strip_prefix(DONE)?;
    if rest.get(MessageId::TEXT_LEN..)? != b"\"}}" {
        return None;
    }
    MessageId::decode(&rest[..MessageId::TEXT_LEN])
}

fn read_emit(text: &str) -> Option<Output<'_>> {
    let line = text.as_bytes();
    let id = emit_id(line)?;
    let start = EMIT.len() + MessageId::TEXT_LEN;
    line[start..].strip_prefix(BODY)?;
    let body = text.get(start + BODY.len()..)?.strip_suffix("}}")?;
    let body = body.trim_matches([' ', '\t', '\r', '\n']);
    serde_json::from_str::<IgnoredAny>(body).ok()?;
    Some(Output {
        id,
        with: Vec::new(),
        port: None,
        key: None,
        source_id: None,
        headers: None,
        body,
    })
}

fn read_slowly(text: &str) -> Result<Frame<'_>, String> {
    match serde_json::from_str(text).map_err(|error| error.to_string())? {
        FromStep::Emit(Emit { with, .. }) if !with.is_empty() && hides_with(text, &with) => {
            Err("`with` must come right after `id`: an output that is too long is known by its beginning alone".to_owned())
        }
        FromStep::Emit(Emit {
            id,
            with,
            port,
            key,
            source_id,
            headers,
            body,
        }) => Ok(Frame::Emit(Output {
            id,
            with,
            port,
            key,
            source_id,
            headers: headers.map(RawValue::get),
            body: body.get(),
        })),
        FromStep::Done(Done { id }) => Ok(Frame::Done(id)),
        other => Ok(Frame::Other(other)),
    }
}

/// Whether the beginning of an output says which message it was made from, but not the others.
fn hides_with(text: &str, with: &[MessageId]) -> bool {
    let line = text.as_bytes();
    emit_id(line).is_some() && emit_begins(line).is_none_or(|ids| ids[1..] != *with)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn same(line: &str) {
        match (read(line.as_bytes()), read_slowly(line)) {
            (Ok(Frame::Emit(fast)), Ok(Frame::Emit(slow))) => assert_eq!(fast, slow, "{line}"),
            (Ok(Frame::Done(fast)), Ok(Frame::Done(slow))) => assert_eq!(fast, slow, "{line}"),
            (Ok(Frame::Other(_)), Ok(Frame::Other(_))) | (Err(_), Err(_)) => {}
            (fast, slow) => panic!("{line}: {fast:?} is not {slow:?}"),
        }
    }

    const ID: &str = "00000000000000000000000000000001";

    #[test]
    fn the_usual_frames_need_no_serde() {
        assert!(read_emit(&format!(r#"{{"emit":{{"id":"{ID}","body":{{"a":[1]}}}}}}"#)).is_some());
        assert!(read_done(format!(r#"{{"done":{{"id":"{ID}"}}}}"#).as_bytes()).is_some());
    }

    #[test]
    fn the_beginning_of_an_output_says_which_messages_it_was_made_from() {
        let (a, b, c) = (ID, ID.replace('1', "2"), ID.replace('1', "3"));
        let line = format!(r#"{{"emit":{{"id":"{a}","with":["{b}","{c}"],"body":1}}}}"#);
        let ids = [a, &b, &c].map(|id| id.parse().unwrap());
        let begin = &line.as_bytes()[..line.len() - 10];
        assert_eq!(emit_begins(begin), Some(ids.to_vec()));
        let Ok(Frame::Emit(output)) = read(line.as_bytes()) else {
            panic!("it is an output");
        };
        assert_eq!((output.id, &output.with[..]), (ids[0], &ids[1..]));
        let hidden = format!(r#"{{"emit":{{"id":"{a}","body":1,"with":["{b}"]}}}}"#);
        let why = read(hidden.as_bytes()).unwrap_err();
        assert!(
            why.starts_with("`with` must come right after `id`"),
            "{why}"
        );
    }

    #[test]
    fn odd_frames_are_read_as_serde_reads_them() {
        for body in [
            "1",
            " 1 ",
            "\"}}\"",
            "{}",
            "[{}]",
            "1,\"port\":\"a\"",
            "1},\"x\":{\"y\":2",
            "",
            "nope",
            "{\"a\":}",
            "\"\\ud800\"",
            "1e999",
            "-",
            "\t{ }\r",
        ] {
            same(&format!(r#"{{"emit":{{"id":"{ID}","body":{body}}}}}"#));
            same(&format!(r#"{{"emit":{{"body":{body},"id":"{ID}"}}}}"#));
        }
        same(&format!(r#"{{"done":{{"id":"{ID}" }}}}"#));
        same(r#"{"done":{"id":"zz000000000000000000000000000001"}}"#);
        same(r#"{"done":{"id":"1"}}"#);
        same("");
        same("hello");
    }

    proptest! {
        #[test]
        fn the_fast_path_says_what_serde_says(
            id in any::<u128>(),
            port in proptest::option::of("[a-z]{1,5}"),
            text in any::<String>(),
            cut in proptest::option::of(0..200_usize),
        ) {
            let body = serde_json::json!({"text": text, "n": [1, 2.5, null]}).to_string();
            let port = port.map(|port| format!(r#""port":"{port}","#)).unwrap_or_default();
            let mut line = format!(r#"{{"emit":{{"id":"{id:032x}",{port}"body":{body}}}}}"#);
            if let Some(cut) = cut.filter(|cut| line.is_char_boundary(*cut) && *cut < line.len()) {
                line.truncate(cut);
            }
            same(&line);
        }
    }
}
