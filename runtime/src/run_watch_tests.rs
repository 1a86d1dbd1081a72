//! Tests of the watch on a simulated broker.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use towpath_protocol::frame::Why;
use towpath_protocol::office::{Counters, Latency, NEWS_KEY, Report};
use towpath_protocol::runs::{Entry, Head};
use towpath_protocol::start::Identity;

use super::*;
use crate::broker::Publication;
use crate::broker::simulated::Simulated;
use crate::broker::topology::Topology;
use towpath_flow::model::{Missed, Overlap};

use crate::live::LiveTrigger;
use crate::reconcile::FlowState;
use crate::store::flows::NewVersion;
use crate::store::records::RunState;

struct World {
    watch: RunWatch,
    broker: Simulated,
    now: Arc<AtomicU64>,
    quiet_since: HashMap<String, u64>,
}

fn flow() -> LiveFlow {
    LiveFlow {
        name: "orders".into(),
        version: 1,
        applied_at: 0,
        state: FlowState::Running,
        track: true,
        trigger: LiveTrigger {
            step: "poll".into(),
            has_image: true,
            fires: towpath_flow::Fires::Every(Duration::from_secs(60)),
            overlap: Overlap::default(),
            missed: Missed::default(),
        },
        steps: vec![
            ("poll".into(), vec![]),
            ("crm".into(), vec![("poll".into(), "out".into())]),
        ],
        branches: BTreeMap::new(),
        handovers: Vec::new(),
        ordered: BTreeMap::new(),
    }
}

fn identity(step: &str) -> Identity {
    Identity {
        instance: "t".into(),
        flow: "orders".into(),
        step: step.into(),
        replica: 1,
        spec: "s".into(),
    }
}

const RUN: MessageId = MessageId::from_bytes([1; 16]);

fn run() -> RunRecord {
    RunRecord {
        id: RUN,
        flow: "orders".into(),
        step: "poll".into(),
        connection: "default".into(),
        version: 1,
        why: Why::Schedule,
        state: RunState::Recorded,
        due: 1,
        started_at: 1,
        ended_at: None,
        emitted: None,
        attempts: 0,
        next_at: None,
        reason: None,
        payload: None,
        tracked: true,
        cancel_at: None,
    }
}

impl World {
    /// A flow whose run has brought in one message that is open at `crm`.
    async fn begin() -> Self {
        let broker = Simulated::new(3);
        let names = Names::new("t");
        let topology = Topology {
            names: names.clone(),
            flows: vec![flow().topology()],
        };
        broker.declare(&topology, &[]).await.unwrap();
        let store = Store::in_memory().unwrap();
        let version = NewVersion {
            flow: "orders".into(),
            ..NewVersion::default()
        };
        store.store_version(version).await.unwrap();
        let now = Arc::new(AtomicU64::new(1_000));
        let (_, flows) =
            tokio::sync::watch::channel(Arc::new(BTreeMap::from([("orders".to_owned(), flow())])));
        let clock = Arc::clone(&now);
        let watch = RunWatch {
            broker: Arc::new(broker.clone()),
            store: store.clone(),
            names,
            flows,
            reports: Reports::default(),
            clock: Arc::new(move || clock.load(Ordering::Relaxed)),
        };
        assert!(store.run_started(&run()).await.unwrap());
        let emitted = Entry::Emitted {
            id: MessageId::from_bytes([9; 16]),
            way: 0,
            of_replayed: false,
        };
        let done = Entry::Done {
            id: RUN,
            replays: 0,
        };
        let head = Head {
            identity: identity("poll"),
            ways: vec![vec!["crm".into()]],
        };
        let report = (head, vec![(RUN, emitted), (RUN, done)]);
        store
            .note_runs(Arc::new(vec![report]), Arc::default(), 1_000)
            .await
            .unwrap();
        store
            .run_ended(RUN, RunState::Done, 1_000, Some(1), None)
            .await
            .unwrap();
        Self {
            watch,
            broker,
            now,
            quiet_since: HashMap::new(),
        }
    }

    fn hear_of(&self, step: &str, held: u64) {
        let now = self.now.load(Ordering::Relaxed);
        let report = Report {
            identity: identity(step),
            incarnation: "a".into(),
            at: now,
            state: AgentState::Running,
            reason: None,
            in_hand: held,
            held,
            unacknowledged: held,
            counters: Counters::default(),
            latency: Latency::default(),
            pacing: None,
            restarts: 0,
            step_resident_bytes: 0,
            agent_resident_bytes: 0,
            last_lines: Vec::new(),
        };
        self.watch.reports.record(report, now);
    }

    /// Lets so many minutes pass, with agents that hold so many messages at `crm`.
    async fn pass(&mut self, minutes: u64, held: u64) {
        for _ in 0..minutes {
            self.now.fetch_add(60_000, Ordering::Relaxed);
            self.hear_of("poll", 0);
            self.hear_of("crm", held);
            self.watch.look(&mut self.quiet_since).await.unwrap();
        }
    }

    async fn lost(&self) -> Option<String> {
        let progress = self.watch.store.runs_progress(vec![RUN]).await.unwrap();
        progress[0].lost.clone()
    }
}

#[tokio::test]
async fn a_run_whose_messages_are_nowhere_says_so() {
    let mut world = World::begin().await;
    world.pass(9, 0).await;
    assert_eq!(world.lost().await, None, "it may only take long");
    world.pass(3, 0).await;
    assert_eq!(world.lost().await.as_deref(), Some(NOWHERE));
}

#[tokio::test]
async fn a_run_is_not_given_up_while_its_flow_holds_something() {
    let mut world = World::begin().await;
    world.pass(30, 1).await;
    assert_eq!(world.lost().await, None, "an agent has one");
    let waiting = Publication {
        exchange: "t.steps".into(),
        key: Names::step_key("orders", "crm"),
        kind: towpath_protocol::message::BATCH_TYPE,
        body: "x".into(),
        count: 1,
    };
    world.broker.publish(waiting).await.unwrap();
    world.pass(30, 0).await;
    assert_eq!(world.lost().await, None, "one is in the queue");
    world.broker.purge("t.flow.orders.crm");
    let news = Publication {
        exchange: "t.office".into(),
        key: NEWS_KEY.into(),
        kind: towpath_protocol::office::NEWS_TYPE,
        body: "x".into(),
        count: 1,
    };
    world.broker.publish(news).await.unwrap();
    world.pass(30, 0).await;
    assert_eq!(world.lost().await, None, "news are unread");
}

#[tokio::test]
async fn whoever_has_the_tick_of_a_cancelled_run_is_told_until_it_leaves_it() {
    let mut world = World::begin().await;
    let second = RunRecord {
        id: MessageId::from_bytes([2; 16]),
        ..run()
    };
    let store = world.watch.store.clone();
    assert!(store.run_started(&second).await.unwrap());
    store.run_began(second.id, None, 5).await.unwrap();
    store.cancel_run(second.id, 6).await.unwrap();
    world.hear_of("poll", 1);
    world
        .watch
        .reports
        .note_address(&identity("poll"), "amq.rabbitmq.reply-to.x");
    world.pass(2, 0).await;
    let answers = world.broker.answers();
    assert_eq!(answers.len(), 2, "it is told again");
    let told: ToAgent = serde_json::from_slice(&answers[0].body).unwrap();
    assert!(matches!(told, ToAgent::Cancel(cancel) if cancel.run == second.id));
    store
        .run_ended(second.id, RunState::Cancelled, 7, Some(0), None)
        .await
        .unwrap();
    world.pass(2, 0).await;
    assert_eq!(world.broker.answers().len(), 2);
}
