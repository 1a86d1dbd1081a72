//! The step `aggregate`. Started with [`towpath_aggregate::WORKER`] it filters for itself.

use std::process::ExitCode;

use towpath_step::Step;

fn main() -> ExitCode {
    if std::env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == towpath_aggregate::WORKER)
    {
        return towpath_aggregate::serve();
    }
    Step::batch(towpath_aggregate::aggregate, towpath_aggregate::BATCH_MAX)
        .setup(towpath_aggregate::setup)
        .about(
            "aggregate",
            env!("CARGO_PKG_VERSION"),
            env!("CARGO_PKG_DESCRIPTION"),
        )
        .needs_batch()
        .run()
}
