//! Which dead letters: the same for all that is done to them.
//!
//! # Invariants
//!
//! - `nothing_said_is_not_everything`: all there are must be asked for.
//! - `an_id_that_is_not_open_is_said_with_who_has_it`.

use towpath_protocol::office::DeadCause;

use super::view::{DeadSelection, LeftOut};
use super::{Control, letter};
use crate::control::error::{ControlError, ErrorKind};
use crate::filter::{Filter, FilterError};
use crate::store::dead_letters::{DeadQuery, KeptLetter};
use crate::store::records::DeadState;

/// How many letters are read at a time.
pub(super) const PAGE: u32 = 200;

/// The most ids in one request.
const IDS_MAX: usize = 1_000;

/// The dead letters that were chosen.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    /// Their numbers, oldest first.
    pub(super) ids: Vec<u64>,
    /// What is left out.
    pub(super) left_out: Vec<LeftOut>,
}

/// A filter's failures, added up.
#[derive(Debug, Default)]
pub(super) struct Failures {
    count: u64,
    first: Option<String>,
}

impl Failures {
    pub(super) fn add(&mut self, id: u64, reason: &str) {
        self.count += 1;
        self.first
            .get_or_insert_with(|| format!("dead letter {id}: {reason}"));
    }

    pub(super) fn left_out(self, what: &str) -> Option<LeftOut> {
        let first = self.first?;
        Some(LeftOut {
            count: self.count,
            why: format!("{what}; the first: {first}"),
        })
    }
}

impl Control {
    /// Chooses among the open dead letters.
    pub(super) async fn choose(&self, select: &DeadSelection) -> Result<Chosen, ControlError> {
        if *select == DeadSelection::default() {
            return Err(bad("nothing says which dead letters").hint(
                "give numbers, `--group`, `--flow`, `--step`, `--cause`, `--since`, `--until` or `--filter`, or say `--all`",
            ));
        }
        let query = DeadQuery {
            state: Some(DeadState::Open),
            ..query(select)?
        };
        if let Some(group) = &select.group
            && self.catalog.store.dead_group(group).await?.is_none()
        {
            return Err(no_group(group));
        }
        for id in &query.ids {
            self.replayer.open(*id).await?;
        }
        let mut chosen = Chosen::default();
        match &select.filter {
            None => chosen.ids = self.catalog.store.dead_letter_ids(query.clone()).await?,
            Some(code) => {
                let filter = self.filter(code).await?;
                let mut failures = Failures::default();
                let mut page = DeadQuery {
                    limit: PAGE,
                    ..query.clone()
                };
                loop {
                    let letters = self.catalog.store.dead_letters(page.clone()).await?;
                    let Some(last) = letters.last() else { break };
                    page.before = Some(last.id);
                    let held = held(&filter, &letters, &mut failures).await;
                    chosen.ids.extend(held.iter().map(|letter| letter.id));
                }
                chosen.ids.reverse();
                chosen
                    .left_out
                    .extend(failures.left_out("the filter failed on them"));
            }
        }
        self.say_who_is_in_jobs(query, &mut chosen).await?;
        if chosen.ids.is_empty() {
            let mut error = ControlError::new(
                ErrorKind::NotFound,
                "no_dead_letters",
                "there is no open dead letter like that",
            );
            error.hint = Some(match chosen.left_out.first() {
                Some(left) => format!("{} are left out: {}", left.count, left.why),
                None => "`towpath dead groups` shows what there is".to_owned(),
            });
            return Err(error);
        }
        Ok(chosen)
    }

