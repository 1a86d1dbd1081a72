//! From `docker create` to the first message out of a container.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use towpath_protocol::manifest::Kind;

use crate::{Plan, broker, pipeline};

/// How often it is measured; the median counts.
const ROUNDS: usize = 5;
const VOLUME: &str = "towpath-bench-agent";
const IMAGE: &str = "towpath/bench-work:bench";

/// Seconds from the first call to the engine to the first message at the end of a step's outputs.
pub(crate) async fn measure(plan: &Plan, url: &str, network: &str) -> Result<f64> {
    let connection = broker::connect(&plan.broker_url).await?;
    let channel = broker::publisher(&connection).await?;
    pipeline::remove(&channel).await?;
    pipeline::declare(plan).await?;
    let consuming = connection.create_channel().await?;
    let mut after = broker::consume(&consuming, &pipeline::queue("second"), 0, true).await?;
    docker(&["volume", "create", VOLUME]).await?;
    let filler = docker(&[
        "create",
        "-v",
        &format!("{VOLUME}:/.towpath"),
        "--entrypoint",
        "/.towpath/agent",
        IMAGE,
    ])
    .await?;
    let agent = plan.binaries.join("towpath-agent").display().to_string();
    docker(&["cp", &agent, &format!("{filler}:/.towpath/agent")]).await?;
    docker(&["rm", "-v", &filler]).await?;

    let document = serde_json::to_vec(&pipeline::start(
        1,
        Kind::Action,
        0,
        pipeline::Kept::Nothing,
        url,
    )?)?;
    let mut times = Vec::new();
    for number in 0..ROUNDS {
        // The message waits in the queue, so that the time is that of the container alone.
        pipeline::publish(
            &channel,
            "first",
            &pipeline::order(number as u64).to_string(),
        )
        .await?;
        let began = Instant::now();
        let name = format!("towpath-bench-{number}");
        let volume = format!("{VOLUME}:/.towpath:ro");
        docker(&[
            "create",
            "-i",
            "--name",
            &name,
            "--network",
            network,
            "--read-only",
            "--tmpfs",
            "/tmp",
            "-v",
            &volume,
            "--user",
            "0",
            "--cap-drop",
            "ALL",
            "--cap-add",
            "SETUID",
            "--cap-add",
            "SETGID",
            "--cap-add",
            "KILL",
            "--security-opt",
            "no-new-privileges",
            "--entrypoint",
            "/.towpath/agent",
            IMAGE,
            "--user",
            "65534",
            "--",
            "/program",
        ])
        .await?;
        let mut container = Command::new("docker")
            .args(["start", "-ai", &name])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut stdin = container.stdin.take().context("no standard input")?;
        stdin.write_all(&document).await?;
        drop(stdin);
        let arrived = tokio::time::timeout(Duration::from_secs(60), after.next()).await;
        times.push(began.elapsed().as_secs_f64());
        docker(&["rm", "-f", "-v", &name]).await?;
        container.wait().await?;
        arrived
            .context("nothing came out of the container for a minute")?
            .context("the consumer ended")??;
    }
    docker(&["volume", "rm", VOLUME]).await?;
    pipeline::remove(&channel).await?;
    times.sort_by(f64::total_cmp);
    Ok(times[ROUNDS / 2])
}

async fn docker(arguments: &[&str]) -> Result<String> {
    let output = Command::new("docker")
        .args(arguments)
        .output()
        .await
        .context("cannot run docker")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "docker {}: {said}",
        arguments.join(" ")
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
