//! Makes one message of each item of a list.
//!
//! # Invariants
//!
//! - `the_same_list_makes_the_same_messages`: items are emitted in the order of the list, so the agent
//!   gives each the same id at every try.
//! - `a_list_that_cannot_be_split_emits_nothing`: what is wrong with it is found before the first
//!   item is emitted.

use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::value::RawValue;
use towpath_step::{Context, Result, StepError};
use towpath_step_jq::pool::{Failure, Pool, Settings};
use towpath_step_json::{Path, compact, items, text};
use towpath_step_span::Span;

pub use towpath_step_jq::{WORKER, serve};

/// How many workers filter side by side: one step process feeds them all.
const WORKERS: usize = 2;

/// How much memory the filter may use for one message: enough for the largest body, many times.
const MEMORY_MIB: u32 = 128;

/// `with:` of the step.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The path to the list, such as `order.lines`. The body itself, or its only list, if neither
    /// this nor `filter` is given.
    #[serde(default)]
    pub items: Option<Path>,
    /// A jq filter in place of a path: each value that it gives is a message.
    #[serde(default)]
    pub filter: Option<String>,
    /// The path, within an item, to the ordering key of its message. That of the list, if left out.
    #[serde(default)]
    pub key: Option<Path>,
    /// The most items of one list.
    #[serde(default = "default_items_max")]
    #[schemars(default = "default_items_max")]
    pub items_max: NonZeroU32,
    /// How long the filter may take for one message.
    #[serde(default = "default_timeout")]
    #[schemars(default = "default_timeout")]
    pub timeout: Span,
}

fn default_items_max() -> NonZeroU32 {
    NonZeroU32::new(100_000).expect("100000 is not zero")
}

fn default_timeout() -> Span {
    Span::seconds(5)
}

/// Starts a worker, if there is a filter, and has it compiled.
pub async fn setup(config: &Config) -> Result<Option<Pool>> {
    let Some(filter) = config.filter.clone() else {
        return Ok(None);
    };
    if config.items.is_some() {
        return Err(StepError::permanent(
            "`items` and `filter` are two ways to say where the list is: give one",
        ));
    }
    let program = std::env::current_exe()
        .map_err(|error| StepError::retry(format!("cannot find its own program: {error}")))?;
    let pool = Pool::start(Settings {
        program,
        filter,
        timeout: config.timeout.duration(),
        outputs_max: config.items_max.get(),
        memory_mib: MEMORY_MIB,
        workers: WORKERS,
    });
    Ok(Some(pool.await?))
}

/// Splits one message.
pub async fn split(body: Box<RawValue>, ctx: &Context<Config, Option<Pool>>) -> Result<()> {
    let config = &ctx.config;
    if let Some(pool) = &*ctx.state {
        let outputs = match pool.run(String::new(), body).await {
            Ok(outputs) => outputs,
            Err(Failure::Message(reason)) => return Err(StepError::permanent(reason)),
            Err(Failure::Worker(reason)) => return Err(StepError::retry(reason)),
        };
        let outputs: Vec<&RawValue> = outputs.iter().map(|output| &**output).collect();
        return emit(&outputs, ctx).await;
    }
    let found = items(&body, config.items.as_ref())
        .map_err(|error| StepError::permanent(format!("the message cannot be split: {error}")))?;
    let max = config.items_max;
    if found.len() > max.get() as usize {
        return Err(StepError::permanent(format!(
            "the list has {} items, more than {max} (`items_max`)",
            found.len()
        )));
    }
    emit(&found, ctx).await
}

async fn emit(items: &[&RawValue], ctx: &Context<Config, Option<Pool>>) -> Result<()> {
    let mut keys = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        keys.push(match &ctx.config.key {
            Some(path) => {
                let key = path.find_some(item).and_then(text);
                Some(key.ok_or_else(|| {
                    StepError::permanent(format!("item {} has no `{path}` (`key`)", index + 1))
                })?)
            }
            None => None,
        });
    }
    for (item, key) in items.iter().zip(&keys) {
        let output = ctx.output(compact(item));
        match key {
            Some(key) => output.key(key).send().await?,
            None => output.send().await?,
        }
    }
    Ok(())
}
