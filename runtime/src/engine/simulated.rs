//! An engine in memory, with agents in its containers and faults from a seed, for simulations of
//! the real loop: the same seed gives the same story.
//!
//! Time stands still until [`SimulatedEngine::advance`]; nothing here sleeps.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use towpath_protocol::office::{AgentState, Counters, Latency, Report};
use towpath_protocol::start::Identity;

use crate::reconcile::gauge::{Gauge, Loads};
use crate::reports::StepKey;

use super::{ContainerState, Engine, EngineError, Image, LogQuery, Observed, ReplicaSpec, Signal};

/// How long a step process takes to start, in simulated milliseconds.
const START_MS: u64 = 400;

/// How likely each fault is, from 0 to 1. The default is none.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Faults {
    /// A call is refused and has no effect.
    pub refused: f64,
    /// A call has its effect, and fails all the same.
    pub lost_reply: f64,
    /// A start times out, and the replica appears seconds later.
    pub late: f64,
    /// A call is carried out twice.
    pub twice: f64,
    /// A signal is answered with success and never arrives.
    pub deaf: f64,
    /// Replicas cannot be listed.
    pub blind: f64,
    /// A container dies; for each of them, each time the clock is moved.
    pub crash: f64,
    /// An agent's report is not delivered; for each of them, each time it is asked for.
    pub silent: f64,
    /// A container is not in a list; for each of them, each time.
    pub overlooked: f64,
    /// A removal is answered with success, and nothing happens.
    pub undead: f64,
    /// A container is created, and cannot be started.
    pub unstarted: f64,
    /// The image is gone when a replica is made from it.
    pub no_image: f64,
    /// The disk is full when a replica is made.
    pub disk_full: f64,
    /// A stranger has the name that a replica wants, for some seconds.
    pub squatted: f64,
    /// Somebody removes a container by hand; for each of them, each time the clock is moved.
    pub by_hand: f64,
    /// The engine restarts, each time the clock is moved: all containers have exited, or are gone.
    pub restart: f64,
}

/// The engine.
#[derive(Clone)]
pub struct SimulatedEngine {
    world: Arc<Mutex<World>>,
}

struct World {
    random: StdRng,
    faults: Faults,
    now: u64,
    containers: BTreeMap<String, Simulated>,
    late: Vec<(u64, String, Identity, bool)>,
    /// The names that strangers have, and until when.
    squats: BTreeMap<String, u64>,
    reports: BTreeMap<Identity, Report>,
    images: BTreeMap<String, Image>,
    /// What waits for steps; none while the broker is away.
    loads: Option<Loads>,
    made: u64,
    changes: u64,
}

/// A container with its agent.
struct Simulated {
    observed: Observed,
    agent: AgentState,
    is_paused: bool,
    /// Whether it was paused when it was started.
    began_paused: bool,
    ready_at: u64,
    ends_at: Option<u64>,
    /// Whether somebody else put it there: then nobody removes it by hand.
    is_foreign: bool,
}

impl SimulatedEngine {
    /// Makes an engine without containers or faults. Its clock begins at a million.
    pub fn new(seed: u64) -> Self {
        let world = World {
            random: StdRng::seed_from_u64(seed),
            faults: Faults::default(),
            now: 1_000_000,
            containers: BTreeMap::new(),
            late: Vec::new(),
            squats: BTreeMap::new(),
            reports: BTreeMap::new(),
            images: BTreeMap::new(),
            loads: Some(Loads::new()),
            made: 0,
            changes: 0,
        };
        Self {
            world: Arc::new(Mutex::new(world)),
        }
    }

