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

/// How often a message may end the worker it is alone with before it has no key.
const DEATHS_MAX: u32 = 3;

/// What comes of questions.
#[derive(Debug)]
pub(super) enum Keyed {
    /// A key, or why there is none.
    Key(u64, Result<String, String>),
    /// There are none yet, for this reason.
    Trouble(String),
}

/// What keys are computed by.
struct Keys {
    program: PathBuf,
    by: Arc<str>,
    keyed: mpsc::Sender<Keyed>,
}

/// Answers questions until nobody asks any more.
pub(super) async fn serve(
    program: PathBuf,
    by: Arc<str>,
    mut questions: mpsc::Receiver<KeyQuestion>,
    keyed: mpsc::Sender<Keyed>,
) {
    let keys = Keys { program, by, keyed };
    let Some(pool) = keys.start().await else {
        return;
    };
    let asked = stream::poll_fn(|context| questions.poll_recv(context));
    let answers = asked.map(|question| keys.answer(&pool, question));
    let mut answers = std::pin::pin!(answers.buffered(TOGETHER));
    while let Some((number, key)) = answers.next().await {
        if keys.keyed.send(Keyed::Key(number, key)).await.is_err() {
            return;
        }
    }
}

impl Keys {
    /// Starts a worker, however often it takes. None if nobody listens any more.
    async fn start(&self) -> Option<Pool> {
        loop {
            let settings = Settings {
                program: self.program.clone(),
                // As a condition has it: on the body, with the whole message as `$message`. A line end
                // ends what may be a comment.
                filter: format!(". as $message | .body | ({}\n)", self.by),
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
            self.keyed.send(Keyed::Trouble(why)).await.ok()?;
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Answers one question.
    async fn answer(&self, pool: &Pool, question: KeyQuestion) -> (u64, Result<String, String>) {
        let text = String::from_utf8_lossy(&question.message).into_owned();
        let key = match RawValue::from_string(text) {
            Ok(message) => self.key(pool, &message).await,
            Err(error) => Err(error.to_string()),
        };
        (question.number, key)
    }

    /// Computes a key. A worker that ended may have ended for another reason: the message is tried
    /// again, alone with a new one.
    async fn key(&self, pool: &Pool, message: &RawValue) -> Result<String, String> {
        let mut outcome = pool.run(String::new(), message.to_owned()).await;
        let mut deaths = 0;
        while matches!(outcome, Err(Failure::Worker(_))) && deaths < DEATHS_MAX {
            let Some(alone) = self.start().await else {
                break;
            };
            outcome = alone.run(String::new(), message.to_owned()).await;
            deaths += 1;
        }
        let outputs = outcome.map_err(|(Failure::Message(why) | Failure::Worker(why))| {
            // Those are settings of a step, and none of an expression.
            why.replace(" (`timeout`)", "")
                .replace(" (`outputs_max`)", "")
        })?;
        key_of(&outputs)
    }
}
