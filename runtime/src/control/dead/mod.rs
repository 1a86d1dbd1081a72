//! Dead letters: listed, grouped, shown, edited, replayed, discarded, exported.

use serde_json::Value;
use serde_json::value::RawValue;
use towpath_protocol::message::{Lineage, Message};

use super::Control;
use super::error::{ControlError, ErrorKind};
use super::runs::word;
use super::view::{DeadList, DeadView, Done};
use crate::engine::chain;
use crate::replay::ReplayError;
use crate::store::dead_letters::{DeadQuery, KeptLetter};
use crate::store::records::DeadState;
use crate::store::replay_jobs::JobRecord;

mod export;
mod letter;
mod many;
mod select;
#[cfg(test)]
mod tests;
pub mod view;

use select::{Failures, bad, held, query};
use view::{DeadSelection, EditRequest, GroupList, GroupView, JobView, OtherDeath};

/// The most dead letters in one answer.
const LETTERS_MAX: u32 = 1_000;

/// How many there are when nothing is said.
const LETTERS_DEFAULT: u32 = 100;

/// What to do about a number that is none.
const ALL_OF_THEM: &str = "`towpath dead list --state all` shows all of them";

/// How many other deaths of a message are shown.
const DEATHS_MAX: u32 = 20;

/// Which dead letters, as asked for over the API.
#[derive(Debug, Clone, Default, serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeadFilter {
    /// Of this flow only.
    pub flow: Option<String>,
    /// Of this step only.
    pub step: Option<String>,
    /// Of this group only.
    pub group: Option<String>,
    /// That came to this kind of end only.
    pub cause: Option<String>,
    /// That died at this time or later only, in milliseconds since 1970.
    pub since: Option<u64>,
    /// That died before this time only, in milliseconds since 1970.
    pub until: Option<u64>,
    /// These only: numbers with commas between them.
    pub ids: Option<String>,
    /// For which this jq filter gives anything but `false` and `null`.
    pub filter: Option<String>,
    /// In this state only: `open` (the default), `replaying`, `replayed`, `discarded` or `all`.
    pub state: Option<String>,
    /// The `next` of the page before.
    pub before: Option<String>,
    /// At most this many.
    pub limit: Option<u32>,
}

impl DeadFilter {
    /// The part of it that the store decides.
    fn query(&self) -> Result<DeadQuery, ControlError> {
        let state = match self.state.as_deref().unwrap_or("open") {
            "open" => Some(DeadState::Open),
            "replaying" => Some(DeadState::Replaying),
            "replayed" => Some(DeadState::Replayed),
            "discarded" => Some(DeadState::Discarded),
            "all" => None,
            other => {
                return Err(bad(format!("`{other}` is no state of a dead letter"))
                    .hint("there are open, replaying, replayed, discarded and all"));
            }
        };
        let before = match &self.before {
            None => None,
            Some(text) => Some(
                text.parse()
                    .map_err(|_| bad(format!("`{text}` is no place in the list")))?,
            ),
        };
        let ids = self.ids.iter().flat_map(|ids| ids.split(','));
        let select = DeadSelection {
            ids: ids.map(|id| id.trim().to_owned()).collect(),
            group: self.group.clone(),
            flow: self.flow.clone(),
            step: self.step.clone(),
            cause: self.cause.clone(),
            since: self.since,
            until: self.until,
            filter: None,
            all: false,
        };
        let limit = self.limit.unwrap_or(LETTERS_DEFAULT).clamp(1, LETTERS_MAX);
        Ok(DeadQuery {
            state,
            before,
            limit,
            ..query(&select)?
        })
    }
}

