//! A trigger that runs for ever: it follows a file that others append lines to, and goes on after the
//! line that it saved last. In the flow: `stream: true`.
use std::process::ExitCode;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt as _, AsyncSeekExt as _, BufReader, SeekFrom};
use towpath_step::{Context, Result, Tick};

#[derive(Deserialize, JsonSchema)]
struct Config {
    /// The file.
    path: String,
}

/// How often the file is looked at once its end is reached.
const LOOK: Duration = Duration::from_millis(200);

/// The checkpoint is how many bytes were read.
async fn follow(tick: Tick<u64>, ctx: &Context<Config>) -> Result<()> {
    let mut at = tick.checkpoint.unwrap_or(0);
    let mut file = File::open(&ctx.config.path).await?;
    file.seek(SeekFrom::Start(at)).await?;
    let mut lines = BufReader::new(file);
    let mut line = String::new();
    let mut saved = at;
    while !ctx.is_draining() {
        // A line that is not whole yet is read on where it ends.
        let read = lines.read_line(&mut line).await? as u64;
        if line.ends_with('\n') {
            // The same place gives the same message id, however often it is read.
            ctx.output(line.trim_end())
                .source_id(&at.to_string())
                .send()
                .await?;
            at += line.len() as u64;
            line.clear();
        } else if read == 0 {
            if saved < at {
                ctx.checkpoint(&at).await?; // returns when it is durable
                saved = at;
            }
            tokio::select! {
                () = ctx.draining() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }
    ctx.checkpoint(&at).await
}

fn main() -> ExitCode {
    towpath_step::poll(follow)
}
