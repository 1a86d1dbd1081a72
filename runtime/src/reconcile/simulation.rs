//! The real loop on a simulated engine with faults from a seed: first safety while everything goes
//! wrong, then the faults stop and it must come to what should be. A seed that fails is in the
//! message, and tells the same story again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use towpath_protocol::office::AgentState;
use towpath_protocol::start::Identity;

use towpath_flow::{Autoscale, ScaleBy};

use super::gauge::{Load, Loads};
use super::run::{DesiredSource, Pace, Reconciler, Round};
use super::status::{ReplicaState, Status};
use super::testing::{self, image};
use super::{Desired, FlowState};
use crate::engine::simulated::{Faults, SimulatedEngine};
use crate::engine::{ContainerState, Observed};

const SEEDS: u64 = 150;

/// What someone wants at the moment.
#[derive(Debug, Clone)]
struct Wish {
    state: FlowState,
    replicas: u32,
    images: [u8; 2],
    is_deleted: bool,
    /// Whether the work says how many replicas `crm` has; it then needs `replicas`.
    is_autoscaled: bool,
}

impl Wish {
    fn desired(&self) -> Desired {
        let mut desired = testing::desired(self.state, |facts| {
            for (step, version) in ["crm", "orders"].into_iter().zip(self.images) {
                let facts = facts.get_mut(step).expect("the flow has it");
                facts.image = Ok(image(&format!("{step}:{version}")));
            }
            facts.get_mut("crm").expect("the flow has it").replicas = Some(self.replicas);
        });
        for step in desired.flows.iter_mut().flat_map(|flow| &mut flow.steps) {
            if step.id == "crm" && self.is_autoscaled {
                step.autoscale = Some(Autoscale {
                    min: 0,
                    max: 4,
                    by: ScaleBy::Backlog { per_replica: 100 },
                });
            }
        }
        if self.is_deleted {
            desired.flows.clear();
        }
        desired
    }

    /// What waits, so that `crm` needs as many replicas as it should have, whether there were
    /// fewer before or more: far from the edge between two numbers.
    fn loads(&self) -> Loads {
        let messages = self
            .replicas
            .checked_sub(1)
            .map_or(0, |others| u64::from(others) * 100 + 1);
        let load = Load {
            deliveries: messages,
            messages,
            ..Load::default()
        };
        Loads::from([(("f".to_owned(), "crm".to_owned()), load)])
    }

    fn change(&mut self, random: &mut StdRng) {
        match random.random_range(0..7) {
            0 => self.state = FlowState::Running,
            1 => self.state = FlowState::Paused,
            2 => self.state = FlowState::Stopped,
            3 => self.replicas = random.random_range(0..5),
            4 => self.images = [random.random_range(0..3), random.random_range(0..3)],
            5 => self.is_autoscaled = random.random_bool(0.5),
            _ => self.is_deleted = random.random_bool(0.2),
        }
    }
}

/// What should be, or an error.
#[derive(Clone)]
struct Source(Arc<Mutex<Option<Desired>>>);

#[async_trait]
impl DesiredSource for Source {
    async fn desired(&self) -> anyhow::Result<Desired> {
        let desired = self
            .0
            .lock()
            .expect("nothing panics while it holds this")
            .clone();
        desired.ok_or_else(|| anyhow::anyhow!("the store is away"))
    }
}

struct Story {
    engine: SimulatedEngine,
    source: Source,
    reconciler: Reconciler,
    status: tokio::sync::watch::Receiver<Status>,
}

impl Story {
    fn new(seed: u64, wish: &Wish) -> Self {
        let engine = SimulatedEngine::new(seed);
        engine.insert(stranger(), AgentState::Running);
        let source = Source(Arc::new(Mutex::new(Some(wish.desired()))));
        let (reconciler, status) = begin(&engine, &source);
        Self {
            engine,
            source,
            reconciler,
            status,
        }
    }

    /// The control plane dies and is started again: all it remembered is gone.
    fn restart(&mut self) {
        (self.reconciler, self.status) = begin(&self.engine, &self.source);
    }

    fn wish(&self, wish: Option<&Wish>) {
        *self.source.0.lock().unwrap() = wish.map(Wish::desired);
        self.engine.set_loads(wish.map(Wish::loads));
    }

    async fn round(&mut self) -> Round {
        self.reconciler.round(self.engine.now()).await
    }

