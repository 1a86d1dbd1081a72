//! The step `split`. Started with [`towpath_split::WORKER`] it filters for itself.

use std::process::ExitCode;

use towpath_step::Step;

fn main() -> ExitCode {
    if std::env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == towpath_split::WORKER)
    {
        return towpath_split::serve();
    }
    Step::action(towpath_split::split)
        .setup(towpath_split::setup)
        .about(
            "split",
            env!("CARGO_PKG_VERSION"),
            env!("CARGO_PKG_DESCRIPTION"),
        )
        .run()
}
