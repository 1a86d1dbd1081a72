//! Everything an agent needs, as one JSON document on its standard input.
//!
//! Standard input, because it is in no `docker inspect`, no log and no file: the document holds the
//! broker's credentials and the step's secrets.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::handing::Handing;
use crate::manifest::Kind;

/// The document.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Start {
    /// [`crate::CONTRACT`] of the control plane.
    pub contract: u32,
    /// `amqp://user:password@host:5672/vhost`, as seen from the container.
    pub broker_url: String,
    /// Who this is.
    pub identity: Identity,
    /// What the step is: ticks are handed over as ticks, everything else as messages.
    pub kind: Kind,
    /// Where things come from and go to.
    pub routes: Routes,
    /// The step's `with:`, secrets filled in.
    pub config: Box<RawValue>,
    /// Environment variables of the step process, on top of the image's; secrets filled in. Here,
    /// not in the container's own environment, because that is what `docker inspect` shows.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// The secrets in both: replaced by `***` in every log line, reason and report.
    #[serde(default)]
    pub redact: Vec<String>,
    /// How it is to be treated.
    pub settings: Settings,
    /// How messages are handed to it.
    #[serde(default)]
    pub handing: Handing,
    /// Start without consuming, until told to (see [`PAUSE_SIGNAL`]).
    #[serde(default)]
    pub paused: bool,
}

/// The signal that makes an agent stop consuming and finish what it holds: SIGUSR1.
pub const PAUSE_SIGNAL: &str = "SIGUSR1";

/// The signal that makes a paused agent consume again: SIGUSR2.
pub const RESUME_SIGNAL: &str = "SIGUSR2";

/// Which replica of which step this is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// Which Towpath: several may share an engine and a broker.
    pub instance: String,
    /// The flow.
    pub flow: String,
    /// The step's id in the flow.
    pub step: String,
    /// The number of the replica, from 1.
    pub replica: u32,
    /// The hash of what this replica was made from.
    pub spec: String,
}

/// The broker's names that this agent uses. It declares none of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routes {
    /// The queue to consume; of a step that keeps an order, its intake.
    pub queue: String,
    /// How the messages of this step are kept in order, if they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    /// The exchange that outputs are published to.
    pub outputs_exchange: String,
    /// Where the outputs of each port go. A port that is not here leads nowhere: its outputs are
    /// counted and dropped.
    pub outputs: BTreeMap<String, Output>,
    /// The routing key that brings a message back to this step: `<flow>.<step>`.
    pub own_key: String,
    /// The exchange that delivers to a step by its key: `own_key` without a delay.
    pub steps_exchange: String,
    /// The exchanges of the delay ladder; number `n` waits for `2^n ×` [`DELAY_UNIT_MS`].
    pub delay_exchanges: Vec<String>,
    /// The exchange for dead letters.
    pub dead_exchange: String,
    /// The exchange for reports, checkpoints and the ends of runs; see [`crate::office`].
    pub office_exchange: String,
}

/// Where the outputs of a port go: all of them to the steps behind `key`, and each to those branches
/// whose condition holds for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// The exchange of its keys; that of all outputs if it says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exchange: Option<String>,
    /// The routing key of the steps that take everything; none if each of them is a branch.
    pub key: Option<String>,
    /// The most messages to put in one batch: a slow successor wants small ones, so that its
    /// replicas share the work.
    pub batch_max: u32,
    /// Whether one of those keeps an order: then one batch is under way at a time, so that none
    /// overtakes another.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_order: bool,
    /// The steps that the key leads to: each gets every output.
    #[serde(default)]
    pub steps: Vec<String>,
    /// The steps that have a way of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub branches: Vec<Branch>,
}

/// A step that does not take everything: its own way out of a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Branch {
    /// The step.
    pub step: String,
    /// The routing key that leads to it alone; it names the step and what makes it a branch.
    pub key: String,
    /// The most messages to put in one batch.
    pub batch_max: u32,
    /// Whether it keeps an order: then one batch is under way at a time, so that none
    /// overtakes another.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_order: bool,
    /// A jq condition on the body: what it does not hold for does not go there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
    /// The steps of another flow that it leads to, as `<flow>/<step>`, if the step hands messages to
    /// that flow; empty if it is a step itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub handed_to: Vec<String>,
}

/// How the messages of a step are kept in order. What comes for it comes into its **intake**; one of
/// its replicas at a time reads that, computes the key of each message, and puts it into the partition
/// of its key, through the exchange of outputs. Of each partition one replica at a time handles one
/// message after the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// A jq expression on the body: messages for which it gives the same have the same key.
    pub by: String,
    /// The partitions.
    pub partitions: Vec<Partition>,
    /// The most messages that go into a partition together: who takes over a partition handles again
    /// what of a delivery was handled before, and all of a delivery must be settled before the broker
    /// takes it back.
    pub batch_max: u32,
}

