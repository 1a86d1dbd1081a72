//! Tests of the scheduler: its decision by table, its loop on a simulated broker in virtual time.

use std::collections::BTreeMap;

use towpath_flow::Missed;
use towpath_protocol::office::{Counters, Latency, Report};
use towpath_protocol::start::Identity;

use super::due::tests::run;
use super::*;
use crate::broker::simulated::{Faults, Simulated};
use crate::broker::topology::{Handover, Topology};
use crate::live::LiveTrigger;
use crate::store::flows::NewVersion;

fn flow(every_ms: u64, state: FlowState) -> LiveFlow {
    LiveFlow {
        name: "orders".into(),
        version: 3,
        applied_at: 0,
        state,
        track: false,
        trigger: LiveTrigger {
            step: "poll".into(),
            has_image: true,
            fires: Fires::Every(Duration::from_millis(every_ms)),
            overlap: Overlap::Skip,
            missed: Missed::Once,
        },
        ordered: BTreeMap::new(),
        steps: vec![
            ("poll".into(), vec![]),
            ("crm".into(), vec![("poll".into(), "out".into())]),
        ],
        branches: BTreeMap::new(),
        handovers: Vec::new(),
    }
}

#[test]
fn the_tick_of_a_run_is_always_the_same() {
    let mut it = run(RunState::Recorded, 7, None);
    it.payload = Some(RawValue::from_string("{\"a\":1}".into()).unwrap());
    let mut flow = flow(1_000, FlowState::Running);
    let line = tick(&flow, &it);
    assert_eq!(line, tick(&flow, &it));
    let message: Message<'_> = serde_json::from_str(&line).unwrap();
    assert_eq!(message.id, it.id);
    assert_eq!(
        message.body.get(),
        r#"{"why":"schedule","due":7,"payload":{"a":1}}"#
    );
    let lineage: Lineage = serde_json::from_str(message.lineage.get()).unwrap();
    assert_eq!((lineage.run, lineage.version), (it.id, 3));
    assert_eq!((lineage.flow, lineage.tracked), (None, false));

    // What may come to other flows says where it is from.
    flow.handovers.push(Handover {
        step: "over".into(),
        after: vec![("crm".into(), "out".into())],
        when: None,
        to: "invoices".into(),
        entry: vec!["bill".into()],
    });
    it.tracked = true;
    let line = tick(&flow, &it);
    let message: Message<'_> = serde_json::from_str(&line).unwrap();
    let lineage: Lineage = serde_json::from_str(message.lineage.get()).unwrap();
    assert_eq!((lineage.flow, lineage.tracked), (Some(flow.name), true));
}

/// A world in virtual time.
struct World {
    broker: Simulated,
    scheduler: Scheduler,
    flows: tokio::sync::watch::Sender<Arc<BTreeMap<String, LiveFlow>>>,
    shutdown: CancellationToken,
}

/// A clock that goes with the runtime's virtual time.
fn virtual_clock() -> Clock {
    let began = tokio::time::Instant::now();
    Arc::new(move || 1_800_000_000_000 + u64::try_from(began.elapsed().as_millis()).unwrap())
}

async fn world(every_ms: u64) -> World {
    let store = Store::in_memory().unwrap();
    let version = NewVersion {
        flow: "orders".into(),
        ..NewVersion::default()
    };
    store.store_version(version).await.unwrap();
    let broker = Simulated::new(7);
    let names = Names::new("t");
    let flow = flow(every_ms, FlowState::Running);
    let topology = Topology {
        names: names.clone(),
        flows: vec![flow.topology()],
    };
    broker.declare(&topology, &[]).await.unwrap();
    let (flows, receiver) =
        tokio::sync::watch::channel(Arc::new(BTreeMap::from([("orders".to_owned(), flow)])));
    let scheduler = Scheduler {
        broker: Arc::new(broker.clone()),
        store,
        names,
        flows: receiver,
        reports: Reports::default(),
        metrics: Metrics::new(),
        runs_changed: Arc::new(Notify::new()),
        clock: virtual_clock(),
    };
    World {
        broker,
        scheduler,
        flows,
        shutdown: CancellationToken::new(),
    }
}

impl World {
    fn queue(&self) -> String {
        self.scheduler.names.queue("orders", "poll")
    }

