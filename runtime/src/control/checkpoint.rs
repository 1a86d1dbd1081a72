//! A trigger's checkpoint, as an operator sees and writes it.
//!
//! # Invariants
//!
//! - `a_checkpoint_is_not_written_under_a_run`, unless the flow holds still or it is forced: the run
//!   would go on from where it is, and not from what was written.
//! - `a_stream_whose_checkpoint_stands_still_says_so`.
//! - `of_two_people_only_the_one_who_saw_the_last_version_writes`.

use std::time::Duration;

use serde_json::Value;
use serde_json::value::RawValue;
use towpath_flow::{Fires, Flow};
use towpath_protocol::{CHECKPOINT_BYTES_MAX, DEFAULT_CONNECTION};

use super::Control;
use super::error::{ControlError, ErrorKind};
use super::view::{CheckpointChoice, CheckpointView};
use crate::reconcile::FlowState;
use crate::reconcile::intent::intake;
use crate::schedule::STILL_AFTER;
use crate::store::checkpoints::{CheckpointKey, Written};
use crate::store::now_ms;
use crate::store::records::RunRecord;

impl Control {
    /// Where a flow's trigger is in its source.
    pub async fn checkpoint(&self, flow: &str) -> Result<CheckpointView, ControlError> {
        let (_, checked) = self.record(flow).await?;
        let key = key(&checked)?;
        let found = self.catalog.store.checkpoint(&key).await?;
        let value = found
            .as_ref()
            .and_then(|found| found.value.as_ref())
            .map(|value| serde_json::from_str(value.get()))
            .transpose()
            .map_err(|error| ControlError::internal(&error))?;
        Ok(CheckpointView {
            flow: key.flow,
            step: key.step,
            connection: key.connection,
            version: found.as_ref().map_or(0, |found| found.version),
            value,
            saved_at: found.as_ref().map(|found| found.saved_at),
            run: found.and_then(|found| found.run).map(|run| run.to_string()),
        })
    }

    /// Says where a flow's trigger is to go on from; with none, from the beginning.
    pub async fn set_checkpoint(
        &self,
        flow: &str,
        value: Option<&Value>,
        choice: &CheckpointChoice,
    ) -> Result<CheckpointView, ControlError> {
        let (record, checked) = self.record(flow).await?;
        let key = key(&checked)?;
        let text = value.map(Value::to_string);
        if let Some(size) = text.as_ref().map(String::len)
            && size > CHECKPOINT_BYTES_MAX
        {
            let message = format!(
                "a checkpoint has at most {CHECKPOINT_BYTES_MAX} bytes, and this one has {size}"
            );
            return Err(
                ControlError::new(ErrorKind::Bad, "checkpoint_too_large", message)
                    .hint("it is a position in the source, not data"),
            );
        }
        let value = text
            .map(RawValue::from_string)
            .transpose()
            .map_err(|error| ControlError::internal(&error))?;
        let state = intake(&checked, record.state, &record.held);
        let holds_still = matches!(state, FlowState::Paused | FlowState::Stopped);
        let written = self.catalog.store.write_checkpoint(
            &key,
            value,
            choice.version,
            holds_still || choice.force,
        );
        match written.await? {
            Written::Yes { version } => {
                tracing::info!(
                    flow,
                    step = key.step,
                    version,
                    "a person wrote the checkpoint"
                );
                self.checkpoint(flow).await
            }
            Written::Active { run } => {
                let message = format!("run {run} of `{flow}` is under way, and saves its own");
                Err(
                    ControlError::new(ErrorKind::Conflict, "run_active", message).hint(format!(
                        "`towpath pause {flow}` first; with `--force` it is written all the same, the run can save no more, and the next one goes on from what is written"
                    )),
                )
            }
            Written::Changed { version } => {
                let message = format!("the checkpoint of `{flow}` has version {version} by now");
                Err(
                    ControlError::new(ErrorKind::Conflict, "checkpoint_changed", message)
                        .hint(format!("`towpath checkpoint show {flow}` shows it")),
                )
            }
        }
    }
}

impl Control {
    /// Says so if a stream is alive and its checkpoint does not move. Nothing is done about it: its
    /// source may have nothing to say, and who knows that is not here.
    pub(super) async fn stands_still(
        &self,
        flow: &Flow,
        run: &RunRecord,
    ) -> Result<Option<String>, ControlError> {
        if flow.fires != Fires::Stream {
            return Ok(None);
        }
        let found = self.catalog.store.checkpoint(&key(flow)?).await?;
        let saved_at = found
            .filter(|found| found.run == Some(run.id))
            .map(|found| found.saved_at);
        Ok(still(saved_at.unwrap_or(run.started_at), now_ms()))
    }
}

fn still(since: u64, now: u64) -> Option<String> {
    let still = Duration::from_millis(now.saturating_sub(since));
    (still >= STILL_AFTER).then(|| {
        format!(
            "its checkpoint has not moved for {} minutes: its source has nothing to say, or it hangs",
            still.as_secs() / 60
        )
    })
}

fn key(flow: &Flow) -> Result<CheckpointKey, ControlError> {
    if !flow.fires.by_ticks() {
        let message = format!(
            "the trigger of `{}` is a webhook, and has no checkpoint",
            flow.name
        );
        return Err(ControlError::new(
            ErrorKind::Conflict,
            "no_checkpoint",
            message,
        ));
    }
    Ok(CheckpointKey {
        flow: flow.name.clone(),
        step: flow.trigger_id.clone(),
        connection: DEFAULT_CONNECTION.to_owned(),
    })
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
