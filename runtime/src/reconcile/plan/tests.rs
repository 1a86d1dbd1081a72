//! The rules of the plan, by example and as properties.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;

use proptest::prelude::*;
use towpath_protocol::office::Report;

use super::*;
use crate::engine::simulated::SimulatedEngine;
use crate::reconcile::memory::{Drain, Failure};
use crate::reconcile::spec::{StepFacts, container_name};
use crate::reconcile::testing::{self, image};

/// A world in which every action succeeds at once.
struct World {
    engine: SimulatedEngine,
    memory: Memory,
    /// How many replicas of a step were at work, at least, after any action.
    fewest: usize,
    most_exclusive: usize,
}

impl World {
    fn new() -> Self {
        let engine = SimulatedEngine::new(1);
        Self {
            engine,
            memory: Memory::default(),
            fewest: usize::MAX,
            most_exclusive: 0,
        }
    }

    fn observed(&self) -> Vec<Observed> {
        self.engine.containers()
    }

    /// Plans and acts until there is nothing to do, and says what was done.
    fn settle(&mut self, desired: &Desired) -> Vec<Action> {
        let mut done = Vec::new();
        let mut at_rest = 0;
        for _ in 0..400 {
            let actions = self.round(desired);
            at_rest = if actions.is_empty() { at_rest + 1 } else { 0 };
            done.extend(actions);
            // Longer than the longest wait: a back-off, or a silent replica that is to be ready.
            if at_rest > 80 {
                return done;
            }
            self.engine.advance(1_000);
        }
        panic!(
            "it does not come to rest; the last actions: {:#?}",
            done.iter().rev().take(5).collect::<Vec<_>>()
        );
    }

    fn round(&mut self, desired: &Desired) -> Vec<Action> {
        let now = self.engine.now();
        let engine = self.engine.clone();
        self.memory
            .learn(&self.observed(), |identity| engine.report(identity), now);
        let actions = plan(desired, &self.observed(), &self.memory, now);
        for action in &actions {
            self.act(action, desired);
            self.memory.acted(action, Ok(()), now);
            self.measure(desired);
        }
        actions
    }

    fn act(&self, action: &Action, desired: &Desired) {
        let container = action.container.as_deref().unwrap_or_default();
        let engine: &dyn crate::engine::Engine = &self.engine;
        let done = match action.kind {
            ActionKind::Remove => now_or_never(engine.remove(container)),
            ActionKind::Signal(signal) => now_or_never(engine.signal(container, signal)),
            ActionKind::Create => {
                let (flow, step) = steps(desired)
                    .find(|(_, step)| step.spec == action.identity.spec)
                    .expect("what is created is wanted");
                let blueprint = step.blueprint.as_ref().expect("it is not blocked");
                let is_paused = flow.state == FlowState::Paused;
                let replica = blueprint.replica(action.identity.replica, is_paused);
                now_or_never(engine.start(&replica)).map(drop)
            }
        };
        done.expect("this world has no faults");
    }

    fn measure(&mut self, desired: &Desired) {
        let at_work = |step: &str| {
            let is_at_work = |one: &&Observed| {
                one.identity.step == step
                    && matches!(
                        self.engine.agent(&one.container),
                        Some(AgentState::Running | AgentState::Paused)
                    )
            };
            self.observed().iter().filter(is_at_work).count()
        };
        let crm = at_work("crm");
        let exclusive = steps(desired).filter(|(_, step)| step.exclusive);
        let running = |id: &str| {
            let is_running = |one: &&Observed| {
                one.identity.instance == "i"
                    && one.identity.step == id
                    && one.state == ContainerState::Running
            };
            self.observed().iter().filter(is_running).count()
        };
        let most = exclusive
            .map(|(_, step)| running(&step.id))
            .max()
            .unwrap_or_default();
        self.fewest = self.fewest.min(crm);
        self.most_exclusive = self.most_exclusive.max(most);
    }

    fn running(&self, step: &str) -> Vec<(u32, String)> {
        let mut running: Vec<_> = self
            .observed()
            .into_iter()
            .filter(|one| one.identity.step == step && one.state == ContainerState::Running)
            .map(|one| (one.identity.replica, one.container))
            .collect();
        running.sort();
        running
    }
}