    /// Goes on until nothing has been done for a while.
    async fn settle(&mut self) {
        let mut at_rest = 0;
        for _ in 0..2_000 {
            at_rest = if self.round().await == Round::AtRest {
                at_rest + 1
            } else {
                0
            };
            // Longer than any back-off, and than the minute after which there are fewer replicas.
            if at_rest > 80 {
                return;
            }
            self.engine.advance(1_000);
        }
        panic!("it never comes to rest: {:#?}", self.engine.containers());
    }

    fn crm(&self) -> Vec<String> {
        let crm = self
            .ours()
            .into_iter()
            .filter(|one| one.identity.step == "crm");
        crm.map(|one| one.container).collect()
    }

    fn ours(&self) -> Vec<Observed> {
        let all = self.engine.containers().into_iter();
        all.filter(|one| one.identity.instance == "i").collect()
    }
}

fn begin(
    engine: &SimulatedEngine,
    source: &Source,
) -> (Reconciler, tokio::sync::watch::Receiver<Status>) {
    let agents = engine.clone();
    let (reconciler, handle) = Reconciler::new(
        "i",
        Arc::new(engine.clone()),
        Arc::new(source.clone()),
        Arc::new(move |identity: &Identity| agents.report(identity)),
        Arc::new(engine.clone()),
        Pace::default(),
    );
    (reconciler, handle.status)
}

fn stranger() -> Observed {
    let identity = Identity {
        instance: "other".into(),
        flow: "f".into(),
        step: "crm".into(),
        replica: 9,
        spec: "0123456789".into(),
    };
    Observed {
        container: "stranger".into(),
        name: "other.f.crm.9.01234567".into(),
        identity,
        state: ContainerState::Running,
        created: 0,
    }
}

/// Everything goes wrong now and then.
fn faults(random: &mut StdRng) -> Faults {
    let mut some = || {
        if random.random_bool(0.5) {
            0.0
        } else {
            random.random_range(0.0..0.3)
        }
    };
    Faults {
        refused: some(),
        lost_reply: some(),
        late: some(),
        twice: some(),
        deaf: some(),
        blind: some(),
        silent: some(),
        crash: some() / 10.0,
        overlooked: some(),
        undead: some(),
        unstarted: some(),
        no_image: some(),
        disk_full: some(),
        squatted: some(),
        by_hand: some() / 10.0,
        restart: some() / 20.0,
    }
}

/// What there is, by step and number, with what its agent does.
fn expected(desired: &Desired) -> BTreeMap<(String, u32), (String, AgentState)> {
    let mut expected = BTreeMap::new();
    for flow in desired
        .flows
        .iter()
        .filter(|flow| flow.state != FlowState::Stopped)
    {
        let is_paused = flow.state == FlowState::Paused;
        let agent = if is_paused {
            AgentState::Paused
        } else {
            AgentState::Running
        };
        for step in &flow.steps {
            for replica in 1..=step.replicas {
                expected.insert((step.id.clone(), replica), (step.spec.clone(), agent));
            }
        }
    }
    expected
}

#[tokio::test]
async fn whatever_goes_wrong_it_comes_to_what_should_be() {
    for seed in 0..SEEDS {
        let mut random = StdRng::seed_from_u64(seed);
        let mut wish = Wish {
            state: FlowState::Running,
            replicas: 2,
            images: [0, 0],
            is_deleted: false,
            is_autoscaled: false,
        };
        let mut story = Story::new(seed, &wish);
        for _ in 0..random.random_range(20..80) {
            story.engine.set_faults(faults(&mut random));
            if random.random_bool(0.2) {
                wish.change(&mut random);
            }
            let is_known = random.random_bool(0.95);
            story.wish(is_known.then_some(&wish));
            if random.random_bool(0.05) {
                story.restart();
            }
            let before = story.engine.changes_made();
            if let Round::Blind(_) = story.round().await {
                let after = story.engine.changes_made();
                assert_eq!(before, after, "seed {seed}: it acted without having seen");
            }
            story.engine.advance(random.random_range(50..4_000));
        }
        story.engine.set_faults(Faults::default());
        story.wish(Some(&wish));
        story.settle().await;
        let found: BTreeMap<_, _> = story
            .ours()
            .into_iter()
            .map(|one| {
                let agent = story.engine.agent(&one.container).expect("it runs");
                (
                    (one.identity.step, one.identity.replica),
                    (one.identity.spec, agent),
                )
            })
            .collect();
        if wish.is_autoscaled && wish.state == FlowState::Paused {
            // A paused step keeps what it has, whatever its work needs.
            wish.replicas = u32::try_from(story.crm().len()).unwrap();
        }
        assert_eq!(found, expected(&wish.desired()), "seed {seed}, {wish:?}");
        assert_eq!(
            story.ours().len(),
            found.len(),
            "seed {seed}: there are two of one"
        );
        // It may have crashed, but nobody told it to go.
        let mut all = story.engine.containers().into_iter();
        let stranger = all.find(|one| one.identity.instance == "other");
        let state = stranger.map(|one| one.state);
        let is_left_alone = matches!(
            state,
            Some(ContainerState::Running | ContainerState::Exited { code: 137, .. })
        );
        assert!(is_left_alone, "seed {seed}: {state:?}");
    }
}

