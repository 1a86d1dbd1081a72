//! The loop: observe, plan, act, publish.
//!
//! # Flow
//! Every few seconds, when something changed, and when someone asks for it: what should be is
//! asked of the [`DesiredSource`], what is of the [`Engine`], how the agents are of the [`Agents`];
//! [`plan`] says what to do, and that is done, several at a time.
//!
//! # Guarantees
//! - If what is or what should be cannot be found out, nothing is done.
//! - A round may be cut off anywhere: the next one finds out what was done.
//! - What runs when the loop starts is adopted; when the loop stops, everything runs on.
//!
//! # Assumptions
//! One loop an instance.
//!
//! # Caveats
//! A round waits for its slowest action, at most `ACTION`.
//!
//! # Errors
//! None leaves the loop: each is in the [`Status`] until it is over, and logged once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use towpath_protocol::log::LogLine;
use towpath_protocol::office::Report;
use towpath_protocol::start::Identity;

use super::gauge::{Gauge, Loads, wake};
use super::memory::Memory;
use super::plan::{Action, ActionKind, plan};
use super::scaling::Scaling;
use super::status::{Status, flows};
use super::watchdog::Watchdog;
use super::{Desired, FlowState};
use crate::engine::{ContainerState, Engine, EngineError, LogQuery, Observed, chain};
use crate::ledger::Sighting;
use crate::rates::Containers;
use crate::reports::StepKey;

/// The longest that one action may take. The engine has limits of its own, below this one.
const ACTION: Duration = Duration::from_secs(180);

/// The shortest time between two rounds: an engine that lies must not make the loop spin.
const PACE: Duration = Duration::from_millis(200);

/// How often to look, at least, while there are autoscaled steps: what waits is not announced.
const SCALING: Duration = Duration::from_secs(2);

/// How often the queues of all steps are counted, to find who does not take from them.
const COUNT_ALL_MS: u64 = 30_000;

/// How many of the last lines of a replica that failed are kept, and how long each may be.
const LAST_LINES: u32 = 20;
const LAST_LINE_CHARS: usize = 500;

/// What should be.
#[async_trait]
pub trait DesiredSource: Send + Sync + 'static {
    /// Says what should be now.
    async fn desired(&self) -> anyhow::Result<Desired>;
    /// An image that something should be made from is not there: whoever remembers it is wrong.
    fn image_is_gone(&self, _image: &str) {}
}

/// What the agents say.
pub trait Agents: Send + Sync + 'static {
    /// The last report of an agent.
    fn latest(&self, identity: &Identity) -> Option<Report>;
}

impl<F: Fn(&Identity) -> Option<Report> + Send + Sync + 'static> Agents for F {
    fn latest(&self, identity: &Identity) -> Option<Report> {
        self(identity)
    }
}

/// How the loop is run.
#[derive(Debug, Clone)]
pub struct Pace {
    /// How often to look when nothing is heard.
    pub resync: Duration,
    /// How many actions to do at a time.
    pub parallel: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            resync: Duration::from_secs(5),
            parallel: 8,
        }
    }
}

/// The loop.
pub struct Reconciler {
    engine: Arc<dyn Engine>,
    source: Arc<dyn DesiredSource>,
    agents: Arc<dyn Agents>,
    gauge: Arc<dyn Gauge>,
    instance: String,
    pace: Pace,
    memory: Memory,
    scaling: Scaling,
    watchdog: Watchdog,
    counted_all_at: u64,
    is_prepared: bool,
    complaints: BTreeMap<String, String>,
    status: watch::Sender<Status>,
    known: watch::Sender<Known>,
    asked: Arc<Notify>,
}

/// What the last round knew.
#[derive(Debug, Clone, Default)]
struct Known {
    /// When the round began; 0 if there was none.
    at: u64,
    observed: Vec<Observed>,
    memory: Memory,
    scaling: Scaling,
}

/// What the rest of the control plane has of the loop.
#[derive(Clone)]
pub struct Handle {
    /// How everything is.
    pub status: watch::Receiver<Status>,
    known: watch::Receiver<Known>,
    asked: Arc<Notify>,
}

impl Handle {
    /// Asks for a round now: what should be has changed.
    pub fn look_now(&self) {
        self.asked.notify_one();
    }

    /// Says what the last round knew of a replica: when it looked, whether there was a container
    /// that had not ended, and how one failed last.
    pub fn sighting(&self, identity: &Identity) -> Sighting {
        let known = self.known.borrow();
        let is_there = known.observed.iter().any(|one| {
            one.identity == *identity && !matches!(one.state, ContainerState::Exited { .. })
        });
        let failure = known.memory.failures.get(identity);
        Sighting {
            reported: None,
            looked_at: known.at,
            is_there,
            failure: failure.map(|failure| (failure.at, failure.reason.clone())),
        }
    }

