//! What becomes of a message.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use towpath_step::{Context, Result, StepError};
use towpath_step_http::{Answer, Client, Failure, Settings, Verdict};
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
    let request = ctx
        .state
        .plan
        .request(&body, about)
        .map_err(StepError::permanent)?;
    let emit = ctx.config.emit;
    let answer = match ctx.state.client.send(request).await {
        Ok(answer) => answer,
        // It was done, and nobody wants to know what was said.
        Err(Failure::TooLarge { .. }) if emit != EmitWhat::Response => {
            return Ok((emit == EmitWhat::Input).then_some(body));
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
    match emit {
        EmitWhat::Response => Ok(Some(emitted(&answer)?)),
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