/// A part of the messages of a step that keeps an order: those of some keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// Its queue.
    pub queue: String,
    /// The routing key that leads there, in the exchange of outputs.
    pub key: String,
}

/// Says which of so many partitions a key belongs to: the same in every process and release, or the
/// messages of a key would be in two of them.
pub fn partition_of(key: &str, partitions: usize) -> usize {
    let hash = blake3::hash(key.as_bytes());
    let bytes = hash.as_bytes().first_chunk::<8>();
    let number = u64::from_le_bytes(*bytes.expect("a hash has 32 bytes"));
    let partitions = u64::try_from(partitions.max(1)).unwrap_or(u64::MAX);
    usize::try_from(number % partitions).expect("it is less than a usize")
}

/// The finest delay, in milliseconds. A delay is a number of these, and its bits are the levels
/// of the ladder that a message waits in, one after the other: any delay is exact to this unit,
/// and no message waits behind a longer one.
pub const DELAY_UNIT_MS: u64 = 250;

/// The number of levels of the ladder: the longest delay is `(2^24 − 1) × 250 ms`, 48 days.
pub const DELAY_LEVELS: usize = 24;

/// Reads the delay in the routing key of a delivery in the ladder, in units of [`DELAY_UNIT_MS`];
/// none if the key is not that of a delay.
pub fn delay_units(routing_key: &str) -> Option<u32> {
    let mut words = routing_key.split('.');
    let mut units = 0;
    for _ in 0..DELAY_LEVELS {
        units = units << 1
            | match words.next()? {
                "0" => 0,
                "1" => 1,
                _ => return None,
            };
    }
    Some(units)
}

/// How a step is to be treated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// How it is spoken to.
    #[serde(default)]
    pub mode: Mode,
    /// The most messages in the hands of the step at a time.
    pub concurrency: u32,
    /// How long the step has for one message, in milliseconds; 0 is without limit.
    pub timeout_ms: u64,
    /// When a message that failed is tried again.
    pub retry: Retry,
    /// How often a step may say "later" of one message before it is a dead letter.
    pub rebounds_max: u32,
    /// A message that any replica of the step has settled is not handled again: agents claim each
    /// message in the ledger before they hand it over; see [`crate::office::Claim`].
    #[serde(default)]
    pub once: bool,
    /// It is a trigger that runs for ever (`stream: true`): it is told when it is to come to an end,
    /// and its run then ends well.
    #[serde(default)]
    pub stream: bool,
    /// What comes of each message is reported, so that it is known when a run is finished; see
    /// [`crate::runs`].
    #[serde(default)]
    pub track: bool,
    /// Messages come from other flows: what comes of them is reported if their lineage says so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub from_flows: bool,
    /// The largest body, in bytes.
    pub body_bytes_max: usize,
    /// How long a drain may take before the step is killed, in milliseconds.
    pub drain_ms: u64,
    /// The container's memory limit in bytes, to name it when it was the cause; 0 is none.
    #[serde(default)]
    pub memory_bytes: u64,
}

/// How a step process is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// With the frames of [`crate::frame`].
    #[default]
    Frames,
    /// Through `towpath-lines`, which stands between: the program knows nothing of Towpath.
    Lines,
}

/// When a message that failed is tried again: after `initial × factor^(attempt − 1)`, at most
/// `max`, give or take `jitter`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Retry {
    /// How many attempts there are in all, from 1.
    pub attempts: u32,
    /// The wait after the first, in milliseconds.
    pub initial_ms: u64,
    /// What each wait is multiplied by.
    pub factor: f64,
    /// The longest wait, in milliseconds.
    pub max_ms: u64,
    /// The part of each wait that is left to chance, from 0 to 1.
    pub jitter: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_belongs_to_the_same_partition_for_ever() {
        let of = |key| partition_of(key, 8);
        assert_eq!([of("a"), of("b"), of("4711"), of("")], [7, 0, 5, 7]);
        let mut counts = [0; 8];
        for number in 0..8_000 {
            counts[partition_of(&number.to_string(), 8)] += 1;
        }
        assert!(
            counts.iter().all(|count| (800..1200).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn a_delay_is_read_from_its_key() {
        let key = |units: u32| {
            let bits = (0..DELAY_LEVELS).rev().map(|level| units >> level & 1);
            let bits: Vec<String> = bits.map(|bit| bit.to_string()).collect();
            format!("{}.orders.crm", bits.join("."))
        };
        for units in [0, 1, 5, (1 << DELAY_LEVELS) - 1] {
            assert_eq!(delay_units(&key(units)), Some(units));
        }
        for other in [
            "",
            "orders.crm",
            "0.1.orders.crm",
            &key(5).replace("1.0.1", "1.2.1"),
        ] {
            assert_eq!(delay_units(other), None, "{other}");
        }
    }
}
