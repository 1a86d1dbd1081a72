//! What becomes of a message.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use towpath_step::{Context, Result, StepError};
use towpath_step_http::{Answer, Client, Failure, Request, Settings, Verdict};
use towpath_step_json::compact;

use crate::config::{Config, EmitWhat};
use crate::plan::{About, Plan};

/// The largest answer that can become a message.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// The headers of an answer that are emitted.
const HEADERS: [&str; 7] = [
    "content-type",
    "etag",
    "last-modified",
    "link",
    "location",
    "request-id",
    "x-request-id",
];

/// What is made once.
#[derive(Debug)]
pub struct State {
    plan: Plan,
    client: Client,
}

/// An answer, as it is emitted.
#[derive(Debug, Serialize)]
struct Emitted<'a> {
    status: u16,
    headers: BTreeMap<&'a str, &'a str>,
    body: Box<RawValue>,
}

/// Compiles the templates and makes the client.
pub async fn setup(config: &Config) -> Result<State> {
    let plan = Plan::new(config).map_err(StepError::permanent)?;
    let client = Client::new(&Settings {
        timeout: config.timeout.duration(),
        user_agent: format!("towpath-http-request/{}", env!("CARGO_PKG_VERSION")),
        answer_bytes_max: ANSWER_BYTES_MAX,
        certificates: std::env::var_os("SSL_CERT_FILE").map(Into::into),
    })?;
    Ok(State { plan, client })
}

/// Sends one message.
pub async fn handle(
    body: Box<RawValue>,
    ctx: &Context<Config, State>,
) -> Result<Option<Box<RawValue>>> {
    let id = ctx.idempotency_key();
    let about = About {
        id: &id,
        attempt: ctx.attempt(),
        headers: ctx.headers(),
    };
    if ctx.is_uncertain()
        && let Some(question) = ctx
            .state
            .plan
            .check(&body, about)
            .map_err(StepError::permanent)?
        && let Some(known) = ask(question, ctx).await?
    {
        ctx.log_info("it was done before: nothing is sent");
        return emit(known.as_ref(), body, ctx.config.emit);
    }
    let request = ctx
        .state
        .plan
        .request(&body, about)
        .map_err(StepError::permanent)?;
    let answer = match ctx.state.client.send(request).await {
        Ok(answer) => answer,
        // It was done, and nobody wants to know what was said.
        Err(Failure::TooLarge { .. }) if ctx.config.emit != EmitWhat::Response => {
            return emit(None, body, ctx.config.emit);
        }
        Err(failure) if failure.may_pass() => return Err(failure.into()),
        Err(failure) => return Err(StepError::from(failure).into_permanent()),
    };
    match answer.verdict(&ctx.config.success, SystemTime::now()) {
        Verdict::Done => {}
        Verdict::Retry { after: Some(after) } => {
            return Err(StepError::retry(answer.complaint()).after(after));
        }
        Verdict::Retry { after: None } => return Err(StepError::retry(answer.complaint())),
        Verdict::Permanent => return Err(StepError::permanent(answer.complaint())),
    }
    emit(Some(&answer), body, ctx.config.emit)
}

/// Asks whether a message was sent before: none says that it was not, an answer that it was (the
/// answer itself is none if it is too large and nobody wants it). Anything but a clear yes or no is
/// asked again later, because to send it then might do it twice.
async fn ask(question: Request, ctx: &Context<Config, State>) -> Result<Option<Option<Answer>>> {
    let why = "it may have been done before, and the check cannot tell";
    let answer = match ctx.state.client.send(question).await {
        Ok(answer) => answer,
        Err(Failure::TooLarge { .. }) if ctx.config.emit != EmitWhat::Response => {
            return Ok(Some(None));
        }
        Err(failure) => return Err(StepError::from(failure).context(why)),
    };
    if answer.status.is_success() {
        return Ok(Some(Some(answer)));
    }
    if answer.status.as_u16() == 404 {
        return Ok(None);
    }
    let error = StepError::retry(format!("{why}: {}", answer.complaint()));
    Err(match answer.verdict(&[], SystemTime::now()) {
        Verdict::Retry { after: Some(after) } => error.after(after),
        _ => error,
    })
}

/// Chooses what the step emits.
fn emit(
    answer: Option<&Answer>,
    body: Box<RawValue>,
    what: EmitWhat,
) -> Result<Option<Box<RawValue>>> {
    match what {
        EmitWhat::Response => answer.map(emitted).transpose(),
        EmitWhat::Input => Ok(Some(body)),
        EmitWhat::None => Ok(None),
    }
}

/// Turns an answer into a message: JSON stays JSON, everything else is text, nothing is null.
fn emitted(answer: &Answer) -> Result<Box<RawValue>> {
    let named = |name| Some((name, answer.headers.get(name)?.to_str().ok()?));
    let body = if answer.body.is_empty() {
        RawValue::NULL.to_owned()
    } else if let Ok(json) = serde_json::from_slice::<&RawValue>(&answer.body) {
        compact(json)
    } else {
        to_raw_value(&String::from_utf8_lossy(&answer.body))?
    };
    let emitted = Emitted {
        status: answer.status.as_u16(),
        headers: HEADERS.into_iter().filter_map(named).collect(),
        body,
    };
    Ok(to_raw_value(&emitted)?)
}
