//! The control plane as a process: bind everything, start it, wait for a signal, end in order.
//!
//! # Invariants
//!
//! - It starts while broker and engine are away, and `/ready` says so.
//! - Ending it stops no step: containers run on, and are adopted by the next one.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::api::{ApiState, Token, router};
use crate::broker::rabbit::Rabbit;
use crate::broker::topology::Names;
use crate::broker::{Broker, BrokerError};
use crate::control::catalog::Catalog;
use crate::control::error::ControlError;
use crate::control::{Control, Parts};
use crate::engine::docker::DockerEngine;
use crate::engine::{AgentBinaries, AgentError, Engine, chain};
use crate::ingress::{ANSWERED_MS, Gates, Ingress, Worker};
use crate::inquiry::Inquiry;
use crate::ledger::Sighting;
use crate::metrics::Metrics;
use crate::office::Office;
use crate::rates::{Containers, Rates};
use crate::reconcile::gauge::BrokerGauge;
use crate::reconcile::run::{Handle, Pace, Reconciler};
use crate::reconcile::spec::Ground;
use crate::reports::Reports;
use crate::run_watch::RunWatch;
use crate::schedule::{Scheduler, system_clock};
use crate::settings::{Settings, without_password};
use crate::store::ledger::Sightings;
use crate::store::{Store, StoreError, now_ms, private_text};

/// How long requests may take to end after a signal.
const DRAIN: Duration = Duration::from_secs(10);

/// How long each other part may take to end.
const END: Duration = Duration::from_secs(10);

/// How often declaring is tried while the broker is away.
const DECLARE_AGAIN: Duration = Duration::from_secs(2);

/// How long replayed and discarded dead letters are kept: 30 days.
const DECIDED_MS_KEPT: u64 = 30 * 24 * 3_600_000;

/// How many messages the ledger forgets at once: some milliseconds of the store's time.
const FORGET_AT_ONCE: u32 = 2_000;

/// How many answers of flows are forgotten at once: each may have a megabyte.
const FORGET_ANSWERS_AT_ONCE: u32 = 100;

/// How long it rests before it forgets more. With [`FORGET_AT_ONCE`], ten thousand a second: more
/// than come in.
const FORGET_PAUSE: Duration = Duration::from_millis(200);

/// How often it looks whether there is something to forget.
const FORGET_EVERY: Duration = Duration::from_secs(60);

/// A day.
const DAY_MS: u64 = 24 * 3_600_000;