    /// Sets what may go wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.world().faults = faults;
    }

    /// The time, in milliseconds.
    pub fn now(&self) -> u64 {
        self.world().now
    }

    /// Moves the clock.
    pub fn advance(&self, ms: u64) {
        self.world().advance(ms);
    }

    /// Says what waits for steps from now on; none is a broker that is away.
    pub fn set_loads(&self, loads: Option<Loads>) {
        self.world().loads = loads;
    }

    /// Puts an image there.
    pub fn add_image(&self, reference: &str, image: Image) {
        self.world().images.insert(reference.to_owned(), image);
    }

    /// Puts a container there, as somebody else might.
    pub fn insert(&self, observed: Observed, agent: AgentState) {
        let mut world = self.world();
        let ready_at = world.now;
        let is_paused = agent == AgentState::Paused;
        let ends_at = (agent == AgentState::Draining).then_some(world.now + 1_000);
        let id = observed.container.clone();
        world.containers.insert(
            id,
            Simulated {
                observed,
                agent,
                is_paused,
                began_paused: is_paused,
                ready_at,
                ends_at,
                is_foreign: true,
            },
        );
    }

    /// Removes a container as `docker rm -f` does.
    pub fn remove_by_hand(&self, container: &str) {
        self.world().containers.remove(container);
    }

    /// The name of each container, and whether it was paused when it was started.
    pub fn started_paused(&self) -> Vec<(String, bool)> {
        let world = self.world();
        let all = world.containers.values();
        all.map(|one| (one.observed.name.clone(), one.began_paused))
            .collect()
    }

    /// Ends a container as `docker kill` does.
    pub fn kill(&self, container: &str) {
        self.world().exit(container, 137);
    }

    /// All containers there are, whoever they belong to.
    pub fn containers(&self) -> Vec<Observed> {
        self.world()
            .containers
            .values()
            .map(|one| one.observed.clone())
            .collect()
    }

    /// What the agent in a container is really doing.
    pub fn agent(&self, container: &str) -> Option<AgentState> {
        let world = self.world();
        let one = world.containers.get(container)?;
        (one.observed.state == ContainerState::Running).then_some(one.agent)
    }

    /// The last report of an agent that arrived.
    pub fn report(&self, identity: &Identity) -> Option<Report> {
        self.world().report(identity)
    }

    /// How many calls have changed something.
    pub fn changes_made(&self) -> u64 {
        self.world().changes
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world
            .lock()
            .expect("nothing panics while it holds this")
    }
}

