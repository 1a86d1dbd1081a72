//! How frames to the agent are written: by hand, keys in a fixed order, `body` last, so that the
//! agent finds the body without parsing it.

use serde::Serialize;
use serde_json::value::RawValue;
use towpath_protocol::frame::{
    Activated, Checkpoint, Deactivated, Failed, FromStep, Log, Ready, Refused,
};
use towpath_protocol::{CHECKPOINT_BYTES_MAX, CONTRACT, FRAME_BYTES_MAX, MessageId};

use crate::error::{Result, StepError};

/// A log line is cut to this many bytes.
const LOG_BYTES_MAX: usize = 16 << 10;

/// A reason or a cause is cut to this many bytes.
const REASON_BYTES_MAX: usize = 4 << 10;

/// Causes beyond this many are left out.
const CHAIN_MAX: usize = 16;

/// What an output says beside its body.
#[derive(Debug, Default, Clone)]
pub(crate) struct Envelope<'a> {
    /// Further messages that it was made from.
    pub(crate) with: &'a [MessageId],
    pub(crate) port: Option<&'a str>,
    pub(crate) key: Option<&'a str>,
    pub(crate) source_id: Option<&'a str>,
    pub(crate) headers: &'a [(String, String)],
}

/// Writes an output. Returns false, and writes nothing, if the value is `null`.
pub(crate) fn emit<T: Serialize + ?Sized>(
    frame: &mut Vec<u8>,
    id: MessageId,
    envelope: &Envelope<'_>,
    value: &T,
    body_bytes_max: usize,
) -> Result<bool> {
    begin(frame, "{\"emit\":{\"id\":\"", id);
    if !envelope.with.is_empty() {
        frame.extend_from_slice(b",\"with\":");
        json(frame, envelope.with);
    }
    for (name, text) in [
        ("port", envelope.port),
        ("key", envelope.key),
        ("source_id", envelope.source_id),
    ] {
        if let Some(text) = text {
            frame.extend_from_slice(b",\"");
            frame.extend_from_slice(name.as_bytes());
            frame.extend_from_slice(b"\":");
            json(frame, text);
        }
    }
    if !envelope.headers.is_empty() {
        frame.extend_from_slice(b",\"headers\":{");
        for (index, (name, text)) in envelope.headers.iter().enumerate() {
            if index > 0 {
                frame.push(b',');
            }
            json(frame, name.as_str());
            frame.push(b':');
            json(frame, text.as_str());
        }
        frame.push(b'}');
    }
    frame.extend_from_slice(b",\"body\":");
    let body = frame.len();
    serde_json::to_writer(&mut *frame, value)
        .map_err(|error| StepError::permanent(format!("an output cannot be JSON: {error}")))?;
    if &frame[body..] == b"null" {
        return Ok(false);
    }
    flatten(frame, body)?;
    if frame.len() - body > body_bytes_max {
        return Err(StepError::permanent(format!(
            "an output has {} bytes, and at most {body_bytes_max} are allowed",
            frame.len() - body
        )));
    }
    frame.extend_from_slice(b"}}\n");
    if frame.len() > FRAME_BYTES_MAX {
        return Err(StepError::permanent(format!(
            "an output has {} bytes with its headers, and at most {FRAME_BYTES_MAX} are allowed",
            frame.len()
        )));
    }
    Ok(true)
}

/// A raw value may have been written with line breaks, which would end the frame.
fn flatten(frame: &mut Vec<u8>, body: usize) -> Result<()> {
    if !frame[body..].contains(&b'\n') {
        return Ok(());
    }
    let value: serde_json::Value = serde_json::from_slice(&frame[body..])
        .map_err(|error| StepError::permanent(format!("an output is not JSON: {error}")))?;
    frame.truncate(body);
    json(frame, &value);
    Ok(())
}

/// Writes that a message was handled.
pub(crate) fn done(frame: &mut Vec<u8>, id: MessageId) {
    begin(frame, "{\"done\":{\"id\":\"", id);
    frame.extend_from_slice(b"}}\n");
}

