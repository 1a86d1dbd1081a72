//! What runs containers.
//!
//! # Invariants
//!
//! - Every call may be repeated, and may have happened although it reports an error.
//! - Containers without our label are never listed, signalled or removed.

use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use serde::Serialize;
use towpath_protocol::manifest::Manifest;
use towpath_protocol::start::{Identity, PAUSE_SIGNAL, RESUME_SIGNAL, Start};

mod agent;
pub mod docker;
pub mod simulated;

pub use agent::{Agent, AgentBinaries, AgentError};

/// The labels of a replica's container.
pub mod labels {
    /// Which Towpath it belongs to.
    pub const INSTANCE: &str = "io.towpath.instance";
    /// Its flow.
    pub const FLOW: &str = "io.towpath.flow";
    /// Its step.
    pub const STEP: &str = "io.towpath.step";
    /// Its number, from 1.
    pub const REPLICA: &str = "io.towpath.replica";
    /// The hash of everything it was made from.
    pub const SPEC: &str = "io.towpath.spec";
}

/// What runs containers: Docker, or a simulation with faults.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// Says whether the engine answers, and with which version.
    async fn version(&self) -> Result<String, EngineError>;
    /// Makes the instance's network and the agent's volume, if they are not there. The volume is
    /// filled before the first replica is created, for which there must be an image.
    async fn prepare(&self, instance: &str) -> Result<(), EngineError>;
    /// Lists the instance's replicas, those that have exited included.
    async fn observe(&self, instance: &str) -> Result<Vec<Observed>, EngineError>;
    /// Whether a container is still there: a list that lacks it may be wrong.
    async fn is_there(&self, container: &str) -> Result<bool, EngineError>;
    /// Describes an image that is here, or can be pulled; `None` if there is no such image.
    async fn image(&self, reference: &str) -> Result<Option<Image>, EngineError>;
    /// Creates and starts a replica, and hands its agent the start document.
    async fn start(&self, replica: &ReplicaSpec) -> Result<String, EngineError>;
    /// Sends a signal to the agent of a replica.
    async fn signal(&self, container: &str, signal: Signal) -> Result<(), EngineError>;
    /// Removes a replica's container, running or not.
    async fn remove(&self, container: &str) -> Result<(), EngineError>;
    /// Reads the log of a container: lines of JSON as agents write them.
    async fn logs(
        &self,
        container: &str,
        query: LogQuery,
    ) -> BoxStream<'static, Result<Bytes, EngineError>>;
    /// Yields an item whenever something may have changed. A hint only: it may be silent.
    async fn changes(&self, instance: &str) -> BoxStream<'static, ()>;
}

/// A replica's container as the engine shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The engine's id of the container.
    pub container: String,
    /// Its name.
    pub name: String,
    /// Who it is, from its labels.
    pub identity: Identity,
    /// Whether it runs.
    pub state: ContainerState,
    /// When it was created, in milliseconds since 1970.
    pub created: u64,
}

/// Whether a container runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    /// Created, not started.
    Created,
    /// Running.
    Running,
    /// Not running any more.
    Exited {
        /// The exit code of its agent.
        code: i64,
        /// Whether the kernel killed something in it for want of memory.
        out_of_memory: bool,
        /// Its memory limit in bytes; 0 if that is not known.
        memory_bytes: u64,
        /// When, in milliseconds since 1970.
        at: u64,
    },
}

/// An image.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// The engine's id: the hash of its content.
    pub id: String,
    /// What it says of itself, if it does.
    pub manifest: Option<Manifest>,
    /// Why what it says of itself cannot be read, if it cannot.
    pub unreadable: Option<String>,
    /// The user it wants to run as; empty is root.
    pub user: String,
    /// Where it wants to run; empty is `/`.
    pub workdir: String,
    /// Its entrypoint and command, joined.
    pub command: Vec<String>,
    /// Its size in bytes.
    pub size: u64,
}

/// A folder of the host that a step may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Folder {
    /// Its name, which is that of its place in `/folders`.
    pub name: String,
    /// Where it is on the engine's host.
    pub path: PathBuf,
    /// What the step may do with it.
    pub access: towpath_flow::model::Access,
}

/// Everything a replica is made from. Its `Start` holds secrets, so this has no `Debug`.
#[derive(Clone)]
pub struct ReplicaSpec {
    /// `<instance>.<flow>.<step>.<replica>.<first 8 of spec>`.
    pub name: String,
    /// The image, by id.
    pub image: Image,
    /// What to run instead of the image's own command; empty for that.
    pub command: Vec<String>,
    /// What it may use.
    pub limits: towpath_flow::model::Limits,
    /// The folders of the host that it finds in `/folders`.
    pub folders: Vec<Folder>,
    /// How long a drain may take before the engine kills it, in seconds.
    pub stop_seconds: u32,
    /// What its agent reads on standard input.
    pub start: Start,
}

/// What can be said to an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    /// Drain and exit: SIGTERM.
    Drain,
    /// Stop consuming: SIGUSR1.
    Pause,
    /// Consume again: SIGUSR2.
    Resume,
}

impl Signal {
    /// The signal's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drain => "SIGTERM",
            Self::Pause => PAUSE_SIGNAL,
            Self::Resume => RESUME_SIGNAL,
        }
    }
}

/// Which part of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogQuery {
    /// How many of the last lines; `None` is all.
    pub tail: Option<u32>,
    /// Whether to go on as lines come.
    pub follow: bool,
}

/// What the engine would not do.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// It does not answer.
    #[error("the container engine cannot be reached")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It refuses.
    #[error("the container engine refuses to {what}")]
    Refused {
        /// What it was asked to do.
        what: String,
        /// Why it does not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It does not answer in time; what was asked may have happened.
    #[error("the container engine did not {what} in time")]
    TimedOut {
        /// What it was asked to do.
        what: String,
    },
    /// The image that a replica is made from was removed.
    #[error("the image `{image}` was removed from the container engine")]
    ImageGone {
        /// Its id.
        image: String,
    },
    /// There is no such container or image.
    #[error("there is no {what}")]
    NotFound {
        /// What.
        what: String,
    },
}

/// Writes an error with all its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
