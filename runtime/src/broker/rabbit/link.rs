//! A connection that is made again, for ever.
//!
//! A broker may take more than a minute to come back, and may accept and drop connections
//! meanwhile: nothing that goes wrong here is ever final.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties, Event};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::BrokerError;
use super::ANSWER_TIMEOUT;

/// The first wait after a failure; doubled each time, give or take a half.
const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// The longest wait between two attempts: a broker that is back is noticed soon.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// How often a connection is looked at, beside what it says itself.
const LOOK: Duration = Duration::from_millis(500);

/// A connection that is made again, for ever.
#[derive(Clone)]
pub(super) struct Link {
    state: watch::Receiver<LinkState>,
}

/// Whether there is a connection.
#[derive(Clone)]
pub(super) enum LinkState {
    /// There is none, for this reason.
    Down(Arc<str>),
    /// There is one.
    Up(Arc<Connection>),
    /// There is one, but the broker takes nothing: it has an alarm.
    Blocked(Arc<str>),
}

impl Link {
    pub(super) fn start(
        name: &'static str,
        uri: AMQPUri,
        shutdown: &CancellationToken,
        tasks: &TaskTracker,
    ) -> Self {
        let (sender, state) = watch::channel(LinkState::Down("not connected yet".into()));
        tasks.spawn(keep_connected(name, uri, sender, shutdown.clone()));
        Self { state }
    }

    pub(super) fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(*self.state.borrow(), LinkState::Up(_))
    }

    /// Says what is wrong with it, for people.
    pub(super) fn trouble(&self) -> Option<String> {
        match &*self.state.borrow() {
            LinkState::Up(_) => None,
            LinkState::Down(reason) => Some(format!("the broker cannot be reached: {reason}")),
            LinkState::Blocked(reason) => Some(format!(
                "the broker has an alarm and takes no messages: {reason}"
            )),
        }
    }

    /// Waits a little for the connection.
    pub(super) async fn up(&self, grace: Duration) -> Result<Arc<Connection>, BrokerError> {
        let mut state = self.state.clone();
        let up = state.wait_for(|state| matches!(state, LinkState::Up(_)));
        if let Ok(Ok(state)) = timeout(grace, up).await
            && let LinkState::Up(connection) = &*state
        {
            return Ok(Arc::clone(connection));
        }
        let error = match &*self.state.borrow() {
            LinkState::Down(reason) => BrokerError::Unreachable(reason.as_ref().into()),
            LinkState::Blocked(reason) => BrokerError::Refused {
                what: "take messages: it has an alarm".into(),
                source: reason.as_ref().into(),
            },
            LinkState::Up(connection) => return Ok(Arc::clone(connection)),
        };
        Err(error)
    }
}

/// A wait before the next attempt: longer each time, and different each time, so that many clients
/// do not all come back in the same instant.
pub(super) fn backoff(failures: u32) -> Duration {
    let wait = BACKOFF_MIN
        .saturating_mul(1 << failures.min(10))
        .min(BACKOFF_MAX);
    wait.mul_f64(rand::random_range(0.5..1.5))
}

async fn keep_connected(
    name: &'static str,
    uri: AMQPUri,
    state: watch::Sender<LinkState>,
    shutdown: CancellationToken,
) {
    let mut failures = 0;
    while !shutdown.is_cancelled() {
        // Cancel-safe: an attempt that is cut off leaves nothing behind.
        let attempt = tokio::select! {
            () = shutdown.cancelled() => break,
            attempt = connect(name, &uri) => attempt,
        };
        let reason: Arc<str> = match attempt {
            Ok(connection) => {
                tracing::info!(connection = name, "connected to the broker");
                let since = Instant::now();
                let reason = watch_over(connection, &state, &shutdown).await;
                if since.elapsed() > BACKOFF_MAX {
                    failures = 0;
                }
                reason
            }
            Err(reason) => reason,
        };
        if shutdown.is_cancelled() {
            break;
        }
        if failures == 0 {
            tracing::warn!(connection = name, %reason, "no connection to the broker; trying again until there is one");
        } else {
            tracing::debug!(connection = name, %reason, failures, "still no connection to the broker");
        }
        state.send_replace(LinkState::Down(reason));
        // Cancel-safe: both only wait.
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(backoff(failures)) => {}
        }
        failures += 1;
    }
    state.send_replace(LinkState::Down("the control plane is stopping".into()));
}

async fn connect(name: &'static str, uri: &AMQPUri) -> Result<Connection, Arc<str>> {
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    match timeout(
        ANSWER_TIMEOUT,
        Connection::connect_uri(uri.clone(), properties),
    )
    .await
    {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(error.to_string().into()),
        Err(_) => Err(format!("no answer within {ANSWER_TIMEOUT:?}").into()),
    }
}

/// Holds a connection until it is of no use any more, and says why.
async fn watch_over(
    connection: Connection,
    state: &watch::Sender<LinkState>,
    shutdown: &CancellationToken,
) -> Arc<str> {
    let mut events = connection.events_listener();
    let connection = Arc::new(connection);
    state.send_replace(LinkState::Up(Arc::clone(&connection)));
    let mut look = tokio::time::interval(LOOK);
    loop {
        // Cancel-safe: a stream's `next`, a tick and a token lose nothing.
        tokio::select! {
            () = shutdown.cancelled() => {
                match timeout(ANSWER_TIMEOUT, connection.close(200, "stopping".into())).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        tracing::debug!(%error, "the connection to the broker was gone already");
                    }
                    Err(_) => tracing::debug!("the broker did not answer that the connection ends"),
                }
                return "stopping".into();
            }
            event = events.next() => match event {
                // A soft error has closed one channel; whoever owns that one deals with it.
                Some(Event::Error(error)) if error.is_amqp_soft_error() => {}
                Some(Event::Error(error)) => return error.to_string().into(),
                Some(Event::ConnectionBlocked(reason)) => {
                    tracing::warn!(%reason, "the broker takes no messages: it has an alarm");
                    state.send_replace(LinkState::Blocked(reason.into()));
                }
                Some(Event::ConnectionUnblocked) => {
                    tracing::info!("the broker takes messages again");
                    state.send_replace(LinkState::Up(Arc::clone(&connection)));
                }
                Some(_) => {}
                None => return "the connection ended".into(),
            },
            _ = look.tick() => if !connection.status().connected() {
                return "the connection ended".into();
            },
        }
    }
}
