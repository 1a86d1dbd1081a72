//! What goes on over time: logs, and hints that something has changed.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::EventMessage;
use bollard::query_parameters::{EventsOptionsBuilder, LogsOptionsBuilder};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};

use super::{DockerEngine, explain};
use crate::engine::{EngineError, LogQuery, labels};

/// How long to wait before listening again, at first and at most.
const AGAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// Reads the log of a container, both its streams, as they were written.
pub(super) fn logs(
    docker: &Docker,
    container: &str,
    query: LogQuery,
) -> BoxStream<'static, Result<Bytes, EngineError>> {
    let tail = query
        .tail
        .map_or_else(|| "all".to_owned(), |lines| lines.to_string());
    let options = LogsOptionsBuilder::default()
        .stdout(true)
        .stderr(true)
        .follow(query.follow)
        .tail(&tail)
        .build();
    let what = format!("read the log of the container `{container}`");
    docker
        .logs(container, Some(options))
        .map(move |part| {
            part.map(bollard::container::LogOutput::into_bytes)
                .map_err(|error| explain(what.clone(), error))
        })
        .boxed()
}

/// Hints that a container of the instance came, went or died. For ever: whenever it had to listen
/// anew something may have been missed, and that is a hint as well.
pub(super) fn changes(engine: DockerEngine, instance: &str) -> BoxStream<'static, ()> {
    let listener = Listener {
        engine,
        instance: instance.to_owned(),
        events: None,
        wait: AGAIN.0,
    };
    stream::unfold(listener, |mut listener| async {
        listener.next().await;
        Some(((), listener))
    })
    .boxed()
}

struct Listener {
    engine: DockerEngine,
    instance: String,
    events: Option<BoxStream<'static, Result<EventMessage, Error>>>,
    wait: Duration,
}

impl Listener {
    /// Waits for the next hint. Cancel-safe: what is being waited for is kept in `self`.
    async fn next(&mut self) {
        loop {
            let Some(events) = &mut self.events else {
                match self.engine.docker().await {
                    Ok(docker) => self.events = Some(listen(docker, &self.instance)),
                    Err(_) => self.pause().await,
                }
                continue;
            };
            if let Some(Ok(_)) = events.next().await {
                self.wait = AGAIN.0;
            } else {
                self.events = None;
                self.pause().await;
            }
            return;
        }
    }

    async fn pause(&mut self) {
        tokio::time::sleep(self.wait).await;
        self.wait = (self.wait * 2).min(AGAIN.1);
    }
}

fn listen(docker: &Docker, instance: &str) -> BoxStream<'static, Result<EventMessage, Error>> {
    let filters = HashMap::from([
        ("type", vec!["container".to_owned()]),
        (
            "label",
            vec![
                format!("{}={instance}", labels::INSTANCE),
                labels::STEP.to_owned(),
            ],
        ),
        (
            "event",
            ["start", "die", "destroy"].map(str::to_owned).to_vec(),
        ),
    ]);
    // Since now: the request is only made when the stream is first polled.
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let options = EventsOptionsBuilder::default()
        .since(&now.as_secs().to_string())
        .filters(&filters)
        .build();
    docker.events(Some(options)).boxed()
}