/// Why the control plane does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Someone listens there already, or it is no address of this machine.
    #[error("cannot listen at {address}")]
    Listen {
        /// Where.
        address: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The agent's programs cannot be read.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The broker's URL cannot be used.
    #[error("the setting `broker.url` cannot be used")]
    BrokerUrl(#[source] BrokerError),
    /// What was applied cannot be read.
    #[error("what was applied cannot be read")]
    Applied(#[from] ControlError),
    /// Signals cannot be heard.
    #[error("cannot wait for signals")]
    Signals(#[source] std::io::Error),
    /// Its own binary cannot be found.
    #[error("cannot find the binary that runs")]
    Program(#[source] std::io::Error),
    /// A part of it ended that never should.
    #[error("a part of the control plane failed: {what}")]
    Part {
        /// Which, and how.
        what: String,
    },
}

/// Runs the control plane until SIGTERM or SIGINT. `docker_host` is where the engine listens, if
/// not where it always does.
pub async fn serve(settings: &Settings, docker_host: Option<String>) -> Result<(), ServeError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Signals)?;
    let listen = |source| ServeError::Listen {
        address: settings.listen.to_string(),
        source,
    };
    let listener = TcpListener::bind(settings.listen).await.map_err(listen)?;
    let store = Store::open(&settings.data)?;
    let token = token(settings)?;
    let stop = CancellationToken::new();
    let plane = Plane::start(settings, store, docker_host, &stop).await?;
    let state = ApiState {
        control: plane.control.clone(),
        ingress: plane.ingress.clone(),
        token: Token::new(&token),
        body_bytes_max: usize::try_from(settings.body_bytes_max).unwrap_or(usize::MAX),
        stop: stop.child_token(),
    };
    let requests_stop = state.stop.clone();
    let waiters = plane.ingress.waiters();
    let mut parts = plane.parts;
    tracing::info!(
        listen = %settings.listen,
        data = %settings.data.display(),
        instance = settings.instance,
        broker = without_password(&settings.broker.url),
        "ready to serve"
    );
    let mut requests = JoinSet::new();
    let until = requests_stop.clone();
    requests.spawn(async move {
        axum::serve(listener, router(state))
            .with_graceful_shutdown(until.cancelled_owned())
            .await
    });
    // All of them are cancel-safe: nothing is lost by not waiting any longer.
    let outcome = tokio::select! {
        _ = terminate.recv() => Ok("SIGTERM"),
        _ = interrupt.recv() => Ok("SIGINT"),
        Some(ended) = parts.join_next() => Err(part_ended(ended)),
        Some(ended) = requests.join_next() => Err(match ended {
            Ok(Ok(())) => ServeError::Part { what: "the API ended".to_owned() },
            Ok(Err(error)) => ServeError::Part { what: format!("the API: {error}") },
            Err(error) => ServeError::Part { what: format!("the API: {error}") },
        }),
    };
    if let Ok(signal) = &outcome {
        tracing::info!(signal, "ending; containers run on");
    }
    requests_stop.cancel();
    waiters.release();
    if timeout(DRAIN, requests.join_next()).await.is_err() {
        tracing::warn!("some requests did not end in time and are cut off");
    }
    stop.cancel();
    while let Ok(Some(_)) = timeout(END, parts.join_next()).await {}
    plane.broker_stop.cancel();
    if timeout(END, plane.rabbit.closed()).await.is_err() {
        tracing::debug!("the connections to the broker did not end in time");
    }
    outcome.map(drop)
}

/// The token that opens the API: the one that was set, or one that is made once and kept.
fn token(settings: &Settings) -> Result<String, StoreError> {
    if !settings.token.is_empty() {
        return Ok(settings.token.clone());
    }
    let fresh = || {
        blake3::Hash::from_bytes(rand::random())
            .to_hex()
            .to_string()
    };
    let path = settings.data.join("token");
    let token = private_text(&path, fresh)?;
    if token.len() < 16 {
        return Err(StoreError::BadKey { path });
    }
    Ok(token)
}

/// Everything that runs beside the API.
struct Plane {
    control: Arc<Control>,
    ingress: Ingress,
    rabbit: Rabbit,
    broker_stop: CancellationToken,
    parts: JoinSet<&'static str>,
}

impl Plane {
    #[expect(
        clippy::too_many_lines,
        reason = "one part after the other, each made once"
    )]
    async fn start(
        settings: &Settings,
        store: Store,
        docker_host: Option<String>,
        stop: &CancellationToken,
    ) -> Result<Self, ServeError> {
        let names = Names::new(&*settings.instance);
        let agent = binaries(settings).load()?;
        // A token of its own: the broker is the last to go.
        let broker_stop = CancellationToken::new();
        let rabbit = Rabbit::start(&settings.broker.url, broker_stop.clone())
            .map_err(ServeError::BrokerUrl)?
            .with_step_deliveries_max(settings.broker.queue_deliveries_max);
        let broker: Arc<dyn Broker> = Arc::new(rabbit.clone());
        let docker = DockerEngine::new(docker_host, agent);
        let ground = Ground {
            names: names.clone(),
            broker_url: settings.broker.agent_url.clone(),
            agent: docker.agent_hash().to_owned(),
            body_bytes_max: towpath_protocol::BODY_BYTES_MAX,
            folders: Arc::new(settings.folders.clone()),
            key: store.derive_key("towpath 2026-11-21 spec hashes"),
        };
        let engine: Arc<dyn Engine> = Arc::new(docker);
        let catalog = Arc::new(Catalog::new(store.clone(), Arc::clone(&engine), ground));
        let inquiry = Inquiry::default();
        let (reports, metrics, clock) = (Reports::default(), Metrics::new(), system_clock());
        let said = reports.clone();
        let live = watch::Sender::new(Arc::default());
        let (reconciler, handle) = Reconciler::new(
            &*settings.instance,
            engine,
            catalog.clone(),
            Arc::new(move |identity: &towpath_protocol::start::Identity| said.latest(identity)),
            Arc::new(BrokerGauge {
                broker: Arc::clone(&broker),
                reports: reports.clone(),
                flows: live.subscribe(),
                names: names.clone(),
                deliveries_max: settings.broker.queue_deliveries_max,
            }),
            Pace::default(),
        );
        let runs_changed = Arc::new(Notify::new());
        let registrations_changed = Arc::new(Notify::new());
        let scheduler = Scheduler {
            broker: Arc::clone(&broker),
            store: store.clone(),
            names: names.clone(),
            flows: live.subscribe(),
            reports: reports.clone(),
            metrics: metrics.clone(),
            runs_changed: Arc::clone(&runs_changed),
            clock: clock.clone(),
        };
        let program = std::env::current_exe().map_err(ServeError::Program)?;
        let watch = RunWatch {
            broker: Arc::clone(&broker),
            store: store.clone(),
            names: names.clone(),
            flows: live.subscribe(),
            reports: reports.clone(),
            clock: clock.clone(),
        };
        let gates = Gates::default();
        let (ingress, worker) = Ingress::new(
            names.clone(),
            gates.clone(),
            live.subscribe(),
            metrics.clone(),
            store.clone(),
            clock.clone(),
            towpath_protocol::BODY_BYTES_MAX,
            program.clone(),
        );
        let office = Office {
            broker: Arc::clone(&broker),
            store: store.clone(),
            names: names.clone(),
            reports: reports.clone(),
            inquiry: inquiry.clone(),
            metrics: metrics.clone(),
            runs_changed,
            registrations_changed: Arc::clone(&registrations_changed),
            flows: live.subscribe(),
            sightings: sightings(reports.clone(), handle.clone()),
            waiters: ingress.waiters(),
            rates: Rates::default(),
            containers: containers(handle.clone()),
            clock: clock.clone(),
        };
        let control = Control::start(Parts {
            catalog,
            broker: Arc::clone(&broker),
            reconciler: handle.clone(),
            scheduler: scheduler.clone(),
            reports,
            inquiry,
            entered: ingress.recent(),
            gates,
            metrics: metrics.clone(),
            public_url: settings.public_url.clone(),
            program,
            stalled_after_ms: settings.stalled_after_seconds.saturating_mul(1_000),
            live,
            registrations_changed,
        })
        .await?;
        let control = Arc::new(control);
        let loops = Loops {
            control: Arc::clone(&control),
            reconciler,
            scheduler,
            office,
            watch,
            worker,
            broker,
            store,
            handle,
            metrics,
            ledger_ms_kept: u64::from(settings.ledger_days) * DAY_MS,
        };
        let parts = loops.spawn(stop);
        Ok(Self {
            control,
            ingress,
            rabbit,
            broker_stop,
            parts,
        })
    }
}