    fn ticks(&self) -> Vec<MessageId> {
        let id = |body: &bytes::Bytes| serde_json::from_slice::<Message<'_>>(body).unwrap().id;
        self.broker.ready(&self.queue()).iter().map(id).collect()
    }

    async fn eventually(&self, what: &str, mut is_true: impl AsyncFnMut(&Self) -> bool) {
        for _ in 0..20_000 {
            if is_true(self).await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{what} did not come true; ticks {:?}", self.ticks());
    }

    async fn end(&self, id: MessageId) {
        let now = (self.scheduler.clock)();
        let end = self
            .scheduler
            .store
            .run_ended(id, RunState::Done, now, Some(1), None);
        assert!(end.await.unwrap());
        self.scheduler.runs_changed.notify_one();
    }

    fn report(&self, held: u64) {
        let now = (self.scheduler.clock)();
        let report = Report {
            identity: Identity {
                instance: "t".into(),
                flow: "orders".into(),
                step: "poll".into(),
                replica: 1,
                spec: "s".into(),
            },
            incarnation: "a".into(),
            at: now,
            state: AgentState::Running,
            reason: None,
            in_hand: held,
            held,
            unacknowledged: held,
            counters: Counters::default(),
            latency: Latency::default(),
            restarts: 0,
            step_resident_bytes: 0,
            agent_resident_bytes: 0,
            last_lines: Vec::new(),
            pacing: None,
        };
        self.scheduler.reports.record(report, now);
    }
}

// Virtual time and a thread that blocks do not go together: the clock would run ahead of SQLite.
// These tests use real time, with short intervals.
#[tokio::test(flavor = "multi_thread")]
async fn ticks_follow_one_another_and_never_overlap() {
    let world = world(200).await;
    let mut loops = tokio::task::JoinSet::new();
    loops.spawn(world.scheduler.clone().run(world.shutdown.clone()));
    let mut seen = Vec::new();
    for _ in 0..3 {
        world
            .eventually("a tick", async |world| !world.ticks().is_empty())
            .await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let ticks = world.ticks();
        assert_eq!(ticks.len(), 1, "one run at a time: {ticks:?}");
        assert!(!seen.contains(&ticks[0]));
        seen.push(ticks[0]);
        world.broker.purge(&world.queue());
        world.end(ticks[0]).await;
    }
    world.shutdown.cancel();
    loops.join_next().await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_recorded_before_its_tick_is_published() {
    let world = world(3_600_000).await;
    world.broker.set_up(false);
    let id = world
        .scheduler
        .fire("orders", Why::Manual, None)
        .await
        .unwrap();
    let active = world
        .scheduler
        .store
        .active_run("orders")
        .await
        .unwrap()
        .unwrap();
    assert_eq!((active.id, active.state), (id, RunState::Recorded));
    let busy = world
        .scheduler
        .fire("orders", Why::Manual, None)
        .await
        .unwrap_err();
    assert!(
        matches!(busy, FireError::Busy { run: Some(run), queues: false, .. } if run == id),
        "{busy}"
    );

    // The process is cut off here; another one finds the run and publishes the same tick.
    world.broker.set_up(true);
    world.broker.set_faults(Faults {
        refused: 0.5,
        ..Faults::default()
    });
    let began = (world.scheduler.clock)() + 1;
    let mut memory = Memory::default();
    for _ in 0..100 {
        world.scheduler.look(&mut memory, began).await;
        memory
            .published_again
            .values_mut()
            .for_each(|at| *at -= REPUBLISH_AFTER_MS);
    }
    assert_eq!(world.ticks(), [id]);
    let active = world
        .scheduler
        .store
        .active_run("orders")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(active.state, RunState::Published);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_further_run_is_remembered_and_fires_when_the_one_before_has_ended() {
    let world = world(3_600_000).await;
    let mut queues = flow(3_600_000, FlowState::Running);
    queues.trigger.overlap = Overlap::QueueOne;
    world
        .flows
        .send_replace(Arc::new(BTreeMap::from([("orders".to_owned(), queues)])));
    let fire = async |payload: &str| {
        let payload = RawValue::from_string(payload.to_owned()).unwrap();
        world
            .scheduler
            .fire("orders", Why::Manual, Some(payload))
            .await
    };
    let first = fire("1").await.unwrap();
    let second = fire("2").await.unwrap();
    let store = &world.scheduler.store;
    let state = async |id| store.run(id).await.unwrap().unwrap().state;
    assert_eq!(state(second).await, RunState::Queued);
    let third = fire("3").await.unwrap_err();
    assert!(
        matches!(third, FireError::Busy { run: Some(run), queues: true, .. } if run == first),
        "{third}"
    );

    // While the first one is active nothing else is sent, however often somebody looks.
    let mut memory = Memory::default();
    for _ in 0..3 {
        world.scheduler.look(&mut memory, 0).await;
    }
    assert_eq!(world.ticks(), [first]);

    // The process is cut off here: what is remembered is in the store, and another one finds it.
    world.broker.purge(&world.queue());
    world.end(first).await;
    let mut memory = Memory::default();
    world.scheduler.look(&mut memory, 0).await;
    assert_eq!(world.ticks(), [second]);
    let run = store.run(second).await.unwrap().unwrap();
    assert_eq!(run.state, RunState::Published);
    assert_eq!(run.payload.unwrap().get(), "2");
    // Now there is room for one again.
    let fourth = fire("4").await.unwrap();
    assert_eq!(state(fourth).await, RunState::Queued);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_remembered_waits_while_the_flow_is_paused() {
    let world = world(3_600_000).await;
    let mut queues = flow(3_600_000, FlowState::Running);
    queues.trigger.overlap = Overlap::QueueOne;
    let set = |state| {
        queues.state = state;
        let flows = BTreeMap::from([("orders".to_owned(), queues.clone())]);
        world.flows.send_replace(Arc::new(flows));
    };
    let mut set = set;
    set(FlowState::Running);
    let fire = async || world.scheduler.fire("orders", Why::Manual, None).await;
    let first = fire().await.unwrap();
    let second = fire().await.unwrap();
    world.broker.purge(&world.queue());
    world.end(first).await;
    set(FlowState::Paused);
    let mut memory = Memory::default();
    world.scheduler.look(&mut memory, 0).await;
    assert!(world.ticks().is_empty());
    set(FlowState::Running);
    world.scheduler.look(&mut memory, 0).await;
    assert_eq!(world.ticks(), [second]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_flow_is_not_fired_by_hand_either() {
    let world = world(3_600_000).await;
    let paused = flow(3_600_000, FlowState::Paused);
    world
        .flows
        .send_replace(Arc::new(BTreeMap::from([("orders".to_owned(), paused)])));
    let error = world
        .scheduler
        .fire("orders", Why::Manual, None)
        .await
        .unwrap_err();
    assert!(matches!(error, FireError::NotRunning { .. }), "{error}");
    let error = world
        .scheduler
        .fire("nothing", Why::Manual, None)
        .await
        .unwrap_err();
    assert!(matches!(error, FireError::NoFlow { .. }), "{error}");
    assert!(
        world
            .scheduler
            .store
            .active_run("orders")
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_abandoned_only_if_its_tick_is_nowhere() {
    let mut world = world(3_600_000).await;
    let offset = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let (base, moved) = (world.scheduler.clock.clone(), Arc::clone(&offset));
    world.scheduler.clock =
        Arc::new(move || base() + moved.load(std::sync::atomic::Ordering::Relaxed));
    let id = world
        .scheduler
        .fire("orders", Why::Manual, None)
        .await
        .unwrap();
    let mut memory = Memory::default();
    // Each round is ten seconds later.
    let mut rounds = async |world: &World, count: u32, held: Option<u64>| {
        for _ in 0..count {
            offset.fetch_add(10_000, std::sync::atomic::Ordering::Relaxed);
            if let Some(held) = held {
                world.report(held);
            }
            world.scheduler.look(&mut memory, 0).await;
        }
        world.scheduler.store.run(id).await.unwrap().unwrap().state
    };
    // Its tick is in the queue.
    assert_eq!(rounds(&world, 60, Some(0)).await, RunState::Published);
    world.broker.purge(&world.queue());
    // An agent holds it; then no agent says anything.
    assert_eq!(rounds(&world, 60, Some(1)).await, RunState::Published);
    assert_eq!(rounds(&world, 60, None).await, RunState::Published);
    // A retry is due later.
    let now = (world.scheduler.clock)();
    world
        .scheduler
        .store
        .run_retries(id, "429", now + 400_000, false)
        .await
        .unwrap();
    assert_eq!(rounds(&world, 60, Some(0)).await, RunState::Published);
    // Now it is nowhere, for long.
    assert_eq!(rounds(&world, 30, Some(0)).await, RunState::Abandoned);
}
