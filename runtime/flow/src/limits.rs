//! Every limit and every default of a flow file, in one place, each with its reason.

use std::ops::RangeInclusive;
use std::time::Duration;

use towpath_protocol::start::Retry;

/// The largest flow file: 1 MiB. It is read, sent and kept whole.
pub const FILE_BYTES_MAX: usize = 1 << 20;

/// The most levels of nesting: far more than a flow has, far less than a stack holds.
pub const NESTING_MAX: usize = 64;

/// The most diagnostics that are reported of one file; nobody reads more.
pub const DIAGNOSTICS_MAX: usize = 100;

/// The most actions of one flow. Each is at least one container and one queue.
pub const ACTIONS_MAX: usize = 100;

/// The most entries of one `after`: each is a binding.
pub const AFTER_MAX: usize = 100;

/// How many partitions a step may have: each is a queue.
pub const PARTITIONS: RangeInclusive<u64> = 1..=64;

/// The partitions of a step that says nothing.
pub const PARTITIONS_DEFAULT: u32 = 8;

/// The longest that a message of a step with an order waits for its next attempt: it is not
/// acknowledged meanwhile, and the broker waits 30 minutes.
pub const HELD_MAX: Duration = Duration::from_secs(15 * 60);

/// The least rate of a step with an order, in messages a second: what waits for its turn in a
/// partition is not acknowledged meanwhile.
pub const ORDERED_RATE_MIN: f64 = 1.0;
/// The most bytes of a condition, and of what messages are ordered by: it is in the start document of
/// every replica.
pub const CONDITION_BYTES_MAX: usize = 4096;

/// The most characters of a name: four of them make a container's name.
pub const NAME_CHARS_MAX: usize = 48;

/// The most characters of a description: one sentence, in a table.
pub const DESCRIPTION_CHARS_MAX: usize = 500;

/// How many replicas a step may have: one host runs them.
pub const REPLICAS: RangeInclusive<u64> = 1..=64;

/// How few replicas an autoscaled step may have: none is asleep.
pub const REPLICAS_MIN: RangeInclusive<u64> = 0..=64;

/// How many messages one replica of an autoscaled step may be for.
pub const BACKLOG_PER_REPLICA: RangeInclusive<u64> = 1..=1_000_000;

/// Within which time the replicas of an autoscaled step may have to work off what waits: a container
/// takes about a second to start.
pub const SCALE_LATENCY: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(24 * 3600);

/// How many messages may be in the hands of one replica.
pub const CONCURRENCY: RangeInclusive<u64> = 1..=4096;

/// How many messages may be handed over together: all of them are in memory, in the agent and in the
/// step. One alone is no batch.
pub const BATCH_MAX: RangeInclusive<u64> = 2..=1_000;

/// How long a message may wait for others: with the time limit of a step, well below the 30 minutes
/// that the broker waits for it. Longer than this is a schedule, not a batch.
pub const BATCH_WAIT: RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(10 * 60);

/// How low a rate may be for a step with batches, in batches a second: 64 replicas then have one
/// a minute each, and what they hold does not wait for longer than the broker does.
pub const BATCH_RATE_MIN: f64 = 1.0;

/// How many messages there may be in the time of a `rate`: beyond a million a second there is nothing
/// to hold back.
pub const RATE_COUNT: RangeInclusive<u64> = 1..=1_000_000;

/// How often a trigger may fire: a container is not a real-time clock.
pub const EVERY: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(365 * 24 * 3600);

/// How long a step may have for one message. Zero, which is without limit, is apart.
pub const TIMEOUT: RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(7 * 24 * 3600);

/// The time limit of actions and webhook triggers. A poll trigger has none: it reads as long as
/// there is something to read.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

/// Above this a step may hold a message for longer than the broker waits for an acknowledgement
/// (30 minutes): it then delivers the message again while the first attempt still runs.
pub const TIMEOUT_WARNING: Duration = Duration::from_secs(25 * 60);

/// How many attempts there may be.
pub const RETRY_ATTEMPTS: RangeInclusive<u64> = 1..=100;

/// How long the waits between attempts may be: the broker's delay ladder reaches to 48 days.
pub const RETRY_WAIT: RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(30 * 24 * 3600);

/// What each wait may be multiplied by.
pub const RETRY_FACTOR: RangeInclusive<f64> = 1.0..=10.0;

/// The part of a wait that may be left to chance.
pub const RETRY_JITTER: RangeInclusive<f64> = 0.0..=1.0;

/// What a replica's memory limit may be: agent and step need 16 MiB to start.
pub const MEMORY_BYTES: RangeInclusive<u64> = (16 << 20)..=(1 << 40);

/// What it is when the flow says nothing: 256 MiB.
pub const MEMORY_BYTES_DEFAULT: u64 = 256 << 20;

/// How many processors a replica may have.
pub const CPUS: RangeInclusive<f64> = 0.01..=256.0;

/// How many it has when the flow says nothing.
pub const CPUS_DEFAULT: f64 = 1.0;

/// How many processes and threads a replica may have: the agent alone has several.
pub const PIDS: RangeInclusive<u64> = 16..=32_768;

/// How many when the flow says nothing.
pub const PIDS_DEFAULT: u32 = 256;

/// When a message that failed is tried again, unless the flow says otherwise: eight attempts
/// within about two minutes.
pub const RETRY_DEFAULT: Retry = Retry {
    attempts: 8,
    initial_ms: 1_000,
    factor: 2.0,
    max_ms: 600_000,
    jitter: 0.2,
};

/// The most secrets that are good at a time: the one before, the one now, the one to come, and some.
pub const WEBHOOK_SECRETS_MAX: usize = 8;

/// The most characters of a header's name, a user or a prefix: each request is compared with them.
pub const WEBHOOK_TEXT_CHARS_MAX: usize = 128;

/// The most keys on the way to the id in a body.
pub const WEBHOOK_ID_KEYS_MAX: usize = 16;

/// How far the time of a signed request may be from ours.
pub const WEBHOOK_TOLERANCE: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(24 * 3600);

/// How far when the flow says nothing: what Stripe, Slack and Standard Webhooks recommend.
pub const WEBHOOK_TOLERANCE_DEFAULT: Duration = Duration::from_secs(5 * 60);

/// How long a request may wait for its answer: each holds a connection, and what stands between the
/// sender and us cuts off those that are silent for minutes.
pub const WEBHOOK_REPLY: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(10 * 60);

/// How many messages a webhook may be limited to; more than one broker takes is no limit.
pub const WEBHOOK_RATE: RangeInclusive<u64> = 1..=100_000;
