//! Retries: what waits in the delay ladder, and taking it out before its time.

use std::collections::BTreeSet;

use towpath_protocol::MessageId;

use super::Control;
use super::error::{ControlError, ErrorKind};
use super::operate::find_step;
use super::view::{RetriesMoved, RetryGroupView, RetryList, RetrySelection, RetryView};
use crate::engine::chain;
use crate::store::waiting::{WaitingQuery, WaitingRecord};
use crate::sweep::{Fate, Order, SweepError, Swept, Which};

/// The most messages in one answer.
const RETRIES_MAX: u32 = 1_000;

/// How many there are when nothing is said.
const RETRIES_DEFAULT: u32 = 50;

/// The most kinds of reasons in one answer.
const GROUPS_MAX: u32 = 50;

/// How many ids an error names.
const NAMED_MAX: usize = 10;

/// By how much the ladder must hold more than is noted for it to be said: notes come a moment later
/// than messages, and what moves from level to level may be counted twice.
const UNNOTED_MIN: u64 = 20;

/// Which retries, as asked for over the API.
#[derive(Debug, Clone, Default, serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RetryFilter {
    /// Of this step only.
    pub step: Option<String>,
    /// At most this many messages; all are counted.
    pub limit: Option<u32>,
}

impl Control {
    /// What waits for the steps of a flow, why, and when it comes back.
    pub async fn retries(
        &self,
        flow: &str,
        filter: &RetryFilter,
    ) -> Result<RetryList, ControlError> {
        self.record(flow).await?;
        if let Some(step) = &filter.step {
            self.check_step(flow, step).await?;
        }
        let now = (self.scheduler.clock)();
        let query = WaitingQuery {
            flow: flow.to_owned(),
            step: filter.step.clone(),
            after: now,
            limit: filter
                .limit
                .unwrap_or(RETRIES_DEFAULT)
                .clamp(1, RETRIES_MAX),
        };
        let store = &self.catalog.store;
        let of_groups = WaitingQuery {
            limit: GROUPS_MAX,
            ..query.clone()
        };
        let groups = store.waiting_groups(of_groups).await?;
        let counts = store.waiting_counts(flow, now).await?;
        let is_asked = |step: &String| filter.step.as_ref().is_none_or(|asked| asked == step);
        let total = counts
            .iter()
            .filter(|(step, _)| is_asked(step))
            .map(|(_, count)| count)
            .sum();
        let waiting = store.waiting(query).await?;
        Ok(RetryList {
            total,
            groups: groups
                .into_iter()
                .map(|group| RetryGroupView {
                    step: group.step,
                    pattern: group.pattern,
                    is_rebound: group.is_rebound,
                    count: group.count,
                    next: group.next,
                    last: group.last,
                })
                .collect(),
            waiting: waiting.iter().map(view).collect(),
            unnoted: self.unnoted(now).await?,
        })
    }

    /// Takes messages out of the delay ladder: to their step at once, or to the dead letters.
    pub async fn retries_move(
        &self,
        flow: &str,
        selection: &RetrySelection,
        fate: Fate,
    ) -> Result<RetriesMoved, ControlError> {
        self.record(flow).await?;
        let which = self.which(flow, selection).await?;
        if selection.dry_run {
            let known = self.known(flow, &which).await?;
            return Ok(RetriesMoved {
                changed: false,
                moved: known,
                held_back: 0,
                not_found: Vec::new(),
                message: match fate {
                    Fate::Now => format!("{} would come back now", messages(known)),
                    Fate::Cancel => format!("{} would become dead letters", messages(known)),
                },
            });
        }
        let order = Order {
            flow: flow.to_owned(),
            which,
            fate,
        };
        let swept = self.sweeper.sweep(order).await?;
        Ok(moved(&swept, fate))
    }

    /// What a selection means, if it means something that waits.
    async fn which(&self, flow: &str, selection: &RetrySelection) -> Result<Which, ControlError> {
        let RetrySelection { ids, step, all, .. } = selection;
        match (ids.is_empty(), step, all) {
            (true, None, true) => Ok(Which::All),
            (true, Some(step), false) => {
                self.check_step(flow, step).await?;
                Ok(Which::Step(step.clone()))
            }
            (false, None, false) => self.ids(flow, ids).await,
            _ => Err(ControlError::new(
                ErrorKind::Bad,
                "bad_selection",
                "say which messages: either some ids, or a step, or all",
            )
            .hint("`towpath retries list FLOW` shows what waits")),
        }
    }

