//! Tests of replay, on a simulated broker.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::Notify;
use towpath_protocol::office::DeadCause;

use super::*;
use crate::broker::Broker as _;
use crate::broker::simulated::{Faults, Simulated};
use crate::broker::topology::Topology;
use crate::live::LiveFlow;
use crate::live::LiveTrigger;
use crate::metrics::Metrics;
use crate::reconcile::FlowState;
use crate::reports::Reports;
use crate::store::Store;
use crate::store::flows::NewVersion;
use crate::store::records::DeadLetterRecord;

pub(super) const LINE: &str = r#"{"id":"00000000000000000000000000000001","lineage":{"run":"00000000000000000000000000000009","version":3,"at":5},"attempt":8,"rebounds":2,"replays":1,"history":[{"attempt":8,"at":1,"replica":1,"reason":"500"}],"headers":{"a":"b"},"body":{"n":1.50}}"#;

pub(super) struct World {
    pub(super) broker: Simulated,
    pub(super) replayer: Replayer,
    pub(super) store: Store,
    _flows: tokio::sync::watch::Sender<Arc<BTreeMap<String, LiveFlow>>>,
}

pub(super) async fn world() -> World {
    let flow = LiveFlow {
        name: "orders".into(),
        version: 3,
        applied_at: 0,
        state: FlowState::Running,
        track: false,
        trigger: LiveTrigger {
            step: "poll".into(),
            has_image: true,
            fires: towpath_flow::Fires::Every(Duration::from_secs(3_600)),
            overlap: towpath_flow::Overlap::Skip,
            missed: towpath_flow::Missed::Once,
        },
        ordered: BTreeMap::new(),
        steps: vec![
            ("poll".into(), vec![]),
            ("crm".into(), vec![("poll".into(), "out".into())]),
        ],
        branches: BTreeMap::new(),
        handovers: Vec::new(),
    };
    let store = Store::in_memory().unwrap();
    let version = NewVersion {
        flow: "orders".into(),
        ..NewVersion::default()
    };
    store.store_version(version).await.unwrap();
    let broker = Simulated::new(3);
    let names = Names::new("t");
    let topology = Topology {
        names: names.clone(),
        flows: vec![flow.topology()],
    };
    broker.declare(&topology, &[]).await.unwrap();
    let (flows, receiver) =
        tokio::sync::watch::channel(Arc::new(BTreeMap::from([("orders".to_owned(), flow)])));
    let scheduler = Scheduler {
        broker: Arc::new(broker.clone()),
        store: store.clone(),
        names,
        flows: receiver,
        reports: Reports::default(),
        metrics: Metrics::new(),
        runs_changed: Arc::new(Notify::new()),
        clock: crate::schedule::system_clock(),
    };
    World {
        broker,
        replayer: Replayer::new(scheduler),
        store,
        _flows: flows,
    }
}

pub(super) fn letter(step: &str, port: Option<&str>, message: &str) -> DeadLetterRecord {
    DeadLetterRecord {
        id: 0,
        flow: "orders".into(),
        step: step.into(),
        port: port.map(ToOwned::to_owned),
        version: 3,
        connection: "default".into(),
        run: None,
        message_id: MessageId::from_bytes([1; 16]),
        cause: DeadCause::Attempts,
        reason: "500".into(),
        chain: Vec::new(),
        attempts: Vec::new(),
        replica: 1,
        at: 1,
        replays: 1,
        state: DeadState::Open,
        message: RawValue::from_string(message.into()).unwrap(),
    }
}

impl World {
    pub(super) async fn store(&self, letter: DeadLetterRecord) -> u64 {
        assert_eq!(
            self.store.insert_dead_letters(vec![letter]).await.unwrap(),
            1
        );
        let all = self
            .store
            .dead_letters(crate::store::dead_letters::DeadQuery {
                limit: 1,
                ..Default::default()
            });
        all.await.unwrap()[0].id
    }

    pub(super) fn ready(&self, step: &str) -> Vec<String> {
        let ready = self.broker.ready(&format!("t.flow.orders.{step}"));
        ready
            .iter()
            .map(|body| String::from_utf8(body.to_vec()).unwrap())
            .collect()
    }

    pub(super) async fn state(&self, id: u64) -> DeadState {
        self.store.dead_letter(id).await.unwrap().unwrap().state
    }
}

