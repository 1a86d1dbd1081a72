//! What the step says.

use std::borrow::Cow;
use std::collections::BTreeMap;

use towpath_protocol::frame::{
    Activated, Checkpoint, Deactivated, Fate, FromStep, Log, Ready, Refused,
};
use towpath_protocol::log::LogSource;
use towpath_protocol::manifest::Kind;
use towpath_protocol::{CONTRACT, DEFAULT_PORT, MessageId};

use super::{Core, Kill, Step};
use crate::clock::Now;
use crate::lanes::Member;
use crate::record::{HeldLine, Record, State};
use crate::redact::cut;
use crate::settle::Outcome;
use crate::step_frame::{self, Frame, Output};

/// How much of what cannot be understood is quoted.
const QUOTE_BYTES_MAX: usize = 200;

impl Core {
    /// Notes a line that the step wrote on its frames' pipe.
    pub fn on_step_line(&mut self, line: &[u8], now: Now) {
        if self.step == Step::Dying || self.step == Step::Absent {
            return;
        }
        let result = match step_frame::read(line) {
            Ok(Frame::Emit(output)) => self.on_emit(&output, now),
            Ok(Frame::Done(id)) => self.on_done(id, now),
            Ok(Frame::Other(frame)) => self.on_other(frame, now),
            Err(why) => Err(format!("the step wrote what is no frame ({why})")),
        };
        if let Err(reason) = result {
            let quote = cut(&String::from_utf8_lossy(line), QUOTE_BYTES_MAX);
            self.kill(Kill::Garbage(format!("{reason}: `{quote}`")));
        }
    }

    /// Notes that the step is writing a line that is longer than any frame may be; the rest of it
    /// is skipped. An output that is too large ends its message, not the step. If it does not begin
    /// with its message's id, it is known only if there is but one.
    pub fn on_step_overlong(&mut self, begin: &[u8]) {
        let mut ids = step_frame::emit_begins(begin).unwrap_or_default();
        if ids.is_empty() && begin.starts_with(b"{\"emit\":") {
            let only = self.only_in_hand();
            ids.extend(only.and_then(|number| self.records.get(number).id));
        }
        let numbers: Result<Vec<u32>, String> =
            ids.iter().map(|id| self.held_by_step(*id)).collect();
        let Some(numbers) = numbers.ok().filter(|numbers| !numbers.is_empty()) else {
            let begin = &begin[..begin.len().min(1024)];
            let quote = cut(&String::from_utf8_lossy(begin), QUOTE_BYTES_MAX);
            self.kill(Kill::Garbage(format!(
                "the step wrote a frame that is too long: `{quote}`"
            )));
            return;
        };
        let limit = self.setup.settings.body_bytes_max;
        let size = begin.len();
        let reason =
            format!("the step emitted a body of more than {size} bytes; the limit is {limit}");
        self.spoil_all(&numbers, &reason);
    }

    fn on_other(&mut self, frame: FromStep<'_>, now: Now) -> Result<(), String> {
        match frame {
            FromStep::Ready(ready) => self.on_ready(&ready, now),
            FromStep::Refused(Refused { reason }) => {
                self.refused(&reason);
                Ok(())
            }
            FromStep::Activated(Activated { id, kept }) => {
                self.on_activated(id, kept);
                Ok(())
            }
            FromStep::Deactivated(Deactivated { id }) => {
                self.on_deactivated(id);
                Ok(())
            }
            FromStep::Failed(failed) if self.has_call(failed.id) => {
                self.on_call_failed(&failed);
                Ok(())
            }
            FromStep::Failed(failed) => {
                let outcome = Outcome::Failed {
                    fate: failed.fate,
                    delay_ms: failed.delay_ms,
                };
                let chain: Vec<String> = failed
                    .chain
                    .iter()
                    .map(|cause| cause.clone().into_owned())
                    .collect();
                self.on_failed(failed.id, outcome, &failed.reason, &chain, now)
            }
            FromStep::Checkpoint(checkpoint) => self.on_checkpoint(&checkpoint, now),
            FromStep::Log(Log { id, level, text }) => {
                self.logger.line(&level, LogSource::Step, id, &text);
                if let Some(number) = id.and_then(|id| self.held_by_step(id).ok()) {
                    self.note_line(number, &text);
                }
                Ok(())
            }
            FromStep::Emit(_) | FromStep::Done(_) => Err("the step wrote an odd frame".to_owned()),
        }
    }

