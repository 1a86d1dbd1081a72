//! The step `sse`.

use std::process::ExitCode;

use towpath_step::Step;

fn main() -> ExitCode {
    Step::poll(towpath_sse::listen)
        .setup(towpath_sse::setup)
        .about(
            "sse",
            env!("CARGO_PKG_VERSION"),
            env!("CARGO_PKG_DESCRIPTION"),
        )
        .run()
}
