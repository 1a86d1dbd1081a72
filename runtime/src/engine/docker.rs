//! The Docker engine. This module and those below it are the only ones that name `bollard`.
//!
//! # Invariants
//!
//! - Every call has a time limit; what timed out may have happened, and may be repeated.
//! - A container is ours if its labels say so, never because of its name.
//! - Nothing of the host is mounted into a container, no device and no socket, but the folders that
//!   the settings name and the flow asks for.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bollard::Docker;
use bollard::errors::Error;
use bollard::models::NetworkCreateRequest;
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, KillContainerOptionsBuilder,
    RemoveContainerOptionsBuilder,
};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::io::AsyncWriteExt;
use tokio::sync::{Mutex, OnceCell};

use super::{Agent, Engine, EngineError, Image, LogQuery, Observed, ReplicaSpec, Signal};

mod container;
mod images;
mod observe;
mod volume;
mod watch;

pub use images::Build;

/// How long the engine may take to answer a question.
const ANSWER: Duration = Duration::from_secs(15);

/// How long it may take to create, start or remove a container: a busy disk takes its time.
const WORK: Duration = Duration::from_secs(60);

/// Where the engine listens unless it is said otherwise.
const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";

/// The Docker engine.
#[derive(Clone)]
pub struct DockerEngine {
    inner: Arc<Inner>,
}

struct Inner {
    host: String,
    agent: Agent,
    connection: OnceCell<Connection>,
    /// The volumes that are known to be filled; held while one is being filled.
    filled: Mutex<BTreeSet<String>>,
    /// The network is made by one at a time: two of one name would both be made.
    network: Mutex<()>,
    /// Images that could not be pulled, and when that was tried.
    unavailable: std::sync::Mutex<HashMap<String, Instant>>,
}

/// An engine that has answered.
#[derive(Clone)]
struct Connection {
    docker: Docker,
    /// How many processors it has: it refuses a limit above.
    processors: f64,
}