#[tokio::test]
async fn a_replayed_message_has_its_attempts_ahead_of_it_again() {
    let world = world().await;
    let id = world.store(letter("crm", None, LINE)).await;
    world.replayer.replay(id, None, None).await.unwrap();
    let expect = LINE
        .replace(r#""attempt":8,"rebounds":2,"replays":1,"history":[{"attempt":8,"at":1,"replica":1,"reason":"500"}]"#, r#""replays":2"#);
    assert_eq!(world.ready("crm"), [expect]);
    assert_eq!(world.state(id).await, DeadState::Replayed);
    let again = world.replayer.replay(id, None, None).await.unwrap_err();
    assert!(matches!(again, ReplayError::NotOpen { .. }), "{again}");
    assert!(matches!(
        world.replayer.discard(id).await,
        Err(ReplayError::NotOpen { .. })
    ));
}

#[tokio::test]
async fn another_body_can_be_given() {
    let world = world().await;
    let id = world.store(letter("crm", None, LINE)).await;
    let body = RawValue::from_string("{ \"n\":\n 2 }".into()).unwrap();
    world.replayer.replay(id, Some(body), None).await.unwrap();
    assert!(
        world.ready("crm")[0].ends_with(r#""body":{"n":2}}"#),
        "{:?}",
        world.ready("crm")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_once_send_it_once() {
    let world = world().await;
    let id = world.store(letter("crm", None, LINE)).await;
    let both =
        futures_util::future::join_all((0..8).map(|_| world.replayer.replay(id, None, None))).await;
    assert_eq!(
        both.iter().filter(|done| done.is_ok()).count(),
        1,
        "{both:?}"
    );
    assert_eq!(world.ready("crm").len(), 1);
}

#[tokio::test]
async fn a_dead_letter_is_marked_after_it_was_sent() {
    let world = world().await;
    let id = world.store(letter("crm", None, LINE)).await;
    world.broker.set_up(false);
    assert!(matches!(
        world.replayer.replay(id, None, None).await,
        Err(ReplayError::Broker(_))
    ));
    world.broker.set_up(true);
    world.broker.set_faults(Faults {
        confirm_lost: 1.0,
        ..Faults::default()
    });
    assert!(matches!(
        world.replayer.replay(id, None, None).await,
        Err(ReplayError::Broker(_))
    ));
    assert_eq!(world.state(id).await, DeadState::Open);
    world.broker.set_faults(Faults::default());
    world.replayer.replay(id, None, None).await.unwrap();
    // Sent twice, because nobody could know; both times the same message.
    let ready = world.ready("crm");
    assert_eq!(ready.len(), 2);
    assert_eq!(ready[0], ready[1]);
}

#[tokio::test]
async fn it_goes_nowhere_that_does_not_exist() {
    let world = world().await;
    for (step, port) in [
        ("gone", None),
        ("crm", Some("out")),
        ("poll", Some("other")),
    ] {
        let id = world.store(letter(step, port, LINE)).await;
        let error = world.replayer.replay(id, None, None).await.unwrap_err();
        assert!(matches!(error, ReplayError::NoRoute(_)), "{error}");
        assert_eq!(world.state(id).await, DeadState::Open);
    }
    let id = world.store(letter("crm", None, "\"garbage\"")).await;
    assert!(matches!(
        world.replayer.replay(id, None, None).await,
        Err(ReplayError::Unreadable { .. })
    ));
    assert!(matches!(
        world.replayer.replay(999, None, None).await,
        Err(ReplayError::NotFound { .. })
    ));
    assert!(world.broker.ready("t.lost").is_empty());
}

#[tokio::test]
async fn what_was_lost_on_the_way_goes_on_from_there() {
    let world = world().await;
    let id = world.store(letter("poll", Some("out"), LINE)).await;
    world.replayer.replay(id, None, None).await.unwrap();
    assert_eq!(
        (world.ready("crm").len(), world.ready("poll").len()),
        (1, 0)
    );
}

#[tokio::test]
async fn a_new_run_begins_in_place_of_a_dead_tick() {
    let world = world().await;
    let tick = LINE.replace(
        r#"{"n":1.50}"#,
        r#"{"why":"manual","due":1,"payload":{"from":7}}"#,
    );
    let id = world.store(letter("poll", None, &tick)).await;
    let replayed = world.replayer.replay(id, None, None).await.unwrap();
    let run = world.store.active_run("orders").await.unwrap().unwrap();
    assert_eq!(run.id, replayed.message_id);
    assert_eq!(run.payload.unwrap().get(), r#"{"from":7}"#);
    assert_eq!(world.ready("poll").len(), 1);
    assert_eq!(world.state(id).await, DeadState::Replayed);
}
