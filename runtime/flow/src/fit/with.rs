//! `with:` against the JSON Schema in the manifest of the step's image.
//!
//! # Invariants
//!
//! - A message never has a value of `with` in it, only keys, types and what the schema says.

use std::ops::Range;

use jsonschema::ValidationError;
use jsonschema::error::ValidationErrorKind;
use jsonschema::paths::{Location, LocationSegment};
use serde_json::Value;
use towpath_protocol::manifest::Manifest;

use super::words::{expected, is_null, is_type, options, otherwise, words};
use crate::diagnostic::{Code, Diagnostic};
use crate::document::{Draft, describe};
use crate::limits::DIAGNOSTICS_MAX;
use crate::placeholder;
use crate::read::is_misspelt;
use crate::text::{did_you_mean, either, list, shown};
use crate::tree::{Content, Node};

/// Checks the step's `with`.
pub(super) fn check(draft: &Draft<'_>, manifest: &Manifest, found: &mut Vec<Diagnostic>) {
    let Some(schema) = &manifest.config else {
        return;
    };
    if !draft.step.with.is_object() {
        return; // It was reported as such.
    }
    let validator = match jsonschema::options().build(schema) {
        Ok(validator) => validator,
        Err(error) => {
            found.push(
                Diagnostic::new(
                    Code::BadManifest,
                    format!(
                        "the schema in the manifest of the image {} cannot be used",
                        shown(&draft.step.image)
                    ),
                )
                .at(draft.image_span.clone())
                .label(error.masked().to_string())
                .help("this is a mistake of the image, not of the flow"),
            );
            return;
        }
    };
    let mut reporter = Reporter {
        draft,
        manifest,
        schema,
        found,
    };
    for error in validator
        .iter_errors(&draft.step.with)
        .take(DIAGNOSTICS_MAX)
    {
        reporter.report(&error);
    }
}

/// Whether bodies can be held against a schema, or why not. Patterns are to be found in linear time:
/// agents do it while other messages wait.
pub(super) fn builds(schema: &Value) -> Result<(), String> {
    jsonschema::options()
        .with_pattern_options(jsonschema::PatternOptions::regex())
        .build(schema)
        .map(drop)
        .map_err(|error| error.masked().to_string())
}

struct Reporter<'a, 't> {
    draft: &'a Draft<'t>,
    manifest: &'a Manifest,
    schema: &'a Value,
    found: &'a mut Vec<Diagnostic>,
}

/// A place in `with`.
struct Spot<'t> {
    /// `with.page.size`
    path: String,
    /// The value; none if there is no `with` at all.
    node: Option<&'t Node>,
    /// Where its key is, or where the value is if it has none.
    key_span: Range<usize>,
}

impl Spot<'_> {
    fn value_span(&self) -> Range<usize> {
        self.node
            .map_or_else(|| self.key_span.clone(), |node| node.span.clone())
    }
}