    /// Says which containers the last round saw that had not ended.
    pub fn containers(&self) -> Containers {
        let known = self.known.borrow();
        let there = known.observed.iter();
        let there = there.filter(|one| !matches!(one.state, ContainerState::Exited { .. }));
        Containers {
            looked_at: known.at,
            there: there.map(|one| one.identity.clone()).collect(),
        }
    }

    /// Says what would be done now if that were what should be. Nothing is done.
    pub fn dry_run(&self, desired: &Desired) -> Vec<Action> {
        let known = self.known.borrow().clone();
        let mut desired = desired.clone();
        known.scaling.fill(&mut desired);
        plan(&desired, &known.observed, &known.memory, now_ms())
    }
}

/// What a round has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Round {
    /// Nothing could be found out, for this reason, and nothing was done.
    Blind(String),
    /// There was nothing to do.
    AtRest,
    /// This was done, or tried.
    Acted {
        /// How many actions succeeded.
        done: usize,
        /// How many did not.
        failed: usize,
    },
}

impl Reconciler {
    /// Makes the loop for an instance; nothing happens until it is run.
    pub fn new(
        instance: impl Into<String>,
        engine: Arc<dyn Engine>,
        source: Arc<dyn DesiredSource>,
        agents: Arc<dyn Agents>,
        gauge: Arc<dyn Gauge>,
        pace: Pace,
    ) -> (Self, Handle) {
        let (status, status_receiver) = watch::channel(Status::default());
        let (known, known_receiver) = watch::channel(Known::default());
        let asked = Arc::new(Notify::new());
        let handle = Handle {
            status: status_receiver,
            known: known_receiver,
            asked: asked.clone(),
        };
        let reconciler = Self {
            engine,
            source,
            agents,
            gauge,
            instance: instance.into(),
            pace,
            memory: Memory::default(),
            scaling: Scaling::default(),
            watchdog: Watchdog::default(),
            counted_all_at: 0,
            is_prepared: false,
            complaints: BTreeMap::new(),
            status,
            known,
            asked,
        };
        (reconciler, handle)
    }

