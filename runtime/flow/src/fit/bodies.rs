//! What a step emits against what the next one takes: the schemas in the manifests of both images.
//!
//! # Invariants
//!
//! - Only what can never fit is an error; what may not fit is a warning; what the schemas do not say
//!   is not spoken of (`bodies/compare.rs`).

use serde_json::Value;
use towpath_protocol::manifest::{Kind, Manifest};
use towpath_protocol::start::Mode;

use self::compare::{Clash, Verdict, compare};
use super::with::builds;
use crate::diagnostic::{Code, Diagnostic};
use crate::document::{Document, Draft, describe};
use crate::facts::{Facts, ImageFact};
use crate::graph::Edge;
use crate::model::Validate;
use crate::text::shown;

mod compare;
mod shape;

/// How many clashes of two steps are told; whoever mends these sees the next.
const CLASHES_MAX: usize = 5;

/// Holds what comes over an edge against what the step takes.
pub(super) fn check(
    document: &Document<'_>,
    facts: &Facts,
    draft: &Draft<'_>,
    edge: &Edge,
    found: &mut Vec<Diagnostic>,
) {
    let from = &document.drafts[edge.from];
    let Some(output) = manifest(facts, from).and_then(|it| it.ports.get(&edge.port)) else {
        return;
    };
    let Some(input) = manifest(facts, draft).and_then(|it| it.input.as_ref()) else {
        return;
    };
    let clashes = compare(output, input);
    for (verdict, code, what) in [
        (Verdict::Never, Code::NeverFits, "can never be"),
        (Verdict::Maybe, Code::MayNotFit, "may not be"),
    ] {
        let mut told = clashes
            .iter()
            .filter(|clash| clash.verdict == verdict)
            .take(CLASHES_MAX)
            .map(Clash::to_string);
        let Some(first) = told.next() else { continue };
        let mut diagnostic = Diagnostic::new(
            code,
            format!(
                "what {} emits by its port {} {what} what {} takes",
                describe(&from.step),
                shown(&edge.port),
                describe(&draft.step)
            ),
        )
        .at(edge.span.clone().unwrap_or_else(|| draft.place.clone()))
        .label(first)
        .related(from.place.clone(), "it comes from here");
        for also in told {
            diagnostic = diagnostic.help(format!("and {also}"));
        }
        let between = "a step between them, such as `towpath/jq`, can make one of the other";
        found.push(diagnostic.help(between));
    }
}

/// Whoever is to look at bodies must know what the step takes.
pub(super) fn check_validate(draft: &Draft<'_>, facts: &Facts, found: &mut Vec<Diagnostic>) {
    let (Some(entry), ImageFact::Known(manifest)) =
        (draft.validate, facts.image(&draft.step.image))
    else {
        return;
    };
    if draft.step.handing.validate == Validate::Off {
        return;
    }
    let image = shown(&draft.step.image);
    let input = manifest.as_ref().and_then(|it| it.input.as_ref());
    match input.filter(|schema| says_something(schema)) {
        None => found.push(
            Diagnostic::new(
                Code::NothingToValidate,
                format!("the image {image} does not say what it takes"),
            )
            .at(entry.key_span.clone())
            .label("there is nothing to hold bodies against")
            .help("leave it out, or give the image a manifest with `input`"),
        ),
        Some(schema) => {
            if let Err(why) = builds(schema) {
                found.push(
                    Diagnostic::new(
                        Code::BadManifest,
                        format!("`input` in the manifest of the image {image} cannot be used"),
                    )
                    .at(draft.image_span.clone())
                    .label(why)
                    .related(entry.key_span.clone(), "bodies are to be held against it")
                    .help("this is a mistake of the image, not of the flow"),
                );
            }
        }
    }
}

/// Whether a schema forbids anything.
fn says_something(schema: &Value) -> bool {
    match schema {
        Value::Null | Value::Bool(true) => false,
        Value::Object(keys) => keys
            .keys()
            .any(|key| !matches!(key.as_str(), "$schema" | "title" | "description")),
        _ => true,
    }
}

/// The manifest that speaks for a step: not one of an image in a place that it is not made for,
/// which was reported, and not where the flow runs another program in the image.
fn manifest<'f>(facts: &'f Facts, draft: &Draft<'_>) -> Option<&'f Manifest> {
    let is_own_program = draft.step.command.is_empty() && draft.step.mode == Mode::Frames;
    match facts.image(&draft.step.image) {
        ImageFact::Known(Some(manifest)) if draft.has_image && is_own_program => {
            (draft.step.is_trigger == (manifest.kind != Kind::Action)).then_some(manifest)
        }
        _ => None,
    }
}