impl World {
    fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.random.random_bool(probability)
    }

    fn advance(&mut self, ms: u64) {
        self.now += ms;
        let now = self.now;
        let (due, late) = std::mem::take(&mut self.late)
            .into_iter()
            .partition(|it| it.0 <= now);
        self.late = late;
        for (_, name, identity, is_paused) in due {
            // What came too late may find its name taken.
            drop(self.create(&name, &identity, is_paused));
        }
        self.squats.retain(|_, until| *until > now);
        if self.chance(self.faults.restart) {
            self.restart();
        }
        let ids: Vec<_> = self.containers.keys().cloned().collect();
        for id in ids {
            let is_foreign = self.containers.get(&id).is_some_and(|one| one.is_foreign);
            if !is_foreign && self.chance(self.faults.by_hand) {
                self.containers.remove(&id);
            }
            let crashes = self.chance(self.faults.crash);
            let Some(one) = self.containers.get_mut(&id) else {
                continue;
            };
            if one.observed.state != ContainerState::Running {
                continue;
            }
            if one.agent == AgentState::Starting && one.ready_at <= now {
                one.agent = if one.is_paused {
                    AgentState::Paused
                } else {
                    AgentState::Running
                };
            }
            if one.ends_at.is_some_and(|at| at <= now) {
                self.exit(&id, 0);
            } else if crashes {
                self.exit(&id, 137);
            }
        }
    }

    /// All containers have exited, or those that are ours are gone.
    fn restart(&mut self) {
        if self.random.random_bool(0.3) {
            self.containers.retain(|_, one| one.is_foreign);
        }
        let running = |one: &&Simulated| one.observed.state == ContainerState::Running;
        let ids: Vec<String> = self
            .containers
            .values()
            .filter(running)
            .map(|one| one.observed.container.clone())
            .collect();
        for id in ids {
            self.exit(&id, 137);
        }
    }

    fn exit(&mut self, container: &str, code: i64) {
        let at = self.now;
        if let Some(one) = self.containers.get_mut(container) {
            one.observed.state = ContainerState::Exited {
                code,
                out_of_memory: false,
                memory_bytes: 0,
                at,
            };
        }
    }

    fn create(
        &mut self,
        name: &str,
        identity: &Identity,
        is_paused: bool,
    ) -> Result<String, String> {
        if self.squats.contains_key(name) {
            return Err("the name is taken by a stranger".to_owned());
        }
        if let Some(one) = self
            .containers
            .values_mut()
            .find(|one| one.observed.name == name)
        {
            return match one.observed.state {
                _ if one.observed.identity != *identity => Err("the name is taken".to_owned()),
                ContainerState::Exited { .. } => {
                    let ended = one.observed.container.clone();
                    self.containers.remove(&ended);
                    self.create(name, identity, is_paused)
                }
                ContainerState::Created | ContainerState::Running => {
                    one.observed.state = ContainerState::Running;
                    Ok(one.observed.container.clone())
                }
            };
        }
        self.made += 1;
        self.changes += 1;
        let observed = Observed {
            container: format!("c{}", self.made),
            name: name.to_owned(),
            identity: identity.clone(),
            state: ContainerState::Running,
            created: self.now,
        };
        let id = observed.container.clone();
        let ready_at = self.now + START_MS;
        let agent = AgentState::Starting;
        self.containers.insert(
            id.clone(),
            Simulated {
                observed,
                agent,
                is_paused,
                began_paused: is_paused,
                ready_at,
                ends_at: None,
                is_foreign: false,
            },
        );
        Ok(id)
    }

    fn signal(&mut self, container: &str, signal: Signal) -> Result<(), EngineError> {
        let ends_at = self.now + self.random.random_range(200..3_000);
        let Some(one) = self.containers.get_mut(container) else {
            return Err(EngineError::NotFound {
                what: format!("container `{container}`"),
            });
        };
        self.changes += 1;
        match signal {
            Signal::Drain => {
                one.agent = AgentState::Draining;
                one.ends_at.get_or_insert(ends_at);
            }
            _ if one.agent == AgentState::Draining => {}
            Signal::Pause => {
                one.is_paused = true;
                one.agent = AgentState::Paused;
            }
            Signal::Resume => {
                one.is_paused = false;
                one.agent = AgentState::Running;
            }
        }
        Ok(())
    }

    fn report(&mut self, identity: &Identity) -> Option<Report> {
        let at = self.now;
        let running = self.containers.values().find(|one| {
            one.observed.identity == *identity && one.observed.state == ContainerState::Running
        });
        let fresh = running.map(|one| Report {
            identity: identity.clone(),
            incarnation: one.observed.container.clone(),
            at,
            state: one.agent,
            reason: None,
            in_hand: 0,
            held: 0,
            unacknowledged: 0,
            counters: Counters::default(),
            latency: Latency::default(),
            restarts: 0,
            step_resident_bytes: 0,
            agent_resident_bytes: 0,
            last_lines: Vec::new(),
            pacing: None,
        });
        if let Some(report) = fresh
            && !self.chance(self.faults.silent)
        {
            self.reports.insert(identity.clone(), report);
        }
        // Otherwise what was said last, by whoever had this name.
        self.reports.get(identity).cloned()
    }

    /// What may stand against making a replica, whatever the engine is told.
    fn obstacle(&mut self, name: &str, image: &str) -> Result<(), EngineError> {
        if self.chance(self.faults.no_image) {
            return Err(EngineError::ImageGone {
                image: image.to_owned(),
            });
        }
        if self.chance(self.faults.disk_full) {
            return Err(refused("create the container", "no space left on device"));
        }
        if self.chance(self.faults.squatted) {
            let until = self.now + self.random.random_range(1_000..20_000);
            let is_free = self
                .containers
                .values()
                .all(|one| one.observed.name != name);
            if is_free {
                self.squats.insert(name.to_owned(), until);
            }
        }
        Ok(())
    }

    /// Makes a call as the faults want it.
    fn call<T>(
        &mut self,
        what: &str,
        mut effect: impl FnMut(&mut Self) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        if self.chance(self.faults.refused) {
            return Err(refused(what, "it was told to"));
        }
        let result = effect(self);
        if self.chance(self.faults.twice) {
            drop(effect(self));
        }
        if self.chance(self.faults.lost_reply) {
            return Err(EngineError::TimedOut {
                what: what.to_owned(),
            });
        }
        result
    }
}

