//! The value of a cursor: what says when an item changed, and how two of them compare.

use std::cmp::Ordering;
use std::fmt;
use std::time::Duration;

use jiff::civil::DateTime;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The longest value: it goes into the checkpoint and into names of items.
const BYTES_MAX: usize = 512;

/// A whole number from here on is taken for milliseconds since 1970, below for seconds. As seconds
/// it would be in the year 5138.
const MILLISECONDS_FROM: i128 = 100_000_000_000;

/// A day, in seconds.
const DAY: i64 = 86_400;

/// The value of a cursor, as the source wrote it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum CursorValue {
    /// A number.
    Number(serde_json::Number),
    /// A text.
    Text(String),
}

impl fmt::Display for CursorValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// The value of a cursor, and what it is.
///
/// Two of them are compared as times if both are times (`10:00:00Z` comes before `10:00:00.5Z`,
/// which as texts they do not), as numbers if both are numbers, and else as texts.
#[derive(Debug, Clone)]
pub(crate) struct Position {
    value: CursorValue,
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Integer(i128),
    Float(f64),
    Time(Timestamp),
    Text,
}

impl Position {
    /// Reads a cursor; none if it is neither a text nor a number, or empty, or too long.
    pub(crate) fn read(value: &RawValue) -> Option<Self> {
        let value: CursorValue = serde_json::from_str(value.get()).ok()?;
        let is_usable = match &value {
            CursorValue::Text(text) => !text.is_empty() && text.len() <= BYTES_MAX,
            CursorValue::Number(_) => true,
        };
        is_usable.then(|| value.into())
    }

    /// Returns it as the source wrote it.
    pub(crate) fn value(&self) -> &CursorValue {
        &self.value
    }

    /// Says which of two comes first. Two that are equal may be written in different ways.
    pub(crate) fn compare(&self, other: &Self) -> Ordering {
        match (self.kind, other.kind) {
            (Kind::Integer(one), Kind::Integer(two)) => one.cmp(&two),
            (Kind::Time(one), Kind::Time(two)) => one.cmp(&two),
            (Kind::Integer(_) | Kind::Float(_), Kind::Integer(_) | Kind::Float(_)) => {
                let order = self.kind.float().partial_cmp(&other.kind.float());
                order.unwrap_or(Ordering::Equal)
            }
            _ => self.to_string().cmp(&other.to_string()),
        }
    }

    /// Says whether two can be compared as more than texts.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        matches!(
            (self.kind, other.kind),
            (
                Kind::Integer(_) | Kind::Float(_),
                Kind::Integer(_) | Kind::Float(_)
            ) | (Kind::Time(_), Kind::Time(_))
                | (Kind::Text, Kind::Text)
        )
    }

    /// Returns the position that is so much earlier, written as this one is; none if this is no
    /// time. A number is taken for the time since 1970. What is not a whole second, or of a date a
    /// whole day, is rounded up.
    pub(crate) fn minus(&self, span: Duration) -> Option<Self> {
        if span.is_zero() {
            return Some(self.clone());
        }
        let seconds = i64::try_from(span.as_secs()).ok()? + i64::from(span.subsec_nanos() > 0);
        let value = match (&self.value, self.kind) {
            (_, Kind::Text) => return None,
            (CursorValue::Text(text), Kind::Time(_)) => {
                CursorValue::Text(earlier(text.trim(), seconds)?)
            }
            (value, Kind::Integer(number)) => {
                let unit = if number >= MILLISECONDS_FROM { 1000 } else { 1 };
                let number = number - i128::from(seconds) * unit;
                match value {
                    CursorValue::Text(_) => CursorValue::Text(number.to_string()),
                    CursorValue::Number(_) => {
                        CursorValue::Number(serde_json::Number::from_i128(number)?)
                    }
                }
            }
            (_, kind) => {
                CursorValue::Number(serde_json::Number::from_f64(kind.float() - seconds as f64)?)
            }
        };
        Some(value.into())
    }
}

impl Kind {
    fn float(self) -> f64 {
        match self {
            Self::Integer(number) => number as f64,
            Self::Float(number) => number,
            Self::Time(_) | Self::Text => f64::NAN,
        }
    }
}

