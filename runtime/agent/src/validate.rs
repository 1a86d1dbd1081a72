//! Bodies held against what the step says it takes (`validate`).
//!
//! # Invariants
//!
//! - `a_misfit_names_the_place_and_never_the_value`: what is said of a body goes into logs and dead
//!   letters.
//! - Patterns are found in linear time: other messages wait meanwhile.

use std::time::{Duration, Instant};

use serde_json::Value;
use towpath_protocol::handing::{Misfit, Validation};

/// How many things that are wrong with a body are told.
const TOLD_MAX: usize = 5;

/// How often it is logged that bodies do not fit: a source that changed makes thousands of them.
const LOG_EVERY: Duration = Duration::from_secs(30);

/// Holds bodies against a schema.
pub struct Validator {
    schema: jsonschema::Validator,
    /// What becomes of a message whose body does not fit.
    pub misfit: Misfit,
}

impl Validator {
    /// Makes it; fails if the schema cannot be used.
    pub fn new(validation: &Validation) -> Result<Self, String> {
        let schema = jsonschema::options()
            .with_pattern_options(jsonschema::PatternOptions::regex())
            .build(&validation.schema)
            .map_err(|error| error.masked().to_string())?;
        Ok(Self {
            schema,
            misfit: validation.misfit,
        })
    }

    /// Says what is wrong with a body: the first thing in a sentence, and more in a list.
    pub fn fault(&self, body: &str) -> Option<(String, Vec<String>)> {
        let Ok(body) = serde_json::from_str::<Value>(body) else {
            let reason = "the body cannot be looked at: it is nested too deep".to_owned();
            return Some((reason, Vec::new()));
        };
        if self.schema.is_valid(&body) {
            return None;
        }
        let mut told = self.schema.iter_errors(&body).take(TOLD_MAX).map(|error| {
            let path = error.instance_path().as_str().replace('/', ".");
            let path = if path.is_empty() { "." } else { &path };
            format!("`{path}`: {}", error.masked())
        });
        let first = told.next().unwrap_or_default();
        let reason = format!("the body is not what the step takes: {first}");
        Some((reason, told.collect()))
    }
}

/// Says when something is to be logged that happens often.
#[derive(Debug, Default)]
pub struct Seldom {
    last: Option<Instant>,
    unsaid: u64,
}

impl Seldom {
    /// Notes that it happened. Returns how often it did since it was logged last, if it is time to
    /// log it.
    pub fn note(&mut self, now: Instant) -> Option<u64> {
        self.unsaid += 1;
        if self.last.is_some_and(|last| now < last + LOG_EVERY) {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn validator(schema: Value) -> Validator {
        let misfit = Misfit::Warn;
        Validator::new(&Validation { schema, misfit }).unwrap()
    }

    #[test]
    fn a_misfit_names_the_place_and_never_the_value() {
        let orders = validator(json!({
            "type": "object",
            "properties": { "customer": { "type": "object", "properties": { "id": { "type": "integer" } } } },
            "required": ["number"],
        }));
        assert_eq!(orders.fault(r#"{"number":7,"customer":{"id":1}}"#), None);
        let (reason, also) = orders.fault(r#"{"customer":{"id":"hidden"}}"#).unwrap();
        let all = format!("{reason} {also:?}");
        assert!(
            reason.starts_with("the body is not what the step takes: `"),
            "{reason}"
        );
        assert!(
            all.contains("`.customer.id`") && all.contains("integer"),
            "{all}"
        );
        assert!(all.contains("`.`") && all.contains("number"), "{all}");
        assert!(!all.contains("hidden"), "{all}");
    }

    #[test]
    fn a_body_that_is_nested_too_deep_is_no_end_of_the_agent() {
        let body = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let (reason, _) = validator(json!({"type": "array"})).fault(&body).unwrap();
        assert!(reason.contains("nested too deep"), "{reason}");
    }

    #[test]
    fn a_schema_that_cannot_be_used_says_so() {
        for schema in [
            json!({"type": "nonsense"}),
            json!({"pattern": "(?=a)"}),
            json!({"$ref": "https://elsewhere/schema"}),
        ] {
            let misfit = Misfit::Warn;
            assert!(Validator::new(&Validation { schema, misfit }).is_err());
        }
    }

    #[test]
    fn what_happens_often_is_logged_seldom() {
        let (mut seldom, now) = (Seldom::default(), Instant::now());
        assert_eq!(seldom.note(now), Some(1));
        assert_eq!(seldom.note(now), None);
        assert_eq!(seldom.note(now + LOG_EVERY / 2), None);
        assert_eq!(seldom.note(now + LOG_EVERY), Some(3));
    }
}
