//! The flow file: parsed with positions, checked all at once, never half valid.
//!
//! ```
//! use towpath_flow::{Facts, Paint, Source, check};
//!
//! let source = Source::new("flow.yaml", "flow: a\ntrigger: {id: t, webhook: true}\nactions: []\n");
//! let problems = check(&source, &Facts::default()).unwrap_err();
//! assert_eq!(problems.findings()[0].code, "F023");
//! println!("{}", problems.render(Paint::Plain));
//! ```
//!
//! Who wants more than the file itself checked asks [`references_in`] what the file speaks of,
//! finds that out, and gives it to [`check`] as [`Facts`]. When replicas are made,
//! [`substitute_step`] fills in secrets and environment variables.
//!
//! # Invariants
//!
//! - A [`Flow`] is made by [`check`] alone, and only of a file without errors.
//! - Nothing here does IO or reads a clock; the same input gives the same output.
//! - No input makes anything here panic, recurse deeply, or take more than a moment.

mod cron;
mod diagnostic;
mod document;
mod facts;
mod finding;
mod fit;
mod graph;
mod image;
mod keys;
pub mod limits;
pub mod model;
mod placeholder;
mod read;
mod references;
mod render;
mod schema;
mod source;
mod substitute;
mod text;
mod tree;
mod units;
pub mod webhook;

pub use cron::{Cron, ZONE_DEFAULT};
pub use diagnostic::{Code, Diagnostics, Severity};
pub use facts::{Facts, ImageFact};
pub use finding::{Finding, Place, Related};
pub use model::{Autoscale, Fires, Flow, Limits, Missed, Overlap, Replicas, ScaleBy, Step};
pub use placeholder::{is_env_name, is_secret_name};
pub use references::{References, references, references_in};
pub use render::Paint;
pub use schema::schema;
pub use source::Source;
pub use substitute::{Filled, FilledStep, SubstituteError, Values, substitute, substitute_step};
pub use text::nearest;

use diagnostic::Diagnostic;

/// A flow without errors.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Checked {
    /// The flow.
    pub flow: Flow,
    /// Warnings, and notes of what was not checked; may be empty.
    pub warnings: Diagnostics,
}

/// Checks a file: everything that is wrong with it is found at once.
///
/// # Errors
///
/// All that was found, warnings and notes included, if there is at least one error.
pub fn check(source: &Source, facts: &Facts) -> Result<Checked, Diagnostics> {
    let mut found = Vec::new();
    let flow = flow(source, facts, &mut found);
    let is_wrong = found
        .iter()
        .any(|item| item.code.severity() == Severity::Error);
    let diagnostics = Diagnostics::new(source, found);
    match flow {
        Some(flow) if !is_wrong => Ok(Checked {
            flow,
            warnings: diagnostics,
        }),
        _ => Err(diagnostics),
    }
}

fn flow(source: &Source, facts: &Facts, found: &mut Vec<Diagnostic>) -> Option<Flow> {
    let text = match source.text() {
        Ok(text) => text,
        Err(diagnostic) => {
            found.push(*diagnostic);
            return None;
        }
    };
    let root = tree::parse(text, found)?;
    let document = document::read(&root, text, found);
    let graph = graph::connect(&document, found);
    fit::check(&document, &graph, &root, text, facts, found);
    graph.into_flow(document)
}