    /// Runs until `stop`. What runs then runs on.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut changes: BoxStream<'static, ()> = self.engine.changes(&self.instance).await;
        loop {
            // A round is not cut off by `stop` in the middle of an action that could finish: it
            // could be, because the next one finds out; but the fewer half-made things the better.
            let round = self.round(now_ms()).await;
            let rest = match round {
                Round::Acted { done: 1.., .. } => PACE,
                _ => self.rest(now_ms()),
            };
            tokio::time::sleep(PACE).await;
            let sleeping = self.scaling.sleeping();
            // All of these are cancel-safe: a notification that is not taken is kept, and a change
            // that is missed is only a hint.
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.asked.notified() => {}
                () = wake(self.gauge.as_ref(), &sleeping) => {}
                _ = changes.next() => {}
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    /// How long to rest: until the next resync, or until something that waits is due.
    fn rest(&self, now: u64) -> Duration {
        let due = self
            .memory
            .failures
            .values()
            .map(|failure| failure.next)
            .chain(self.memory.removals.values().map(|removal| removal.next))
            .filter(|it| *it > now);
        let due = due
            .min()
            .map_or(self.pace.resync, |next| Duration::from_millis(next - now));
        let look = if self.scaling.is_empty() {
            self.pace.resync
        } else {
            self.pace.resync.min(SCALING)
        };
        due.min(look)
    }

    /// Does one round, as of `now` in milliseconds since 1970.
    pub async fn round(&mut self, now: u64) -> Round {
        let (mut desired, observed) = match self.look().await {
            Ok(found) => found,
            Err(trouble) => {
                self.complain("look", Some(&trouble));
                self.status
                    .send_modify(|status| status.trouble = Some(trouble.clone()));
                return Round::Blind(trouble);
            }
        };
        self.complain("look", None);
        let failed = self
            .memory
            .learn(&observed, |identity| self.agents.latest(identity), now);
        let loads = self.loads(&desired, now).await;
        self.scaling
            .decide(&mut desired, &observed, &self.memory, loads.as_ref(), now);
        self.watch(&desired, &observed, loads.as_ref(), now);
        self.memory
            .keep_failures(|identity| is_wanted(&desired, identity));
        for container in failed {
            self.keep_last_lines(&container, &observed).await;
        }
        let actions = plan(&desired, &observed, &self.memory, now);
        self.publish(&desired, &observed, now);
        let round = self.act(&desired, actions, now).await;
        if round != Round::AtRest {
            self.publish(&desired, &observed, now);
        }
        round
    }

    /// What waits for the steps of which it matters now; none if the broker cannot be asked.
    async fn loads(&mut self, desired: &Desired, now: u64) -> Option<Loads> {
        let is_time = now.saturating_sub(self.counted_all_at) >= COUNT_ALL_MS;
        let steps: Vec<StepKey> = if is_time {
            self.counted_all_at = now;
            let steps = desired.flows.iter().flat_map(|flow| {
                let name = &flow.flow.name;
                flow.steps
                    .iter()
                    .map(move |step| (name.clone(), step.id.clone()))
            });
            steps.collect()
        } else {
            Scaling::asks_for(desired)
        };
        self.gauge.read(&steps).await
    }

    /// Finds who runs and does nothing, and has it replaced.
    fn watch(&mut self, desired: &Desired, observed: &[Observed], loads: Option<&Loads>, now: u64) {
        for (container, reason) in self.watchdog.look(observed, &self.memory, loads, now) {
            let Some(one) = observed.iter().find(|one| one.container == container) else {
                continue;
            };
            let identity = &one.identity;
            if !is_wanted(desired, identity) {
                continue;
            }
            let Identity {
                flow,
                step,
                replica,
                ..
            } = identity;
            tracing::warn!(flow, step, replica, reason, "a replica is replaced");
            self.memory.recycle(&container, &reason, identity);
        }
    }

    async fn look(&mut self) -> Result<(Desired, Vec<Observed>), String> {
        let desired = self.source.desired().await.map_err(|error| {
            format!("cannot find out what should be: {}", chain(error.as_ref()))
        })?;
        if !self.is_prepared {
            self.engine
                .prepare(&self.instance)
                .await
                .map_err(|error| chain(&error))?;
            self.is_prepared = true;
        }
        let observed = self
            .engine
            .observe(&self.instance)
            .await
            .map_err(|error| chain(&error))?;
        let observed = self.believe(observed).await;
        Ok((desired, observed))
    }

    /// Adds what was there in the last round and is not in this list, unless the engine says of it
    /// by name that it is gone: of an exclusive replica there would be a second one otherwise.
    async fn believe(&mut self, mut observed: Vec<Observed>) -> Vec<Observed> {
        let mut gone = Vec::new();
        for one in self.memory.missing_from(&observed) {
            match self.engine.is_there(&one.container).await {
                Ok(false) => gone.push(one),
                Ok(true) | Err(_) => observed.push(one),
            }
        }
        self.memory.saw(&observed, &gone);
        observed
    }

    async fn act(&mut self, desired: &Desired, actions: Vec<Action>, now: u64) -> Round {
        if actions.is_empty() {
            return Round::AtRest;
        }
        let (engine, source) = (&self.engine, &self.source);
        let results: Vec<_> = stream::iter(actions)
            .map(|action| async move {
                let result = match timeout(ACTION, perform(engine.as_ref(), desired, &action)).await
                {
                    Ok(result) => result.map_err(|error| {
                        if let EngineError::ImageGone { image } = &error {
                            source.image_is_gone(image);
                        }
                        chain(&error)
                    }),
                    Err(_) => Err("the container engine does not answer".to_owned()),
                };
                (action, result)
            })
            .buffer_unordered(self.pace.parallel.max(1))
            .collect()
            .await;
        let (mut done, mut failed) = (0, 0);
        for (action, result) in results {
            self.log(&action, &result);
            if result.is_ok() {
                done += 1;
            } else {
                failed += 1;
                // The network may have been removed under us.
                self.is_prepared = false;
            }
            self.memory.acted(&action, result, now);
        }
        Round::Acted { done, failed }
    }

    fn publish(&self, desired: &Desired, observed: &[Observed], now: u64) {
        let flows = flows(desired, observed, &self.memory, &self.status.borrow(), now);
        self.status.send_replace(Status {
            at: now,
            trouble: None,
            flows,
        });
        let known = Known {
            at: now,
            observed: observed.to_vec(),
            memory: self.memory.clone(),
            scaling: self.scaling.clone(),
        };
        self.known.send_replace(known);
    }

    async fn keep_last_lines(&mut self, container: &str, observed: &[Observed]) {
        let Some(one) = observed.iter().find(|one| one.container == container) else {
            return;
        };
        let query = LogQuery {
            tail: Some(LAST_LINES),
            follow: false,
        };
        let read = async {
            let log = self.engine.logs(container, query).await;
            log.filter_map(|part| async { part.ok() })
                .collect::<Vec<_>>()
                .await
                .concat()
        };
        // A log that cannot be read is no reason to wait.
        let text = timeout(Duration::from_secs(5), read)
            .await
            .unwrap_or_default();
        let lines: Vec<String> = String::from_utf8_lossy(&text)
            .lines()
            .map(|line| match serde_json::from_str::<LogLine<'_>>(line) {
                Ok(line) => line.text.chars().take(LAST_LINE_CHARS).collect(),
                Err(_) => line.chars().take(LAST_LINE_CHARS).collect(),
            })
            .collect();
        let Identity {
            flow,
            step,
            replica,
            ..
        } = &one.identity;
        let reason = self
            .memory
            .failures
            .get(&one.identity)
            .map(|failure| &failure.reason);
        // The lines are for `status`: what a step writes has no place in this program's log.
        tracing::warn!(flow, step, replica, reason, "a replica failed");
        self.memory.keep_lines(&one.identity, lines);
    }

