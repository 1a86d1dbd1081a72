//! Values that a column holds as text: words of an enum, ids, JSON.

use rusqlite::Row;
use rusqlite::types::Type;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;
use towpath_protocol::MessageId;

/// The word of a value of an enum: as it goes over the API.
pub(super) fn word<T: Serialize>(value: T) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => word,
        _ => unreachable!("only enums of words are stored as words"),
    }
}

/// The value of an enum that a column holds as a word.
pub(super) fn unword<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_value(Value::String(text)).map_err(unreadable)
}

/// The value of an enum that a column may hold as a word.
pub(super) fn optional_word<T: DeserializeOwned>(
    row: &Row<'_>,
    column: &str,
) -> rusqlite::Result<Option<T>> {
    let text: Option<String> = row.get(column)?;
    text.map(|text| serde_json::from_value(Value::String(text)).map_err(unreadable))
        .transpose()
}

/// The id that a column holds.
pub(super) fn id(row: &Row<'_>, column: &str) -> rusqlite::Result<MessageId> {
    let text: String = row.get(column)?;
    text.parse().map_err(unreadable)
}

/// The id that a column may hold.
pub(super) fn optional_id(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<MessageId>> {
    let text: Option<String> = row.get(column)?;
    text.map(|text| text.parse().map_err(unreadable))
        .transpose()
}

/// The JSON that a column may hold, as it is.
pub(super) fn raw(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<Box<RawValue>>> {
    let text: Option<String> = row.get(column)?;
    text.map(|text| RawValue::from_string(text).map_err(unreadable))
        .transpose()
}

/// What a column holds as JSON.
pub(super) fn json<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(unreadable)
}

/// What a column cannot be read for.
pub(super) fn unreadable(
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, Type::Text, error.into())
}