    fn on_ready(&mut self, ready: &Ready<'_>, now: Now) -> Result<(), String> {
        if matches!(self.step, Step::Leaving { .. }) {
            return Ok(());
        }
        if !matches!(self.step, Step::Greeting { .. }) {
            return Err("the step said `ready` twice".to_owned());
        }
        if ready.contract != CONTRACT {
            let theirs = ready.contract;
            self.kill(Kill::Contract(format!(
                "the step speaks contract {theirs}, this agent speaks contract {CONTRACT}"
            )));
            return Ok(());
        }
        self.step_is_ready(
            ready.sdk.as_deref().unwrap_or("a program without an SDK"),
            now,
        );
        Ok(())
    }

    /// Finds the message that a frame is about; none if it was cancelled.
    fn in_hands(&mut self, id: MessageId) -> Result<Option<u32>, String> {
        if self.cancelled.contains_key(&id) || self.has_call(id) {
            return Ok(None);
        }
        self.held_by_step(id).map(Some)
    }

    pub(super) fn held_by_step(&mut self, id: MessageId) -> Result<u32, String> {
        if let Some(number) = self.records.find(id)
            && self.records.get(number).state == State::InHand
        {
            return Ok(number);
        }
        Err("the step wrote of a message that is not in its hands".to_owned())
    }

    /// Returns why an output cannot be sent on, if it cannot.
    pub(super) fn cannot_be_sent(&self, output: &Output<'_>) -> Option<String> {
        let port = output.port.as_deref().unwrap_or(DEFAULT_PORT);
        let (size, limit) = (output.body.len(), self.setup.settings.body_bytes_max);
        if size > limit {
            return Some(format!(
                "the step emitted a body of {size} bytes by port `{port}`; the limit is {limit}"
            ));
        }
        let headers = output.headers?;
        serde_json::from_str::<BTreeMap<Cow<'_, str>, Cow<'_, str>>>(headers)
            .is_err()
            .then(|| {
                format!("the step emitted headers by port `{port}` that are no object of strings")
            })
    }

    fn on_emit(&mut self, output: &Output<'_>, now: Now) -> Result<(), String> {
        if output.with.iter().any(|id| *id != output.id) {
            return self.on_joint_output(output, now);
        }
        let Some(number) = self.in_hands(output.id)? else {
            return Ok(());
        };
        let port = output.port.as_deref().unwrap_or(DEFAULT_PORT);
        if self.records.get(number).bad_output.is_some() {
            return Ok(());
        }
        if let Some(reason) = self.cannot_be_sent(output) {
            self.spoil(number, reason);
            return Ok(());
        }
        let Some(port_number) = self.lanes.port(port) else {
            self.counters.unconnected += 1;
            return Ok(());
        };
        let id = match (self.setup.kind, output.source_id.as_deref()) {
            (Kind::Poll, Some(source_id)) => {
                let identity = &self.setup.identity;
                MessageId::from_source(&identity.flow, &identity.step, port, source_id)
            }
            (Kind::Poll, None) => MessageId::from_bytes(*uuid::Uuid::now_v7().as_bytes()),
            (Kind::Webhook | Kind::Action, _) => {
                let index = self.records.get(number).next_index(port_number);
                MessageId::derive(output.id, &self.setup.identity.step, port, index)
            }
        };
        let limits = &self.setup.limits;
        let record = self.records.get(number);
        let mut held = std::mem::take(&mut record.held);
        let before = held.len();
        encode(&mut held, record, id, output);
        let added = held.len() - before;
        record.held = held;
        record.held_lines.push(HeldLine {
            port: port_number,
            len: u32::try_from(added).expect("a frame is below 4 GiB"),
            id,
        });
        self.held_bytes += added;
        if record.held_lines.len() > limits.held_outputs
            || record.held.len() > limits.held_bytes
            || self.held_bytes > limits.held_bytes_all
        {
            record.is_streaming = true;
        }
        if record.is_streaming {
            self.publish_held(number, now);
        }
        Ok(())
    }