    fn log(&mut self, action: &Action, result: &Result<(), String>) {
        let Identity {
            flow,
            step,
            replica,
            ..
        } = &action.identity;
        let (verb, reason) = (action.kind.name(), &action.reason);
        let container = action.container.as_deref().unwrap_or_default();
        let key = format!("{verb} {flow} {step} {replica} {container}");
        match result {
            Ok(()) if self.is_repeated(action) => {
                tracing::debug!(flow, step, replica, reason, "{verb}, again");
            }
            Ok(()) => tracing::info!(flow, step, replica, reason, "{verb}"),
            Err(error) => {
                let text = format!("cannot {verb} {flow}/{step} #{replica}: {error}");
                self.complain(&key, Some(&text));
                return;
            }
        }
        self.complain(&key, None);
    }

    /// Whether the container was told so before and has not done it yet.
    fn is_repeated(&self, action: &Action) -> bool {
        let Some(container) = &action.container else {
            return false;
        };
        match action.kind {
            ActionKind::Signal(crate::engine::Signal::Drain) => {
                self.memory.drains.contains_key(container)
            }
            ActionKind::Signal(signal) => self
                .memory
                .signals
                .get(container)
                .is_some_and(|(last, _)| *last == signal),
            ActionKind::Create | ActionKind::Remove => false,
        }
    }

    /// Warns, but not twice of the same.
    fn complain(&mut self, about: &str, trouble: Option<&str>) {
        match trouble {
            None => {
                self.complaints.remove(about);
            }
            Some(trouble) if self.complaints.get(about).is_some_and(|it| it == trouble) => {}
            Some(trouble) => {
                tracing::warn!("{trouble}");
                if self.complaints.len() >= COMPLAINTS_MAX {
                    self.complaints.clear();
                }
                self.complaints.insert(about.to_owned(), trouble.to_owned());
            }
        }
    }
}

/// The most complaints that are remembered as made.
const COMPLAINTS_MAX: usize = 1_000;

async fn perform(
    engine: &dyn Engine,
    desired: &Desired,
    action: &Action,
) -> Result<(), EngineError> {
    let container = action.container.as_deref().unwrap_or_default();
    match action.kind {
        ActionKind::Remove => engine.remove(container).await,
        ActionKind::Signal(signal) => match engine.signal(container, signal).await {
            // It has ended already: the next round sees that.
            Err(EngineError::NotFound { .. }) => Ok(()),
            done => done,
        },
        ActionKind::Create => {
            let identity = &action.identity;
            let found = desired
                .flows
                .iter()
                .filter(|flow| flow.flow.name == identity.flow)
                .flat_map(|flow| &flow.steps)
                .find(|step| step.id == identity.step && step.spec == identity.spec)
                .and_then(|step| Some((step.state, step.blueprint.as_ref()?)));
            let Some((state, blueprint)) = found else {
                return Err(EngineError::NotFound {
                    what: "blueprint for it".to_owned(),
                });
            };
            let is_paused = state == FlowState::Paused;
            engine
                .start(&blueprint.replica(identity.replica, is_paused))
                .await
                .map(drop)
        }
    }
}

fn is_wanted(desired: &Desired, identity: &Identity) -> bool {
    desired.flows.iter().any(|flow| {
        flow.flow.name == identity.flow
            && flow.steps.iter().any(|step| {
                step.id == identity.step
                    && step.state != FlowState::Stopped
                    && identity.replica <= step.replicas
                    && (step.spec == identity.spec || step.blocked.is_some())
            })
    })
}

fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