#[tokio::test]
async fn a_restart_begins_with_what_runs() {
    let wish = Wish {
        state: FlowState::Running,
        replicas: 4,
        images: [0, 0],
        is_deleted: false,
        is_autoscaled: true,
    };
    let mut story = Story::new(1, &wish);
    story.wish(Some(&wish));
    story.settle().await;
    assert_eq!(story.crm().len(), 4);
    // Nothing waits any more, and the control plane starts again: that is no calm minute.
    story.engine.set_loads(Some(Loads::new()));
    story.restart();
    let before = story.crm();
    for _ in 0..50 {
        story.round().await;
        story.engine.advance(1_000);
    }
    assert_eq!(story.crm(), before, "it does not collapse");
    // While the broker says nothing it keeps what it has.
    story.engine.set_loads(None);
    for _ in 0..200 {
        story.round().await;
        story.engine.advance(1_000);
    }
    assert_eq!(story.crm(), before);
    story.engine.set_loads(Some(Loads::new()));
    story.settle().await;
    assert_eq!(story.crm(), [] as [String; 0]);
    let status = story.status.borrow().flows["f"].steps["crm"].clone();
    assert_eq!(
        status.scaling.as_deref(),
        Some("0 of 0–4: asleep, the first message wakes it")
    );
}

#[tokio::test]
async fn a_list_that_lacks_a_container_makes_no_second_trigger() {
    for seed in 0..SEEDS {
        let mut wish = Wish {
            state: FlowState::Running,
            replicas: 1,
            images: [0, 0],
            is_deleted: false,
            is_autoscaled: false,
        };
        let mut story = Story::new(seed, &wish);
        story.settle().await;
        story.engine.set_faults(Faults {
            overlooked: 0.5,
            ..Faults::default()
        });
        wish.images = [0, 1];
        story.wish(Some(&wish));
        for _ in 0..60 {
            story.round().await;
            let at_work = story
                .ours()
                .into_iter()
                .filter(|one| one.identity.step == "orders")
                .filter(|one| one.state == ContainerState::Running)
                .count();
            assert!(at_work <= 1, "seed {seed}: two triggers at a time");
            story.engine.advance(500);
        }
    }
}

#[tokio::test]
async fn what_the_engine_says_is_removed_and_is_not_is_tried_again_ever_more_slowly() {
    let mut wish = Wish {
        state: FlowState::Running,
        replicas: 1,
        images: [0, 0],
        is_deleted: false,
        is_autoscaled: false,
    };
    let mut story = Story::new(1, &wish);
    story.settle().await;
    wish.state = FlowState::Stopped;
    story.wish(Some(&wish));
    story.engine.set_faults(Faults {
        undead: 1.0,
        ..Faults::default()
    });
    let mut tries = 0;
    for _ in 0..120 {
        if let Round::Acted { done, .. } = story.round().await {
            tries += done;
        }
        story.engine.advance(1_000);
    }
    assert!(
        tries < 50,
        "{tries} times within two minutes for four containers"
    );
    let status = story.status.borrow().flows["f"].steps["crm"].clone();
    assert_eq!(
        status.replicas[0].reason.as_deref(),
        Some("the engine says that it was removed, and it is still there")
    );
    assert!(status.replicas[0].next > Some(story.engine.now() - 1_000));
    story.engine.set_faults(Faults::default());
    story.settle().await;
    assert_eq!(story.ours(), []);
}