/// Writes that a message was not handled.
pub(crate) fn failed(frame: &mut Vec<u8>, id: MessageId, error: &StepError) {
    let delay_ms = error
        .delay()
        .map(|delay| u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
    line(
        frame,
        &FromStep::Failed(Failed {
            id,
            fate: error.fate(),
            delay_ms,
            reason: cut(error.reason(), REASON_BYTES_MAX).into(),
            chain: error
                .chain()
                .iter()
                .take(CHAIN_MAX)
                .map(|cause| cut(cause, REASON_BYTES_MAX).into())
                .collect(),
        }),
    );
}

/// Writes that the flow's URL is registered.
pub(crate) fn activated(frame: &mut Vec<u8>, id: MessageId, kept: Option<&RawValue>) {
    line(frame, &FromStep::Activated(Activated { id, kept }));
}

/// Writes that nothing is registered any more.
pub(crate) fn deactivated(frame: &mut Vec<u8>, id: MessageId) {
    line(frame, &FromStep::Deactivated(Deactivated { id }));
}

/// Writes a checkpoint.
pub(crate) fn checkpoint<T: Serialize + ?Sized>(
    frame: &mut Vec<u8>,
    id: MessageId,
    number: u64,
    value: &T,
) -> Result<()> {
    let value = serde_json::value::to_raw_value(value)
        .map_err(|error| StepError::permanent(format!("a checkpoint cannot be JSON: {error}")))?;
    if value.get().len() > CHECKPOINT_BYTES_MAX {
        return Err(StepError::permanent(format!(
            "a checkpoint has {} bytes, and at most {CHECKPOINT_BYTES_MAX} are allowed: it is a \
             position, not data",
            value.get().len()
        )));
    }
    line(
        frame,
        &FromStep::Checkpoint(Checkpoint {
            id,
            number,
            value: &value,
        }),
    );
    Ok(())
}

/// Writes a log line.
pub(crate) fn log(frame: &mut Vec<u8>, id: Option<MessageId>, level: &str, text: &str) {
    line(
        frame,
        &FromStep::Log(Log {
            id,
            level: level.into(),
            text: cut(text, LOG_BYTES_MAX).into(),
        }),
    );
}

/// Writes that messages may come.
pub(crate) fn ready(frame: &mut Vec<u8>) {
    let sdk = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"));
    line(
        frame,
        &FromStep::Ready(Ready {
            contract: CONTRACT,
            sdk: Some(sdk.into()),
        }),
    );
}

/// Writes that the configuration can never work.
pub(crate) fn refused(frame: &mut Vec<u8>, reason: &str) {
    line(
        frame,
        &FromStep::Refused(Refused {
            reason: cut(reason, REASON_BYTES_MAX).into(),
        }),
    );
}

fn line(frame: &mut Vec<u8>, value: &FromStep<'_>) {
    json(frame, value);
    frame.push(b'\n');
}

fn begin(frame: &mut Vec<u8>, start: &str, id: MessageId) {
    frame.extend_from_slice(start.as_bytes());
    frame.extend_from_slice(id.encode(&mut [0; MessageId::TEXT_LEN]).as_bytes());
    frame.push(b'"');
}

fn json<T: Serialize + ?Sized>(frame: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(&mut *frame, value).expect("strings and frames are always JSON");
}

fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const ID: MessageId = MessageId::from_bytes([0x11; 16]);
    const ID_TEXT: &str = "11111111111111111111111111111111";

    fn emitted<T: Serialize>(envelope: &Envelope<'_>, value: &T) -> Result<Option<String>> {
        let mut frame = Vec::new();
        Ok(emit(&mut frame, ID, envelope, value, 64)?.then(|| String::from_utf8(frame).unwrap()))
    }

    #[test]
    fn an_output_has_its_keys_in_order_and_the_body_last() {
        assert_eq!(
            emitted(&Envelope::default(), &json!({"a": 1}))
                .unwrap()
                .unwrap(),
            format!("{{\"emit\":{{\"id\":\"{ID_TEXT}\",\"body\":{{\"a\":1}}}}}}\n")
        );
        let headers = [("h".to_owned(), "\"v\"".to_owned())];
        let with = [MessageId::from_bytes([0x22; 16])];
        let envelope = Envelope {
            with: &with,
            port: Some("p"),
            key: Some("k"),
            source_id: Some("s"),
            headers: &headers,
        };
        let frame = emitted(&envelope, &1).unwrap().unwrap();
        assert_eq!(
            frame,
            format!(
                "{{\"emit\":{{\"id\":\"{ID_TEXT}\",\"with\":[\"22222222222222222222222222222222\"],\"port\":\"p\",\"key\":\"k\",\"source_id\":\"s\",\
                 \"headers\":{{\"h\":\"\\\"v\\\"\"}},\"body\":1}}}}\n"
            )
        );
        let parsed: FromStep<'_> = serde_json::from_str(&frame).unwrap();
        assert_eq!(serde_json::to_string(&parsed).unwrap(), frame.trim_end());
    }

    #[test]
    fn null_is_no_output() {
        assert!(emitted(&Envelope::default(), &()).unwrap().is_none());
        assert!(
            emitted(&Envelope::default(), &None::<u8>)
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn an_output_above_the_limit_is_permanent() {
        let error = emitted(&Envelope::default(), &"x".repeat(64)).unwrap_err();
        assert_eq!(
            error.reason(),
            "an output has 66 bytes, and at most 64 are allowed"
        );
    }

    #[test]
    fn a_raw_value_with_line_breaks_stays_one_line() {
        let raw = RawValue::from_string("{\n \"a\": 1\n}".into()).unwrap();
        let frame = emitted(&Envelope::default(), &raw).unwrap().unwrap();
        assert!(frame.ends_with("\"body\":{\"a\":1}}}\n"), "{frame}");
    }
}
