//! From a delivery to dead letters: pure.
//!
//! # Invariants
//!
//! - Every line becomes a dead letter, readable or not.
//! - `what_is_delivered_twice_is_stored_once`: the same line has the same digest each time.

use serde_json::value::RawValue;
use towpath_protocol::message::{Lineage, Message};
use towpath_protocol::office::{DEAD_TYPE, DeadCause, DeadLetter};
use towpath_protocol::{DEFAULT_CONNECTION, MessageId};

use super::lines;
use crate::broker::Delivery;
use crate::broker::topology::{DELIVERY_LIMIT, Names};
use crate::store::records::{DeadLetterRecord, DeadState};

/// Where something was when it was given up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Place {
    flow: String,
    step: String,
    port: Option<String>,
}

/// Reads the dead letters in a delivery of the queue of dead letters, or of what was lost.
pub fn of(names: &Names, delivery: &Delivery, now: u64) -> Vec<DeadLetterRecord> {
    if delivery.exchange == names.office() {
        tracing::error!(
            key = delivery.key,
            "news or reports reached no queue and are dropped"
        );
        return Vec::new();
    }
    let (place, cause, reason) = whose(names, delivery);
    lines(&delivery.body)
        .map(|line| {
            if delivery.kind == DEAD_TYPE
                && let Ok(letter) = serde_json::from_slice::<DeadLetter>(line)
            {
                return from_agent(letter);
            }
            given_up(&place, cause, &reason, line, now)
        })
        .collect()
}

/// Says which step a delivery belongs to that no agent wrote a dead letter about, and why it ended.
fn whose(names: &Names, delivery: &Delivery) -> (Place, DeadCause, String) {
    if let Some((queue, why)) = &delivery.given_up_by
        && let Some((flow, step)) = names.parse_queue(queue)
    {
        let place = Place {
            flow: flow.to_owned(),
            step: step.to_owned(),
            port: None,
        };
        let reason = if why == "delivery_limit" {
            format!(
                "it was delivered more than {DELIVERY_LIMIT} times and never settled: the agents \
                 that took it ended before they were done with it"
            )
        } else {
            format!("the broker gave it up: {why}")
        };
        return (place, DeadCause::Deliveries, reason);
    }
    let prefix = names.flow("");
    let place = if let Some(flow) = delivery.exchange.strip_prefix(&prefix)
        && let Some(to) = Names::parse_partition_key(&delivery.key)
            .or_else(|| Names::parse_branch_key(&delivery.key))
    {
        // It was on its way to this step alone, or into a partition of it.
        Place {
            flow: flow.to_owned(),
            step: to.to_owned(),
            port: None,
        }
    } else if let Some(flow) = delivery.exchange.strip_prefix(&prefix) {
        let (step, port) = Names::parse_port_key(&delivery.key);
        Place {
            flow: flow.to_owned(),
            step: step.to_owned(),
            port: Some(port.to_owned()),
        }
    } else {
        let mut words = delivery.key.rsplit('.');
        let step = words.next().unwrap_or_default().to_owned();
        Place {
            flow: words.next().unwrap_or_default().to_owned(),
            step,
            port: None,
        }
    };
    let reason = match &place.port {
        Some(port) => format!(
            "no step takes what leaves `{}` by the port `{port}`",
            place.step
        ),
        None => format!(
            "there is no queue for the step `{}` of flow `{}`",
            place.step, place.flow
        ),
    };
    (place, DeadCause::Unroutable, reason)
}

fn from_agent(letter: DeadLetter) -> DeadLetterRecord {
    let place = Place {
        flow: letter.identity.flow,
        step: letter.identity.step,
        port: None,
    };
    let DeadLetter {
        cause, reason, at, ..
    } = letter;
    let mut record = match serde_json::from_str::<Message<'_>>(letter.message.get()) {
        Ok(message) => about(&place, cause, &reason, &message, letter.message.clone(), at),
        Err(_) => unreadable(&place, cause, &reason, letter.message, at),
    };
    record.chain = letter.chain;
    if !letter.attempts.is_empty() {
        record.attempts = letter.attempts;
    }
    record.replica = letter.identity.replica;
    record
}

fn given_up(
    place: &Place,
    cause: DeadCause,
    reason: &str,
    line: &[u8],
    now: u64,
) -> DeadLetterRecord {
    if let Ok(text) = std::str::from_utf8(line)
        && let Ok(message) = serde_json::from_str::<Message<'_>>(text)
    {
        let raw = RawValue::from_string(text.trim().to_owned()).expect("it was just read as JSON");
        return about(place, cause, reason, &message, raw, now);
    }
    let text = serde_json::to_string(&String::from_utf8_lossy(line)).expect("a string is JSON");
    let raw = RawValue::from_string(text).expect("it was just written as JSON");
    unreadable(place, cause, reason, raw, now)
}

fn about(
    place: &Place,
    cause: DeadCause,
    reason: &str,
    message: &Message<'_>,
    raw: Box<RawValue>,
    at: u64,
) -> DeadLetterRecord {
    let lineage = serde_json::from_str::<Lineage>(message.lineage.get()).ok();
    DeadLetterRecord {
        version: lineage.as_ref().map_or(0, |lineage| lineage.version),
        connection: lineage.as_ref().map_or_else(
            || DEFAULT_CONNECTION.to_owned(),
            |lineage| lineage.connection.clone(),
        ),
        run: lineage.map(|lineage| lineage.run),
        message_id: message.id,
        attempts: message.history.clone(),
        replays: message.replays,
        ..unreadable(place, cause, reason, raw, at)
    }
}

