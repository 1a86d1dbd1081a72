//! Runs: firing a trigger now, what became of earlier firings, and cancelling one.

use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use towpath_flow::Flow;
use towpath_protocol::MessageId;
use towpath_protocol::answer::Answer;
use towpath_protocol::frame::Why;

use super::Control;
use super::error::{ControlError, ErrorKind};
use super::run_state::{Around, RunStatus, message_steps, status};
use super::view::{AnswerView, Done, RunList, RunMessages, RunStepView, RunView};
use crate::engine::chain;
use crate::live::LiveFlow;
use crate::reconcile::FlowState;
use crate::reconcile::intent::{intake, intent};
use crate::run_watch::RunWatch;
use crate::schedule::{Decision, FireError, due, history};
use crate::store::answers::KeptAnswer;
use crate::store::flows::FlowRecord;
use crate::store::now_ms;
use crate::store::records::{RunProgress, RunRecord};
use crate::store::runs::Cancelling;

/// The most runs in one answer.
const RUNS_MAX: u32 = 100;

/// How many runs are looked through for those in one state.
const SEARCHED_MAX: u32 = 1_000;

/// Which runs, as asked for over the API.
#[derive(Debug, Clone, Default, serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RunFilter {
    /// Those that are so only.
    pub state: Option<RunStatus>,
    /// At most this many.
    pub limit: Option<u32>,
}

impl Control {
    /// Fires a trigger now.
    pub async fn run(&self, flow: &str, payload: Option<Value>) -> Result<RunView, ControlError> {
        self.record(flow).await?;
        let payload = payload
            .map(|payload| RawValue::from_string(payload.to_string()))
            .transpose()
            .map_err(|error| ControlError::internal(&error))?;
        let run = self.scheduler.fire(flow, Why::Manual, payload).await?;
        self.run_by_id(&run.to_string()).await
    }

    /// The last runs of a flow, newest first.
    pub async fn runs(&self, flow: &str, filter: &RunFilter) -> Result<RunList, ControlError> {
        let (record, checked) = self.record(flow).await?;
        let limit = filter.limit.unwrap_or(20).clamp(1, RUNS_MAX);
        let searched = if filter.state.is_some() {
            SEARCHED_MAX
        } else {
            limit
        };
        let runs = self.catalog.store.runs(flow, searched).await?;
        let around = self.around(&record, &checked);
        let ids = runs.iter().map(|run| run.id).collect();
        let progress = self.catalog.store.runs_progress(ids).await?;
        let views = runs.iter().zip(&progress).filter_map(|(run, progress)| {
            let (is, note) = status(run, progress, &around);
            let is_asked = filter.state.is_none_or(|asked| asked == is);
            is_asked.then(|| run_view(run, progress, is, note))
        });
        Ok(RunList {
            runs: views.take(limit as usize).collect(),
        })
    }

    /// A run, by its id.
    pub async fn run_by_id(&self, id: &str) -> Result<RunView, ControlError> {
        let run = self.run_record(id).await?;
        let (record, flow) = self.record(&run.flow).await?;
        self.view_of_run(&record, &flow, &run).await
    }

    /// Cancels a run: its trigger leaves it. What it emitted goes on.
    pub async fn cancel_run(&self, id: &str) -> Result<Done, ControlError> {
        let run = self.run_record(id).await?;
        let conflict = |message: String, hint: String| {
            ControlError::new(ErrorKind::Conflict, "not_cancellable", message).hint(hint)
        };
        if run.why == Why::Webhook {
            return Err(conflict(
                format!(
                    "run {id} is a request to a webhook: it has no trigger that could leave it"
                ),
                format!(
                    "`towpath pause {}` lets nothing more be handled; `towpath retries cancel` gives up what waits",
                    run.flow
                ),
            ));
        }
        let now = (self.scheduler.clock)();
        match self.catalog.store.cancel_run(run.id, now).await? {
            Cancelling::Unknown => Err(no_run(id)),
            Cancelling::Over(_) => {
                let view = self.run_by_id(id).await?;
                let (is, hint) = match &view.messages {
                    Some(messages) if messages.open > 0 => (
                        format!(
                            "the trigger of run {id} has ended; {} of its messages are under way, and go on",
                            messages.open
                        ),
                        format!("`towpath pause {}` holds them", run.flow),
                    ),
                    _ => (
                        format!("run {id} is over: {}", view.state),
                        format!("`towpath runs show {id}` shows what came of it"),
                    ),
                };
                Err(conflict(is, hint))
            }
            Cancelling::Ended => {
                tracing::info!(flow = run.flow, run = %run.id, "the run was cancelled");
                self.scheduler.runs_changed.notify_one();
                Ok(Done {
                    changed: true,
                    message: format!("run {id} is cancelled"),
                })
            }
            Cancelling::Asked => {
                self.run_watch().tell_cancelled(&run).await;
                Ok(Done {
                    changed: run.cancel_at.is_none(),
                    message: format!(
                        "run {id} is cancelled as soon as `{}` leaves it; what it emitted goes on",
                        run.step
                    ),
                })
            }
        }
    }

    fn run_watch(&self) -> RunWatch {
        RunWatch {
            broker: self.broker.clone(),
            store: self.catalog.store.clone(),
            names: self.scheduler.names.clone(),
            flows: self.live.subscribe(),
            reports: self.reports.clone(),
            clock: self.scheduler.clock.clone(),
        }
    }

