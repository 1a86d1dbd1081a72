//! Dead letters: listed, shown, replayed, discarded.

use serde_json::Value;
use serde_json::value::RawValue;

use super::Control;
use super::error::{ControlError, ErrorKind};
use super::runs::word;
use super::view::{DeadList, DeadView, Done};
use crate::engine::chain;
use crate::replay::ReplayError;
use crate::store::dead_letters::DeadQuery;
use crate::store::records::{DeadLetterRecord, DeadState};

/// The most dead letters in one answer.
const LETTERS_MAX: u32 = 1_000;

/// How many there are when nothing is said.
const LETTERS_DEFAULT: u32 = 100;

/// Which dead letters, as asked for over the API.
#[derive(Debug, Clone, Default, serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeadFilter {
    /// Of this flow only.
    pub flow: Option<String>,
    /// Of this step only.
    pub step: Option<String>,
    /// In this state only: `open` (the default), `replayed`, `discarded` or `all`.
    pub state: Option<String>,
    /// The `next` of the page before.
    pub before: Option<String>,
    /// At most this many.
    pub limit: Option<u32>,
}

impl Control {
    /// Lists dead letters, newest first, without their messages.
    pub async fn dead_list(&self, filter: &DeadFilter) -> Result<DeadList, ControlError> {
        let bad = |message: String| ControlError::new(ErrorKind::Bad, "bad_filter", message);
        let state = match filter.state.as_deref().unwrap_or("open") {
            "open" => Some(DeadState::Open),
            "replayed" => Some(DeadState::Replayed),
            "discarded" => Some(DeadState::Discarded),
            "all" => None,
            other => {
                return Err(bad(format!("`{other}` is no state of a dead letter"))
                    .hint("there are open, replayed, discarded and all"));
            }
        };
        let before = match &filter.before {
            None => None,
            Some(text) => Some(
                text.parse()
                    .map_err(|_| bad(format!("`{text}` is no place in the list")))?,
            ),
        };
        let limit = filter
            .limit
            .unwrap_or(LETTERS_DEFAULT)
            .clamp(1, LETTERS_MAX);
        let query = DeadQuery {
            flow: filter.flow.clone(),
            step: filter.step.clone(),
            state,
            before,
            limit,
        };
        let letters = self.catalog.store.dead_letters(query).await?;
        let next = (letters.len() == limit as usize)
            .then(|| letters.last().map(|last| last.id.to_string()))
            .flatten();
        Ok(DeadList {
            dead: letters.iter().map(|letter| view(letter, false)).collect(),
            next,
        })
    }

    /// Shows a dead letter with its message.
    pub async fn dead_show(&self, id: &str) -> Result<DeadView, ControlError> {
        Ok(view(&self.letter(id).await?, true))
    }

    /// Sends a dead letter's message to its step again, with another body if one is given.
    pub async fn dead_replay(&self, id: &str, body: Option<Value>) -> Result<Done, ControlError> {
        let letter = self.letter(id).await?;
        let body = body
            .map(|body| RawValue::from_string(body.to_string()))
            .transpose()
            .map_err(|error| ControlError::internal(&error))?;
        let replayed = self.replayer.replay(letter.id, body).await?;
        let message = format!(
            "dead letter {id} is with `{}` of `{}` again",
            replayed.step, replayed.flow
        );
        Ok(Done {
            changed: true,
            message,
        })
    }

    /// Says that a dead letter is not needed.
    pub async fn dead_discard(&self, id: &str) -> Result<Done, ControlError> {
        let letter = self.letter(id).await?;
        self.replayer.discard(letter.id).await?;
        Ok(Done {
            changed: true,
            message: format!("dead letter {id} is discarded"),
        })
    }

    pub(super) async fn letter(&self, id: &str) -> Result<DeadLetterRecord, ControlError> {
        let missing = || {
            let message = format!("there is no dead letter `{id}`");
            ControlError::new(ErrorKind::NotFound, "no_such_dead_letter", message)
                .hint("`towpath dead list --all` shows all of them")
        };
        let number: u64 = id.parse().map_err(|_| missing())?;
        self.catalog
            .store
            .dead_letter(number)
            .await?
            .ok_or_else(missing)
    }
}

impl From<ReplayError> for ControlError {
    fn from(error: ReplayError) -> Self {
        let conflict = |code| Self::new(ErrorKind::Conflict, code, chain(&error));
        match error {
            ReplayError::NotFound { .. } => Self::new(
                ErrorKind::NotFound,
                "no_such_dead_letter",
                error.to_string(),
            ),
            ReplayError::NotOpen { .. } => conflict("not_open"),
            ReplayError::UnderWay { .. } => conflict("under_way"),
            ReplayError::NoStep { .. } => {
                conflict("no_such_step").hint("apply a flow that has this step, then replay it")
            }
            ReplayError::Unreadable { .. } => {
                conflict("unreadable").hint("replay it with another body, or discard it")
            }
            ReplayError::Tick(error) => error.into(),
            ReplayError::Broker(error) => error.into(),
            ReplayError::Store(error) => error.into(),
        }
    }
}

fn view(letter: &DeadLetterRecord, with_message: bool) -> DeadView {
    DeadView {
        id: letter.id.to_string(),
        flow: letter.flow.clone(),
        step: letter.step.clone(),
        connection: letter.connection.clone(),
        run: letter.run.map(|run| run.to_string()),
        message_id: letter.message_id.to_string(),
        cause: word(letter.cause),
        reason: letter.reason.clone(),
        chain: letter.chain.clone(),
        attempts: letter
            .attempts
            .iter()
            .map(|attempt| serde_json::to_value(attempt).unwrap_or(Value::Null))
            .collect(),
        replica: letter.replica,
        at: letter.at,
        replays: letter.replays,
        state: word(letter.state),
        message: with_message.then(|| {
            serde_json::from_str(letter.message.get())
                .unwrap_or_else(|_| Value::String(letter.message.get().to_owned()))
        }),
    }
}
