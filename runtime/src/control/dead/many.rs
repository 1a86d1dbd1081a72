//! Many dead letters at once: replayed, discarded, edited.
//!
//! # Invariants
//!
//! - A dry run changes nothing.
//! - `a_replay_that_can_go_nowhere_begins_no_job`.
//! - `a_body_that_cannot_be_changed_is_left_as_it_is`, and counted.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use similar::TextDiff;
use towpath_protocol::BODY_BYTES_MAX;

use super::letter::{bodies, exported};
use super::select::{Failures, bad, said};
use super::view::{
    BodyDiff, DiscardRequest, EditManyRequest, JobList, JobView, LeftOut, ManyAnswer, ReplayAnswer,
    ReplayManyRequest, RouteView,
};
use super::{Control, job_view};
use crate::control::error::{ControlError, ErrorKind};
use crate::json_text::{compact, pretty};
use crate::replay::route::{NoRoute, Place, Route};
use crate::store::dead_letters::{DeadPlace, DeadQuery};
use crate::store::records::DeadState;
use crate::store::replay_jobs::NewJob;

/// How many changes a dry run shows.
const DIFFS_MAX: usize = 5;

/// The most bytes of new bodies in one request: they are stored together.
const EDITED_BYTES_MAX: usize = 256 << 20;

/// How many letters are edited at a time.
const TOGETHER: usize = 200;

/// How many jobs are listed.
const JOBS_MAX: u32 = 100;

/// The slowest and the fastest rate of a replay, in letters a second: one an hour, and more than a
/// broker takes.
const RATES: std::ops::RangeInclusive<f64> = 0.0002..=100_000.0;

impl Control {
    /// Begins a job that sends dead letters again; or says what it would send.
    pub async fn dead_replay_many(
        &self,
        request: &ReplayManyRequest,
    ) -> Result<ReplayAnswer, ControlError> {
        if let Some(rate) = request.rate
            && !RATES.contains(&rate)
        {
            let message = format!("`{rate}` a second is no rate");
            return Err(ControlError::new(ErrorKind::Bad, "bad_rate", message)
                .hint("a rate is from 1 an hour to 100000 a second"));
        }
        let from = request.from.as_deref();
        let chosen = self.choose(&request.select).await?;
        let places = self.catalog.store.dead_places(chosen.ids).await?;
        let (mut ids, mut routes, mut left_out) = (Vec::new(), Vec::new(), chosen.left_out);
        let mut no_route = None;
        for ((place, route), count, letters) in self.routes(&places, from) {
            match route {
                Ok(to) => {
                    ids.extend(letters);
                    routes.push(RouteView {
                        flow: place.flow.to_owned(),
                        step: place.step.to_owned(),
                        to,
                        count,
                    });
                }
                // What was asked for by name must be possible.
                Err(no) if from.is_some() => return Err(no.into()),
                Err(no) => {
                    left_out.push(LeftOut {
                        count,
                        why: format!("{no}; {}", no.hint()),
                    });
                    no_route.get_or_insert(no);
                }
            }
        }
        if let (true, Some(no)) = (ids.is_empty(), no_route) {
            return Err(no.into());
        }
        ids.sort_unstable();
        let mut answer = ReplayAnswer {
            job: None,
            selected: ids.len() as u64,
            routes,
            left_out,
        };
        if !request.dry_run {
            let job = NewJob {
                what: said(&request.select),
                from_step: request.from.clone(),
                rate: request.rate,
            };
            let begun = self.replayer.begin(job, ids).await?;
            let begun = begun.ok_or_else(|| {
                let message = "somebody else has just taken all of them";
                ControlError::new(ErrorKind::Conflict, "under_way", message)
                    .hint("`towpath dead jobs` shows who")
            })?;
            answer.selected = begun.total;
            answer.job = Some(job_view(&begun));
        }
        Ok(answer)
    }

