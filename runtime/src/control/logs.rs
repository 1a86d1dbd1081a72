//! The logs of all replicas of a flow, as one.
//!
//! # Invariants
//!
//! - Every line is a [`LogLine`]; what an agent did not write as one is wrapped into one.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream, SelectAll};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};
use towpath_protocol::log::{LOG_TEXT_BYTES_MAX, LogLine, LogSource};

use super::Control;
use super::error::ControlError;
use super::operate::find_step;
use crate::engine::{EngineError, LogQuery};

/// How many lines of each replica are shown when nothing is said.
const TAIL_DEFAULT: u32 = 100;

/// The most lines of each replica.
const TAIL_MAX: u32 = 10_000;

/// How long reading what there is may take, one replica.
const READ: Duration = Duration::from_secs(15);

/// How often to look for replicas that are new, while following.
const LOOK: Duration = Duration::from_secs(1);

/// The longest line that is put together.
const LINE_BYTES_MAX: usize = 4 * LOG_TEXT_BYTES_MAX;

/// A line, with its end.
pub(super) type Line = Bytes;

/// Which lines, as asked for over the API.
#[derive(Debug, Clone, Default, serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LogFilter {
    /// Of this step only.
    pub step: Option<String>,
    /// How many of the last lines of each replica.
    pub tail: Option<u32>,
    /// Whether to go on as lines come.
    #[serde(default)]
    pub follow: bool,
}

/// A replica whose log is read.
#[derive(Debug, Clone)]
struct Replica {
    flow: String,
    step: String,
    number: u32,
    container: String,
}

impl Control {
    /// The log of a flow, or of one of its steps.
    pub async fn logs(
        self: &Arc<Self>,
        flow: &str,
        filter: &LogFilter,
    ) -> Result<BoxStream<'static, Line>, ControlError> {
        let (_, checked) = self.record(flow).await?;
        if let Some(step) = &filter.step {
            find_step(&checked, step)?;
        }
        let tail = filter.tail.unwrap_or(TAIL_DEFAULT).min(TAIL_MAX);
        if filter.follow {
            return Ok(self.follow(flow.to_owned(), filter.step.clone(), tail));
        }
        let query = LogQuery {
            tail: Some(tail),
            follow: false,
        };
        let mut lines = Vec::new();
        for replica in self.replicas(flow, filter.step.as_deref()) {
            let stream = self.engine().logs(&replica.container, query).await;
            let read = lines_of(replica, stream).collect::<Vec<_>>();
            lines.extend(timeout(READ, read).await.unwrap_or_default());
        }
        lines.sort_by_key(|line| at(line));
        Ok(stream::iter(lines).boxed())
    }

    fn follow(
        self: &Arc<Self>,
        flow: String,
        step: Option<String>,
        tail: u32,
    ) -> BoxStream<'static, Line> {
        let mut looking = interval_at(Instant::now(), LOOK);
        looking.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let following = Following {
            control: Arc::clone(self),
            flow,
            step,
            tail,
            known: BTreeSet::new(),
            streams: SelectAll::new(),
            looking,
        };
        stream::unfold(following, |mut following| async move {
            let line = following.next().await;
            Some((line, following))
        })
        .boxed()
    }

    fn replicas(&self, flow: &str, step: Option<&str>) -> Vec<Replica> {
        let status = self.reconciler.status.borrow();
        let steps = status.flows.get(flow).map(|flow| &flow.steps);
        let steps = steps
            .into_iter()
            .flatten()
            .filter(|(id, _)| step.is_none_or(|it| it == *id));
        steps
            .flat_map(|(id, step)| step.replicas.iter().map(move |replica| (id, replica)))
            .filter_map(|(id, replica)| {
                Some(Replica {
                    flow: flow.to_owned(),
                    step: id.clone(),
                    number: replica.replica,
                    container: replica.container.clone()?,
                })
            })
            .collect()
    }
}

