//! The step `jq`. Started with [`towpath_jq::WORKER`] it is one of its own workers.

use std::process::ExitCode;

use towpath_step::Step;

fn main() -> ExitCode {
    if std::env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == towpath_jq::WORKER)
    {
        return towpath_jq::serve();
    }
    Step::action(towpath_jq::handle)
        .setup(towpath_jq::setup)
        .about(
            "jq",
            env!("CARGO_PKG_VERSION"),
            env!("CARGO_PKG_DESCRIPTION"),
        )
        .concurrency(256)
        .run()
}
