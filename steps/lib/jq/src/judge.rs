//! Says which of several conditions hold for a message.
//!
//! A condition is a filter on the body; it knows the whole message as `$message`. It holds if the
//! first value it gives is anything but `false` and `null`, and not if it gives none. All conditions
//! are one filter, so that a message is read once.
//!
//! # Invariants
//!
//! - `a_condition_that_fails_takes_no_other_with_it`: not even one that never ends.
//! - `a_worker_that_cannot_start_is_no_verdict`: it is tried again until it can.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::OnceCell;

use crate::pool::{Failure, Pool, Settings, StartError};

/// How long all conditions together, and then each alone, may take for one message: a thousand times
/// what a sensible one takes.
const TIMEOUT: Duration = Duration::from_secs(1);

/// How much memory they may use, in MiB: a body of 1 MiB may become a tree of some dozen.
const MEMORY_MIB: u32 = 128;

/// How many messages are on their way to the worker at a time.
const TOGETHER: usize = 64;

/// How often a message may end the worker of a condition before the condition has failed for it.
const DEATHS_MAX: u32 = 3;

/// The first wait before a worker that cannot start is started again, and the longest.
const START_AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// Whether a condition holds for a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holds {
    /// It does.
    Yes,
    /// It does not.
    No,
    /// Nobody knows, for this reason.
    Failed(String),
}

/// Evaluates conditions in a worker process, which ends when this is dropped.
#[derive(Debug)]
pub struct Judge {
    program: PathBuf,
    conditions: Vec<String>,
    /// Started when there is a message.
    pool: OnceCell<Pool>,
}

/// Compiles a condition; the error says where it is wrong. `program` is the binary that serves as
/// worker.
///
/// # Errors
///
/// The condition is wrong, or no worker can be started.
pub async fn check(program: &Path, condition: &str) -> Result<(), StartError> {
    let settings = settings(program, condition.to_owned());
    Pool::start(settings).await.map(drop)
}

impl Judge {
    /// Makes a judge of these conditions. A worker is started when there is a message.
    pub fn new(program: PathBuf, conditions: Vec<String>) -> Self {
        Self {
            program,
            conditions,
            pool: OnceCell::new(),
        }
    }

    /// Says of each message which conditions hold, both in their order. `trouble` is told why there
    /// is no verdict yet. Several may ask at a time.
    pub async fn judge(
        &self,
        messages: Vec<Box<RawValue>>,
        trouble: &mut (dyn FnMut(&str) + Send),
    ) -> Vec<Vec<Holds>> {
        let filter = filter(&self.conditions);
        let pool = self
            .pool
            .get_or_try_init(|| start(&self.program, filter, trouble))
            .await;
        let answers: Vec<_> = match pool {
            Ok(pool) => {
                let mut runs = Vec::with_capacity(messages.len());
                for message in &messages {
                    runs.push(pool.run(String::new(), message.clone()));
                }
                let mut answers = Vec::with_capacity(messages.len());
                let mut runs = stream::iter(runs).buffered(TOGETHER);
                while let Some(answer) = runs.next().await {
                    answers.push(answer.ok().and_then(|outputs| read(&outputs)));
                }
                answers
            }
            // One of them is wrong; alone it is known which.
            Err(_) => vec![None; messages.len()],
        };
        let mut all = Vec::with_capacity(messages.len());
        for (message, answer) in messages.into_iter().zip(answers) {
            match answer {
                Some(verdict) if verdict.len() == self.conditions.len() => all.push(verdict),
                _ => {
                    let mut verdict = Vec::with_capacity(self.conditions.len());
                    for condition in &self.conditions {
                        verdict.push(alone(&self.program, condition, &message, trouble).await);
                    }
                    all.push(verdict);
                }
            }
        }
        all
    }
}

/// Evaluates one condition in a worker of its own, because something went wrong with it or with its
/// neighbours.
async fn alone(
    program: &Path,
    condition: &String,
    message: &RawValue,
    trouble: &mut (dyn FnMut(&str) + Send),
) -> Holds {
    let mut deaths = 0;
    loop {
        let filter = filter(std::slice::from_ref(condition));
        let pool = match start(program, filter, trouble).await {
            Ok(pool) => pool,
            Err(reason) => return Holds::Failed(said(&reason)),
        };
        match pool.run(String::new(), message.to_owned()).await {
            Ok(outputs) => {
                let verdict = read(&outputs).and_then(|mut verdict| verdict.pop());
                let odd = || Holds::Failed("the condition gives no verdict".to_owned());
                return verdict.unwrap_or_else(odd);
            }
            Err(Failure::Message(reason)) => return Holds::Failed(said(&reason)),
            Err(Failure::Worker(reason)) => {
                deaths += 1;
                if deaths >= DEATHS_MAX {
                    return Holds::Failed(said(&reason));
                }
            }
        }
    }
}