/// Logs that are followed, those of replicas that come later included.
struct Following {
    control: Arc<Control>,
    flow: String,
    step: Option<String>,
    tail: u32,
    known: BTreeSet<String>,
    streams: SelectAll<BoxStream<'static, Line>>,
    looking: Interval,
}

impl Following {
    async fn next(&mut self) -> Line {
        loop {
            // Both are cancel-safe: a line or a tick that is not taken is there the next time.
            tokio::select! {
                Some(line) = self.streams.next(), if !self.streams.is_empty() => return line,
                _ = self.looking.tick() => self.look().await,
            }
        }
    }

    async fn look(&mut self) {
        for replica in self.control.replicas(&self.flow, self.step.as_deref()) {
            if !self.known.insert(replica.container.clone()) {
                continue;
            }
            let query = LogQuery {
                tail: Some(self.tail),
                follow: true,
            };
            let stream = self.control.engine().logs(&replica.container, query).await;
            self.streams.push(lines_of(replica, stream));
        }
    }
}

/// Puts lines together from what the engine gives, in whatever pieces that is.
fn lines_of(
    replica: Replica,
    pieces: BoxStream<'static, Result<Bytes, EngineError>>,
) -> BoxStream<'static, Line> {
    let begin = (replica, pieces, BytesMut::new(), false);
    stream::unfold(
        begin,
        |(replica, mut pieces, mut rest, mut is_over)| async move {
            loop {
                if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                    let line = rest.split_to(end + 1);
                    return Some((as_line(&replica, &line), (replica, pieces, rest, is_over)));
                }
                if is_over || rest.len() > LINE_BYTES_MAX {
                    if rest.is_empty() {
                        return None;
                    }
                    let line = rest.split();
                    return Some((as_line(&replica, &line), (replica, pieces, rest, is_over)));
                }
                match pieces.next().await {
                    Some(Ok(piece)) => rest.extend_from_slice(&piece),
                    Some(Err(_)) | None => is_over = true,
                }
            }
        },
    )
    .filter(|line| std::future::ready(!line.is_empty()))
    .boxed()
}

fn as_line(replica: &Replica, line: &[u8]) -> Line {
    let text = line.trim_ascii_end();
    if text.is_empty() {
        return Bytes::new();
    }
    if serde_json::from_slice::<LogLine<'_>>(text).is_ok() {
        return Bytes::from([text, b"\n"].concat());
    }
    let wrapped = LogLine {
        at: 0,
        level: Cow::Borrowed("info"),
        flow: Cow::Borrowed(&replica.flow),
        step: Cow::Borrowed(&replica.step),
        replica: replica.number,
        message_id: None,
        source: LogSource::Agent,
        text: String::from_utf8_lossy(text),
    };
    let mut line = serde_json::to_vec(&wrapped).unwrap_or_default();
    line.push(b'\n');
    Bytes::from(line)
}

fn at(line: &[u8]) -> u64 {
    serde_json::from_slice::<LogLine<'_>>(line).map_or(0, |line| line.at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_whole_however_they_come() {
        let line = r#"{"at":5,"level":"warn","flow":"f","step":"s","replica":2,"source":"stderr","text":"hi"}"#;
        let pieces = [&line[..10], &line[10..], "\nplain", " text\n\n", "no end"];
        let pieces: Vec<_> = pieces
            .iter()
            .map(|piece| Ok(Bytes::from((*piece).to_owned())))
            .collect();
        let replica = Replica {
            flow: "f".into(),
            step: "s".into(),
            number: 2,
            container: "c".into(),
        };
        let lines: Vec<Line> = lines_of(replica, stream::iter(pieces).boxed())
            .collect()
            .await;
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0], format!("{line}\n"));
        for (line, expect) in lines.iter().zip(["hi", "plain text", "no end"]) {
            let line: LogLine<'_> = serde_json::from_slice(line).unwrap();
            assert_eq!((&*line.text, &*line.step, line.replica), (expect, "s", 2));
        }
    }
}