    /// Where letters go, by where they died.
    fn routes<'a>(&self, places: &'a [DeadPlace], from: Option<&str>) -> Vec<Routed<'a>> {
        let mut by_place: BTreeMap<Place<'_>, Vec<u64>> = BTreeMap::new();
        for place in places {
            let at = Place {
                flow: &place.flow,
                step: &place.step,
                port: place.port.as_deref(),
            };
            by_place.entry(at).or_default().push(place.id);
        }
        by_place
            .into_iter()
            .map(|(place, ids)| {
                let route = self.replayer.route(place, from).map(|route| match route {
                    Route::Step(step) | Route::Handover(step) => format!("`{step}`"),
                    Route::Port { step, port } => {
                        format!("the steps after `{step}` (port `{port}`)")
                    }
                    Route::Tick => "a new run".to_owned(),
                });
                ((place, route), ids.len() as u64, ids)
            })
            .collect()
    }

    /// Lists replays, newest first.
    pub async fn dead_jobs(&self) -> Result<JobList, ControlError> {
        let jobs = self.catalog.store.jobs(JOBS_MAX).await?;
        Ok(JobList {
            jobs: jobs.iter().map(job_view).collect(),
        })
    }

    /// Says how far a replay is.
    pub async fn dead_job(&self, id: &str) -> Result<JobView, ControlError> {
        let missing = || {
            let message = format!("there is no job `{id}`");
            ControlError::new(ErrorKind::NotFound, "no_such_job", message)
                .hint("`towpath dead jobs` shows all of them")
        };
        let number = id.parse().map_err(|_| missing())?;
        let job = self.catalog.store.job(number).await?;
        Ok(job_view(&job.ok_or_else(missing)?))
    }

    /// Ends a replay; what it has not sent is open again. The second time changes nothing.
    pub async fn dead_job_cancel(&self, id: &str) -> Result<JobView, ControlError> {
        let job = self.dead_job(id).await?;
        if !job.state.is_over() {
            self.replayer
                .cancel(job.id.parse().unwrap_or_default())
                .await?;
        }
        self.dead_job(id).await
    }

    /// Decides that dead letters are not needed; or says how many it would be.
    pub async fn dead_discard_many(
        &self,
        request: &DiscardRequest,
    ) -> Result<ManyAnswer, ControlError> {
        let chosen = self.choose(&request.select).await?;
        let selected = chosen.ids.len() as u64;
        let changed = if request.dry_run {
            selected
        } else {
            let store = &self.catalog.store;
            let (from, to) = (DeadState::Open, DeadState::Discarded);
            let changed = store.change_dead_letters(chosen.ids, from, to).await?;
            tracing::info!(
                which = said(&request.select),
                changed,
                "dead letters were discarded"
            );
            changed
        };
        Ok(ManyAnswer {
            selected,
            changed,
            left_out: chosen.left_out,
            diffs: Vec::new(),
        })
    }

    /// Changes the bodies of dead letters, or brings their own back; or says what it would change.
    pub async fn dead_edit_many(
        &self,
        request: &EditManyRequest,
    ) -> Result<ManyAnswer, ControlError> {
        let filter = match (&request.jq, request.undo) {
            (Some(code), false) => Some(self.filter(code).await?),
            (None, true) => None,
            _ => {
                return Err(bad(
                    "bodies are changed by `jq`, or brought back by `undo`: one of them",
                )
                .hint("pass `--jq '<expression>'` or `--undo`"));
            }
        };
        let chosen = self.choose(&request.select).await?;
        let mut answer = ManyAnswer {
            selected: chosen.ids.len() as u64,
            left_out: chosen.left_out,
            ..ManyAnswer::default()
        };
        let (mut failures, mut edits, mut bytes) = (Failures::default(), Vec::new(), 0);
        for ids in chosen.ids.chunks(TOGETHER) {
            let query = DeadQuery {
                ids: ids.to_vec(),
                limit: u32::MAX,
                ..DeadQuery::default()
            };
            let mut letters = self.catalog.store.dead_letters(query).await?;
            letters.reverse();
            let before: Vec<_> = letters.iter().map(bodies).collect();
            let after: Vec<Result<Box<RawValue>, String>> = match &filter {
                Some(filter) => {
                    let pairs = letters.iter().zip(&before);
                    let pairs = pairs.map(|(letter, (body, _))| (exported(letter), body.clone()));
                    filter.change(pairs.collect()).await
                }
                None => before
                    .iter()
                    .map(|(body, own)| Ok(own.as_ref().unwrap_or(body).clone()))
                    .collect(),
            };
            for ((letter, (body, own)), after) in letters.iter().zip(&before).zip(after) {
                let after = match after.and_then(|after| sized(&after)) {
                    Ok(after) => after,
                    Err(reason) => {
                        failures.add(letter.id, &reason);
                        continue;
                    }
                };
                if after.get() == compact(body).get() {
                    continue;
                }
                answer.changed += 1;
                if request.dry_run {
                    if answer.diffs.len() < DIFFS_MAX {
                        answer.diffs.push(diff(letter.id, body, &after));
                    }
                    continue;
                }
                bytes += after.get().len();
                if bytes > EDITED_BYTES_MAX {
                    return Err(bad(
                        "the new bodies are too many to be stored together; nothing was changed",
                    )
                    .hint("choose fewer dead letters at a time"));
                }
                let is_own = compact(own.as_ref().unwrap_or(body)).get() == after.get();
                edits.push((letter.id, (!is_own).then_some(after)));
            }
        }
        if !request.dry_run {
            answer.changed = self.catalog.store.edit_dead_letters(edits).await?;
            tracing::info!(
                which = said(&request.select),
                changed = answer.changed,
                "bodies of dead letters were edited"
            );
        }
        answer
            .left_out
            .extend(failures.left_out("their bodies stay as they are"));
        Ok(answer)
    }
}

/// Letters that died in one place, and where they go.
type Routed<'a> = ((Place<'a>, Result<String, NoRoute>), u64, Vec<u64>);

/// A body as it is stored, if it is not too large.
pub(super) fn sized(body: &RawValue) -> Result<Box<RawValue>, String> {
    let body = compact(body);
    if body.get().len() > BODY_BYTES_MAX {
        return Err(format!(
            "the new body has {} bytes, and a body has at most {BODY_BYTES_MAX}",
            body.get().len()
        ));
    }
    Ok(body)
}

fn diff(id: u64, before: &RawValue, after: &RawValue) -> BodyDiff {
    let (before, after) = (pretty(before) + "\n", pretty(after) + "\n");
    let diff = TextDiff::from_lines(&before, &after);
    let diff = diff.unified_diff().context_radius(2).to_string();
    BodyDiff {
        id: id.to_string(),
        diff,
    }
}

impl From<NoRoute> for ControlError {
    fn from(no: NoRoute) -> Self {
        Self::new(ErrorKind::Conflict, "no_such_step", no.to_string()).hint(no.hint())
    }
}
