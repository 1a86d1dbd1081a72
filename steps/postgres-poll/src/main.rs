//! The step `postgres-poll`.

use std::process::ExitCode;

use towpath_step::Step;

fn main() -> ExitCode {
    Step::poll(towpath_postgres_poll::poll)
        .setup(towpath_postgres_poll::setup)
        .about(
            "postgres-poll",
            env!("CARGO_PKG_VERSION"),
            env!("CARGO_PKG_DESCRIPTION"),
        )
        .run()
}