    async fn run_record(&self, id: &str) -> Result<RunRecord, ControlError> {
        let parsed: MessageId = id.parse().map_err(|_| no_run(id))?;
        let run = self.catalog.store.run(parsed).await?;
        run.ok_or_else(|| no_run(id))
    }

    /// What is around the runs of a flow.
    fn around(&self, record: &FlowRecord, flow: &Flow) -> Around {
        let is_running = |state| matches!(state, FlowState::Running | FlowState::Draining);
        let paused = flow
            .steps
            .iter()
            .filter(|step| !is_running(intent(flow, record.state, &record.held, step).state))
            .map(|step| step.id.clone());
        Around {
            paused: paused.collect(),
            now: (self.scheduler.clock)(),
            stalled_after: self.stalled_after_ms,
        }
    }

    /// A run, for people and programs.
    pub(super) async fn view_of_run(
        &self,
        record: &FlowRecord,
        flow: &Flow,
        run: &RunRecord,
    ) -> Result<RunView, ControlError> {
        let progress = self.catalog.store.runs_progress(vec![run.id]).await?;
        let progress = progress.into_iter().next().unwrap_or_default();
        let (is, note) = status(run, &progress, &self.around(record, flow));
        let answer = self.catalog.store.answer_of(run.id).await?;
        Ok(RunView {
            answer: answer.as_ref().map(answer_view).transpose()?,
            ..run_view(run, &progress, is, note)
        })
    }

    /// When a flow fires next, in milliseconds since 1970; none if it does not by itself.
    pub(super) async fn next_run_at(
        &self,
        record: &FlowRecord,
        flow: &Flow,
    ) -> Result<Option<u64>, ControlError> {
        let state = intake(flow, record.state, &record.held);
        let live = LiveFlow::new(flow, record.version, record.applied_at, state);
        let runs = history(&self.catalog.store, &live).await?;
        Ok(match due(&live, &runs, now_ms()) {
            Decision::Wait { until } => Some(until),
            Decision::Fire { due } => Some(due),
            Decision::Busy { then, .. } => then,
            Decision::Off => None,
        })
    }
}

fn no_run(id: &str) -> ControlError {
    let message = format!("there is no run `{id}`");
    ControlError::new(ErrorKind::NotFound, "no_such_run", message)
        .hint("`towpath runs list <flow>` shows those there are")
}

fn run_view(
    run: &RunRecord,
    progress: &RunProgress,
    is: RunStatus,
    note: Option<String>,
) -> RunView {
    let steps: Vec<RunStepView> = message_steps(run, progress)
        .map(|sums| RunStepView {
            step: sums.step.clone(),
            emitted: sums.open + sums.done + sums.dead,
            open: sums.open,
            done: sums.done,
            dead: sums.dead,
        })
        .collect();
    let mut messages = RunMessages::default();
    for step in &steps {
        messages.emitted += step.emitted;
        messages.open += step.open;
        messages.done += step.done;
        messages.dead += step.dead;
    }
    messages.retrying = progress.retrying.min(messages.open);
    RunView {
        id: run.id.to_string(),
        flow: run.flow.clone(),
        trigger: run.step.clone(),
        connection: run.connection.clone(),
        version: run.version,
        why: word(run.why),
        state: word(is),
        note,
        tick: word(run.state),
        due: run.due,
        started_at: run.started_at,
        began_at: progress.began_at,
        progress_at: progress.progress_at,
        ended_at: run.ended_at,
        finished_at: progress.finished_at,
        checkpoint_before: progress.checkpoint_before.clone(),
        checkpoint_after: progress.checkpoint_after.clone(),
        tracked: progress.tracked,
        messages: progress.tracked.then_some(messages),
        steps,
        emitted: run.emitted,
        attempts: run.attempts,
        next_at: run.next_at,
        reason: run.reason.clone(),
        answer: None,
    }
}

fn answer_view(kept: &KeptAnswer) -> Result<AnswerView, ControlError> {
    let unread = |error: serde_json::Error| ControlError::internal(&error);
    let answer: Answer = serde_json::from_str(&kept.answer).map_err(unread)?;
    let body = answer.body.map(|body| serde_json::from_str(body.get()));
    Ok(AnswerView {
        at: kept.at,
        status: answer.status,
        headers: answer.headers,
        body: body.transpose().map_err(unread)?.unwrap_or_default(),
    })
}

/// The word that a value of an enum goes by.
pub(super) fn word(value: impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => word,
        _ => unreachable!("only enums of words have a word"),
    }
}

impl From<FireError> for ControlError {
    fn from(error: FireError) -> Self {
        let conflict = |code| Self::new(ErrorKind::Conflict, code, chain(&error));
        match &error {
            FireError::NoFlow { flow } => Self::no_flow(flow),
            FireError::Webhook { .. } => {
                conflict("not_fired_by_hand").hint("`towpath status` shows the URL")
            }
            FireError::NotRunning { flow, .. } => {
                conflict("not_running").hint(format!("`towpath resume {flow}` lets it run"))
            }
            FireError::Busy {
                flow, queues: true, ..
            } => conflict("busy").hint(format!(
                "a further run is remembered already, and begins when that has ended; `towpath status {flow}` shows how far it is"
            )),
            FireError::Busy { flow, .. } => conflict("busy").hint(format!(
                "`towpath runs list {flow}` shows the run; it can be fired again when its trigger has ended, and with `overlap: queue-one` in the flow a further one is remembered"
            )),
            FireError::Store(_) => Self::internal(&error),
        }
    }
}
