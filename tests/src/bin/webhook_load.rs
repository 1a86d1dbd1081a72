//! `webhook-load`: sends so many requests a second to a webhook, and says how long they took and
//! whether all that was acknowledged is in the queue. The step after the webhook must not run:
//! `towpath pause <flow>` first.

use std::io::Write as _;

use anyhow::{Result, ensure};
use clap::Parser;
use towpath_tests::load::{self, Load};

#[derive(Debug, Parser)]
struct Arguments {
    /// The webhook's URL
    url: String,
    /// Requests a second
    #[arg(long, default_value_t = 1_000)]
    rate: u32,
    /// For how long
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Gives each request an `Idempotency-Key`
    #[arg(long)]
    named: bool,
    /// The broker, with the virtual host: `amqp://user:password@host/vhost`
    #[arg(long, env = "TOWPATH_LOAD_BROKER", hide_env_values = true)]
    broker: String,
    /// The queue of the first step: `towpath.flow.<flow>.<step>`
    #[arg(long)]
    queue: String,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    ensure!(
        arguments.rate > 0 && arguments.seconds > 0,
        "rate and time are at least 1"
    );
    let figures = load::run(&Load {
        url: arguments.url,
        rate: arguments.rate,
        seconds: arguments.seconds,
        named: arguments.named,
        broker: arguments.broker,
        queue: arguments.queue,
    })
    .await?;
    writeln!(std::io::stdout(), "{figures}")?;
    ensure!(figures.missing == 0, "acknowledged messages are missing");
    Ok(())
}
