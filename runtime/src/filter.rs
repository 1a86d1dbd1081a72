//! jq over dead letters: a condition that chooses some, an expression that changes bodies. And
//! whether the conditions of steps compile.
//!
//! # Invariants
//!
//! - `a_filter_without_end_ends`: it runs in a process of its own, bounded in time and memory, and
//!   takes nothing else with it.
//! - `a_filter_that_fails_on_a_letter_does_not_choose_it`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use serde_json::value::RawValue;
use towpath_step_jq::judge;
use towpath_step_jq::pool::{Failure, Pool, Settings, StartError};

/// How long a filter may take for one letter.
const TIMEOUT: Duration = Duration::from_secs(1);

/// How much memory it may use, in MiB: a body of 1 MiB may become a tree of some dozen.
const MEMORY_MIB: u32 = 256;

/// The most values that a condition may give for one letter.
const OUTPUTS_MAX: u32 = 1_000;

/// How many letters are on their way to the workers at a time.
const TOGETHER: usize = 64;

/// How many worker processes a filter has.
const WORKERS: usize = 2;

/// A filter that runs. Its processes end when it is dropped.
pub struct Filter {
    pool: Pool,
}

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// It is wrong.
    #[error("{0}")]
    Wrong(String),
    /// It cannot be run here.
    #[error("filters cannot be run")]
    Worker(#[source] std::io::Error),
}

impl Filter {
    /// Compiles a filter. `program` is the binary that serves as worker: this one.
    pub async fn start(program: &Path, code: &str) -> Result<Self, FilterError> {
        let settings = Settings {
            program: program.to_owned(),
            filter: code.to_owned(),
            timeout: TIMEOUT,
            outputs_max: OUTPUTS_MAX,
            memory_mib: MEMORY_MIB,
            workers: WORKERS,
        };
        match Pool::start(settings).await {
            Ok(pool) => Ok(Self { pool }),
            Err(StartError::Filter(reason)) => Err(FilterError::Wrong(reason)),
            Err(StartError::Worker(error)) => Err(FilterError::Worker(error)),
        }
    }

    /// Says for each letter whether the condition holds: whether the filter gives anything but
    /// `false` and `null`.
    pub async fn holds(&self, letters: Vec<Box<RawValue>>) -> Vec<Result<bool, String>> {
        stream::iter(letters)
            .map(|letter| async {
                let outputs = self.pool.run(String::new(), letter).await.map_err(said)?;
                Ok(outputs
                    .iter()
                    .any(|output| !matches!(output.get(), "false" | "null")))
            })
            .buffered(TOGETHER)
            .collect()
            .await
    }

    /// Makes new bodies: each pair is a letter, which the expression knows as `$message`, and its
    /// body. The expression must give one value.
    pub async fn change(
        &self,
        bodies: Vec<(Box<RawValue>, Box<RawValue>)>,
    ) -> Vec<Result<Box<RawValue>, String>> {
        stream::iter(bodies)
            .map(|(letter, body)| async move {
                let about = if self.pool.wants_message() {
                    letter.get().to_owned()
                } else {
                    String::new()
                };
                let mut outputs = self.pool.run(about, body).await.map_err(said)?;
                match (outputs.pop(), outputs.len()) {
                    (Some(body), 0) => Ok(body),
                    (None, _) => Err("the expression gives nothing".to_owned()),
                    (Some(_), more) => Err(format!(
                        "the expression gives {} values, and a body is one",
                        more + 1
                    )),
                }
            })
            .buffered(TOGETHER)
            .collect()
            .await
    }
}

/// Tries which conditions of steps compile.
pub async fn compile(
    program: &Path,
    conditions: impl IntoIterator<Item = String>,
) -> Result<BTreeMap<String, Result<(), String>>, FilterError> {
    let mut all = BTreeMap::new();
    for condition in conditions {
        let outcome = match judge::check(program, &condition).await {
            Ok(()) => Ok(()),
            Err(StartError::Filter(reason)) => Err(reason.replace("the filter", "the condition")),
            Err(StartError::Worker(error)) => return Err(FilterError::Worker(error)),
        };
        all.insert(condition, outcome);
    }
    Ok(all)
}

fn said(failure: Failure) -> String {
    let (Failure::Message(reason) | Failure::Worker(reason)) = failure;
    // Those are settings of the step, and none of whoever filters letters.
    reason
        .replace(" (`timeout`)", "")
        .replace(" (`outputs_max`)", "")
        .replace("`memory_mib` is", "MiB:")
}
