//! The binary `towpath`: the CLI and the control plane.

use std::process::ExitCode;

fn main() -> ExitCode {
    // As a worker for filters it does nothing else.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == towpath_step_jq::WORKER)
    {
        return towpath_step_jq::serve();
    }
    // The only place that reads the environment. What is not text names nothing that is asked for.
    let env = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    ExitCode::from(towpath::cli::main(std::env::args_os(), env).code())
}
