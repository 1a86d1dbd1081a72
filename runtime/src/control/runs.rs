//! Runs: firing a trigger now, and what became of earlier firings.

use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use towpath_flow::Flow;
use towpath_protocol::MessageId;
use towpath_protocol::frame::Why;

use super::Control;
use super::error::{ControlError, ErrorKind};
use super::view::{RunList, RunView};
use crate::engine::chain;
use crate::live::LiveFlow;
use crate::reconcile::intent::intake;
use crate::schedule::{Decision, FireError, due, history};
use crate::store::flows::FlowRecord;
use crate::store::now_ms;
use crate::store::records::RunRecord;

/// The most runs in one answer.
const RUNS_MAX: u32 = 100;

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
    pub async fn runs(&self, flow: &str, limit: Option<u32>) -> Result<RunList, ControlError> {
        self.record(flow).await?;
        let limit = limit.unwrap_or(20).clamp(1, RUNS_MAX);
        let runs = self.catalog.store.runs(flow, limit).await?;
        Ok(RunList {
            runs: runs.iter().map(run_view).collect(),
        })
    }

    /// A run, by its id.
    pub async fn run_by_id(&self, id: &str) -> Result<RunView, ControlError> {
        let missing = || {
            let message = format!("there is no run `{id}`");
            ControlError::new(ErrorKind::NotFound, "no_such_run", message)
        };
        let parsed: MessageId = id.parse().map_err(|_| missing())?;
        let run = self.catalog.store.run(parsed).await?.ok_or_else(missing)?;
        Ok(run_view(&run))
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

/// A run, for people and programs.
pub(super) fn run_view(run: &RunRecord) -> RunView {
    RunView {
        id: run.id.to_string(),
        version: run.version,
        why: word(run.why),
        state: word(run.state),
        due: run.due,
        ended_at: run.ended_at,
        emitted: run.emitted,
        attempts: run.attempts,
        next_at: run.next_at,
        reason: run.reason.clone(),
    }
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
                "`towpath status {flow}` shows the run; it can be fired again when that has ended, and with `overlap: queue-one` in the flow a further one is remembered"
            )),
            FireError::Store(_) => Self::internal(&error),
        }
    }
}
