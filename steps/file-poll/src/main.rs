//! The step `file-poll`.

use std::process::ExitCode;

use towpath_step::Step;

fn main() -> ExitCode {
    Step::poll(towpath_file_poll::poll)
        .setup(towpath_file_poll::setup)
        .port::<towpath_file_poll::Unreadable>(towpath_file_poll::UNREADABLE)
        .about(
            "file-poll",
            env!("CARGO_PKG_VERSION"),
            env!("CARGO_PKG_DESCRIPTION"),
        )
        .run()
}
