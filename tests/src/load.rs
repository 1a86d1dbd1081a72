//! So many requests a second to a webhook, whatever becomes of them, and then a look into the queue.
//!
//! # Invariants
//!
//! - Requests go out by the clock, not by the answers: one that is answered late delays no other, and
//!   its time counts from when it was to go out.
//! - The queue is as it was afterwards: what is read of it is given back.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use serde::Deserialize;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

/// The most requests under way: as many as the control plane lets wait, and some that it refuses.
const UNDER_WAY_MAX: usize = 2_048;

/// How many messages are taken out of the queue before they are acknowledged.
const UNACKNOWLEDGED_MAX: u16 = 2_000;

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What to send, and where it should be afterwards.
#[derive(Debug, Clone)]
pub struct Load {
    /// The webhook's URL.
    pub url: String,
    /// Requests a second.
    pub rate: u32,
    /// For how long.
    pub seconds: u32,
    /// Whether each request has an `Idempotency-Key`.
    pub named: bool,
    /// The broker: `amqp://…`.
    pub broker: String,
    /// The queue of the step after the webhook, which must not run.
    pub queue: String,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// Requests sent.
    pub sent: u64,
    /// How many were answered with each status; `failed` without an answer.
    pub answers: BTreeMap<String, u64>,
    /// How long answers of 202 took, sorted, in milliseconds.
    pub took_ms: Vec<f64>,
    /// From the first request to the last answer.
    pub seconds: f64,
    /// Messages that were acknowledged.
    pub acknowledged: u64,
    /// Messages in the queue.
    pub in_queue: u64,
    /// Messages that were acknowledged and are not in the queue.
    pub missing: u64,
    /// Messages that are in the queue more than once.
    pub repeated: u64,
}

impl Figures {
    /// The time within which this part of the answers came, in milliseconds.
    pub fn quantile_ms(&self, part: f64) -> f64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a place in a list"
        )]
        let at = ((self.took_ms.len().saturating_sub(1)) as f64 * part).round() as usize;
        self.took_ms.get(at).copied().unwrap_or_default()
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            formatter,
            "{} requests in {:.1}s: {:.0} a second",
            self.sent,
            self.seconds,
            self.sent as f64 / self.seconds
        )?;
        for (answer, count) in &self.answers {
            writeln!(formatter, "  answered {answer}: {count}")?;
        }
        let [p50, p99, most] = [0.5, 0.99, 1.0].map(|part| self.quantile_ms(part));
        writeln!(
            formatter,
            "  time to 202: p50 {p50:.1} ms, p99 {p99:.1} ms, longest {most:.1} ms"
        )?;
        write!(
            formatter,
            "  acknowledged {}, in the queue {}: {} missing, {} more than once",
            self.acknowledged, self.in_queue, self.missing, self.repeated
        )
    }
}

/// The answer to one request.
struct Outcome {
    answer: String,
    id: Option<String>,
    took: Duration,
}

/// Sends, waits for every answer, and looks into the queue.
pub async fn run(load: &Load) -> Result<Figures> {
    // Somebody else may have been first; then theirs serves as well.
    drop(rustls::crypto::ring::default_provider().install_default());
    let client = reqwest::Client::builder()
        .timeout(PATIENCE)
        .tls_certs_only([])
        .build()
        .context("a client cannot be made")?;
    let total = u64::from(load.rate) * u64::from(load.seconds);
    let began = Instant::now();
    let (mut requests, mut outcomes) = (JoinSet::new(), Vec::new());
    for number in 0..total {
        let due = began + Duration::from_secs_f64(number as f64 / f64::from(load.rate));
        sleep_until(due).await;
        if requests.len() >= UNDER_WAY_MAX
            && let Some(done) = requests.join_next().await
        {
            outcomes.push(done?);
        }
        while let Some(done) = requests.try_join_next() {
            outcomes.push(done?);
        }
        requests.spawn(send(client.clone(), load.clone(), number, due));
    }
    while let Some(done) = requests.join_next().await {
        outcomes.push(done?);
    }
    let mut figures = Figures {
        sent: total,
        seconds: began.elapsed().as_secs_f64(),
        ..Figures::default()
    };
    let mut acknowledged = BTreeSet::new();
    for outcome in outcomes {
        *figures.answers.entry(outcome.answer).or_default() += 1;
        if let Some(id) = outcome.id {
            figures.took_ms.push(outcome.took.as_secs_f64() * 1e3);
            acknowledged.insert(id);
        }
    }
    figures.took_ms.sort_by(f64::total_cmp);
    figures.acknowledged = acknowledged.len() as u64;
    let queue = take_queue(&load.broker, &load.queue).await?;
    figures.in_queue = queue.values().sum();
    figures.repeated = queue.values().filter(|count| **count > 1).count() as u64;
    let is_missing = |id: &&String| !queue.contains_key(*id);
    figures.missing = acknowledged.iter().filter(is_missing).count() as u64;
    Ok(figures)
}

#[derive(Deserialize)]
struct WithId {
    id: String,
}

async fn send(client: reqwest::Client, load: Load, number: u64, due: Instant) -> Outcome {
    let body = json!({
        "order": number,
        "customer": format!("customer-{}", number % 500),
        "lines": [{ "sku": "T-1000", "count": 2, "price_cents": 1999 }, { "sku": "T-2000", "count": 1, "price_cents": 4950 }],
        "note": "as large as a small order is",
    });
    let mut request = client.post(&load.url).json(&body);
    if load.named {
        request = request.header("idempotency-key", format!("order-{number}"));
    }
    let (answer, id) = match request.send().await {
        Err(error) if error.is_timeout() => ("timed out".to_owned(), None),
        Err(_) => ("failed".to_owned(), None),
        Ok(response) => {
            let status = response.status().as_u16();
            let taken: Option<WithId> = response.json().await.ok();
            let id = taken.filter(|_| status == 202).map(|taken| taken.id);
            (status.to_string(), id)
        }
    };
    Outcome {
        answer,
        id,
        took: due.elapsed(),
    }
}

/// Takes the messages out of a queue: how often each was there.
async fn take_queue(broker: &str, queue: &str) -> Result<HashMap<String, u64>> {
    let connection = Connection::connect(broker, ConnectionProperties::default())
        .await
        .context("the broker cannot be reached")?;
    let channel = connection.create_channel().await?;
    let passive = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let declared = channel.queue_declare(queue.into(), passive, FieldTable::default());
    let count = declared
        .await
        .context("there is no such queue")?
        .message_count();
    channel
        .basic_qos(UNACKNOWLEDGED_MAX, BasicQosOptions::default())
        .await?;
    let consume = channel.basic_consume(
        queue.into(),
        "load".into(),
        BasicConsumeOptions::default(),
        FieldTable::default(),
    );
    let mut deliveries = consume.await?;
    let mut found = HashMap::new();
    for number in 1..=count {
        let delivery = timeout(PATIENCE, deliveries.next())
            .await
            .with_context(|| format!("message {number} of {count} does not come"))?
            .context("the broker ends what it delivers")??;
        for line in delivery.data.split(|byte| *byte == b'\n') {
            let message: WithId = serde_json::from_slice(line).context("a line is no message")?;
            *found.entry(message.id).or_default() += 1;
        }
        if number % u32::from(UNACKNOWLEDGED_MAX / 2) == 0 || number == count {
            delivery.ack(BasicAckOptions { multiple: true }).await?;
        }
    }
    connection.close(200, "done".into()).await?;
    ensure!(!found.is_empty(), "the queue `{queue}` is empty");
    Ok(found)
}
