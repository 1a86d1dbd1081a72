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
    reports: BTreeMap<Identity, Report>,
    images: BTreeMap<String, Image>,
    made: u64,
    changes: u64,
}

/// A container with its agent.
struct Simulated {
    observed: Observed,
    agent: AgentState,
    is_paused: bool,
    ready_at: u64,
    ends_at: Option<u64>,
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
            reports: BTreeMap::new(),
            images: BTreeMap::new(),
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
                ready_at,
                ends_at,
            },
        );
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
        let ids: Vec<_> = self.containers.keys().cloned().collect();
        for id in ids {
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

    fn exit(&mut self, container: &str, code: i64) {
        let at = self.now;
        if let Some(one) = self.containers.get_mut(container) {
            one.observed.state = ContainerState::Exited {
                code,
                out_of_memory: false,
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
        if let Some(one) = self
            .containers
            .values_mut()
            .find(|one| one.observed.name == name)
        {
            return match one.observed.state {
                _ if one.observed.identity != *identity => Err("the name is taken".to_owned()),
                ContainerState::Exited { .. } => Err("it is there and has ended".to_owned()),
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
                ready_at,
                ends_at: None,
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
        });
        if let Some(report) = fresh
            && !self.chance(self.faults.silent)
        {
            self.reports.insert(identity.clone(), report);
        }
        // Otherwise what was said last, by whoever had this name.
        self.reports.get(identity).cloned()
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
        let all = world.containers.values().map(|one| one.observed.clone());
        Ok(all
            .filter(|one| one.identity.instance == instance)
            .collect())
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
        self.world().call("remove the container", |world| {
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
