//! Looking at a body before it is handed over (`validate`).

use towpath_protocol::handing::Misfit;

use super::Core;
use crate::clock::Now;
use crate::envelope;
use crate::settle::Outcome;

impl Core {
    /// Returns whether a message may be handed over; if its body is not what the step takes, it may
    /// become a dead letter here.
    pub(super) fn looks_right(&mut self, number: u32, now: Now) -> bool {
        let Some(validator) = &self.validator else {
            return true;
        };
        let record = self.records.get(number);
        let Ok(message) = envelope::parse(&record.line) else {
            return true;
        };
        let Some((reason, also)) = validator.fault(message.body.get()) else {
            return true;
        };
        self.counters.invalid += 1;
        let id = record.id;
        match validator.misfit {
            Misfit::Warn => {
                if let Some(count) = self.misfits.note(now.instant) {
                    let text =
                        format!("{count} bodies are not what the step takes; the last: {reason}");
                    self.logger.agent("warn", id, &text);
                }
                true
            }
            Misfit::DeadLetter => {
                for delivery in &record.deliveries {
                    self.deliveries.begin(*delivery);
                }
                if self.suspect == Some(number) {
                    self.suspect = None;
                }
                self.fail(number, Outcome::Invalid, &reason, &also, now);
                false
            }
        }
    }
}
