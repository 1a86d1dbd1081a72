//! Fills in `${secrets.x}` and `${env.X}` when a replica is made.
//!
//! # Invariants
//!
//! - No error and no `Debug` here has a value of a secret in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::Value;

use crate::model::Step;
use crate::placeholder::{Piece, pieces};

/// What placeholders stand for.
#[derive(Clone, Default)]
pub struct Values {
    /// The secrets, by name.
    pub secrets: BTreeMap<String, String>,
    /// The environment variables, by name.
    pub env: BTreeMap<String, String>,
}

impl fmt::Debug for Values {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Values")
            .field("secrets", &self.secrets.keys())
            .field("env", &self.env.keys())
            .finish()
    }
}

/// Why a placeholder cannot be filled in. It names things and never says what they are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum SubstituteError {
    /// There is no such secret.
    MissingSecret(String),
    /// There is no such environment variable.
    MissingEnv(String),
    /// This is not a placeholder. A checked flow has none of these.
    Malformed(String),
}

impl fmt::Display for SubstituteError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissingSecret(name) => write!(formatter, "the secret `{name}` does not exist"),
            Self::MissingEnv(name) => {
                write!(formatter, "the environment variable `{name}` is not set")
            }
            Self::Malformed(text) => write!(formatter, "`{text}` is not a placeholder"),
        }
    }
}

impl std::error::Error for SubstituteError {}

/// A value whose placeholders are filled in. It holds secrets, and so has no `Debug`.
#[derive(Clone, PartialEq)]
pub struct Filled {
    /// The value.
    pub value: Value,
    /// The values of the secrets that are in it, to be kept out of logs.
    pub secrets: BTreeSet<String>,
}

/// A step whose placeholders are filled in. It holds secrets, and so has no `Debug`.
#[derive(Clone, PartialEq)]
pub struct FilledStep {
    /// `with:`.
    pub with: Value,
    /// The environment of the step process.
    pub env: BTreeMap<String, String>,
    /// What to run.
    pub command: Vec<String>,
    /// The values of the secrets that are in any of them, to be kept out of logs.
    pub secrets: BTreeSet<String>,
}

/// Fills in a value: every text in it, at any depth. Keys are left as they are. A text stays a
/// text, also if it was a placeholder and nothing else.
pub fn substitute(value: &Value, values: &Values) -> Result<Filled, SubstituteError> {
    let mut secrets = BTreeSet::new();
    let value = fill(value, values, &mut secrets)?;
    Ok(Filled { value, secrets })
}

/// Fills in `with`, `env` and `command` of a step.
pub fn substitute_step(step: &Step, values: &Values) -> Result<FilledStep, SubstituteError> {
    let mut secrets = BTreeSet::new();
    let with = fill(&step.with, values, &mut secrets)?;
    let env = step
        .env
        .iter()
        .map(|(name, text)| Ok((name.clone(), fill_text(text, values, &mut secrets)?)))
        .collect::<Result<_, SubstituteError>>()?;
    let command = step
        .command
        .iter()
        .map(|text| fill_text(text, values, &mut secrets))
        .collect::<Result<_, _>>()?;
    Ok(FilledStep {
        with,
        env,
        command,
        secrets,
    })
}

fn fill(
    value: &Value,
    values: &Values,
    secrets: &mut BTreeSet<String>,
) -> Result<Value, SubstituteError> {
    Ok(match value {
        Value::String(text) => Value::String(fill_text(text, values, secrets)?),
        Value::Array(items) => Value::Array(
            items
                .iter()
                .map(|item| fill(item, values, secrets))
                .collect::<Result<_, _>>()?,
        ),
        Value::Object(entries) => Value::Object(
            entries
                .iter()
                .map(|(key, item)| Ok((key.clone(), fill(item, values, secrets)?)))
                .collect::<Result<_, SubstituteError>>()?,
        ),
        other => other.clone(),
    })
}

fn fill_text(
    text: &str,
    values: &Values,
    secrets: &mut BTreeSet<String>,
) -> Result<String, SubstituteError> {
    let mut filled = String::with_capacity(text.len());
    for piece in pieces(text) {
        filled.push_str(match piece {
            Piece::Literal(text) => text,
            Piece::Secret(name) => {
                let missing = || SubstituteError::MissingSecret(name.to_owned());
                let value = values.secrets.get(name).ok_or_else(missing)?;
                if !value.is_empty() {
                    secrets.insert(value.clone());
                }
                value
            }
            Piece::Env(name) => {
                let missing = || SubstituteError::MissingEnv(name.to_owned());
                values.env.get(name).ok_or_else(missing)?
            }
            Piece::Bad(text, _) => return Err(SubstituteError::Malformed(text.to_owned())),
        });
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn values() -> Values {
        Values {
            secrets: BTreeMap::from([
                ("token".into(), "s3cr3t ${env.A}".into()),
                ("empty".into(), String::new()),
            ]),
            env: BTreeMap::from([("A".into(), "a".into())]),
        }
    }

    #[test]
    fn every_text_is_filled_in_once_and_secrets_are_named_for_redaction() {
        let value = json!({
            "url": "http://${env.A}/$${env.A}",
            "headers": [{"authorization": "Bearer ${secrets.token}${secrets.empty}"}],
            "${env.A}": 1,
        });
        let filled = substitute(&value, &values()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(
            filled.value,
            json!({
                "url": "http://a/${env.A}",
                "headers": [{"authorization": "Bearer s3cr3t ${env.A}"}],
                "${env.A}": 1,
            })
        );
        assert_eq!(
            filled.secrets,
            BTreeSet::from(["s3cr3t ${env.A}".to_owned()])
        );
    }

    #[track_caller]
    fn check_error(text: &str, expect: &str) {
        let error = substitute(&json!([text]), &values()).err().unwrap();
        assert_eq!(error.to_string(), expect);
        assert!(!format!("{error:?}{:?}", values()).contains("s3cr3t"));
    }

    #[test]
    fn errors_name_what_is_missing_and_never_a_value() {
        check_error(
            "${secrets.token}${secrets.other}",
            "the secret `other` does not exist",
        );
        check_error(
            "${secrets.token}${env.B}",
            "the environment variable `B` is not set",
        );
        check_error("${secrets.token}${B}", "`${B}` is not a placeholder");
    }
}
