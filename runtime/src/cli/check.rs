//! `towpath check`

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use clap::Args;
use tokio::time::timeout;
use towpath_flow::{Facts, ImageFact, Severity, Source, check, references_in};

use super::problem::Problem;
use super::{Context, ExitStatus, file, step};
use crate::engine::{Engine, chain};
use crate::filter::{FilterError, compile};

/// How long the engine may take to say that it is there.
const PROBE: Duration = Duration::from_secs(3);

/// Checks a flow file. Needs no control plane; asks Docker for the steps' manifests if it is there.
#[derive(Debug, Args)]
pub(super) struct Check {
    /// The flow file; `-` is standard input
    file: String,
    /// Does not ask Docker for the steps' manifests
    #[arg(long)]
    offline: bool,
}

pub(super) async fn run(command: &Check, context: &Context) -> Result<ExitStatus, Problem> {
    let source = file::read(&command.file)?;
    let facts = Facts {
        images: images(command, &source, context).await,
        secrets: None,
        folders: None,
        conditions: conditions(&source, context).await,
        env: Some(context.env.keys().cloned().collect::<BTreeSet<String>>()),
    };
    let (flow, diagnostics) = match check(&source, &facts) {
        Ok(checked) => (Some(checked.flow.name), checked.warnings),
        Err(diagnostics) => (None, diagnostics),
    };
    let errors = diagnostics.count(Severity::Error);
    if context.printer.is_json() {
        context.printer.json(&serde_json::json!({
            "flow": flow,
            "valid": errors == 0,
            "diagnostics": diagnostics.findings(),
        }));
    } else {
        context
            .printer
            .findings(&source, diagnostics.into_findings());
    }
    match flow {
        Some(flow) if errors == 0 => {
            if !context.printer.is_json() {
                context
                    .printer
                    .line(&format!("`{flow}` in {} has no mistakes", source.name));
            }
            Ok(ExitStatus::Done)
        }
        _ => Err(Problem::no(file::counted(errors))),
    }
}

/// Which of the conditions compile: tried in a worker process, because a condition is a program.
async fn conditions(source: &Source, context: &Context) -> BTreeMap<String, Result<(), String>> {
    let texts = references_in(source).conditions;
    if texts.is_empty() {
        return BTreeMap::new();
    }
    let program = std::env::current_exe().map_err(FilterError::Worker);
    let compiled = match program {
        Ok(program) => compile(&program, texts).await,
        Err(error) => Err(error),
    };
    match compiled {
        Ok(conditions) => conditions,
        Err(error) => {
            let why = chain(&error);
            context
                .printer
                .note(&format!("note: conditions are not checked: {why}"));
            BTreeMap::new()
        }
    }
}

/// What Docker knows of the images, as far as it can be asked.
async fn images(
    command: &Check,
    source: &Source,
    context: &Context,
) -> BTreeMap<String, ImageFact> {
    let names = references_in(source).images;
    if command.offline || names.is_empty() {
        return BTreeMap::new();
    }
    let progress = context.printer.progress("asking Docker for the images");
    let engine = match step::engine(context) {
        Ok(engine) => engine,
        Err(problem) => {
            context
                .printer
                .note(&format!("note: images are not checked: {problem}"));
            return BTreeMap::new();
        }
    };
    let why = match timeout(PROBE, engine.version()).await {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(chain(&error)),
        Err(_) => Some("Docker does not answer".to_owned()),
    };
    if let Some(why) = why {
        drop(progress);
        context
            .printer
            .note(&format!("note: images are not checked: {why}"));
        return BTreeMap::new();
    }
    let mut facts = BTreeMap::new();
    for name in names {
        progress.say(format!("asking Docker for {name}"));
        let fact = match engine.image(&name).await {
            Ok(None) => ImageFact::Missing,
            Ok(Some(image)) => match image.unreadable {
                Some(reason) => ImageFact::Unreadable(reason),
                None => ImageFact::Known(image.manifest),
            },
            Err(_) => ImageFact::Unknown,
        };
        facts.insert(name, fact);
    }
    facts
}
