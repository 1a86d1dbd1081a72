//! `towpath step`

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::problem::Problem;
use super::{Context, ExitStatus};
use crate::engine::Agent;
use crate::engine::docker::DockerEngine;
use crate::pack::{Pack, manifest, pack};

/// What to do with steps.
#[derive(Debug, Subcommand)]
pub(super) enum Step {
    /// Prints what an image, or a program, says of itself
    Manifest(Manifest),
    /// Packs a program into an image, with its manifest
    Pack(PackArgs),
}

/// Which one.
#[derive(Debug, Args)]
pub(super) struct Manifest {
    /// An image, or a program made with `towpath-step`
    step: String,
}

/// What to pack, and how.
#[derive(Debug, Args)]
pub(super) struct PackArgs {
    /// The program
    program: PathBuf,
    /// What the image is called
    #[arg(long, short, value_name = "IMAGE")]
    tag: String,
    /// An image to put the program on; an empty one when left out
    #[arg(long, value_name = "IMAGE")]
    from: Option<String>,
    /// Leaves symbols in, which a debugger needs and a step does not
    #[arg(long)]
    keep_symbols: bool,
}

pub(super) async fn run(command: &Step, context: &Context) -> Result<ExitStatus, Problem> {
    let engine = engine(context)?;
    match command {
        Step::Manifest(command) => {
            let manifest = manifest(&engine, &command.step).await?;
            context.printer.json(&manifest);
        }
        Step::Pack(command) => {
            let progress = context
                .printer
                .progress(&format!("packing {}", command.program.display()));
            let wanted = Pack {
                program: command.program.clone(),
                tag: command.tag.clone(),
                from: command.from.clone(),
                strip: !command.keep_symbols,
            };
            let packed = pack(&engine, &wanted).await;
            drop(progress);
            let packed = packed?;
            for note in &packed.notes {
                context.printer.note(&format!("note: {note}"));
            }
            if context.printer.is_json() {
                context.printer.json(&serde_json::json!({
                    "image": command.tag, "id": packed.image.id, "bytes": packed.image.size,
                    "manifest": packed.manifest,
                }));
            } else {
                context.printer.line(&format!(
                    "{} is {} {} ({:.1} MB)",
                    command.tag,
                    packed.manifest.name,
                    packed.manifest.version,
                    packed.image.size as f64 / 1e6
                ));
            }
        }
    }
    Ok(ExitStatus::Done)
}

/// Docker, as this machine has it. No replica is ever started with it, so it needs no agent.
pub(super) fn engine(context: &Context) -> Result<DockerEngine, Problem> {
    let agent = Agent::new(&[], &[])
        .map_err(|error| Problem::could_not("cannot prepare").because(&error))?;
    let host = context
        .env
        .get("DOCKER_HOST")
        .filter(|host| !host.is_empty())
        .cloned();
    Ok(DockerEngine::new(host, agent))
}
