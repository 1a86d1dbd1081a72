//! The step: its configuration, and what becomes of a message.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroUsize};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use towpath_step::{Context, Many, Result, StepError};
use towpath_step_jq::pool::{Failure, Pool, Settings};
use towpath_step_span::Span;

/// More workers than this gain nothing: one step process feeds them all.
const WORKERS_MAX: usize = 4;

/// `with:` of the step.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The filter: each value that it gives for the body of a message is an output.
    /// `$message` is `{id, attempt, headers}`.
    pub filter: String,
    /// How long the filter may take for one message.
    #[serde(default = "default_timeout")]
    #[schemars(default = "default_timeout")]
    pub timeout: Span,
    /// The most outputs of one message.
    #[serde(default = "default_outputs_max")]
    #[schemars(default = "default_outputs_max")]
    pub outputs_max: NonZeroU32,
    /// How much memory a filter may use, in MiB, for one message.
    #[serde(default = "default_memory_mib")]
    #[schemars(default = "default_memory_mib", range(min = 16, max = 4096))]
    pub memory_mib: u32,
}

fn default_timeout() -> Span {
    Span::seconds(1)
}

fn default_outputs_max() -> NonZeroU32 {
    NonZeroU32::new(1000).expect("1000 is not zero")
}

fn default_memory_mib() -> u32 {
    128
}

/// What a filter sees as `$message`.
#[derive(Serialize)]
struct About<'a> {
    id: String,
    attempt: u32,
    headers: &'a BTreeMap<String, String>,
}

/// Starts a worker and has it compile the filter.
pub async fn setup(config: &Config) -> Result<Pool> {
    let parallel = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let program = std::env::current_exe()
        .map_err(|error| StepError::retry(format!("cannot find its own program: {error}")))?;
    Ok(Pool::start(Settings {
        program,
        filter: config.filter.clone(),
        timeout: config.timeout.duration(),
        outputs_max: config.outputs_max.get(),
        memory_mib: config.memory_mib.clamp(16, 4096),
        workers: parallel.min(WORKERS_MAX),
    })
    .await?)
}

/// Filters one message.
pub async fn handle(
    body: Box<RawValue>,
    ctx: &Context<Config, Pool>,
) -> Result<Many<Box<RawValue>>> {
    let about = if ctx.state.wants_message() {
        let about = About {
            id: ctx.message_id().to_string(),
            attempt: ctx.attempt(),
            headers: ctx.headers(),
        };
        serde_json::to_string(&about)?
    } else {
        String::new()
    };
    match ctx.state.run(about, body).await {
        Ok(outputs) => Ok(Many(outputs)),
        Err(Failure::Message(reason)) => Err(StepError::permanent(reason)),
        Err(Failure::Worker(reason)) => Err(StepError::retry(reason)),
    }
}
