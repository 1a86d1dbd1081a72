//! What a JSON Schema asks for, in the words of a flow file.

use jsonschema::error::{TypeKind, ValidationErrorKind};
use jsonschema::{JsonType, ValidationError};
use serde_json::Value;

use crate::text::{either, shown};

/// Whether the type is wrong.
pub(super) fn is_type(error: &ValidationError<'_>) -> bool {
    matches!(error.kind(), ValidationErrorKind::Type { .. })
}

/// Whether nothing at all would have been right: of what may be left out, that is not worth a word.
pub(super) fn is_null(error: &ValidationError<'_>) -> bool {
    let null = |kind: &TypeKind| matches!(kind, TypeKind::Single(JsonType::Null));
    matches!(error.kind(), ValidationErrorKind::Type { kind } if null(kind))
}

/// What there are no words for, without the value.
pub(super) fn otherwise(error: &ValidationError<'_>) -> String {
    format!("otherwise: {}", error.masked())
}

/// The words that would have been right.
pub(super) fn options<'e>(error: &'e ValidationError<'_>) -> Vec<&'e str> {
    match error.kind() {
        ValidationErrorKind::Enum { options } => words(options),
        ValidationErrorKind::Constant { expected_value } => {
            expected_value.as_str().into_iter().collect()
        }
        _ => Vec::new(),
    }
}

pub(super) fn words(options: &Value) -> Vec<&str> {
    options
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

/// What a value must be, after "must be".
pub(super) fn expected(kind: &ValidationErrorKind) -> Option<String> {
    Some(match kind {
        ValidationErrorKind::Type {
            kind: TypeKind::Single(kind),
        } => type_word(*kind).to_owned(),
        ValidationErrorKind::Type {
            kind: TypeKind::Multiple(kinds),
        } => kinds
            .iter()
            .filter(|kind| *kind != JsonType::Null)
            .map(type_word)
            .collect::<Vec<_>>()
            .join(" or "),
        ValidationErrorKind::Enum { options } => match words(options).as_slice() {
            [] => return None,
            [one] => shown(one),
            words => either(words),
        },
        ValidationErrorKind::Constant { expected_value } => match expected_value.as_ref() {
            Value::String(text) => shown(text),
            other => shown(&other.to_string()),
        },
        ValidationErrorKind::Minimum { limit } => format!("{limit} or more"),
        ValidationErrorKind::Maximum { limit } => format!("{limit} or less"),
        ValidationErrorKind::ExclusiveMinimum { limit } => format!("more than {limit}"),
        ValidationErrorKind::ExclusiveMaximum { limit } => format!("less than {limit}"),
        ValidationErrorKind::MultipleOf { multiple_of } => format!("a multiple of {multiple_of}"),
        ValidationErrorKind::MinLength { limit: 1 } => "text that is not empty".to_owned(),
        ValidationErrorKind::MinLength { limit } => format!("text of {limit} characters or more"),
        ValidationErrorKind::MaxLength { limit } => format!("text of {limit} characters or less"),
        ValidationErrorKind::MinItems { limit: 1 } => "a list that is not empty".to_owned(),
        ValidationErrorKind::MinItems { limit } => format!("a list of {limit} or more"),
        ValidationErrorKind::MaxItems { limit } => format!("a list of {limit} or less"),
        ValidationErrorKind::MinProperties { limit } => {
            format!("a mapping of {limit} keys or more")
        }
        ValidationErrorKind::MaxProperties { limit } => {
            format!("a mapping of {limit} keys or less")
        }
        ValidationErrorKind::UniqueItems => "a list in which nothing is twice".to_owned(),
        ValidationErrorKind::Pattern { pattern } => format!("text that matches {}", shown(pattern)),
        ValidationErrorKind::Format { format } => format!("text that is a {format}"),
        ValidationErrorKind::FalseSchema => "left out".to_owned(),
        _ => return None,
    })
}

fn type_word(kind: JsonType) -> &'static str {
    match kind {
        JsonType::Array => "a list",
        JsonType::Boolean => "true or false",
        JsonType::Integer => "a whole number",
        JsonType::Null => "nothing",
        JsonType::Number => "a number",
        JsonType::Object => "a mapping",
        JsonType::String => "text",
    }
}
