//! The step `postgres-write`.

use std::process::ExitCode;

use towpath_step::Step;

fn main() -> ExitCode {
    Step::batch(
        towpath_postgres_write::write,
        towpath_postgres_write::BATCH_MAX,
    )
    .setup(towpath_postgres_write::setup)
    .about(
        "postgres-write",
        env!("CARGO_PKG_VERSION"),
        env!("CARGO_PKG_DESCRIPTION"),
    )
    .run()
}
