//! Retries, on a simulated broker.

use std::time::Duration;

use towpath_protocol::message::BATCH_TYPE;
use towpath_protocol::office::Waiting;
use towpath_protocol::start::Identity;

use super::super::testing::{Bench, FLOW, draft};
use super::*;
use crate::broker::{Broker as _, Publication};
use crate::store::now_ms;

fn id(number: u8) -> MessageId {
    MessageId::from_bytes([number; 16])
}

/// A message that waits for `crm`, and the note about it.
async fn wait(bench: &Bench, number: u8) {
    let names = &bench.control.catalog.ground.names;
    let (exchange, key) = names.delayed(Duration::from_secs(600), "orders", "crm");
    let body = format!(
        r#"{{"id":"{}","lineage":{{"run":"{}","version":1,"at":1}},"body":1}}"#,
        id(number),
        id(0)
    );
    let publication = Publication {
        exchange,
        key,
        kind: BATCH_TYPE,
        body: body.into(),
        count: 1,
    };
    bench.broker.publish(publication).await.unwrap();
    let note = Waiting {
        identity: Identity {
            instance: "t".into(),
            flow: "orders".into(),
            step: "crm".into(),
            replica: 1,
            spec: "s".into(),
        },
        id: id(number),
        run: id(0),
        connection: "default".into(),
        attempt: 2,
        attempts: 5,
        rebounds: 0,
        replays: 0,
        is_rebound: false,
        reason: format!("the CRM refused order {number}"),
        since: now_ms(),
        due: now_ms() + 600_000,
    };
    let store = &bench.control.catalog.store;
    store.note_waiting(vec![note]).await.unwrap();
}

async fn bench() -> Bench {
    let bench = Bench::new().await;
    bench.control.apply(&draft(FLOW)).await.unwrap();
    bench.control.declare().await.unwrap();
    bench
}

fn some(numbers: &[u8]) -> RetrySelection {
    RetrySelection {
        ids: numbers.iter().map(|it| id(*it).to_string()).collect(),
        ..RetrySelection::default()
    }
}

fn step(name: &str) -> RetrySelection {
    RetrySelection {
        step: Some(name.into()),
        ..RetrySelection::default()
    }
}

#[tokio::test]
async fn what_waits_is_listed_brought_back_and_given_up() {
    let bench = bench().await;
    for number in 1..=4 {
        wait(&bench, number).await;
    }
    let control = &bench.control;
    let filter = RetryFilter {
        limit: Some(2),
        ..RetryFilter::default()
    };
    let list = control.retries("orders", &filter).await.unwrap();
    assert_eq!((list.total, list.waiting.len()), (4, 2));
    let groups: Vec<_> = list.groups.iter().map(|it| it.count).collect();
    assert_eq!(groups, [4], "{list:?}");
    assert_eq!(list.unnoted, None);
    let other = RetryFilter {
        step: Some("shape".into()),
        ..RetryFilter::default()
    };
    assert_eq!(control.retries("orders", &other).await.unwrap().total, 0);

    let dry = RetrySelection {
        dry_run: true,
        ..step("crm")
    };
    let would = control.retries_move("orders", &dry, Fate::Cancel).await;
    let would = would.unwrap();
    assert_eq!((would.changed, would.moved), (false, 4), "{would:?}");

    tokio::time::sleep(Duration::from_millis(5)).await;
    let back = control
        .retries_move("orders", &some(&[1, 3]), Fate::Now)
        .await;
    let back = back.unwrap();
    assert_eq!(back.message, "2 messages came back now");
    assert_eq!(bench.broker.ready("t.flow.orders.crm").len(), 2);
    let gone = control
        .retries_move("orders", &step("crm"), Fate::Cancel)
        .await;
    assert_eq!(gone.unwrap().message, "2 messages became dead letters");
    assert_eq!(bench.broker.ready("t.dead").len(), 2);
    let list = control.retries("orders", &RetryFilter::default()).await;
    assert_eq!(list.unwrap().total, 0);
    wait(&bench, 5).await;
    let text = control.metrics_text().await;
    let line = r#"towpath_retries_waiting{flow="orders",step="crm"} 1"#;
    assert!(text.contains(line), "{text}");
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused_and_nothing_is_done() {
    let bench = bench().await;
    wait(&bench, 1).await;
    let both = RetrySelection {
        all: true,
        ..some(&[1])
    };
    let words = RetrySelection {
        ids: vec!["abc".into()],
        ..RetrySelection::default()
    };
    for (flow, selection, code) in [
        ("orders", RetrySelection::default(), "bad_selection"),
        ("orders", both, "bad_selection"),
        ("orders", words, "bad_id"),
        ("orders", some(&[1, 9]), "not_waiting"),
        ("orders", step("nosuch"), "no_such_step"),
        ("nosuch", step("crm"), "no_such_flow"),
    ] {
        let control = &bench.control;
        let error = control.retries_move(flow, &selection, Fate::Now).await;
        let error = error.unwrap_err();
        assert_eq!(error.code, code, "{error}");
        assert!(error.hint.is_some() || code == "bad_id", "{error}");
        if code == "not_waiting" {
            assert!(error.message.contains(&id(9).to_string()), "{error}");
            assert!(!error.message.contains(&id(1).to_string()), "{error}");
        }
    }
    assert_eq!(bench.broker.ready("t.flow.orders.crm").len(), 0);
}

#[tokio::test]
async fn more_than_is_noted_is_said() {
    let bench = bench().await;
    let names = &bench.control.catalog.ground.names;
    for _ in 0..30 {
        let (exchange, key) = names.delayed(Duration::from_secs(600), "orders", "crm");
        let publication = Publication {
            exchange,
            key,
            kind: BATCH_TYPE,
            body: "{}".into(),
            count: 1,
        };
        bench.broker.publish(publication).await.unwrap();
    }
    let list = bench
        .control
        .retries("orders", &RetryFilter::default())
        .await;
    assert_eq!(list.unwrap().unnoted, Some(30));
}
