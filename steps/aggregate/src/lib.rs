//! Makes one message of many: those of a key that come within a window, which is a batch.
//!
//! # Invariants
//!
//! - `one_output_for_each_key_with_the_items_in_their_order`.
//! - `what_has_no_key_is_named_and_the_others_go_on`.
//! - `no_output_is_larger_than_an_output_may_be`: what is too much for one makes several.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use futures_util::future::join_all;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use towpath_step::{Context, Item, Result, StepError};
use towpath_step_jq::pool::{Failure, Pool, Settings, StartError};
use towpath_step_json::compact;
use towpath_step_span::Span;

pub use towpath_step_jq::{WORKER, serve};

/// The most messages of one window: as many as a flow can have handed over together.
pub const BATCH_MAX: usize = 1_000;

/// How many workers filter side by side: one step process feeds them all.
const WORKERS: usize = 2;

/// How much memory a filter may use for one message, or for one window: enough for the largest body,
/// many times.
const MEMORY_MIB: u32 = 128;

/// The most messages that a filter may make of one window.
const OUTPUTS_MAX: u32 = 1_000;

/// What an output has beside its key and its items: names, brackets and the count.
const FRAME_BYTES: usize = 64;

/// A message as the step takes it.
pub type Message = Item<Box<RawValue>>;

/// `with:` of the step.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// A jq filter on the body, such as `.customer`: messages for which it gives the same are put
    /// together. All of a window, if left out. `$message` is `{id, attempt, headers}`.
    #[serde(default)]
    pub key: Option<String>,
    /// A jq filter on `{key, count, items}`, which is the output if left out: each value that it
    /// gives is a message.
    #[serde(default)]
    pub filter: Option<String>,
    /// How long a filter may take: `key` for one message, `filter` for one window.
    #[serde(default = "default_timeout")]
    #[schemars(default = "default_timeout")]
    pub timeout: Span,
}

fn default_timeout() -> Span {
    Span::seconds(5)
}

/// What filters are evaluated by.
#[derive(Debug)]
pub struct State {
    key: Option<Pool>,
    filter: Option<Pool>,
}

/// Starts a worker for each filter, and has it compiled.
pub async fn setup(config: &Config) -> Result<State> {
    let program = std::env::current_exe()
        .map_err(|error| StepError::retry(format!("cannot find its own program: {error}")))?;
    setup_with(config, program).await
}

/// The same, with a program that serves when it is told to: see [`WORKER`].
pub async fn setup_with(config: &Config, program: PathBuf) -> Result<State> {
    Ok(State {
        key: pool("key", config.key.as_deref(), config, &program).await?,
        filter: pool("filter", config.filter.as_deref(), config, &program).await?,
    })
}

async fn pool(
    name: &str,
    filter: Option<&str>,
    config: &Config,
    program: &Path,
) -> Result<Option<Pool>> {
    let Some(filter) = filter else {
        return Ok(None);
    };
    let pool = Pool::start(Settings {
        program: program.to_owned(),
        filter: filter.to_owned(),
        timeout: config.timeout.duration(),
        outputs_max: OUTPUTS_MAX,
        memory_mib: MEMORY_MIB,
        workers: WORKERS,
    });
    match pool.await {
        Ok(pool) => Ok(Some(pool)),
        Err(StartError::Filter(why)) => Err(StepError::permanent(format!(
            "`{name}` is no filter: {why}"
        ))),
        Err(error) => Err(error.into()),
    }
}

/// What a filter sees as `$message`.
#[derive(Serialize)]
struct About<'a> {
    id: String,
    attempt: u32,
    headers: &'a BTreeMap<String, String>,
}

/// What leaves, and what `filter` is given.
#[derive(Serialize)]
struct Aggregate<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a RawValue>,
    count: usize,
    items: &'a [&'a RawValue],
}

