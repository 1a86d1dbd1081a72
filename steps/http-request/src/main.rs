//! The step `http-request`.

use std::process::ExitCode;

use towpath_step::Step;

fn main() -> ExitCode {
    Step::action(towpath_http_request::handle)
        .setup(towpath_http_request::setup)
        .about(
            "http-request",
            env!("CARGO_PKG_VERSION"),
            env!("CARGO_PKG_DESCRIPTION"),
        )
        .concurrency(16)
        .run()
}
