//! `towpath dead`

use clap::{Args, Subcommand};

use super::problem::Problem;
use super::{Context, ExitStatus};

mod edit;
mod export;
mod jobs;
mod list;
mod many;
mod replay;
mod select;
mod show;
#[cfg(test)]
mod tests;

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub(super) enum Dead {
    /// Lists dead letters, newest first
    List(list::List),
    /// Counts dead letters by what failed, the most frequent first
    Groups(list::Groups),
    /// Shows a dead letter: why, every attempt with its log, the message, and what to do next
    Show(One),
    /// Changes the body of a dead letter in an editor, or of many with jq
    Edit(edit::Edit),
    /// Sends dead letters to their steps again
    Replay(replay::Replay),
    /// Shows, watches and cancels replays of many
    Jobs(jobs::Jobs),
    /// Says that dead letters are not needed
    Discard(many::Discard),
    /// Writes dead letters with everything in them, one a line, as JSON
    Export(export::Export),
}

/// Which one.
#[derive(Debug, Args)]
pub(super) struct One {
    /// Its number
    id: String,
}

pub(super) async fn run(command: &Dead, context: &Context) -> Result<ExitStatus, Problem> {
    match command {
        Dead::List(command) => list::run(command, context).await,
        Dead::Groups(command) => list::groups(command, context).await,
        Dead::Show(command) => show::run(&command.id, context).await,
        Dead::Edit(command) => edit::run(command, context).await,
        Dead::Replay(command) => replay::run(command, context).await,
        Dead::Jobs(command) => jobs::run(command, context).await,
        Dead::Discard(command) => many::discard(command, context).await,
        Dead::Export(command) => export::run(command, context).await,
    }
}
