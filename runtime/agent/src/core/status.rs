//! How the agent is: reports to the control plane.

use bytes::Bytes;
use towpath_protocol::office::{AgentState, REPORT_KEY, Report};

use super::{Consuming, Core, Step};
use crate::broker::{Command, Content, Publish};
use crate::clock::Now;

/// What only the operating system knows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    /// Resident bytes of the step process.
    pub step: u64,
    /// Resident bytes of the agent.
    pub agent: u64,
}

impl Core {
    /// Returns what the agent is doing.
    pub fn state(&self) -> AgentState {
        if self.drain.is_some() {
            AgentState::Draining
        } else if !self.is_up {
            AgentState::WaitingForBroker
        } else if self.step != Step::Ready && self.life.is_failing() {
            AgentState::StepFails
        } else if self.is_paused && self.consuming == Consuming::No {
            AgentState::Paused
        } else if self.lanes.is_refused() || self.is_blocked {
            AgentState::HeldBack
        } else if self.step == Step::Ready {
            AgentState::Running
        } else {
            AgentState::Starting
        }
    }

    /// Says how the agent is.
    pub fn report(&self, memory: Memory, now: Now) -> Report {
        let state = self.state();
        let reason = match state {
            AgentState::WaitingForBroker => self.broker_reason.clone(),
            AgentState::StepFails | AgentState::Starting => self.life.last_death.clone(),
            AgentState::HeldBack if self.is_blocked => Some("the broker has an alarm".to_owned()),
            AgentState::HeldBack => Some("a queue that this step publishes to is full".to_owned()),
            AgentState::Running => self
                .waits_for_ledger(now)
                .or_else(|| self.branching.trouble.clone())
                .or_else(|| self.pace.as_ref().and_then(|pace| pace.words(now.instant)))
                .or_else(|| self.says_what_it_holds(now))
                .or_else(|| self.recent_mishap(state, now))
                .or_else(|| self.waits_for_others(now)),
            _ => None,
        };
        let is_dying = state == AgentState::StepFails || state == AgentState::Starting;
        Report {
            identity: self.setup.identity.clone(),
            incarnation: self.setup.incarnation.clone(),
            at: now.wall_ms,
            state,
            reason,
            in_hand: u64::from(self.in_hand),
            held: self.deliveries.waiting_lines()
                + self.records.len() as u64
                + self.deferred.len() as u64,
            unacknowledged: self.deliveries.unacknowledged(),
            counters: self.counters,
            latency: self.latency.clone(),
            restarts: self.life.starts.saturating_sub(1),
            step_resident_bytes: memory.step,
            agent_resident_bytes: memory.agent,
            last_lines: if is_dying {
                self.life.last_lines.iter().cloned().collect()
            } else {
                Vec::new()
            },
            pacing: self.pace.as_ref().map(|pace| pace.report(now.instant)),
        }
    }

    /// Says that messages are held, and until when.
    fn says_what_it_holds(&self, now: Now) -> Option<String> {
        let (count, due) = self.holds();
        let wait = due?.saturating_duration_since(now.instant).as_secs() + 1;
        Some(format!(
            "{count} messages are held until they are tried again, the first in {wait} s, and those behind them with them"
        ))
    }

    /// Sends a report, if there is somebody to send it to. A lost one costs nothing.
    pub fn send_report(&mut self, report: &Report) {
        if !self.is_up {
            return;
        }
        let payload = serde_json::to_vec(report).expect("a report is JSON");
        let publish = Publish {
            number: self.lanes.take_number(),
            exchange: self.setup.routes.office_exchange.as_str().into(),
            key: REPORT_KEY.into(),
            content: Content::Report,
            count: 1,
            payload: Bytes::from(payload),
            // So that the control plane can ask.
            answer: Some("report".into()),
        };
        self.tell(Command::Publish(publish));
        if let (Some(pace), Some(pacing)) = (&mut self.pace, &report.pacing) {
            pace.is_reported(pacing);
        }
    }

    /// Returns what a report would say that changes, to send one only when there is news.
    pub fn pulse(&self) -> (AgentState, towpath_protocol::office::Counters, u64) {
        (self.state(), self.counters, self.life.starts)
    }
}