/// Starts a worker, however long that takes. The error is that of a wrong filter.
async fn start(
    program: &Path,
    filter: String,
    trouble: &mut (dyn FnMut(&str) + Send),
) -> Result<Pool, String> {
    let mut wait = START_AGAIN.0;
    loop {
        match Pool::start(settings(program, filter.clone())).await {
            Ok(pool) => return Ok(pool),
            Err(StartError::Filter(reason)) => return Err(reason),
            Err(StartError::Worker(error)) => {
                trouble(&format!("conditions cannot be evaluated: {error}"));
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(START_AGAIN.1);
            }
        }
    }
}

fn settings(program: &Path, filter: String) -> Settings {
    Settings {
        program: program.to_owned(),
        filter,
        timeout: TIMEOUT,
        outputs_max: 1,
        memory_mib: MEMORY_MIB,
        workers: 1,
    }
}

/// One filter of several conditions: from a message to the list of what they say. Each was compiled
/// by itself before, so that none can close a bracket that is not its own; a line end ends what may
/// be a comment.
fn filter(conditions: &[String]) -> String {
    let each = |condition: &String| {
        format!(
            "(try ([first({condition}\n)] | if .[0] then true else false end) catch {{why: .}})"
        )
    };
    let all: Vec<String> = conditions.iter().map(each).collect();
    format!(". as $message | .body | [{}]", all.join(", "))
}

/// Reads what such a filter gives.
fn read(outputs: &[Box<RawValue>]) -> Option<Vec<Holds>> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Said {
        Verdict(bool),
        Failed { why: Value },
    }
    let [verdict] = outputs else { return None };
    let verdict: Vec<Said> = serde_json::from_str(verdict.get()).ok()?;
    let holds = |said| match said {
        Said::Verdict(true) => Holds::Yes,
        Said::Verdict(false) => Holds::No,
        Said::Failed {
            why: Value::String(why),
        } => Holds::Failed(why),
        Said::Failed { why } => Holds::Failed(why.to_string()),
    };
    Some(verdict.into_iter().map(holds).collect())
}

/// What went wrong, for whoever wrote a condition and knows of no filter.
fn said(reason: &str) -> String {
    reason
        .replace(" (`timeout`)", "")
        .replace("`memory_mib` is", "MiB:")
        .replace("the filter", "the condition")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Program;

    fn judge(conditions: &[&str], message: &str) -> Vec<Holds> {
        let conditions: Vec<String> = conditions.iter().map(|it| (*it).to_owned()).collect();
        for condition in &conditions {
            Program::compile(condition, 1).unwrap();
        }
        let program = Program::compile(&filter(&conditions), 1).unwrap();
        let mut outputs = Vec::new();
        let keep = |output: &[u8]| {
            outputs
                .push(RawValue::from_string(String::from_utf8(output.to_vec()).unwrap()).unwrap());
        };
        program.run(b"", message.as_bytes(), keep).unwrap();
        read(&outputs).unwrap()
    }

    #[track_caller]
    fn check(condition: &str, expect: &Holds) {
        let message = r#"{"id":"7","headers":{"kind":"b"},"body":{"n":3,"none":null,"list":[]}}"#;
        assert_eq!(
            judge(&[condition], message),
            std::slice::from_ref(expect),
            "{condition}"
        );
    }

    #[test]
    fn a_condition_holds_as_jq_has_it() {
        for condition in [
            ".n == 3",
            ".n",
            "0",
            "\"\"",
            ".list",
            "true, false",
            ".n > 2 # a comment",
            "$message.headers.kind == \"b\"",
            "def big: . > 2; .n | big",
            "first(range(1; infinite))",
            ".none.a.b == null",
        ] {
            check(condition, &Holds::Yes);
        }
        for condition in [
            ".n == 4",
            "null",
            "false",
            "empty",
            "false, true",
            ".no",
            ".list[]",
        ] {
            check(condition, &Holds::No);
        }
        for (condition, why) in [
            (".n.a", "cannot index 3 with \"a\""),
            ("error(\"no\")", "no"),
            ("error({a: 1})", "{\"a\":1}"),
        ] {
            check(condition, &Holds::Failed(why.to_owned()));
        }
    }

    #[test]
    fn a_condition_that_fails_takes_no_other_with_it() {
        let verdict = judge(
            &[".a", "error", ".b # or so"],
            r#"{"body":{"a":1,"b":false}}"#,
        );
        assert_eq!((&verdict[0], &verdict[2]), (&Holds::Yes, &Holds::No));
        assert!(matches!(verdict[1], Holds::Failed(_)));
    }
}
