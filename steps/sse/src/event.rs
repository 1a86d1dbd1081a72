//! Reads a stream of events, as the standard of server-sent events describes it, in bounded memory
//! (which the libraries for it are not).
//!
//! # Invariants
//!
//! - `an_event_is_whole`: what the connection breaks off in the middle of is no event.
//! - `an_event_is_bounded`.

use std::time::Duration;

/// The largest event: no message can be larger.
const EVENT_BYTES_MAX: usize = 1 << 20;

/// The longest id: it goes into the checkpoint and into a header.
const ID_BYTES_MAX: usize = 4096;

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// Its name: `message`, if it has none.
    pub(crate) name: String,
    pub(crate) data: String,
    /// Its own id; none if it has none.
    pub(crate) id: Option<String>,
}

/// What came out of a piece of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Came {
    /// An event, whole.
    Event(Event),
    /// How long to wait before connecting again.
    Retry(Duration),
}

/// Why a stream cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("an event is larger than {EVENT_BYTES_MAX} bytes")]
    Event,
    #[error("the id of an event is longer than {ID_BYTES_MAX} bytes")]
    Id,
}

/// The reading of one stream, from its beginning.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    /// The line that is not ended yet.
    line: Vec<u8>,
    /// The last byte was a carriage return: a line feed after it belongs to it.
    after_return: bool,
    /// Something came before: a mark of the byte order can be only at the beginning.
    has_begun: bool,
    name: String,
    data: String,
    has_data: bool,
    id: Option<String>,
}

impl Reader {
    /// Reads a piece of the stream.
    pub(crate) fn read(&mut self, piece: &[u8]) -> Result<Vec<Came>, StreamError> {
        let mut came = Vec::new();
        let mut rest = piece;
        while !rest.is_empty() {
            if std::mem::take(&mut self.after_return) && rest[0] == b'\n' {
                rest = &rest[1..];
                continue;
            }
            let Some(end) = memchr::memchr2(b'\n', b'\r', rest) else {
                self.extend(rest)?;
                break;
            };
            self.extend(&rest[..end])?;
            self.after_return = rest[end] == b'\r';
            rest = &rest[end + 1..];
            let line = std::mem::take(&mut self.line);
            self.end_line(&String::from_utf8_lossy(&line), &mut came)?;
        }
        Ok(came)
    }

    fn extend(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        if self.line.len() + self.data.len() + bytes.len() > EVENT_BYTES_MAX {
            return Err(StreamError::Event);
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn end_line(&mut self, line: &str, came: &mut Vec<Came>) -> Result<(), StreamError> {
        let is_first = !std::mem::replace(&mut self.has_begun, true);
        let line = line
            .strip_prefix('\u{feff}')
            .filter(|_| is_first)
            .unwrap_or(line);
        if line.is_empty() {
            let name = std::mem::take(&mut self.name);
            let (data, id) = (std::mem::take(&mut self.data), self.id.take());
            if std::mem::take(&mut self.has_data) {
                let name = if name.is_empty() {
                    "message".to_owned()
                } else {
                    name
                };
                came.push(Came::Event(Event { name, data, id }));
            }
            return Ok(());
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "data" => {
                if self.has_data {
                    self.data.push('\n');
                }
                self.has_data = true;
                self.data.push_str(value);
            }
            "id" if value.len() > ID_BYTES_MAX => return Err(StreamError::Id),
            "id" if !value.contains('\0') => self.id = Some(value.to_owned()),
            "retry" if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) => {
                if let Ok(milliseconds) = value.parse() {
                    came.push(Came::Retry(Duration::from_millis(milliseconds)));
                }
            }
            // A comment, or what a later standard may mean.
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a stream whole, and byte by byte, which must be the same.
    #[track_caller]
    fn check(stream: &str, expect: &[(&str, &str, Option<&str>)]) {
        let event = |(name, data, id): &(&str, &str, Option<&str>)| {
            Came::Event(Event {
                name: (*name).to_owned(),
                data: (*data).to_owned(),
                id: id.map(str::to_owned),
            })
        };
        let expect: Vec<_> = expect.iter().map(event).collect();
        assert_eq!(Reader::default().read(stream.as_bytes()).unwrap(), expect);
        let mut reader = Reader::default();
        let bytes = stream.as_bytes().chunks(1);
        let came: Vec<_> = bytes.flat_map(|byte| reader.read(byte).unwrap()).collect();
        assert_eq!(came, expect);
    }

    #[test]
    fn events_are_read_as_the_standard_says() {
        check("data: a\n\n", &[("message", "a", None)]);
        check(
            "\u{feff}event: order\rid: 7\r\ndata: a\ndata:b\ndata\n\r\n",
            &[("order", "a\nb\n", Some("7"))],
        );
        check(
            ": keep alive\n\ndata:  two spaces\nunknown: x\n\ndata\n\n",
            &[("message", " two spaces", None), ("message", "", None)],
        );
        check(
            "id: 1\ndata: a\n\ndata: b\n\n",
            &[("message", "a", Some("1")), ("message", "b", None)],
        );
        check("event: x\n\ndata: a\n\n", &[("message", "a", None)]);
        check("id: a\0b\ndata: a\n\n", &[("message", "a", None)]);
        check("data: ü\n\n", &[("message", "ü", None)]);
    }

    #[test]
    fn an_event_is_whole() {
        check("data: a\n\ndata: b\n", &[("message", "a", None)]);
        check("data: a", &[]);
    }

    #[test]
    fn the_server_says_when_to_come_again() {
        let came = Reader::default()
            .read(b"retry: 1500\nretry: soon\nretry:\n")
            .unwrap();
        assert_eq!(came, [Came::Retry(Duration::from_millis(1500))]);
    }

    #[test]
    fn an_event_is_bounded() {
        let mut reader = Reader::default();
        let line = format!("data: {}\n", "x".repeat(100_000));
        let mut lines = (0..20).map(|_| reader.read(line.as_bytes()));
        assert_eq!(lines.find_map(Result::err), Some(StreamError::Event));
        let id = format!("id: {}\n", "x".repeat(5000));
        assert_eq!(Reader::default().read(id.as_bytes()), Err(StreamError::Id));
    }
}