    /// Publishes what a message emitted so far.
    pub(super) fn publish_held(&mut self, number: u32, now: Now) {
        let record = self.records.get(number);
        let mut held = std::mem::take(&mut record.held);
        let mut held_lines = std::mem::take(&mut record.held_lines);
        let epoch = match &mut record.tick {
            Some(tick) => {
                tick.emitted += held_lines.len() as u64;
                tick.grow_epoch(0)
            }
            None => 0,
        };
        let member = Member {
            record: number,
            epoch,
            count: 1,
        };
        let mut start = 0;
        let mut awaited = 0;
        for line in &held_lines {
            let end = start + line.len as usize;
            awaited += self.send_output(line.port, &held[start..end], line.id, member, now);
            start = end;
        }
        self.held_bytes = self.held_bytes.saturating_sub(held.len());
        held.clear();
        held_lines.clear();
        let record = self.records.get(number);
        record.unconfirmed += awaited;
        if let Some(tick) = &mut record.tick {
            tick.grow_epoch(awaited);
        }
        // Their buffers are for what comes next.
        record.held = held;
        record.held_lines = held_lines;
    }

    /// Notes that what a message emitted cannot be sent on.
    pub(super) fn spoil(&mut self, number: u32, reason: String) {
        let record = self.records.get(number);
        self.held_bytes = self.held_bytes.saturating_sub(record.held.len());
        record.held = Vec::new();
        record.held_lines.clear();
        record.bad_output = Some(reason);
    }

    fn on_done(&mut self, id: MessageId, now: Now) -> Result<(), String> {
        let Some(number) = self.in_hands(id)? else {
            let number = self.held_by_step(id)?;
            self.come_back(number, now);
            return Ok(());
        };
        self.leave_hands(number, now);
        match self.records.get(number).bad_output.take() {
            Some(reason) => self.fail(number, Outcome::BadOutput, &reason, &[], now),
            None => self.succeed(number, now),
        }
        Ok(())
    }

    fn on_failed(
        &mut self,
        id: MessageId,
        outcome: Outcome,
        reason: &str,
        chain: &[String],
        now: Now,
    ) -> Result<(), String> {
        let Some(number) = self.in_hands(id)? else {
            let number = self.held_by_step(id)?;
            self.come_back(number, now);
            return Ok(());
        };
        self.leave_hands(number, now);
        let outcome = match outcome {
            Outcome::Failed {
                fate: Fate::Retry | Fate::Permanent,
                ..
            } if self.records.get(number).bad_output.is_some() => Outcome::BadOutput,
            outcome => outcome,
        };
        match self.records.get(number).bad_output.take() {
            Some(why) if outcome == Outcome::BadOutput => {
                self.fail(number, outcome, &why, &[reason.to_owned()], now);
            }
            _ => self.fail(number, outcome, reason, chain, now),
        }
        Ok(())
    }

    fn on_checkpoint(&mut self, checkpoint: &Checkpoint<'_>, now: Now) -> Result<(), String> {
        let Some(number) = self.in_hands(checkpoint.id)? else {
            return Ok(());
        };
        self.add_checkpoint(number, checkpoint, now)
    }
}

/// Appends the line of an output of a message.
pub(super) fn encode(line: &mut Vec<u8>, record: &Record, id: MessageId, output: &Output<'_>) {
    let mut text = [0; MessageId::TEXT_LEN];
    line.extend_from_slice(b"{\"id\":\"");
    line.extend_from_slice(id.encode(&mut text).as_bytes());
    line.extend_from_slice(b"\",\"lineage\":");
    line.extend_from_slice(&record.line[record.lineage.clone()]);
    line.extend_from_slice(b",\"parent\":\"");
    line.extend_from_slice(output.id.encode(&mut text).as_bytes());
    line.push(b'"');
    if let Some(key) = output.key.as_deref().or(record.key.as_deref()) {
        line.extend_from_slice(b",\"key\":");
        serde_json::to_writer(&mut *line, key).expect("a string is JSON, and a buffer takes it");
    }
    if let Some(headers) = output.headers {
        line.extend_from_slice(b",\"headers\":");
        line.extend_from_slice(headers.as_bytes());
    }
    line.extend_from_slice(b",\"body\":");
    line.extend_from_slice(output.body.as_bytes());
    line.extend_from_slice(b"}\n");
}
