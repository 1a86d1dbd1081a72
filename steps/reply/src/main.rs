//! The step `reply`.

use std::process::ExitCode;

use serde_json::value::RawValue;
use towpath_step::{Answer, REPLY_PORT, Step};

fn main() -> ExitCode {
    Step::action(towpath_reply::reply)
        .setup(towpath_reply::setup)
        .port::<Box<RawValue>>("out")
        .port::<Answer>(REPLY_PORT)
        .about(
            "reply",
            env!("CARGO_PKG_VERSION"),
            env!("CARGO_PKG_DESCRIPTION"),
        )
        .run()
}
