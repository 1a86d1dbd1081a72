//! The value of a cursor: what says when an item changed, and how two of them compare.

use std::cmp::Ordering;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The value of a cursor, as the source wrote it.
///
/// Two of them are compared as times if both are times (`10:00:00Z` comes before `10:00:00.5Z`,
/// which as texts they do not), as numbers if both are numbers, and else as texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum CursorValue {
    /// A number.
    Number(serde_json::Number),
    /// A text.
    Text(String),
}

impl CursorValue {
    /// Reads a cursor; none if it is neither a text nor a number, or empty.
    pub fn read(value: &RawValue) -> Option<Self> {
        let value: Self = serde_json::from_str(value.get()).ok()?;
        (value != Self::Text(String::new())).then_some(value)
    }

    /// Says which of two comes first. Two that are equal may be written in different ways.
    pub fn compare(&self, other: &Self) -> Ordering {
        if let (Some(one), Some(two)) = (self.time(), other.time()) {
            return one.cmp(&two);
        }
        if let (Some(one), Some(two)) = (self.integer(), other.integer()) {
            return one.cmp(&two);
        }
        if let (Self::Number(one), Self::Number(two)) = (self, other) {
            let (one, two) = (one.as_f64(), two.as_f64());
            return one.partial_cmp(&two).unwrap_or(Ordering::Equal);
        }
        self.to_string().cmp(&other.to_string())
    }

    fn time(&self) -> Option<Timestamp> {
        let Self::Text(text) = self else { return None };
        let text = text.trim();
        // Without an offset it is the source's own time, which compares with itself.
        text.parse().ok().or_else(|| {
            let civil: jiff::civil::DateTime = text.parse().ok()?;
            Some(civil.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
        })
    }

    fn integer(&self) -> Option<i128> {
        match self {
            Self::Number(number) => number.as_i128(),
            Self::Text(text) => text.parse().ok(),
        }
    }
}

impl fmt::Display for CursorValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(one: &serde_json::Value, two: &serde_json::Value, expect: Ordering) {
        let read = |value: &serde_json::Value| {
            CursorValue::read(&RawValue::from_string(value.to_string()).unwrap()).unwrap()
        };
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
        check(&json!(1.5), &json!(1.25), Ordering::Greater);
        check(&json!("abc"), &json!("abd"), Ordering::Less);
    }

    #[test]
    fn what_is_no_value_is_none() {
        for value in ["null", "\"\"", "{}", "[1]", "true"] {
            let raw = RawValue::from_string(value.to_owned()).unwrap();
            assert_eq!(CursorValue::read(&raw), None, "{value}");
        }
    }
}