/// What runs until the end, beside the API.
struct Loops {
    control: Arc<Control>,
    reconciler: Reconciler,
    scheduler: Scheduler,
    office: Office,
    watch: RunWatch,
    worker: Worker,
    broker: Arc<dyn Broker>,
    store: Store,
    handle: Handle,
    metrics: Metrics,
    ledger_ms_kept: u64,
}

impl Loops {
    fn spawn(self, stop: &CancellationToken) -> JoinSet<&'static str> {
        let mut parts = JoinSet::new();
        let mut spawn = |name: &'static str, part: futures_util::future::BoxFuture<'static, ()>| {
            parts.spawn(async move {
                part.await;
                name
            });
        };
        let declared = CancellationToken::new();
        spawn(
            "declaring",
            Box::pin(declare(
                Arc::clone(&self.control),
                declared.clone(),
                stop.clone(),
            )),
        );
        spawn(
            "the reconciler",
            Box::pin(self.reconciler.run(stop.clone())),
        );
        spawn("the scheduler", Box::pin(self.scheduler.run(stop.clone())));
        let (office, read, until) = (self.office, declared, stop.clone());
        spawn(
            "the office",
            Box::pin(async move {
                // Nothing can be read from queues that are not there yet. Cancel-safe: both wait.
                tokio::select! {
                    () = until.cancelled() => {}
                    () = read.cancelled() => office.run(until.clone()).await,
                }
            }),
        );
        spawn("watching runs", Box::pin(self.watch.run(stop.clone())));
        spawn(
            "the ingress",
            Box::pin(self.worker.run(self.broker, stop.clone())),
        );
        spawn(
            "removing queues",
            Box::pin(Arc::clone(&self.control).run_removals(stop.clone())),
        );
        spawn(
            "registering",
            Box::pin(Arc::clone(&self.control).run_registrations(stop.clone())),
        );
        spawn(
            "replaying",
            Box::pin(self.control.replayer().run(stop.clone())),
        );
        spawn(
            "forgetting",
            Box::pin(forget(self.store.clone(), stop.clone())),
        );
        spawn(
            "forgetting answered requests",
            Box::pin(forget_answered(self.store.clone(), stop.clone())),
        );
        spawn(
            "forgetting settlements",
            Box::pin(forget_ledger(self.store, self.ledger_ms_kept, stop.clone())),
        );
        spawn(
            "counting restarts",
            Box::pin(count_restarts(self.handle, self.metrics, stop.clone())),
        );
        parts
    }
}