fn now_or_never<T>(future: impl Future<Output = T>) -> T {
    futures_util::FutureExt::now_or_never(future).expect("the simulation never waits")
}

fn desired(replicas: u32) -> Desired {
    testing::desired(FlowState::Running, |facts| set_replicas(facts, replicas))
}

fn set_replicas(facts: &mut BTreeMap<String, StepFacts>, replicas: u32) {
    facts.get_mut("crm").expect("there is one").replicas = Some(replicas);
}

fn changed(step: &str) -> Desired {
    testing::desired(FlowState::Running, |facts| {
        facts.get_mut(step).expect("there is one").image = Ok(image("another"));
    })
}

fn in_state(state: FlowState) -> Desired {
    testing::desired(state, |_| {})
}

fn count(actions: &[Action], kind: ActionKind) -> usize {
    actions.iter().filter(|action| action.kind == kind).count()
}

fn settled() -> (World, Desired) {
    let mut world = World::new();
    let desired = desired(2);
    world.settle(&desired);
    (world, desired)
}

#[test]
fn a_flow_is_made_and_then_nothing_is_done() {
    let mut world = World::new();
    let done = world.settle(&desired(2));
    assert_eq!(done.len(), 5, "{done:#?}");
    assert_eq!(count(&done, ActionKind::Create), 5);
    assert_eq!(
        done[0].to_string(),
        "create f/orders #1: replica 1 of 1 is missing"
    );
    assert_eq!(world.settle(&desired(2)), []);
}

#[test]
fn a_control_plane_that_forgot_everything_adopts_what_runs() {
    let (mut world, desired) = settled();
    world.memory = Memory::default();
    assert_eq!(world.settle(&desired), []);
}

#[test]
fn scaling_out_creates_exactly_what_is_missing() {
    let mut world = World::new();
    world.settle(&desired(1));
    let before = world.running("crm");
    let done = world.settle(&desired(4));
    let created: Vec<_> = done
        .iter()
        .map(|action| (action.kind, action.identity.replica))
        .collect();
    let expected = [2, 3, 4].map(|replica| (ActionKind::Create, replica));
    assert_eq!(created, expected);
    assert_eq!(world.running("crm")[..1], before);
}

#[test]
fn scaling_in_drains_the_highest_numbers() {
    let mut world = World::new();
    world.settle(&desired(4));
    let before = world.running("crm");
    let done = world.settle(&desired(1));
    let drained: Vec<_> = done
        .iter()
        .filter(|action| action.kind == ActionKind::Signal(Signal::Drain))
        .map(|action| action.identity.replica)
        .collect();
    assert_eq!(drained, [4, 3, 2]);
    assert_eq!(count(&done, ActionKind::Remove), 3);
    assert_eq!(count(&done, ActionKind::Create), 0);
    assert_eq!(world.running("crm"), before[..1]);
}

#[test]
fn new_before_old() {
    let (mut world, _) = settled();
    let others: Vec<_> = ["orders", "shape", "audit"]
        .map(|step| world.running(step))
        .into();
    world.fewest = usize::MAX;
    let done = world.settle(&changed("crm"));
    assert_eq!(count(&done, ActionKind::Create), 2);
    assert_eq!(count(&done, ActionKind::Signal(Signal::Drain)), 2);
    assert_eq!(count(&done, ActionKind::Remove), 2);
    assert!(
        world.fewest >= 2,
        "at some time only {} were at work",
        world.fewest
    );
    let after: Vec<_> = ["orders", "shape", "audit"]
        .map(|step| world.running(step))
        .into();
    assert_eq!(after, others, "only what changed is replaced");
}

#[test]
fn an_old_replica_stays_while_the_new_one_fails() {
    let (world, _) = settled();
    let desired = changed("crm");
    let mut observed = world.observed();
    let new = desired.flows[0]
        .steps
        .iter()
        .find(|step| step.id == "crm")
        .unwrap();
    let mut memory = Memory::default();
    for replica in 1..=2 {
        let mut identity = observed
            .iter()
            .find(|it| it.identity.step == "crm")
            .unwrap()
            .identity
            .clone();
        identity.replica = replica;
        identity.spec.clone_from(&new.spec);
        let container = format!("new{replica}");
        memory
            .reports
            .insert(container.clone(), report(&identity, AgentState::StepFails));
        let name = container_name(&identity);
        observed.push(Observed {
            container,
            name,
            identity,
            state: ContainerState::Running,
            created: 0,
        });
    }
    assert_eq!(plan(&desired, &observed, &memory, 10_000_000), []);
}

