//! `./bench`: what Towpath costs and what it gives, beside the naive way, in one run.
//!
//! It asserts nothing. Every figure is measured here and now, on real RabbitMQ and with real step
//! processes; ratios are against the naive limit of the same run. Printed as a table, and as JSON
//! with `--json FILE`.

mod broker;
mod figures;
mod naive;
mod pipeline;
mod start;

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use pipeline::Kept;

/// What to measure, from the environment.
pub(crate) struct Plan {
    /// `amqp://…`, from here.
    broker_url: String,
    /// What it is: `RabbitMQ 4.0.5`.
    broker_version: String,
    /// Where the binaries are.
    binaries: PathBuf,
    /// How many messages go through the whole flow.
    messages: u64,
    /// How many go through it with `once: true`, and with `track: true`.
    once_messages: u64,
    /// How many go the naive way.
    naive_messages: u64,
    /// How many are timed one by one.
    idle_messages: u64,
    /// `amqp://…`, from a container, and the network to be on; none leaves containers out.
    docker: Option<(String, String)>,
}

impl Plan {
    fn from_env() -> Result<Self> {
        let number = |name: &str, default: u64| -> Result<u64> {
            match std::env::var(name) {
                Ok(text) => text
                    .parse()
                    .with_context(|| format!("`{name}` is not a number: `{text}`")),
                Err(_) => Ok(default),
            }
        };
        let own = std::env::current_exe().context("cannot find this program")?;
        Ok(Self {
            broker_url: std::env::var("TOWPATH_BENCH_BROKER")
                .context("`TOWPATH_BENCH_BROKER` is not set: run `./bench`")?,
            broker_version: std::env::var("TOWPATH_BENCH_BROKER_VERSION")
                .unwrap_or_else(|_| "unknown".to_owned()),
            binaries: own
                .parent()
                .context("this program is in no folder")?
                .to_owned(),
            messages: number("TOWPATH_BENCH_MESSAGES", 1_000_000)?,
            once_messages: number("TOWPATH_BENCH_ONCE_MESSAGES", 200_000)?,
            naive_messages: number("TOWPATH_BENCH_NAIVE_MESSAGES", 50_000)?,
            idle_messages: number("TOWPATH_BENCH_IDLE_MESSAGES", 1_000)?,
            docker: std::env::var("TOWPATH_BENCH_AGENT_BROKER")
                .ok()
                .zip(std::env::var("TOWPATH_BENCH_NETWORK").ok()),
        })
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let plan = Plan::from_env()?;
    let mut figures = figures::Figures::of_this_machine(&plan);
    measure_idle(&plan, &mut figures).await?;
    figures.progress("the naive way: raw lapin, one message a delivery");
    let naive = naive::measure(&plan).await.context("the naive way")?;
    figures.add(
        "naive",
        "messages/s through three queues, raw lapin, no work",
        naive,
        "msg/s",
    );
    figures.progress("loaded: as fast as they come through a trigger and three actions");
    let loaded = pipeline::loaded(&plan, plan.messages, Kept::Nothing)
        .await
        .context("as fast as they come")?;
    figures.add(
        "flow",
        "messages/s through a trigger and three actions",
        loaded.rate,
        "msg/s",
    );
    figures.ratio(
        "flow_over_naive",
        "the flow over the naive limit",
        loaded.rate / naive,
    );
    figures.add(
        "agent_loaded",
        "resident memory of an agent after the load",
        loaded.agent_mib,
        "MiB",
    );
    figures.add(
        "step_loaded",
        "resident memory of a Rust step after the load",
        loaded.step_mib,
        "MiB",
    );
    figures.progress("loaded, with `once: true` on the three actions");
    let once = pipeline::loaded(&plan, plan.once_messages, Kept::Settlements)
        .await
        .context("as fast as they come, with `once: true`")?;
    figures.add(
        "once",
        "messages/s, `once: true` on three actions",
        once.rate,
        "msg/s",
    );
    figures.ratio(
        "once_over_flow",
        "the flow with `once: true` over the flow without",
        once.rate / loaded.rate,
    );
    figures.ratio(
        "once_over_naive",
        "the flow with `once: true` over the naive limit",
        once.rate / naive,
    );
    measure_tracked(&plan, loaded.rate, &mut figures).await?;
    if let Some((url, network)) = &plan.docker {
        figures.progress("containers: from create to the first message");
        let seconds = start::measure(&plan, url, network)
            .await
            .context("starting containers")?;
        figures.add(
            "first_message",
            "from `docker create` to the first message out",
            seconds * 1000.0,
            "ms",
        );
    }
    figures.print(
        std::env::args()
            .skip_while(|word| word != "--json")
            .nth(1)
            .map(PathBuf::from),
    )
}

/// The same with `track: true`.
async fn measure_tracked(
    plan: &Plan,
    untracked: f64,
    figures: &mut figures::Figures,
) -> Result<()> {
    figures.progress("loaded, with `track: true`");
    let tracked = pipeline::loaded(plan, plan.once_messages, Kept::Runs)
        .await
        .context("as fast as they come, with `track: true`")?;
    figures.add(
        "track",
        "messages/s through a trigger and three actions, `track: true`",
        tracked.rate,
        "msg/s",
    );
    figures.ratio(
        "track_over_flow",
        "the flow with `track: true` over the flow without",
        tracked.rate / untracked,
    );
    figures.add(
        "track_behind",
        "until it was known what came of all of them, after the last",
        tracked.behind_ms.unwrap_or_default(),
        "ms",
    );
    Ok(())
}

/// One message at a time. It comes first: after a load, the broker is busy with its log for a while.
async fn measure_idle(plan: &Plan, figures: &mut figures::Figures) -> Result<()> {
    figures.progress("idle: one message at a time through a trigger and three actions");
    let idle = pipeline::idle(plan, Kept::Nothing)
        .await
        .context("one message at a time")?;
    figures.add(
        "idle_p50",
        "idle: trigger to the end of the flow, p50",
        idle.p50_ms,
        "ms",
    );
    figures.add(
        "idle_p99",
        "idle: trigger to the end of the flow, p99",
        idle.p99_ms,
        "ms",
    );
    figures.add(
        "agent_idle",
        "resident memory of an idle agent",
        idle.agent_mib,
        "MiB",
    );
    figures.add(
        "step_idle",
        "resident memory of an idle Rust step",
        idle.step_mib,
        "MiB",
    );
    figures.progress("idle, with `once: true` on the three actions");
    let idle_once = pipeline::idle(plan, Kept::Settlements)
        .await
        .context("one message at a time, with `once: true`")?;
    figures.add(
        "once_idle_p50",
        "idle, `once: true` on three actions, p50",
        idle_once.p50_ms,
        "ms",
    );
    Ok(())
}
