//! Tests of checkpoints, runs and dead letters.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use towpath_protocol::MessageId;
use towpath_protocol::frame::Why;
use towpath_protocol::message::PastAttempt;
use towpath_protocol::office::DeadCause;

use super::Store;
use super::checkpoints::{CheckpointKey, Saved, Written};
use super::dead_letters::DeadQuery;
use super::flows::NewVersion;
use super::records::{DeadLetterRecord, DeadState, RunRecord, RunState};

async fn store() -> Store {
    let store = Store::in_memory().unwrap();
    let version = NewVersion {
        flow: "orders".into(),
        file: "orders.yaml".into(),
        source: Vec::new(),
        env: BTreeMap::new(),
        images: BTreeMap::new(),
        hash: String::new(),
        webhook_key: None,
        steps: Vec::new(),
        scaled: Vec::new(),
        removed: Vec::new(),
        ..NewVersion::default()
    };
    store.store_version(version).await.unwrap();
    store
}

fn raw(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.into()).unwrap()
}

fn run(number: u8) -> RunRecord {
    RunRecord {
        id: MessageId::from_bytes([number; 16]),
        flow: "orders".into(),
        step: "poll".into(),
        connection: "default".into(),
        version: 1,
        why: Why::Manual,
        state: RunState::Recorded,
        due: u64::from(number),
        started_at: u64::from(number),
        ended_at: None,
        emitted: None,
        attempts: 0,
        next_at: None,
        reason: None,
        payload: Some(raw(r#"{"a":1}"#)),
        tracked: false,
        cancel_at: None,
    }
}

fn letter(step: &str) -> DeadLetterRecord {
    DeadLetterRecord {
        id: 0,
        flow: "orders".into(),
        step: step.into(),
        port: None,
        version: 1,
        connection: "default".into(),
        run: Some(run(1).id),
        message_id: MessageId::from_bytes([9; 16]),
        cause: DeadCause::Permanent,
        reason: "no such deal".into(),
        chain: vec!["404".into()],
        attempts: vec![PastAttempt {
            attempt: 1,
            at: 5,
            replica: 2,
            reason: "404".into(),
            log: Vec::new(),
        }],
        replica: 2,
        at: 7,
        replays: 0,
        state: DeadState::Open,
        message: raw(r#"{"id":"x", "body":1}"#),
    }
}

fn position(connection: &str) -> CheckpointKey {
    CheckpointKey {
        flow: "orders".into(),
        step: "poll".into(),
        connection: connection.into(),
    }
}

#[tokio::test]
async fn only_the_active_run_moves_the_checkpoint() {
    let store = store().await;
    let key = position("default");
    let save = async |run: u8, value: &str, follows| {
        let id = MessageId::from_bytes([run; 16]);
        store
            .save_checkpoint(&key, id, 1, raw(value), follows)
            .await
            .unwrap()
    };
    assert!(store.run_started(&run(1)).await.unwrap());
    assert_eq!(save(1, "1", Some(0)).await, Saved::Yes);
    // An agent of before there were versions.
    assert_eq!(save(1, r#"{"a":2}"#, None).await, Saved::Yes);
    assert_eq!(save(2, "3", None).await, Saved::NotActive);
    store
        .run_ended(run(1).id, RunState::Abandoned, 9, None, None)
        .await
        .unwrap();
    assert_eq!(save(1, "4", Some(2)).await, Saved::NotActive);
    let found = store.checkpoint(&key).await.unwrap().unwrap();
    assert_eq!(found.value.unwrap().get(), r#"{"a":2}"#);
    assert_eq!((found.version, found.run), (2, Some(run(1).id)));
    let other = store.checkpoint(&position("other")).await.unwrap();
    assert!(other.is_none());
    store
        .delete_flow("orders", Vec::new(), false)
        .await
        .unwrap();
    assert!(store.checkpoint(&key).await.unwrap().is_none());
}

#[tokio::test]
async fn of_two_writers_only_the_one_who_saw_the_last_version_writes() {
    let store = store().await;
    let key = position("default");
    let id = run(1).id;
    assert!(store.run_started(&run(1)).await.unwrap());
    let save = async |number, value: &str, follows| {
        store
            .save_checkpoint(&key, id, number, raw(value), Some(follows))
            .await
            .unwrap()
    };
    assert_eq!(save(1, "1", 0).await, Saved::Yes);
    assert_eq!(save(2, "2", 1).await, Saved::Yes);
    // The same agent, cut off for long, with what it said before.
    let overtaken = Saved::Overtaken { version: 2 };
    assert_eq!(save(1, "1", 0).await, overtaken);

    // A person, while the run is active.
    let write = async |value: Option<&str>, follows, force| {
        store
            .write_checkpoint(&key, value.map(raw), follows, force)
            .await
            .unwrap()
    };
    assert_eq!(
        write(Some("9"), None, false).await,
        Written::Active { run: id }
    );
    assert_eq!(
        write(Some("9"), Some(1), true).await,
        Written::Changed { version: 2 }
    );
    assert_eq!(
        write(Some("9"), Some(2), true).await,
        Written::Yes { version: 3 }
    );
    // The run goes on, and does not undo it.
    assert_eq!(save(3, "3", 2).await, Saved::Overtaken { version: 3 });
    let found = store.checkpoint(&key).await.unwrap().unwrap();
    assert_eq!((found.value.unwrap().get(), found.run), ("9", None));

    // What is taken away keeps its version: nothing of before fits again.
    assert_eq!(write(None, None, true).await, Written::Yes { version: 4 });
    assert_eq!(save(4, "4", 0).await, Saved::Overtaken { version: 4 });
    let found = store.checkpoint(&key).await.unwrap().unwrap();
    assert!(found.value.is_none());
    assert_eq!(save(1, "1", 4).await, Saved::Yes);
}

#[tokio::test]
async fn a_save_that_is_said_twice_is_stored_once() {
    let store = store().await;
    let key = position("default");
    assert!(store.run_started(&run(1)).await.unwrap());
    let save = async || {
        store
            .save_checkpoint(&key, run(1).id, 7, raw("1"), Some(0))
            .await
            .unwrap()
    };
    assert_eq!(save().await, Saved::Yes);
    assert_eq!(save().await, Saved::Repeated);
    assert_eq!(store.checkpoint(&key).await.unwrap().unwrap().version, 1);
}

#[tokio::test]
async fn at_most_one_further_run_is_remembered() {
    let store = store().await;
    let queued = |number| RunRecord {
        state: RunState::Queued,
        ..run(number)
    };
    assert!(store.run_started(&run(1)).await.unwrap());
    assert!(store.run_started(&queued(2)).await.unwrap());
    assert!(!store.run_started(&queued(3)).await.unwrap());
    assert!(store.run_released("orders", 50).await.unwrap().is_none());
    assert_eq!(
        store.last_run("orders").await.unwrap().unwrap().id,
        run(1).id
    );
    store
        .run_ended(run(1).id, RunState::Done, 9, Some(1), None)
        .await
        .unwrap();
    let released = store.run_released("orders", 50).await.unwrap().unwrap();
    assert_eq!(
        (released.id, released.state),
        (run(2).id, RunState::Recorded)
    );
    assert_eq!((released.due, released.started_at), (50, 50));
    assert!(store.run_released("orders", 51).await.unwrap().is_none());
    assert_eq!(
        store.active_run("orders").await.unwrap().unwrap().id,
        run(2).id
    );
}

#[tokio::test]
async fn a_trigger_has_one_active_run_at_a_time() {
    let store = store().await;
    assert!(store.run_started(&run(1)).await.unwrap());
    assert!(!store.run_started(&run(1)).await.unwrap());
    assert!(!store.run_started(&run(2)).await.unwrap());
    store.run_published(run(1).id).await.unwrap();
    assert!(!store.run_started(&run(2)).await.unwrap());
    let active = store.active_run("orders").await.unwrap().unwrap();
    assert_eq!((active.id, active.state), (run(1).id, RunState::Published));
    assert_eq!(active.payload.unwrap().get(), r#"{"a":1}"#);
    store
        .run_ended(run(1).id, RunState::Done, 9, Some(3), None)
        .await
        .unwrap();
    assert!(store.active_run("orders").await.unwrap().is_none());
    assert!(store.run_started(&run(2)).await.unwrap());
    assert!(
        !store
            .run_started(&RunRecord {
                flow: "gone".into(),
                ..run(3)
            })
            .await
            .unwrap()
    );
    assert_eq!(
        store.last_run("orders").await.unwrap().unwrap().id,
        run(2).id
    );
    let runs = store.runs("orders", 10).await.unwrap();
    assert_eq!(runs.iter().map(|run| run.due).collect::<Vec<_>>(), [2, 1]);
}

#[tokio::test]
async fn an_end_is_an_end() {
    let store = store().await;
    let id = run(1).id;
    store.run_started(&run(1)).await.unwrap();
    assert!(store.run_retries(id, "429", 500, false).await.unwrap());
    let retrying = store.run(id).await.unwrap().unwrap();
    assert_eq!((retrying.attempts, retrying.next_at), (1, Some(500)));
    assert!(
        store
            .run_ended(id, RunState::Done, 900, Some(42), None)
            .await
            .unwrap()
    );
    assert!(
        !store
            .run_ended(id, RunState::Failed, 901, None, None)
            .await
            .unwrap()
    );
    assert!(!store.run_retries(id, "late", 950, false).await.unwrap());
    store.run_published(id).await.unwrap();
    let done = store.run(id).await.unwrap().unwrap();
    assert_eq!(
        (done.state, done.emitted, done.next_at),
        (RunState::Done, Some(42), None)
    );
}

#[tokio::test]
async fn a_dead_letter_is_stored_once() {
    let store = store().await;
    let both = vec![letter("crm"), letter("audit"), letter("crm")];
    assert_eq!(store.insert_dead_letters(both).await.unwrap(), 2);
    assert_eq!(
        store
            .insert_dead_letters(vec![letter("crm")])
            .await
            .unwrap(),
        0
    );
    let counts = store.open_dead_letters().await.unwrap();
    assert_eq!(
        counts.iter().map(|open| open.count).collect::<Vec<_>>(),
        [1, 1]
    );

    let listed = store
        .dead_letters(DeadQuery {
            step: Some("crm".into()),
            limit: 9,
            ..DeadQuery::default()
        })
        .await
        .unwrap();
    let found = store.dead_letter(listed[0].id).await.unwrap();
    let found = found.unwrap().record;
    assert_eq!(
        found.message.get(),
        letter("crm").message.get(),
        "byte for byte"
    );
    assert_eq!(
        (found.chain, found.attempts),
        (letter("crm").chain, letter("crm").attempts)
    );
    assert_eq!(
        (found.run, found.message_id),
        (letter("crm").run, letter("crm").message_id)
    );
}

#[tokio::test]
async fn a_dead_letter_is_decided_once() {
    let store = store().await;
    store
        .insert_dead_letters(vec![letter("crm"), letter("audit")])
        .await
        .unwrap();
    let query = DeadQuery {
        state: Some(DeadState::Open),
        limit: 9,
        ..DeadQuery::default()
    };
    let open = store.dead_letters(query.clone()).await.unwrap();
    let change = |to| store.change_dead_letter(open[0].id, DeadState::Open, to);
    assert!(change(DeadState::Replayed).await.unwrap());
    assert!(!change(DeadState::Discarded).await.unwrap());
    assert_eq!(store.dead_letters(query.clone()).await.unwrap().len(), 1);
    let second = DeadQuery {
        before: Some(open[1].id),
        ..query
    };
    assert!(store.dead_letters(second).await.unwrap().is_empty());
    assert_eq!(store.forget_decided(u64::MAX >> 1).await.unwrap(), 1);
    assert!(store.dead_letter(open[0].id).await.unwrap().is_none());
    assert!(store.dead_letter(open[1].id).await.unwrap().is_some());
}

#[tokio::test]
async fn it_outlives_its_flow() {
    let store = store().await;
    store
        .insert_dead_letters(vec![letter("crm")])
        .await
        .unwrap();
    store
        .delete_flow("orders", Vec::new(), false)
        .await
        .unwrap();
    assert_eq!(store.open_dead_letters().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_dead_tick_ends_its_run() {
    let store = store().await;
    store.run_started(&run(1)).await.unwrap();
    let tick = DeadLetterRecord {
        message_id: run(1).id,
        ..letter("poll")
    };
    store
        .insert_dead_letters(vec![letter("crm")])
        .await
        .unwrap();
    assert!(store.active_run("orders").await.unwrap().is_some());
    store.insert_dead_letters(vec![tick]).await.unwrap();
    let ended = store.last_run("orders").await.unwrap().unwrap();
    assert_eq!((ended.state, ended.ended_at), (RunState::Failed, Some(7)));
    assert_eq!(ended.reason.as_deref(), Some("no such deal"));
}
