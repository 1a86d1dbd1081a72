//! Has the keys computed by which the messages of a step are kept in order, in worker processes of
//! this binary.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use towpath_step_jq::pool::{Failure, Pool, Settings, StartError};

use crate::core::{KeyQuestion, key_of};

/// How long the expression may take for one message.
const TIMEOUT: Duration = Duration::from_secs(1);

/// How much memory it may use, in MiB: a body of 1 MiB may become a tree of some dozen.
const MEMORY_MIB: u32 = 128;

/// One value is a key; a second shows that the expression gives several.
const OUTPUTS_MAX: u32 = 2;

/// How many messages are on their way to the worker at a time.
const TOGETHER: usize = 64;

/// How long to wait before a worker that could not be started is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// What comes of questions.
#[derive(Debug)]
pub(super) enum Keyed {
    /// A key, or why there is none.
    Key(u64, Result<String, String>),
    /// There are none yet, for this reason.
    Trouble(String),
}

/// Answers questions until nobody asks any more.
pub(super) async fn serve(
    program: PathBuf,
    by: Arc<str>,
    mut questions: mpsc::Receiver<KeyQuestion>,
    keys: mpsc::Sender<Keyed>,
) {
    let Some(pool) = start(program, &by, &keys).await else {
        return;
    };
    let asked = stream::poll_fn(|context| questions.poll_recv(context));
    let answers = asked.map(|question| answer(&pool, question, &keys));
    let mut answers = std::pin::pin!(answers.buffered(TOGETHER));
    while let Some((number, key)) = answers.next().await {
        if keys.send(Keyed::Key(number, key)).await.is_err() {
            return;
        }
    }
}

/// Starts the worker, however often it takes. None if nobody listens any more.
async fn start(program: PathBuf, by: &str, keys: &mpsc::Sender<Keyed>) -> Option<Pool> {
    loop {
        let settings = Settings {
            program: program.clone(),
            // As a condition has it: on the body, with the whole message as `$message`. A line end
            // ends what may be a comment.
            filter: format!(". as $message | .body | ({by}\n)"),
            timeout: TIMEOUT,
            outputs_max: OUTPUTS_MAX,
            memory_mib: MEMORY_MIB,
            workers: 1,
        };
        let why = match Pool::start(settings).await {
            Ok(pool) => return Some(pool),
            Err(StartError::Filter(why)) => why,
            Err(StartError::Worker(error)) => error.to_string(),
        };
        let why = format!("`order_by` cannot be evaluated, which is tried again: {why}");
        keys.send(Keyed::Trouble(why)).await.ok()?;
        tokio::time::sleep(AGAIN).await;
    }
}

/// Answers one question. A worker in trouble has nothing to do with the message: it is tried again.
async fn answer(
    pool: &Pool,
    question: KeyQuestion,
    keys: &mpsc::Sender<Keyed>,
) -> (u64, Result<String, String>) {
    let text = String::from_utf8_lossy(&question.message).into_owned();
    let message = match RawValue::from_string(text) {
        Ok(message) => message,
        Err(error) => return (question.number, Err(error.to_string())),
    };
    loop {
        match pool.run(String::new(), message.clone()).await {
            Ok(outputs) => return (question.number, key_of(&outputs)),
            Err(Failure::Message(why)) => {
                // Those are settings of a step, and none of an expression.
                let why = why
                    .replace(" (`timeout`)", "")
                    .replace(" (`outputs_max`)", "");
                return (question.number, Err(why));
            }
            Err(Failure::Worker(why)) => {
                let why = format!("`order_by` cannot be evaluated, which is tried again: {why}");
                // Said again at the next try, if nobody listens now.
                keys.try_send(Keyed::Trouble(why)).ok();
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}
