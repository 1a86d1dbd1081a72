//! `lines`: stands between an agent and a command-line program that knows nothing of Towpath.
//!
//! | File | Idea |
//! |---|---|
//! | `settings.rs` | what to run and how, from the command line and from `with:` |
//! | `program.rs` | a program that was started: its pipes, its end, its process group |
//! | `per_message.rs` | a program started for each message |
//! | `per_process.rs` | one program that answers each line with a line |
//! | `output.rs` | lines of bounded length, and what is JSON |

mod output;
mod per_message;
mod per_process;
mod program;
mod settings;

use std::io::Write;
use std::process::ExitCode;

use serde_json::value::RawValue;
use towpath_step::{Context, Result, Step};

use crate::per_process::Kept;
use crate::settings::{Arguments, Config, Per, Settings};

/// How many messages a replica has at a time when the flow says nothing: each may be a process.
const CONCURRENCY: u32 = 4;

/// What is made once.
#[derive(Debug)]
struct State {
    settings: Settings,
    kept: Kept,
}

async fn handle(body: Box<RawValue>, ctx: &Context<Config, State>) -> Result<()> {
    match ctx.state.settings.per {
        Per::Message => per_message::handle(&body, ctx).await,
        Per::Process => ctx.state.kept.handle(&body, ctx).await,
    }
}

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            drop(writeln!(std::io::stderr(), "error: {error}"));
            return ExitCode::from(2);
        }
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    Step::action(handle)
        .setup(async |config: &Config| {
            let settings = Settings::new(config, arguments, &path)?;
            Ok(State {
                settings,
                kept: Kept::default(),
            })
        })
        .about(
            "lines",
            env!("CARGO_PKG_VERSION"),
            env!("CARGO_PKG_DESCRIPTION"),
        )
        .concurrency(CONCURRENCY)
        .run()
}
