//! The agent's binary; see the library for what it does.

use std::process::ExitCode;

use towpath_agent::args::Args;
use towpath_agent::{run, shim, start};

/// The start document or the command line is unusable.
const UNUSABLE: u8 = 2;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).peekable();
    if arguments
        .peek()
        .is_some_and(|first| first == towpath_step_jq::WORKER)
    {
        return towpath_step_jq::serve();
    }
    if arguments.next_if(|first| first == "shim").is_some() {
        return match Args::parse(arguments) {
            Ok(args) => shim::exec(&args),
            Err(error) => complain(&error),
        };
    }
    // First of all: nobody else in the container may read this process's memory or environment.
    if let Err(error) =
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
    {
        return complain(&error);
    }
    let args = match Args::parse(arguments) {
        Ok(args) => args,
        Err(error) => return complain(&error),
    };
    match start::read() {
        Ok(start) => run::run(start, &args),
        Err(error) => complain(&error),
    }
}

#[expect(
    clippy::print_stderr,
    reason = "there is no logger before the start document says who this is"
)]
fn complain(error: &dyn std::error::Error) -> ExitCode {
    eprint!("error: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        eprint!("\n  cause: {cause}");
        source = cause.source();
    }
    eprintln!();
    ExitCode::from(UNUSABLE)
}