fn refused(what: &str, why: &str) -> EngineError {
    EngineError::Refused {
        what: what.to_owned(),
        source: why.into(),
    }
}

/// What waits is what a test said.
#[async_trait]
impl Gauge for SimulatedEngine {
    async fn read(&self, steps: &[StepKey]) -> Option<Loads> {
        let loads = self.world().loads.clone()?;
        let load = |key: &StepKey| loads.get(key).copied().unwrap_or_default();
        Some(steps.iter().map(|key| (key.clone(), load(key))).collect())
    }
}

#[async_trait]
impl Engine for SimulatedEngine {
    async fn version(&self) -> Result<String, EngineError> {
        Ok("simulated".to_owned())
    }

    async fn prepare(&self, _instance: &str) -> Result<(), EngineError> {
        self.world().call("prepare", |_| Ok(()))
    }

    async fn observe(&self, instance: &str) -> Result<Vec<Observed>, EngineError> {
        let mut world = self.world();
        let blind = world.faults.blind;
        if world.chance(blind) {
            return Err(EngineError::TimedOut {
                what: "list containers".to_owned(),
            });
        }
        let all: Vec<Observed> = world
            .containers
            .values()
            .map(|one| one.observed.clone())
            .collect();
        let overlooked = world.faults.overlooked;
        Ok(all
            .into_iter()
            .filter(|one| one.identity.instance == instance && !world.chance(overlooked))
            .collect())
    }

    async fn is_there(&self, container: &str) -> Result<bool, EngineError> {
        let mut world = self.world();
        let blind = world.faults.blind;
        if world.chance(blind) {
            return Err(EngineError::TimedOut {
                what: "inspect the container".to_owned(),
            });
        }
        Ok(world.containers.contains_key(container))
    }

    async fn image(&self, reference: &str) -> Result<Option<Image>, EngineError> {
        Ok(self.world().images.get(reference).cloned())
    }

    async fn start(&self, replica: &ReplicaSpec) -> Result<String, EngineError> {
        let mut world = self.world();
        let identity = &replica.start.identity;
        let late = world.faults.late;
        if world.chance(late) {
            let at = world.now + world.random.random_range(500..5_000);
            world.late.push((
                at,
                replica.name.clone(),
                identity.clone(),
                replica.start.paused,
            ));
            return Err(EngineError::TimedOut {
                what: "create the container".to_owned(),
            });
        }
        world.obstacle(&replica.name, &replica.image.id)?;
        let unstarted = world.faults.unstarted;
        if world.chance(unstarted) {
            if let Ok(id) = world.create(&replica.name, identity, replica.start.paused)
                && let Some(one) = world.containers.get_mut(&id)
                && one.agent == AgentState::Starting
            {
                one.observed.state = ContainerState::Created;
            }
            return Err(refused("start the container", "it was told to"));
        }
        world.call("create the container", |world| {
            world
                .create(&replica.name, identity, replica.start.paused)
                .map_err(|why| refused("create the container", &why))
        })
    }

    async fn signal(&self, container: &str, signal: Signal) -> Result<(), EngineError> {
        let mut world = self.world();
        let deaf = world.faults.deaf;
        if world.chance(deaf) {
            return Ok(());
        }
        world.call("signal the container", |world| {
            world.signal(container, signal)
        })
    }

    async fn remove(&self, container: &str) -> Result<(), EngineError> {
        let mut world = self.world();
        let undead = world.faults.undead;
        if world.chance(undead) {
            return Ok(());
        }
        world.call("remove the container", |world| {
            world.changes += 1;
            world.containers.remove(container);
            Ok(())
        })
    }

    async fn logs(
        &self,
        container: &str,
        _query: LogQuery,
    ) -> BoxStream<'static, Result<Bytes, EngineError>> {
        let line = Bytes::from(format!("{{\"text\":\"the end of {container}\"}}\n"));
        stream::once(async move { Ok(line) }).boxed()
    }

    async fn changes(&self, _instance: &str) -> BoxStream<'static, ()> {
        stream::pending().boxed()
    }
}