#[test]
fn one_exclusive_replica_at_most() {
    let (mut world, _) = settled();
    world.most_exclusive = 0;
    let done = world.settle(&changed("orders"));
    let kinds: Vec<_> = done.iter().map(|action| action.kind).collect();
    let drain = ActionKind::Signal(Signal::Drain);
    assert!(kinds.starts_with(&[drain]), "{done:#?}");
    assert_eq!(count(&done, ActionKind::Create), 1);
    assert_eq!(world.most_exclusive, 1);
    assert_eq!(world.running("orders").len(), 1);
}

#[test]
fn pausing_and_resuming_restart_nothing() {
    let (mut world, _) = settled();
    let before = world.observed();
    let done = world.settle(&in_state(FlowState::Paused));
    assert_eq!(count(&done, ActionKind::Signal(Signal::Pause)), done.len());
    assert_eq!(
        done.len(),
        5,
        "each is told once, because each has heard: {done:#?}"
    );
    let states: BTreeSet<_> = before
        .iter()
        .map(|one| format!("{:?}", world.engine.agent(&one.container)))
        .collect();
    assert_eq!(states, BTreeSet::from(["Some(Paused)".to_owned()]));
    let done = world.settle(&in_state(FlowState::Running));
    assert_eq!(count(&done, ActionKind::Signal(Signal::Resume)), 5);
    assert_eq!(world.observed(), before);
}

#[test]
fn a_signal_that_was_not_heard_is_repeated_but_not_at_once() {
    let (mut world, _) = settled();
    let desired = in_state(FlowState::Paused);
    let observed = world.observed();
    let now = world.engine.now();
    let actions = plan(&desired, &observed, &world.memory, now);
    for action in &actions {
        world.memory.acted(action, Ok(()), now);
    }
    assert_eq!(
        plan(&desired, &observed, &world.memory, now + TELL_AGAIN_MS - 1),
        []
    );
    assert_eq!(
        plan(&desired, &observed, &world.memory, now + TELL_AGAIN_MS).len(),
        5
    );
}

#[test]
fn a_stopped_flow_has_no_containers_and_can_run_again() {
    let (mut world, desired) = settled();
    let done = world.settle(&in_state(FlowState::Stopped));
    assert_eq!(count(&done, ActionKind::Signal(Signal::Drain)), 5);
    assert_eq!(count(&done, ActionKind::Remove), 5);
    assert_eq!(world.observed(), []);
    world.settle(&desired);
    assert_eq!(world.observed().len(), 5);
}

#[test]
fn a_flow_that_is_deleted_goes_by_draining() {
    let (mut world, _) = settled();
    let nothing = Desired {
        instance: "i".into(),
        flows: Vec::new(),
    };
    let done = world.settle(&nothing);
    assert_eq!(done[0].reason, "there is no such flow");
    assert_eq!(count(&done, ActionKind::Signal(Signal::Drain)), 5);
    assert_eq!(world.observed(), []);
}

#[test]
fn who_does_not_end_is_removed_when_its_time_is_up() {
    let (world, _) = settled();
    let observed = world.observed();
    let mut memory = Memory::default();
    let now = 50_000_000;
    for one in &observed {
        let drain = Drain {
            since: now - 60_000,
            told: now - 1_000,
            until: now,
        };
        memory.drains.insert(one.container.clone(), drain);
    }
    let actions = plan(&in_state(FlowState::Stopped), &observed, &memory, now);
    assert_eq!(count(&actions, ActionKind::Remove), 5);
    assert_eq!(
        actions[0].reason,
        "the flow is stopped, and it does not end"
    );
}

#[test]
fn what_dies_comes_back_after_a_wait_that_grows() {
    let (mut world, desired) = settled();
    let mut waits = Vec::new();
    for _ in 0..4 {
        let (_, victim) = world.running("shape").remove(0);
        world.engine.kill(&victim);
        let died = world.engine.now();
        while world.running("shape").is_empty() {
            world.engine.advance(100);
            world.round(&desired);
        }
        waits.push((world.engine.now() - died) / 1_000);
    }
    assert_eq!(waits, [1, 2, 4, 8]);
    assert_eq!(
        world.memory.restarts[&("f".to_owned(), "shape".to_owned())],
        4
    );
}