fn unreadable(
    place: &Place,
    cause: DeadCause,
    reason: &str,
    raw: Box<RawValue>,
    at: u64,
) -> DeadLetterRecord {
    DeadLetterRecord {
        id: 0,
        flow: place.flow.clone(),
        step: place.step.clone(),
        port: place.port.clone(),
        version: 0,
        connection: DEFAULT_CONNECTION.to_owned(),
        run: None,
        message_id: MessageId::from_source(&place.flow, &place.step, "unreadable", raw.get()),
        cause,
        reason: reason.to_owned(),
        chain: Vec::new(),
        attempts: Vec::new(),
        replica: 0,
        at,
        replays: 0,
        state: DeadState::Open,
        message: raw,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use towpath_protocol::message::BATCH_TYPE;

    use super::*;

    const LINE: &str = r#"{"id":"00000000000000000000000000000001","lineage":{"run":"00000000000000000000000000000009","version":3,"at":5,"connection":"acme"},"replays":2,"body":{"a":1}}"#;

    fn delivery(exchange: &str, key: &str, kind: &str, body: &str) -> Delivery {
        let (settle, _) = tokio::sync::oneshot::channel();
        Delivery {
            is_redelivered: false,
            kind: kind.into(),
            body: Bytes::copy_from_slice(body.as_bytes()),
            key: key.into(),
            exchange: exchange.into(),
            reply: None,
            due: None,
            given_up_by: None,
            settle,
        }
    }

    fn read(delivery: &Delivery) -> Vec<DeadLetterRecord> {
        of(&Names::new("t"), delivery, 7)
    }

    #[test]
    fn what_the_broker_gave_up_is_split_into_single_letters() {
        let body = format!("{LINE}\n{{broken\n");
        let mut delivery = delivery("t.dead", "poll.out", BATCH_TYPE, &body);
        delivery.given_up_by = Some(("t.flow.orders.crm".into(), "delivery_limit".into()));
        let letters = read(&delivery);
        assert_eq!(letters.len(), 2);
        let first = &letters[0];
        assert_eq!(
            (first.flow.as_str(), first.step.as_str()),
            ("orders", "crm")
        );
        assert_eq!(
            (first.cause, first.version, first.replays),
            (DeadCause::Deliveries, 3, 2)
        );
        assert_eq!(first.connection, "acme");
        assert_eq!(first.message.get(), LINE);
        assert_eq!(letters[1].message.get(), r#""{broken""#);
        assert_ne!(first.digest(), letters[1].digest());
    }

    #[test]
    fn what_is_delivered_twice_is_stored_once() {
        let body = format!("{LINE}\n\u{0}garbage");
        let digests = || -> Vec<String> {
            let delivery = delivery("t.steps", "orders.gone", BATCH_TYPE, &body);
            read(&delivery)
                .iter()
                .map(DeadLetterRecord::digest)
                .collect()
        };
        assert_eq!(digests(), digests());
        assert_eq!(digests().len(), 2);
    }

    #[test]
    fn what_was_lost_says_where_it_was_going() {
        let check = |exchange: &str, key: &str, expect: (&str, &str, Option<&str>)| {
            let letters = read(&delivery(exchange, key, BATCH_TYPE, LINE));
            let letter = &letters[0];
            assert_eq!(letter.cause, DeadCause::Unroutable);
            assert_eq!(
                (
                    letter.flow.as_str(),
                    letter.step.as_str(),
                    letter.port.as_deref()
                ),
                expect
            );
        };
        let key = Names::port_key("poll", "out", ["crm"]);
        check("t.flow.orders", &key, ("orders", "poll", Some("out")));
        check("t.flow.orders", "poll.out", ("orders", "poll", Some("out")));
        check("t.flow.orders", "crm.partition.12", ("orders", "crm", None));
        check("t.steps", "orders.gone", ("orders", "gone", None));
        check("t.delay.1", "0.0.1.0.orders.gone", ("orders", "gone", None));
        check("t.steps", "odd", ("", "odd", None));
        let letters = {
            let mut delivery = delivery("t.dead", "crm.partition.1", BATCH_TYPE, LINE);
            delivery.given_up_by = Some(("t.flow.orders.crm.1".into(), "delivery_limit".into()));
            read(&delivery)
        };
        assert_eq!((&*letters[0].flow, &*letters[0].step), ("orders", "crm"));
    }

    #[test]
    fn an_agents_letter_is_taken_as_it_is() {
        let letter = format!(
            r#"{{"identity":{{"instance":"t","flow":"orders","step":"crm","replica":2,"spec":"s"}},"at":4,"cause":"permanent","reason":"no such deal","chain":["404"],"attempts":[{{"attempt":1,"at":3,"replica":2,"reason":"x"}}],"message":{LINE}}}"#
        );
        let letters = read(&delivery("t.dead", "", DEAD_TYPE, &letter));
        assert_eq!(letters.len(), 1);
        let letter = &letters[0];
        assert_eq!(
            (letter.cause, letter.replica, letter.at),
            (DeadCause::Permanent, 2, 4)
        );
        assert_eq!((letter.chain.len(), letter.attempts.len()), (1, 1));
        assert_eq!(letter.reason, "no such deal");
        assert_eq!(
            letter.message_id.to_string(),
            "00000000000000000000000000000001"
        );
    }
}
