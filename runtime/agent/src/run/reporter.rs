//! When to report: at once when the state changes, every two seconds while something else does,
//! every ten seconds otherwise.

use std::time::{Duration, Instant};

use towpath_protocol::office::{AgentState, Counters};

use crate::clock::Now;
use crate::core::{Core, Memory};
use crate::exit;

const BUSY: Duration = Duration::from_secs(2);
const IDLE: Duration = Duration::from_secs(10);

/// A state that flickers is not reported more often.
const FLICKER: Duration = Duration::from_millis(100);

/// How often a replica that waits for a share of its step's rate asks for one: by a report.
const ASKING: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Reporter {
    last: Option<Instant>,
    said: Option<(AgentState, Counters, u64)>,
    next: Option<Instant>,
}

impl Reporter {
    /// Reports if it is time to.
    pub(super) fn look(&mut self, core: &mut Core, pid: Option<i32>, now: Now) {
        if !core.is_up() {
            self.last = None;
            self.said = None;
            self.next = None;
            return;
        }
        let pulse = core.pulse();
        let wait = match &self.said {
            Some(said) if said.0 != pulse.0 => FLICKER,
            Some(said) if *said != pulse => BUSY,
            Some(_) => IDLE,
            None => Duration::ZERO,
        };
        let wait = if core.has_news_of_its_share() {
            wait.min(FLICKER)
        } else if core.wants_a_share() {
            wait.min(ASKING)
        } else {
            wait
        };
        let due = self.last.map_or(now.instant, |last| last + wait);
        if now.instant >= due {
            self.say(core, pid, now);
            self.next = Some(now.instant + BUSY);
        } else {
            self.next = Some(due.min(now.instant + BUSY));
        }
    }

    /// Returns when to look again.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Reports, because there will be no other.
    pub(super) fn last(&mut self, core: &mut Core, pid: Option<i32>, now: Now) {
        self.say(core, pid, now);
    }

    fn say(&mut self, core: &mut Core, pid: Option<i32>, now: Now) {
        let memory = Memory {
            step: pid.map_or(0, |pid| exit::resident_bytes(&pid.to_string())),
            agent: exit::resident_bytes("self"),
        };
        let report = core.report(memory, now);
        core.send_report(&report);
        self.said = Some(core.pulse());
        self.last = Some(now.instant);
    }
}