#[test]
fn the_reason_for_a_second_start_is_why_the_first_one_ended() {
    let (mut world, desired) = settled();
    let (_, victim) = world.running("shape").remove(0);
    world.engine.kill(&victim);
    let done = world.settle(&desired);
    let reasons: Vec<_> = done.iter().map(ToString::to_string).collect();
    assert_eq!(
        reasons,
        [
            "remove f/shape #1: it was killed (exit code 137)",
            "create f/shape #1: it failed 1 times, last: it was killed (exit code 137)",
        ]
    );
}

#[test]
fn what_is_blocked_keeps_what_runs() {
    let (mut world, _) = settled();
    let desired = testing::desired(FlowState::Running, |facts| {
        facts.get_mut("crm").unwrap().image = Err("the image is gone".into());
        facts.get_mut("shape").unwrap().filled = Err("the secret `x` does not exist".into());
    });
    let before = world.observed();
    assert_eq!(world.settle(&desired), []);
    assert_eq!(world.observed(), before);
    let mut empty = World::new();
    let done = empty.settle(&desired);
    assert!(
        done.iter()
            .all(|action| !["crm", "shape"].contains(&action.identity.step.as_str()))
    );
}

fn report(identity: &Identity, state: AgentState) -> Report {
    let engine = SimulatedEngine::new(1);
    let observed = Observed {
        container: "x".into(),
        name: "x".into(),
        identity: identity.clone(),
        state: ContainerState::Running,
        created: 0,
    };
    engine.insert(observed, state);
    engine.report(identity).expect("it runs")
}

prop_compose! {
    fn any_observed()(
        instance in prop_oneof![9 => Just("i"), 1 => Just("other")],
        flow in prop_oneof![9 => Just("f"), 1 => Just("gone")],
        step in prop::sample::select(vec!["orders", "shape", "crm", "audit", "gone"]),
        replica in 0_u32..6,
        is_current in any::<bool>(),
        state in prop_oneof![
            5 => Just(ContainerState::Running),
            1 => Just(ContainerState::Created),
            1 => (0_i64..4).prop_map(|code| ContainerState::Exited {
                code, out_of_memory: false, memory_bytes: 0, at: 990_000
            }),
        ],
        agent in prop::sample::select(vec![
            AgentState::Starting, AgentState::Running, AgentState::Paused, AgentState::Draining,
        ]),
        age in 0_u64..100_000,
    ) -> (Identity, bool, ContainerState, AgentState, u64) {
        let identity = Identity {
            instance: instance.into(),
            flow: flow.into(),
            step: step.into(),
            replica,
            spec: "0123456789-old".into(),
        };
        (identity, is_current, state, agent, 1_000_000 - age)
    }
}

fn any_state() -> impl Strategy<Value = FlowState> {
    prop::sample::select(vec![
        FlowState::Running,
        FlowState::Draining,
        FlowState::Paused,
        FlowState::Stopped,
    ])
}

prop_compose! {
    fn any_desired()(
        state in any_state(),
        held in prop::option::weighted(0.5, (prop::sample::select(vec!["shape", "crm", "orders"]), any_state())),
        replicas in 0_u32..5,
        blocked in prop::option::weighted(0.2, prop::sample::select(vec!["shape", "crm", "orders"])),
    ) -> Wanted {
        Wanted { state, held, replicas, blocked }
    }
}

