//! `towpath dead export`

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use clap::Args;

use super::super::problem::Problem;
use super::super::{Context, ExitStatus};
use super::select::Which;

/// Writes dead letters with everything in them, newest first: one a line, as JSON.
#[derive(Debug, Args)]
pub(in crate::cli) struct Export {
    /// Their numbers; all, if nothing is said
    ids: Vec<String>,
    #[command(flatten)]
    which: Which,
    /// In this state
    #[arg(long, default_value = "open", value_parser = ["open", "replaying", "replayed", "discarded", "all"])]
    state: String,
    /// To this file, which must not be there yet; to standard output otherwise
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

pub(super) async fn run(command: &Export, context: &Context) -> Result<ExitStatus, Problem> {
    let mut query = command.which.query();
    query.push(("state", command.state.clone()));
    if !command.ids.is_empty() {
        query.push(("ids", command.ids.join(",")));
    }
    let mut file = match &command.to {
        None => None,
        Some(path) => {
            let failed = |error: std::io::Error| {
                Problem::no(format!("cannot make `{}`", path.display())).because(&error)
            };
            Some(BufWriter::new(File::create_new(path).map_err(failed)?))
        }
    };
    let mut response = context
        .client()?
        .stream(&["dead", "export"], &query)
        .await?;
    let mut lines = 0_usize;
    loop {
        let chunk = response.chunk().await.map_err(|error| {
            Problem::could_not("the export was cut off, and is not whole")
                .because(&error.without_url())
        })?;
        let Some(chunk) = chunk else { break };
        lines += memchr::memchr_iter(b'\n', &chunk).count();
        match &mut file {
            None => context.printer.raw(&chunk),
            Some(file) => file
                .write_all(&chunk)
                .map_err(|error| cannot_write(&error))?,
        }
    }
    if let Some(mut file) = file {
        file.flush().map_err(|error| cannot_write(&error))?;
    }
    context.printer.note(&match lines {
        1 => "1 dead letter".to_owned(),
        lines => format!("{lines} dead letters"),
    });
    Ok(ExitStatus::Done)
}

fn cannot_write(error: &std::io::Error) -> Problem {
    Problem::could_not("the export cannot be written, and is not whole").because(error)
}
