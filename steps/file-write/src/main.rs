//! The step `file-write`.

use std::process::ExitCode;

use towpath_step::Step;

fn main() -> ExitCode {
    Step::batch(towpath_file_write::write, towpath_file_write::BATCH_MAX)
        .setup(towpath_file_write::setup)
        .about(
            "file-write",
            env!("CARGO_PKG_VERSION"),
            env!("CARGO_PKG_DESCRIPTION"),
        )
        .run()
}
