//! A trigger that counts: page by page and asking before it goes on, or for ever.

use std::process::ExitCode;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use towpath_step::{Context, Result, Step, StepError, Tick};

/// `with:` of the step.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Who is asked at each point whether to go on: `host:port`. Without it, it counts for ever.
    gate: Option<String>,
    /// How many pages there are.
    #[serde(default)]
    pages: u64,
    /// How many numbers are in a page.
    size: u64,
    /// Anything, so that there can be another version.
    #[serde(default)]
    #[expect(dead_code, reason = "it is there to be different")]
    note: String,
}

#[derive(Serialize, JsonSchema)]
struct Number {
    n: u64,
}

async fn count(tick: Tick<u64>, ctx: &Context<Config>) -> Result<()> {
    let config = &ctx.config;
    let mut page = tick.checkpoint.unwrap_or(0);
    let Some(gate) = &config.gate else {
        return for_ever(page, ctx).await;
    };
    while page < config.pages {
        ask(gate, "fetched", page).await?;
        emit(page, ctx).await?;
        ask(gate, "emitted", page).await?;
        ask(gate, "confirmed", page).await?;
        page += 1;
        ctx.checkpoint(&page).await?;
        ask(gate, "saved", page).await?;
    }
    Ok(())
}

async fn for_ever(mut page: u64, ctx: &Context<Config>) -> Result<()> {
    while !ctx.is_draining() {
        emit(page, ctx).await?;
        page += 1;
        ctx.checkpoint(&page).await?;
        tokio::select! {
            () = ctx.draining() => {}
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
    }
    Ok(())
}

async fn emit(page: u64, ctx: &Context<Config>) -> Result<()> {
    for n in page * ctx.config.size..(page + 1) * ctx.config.size {
        ctx.output(Number { n })
            .source_id(&n.to_string())
            .send()
            .await?;
    }
    Ok(())
}

/// Asks whether to go on; the answer is the end of the connection.
async fn ask(gate: &str, point: &str, page: u64) -> Result<()> {
    let mut connection = TcpStream::connect(gate).await?;
    let request = format!("GET /gate/{point}/{page} HTTP/1.0\r\nhost: gate\r\n\r\n");
    connection.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).await?;
    if answer.starts_with(b"HTTP/1.0 200") || answer.starts_with(b"HTTP/1.1 200") {
        return Ok(());
    }
    Err(StepError::retry("the gate does not let it through"))
}

fn main() -> ExitCode {
    Step::poll(count)
        .about("test-source", "1.0.0", "Counts")
        .run()
}