impl<'t> Reporter<'_, 't> {
    fn report(&mut self, error: &ValidationError<'_>) {
        if is_forgivable(error) {
            return;
        }
        let spot = self.spot(error.instance_path());
        let step = describe(&self.draft.step);
        let diagnostic = match error.kind() {
            ValidationErrorKind::AdditionalProperties { unexpected }
            | ValidationErrorKind::UnevaluatedProperties { unexpected } => {
                for key in unexpected.iter().take(DIAGNOSTICS_MAX) {
                    let diagnostic = self.unknown(&spot, key, error.schema_path());
                    self.found.push(diagnostic);
                }
                return;
            }
            ValidationErrorKind::Required { property } => {
                let key = property.as_str().unwrap_or_default();
                let known = self.properties(error.schema_path());
                let is_closed = self.is_closed(error.schema_path());
                if is_closed && spot.node.is_some_and(|node| is_misspelt(node, key, &known)) {
                    return; // It is reported as an unknown key.
                }
                let about = self.about(error.schema_path(), key);
                Diagnostic::new(
                    Code::MissingWith,
                    format!("`{}` of {step} has no {}", spot.path, shown(key)),
                )
                .at(spot.key_span.clone())
                .label(format!("{} is missing", shown(key)))
                .maybe_help(about.map(|about| format!("{}: {about}", shown(key))))
            }
            ValidationErrorKind::AnyOf { context }
            | ValidationErrorKind::OneOfNotValid { context } => {
                return self.alternatives(error, context);
            }
            kind => {
                let expected = expected(kind).unwrap_or_else(|| otherwise(error));
                let text = match spot.node.map(|node| &node.content) {
                    Some(Content::Text(text)) => text.as_str(),
                    _ => "",
                };
                let help = match kind {
                    ValidationErrorKind::Enum { options } => did_you_mean(text, words(options)),
                    _ if placeholder::has_any(text) => {
                        Some("a placeholder is always filled in as text".to_owned())
                    }
                    _ => self.examples(error.schema_path()),
                };
                let label = match (kind, spot.node) {
                    (ValidationErrorKind::Type { .. }, Some(node)) => {
                        format!("this is {}", node.kind())
                    }
                    (ValidationErrorKind::Enum { .. }, _) => "this is none of them".to_owned(),
                    _ => String::new(),
                };
                Diagnostic::new(
                    Code::BadWith,
                    format!("`{}` of {step} must be {expected}", spot.path),
                )
                .at(spot.value_span())
                .label(label)
                .maybe_help(help)
            }
        };
        self.found.push(diagnostic);
    }

    /// None of several schemas fits: says what the closest of them lacks.
    fn alternatives(
        &mut self,
        error: &ValidationError<'_>,
        context: &[Vec<ValidationError<'static>>],
    ) {
        let here = error.instance_path();
        let is_here = |inner: &ValidationError<'_>| inner.instance_path() == here;
        let branches: Vec<_> = context.iter().filter(|branch| !branch.is_empty()).collect();
        let all: Vec<_> = branches.iter().flat_map(|branch| branch.iter()).collect();
        let words: Vec<&str> = all.iter().flat_map(|inner| options(inner)).collect();
        let is_choice = |inner: &ValidationError<'_>| is_here(inner) && !options(inner).is_empty();
        if !words.is_empty() && all.iter().all(|inner| is_choice(inner) || is_type(inner)) {
            return self.one_of(here, &words);
        }
        // A branch for a value of another type is not meant.
        let is_meant = |branch: &&&Vec<ValidationError<'static>>| {
            !branch.iter().any(|inner| is_here(inner) && is_type(inner))
        };
        if let Some(branch) = branches
            .iter()
            .filter(is_meant)
            .min_by_key(|branch| branch.len())
        {
            return branch.iter().for_each(|inner| self.report(inner));
        }
        let mut types: Vec<String> = all
            .iter()
            .filter(|inner| !is_null(inner))
            .filter_map(|inner| expected(inner.kind()))
            .collect();
        types.dedup();
        if types.is_empty() {
            types.push(otherwise(error));
        }
        let spot = self.spot(here);
        let label = spot.node.map(|node| format!("this is {}", node.kind()));
        let step = describe(&self.draft.step);
        self.found.push(
            Diagnostic::new(
                Code::BadWith,
                format!("`{}` of {step} must be {}", spot.path, types.join(" or ")),
            )
            .at(spot.value_span())
            .label(label.unwrap_or_default()),
        );
    }

    fn one_of(&mut self, here: &Location, words: &[&str]) {
        let spot = self.spot(here);
        let help = match spot.node.map(|node| &node.content) {
            Some(Content::Text(text)) => did_you_mean(text, words.iter().copied()),
            _ => None,
        };
        self.found.push(
            Diagnostic::new(
                Code::BadWith,
                format!(
                    "`{}` of {} must be {}",
                    spot.path,
                    describe(&self.draft.step),
                    either(words)
                ),
            )
            .at(spot.value_span())
            .label("this is none of them")
            .maybe_help(help),
        );
    }

    fn unknown(&self, spot: &Spot<'_>, key: &str, schema_path: &Location) -> Diagnostic {
        let entry = spot.node.and_then(|node| node.entry(key));
        let known = self.properties(schema_path);
        let help =
            did_you_mean(key, known.iter().copied()).unwrap_or_else(|| match known.as_slice() {
                [] => "it takes no keys at all".to_owned(),
                _ => format!("its keys are {}", list(&known)),
            });
        Diagnostic::new(
            Code::UnknownWith,
            format!(
                "`{}` of {} has no key {}",
                spot.path,
                describe(&self.draft.step),
                shown(key)
            ),
        )
        .at(entry.map_or_else(|| spot.key_span.clone(), |entry| entry.key_span.clone()))
        .label(format!("{} does not know it", shown(&self.manifest.name)))
        .help(help)
    }

    /// The schema that a keyword belongs to.
    fn object_schema(&self, schema_path: &Location) -> Option<&Value> {
        let (parent, _) = schema_path.as_str().rsplit_once('/')?;
        self.schema.pointer(parent)
    }

    fn properties(&self, schema_path: &Location) -> Vec<&str> {
        self.object_schema(schema_path)
            .and_then(|schema| schema.get("properties"))
            .and_then(Value::as_object)
            .map(|properties| properties.keys().map(String::as_str).collect())
            .unwrap_or_default()
    }

    /// Whether an object takes no other keys than those that it names.
    fn is_closed(&self, schema_path: &Location) -> bool {
        let refuses = |key| {
            self.object_schema(schema_path)
                .and_then(|schema| schema.get(key))
                .is_some_and(|value| *value == Value::Bool(false))
        };
        refuses("additionalProperties") || refuses("unevaluatedProperties")
    }

    /// Values that the schema gives as examples.
    fn examples(&self, schema_path: &Location) -> Option<String> {
        let schema = self.object_schema(schema_path)?;
        let examples = words(schema.get("examples")?);
        (!examples.is_empty()).then(|| format!("write for instance {}", either(&examples)))
    }

    /// What the schema says of a property.
    fn about(&self, schema_path: &Location, key: &str) -> Option<String> {
        let property = self
            .object_schema(schema_path)?
            .get("properties")?
            .get(key)?;
        let about = property.get("description")?.as_str()?;
        let first = about
            .split("\n\n")
            .next()?
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ");
        Some(first.trim_end_matches('.').chars().take(200).collect())
    }

    fn spot(&self, path: &Location) -> Spot<'t> {
        let mut spot = match self.draft.with {
            Some(entry) => Spot {
                path: "with".to_owned(),
                node: Some(&entry.value),
                key_span: entry.key_span.clone(),
            },
            None => Spot {
                path: "with".to_owned(),
                node: None,
                key_span: self.draft.place.clone(),
            },
        };
        for segment in path {
            match (segment, spot.node) {
                (LocationSegment::Property(key), Some(node)) => {
                    spot.path = format!("{}.{}", spot.path, shown(&key).trim_matches('`'));
                    let Some(entry) = node.entry(&key) else { break };
                    spot.key_span = entry.key_span.clone();
                    spot.node = Some(&entry.value);
                }
                (LocationSegment::Index(index), Some(node)) => {
                    spot.path = format!("{}[{index}]", spot.path);
                    let Some(item) = node.items().get(index) else {
                        break;
                    };
                    spot.key_span = item.span.clone();
                    spot.node = Some(item);
                }
                (_, None) => break,
            }
        }
        spot
    }
}

/// A text with placeholders will be another text when it is used: only its type is known.
fn is_forgivable(error: &ValidationError<'_>) -> bool {
    match error.kind() {
        ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context } => {
            context
                .iter()
                .any(|branch| !branch.is_empty() && branch.iter().all(is_forgivable))
        }
        ValidationErrorKind::Type { .. } => false,
        _ => error.instance().as_str().is_some_and(placeholder::has_any),
    }
}