/// What is known of whoever claims messages: what it reported, and what the reconciler saw.
fn sightings(reports: Reports, reconciler: Handle) -> Sightings {
    Arc::new(move |identity| Sighting {
        reported: reports
            .latest(identity)
            .map(|report| (report.incarnation, report.at)),
        ..reconciler.sighting(identity)
    })
}

/// The containers that the reconciler saw last.
fn containers(reconciler: Handle) -> Arc<dyn Fn() -> Containers + Send + Sync> {
    Arc::new(move || reconciler.containers())
}

fn binaries(settings: &Settings) -> AgentBinaries {
    AgentBinaries::beside(&settings.binaries().join("towpath"))
}

/// Declares what should be on the broker until that has worked once, and says so through `declared`;
/// from then on the broker's own loop keeps it declared.
async fn declare(control: Arc<Control>, declared: CancellationToken, stop: CancellationToken) {
    let mut said = String::new();
    while let Err(error) = control.declare().await {
        if said != error.message {
            tracing::warn!("cannot declare queues yet: {error}");
            said = error.message;
        }
        // Cancel-safe: both only wait.
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(DECLARE_AGAIN) => {}
        }
    }
    declared.cancel();
    stop.cancelled().await;
}

/// Forgets dead letters that were decided long ago.
async fn forget(store: Store, stop: CancellationToken) {
    loop {
        let before = now_ms().saturating_sub(DECIDED_MS_KEPT);
        if let Err(error) = store.forget_decided(before).await {
            tracing::warn!("cannot forget old dead letters: {}", chain(&error));
        }
        // Cancel-safe: both only wait.
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(3600)) => {}
        }
    }
}

/// Forgets what was settled long ago, a little at a time: the ledger is written all the while.
async fn forget_ledger(store: Store, kept_ms: u64, stop: CancellationToken) {
    loop {
        let before = now_ms().saturating_sub(kept_ms);
        let pause = match store.forget_ledger(before, FORGET_AT_ONCE).await {
            Ok(0) => FORGET_EVERY,
            Ok(_) => FORGET_PAUSE,
            Err(error) => {
                tracing::warn!("cannot forget old settlements: {}", chain(&error));
                FORGET_EVERY
            }
        };
        // Cancel-safe: both only wait.
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Forgets requests to webhooks that were answered long ago, and what flows answered, a little at a
/// time.
async fn forget_answered(store: Store, stop: CancellationToken) {
    loop {
        let before = now_ms().saturating_sub(ANSWERED_MS);
        let forgotten = async {
            let requests = store.forget_answered(before, FORGET_AT_ONCE).await?;
            let answers = store.forget_answers(before, FORGET_ANSWERS_AT_ONCE).await?;
            Ok::<_, StoreError>(requests + answers)
        };
        let pause = match forgotten.await {
            Ok(0) => FORGET_EVERY,
            Ok(_) => FORGET_PAUSE,
            Err(error) => {
                tracing::warn!("cannot forget answered requests: {}", chain(&error));
                FORGET_EVERY
            }
        };
        // Cancel-safe: both only wait.
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Counts replicas that were started again, or replaced although they ran, from what the reconciler
/// says.
async fn count_restarts(handle: Handle, metrics: Metrics, stop: CancellationToken) {
    let mut status = handle.status.clone();
    let mut counted = std::collections::BTreeMap::new();
    loop {
        let now = status.borrow_and_update().clone();
        for (flow, steps) in &now.flows {
            for (step, is) in &steps.steps {
                let (restarts, recycled) = counted
                    .insert((flow.clone(), step.clone()), (is.restarts, is.recycled))
                    .unwrap_or_default();
                for _ in restarts..is.restarts {
                    metrics.replica_restart(flow, step);
                }
                for _ in recycled..is.recycled {
                    metrics.replica_recycled(flow, step);
                }
            }
        }
        // Cancel-safe: both only wait.
        tokio::select! {
            () = stop.cancelled() => return,
            changed = status.changed() => if changed.is_err() { stop.cancelled().await },
        }
    }
}

fn part_ended(ended: Result<&'static str, tokio::task::JoinError>) -> ServeError {
    let what = match ended {
        Ok(name) => format!("{name} ended"),
        Err(error) if error.is_panic() => "one panicked; the log says where".to_owned(),
        Err(error) => error.to_string(),
    };
    tracing::error!(what, "a part of the control plane failed");
    ServeError::Part { what }
}

/// Where the token is kept, if it is not set.
pub fn token_path(data: &Path) -> std::path::PathBuf {
    data.join("token")
}
