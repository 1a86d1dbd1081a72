//! The step `http-poll`. Started with [`towpath_http_poll::WORKER`] it filters for itself.

use std::process::ExitCode;

use towpath_step::Step;

fn main() -> ExitCode {
    if std::env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == towpath_http_poll::WORKER)
    {
        return towpath_http_poll::serve();
    }
    Step::poll(towpath_http_poll::poll)
        .setup(towpath_http_poll::setup)
        .about(
            "http-poll",
            env!("CARGO_PKG_VERSION"),
            env!("CARGO_PKG_DESCRIPTION"),
        )
        .run()
}