/// Makes one message of those of each key.
pub async fn aggregate(
    messages: Vec<Message>,
    ctx: &Context<Config, State>,
) -> Result<Vec<Result<()>>> {
    let mut results: Vec<Result<()>> = messages.iter().map(|_| Ok(())).collect();
    let mut groups: Vec<(Option<Box<RawValue>>, Vec<usize>)> = Vec::new();
    let mut known = HashMap::new();
    let keys = join_all(messages.iter().map(|message| key_of(message, &ctx.state)));
    for (index, key) in keys.await.into_iter().enumerate() {
        let key = match key {
            Ok(key) => key,
            Err(error) => {
                results[index] = Err(error);
                continue;
            }
        };
        let name = key.as_ref().map(|key| key.get().to_owned());
        let group = *known.entry(name).or_insert(groups.len());
        if group == groups.len() {
            groups.push((key, Vec::new()));
        }
        groups[group].1.push(index);
    }
    for (key, members) in groups {
        let room = ctx
            .body_bytes_max()
            .saturating_sub(FRAME_BYTES + key.as_ref().map_or(0, |key| key.get().len()));
        for part in parts(&members, &messages, room) {
            let part_of = || part.iter().map(|index| &messages[*index]);
            let Err(error) = emit(key.as_deref(), part_of().collect(), ctx).await else {
                continue;
            };
            for index in part {
                results[*index] = Err(error.clone());
            }
        }
    }
    Ok(results)
}

/// Computes the key of a message; none if all are put together.
async fn key_of(message: &Message, state: &State) -> Result<Option<Box<RawValue>>> {
    let Some(pool) = &state.key else {
        return Ok(None);
    };
    let about = if pool.wants_message() {
        serde_json::to_string(&About {
            id: message.message_id().to_string(),
            attempt: message.attempt(),
            headers: message.headers(),
        })?
    } else {
        String::new()
    };
    let outputs = match pool.run(about, message.body.clone()).await {
        Ok(outputs) => outputs,
        Err(Failure::Message(why)) => return Err(no_key(&why)),
        Err(Failure::Worker(why)) => return Err(StepError::retry(why)),
    };
    match &outputs[..] {
        [] => Err(no_key("it gives nothing")),
        [one] if one.get() == "null" => Err(no_key("it gives null")),
        [one] => Ok(Some(one.clone())),
        several => Err(no_key(&format!(
            "it gives {} values, and a key is one",
            several.len()
        ))),
    }
}

fn no_key(why: &str) -> StepError {
    StepError::permanent(format!("the message has no key (`key`): {why}"))
}

/// Divides messages so that the bodies of a part are no larger than the room for them.
fn parts<'a>(members: &'a [usize], messages: &[Message], room: usize) -> Vec<&'a [usize]> {
    let mut parts = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, index) in members.iter().enumerate() {
        // With its comma.
        let size = messages[*index].body.get().len() + 1;
        if at > start && bytes + size > room {
            parts.push(&members[start..at]);
            (start, bytes) = (at, 0);
        }
        bytes += size;
    }
    parts.push(&members[start..]);
    parts
}

async fn emit(
    key: Option<&RawValue>,
    messages: Vec<&Message>,
    ctx: &Context<Config, State>,
) -> Result<()> {
    let items: Vec<Box<RawValue>> = messages.iter().map(|it| compact(&it.body)).collect();
    let items: Vec<&RawValue> = items.iter().map(|item| &**item).collect();
    let whole = serde_json::value::to_raw_value(&Aggregate {
        key,
        count: items.len(),
        items: &items,
    })?;
    let outputs = match &ctx.state.filter {
        Some(pool) => match pool.run(String::new(), whole).await {
            Ok(outputs) => outputs,
            Err(Failure::Message(why)) => {
                return Err(StepError::permanent(format!("`filter` fails: {why}")));
            }
            Err(Failure::Worker(why)) => return Err(StepError::retry(why)),
        },
        None => vec![whole],
    };
    for output in outputs {
        ctx.output(output)
            .of(messages.iter().copied())
            .send()
            .await?;
    }
    Ok(())
}