/// A flow as someone may want it; what should be of it holds secrets and cannot be shown.
#[derive(Debug, Clone)]
struct Wanted {
    state: FlowState,
    held: Option<(&'static str, FlowState)>,
    replicas: u32,
    blocked: Option<&'static str>,
}

impl Wanted {
    fn desired(&self) -> Desired {
        testing::desired(self.state, |facts| {
            set_replicas(facts, self.replicas);
            if let Some((step, state)) = self.held {
                facts.get_mut(step).unwrap().held = Some(state);
            }
            if let Some(step) = self.blocked {
                facts.get_mut(step).unwrap().image = Err("no image".into());
            }
        })
    }
}

/// Puts containers into a world: one for each name, as an engine would have them.
fn populate(
    world: &World,
    desired: &Desired,
    containers: Vec<(Identity, bool, ContainerState, AgentState, u64)>,
) {
    for (number, (mut identity, is_current, state, agent, created)) in
        containers.into_iter().enumerate()
    {
        let step = steps(desired).find(|(_, step)| step.id == identity.step);
        if let Some((_, step)) = step.filter(|_| is_current) {
            identity.spec.clone_from(&step.spec);
        }
        let name = container_name(&identity);
        if world.observed().iter().any(|one| one.name == name) {
            continue;
        }
        let container = format!("x{number}");
        world.engine.insert(
            Observed {
                container,
                name,
                identity,
                state,
                created,
            },
            agent,
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn converges_and_then_rests(
        wanted in any_desired(),
        containers in prop::collection::vec(any_observed(), 0..12),
    ) {
        let desired = wanted.desired();
        let mut world = World::new();
        populate(&world, &desired, containers);
        world.settle(&desired);
        for (flow, step) in steps(&desired) {
            if step.blocked.is_some() {
                continue;
            }
            let there: Vec<_> = world.observed().into_iter()
                .filter(|one| {
                    let identity = &one.identity;
                    (&identity.instance, &identity.flow, &identity.step) == (&desired.instance, &flow.flow.name, &step.id)
                })
                .collect();
            let wanted = if step.state == FlowState::Stopped { 0 } else { step.replicas };
            let mut numbers: Vec<_> = there.iter().map(|one| one.identity.replica).collect();
            numbers.sort_unstable();
            prop_assert_eq!(numbers, (1..=wanted).collect::<Vec<_>>(), "of {}", &step.id);
            let expected = if step.state == FlowState::Paused { AgentState::Paused } else { AgentState::Running };
            for one in there {
                prop_assert_eq!(&one.identity.spec, &step.spec);
                prop_assert_eq!(world.engine.agent(&one.container), Some(expected));
            }
        }
    }

    #[test]
    fn strangers_are_never_touched(
        wanted in any_desired(),
        containers in prop::collection::vec(any_observed(), 0..12),
    ) {
        let desired = wanted.desired();
        let mut world = World::new();
        populate(&world, &desired, containers);
        let strangers = |world: &World| -> Vec<String> {
            let all = world.observed().into_iter();
            all.filter(|one| one.identity.instance != "i").map(|one| one.container).collect()
        };
        let before = strangers(&world);
        let done = world.settle(&desired);
        prop_assert_eq!(strangers(&world), before);
        prop_assert!(done.iter().all(|action| action.identity.instance == "i"));
    }

    #[test]
    fn every_action_has_a_reason(
        wanted in any_desired(),
        containers in prop::collection::vec(any_observed(), 0..12),
    ) {
        let desired = wanted.desired();
        let mut world = World::new();
        populate(&world, &desired, containers);
        let done = world.settle(&desired);
        prop_assert!(done.iter().all(|action| !action.reason.is_empty()));
        prop_assert!(done.iter().all(|it| it.container.is_none() == (it.kind == ActionKind::Create)));
    }

    #[test]
    fn blocked_steps_lose_nothing(
        replicas in 0_u32..5,
        containers in prop::collection::vec(any_observed(), 0..12),
        failure in any::<bool>(),
    ) {
        let desired = testing::desired(FlowState::Running, |facts| {
            set_replicas(facts, replicas);
            facts.get_mut("crm").unwrap().image = Err("no image".into());
        });
        let mut world = World::new();
        populate(&world, &desired, containers);
        for one in world.observed().iter().filter(|_| failure) {
            let failure = Failure { count: 1, at: 0, next: 0, reason: "x".into(), last_lines: vec![] };
            world.memory.failures.insert(one.identity.clone(), failure);
        }
        let done = world.settle(&desired);
        let lost = done.iter().find(|action| {
            (action.identity.flow.as_str(), action.identity.step.as_str()) == ("f", "crm")
                && !matches!(action.kind, ActionKind::Signal(Signal::Pause | Signal::Resume))
        });
        prop_assert_eq!(lost, None);
    }
}
