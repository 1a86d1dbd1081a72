//! One run of the trigger: it listens, and connects again when the stream breaks off.
//!
//! # Invariants
//!
//! - `what_was_emitted_is_not_asked_for_again`: the id of the last event is saved after everything up
//!   to it is confirmed, and sent as `Last-Event-ID`.
//! - `a_silent_connection_is_made_again`: a connection may be dead without anybody saying so.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use towpath_step::{Context, Fate, Result, StepError, Tick, tracing};
use towpath_step_http::{
    Client, HeaderMap, HeaderName, HeaderValue, Method, Opened, Request, Settings, StatusCode, Url,
    Verdict, add_headers, header, read_url,
};
use towpath_step_json::{compact, text};

use crate::config::{Config, Data};
use crate::event::{Came, Event, Reader};

/// The header that says which event was the last.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The wait before connecting again, unless the server says another.
const RETRY: Duration = Duration::from_secs(3);

/// The longest wait that a server may ask for between connections: one that says more is asked
/// again after this.
const RETRY_MAX: Duration = Duration::from_secs(300);

/// How many connections in a row may fail before the run is given back with the reason.
const FAILURES_MAX: u32 = 5;

/// How often the place is saved while events come: each time costs a round trip…
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// …or after so many events.
const EVENTS_BETWEEN_SAVES: u32 = 1000;

/// How long it may take to notice that the replica is to leave.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The largest answer that is read as a whole: one that is no stream.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// What is saved between runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The id of the last event that was brought in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_event_id: Option<String>,
    /// How long the server wants to be left alone between connections, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_ms: Option<u64>,
}

/// What is made once.
#[derive(Debug)]
pub struct State {
    client: Client,
    url: Url,
    headers: HeaderMap,
}