impl DockerEngine {
    /// Uses the engine at `host` (`unix:///…`, `tcp://…`), or where Docker listens by default.
    /// Nothing is connected yet: an engine that is away now may come.
    pub fn new(host: Option<String>, agent: Agent) -> Self {
        let host = host.unwrap_or_else(|| DEFAULT_HOST.to_owned());
        let inner = Inner {
            host,
            agent,
            connection: OnceCell::new(),
            filled: Mutex::default(),
            network: Mutex::default(),
            unavailable: std::sync::Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The hash of the agent that is put into containers.
    pub fn agent_hash(&self) -> &str {
        self.inner.agent.hash()
    }

    async fn connection(&self) -> Result<&Connection, EngineError> {
        self.inner
            .connection
            .get_or_try_init(|| connect(&self.inner.host))
            .await
    }

    async fn docker(&self) -> Result<&Docker, EngineError> {
        Ok(&self.connection().await?.docker)
    }

    /// Finds out what has a replica's name already.
    async fn named(&self, replica: &ReplicaSpec) -> Result<Named, EngineError> {
        let docker = self.docker().await?;
        let what = format!("inspect the container `{}`", replica.name);
        let found = match call(what, ANSWER, docker.inspect_container(&replica.name, None)).await {
            Err(EngineError::NotFound { .. }) => return Ok(Named::Gone),
            found => found?,
        };
        Ok(container::named(found, replica))
    }

    async fn create(&self, replica: &ReplicaSpec) -> Result<Named, EngineError> {
        let connection = self.connection().await?;
        let volume = self.inner.agent.volume(&replica.start.identity.instance);
        let body = container::body(replica, &volume, connection.processors)?;
        let options = CreateContainerOptionsBuilder::default()
            .name(&replica.name)
            .build();
        let what = format!("create the container `{}`", replica.name);
        match call(
            what,
            WORK,
            connection.docker.create_container(Some(options), body),
        )
        .await
        {
            Ok(created) => Ok(Named::Created(created.id)),
            // There is nothing else that it could lack.
            Err(EngineError::NotFound { .. }) => Err(EngineError::ImageGone {
                image: replica.image.id.clone(),
            }),
            Err(error) if is_conflict(&error) => self.named(replica).await,
            Err(error) => Err(error),
        }
    }

    /// Starts a container that was created, and hands its agent the start document.
    async fn launch(&self, replica: &ReplicaSpec, container: &str) -> Result<(), EngineError> {
        let docker = self.docker().await?;
        let name = &replica.name;
        let options = AttachContainerOptionsBuilder::default()
            .stdin(true)
            .stream(true)
            .build();
        let what = format!("attach to the container `{name}`");
        let attached = call(
            what,
            ANSWER,
            docker.attach_container(container, Some(options)),
        );
        let mut input = attached.await?.input;
        let what = format!("start the container `{name}`");
        call(what, WORK, docker.start_container(container, None)).await?;
        let document = serde_json::to_vec(&replica.start)
            .map_err(|error| refused("write a start document", error))?;
        let written = async {
            input.write_all(&document).await?;
            input.flush().await?;
            input.shutdown().await
        };
        let what = format!("hand the container `{name}` its start document");
        match tokio::time::timeout(ANSWER, written).await {
            Err(_) => Err(EngineError::TimedOut { what }),
            Ok(Err(error)) => Err(refused(what, error)),
            Ok(Ok(())) => Ok(()),
        }
    }
}

/// What has the name that a replica wants.
enum Named {
    /// The replica itself, created and not yet started.
    Created(String),
    /// The replica itself, running.
    Running(String),
    /// The replica itself, and it has ended.
    Ended(String),
    /// Something else.
    Taken(String),
    /// Nothing any more.
    Gone,
}

#[async_trait]
impl Engine for DockerEngine {
    async fn version(&self) -> Result<String, EngineError> {
        let docker = self.docker().await?;
        let version = call("say its version", ANSWER, docker.version()).await?;
        let number = version.version.unwrap_or_default();
        let api = version.api_version.unwrap_or_default();
        Ok(format!("Docker {number} (API {api})"))
    }

    async fn prepare(&self, instance: &str) -> Result<(), EngineError> {
        let docker = self.docker().await?;
        let _one_at_a_time = self.inner.network.lock().await;
        let what = format!("inspect the network `{instance}`");
        match call(what, ANSWER, docker.inspect_network(instance, None)).await {
            Err(EngineError::NotFound { .. }) => {
                let request = NetworkCreateRequest {
                    name: instance.to_owned(),
                    driver: Some("bridge".to_owned()),
                    labels: Some(container::instance_label(instance)),
                    ..Default::default()
                };
                let what = format!("create the network `{instance}`");
                call(what, WORK, docker.create_network(request)).await?;
            }
            found => drop(found?),
        }
        self.make_volume(instance).await
    }

    async fn observe(&self, instance: &str) -> Result<Vec<Observed>, EngineError> {
        observe::observe(self.docker().await?, instance).await
    }

    async fn is_there(&self, container: &str) -> Result<bool, EngineError> {
        let docker = self.docker().await?;
        let what = format!("inspect the container `{container}`");
        match call(what, ANSWER, docker.inspect_container(container, None)).await {
            Err(EngineError::NotFound { .. }) => Ok(false),
            found => found.map(|_| true),
        }
    }

    async fn image(&self, reference: &str) -> Result<Option<Image>, EngineError> {
        self.find_image(reference).await
    }

    async fn start(&self, replica: &ReplicaSpec) -> Result<String, EngineError> {
        let image = &replica.image.id;
        match self
            .fill_volume(&replica.start.identity.instance, image)
            .await
        {
            Err(EngineError::NotFound { what }) if what.contains("image") => {
                return Err(EngineError::ImageGone {
                    image: image.clone(),
                });
            }
            filled => filled?,
        }
        let mut found = self.create(replica).await?;
        if let Named::Ended(container) = &found {
            // It is ours, and a list may have lacked it: nobody else would remove it.
            self.remove(container).await?;
            found = self.create(replica).await?;
        }
        let container = match found {
            Named::Running(container) => return Ok(container),
            Named::Created(container) => container,
            Named::Taken(why) => {
                let what = format!("create the container `{}`", replica.name);
                return Err(refused(what, Message(why)));
            }
            Named::Gone | Named::Ended(_) => {
                let what = format!("keep the container `{}`", replica.name);
                return Err(refused(
                    what,
                    Message("it is just being removed".to_owned()),
                ));
            }
        };
        if let Err(error) = self.launch(replica, &container).await {
            // It may be that the agent is not where it should be, because someone removed the
            // volume: look again next time. And what runs without its start document is useless.
            self.inner.filled.lock().await.clear();
            if let Err(also) = self.remove(&container).await {
                tracing::debug!(container, error = %also, "cannot remove what could not be started");
            }
            return Err(error);
        }
        Ok(container)
    }

    async fn signal(&self, container: &str, signal: Signal) -> Result<(), EngineError> {
        let docker = self.docker().await?;
        let options = KillContainerOptionsBuilder::default()
            .signal(signal.name())
            .build();
        let what = format!("signal the container `{container}`");
        match call(
            what,
            ANSWER,
            docker.kill_container(container, Some(options)),
        )
        .await
        {
            // It does not run: there is nobody to tell.
            Err(error) if is_conflict(&error) => Ok(()),
            done => done,
        }
    }

    async fn remove(&self, container: &str) -> Result<(), EngineError> {
        let docker = self.docker().await?;
        let options = RemoveContainerOptionsBuilder::default()
            .v(true)
            .force(true)
            .build();
        let what = format!("remove the container `{container}`");
        match call(
            what,
            WORK,
            docker.remove_container(container, Some(options)),
        )
        .await
        {
            // It is gone, or somebody else is removing it.
            Err(EngineError::NotFound { .. }) => Ok(()),
            Err(error) if is_conflict(&error) => Ok(()),
            done => done,
        }
    }

    async fn logs(
        &self,
        container: &str,
        query: LogQuery,
    ) -> BoxStream<'static, Result<Bytes, EngineError>> {
        match self.docker().await {
            Ok(docker) => watch::logs(docker, container, query),
            Err(error) => futures_util::stream::once(async { Err(error) }).boxed(),
        }
    }

    async fn changes(&self, instance: &str) -> BoxStream<'static, ()> {
        watch::changes(self.clone(), instance)
    }
}

