//! `towpath completions`

use clap::Args;
use clap_complete::Shell;

use super::{Context, ExitStatus, definition};

/// Prints a shell's completions.
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

pub(super) fn run(command: &Completions, context: &Context) -> ExitStatus {
    let mut text = Vec::new();
    clap_complete::generate(command.shell, &mut definition(), "towpath", &mut text);
    context.printer.raw(&text);
    ExitStatus::Done
}