    async fn ids(&self, flow: &str, texts: &[String]) -> Result<Which, ControlError> {
        let mut ids = BTreeSet::new();
        let mut unknown = Vec::new();
        for text in texts {
            let id: MessageId = text.parse().map_err(|error| {
                let message = format!("`{text}` is no id: {error}");
                ControlError::new(ErrorKind::Bad, "bad_id", message)
            })?;
            let waiting = self.catalog.store.waiting_of(id).await?;
            if waiting.iter().any(|one| one.flow == flow) {
                ids.insert(id);
            } else {
                unknown.push(format!("`{text}`"));
            }
        }
        if unknown.is_empty() {
            return Ok(Which::Ids(ids));
        }
        let more = match unknown.len().saturating_sub(NAMED_MAX) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        unknown.truncate(NAMED_MAX);
        let message = format!(
            "nothing is known to wait in `{flow}` with the id {}{more}; nothing was done",
            unknown.join(", ")
        );
        Err(
            ControlError::new(ErrorKind::NotFound, "not_waiting", message).hint(format!(
                "`towpath retries list {flow}` shows what waits; it may have come back meanwhile"
            )),
        )
    }

    /// A step that messages can wait for: one of the flow, or one that it no longer has.
    async fn check_step(&self, flow: &str, step: &str) -> Result<(), ControlError> {
        let (_, checked) = self.record(flow).await?;
        let Err(error) = find_step(&checked, step) else {
            return Ok(());
        };
        let counts = self.catalog.store.waiting_counts(flow, 0).await?;
        if counts.contains_key(step) {
            Ok(())
        } else {
            Err(error)
        }
    }

    /// How many messages are known that an order would move.
    async fn known(&self, flow: &str, which: &Which) -> Result<u64, ControlError> {
        let now = (self.scheduler.clock)();
        let counts = self.catalog.store.waiting_counts(flow, now).await?;
        Ok(match which {
            Which::All => counts.values().sum(),
            Which::Step(step) => counts.get(step).copied().unwrap_or(0),
            Which::Ids(ids) => ids.len() as u64,
        })
    }

    /// How many deliveries the ladder holds beyond all that is noted, if that is clearly more.
    async fn unnoted(&self, now: u64) -> Result<Option<u64>, ControlError> {
        // Without a broker the notes are all there is to say.
        let Ok(depths) = self
            .broker
            .depths(&self.catalog.ground.names.delays())
            .await
        else {
            return Ok(None);
        };
        let there: u64 = depths.values().map(|depth| depth.ready).sum();
        let counts = self.catalog.store.all_waiting_counts(now).await?;
        let noted: u64 = counts.iter().map(|(_, _, count)| count).sum();
        let beyond = there.saturating_sub(noted);
        Ok((beyond > UNNOTED_MIN.max(noted / 10)).then_some(beyond))
    }
}

impl From<SweepError> for ControlError {
    fn from(error: SweepError) -> Self {
        let message = chain(&error);
        match error {
            SweepError::UnderWay => Self::new(ErrorKind::Conflict, "under_way", message)
                .hint("try again when it is done"),
            SweepError::Broker { .. } => {
                Self::new(ErrorKind::Unavailable, "broker_unavailable", message)
                    .hint("nothing is lost; say it again when the broker answers")
            }
            SweepError::Store { source, .. } => source.into(),
            SweepError::Ending => Self::new(ErrorKind::Unavailable, "ending", message),
        }
    }
}

fn moved(swept: &Swept, fate: Fate) -> RetriesMoved {
    let mut message = match fate {
        Fate::Now => format!("{} came back now", messages(swept.moved)),
        Fate::Cancel => format!("{} became dead letters", messages(swept.moved)),
    };
    if swept.held_back > 0 {
        message = format!(
            "{message}; {} wait on, because there is no room in the queue they go to",
            swept.held_back
        );
    }
    if !swept.not_found.is_empty() {
        message = format!(
            "{message}; {} came back by themselves meanwhile",
            swept.not_found.len()
        );
    }
    RetriesMoved {
        changed: swept.moved > 0,
        moved: swept.moved,
        held_back: swept.held_back,
        not_found: swept.not_found.iter().map(ToString::to_string).collect(),
        message,
    }
}

fn messages(count: u64) -> String {
    match count {
        1 => "1 message".to_owned(),
        count => format!("{count} messages"),
    }
}

fn view(record: &WaitingRecord) -> RetryView {
    RetryView {
        id: record.id.to_string(),
        step: record.step.clone(),
        run: record.run.to_string(),
        connection: record.connection.clone(),
        attempt: record.attempt,
        attempts: record.attempts,
        rebounds: record.rebounds,
        replays: record.replays,
        is_rebound: record.is_rebound,
        reason: record.reason.clone(),
        since: record.since,
        due: record.due,
    }
}

#[cfg(test)]
#[path = "retries_tests.rs"]
mod tests;
