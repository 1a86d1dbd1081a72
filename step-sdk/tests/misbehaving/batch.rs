//! A batch handler that takes as long as the longest of its messages says.

use std::process::ExitCode;
use std::time::Duration;

use towpath_step::{Context, Result, Step, tokio};

async fn wait(all: Vec<u64>, _: &Context<()>) -> Result<Vec<Result<()>>> {
    let longest = all.iter().max().copied().unwrap_or_default();
    tokio::time::sleep(Duration::from_millis(longest)).await;
    Ok(all.iter().map(|_| Ok(())).collect())
}

fn main() -> ExitCode {
    Step::batch(wait, 10).run()
}