    async fn say_who_is_in_jobs(
        &self,
        query: DeadQuery,
        chosen: &mut Chosen,
    ) -> Result<(), ControlError> {
        let query = DeadQuery {
            state: Some(DeadState::Replaying),
            ..query
        };
        let count = self
            .catalog
            .store
            .dead_letter_ids(query.clone())
            .await?
            .len() as u64;
        if count > 0 {
            let one = DeadQuery { limit: 1, ..query };
            let job = self.catalog.store.dead_letters(one).await?;
            let job = job.first().and_then(|letter| letter.job);
            let job = job.map_or_else(|| "just now".to_owned(), |job| format!("by job {job}"));
            chosen.left_out.push(LeftOut {
                count,
                why: format!("they are being replayed {job}"),
            });
        }
        Ok(())
    }

    /// Compiles a filter, if it can be.
    pub(super) async fn filter(&self, code: &str) -> Result<Filter, ControlError> {
        Filter::start(&self.program, code)
            .await
            .map_err(|error| match error {
                FilterError::Wrong(reason) => {
                    ControlError::new(ErrorKind::Bad, "bad_filter", reason)
                        .hint("it is jq over a dead letter, such as `.body.total > 100`; `towpath dead export` shows what a letter has")
                }
                FilterError::Worker(_) => ControlError::internal(&error),
            })
    }
}

/// Those of the letters for which the filter holds.
pub(super) async fn held<'a>(
    filter: &Filter,
    letters: &'a [KeptLetter],
    failures: &mut Failures,
) -> Vec<&'a KeptLetter> {
    let values = letters.iter().map(letter::exported).collect();
    let held = filter.holds(values).await;
    let mut chosen = Vec::new();
    for (letter, holds) in letters.iter().zip(held) {
        match holds {
            Ok(true) => chosen.push(letter),
            Ok(false) => {}
            Err(reason) => failures.add(letter.id, &reason),
        }
    }
    chosen
}

/// The part of a selection that the store decides; in any state.
pub(super) fn query(select: &DeadSelection) -> Result<DeadQuery, ControlError> {
    if select.ids.len() > IDS_MAX {
        return Err(bad(format!("there are more than {IDS_MAX} numbers"))
            .hint("choose by `--group` or `--filter`"));
    }
    let mut ids = Vec::with_capacity(select.ids.len());
    for id in &select.ids {
        ids.push(id.parse().map_err(|_| super::no_letter(id))?);
    }
    Ok(DeadQuery {
        ids,
        group: select.group.clone(),
        flow: select.flow.clone(),
        step: select.step.clone(),
        cause: select.cause.as_deref().map(cause).transpose()?,
        since: select.since,
        until: select.until,
        ..DeadQuery::default()
    })
}

/// Reads the word of a cause.
fn cause(text: &str) -> Result<DeadCause, ControlError> {
    let word = serde_json::Value::String(text.replace(' ', "_"));
    serde_json::from_value(word).map_err(|_| {
        bad(format!("`{text}` is no cause of a dead letter"))
            .hint("`towpath dead groups` shows which there are")
    })
}

pub(super) fn no_group(group: &str) -> ControlError {
    let message = format!("there is no group `{group}` of dead letters");
    ControlError::new(ErrorKind::NotFound, "no_such_group", message)
        .hint("`towpath dead groups` shows all groups")
}

pub(super) fn bad(message: impl Into<String>) -> ControlError {
    ControlError::new(ErrorKind::Bad, "bad_filter", message)
}

/// What a selection says, for people.
pub(super) fn said(select: &DeadSelection) -> String {
    let mut parts = Vec::new();
    if !select.ids.is_empty() {
        parts.push(select.ids.join(", "));
    }
    for (name, value) in [
        ("group", &select.group),
        ("flow", &select.flow),
        ("step", &select.step),
        ("cause", &select.cause),
        ("filter", &select.filter),
    ] {
        parts.extend(value.as_ref().map(|value| format!("{name} {value}")));
    }
    for (name, value) in [("since", select.since), ("until", select.until)] {
        parts.extend(value.map(|value| format!("{name} {value}")));
    }
    if parts.is_empty() {
        "all".to_owned()
    } else {
        parts.join(", ")
    }
}