impl From<CursorValue> for Position {
    fn from(value: CursorValue) -> Self {
        let kind = match &value {
            CursorValue::Number(number) => match (number.as_i128(), number.as_f64()) {
                (Some(number), _) => Kind::Integer(number),
                (None, Some(number)) => Kind::Float(number),
                (None, None) => Kind::Text,
            },
            CursorValue::Text(text) => text
                .parse()
                .map(Kind::Integer)
                .or_else(|_| time(text.trim()).map(Kind::Time).ok_or(()))
                .unwrap_or(Kind::Text),
        };
        Self { value, kind }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

fn time(text: &str) -> Option<Timestamp> {
    // Without an offset it is the source's own time, which compares with itself.
    text.parse().ok().or_else(|| {
        let civil: DateTime = text.parse().ok()?;
        Some(civil.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
    })
}

/// Writes an earlier time in the way that a time is written: a source may know only its own way.
fn earlier(text: &str, seconds: i64) -> Option<String> {
    if text.len() == "2026-01-01".len() {
        let date: jiff::civil::Date = text.parse().ok()?;
        let days = seconds.div_euclid(DAY) + i64::from(seconds % DAY != 0);
        let earlier = date.checked_sub(SignedDuration::from_hours(24 * days));
        return Some(earlier.ok()?.to_string());
    }
    let whole = "2026-01-01T00:00:00".len();
    let civil: Option<DateTime> = text.get(..whole).and_then(|text| text.parse().ok());
    let Some(civil) = civil else {
        let earlier = time(text)?.checked_sub(SignedDuration::from_secs(seconds));
        return Some(earlier.ok()?.to_string());
    };
    let earlier = civil.checked_sub(SignedDuration::from_secs(seconds)).ok()?;
    // What comes after the second stays: a fraction, and the offset.
    Some(format!(
        "{}{}{}{}",
        earlier.date(),
        &text[10..11],
        earlier.strftime("%H:%M:%S"),
        &text[whole..]
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(value: &Value) -> Position {
        Position::read(&RawValue::from_string(value.to_string()).unwrap()).unwrap()
    }

    #[track_caller]
    fn check(one: &Value, two: &Value, expect: Ordering) {
        let (one, two) = (read(one), read(two));
        assert_eq!(one.compare(&two), expect, "{one} {two}");
        assert_eq!(two.compare(&one), expect.reverse(), "{two} {one}");
    }

    #[test]
    fn values_compare_as_what_they_are() {
        check(
            &json!("2026-01-01T10:00:00Z"),
            &json!("2026-01-01T10:00:00.5Z"),
            Ordering::Less,
        );
        check(
            &json!("2026-01-01T10:00:00Z"),
            &json!("2026-01-01T11:00:00+01:00"),
            Ordering::Equal,
        );
        check(
            &json!("2026-01-01T10:00:00Z"),
            &json!("2026-01-01T10:30:00+01:00"),
            Ordering::Greater,
        );
        check(
            &json!("2026-01-01 10:00:00"),
            &json!("2026-01-01 10:00:00.250"),
            Ordering::Less,
        );
        check(&json!(9), &json!(10), Ordering::Less);
        check(&json!("9"), &json!("10"), Ordering::Less);
        check(&json!("9"), &json!(10), Ordering::Less);
        check(&json!(1.5), &json!(1.25), Ordering::Greater);
        check(&json!(1.5), &json!(2), Ordering::Less);
        check(&json!("abc"), &json!("abd"), Ordering::Less);
    }

    #[test]
    fn what_is_no_value_is_none() {
        let long = format!("\"{}\"", "x".repeat(600));
        for value in ["null", "\"\"", "{}", "[1]", "true", &long] {
            let raw = RawValue::from_string(value.to_owned()).unwrap();
            assert!(Position::read(&raw).is_none(), "{value}");
        }
    }

    #[test]
    fn an_earlier_time_is_written_as_the_source_writes_times() {
        #[track_caller]
        fn check(value: &Value, span: Duration, expect: Option<&Value>) {
            let earlier = read(value).minus(span);
            let earlier = earlier.map(|it| json!(it.value()));
            assert_eq!(earlier.as_ref(), expect, "{value}");
        }
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        check(
            &json!("2026-03-01T00:02:03.250Z"),
            minutes(5),
            Some(&json!("2026-02-28T23:57:03.250Z")),
        );
        check(
            &json!("2026-03-01T00:02:03+05:30"),
            minutes(5),
            Some(&json!("2026-02-28T23:57:03+05:30")),
        );
        check(
            &json!("2026-03-01 00:02:03"),
            minutes(5),
            Some(&json!("2026-02-28 23:57:03")),
        );
        check(&json!("2026-03-01"), minutes(5), Some(&json!("2026-02-28")));
        check(
            &json!(1_795_222_861),
            minutes(1),
            Some(&json!(1_795_222_801)),
        );
        check(
            &json!(1_795_222_861_000_i64),
            minutes(1),
            Some(&json!(1_795_222_801_000_i64)),
        );
        check(&json!("100"), Duration::from_millis(1), Some(&json!("99")));
        check(&json!(100.5), minutes(1), Some(&json!(40.5)));
        check(&json!("abc"), minutes(1), None);
        check(&json!("abc"), Duration::ZERO, Some(&json!("abc")));
    }

    #[test]
    fn only_values_of_one_kind_are_alike() {
        let alike = |one: Value, two: Value| read(&one).is_like(&read(&two));
        assert!(alike(json!(1), json!(1.5)) && alike(json!("1"), json!(2)));
        assert!(alike(json!("2026-01-01"), json!("2026-01-01T00:00:00Z")));
        assert!(!alike(json!("2026-01-01"), json!(17)));
        assert!(!alike(json!("2026-01-01"), json!("x")));
    }
}