impl Control {
    /// Lists dead letters, newest first, without their messages.
    pub async fn dead_list(&self, filter: &DeadFilter) -> Result<DeadList, ControlError> {
        let mut query = filter.query()?;
        let limit = query.limit as usize;
        let compiled = match &filter.filter {
            Some(code) => Some(self.filter(code).await?),
            None => None,
        };
        let (mut dead, mut failures) = (Vec::new(), Failures::default());
        let mut next = None;
        loop {
            let letters = self.catalog.store.dead_letters(query.clone()).await?;
            let is_last = letters.len() < query.limit as usize;
            let chosen = match &compiled {
                Some(filter) => held(filter, &letters, &mut failures).await,
                None => letters.iter().collect(),
            };
            dead.extend(chosen.into_iter().map(|letter| view(letter, false)));
            if let Some(last) = letters.last() {
                query.before = Some(last.id);
                next = Some(last.id.to_string());
            }
            if is_last {
                next = None;
            }
            if is_last || dead.len() >= limit {
                break;
            }
        }
        if dead.len() > limit {
            dead.truncate(limit);
            next = dead.last().map(|last| last.id.clone());
        }
        Ok(DeadList {
            dead,
            next,
            left_out: failures.left_out("the filter failed on them"),
        })
    }

    /// Counts open dead letters by kind, the largest group first.
    pub async fn dead_groups(
        &self,
        flow: Option<String>,
        step: Option<String>,
    ) -> Result<GroupList, ControlError> {
        let groups = self.catalog.store.dead_groups(flow, step).await?;
        let groups = groups.into_iter().map(|group| GroupView {
            group: group.id,
            flow: group.flow,
            step: group.step,
            cause: word(group.cause),
            pattern: group.pattern,
            count: group.count,
            repeats: group.repeats,
            first_at: group.first_at,
            last_at: group.last_at,
            example: group.example.to_string(),
        });
        Ok(GroupList {
            groups: groups.collect(),
        })
    }

    /// Shows a dead letter with its message, and what else became of that message.
    pub async fn dead_show(&self, id: &str) -> Result<DeadView, ControlError> {
        let letter = self.letter(id).await?;
        let mut shown = view(&letter, true);
        let query = DeadQuery {
            flow: Some(letter.flow.clone()),
            step: Some(letter.step.clone()),
            message: Some(letter.message_id),
            limit: DEATHS_MAX,
            ..DeadQuery::default()
        };
        let mut others = self.catalog.store.dead_letters(query).await?;
        others.retain(|other| other.id != letter.id);
        others.reverse();
        let others = others.iter().map(|other| OtherDeath {
            id: other.id.to_string(),
            at: other.at,
            cause: word(other.cause),
            reason: other.reason.clone(),
            replays: other.replays,
            state: word(other.state),
        });
        shown.others = others.collect();
        Ok(shown)
    }

    /// Puts a body in place of a dead letter's own, which is kept; or its own back.
    pub async fn dead_edit(
        &self,
        id: &str,
        request: Option<EditRequest>,
    ) -> Result<Done, ControlError> {
        let letter = self.letter(id).await?;
        self.replayer.open(letter.id).await?;
        let body = match request {
            None => None,
            Some(request) => Some(many::sized(&request.body).map_err(|reason| {
                ControlError::new(ErrorKind::Bad, "body_too_large", reason)
                    .hint("nothing was changed")
            })?),
        };
        let (before, _) = letter::bodies(&letter);
        let is_same = match &body {
            None => letter.edited.is_none(),
            Some(body) => crate::json_text::compact(&before).get() == body.get(),
        };
        if is_same {
            return Ok(Done {
                changed: false,
                message: format!("the body of dead letter {id} is that already"),
            });
        }
        let message = match &body {
            None => format!("dead letter {id} has its own body again"),
            Some(_) => {
                format!("dead letter {id} has a new body; `towpath dead replay {id}` sends it")
            }
        };
        let edited = self
            .catalog
            .store
            .edit_dead_letters(vec![(letter.id, body)])
            .await?;
        if edited == 0 {
            self.replayer.open(letter.id).await?;
        }
        tracing::info!(
            dead_letter = letter.id,
            "the body of a dead letter was edited"
        );
        Ok(Done {
            changed: true,
            message,
        })
    }