#[tokio::test]
async fn what_somebody_removes_by_hand_is_made_again_and_that_is_said() {
    let wish = Wish {
        state: FlowState::Running,
        replicas: 2,
        images: [0, 0],
        is_deleted: false,
        is_autoscaled: false,
    };
    let mut story = Story::new(1, &wish);
    story.settle().await;
    let before = story.crm();
    story.engine.remove_by_hand(&before[0]);
    story.settle().await;
    let after = story.crm();
    assert_eq!(after.len(), 2);
    assert_eq!(after.iter().filter(|it| before.contains(it)).count(), 1);
}

#[tokio::test]
async fn a_restart_of_the_control_plane_changes_nothing() {
    for state in [FlowState::Running, FlowState::Paused] {
        let wish = Wish {
            state,
            replicas: 3,
            images: [0, 0],
            is_deleted: false,
            is_autoscaled: false,
        };
        let mut story = Story::new(1, &wish);
        story.settle().await;
        let before = story.engine.containers();
        story.restart();
        story.settle().await;
        assert_eq!(story.engine.containers(), before);
    }
}

#[tokio::test]
async fn while_nothing_can_be_seen_nothing_is_done_and_that_is_said() {
    let mut wish = Wish {
        state: FlowState::Running,
        replicas: 2,
        images: [0, 0],
        is_deleted: false,
        is_autoscaled: false,
    };
    let mut story = Story::new(1, &wish);
    story.settle().await;
    let before = story.engine.containers();
    wish.is_deleted = true;
    story.wish(Some(&wish));
    story.engine.set_faults(Faults {
        blind: 1.0,
        ..Faults::default()
    });
    for _ in 0..20 {
        assert!(matches!(story.round().await, Round::Blind(_)));
        story.engine.advance(1_000);
    }
    assert_eq!(story.engine.containers(), before);
    let trouble = story.status.borrow().trouble.clone();
    assert_eq!(
        trouble.as_deref(),
        Some("the container engine did not list containers in time")
    );
    story.engine.set_faults(Faults::default());
    story.settle().await;
    assert_eq!(story.ours(), []);
    assert_eq!(story.status.borrow().trouble, None);
}

#[tokio::test]
async fn a_replica_that_keeps_dying_is_shown_with_its_reason_and_last_lines() {
    let wish = Wish {
        state: FlowState::Running,
        replicas: 1,
        images: [0, 0],
        is_deleted: false,
        is_autoscaled: false,
    };
    let mut story = Story::new(1, &wish);
    story.settle().await;
    let crm = |story: &Story| {
        story
            .ours()
            .into_iter()
            .find(|one| one.identity.step == "crm")
            .map(|one| one.container)
    };
    for _ in 0..3 {
        story.engine.kill(&crm(&story).expect("it runs"));
        for _ in 0..100 {
            story.round().await;
            if crm(&story).is_some_and(|it| story.engine.agent(&it).is_some()) {
                break;
            }
            story.engine.advance(100);
        }
    }
    let dead = crm(&story).expect("it runs");
    story.engine.kill(&dead);
    story.round().await;
    let status = story.status.borrow().clone();
    let step = &status.flows["f"].steps["crm"];
    assert_eq!((step.desired, step.running, step.restarts), (1, 0, 3));
    let replica = &step.replicas[0];
    assert_eq!(replica.state, ReplicaState::BackingOff);
    assert_eq!(replica.failures, 4);
    assert_eq!(
        replica.reason.as_deref(),
        Some("it was killed (exit code 137)")
    );
    assert_eq!(
        replica.last_lines,
        [format!("{{\"text\":\"the end of {dead}\"}}")]
    );
    assert_eq!(replica.next, Some(story.engine.now() + 8_000));
}

#[tokio::test]
async fn a_status_says_what_runs_and_since_when() {
    let wish = Wish {
        state: FlowState::Paused,
        replicas: 2,
        images: [0, 0],
        is_deleted: false,
        is_autoscaled: false,
    };
    let mut story = Story::new(1, &wish);
    story.settle().await;
    let before = story.status.borrow().flows["f"].steps["crm"].clone();
    assert_eq!((before.desired, before.running, before.current), (2, 2, 2));
    let states: Vec<_> = before
        .replicas
        .iter()
        .map(|it| (it.replica, it.state))
        .collect();
    assert_eq!(
        states,
        [(1, ReplicaState::Paused), (2, ReplicaState::Paused)]
    );
    story.engine.advance(60_000);
    story.round().await;
    let after = story.status.borrow().flows["f"].steps["crm"].clone();
    assert_eq!(after, before, "nothing has changed, and the times say so");
}
