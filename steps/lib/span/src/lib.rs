//! A length of time as people write it in a flow: `500ms`, `30s`, `5m`, `2h`, `1m30s`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The longest span: about 136 years.
const SECONDS_MAX: u64 = u32::MAX as u64;

/// A length of time, read from text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(Duration);

impl Span {
    /// Makes a span of whole seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// Makes a span of milliseconds.
    pub const fn milliseconds(milliseconds: u64) -> Self {
        Self(Duration::from_millis(milliseconds))
    }

    /// Returns how long it is.
    pub const fn duration(self) -> Duration {
        self.0
    }
}

/// The text is not a length of time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotASpan(String);

impl fmt::Display for NotASpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` is not a length of time: write it like `500ms`, `30s`, `5m`, `2h` or `1m30s`",
            self.0
        )
    }
}

impl std::error::Error for NotASpan {}

impl FromStr for Span {
    type Err = NotASpan;

    fn from_str(text: &str) -> Result<Self, NotASpan> {
        read(text.trim())
            .map(Self)
            .ok_or_else(|| NotASpan(text.to_owned()))
    }
}

fn read(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number: u64 = rest[..digits].parse().ok()?;
        let after = &rest[digits..];
        let letters = after.len()
            - after
                .trim_start_matches(|c: char| c.is_ascii_lowercase())
                .len();
        let unit = match &after[..letters] {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_mins(1),
            "h" => Duration::from_hours(1),
            "d" => Duration::from_hours(24),
            _ => return None,
        };
        total = total.checked_add(unit.checked_mul(u32::try_from(number).ok()?)?)?;
        rest = &after[letters..];
    }
    (!text.is_empty() && total.as_secs() <= SECONDS_MAX).then_some(total)
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = self.0.as_millis();
        match milliseconds {
            0 => f.write_str("0s"),
            _ if milliseconds.is_multiple_of(3_600_000) => {
                write!(f, "{}h", milliseconds / 3_600_000)
            }
            _ if milliseconds.is_multiple_of(60_000) => write!(f, "{}m", milliseconds / 60_000),
            _ if milliseconds.is_multiple_of(1000) => write!(f, "{}s", milliseconds / 1000),
            _ => write!(f, "{milliseconds}ms"),
        }
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for Span {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^([0-9]+(ms|s|m|h|d))+$",
            "examples": ["500ms", "30s", "5m"],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expect: Option<u64>) {
        let read = text
            .parse::<Span>()
            .ok()
            .map(|span| span.duration().as_millis());
        assert_eq!(read, expect.map(u128::from), "{text}");
    }

    #[test]
    fn spans_are_read_as_people_write_them() {
        check("500ms", Some(500));
        check("30s", Some(30_000));
        check("1m30s", Some(90_000));
        check("2h", Some(7_200_000));
        check("1d", Some(86_400_000));
        check("0s", Some(0));
        for wrong in [
            "",
            "30",
            "s",
            "1.5s",
            "-1s",
            "1 s",
            "30S",
            "1y",
            "99999999999999999999s",
            "1ü",
        ] {
            check(wrong, None);
        }
    }

    #[test]
    fn spans_are_written_as_they_are_read() {
        for text in ["500ms", "30s", "5m", "2h", "0s", "90s"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
        let span: Span = serde_json::from_str("\"30s\"").unwrap();
        assert_eq!(span, Span::seconds(30));
        let error = serde_json::from_str::<Span>("\"soon\"").unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("`soon` is not a length of time"),
            "{error}"
        );
    }
}
