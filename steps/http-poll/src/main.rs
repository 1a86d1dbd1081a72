//! The step `http-poll`.

use std::process::ExitCode;

use towpath_step::Step;

fn main() -> ExitCode {
    Step::poll(towpath_http_poll::poll)
        .setup(towpath_http_poll::setup)
        .about(
            "http-poll",
            env!("CARGO_PKG_VERSION"),
            env!("CARGO_PKG_DESCRIPTION"),
        )
        .run()
}