/// Checks the URL and the headers and makes the client.
pub async fn setup(config: &Config) -> Result<State> {
    let url = read_url(&config.url).map_err(StepError::permanent)?;
    if config.id.is_some() && config.data == Data::Text {
        return Err(StepError::permanent(
            "`id` is a path in JSON, and `data` is `text`",
        ));
    }
    let mut headers = HeaderMap::new();
    headers.insert(
        header::ACCEPT,
        HeaderValue::from_static("text/event-stream"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    add_headers(&mut headers, &config.headers).map_err(StepError::permanent)?;
    let client = Client::new(&Settings {
        timeout: config.timeout.duration(),
        user_agent: config.user_agent.clone(),
        answer_bytes_max: ANSWER_BYTES_MAX,
        certificates: std::env::var_os("SSL_CERT_FILE").map(Into::into),
    })?;
    Ok(State {
        client,
        url,
        headers,
    })
}

/// Listens for a while.
pub async fn listen(tick: Tick<Checkpoint>, ctx: &Context<Config, State>) -> Result<()> {
    let listen_for = ctx.config.listen_for.duration();
    let mut listener = Listener {
        ctx,
        deadline: (!listen_for.is_zero()).then(|| Instant::now() + listen_for),
        place: tick.checkpoint.unwrap_or_default(),
        unsaved: 0,
        saved_at: Instant::now(),
        emitted: 0,
    };
    let mut failures = 0;
    while !listener.is_over() {
        let error = match listener.connection().await {
            Ok(End::Over) => break,
            Ok(End::Broken { had_events }) => {
                failures = if had_events { 0 } else { failures + 1 };
                StepError::retry("the server ends each connection before an event comes")
            }
            Err(error) if error.fate() == Fate::Permanent => {
                listener.save().await?;
                return Err(error);
            }
            Err(error) => {
                failures += 1;
                error
            }
        };
        listener.save().await?;
        let wait = error.delay().unwrap_or_else(|| listener.retry());
        if failures >= FAILURES_MAX || listener.ends_within(wait) && failures > 0 {
            return Err(error);
        }
        tracing::debug!("connecting again in {wait:?}: {error}");
        listener.wait(wait).await;
    }
    listener.save().await?;
    tracing::debug!("brought in {} events", listener.emitted);
    Ok(())
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The run is over, or the server wants no more connections.
    Over,
    /// The connection broke off, or was silent for too long.
    Broken {
        /// Something came before it did.
        had_events: bool,
    },
}

struct Listener<'a> {
    ctx: &'a Context<Config, State>,
    /// When the run ends.
    deadline: Option<Instant>,
    place: Checkpoint,
    /// How many events came since the place was saved.
    unsaved: u32,
    saved_at: Instant,
    emitted: u64,
}

impl Listener<'_> {
    /// Makes a connection and listens to it until it ends.
    async fn connection(&mut self) -> Result<End> {
        let Some(mut opened) = self.connect().await? else {
            tracing::info!("the server says that there is nothing to listen to");
            return Ok(End::Over);
        };
        let mut reader = Reader::default();
        let mut heard_at = Instant::now();
        let mut had_events = false;
        while !self.is_over() {
            // `chunk` is cancel-safe: what has not come is still to come.
            let chunk = match timeout(LOOK_EVERY, opened.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => return Ok(End::Broken { had_events }),
                Ok(Err(error)) if had_events => {
                    tracing::debug!("the connection broke off: {error}");
                    return Ok(End::Broken { had_events });
                }
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => {
                    self.save_if_due().await?;
                    if heard_at.elapsed() > self.ctx.config.idle.duration() {
                        tracing::info!("nothing came for too long (`idle`): connecting again");
                        return Ok(End::Broken { had_events: true });
                    }
                    continue;
                }
            };
            for came in reader
                .read(&chunk)
                .map_err(|error| StepError::from(error).into_permanent())?
            {
                had_events = true;
                match came {
                    Came::Retry(wait) => {
                        let wait = wait.min(RETRY_MAX).as_millis();
                        self.place.retry_ms = u64::try_from(wait).ok();
                    }
                    Came::Event(event) => self.bring_in(event).await?,
                }
            }
            self.save_if_due().await?;
            // The time in which this step was held back is not the server's silence.
            heard_at = Instant::now();
        }
        Ok(End::Over)
    }

    /// Connects; none if the server wants no connection.
    async fn connect(&self) -> Result<Option<Opened>> {
        let state = &self.ctx.state;
        let mut headers = state.headers.clone();
        if let Some(id) = &self.place.last_event_id {
            let id = HeaderValue::from_bytes(id.as_bytes());
            let id = id.map_err(|_| {
                StepError::permanent("the id of the last event cannot be sent as a header")
            })?;
            headers.insert(LAST_EVENT_ID, id);
        }
        let request = Request {
            method: Method::GET,
            url: state.url.clone(),
            headers,
            body: None,
        };
        let opened = match state.client.open(request).await {
            Ok(opened) => opened,
            Err(failure) if failure.may_pass() => return Err(failure.into()),
            Err(failure) => return Err(StepError::from(failure).into_permanent()),
        };
        if opened.status == StatusCode::NO_CONTENT {
            return Ok(None);
        }
        if !opened.status.is_success() {
            let limit = self.ctx.config.timeout.duration();
            let answer = timeout(limit, opened.whole()).await??;
            let complaint = answer.complaint();
            return Err(match answer.verdict(&[], SystemTime::now()) {
                Verdict::Retry { after: Some(after) } => StepError::rebound(after, complaint),
                Verdict::Retry { after: None } => StepError::retry(complaint),
                Verdict::Done | Verdict::Permanent => StepError::permanent(complaint),
            });
        }
        let kind = opened.headers.get(header::CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !kind.starts_with("text/event-stream") {
            return Err(StepError::permanent(format!(
                "the answer is `{kind}`, not `text/event-stream`: this is no stream of events"
            )));
        }
        Ok(Some(opened))
    }

    async fn bring_in(&mut self, event: Event) -> Result<()> {
        let config = &self.ctx.config;
        let is_wanted = config.events.is_empty() || config.events.contains(&event.name);
        let body = if is_wanted { self.body(&event)? } else { None };
        if let Some(body) = body {
            let named = config.id.as_ref().and_then(|path| path.find_some(&body));
            let named = named.and_then(text).map(Cow::into_owned);
            if let (Some(path), None) = (&config.id, &named) {
                tracing::warn!("an event has no `{path}` (`id`): it is named by its own id");
            }
            let source_id = named.or_else(|| event.id.clone().filter(|id| !id.is_empty()));
            let mut output = self.ctx.output(&body).header("sse.event", &event.name);
            if let Some(id) = &event.id {
                output = output.header("sse.id", id);
            }
            match &source_id {
                Some(source_id) => output.source_id(source_id).send().await?,
                None => output.send().await?,
            }
            self.emitted += 1;
        }
        if let Some(id) = event.id {
            // An empty id takes the last one back: the standard says so.
            self.place.last_event_id = Some(id).filter(|id| !id.is_empty());
            self.unsaved += 1;
        }
        Ok(())
    }

    /// Makes a body of an event's data; none if it is to be left out.
    fn body(&self, event: &Event) -> Result<Option<Box<RawValue>>> {
        if self.ctx.config.data == Data::Text {
            return Ok(Some(to_raw_value(&event.data)?));
        }
        match serde_json::from_str::<&RawValue>(&event.data) {
            Ok(data) => Ok(Some(compact(data))),
            Err(error) => {
                let id = event.id.as_deref().unwrap_or("without an id");
                let reason = format!(
                    "the data of the event `{}` ({id}) is not JSON: {error}",
                    event.name
                );
                if self.ctx.config.data == Data::JsonOrSkip {
                    tracing::warn!("{reason}; it is left out");
                    return Ok(None);
                }
                Err(StepError::permanent(format!(
                    "{reason}: take it with `data: text`, or leave it out with `data: json_or_skip`"
                )))
            }
        }
    }

    async fn save_if_due(&mut self) -> Result<()> {
        if self.unsaved >= EVENTS_BETWEEN_SAVES || self.saved_at.elapsed() >= SAVE_EVERY {
            self.save().await?;
        }
        Ok(())
    }

    async fn save(&mut self) -> Result<()> {
        self.saved_at = Instant::now();
        if std::mem::take(&mut self.unsaved) > 0 {
            self.ctx.checkpoint(&self.place).await?;
        }
        Ok(())
    }

    fn retry(&self) -> Duration {
        self.place.retry_ms.map_or(RETRY, Duration::from_millis)
    }

    fn is_over(&self) -> bool {
        self.ctx.is_draining() || self.ends_within(Duration::ZERO)
    }

    fn ends_within(&self, wait: Duration) -> bool {
        self.deadline
            .is_some_and(|deadline| Instant::now() + wait >= deadline)
    }

    /// Waits, unless the run is over before.
    async fn wait(&self, wait: Duration) {
        let until = Instant::now() + wait;
        while !self.is_over() && Instant::now() < until {
            drop(timeout_at(until, sleep(LOOK_EVERY)).await);
        }
    }
}
