//! Passes every body on untouched: no type, no parsing. What the pipes alone can carry.
use std::process::ExitCode;

use serde_json::value::RawValue;
use towpath_step::{Context, Result};

async fn echo(body: Box<RawValue>, _: &Context<()>) -> Result<Box<RawValue>> {
    Ok(body)
}

fn main() -> ExitCode {
    towpath_step::action(echo)
}