async fn connect(host: &str) -> Result<Connection, EngineError> {
    let docker = Docker::connect_with_host(host).map_err(|error| unreachable(error.into()))?;
    let docker = call("say its version", ANSWER, docker.negotiate_version()).await?;
    let info = call("describe itself", ANSWER, docker.info()).await?;
    let processors = info
        .ncpu
        .and_then(|count| i32::try_from(count).ok())
        .unwrap_or(1);
    Ok(Connection {
        docker,
        processors: f64::from(processors.max(1)),
    })
}

/// Makes one call, within its time.
async fn call<T>(
    what: impl Into<String>,
    limit: Duration,
    future: impl Future<Output = Result<T, Error>>,
) -> Result<T, EngineError> {
    match tokio::time::timeout(limit, future).await {
        Ok(answer) => answer.map_err(|error| explain(what.into(), error)),
        Err(_) => Err(EngineError::TimedOut { what: what.into() }),
    }
}

/// Says what an error of the client means to us.
fn explain(what: String, error: Error) -> EngineError {
    match error {
        Error::RequestTimeoutError => EngineError::TimedOut { what },
        Error::DockerResponseServerError {
            status_code: 404,
            message,
        } => EngineError::NotFound {
            what: message.trim_start_matches("No such ").to_owned(),
        },
        error @ (Error::DockerResponseServerError { .. }
        | Error::DockerStreamError { .. }
        | Error::JsonDataError { .. }
        | Error::JsonSerdeError { .. }) => refused(what, error),
        other => unreachable(other.into()),
    }
}

fn refused(
    what: impl Into<String>,
    source: impl std::error::Error + Send + Sync + 'static,
) -> EngineError {
    EngineError::Refused {
        what: what.into(),
        source: Box::new(source),
    }
}

fn unreachable(source: Box<dyn std::error::Error + Send + Sync>) -> EngineError {
    EngineError::Unreachable(source)
}

/// Whether the engine said 409: the name is taken, or the container is not in the state for it.
fn is_conflict(error: &EngineError) -> bool {
    let EngineError::Refused { source, .. } = error else {
        return false;
    };
    matches!(
        source.downcast_ref::<Error>(),
        Some(Error::DockerResponseServerError {
            status_code: 409,
            ..
        })
    )
}

/// A reason that is only words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Message(String);