    /// Sends a dead letter's message to its step again, or to one before it, with another body if
    /// one is given.
    pub async fn dead_replay(
        &self,
        id: &str,
        body: Option<Box<RawValue>>,
        from: Option<String>,
    ) -> Result<Done, ControlError> {
        let letter = self.letter(id).await?;
        let body = body.map(|body| many::sized(&body)).transpose();
        let body = body.map_err(|reason| {
            ControlError::new(ErrorKind::Bad, "body_too_large", reason).hint("nothing was sent")
        })?;
        let replayed = self.replayer.replay(letter.id, body, from).await?;
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

    pub(super) async fn letter(&self, id: &str) -> Result<KeptLetter, ControlError> {
        let number: u64 = id.parse().map_err(|_| no_letter(id))?;
        self.catalog
            .store
            .dead_letter(number)
            .await?
            .ok_or_else(|| no_letter(id))
    }
}

fn no_letter(id: &str) -> ControlError {
    let message = format!("there is no dead letter `{id}`");
    ControlError::new(ErrorKind::NotFound, "no_such_dead_letter", message).hint(ALL_OF_THEM)
}

impl From<ReplayError> for ControlError {
    fn from(error: ReplayError) -> Self {
        let conflict = |code| Self::new(ErrorKind::Conflict, code, chain(&error));
        match error {
            ReplayError::NotFound { .. } => Self::new(
                ErrorKind::NotFound,
                "no_such_dead_letter",
                error.to_string(),
            )
            .hint(ALL_OF_THEM),
            ReplayError::NotOpen { .. } => conflict("not_open"),
            ReplayError::UnderWay { .. } => conflict("under_way"),
            ReplayError::InJob { job, .. } => conflict("under_way").hint(format!(
                "`towpath dead jobs` shows how far it is, `towpath dead jobs cancel {job}` ends it"
            )),
            ReplayError::NoRoute(ref no) => conflict("no_such_step").hint(no.hint()),
            ReplayError::Ending => Self::new(ErrorKind::Unavailable, "ending", error.to_string()),
            ReplayError::Unreadable { .. } => {
                conflict("unreadable").hint("discard it, or export it first")
            }
            ReplayError::Tick(error) => error.into(),
            ReplayError::Broker(error) => error.into(),
            ReplayError::Store(error) => error.into(),
        }
    }
}

fn view(letter: &KeptLetter, with_message: bool) -> DeadView {
    let attempts = letter.attempts.iter();
    let attempts = attempts.map(|it| serde_json::to_value(it).unwrap_or(Value::Null));
    let mut view = DeadView {
        id: letter.id.to_string(),
        flow: letter.flow.clone(),
        step: letter.step.clone(),
        port: letter.port.clone(),
        entered: entered(letter).filter(|flow| *flow != letter.flow),
        version: letter.version,
        connection: letter.connection.clone(),
        run: letter.run.map(|run| run.to_string()),
        message_id: letter.message_id.to_string(),
        group: letter.fingerprint.clone(),
        cause: word(letter.cause),
        reason: letter.reason.clone(),
        chain: letter.chain.clone(),
        attempts: attempts.collect(),
        replica: letter.replica,
        at: letter.at,
        repeats: letter.repeats,
        last_at: letter.last_at,
        replays: letter.replays,
        state: word(letter.state),
        job: letter.job.map(|job| job.to_string()),
        edited: letter.edited.is_some(),
        message: None,
        body: None,
        original_body: None,
        others: Vec::new(),
    };
    if with_message {
        let whole = serde_json::from_str(letter.message.get());
        view.message =
            Some(whole.unwrap_or_else(|_| Value::String(letter.message.get().to_owned())));
        let (body, own) = letter::bodies(letter);
        view.body = Some(body);
        view.original_body = own;
    }
    view
}

/// The flow that a letter's message entered, if the message says it: those do that may be handed to
/// another flow.
fn entered(letter: &KeptLetter) -> Option<String> {
    let message: Message<'_> = serde_json::from_str(letter.message.get()).ok()?;
    let lineage: Lineage = serde_json::from_str(message.lineage.get()).ok()?;
    lineage.flow
}

fn job_view(job: &JobRecord) -> JobView {
    JobView {
        id: job.id.to_string(),
        what: job.what.clone(),
        from: job.from_step.clone(),
        rate: job.rate,
        state: job.state,
        total: job.total,
        sent: job.sent,
        skipped: job.skipped,
        reason: job.reason.clone(),
        waits: job.waits.clone(),
        created_at: job.created_at,
        changed_at: job.changed_at,
    }
}
