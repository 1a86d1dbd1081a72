//! The naive limit: what RabbitMQ and lapin give when every message is a delivery of its own and
//! nothing is done with it. Durable, everything confirmed before it is acknowledged, confirms
//! pipelined; three quorum queues in a row, like a trigger and three actions.

use std::collections::VecDeque;
use std::time::Instant;

use anyhow::{Context as _, Result};
use futures_util::StreamExt as _;
use lapin::options::{BasicAckOptions, BasicPublishOptions, QueueDeleteOptions};
use lapin::{Channel, Connection, PublisherConfirm};
use tokio::task::JoinSet;

use crate::{Plan, broker};

const QUEUES: [&str; 3] = [
    "towpath-bench.naive.1",
    "towpath-bench.naive.2",
    "towpath-bench.naive.3",
];
/// Open confirms on a channel.
const WINDOW: u16 = 1_000;

/// Messages a second through all three queues.
pub(crate) async fn measure(plan: &Plan) -> Result<f64> {
    let connection = broker::connect(&plan.broker_url).await?;
    let channel = connection.create_channel().await?;
    for queue in QUEUES {
        broker::queue(&channel, queue).await?;
    }
    let mut tasks = JoinSet::new();
    let mut connections: Vec<Connection> = Vec::new();
    for pair in QUEUES.windows(2) {
        let own = broker::connect(&plan.broker_url).await?;
        let consuming = own.create_channel().await?;
        let publishing = broker::publisher(&own).await?;
        connections.push(own);
        tasks.spawn(forward(
            consuming,
            publishing,
            pair[0],
            pair[1],
            plan.naive_messages,
        ));
    }
    let last = broker::connect(&plan.broker_url).await?;
    let consuming = last.create_channel().await?;
    let count = plan.naive_messages;
    let sink = tokio::task::JoinSet::from_iter([sink(consuming, count)]);
    let publishing = broker::publisher(&connection).await?;
    let began = Instant::now();
    publish_all(&publishing, count).await?;
    for ended in sink.join_all().await {
        ended?;
    }
    let rate = count as f64 / began.elapsed().as_secs_f64();
    tasks
        .join_all()
        .await
        .into_iter()
        .collect::<Result<Vec<()>>>()?;
    for queue in QUEUES {
        channel
            .queue_delete(queue.into(), QueueDeleteOptions::default())
            .await?;
    }
    Ok(rate)
}

async fn publish_all(channel: &Channel, count: u64) -> Result<()> {
    let body = vec![b'x'; 256];
    let mut open = VecDeque::new();
    for _ in 0..count {
        open.push_back(publish(channel, QUEUES[0], &body).await?);
        if open.len() >= usize::from(WINDOW) {
            open.pop_front().context("a confirm is open")?.await?;
        }
    }
    for confirm in open {
        confirm.await?;
    }
    Ok(())
}

async fn publish(channel: &Channel, queue: &str, body: &[u8]) -> Result<PublisherConfirm> {
    let options = BasicPublishOptions::default();
    Ok(channel
        .basic_publish("".into(), queue.into(), options, body, broker::durable())
        .await?)
}

async fn forward(
    consuming: Channel,
    publishing: Channel,
    from: &str,
    to: &str,
    count: u64,
) -> Result<()> {
    let mut deliveries = broker::consume(&consuming, from, WINDOW, false).await?;
    let mut open: VecDeque<(u64, PublisherConfirm)> = VecDeque::new();
    let mut taken = 0;
    while taken < count || !open.is_empty() {
        if taken < count && open.len() < usize::from(WINDOW / 2) {
            tokio::select! {
                biased;
                Some(delivery) = deliveries.next() => {
                    let delivery = delivery?;
                    taken += 1;
                    open.push_back((delivery.delivery_tag, publish(&publishing, to, &delivery.data).await?));
                    continue;
                }
                // Nothing to take: settle what is open.
                () = std::future::ready(()), if !open.is_empty() => {}
            }
        }
        if let Some((tag, confirm)) = open.pop_front() {
            confirm.await?;
            consuming.basic_ack(tag, BasicAckOptions::default()).await?;
        }
    }
    Ok(())
}

async fn sink(channel: Channel, count: u64) -> Result<()> {
    let mut deliveries = broker::consume(&channel, QUEUES[2], WINDOW, false).await?;
    for taken in 1..=count {
        let delivery = deliveries.next().await.context("the consumer ended")??;
        if taken % 100 == 0 || taken == count {
            let options = BasicAckOptions { multiple: true };
            channel.basic_ack(delivery.delivery_tag, options).await?;
        }
    }
    Ok(())
}
