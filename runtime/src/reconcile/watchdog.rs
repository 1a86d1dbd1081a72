//! Replicas that run and do nothing, although they should: found by what their agents say, or no
//! longer say. Pure; who is found is drained and replaced by [`super::plan`].
//!
//! # Invariants
//!
//! - `who_says_nothing_while_others_do_is_replaced`.
//! - `who_holds_deliveries_and_does_nothing_with_them_is_replaced`.
//! - `who_claims_to_be_idle_beside_a_full_queue_is_replaced`.
//! - `nobody_is_blamed_for_a_time_in_which_we_were_cut_off`: of the broker, of the engine, or
//!   asleep ourselves.
//! - `one_of_a_step_at_a_time`.

use std::collections::{BTreeMap, BTreeSet};

use towpath_protocol::office::{AgentState, Counters, Report};

use super::gauge::Loads;
use super::memory::Memory;
use crate::engine::{ContainerState, Observed};
use crate::reports::StepKey;

/// How long an agent may say nothing, while others do: nine of its reports when it is idle.
pub const SILENT_MS: u64 = 90_000;

/// How long it may, if there is no other to compare it with.
pub const SILENT_ALONE_MS: u64 = 300_000;

/// How long it may hold deliveries while nothing moves and it does not say why.
pub const STUCK_MS: u64 = 300_000;

/// How long it may be idle while its queue is not empty.
pub const STARVED_MS: u64 = 120_000;

/// Who was heard within this time says that reports arrive.
const HEARD_MS: u64 = 30_000;

/// If nobody has looked for this long, we were away ourselves.
const GAP_MS: u64 = 30_000;

/// What is known of the agents over time. All times are our own, in milliseconds since 1970: an
/// agent's clock may be another one.
#[derive(Debug, Clone, Default)]
pub struct Watchdog {
    agents: BTreeMap<String, Watched>,
    /// Since when the broker has been there without a gap.
    fair_since: Option<u64>,
    looked_at: Option<u64>,
}

#[derive(Debug, Clone)]
struct Watched {
    /// When it last said something new.
    heard_at: u64,
    /// What its last report said of when it was made.
    said_at: Option<u64>,
    /// Since when nothing has moved in it.
    still_since: u64,
    pulse: Option<Pulse>,
    /// Since when its queue has been known to hold something that it does not take.
    starved_since: Option<u64>,
}

/// What moves while an agent works.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pulse {
    incarnation: String,
    counters: Counters,
    state: AgentState,
    in_hand: u64,
    held: u64,
    unacknowledged: u64,
}

impl Watchdog {
    /// Takes in how everything is, and returns who is to be replaced, and why. `loads` is what waits
    /// in the queues, if the broker could be asked; a queue that is not in it was not looked at.
    pub fn look(
        &mut self,
        observed: &[Observed],
        memory: &Memory,
        loads: Option<&Loads>,
        now: u64,
    ) -> Vec<(String, String)> {
        self.take_in(observed, memory, loads, now);
        let Some(fair_since) = self.fair_since else {
            return Vec::new();
        };
        let mut found = Vec::new();
        let mut busy: BTreeSet<StepKey> = observed
            .iter()
            .filter(|one| memory.is_draining(&one.container) || memory.is_recycled(&one.container))
            .map(step_of)
            .collect();
        let candidates = observed.iter().filter(|one| {
            one.state == ContainerState::Running && !memory.is_draining(&one.container)
        });
        for one in candidates {
            let report = memory.reports.get(&one.container);
            let Some(reason) = self.fault(&one.container, report, fair_since, now) else {
                continue;
            };
            if busy.insert(step_of(one)) {
                found.push((one.container.clone(), reason));
            }
        }
        found
    }

    fn take_in(&mut self, observed: &[Observed], memory: &Memory, loads: Option<&Loads>, now: u64) {
        let was_away = self
            .looked_at
            .is_none_or(|at| now.saturating_sub(at) > GAP_MS);
        self.looked_at = Some(now);
        if loads.is_none() {
            self.fair_since = None;
        } else if was_away || self.fair_since.is_none() {
            self.fair_since = Some(now);
        }
        let running = |one: &&Observed| one.state == ContainerState::Running;
        let there: BTreeSet<&str> = observed
            .iter()
            .filter(running)
            .map(|one| one.container.as_str())
            .collect();
        self.agents
            .retain(|container, _| there.contains(container.as_str()));
        for one in observed.iter().filter(running) {
            let load = loads.and_then(|loads| loads.get(&step_of(one)));
            let watched = self
                .agents
                .entry(one.container.clone())
                .or_insert_with(|| Watched {
                    heard_at: now,
                    said_at: None,
                    still_since: now,
                    pulse: None,
                    starved_since: None,
                });
            if let Some(report) = memory.reports.get(&one.container) {
                watched.hear(report, now);
            }
            match load {
                Some(load) if load.deliveries > 0 && !load.keeps_order => {
                    watched.starved_since.get_or_insert(now);
                }
                Some(_) => watched.starved_since = None,
                None => {}
            }
        }
    }

    fn fault(
        &self,
        container: &str,
        report: Option<&Report>,
        fair_since: u64,
        now: u64,
    ) -> Option<String> {
        let watched = self.agents.get(container)?;
        let for_ms = |since: u64| now.saturating_sub(since.max(fair_since));
        let silent_ms = for_ms(watched.heard_at);
        let limit = if self.agents.len() == 1 {
            SILENT_ALONE_MS
        } else if self.others_are_heard(container, now) {
            SILENT_MS
        } else {
            u64::MAX
        };
        if silent_ms >= limit {
            let seconds = silent_ms / 1_000;
            return Some(format!("its agent has said nothing for {seconds} s"));
        }
        let report = report?;
        let does_nothing = report.state == AgentState::Running
            && report.reason.is_none()
            && report.in_hand == 0
            // What it said last is only worth something while it is fresh.
            && now.saturating_sub(watched.heard_at) < HEARD_MS;
        if !does_nothing {
            return None;
        }
        let still_ms = for_ms(watched.still_since);
        if report.unacknowledged > 0 {
            return (still_ms >= STUCK_MS).then(|| {
                format!(
                    "it holds {} deliveries and has done nothing with them for {} s",
                    report.unacknowledged,
                    still_ms / 1_000
                )
            });
        }
        let starved_ms = for_ms(watched.starved_since?.max(watched.still_since));
        (starved_ms >= STARVED_MS).then(|| {
            format!(
                "messages wait for it, and it has taken none for {} s",
                starved_ms / 1_000
            )
        })
    }

    fn others_are_heard(&self, container: &str, now: u64) -> bool {
        self.agents.iter().any(|(other, watched)| {
            other != container
                && watched.said_at.is_some()
                && now.saturating_sub(watched.heard_at) < HEARD_MS
        })
    }
}

impl Watched {
    fn hear(&mut self, report: &Report, now: u64) {
        if self.said_at != Some(report.at) {
            self.said_at = Some(report.at);
            self.heard_at = now;
        }
        let pulse = Pulse {
            incarnation: report.incarnation.clone(),
            counters: report.counters,
            state: report.state,
            in_hand: report.in_hand,
            held: report.held,
            unacknowledged: report.unacknowledged,
        };
        if self.pulse.as_ref() != Some(&pulse) {
            self.pulse = Some(pulse);
            self.still_since = now;
        }
    }
}

fn step_of(one: &Observed) -> StepKey {
    (one.identity.flow.clone(), one.identity.step.clone())
}

#[cfg(test)]
mod tests {
    use towpath_protocol::office::Latency;
    use towpath_protocol::start::Identity;

    use super::*;
    use crate::reconcile::gauge::Load;

    /// A few replicas of one step, watched every five seconds.
    struct Story {
        dog: Watchdog,
        memory: Memory,
        observed: Vec<Observed>,
        loads: Option<Loads>,
        now: u64,
    }

    impl Story {
        fn new(replicas: u32) -> Self {
            let observed: Vec<_> = (1..=replicas).map(container).collect();
            let mut story = Self {
                dog: Watchdog::default(),
                memory: Memory::default(),
                observed,
                loads: Some(Loads::new()),
                now: 1_000_000,
            };
            for replica in 1..=replicas {
                story.report(replica, |_| {});
            }
            story
        }

        fn report(&mut self, replica: u32, change: impl FnOnce(&mut Report)) {
            let mut report = idle(replica, self.now);
            change(&mut report);
            self.memory.reports.insert(format!("c{replica}"), report);
        }

        fn queue(&mut self, deliveries: u64) {
            let load = Load {
                deliveries,
                ..Load::default()
            };
            let key = ("f".to_owned(), "s".to_owned());
            self.loads = Some(Loads::from([(key, load)]));
        }

        /// Goes on until somebody is found, for so many seconds at most; says after how many.
        fn find(
            &mut self,
            seconds: u64,
            mut each: impl FnMut(&mut Self),
        ) -> Option<(u64, String, String)> {
            let began = self.now;
            while self.now < began + seconds * 1_000 {
                each(self);
                let found =
                    self.dog
                        .look(&self.observed, &self.memory, self.loads.as_ref(), self.now);
                if let Some((container, reason)) = found.into_iter().next() {
                    return Some(((self.now - began) / 1_000, container, reason));
                }
                self.now += 5_000;
            }
            None
        }
    }

    fn container(replica: u32) -> Observed {
        Observed {
            container: format!("c{replica}"),
            name: format!("n{replica}"),
            identity: identity(replica),
            state: ContainerState::Running,
            created: 0,
        }
    }

    fn identity(replica: u32) -> Identity {
        Identity {
            instance: "i".into(),
            flow: "f".into(),
            step: "s".into(),
            replica,
            spec: "spec".into(),
        }
    }

    fn idle(replica: u32, at: u64) -> Report {
        Report {
            identity: identity(replica),
            incarnation: "a".into(),
            at,
            state: AgentState::Running,
            reason: None,
            in_hand: 0,
            held: 0,
            unacknowledged: 0,
            counters: Counters::default(),
            latency: Latency::default(),
            restarts: 0,
            step_resident_bytes: 0,
            agent_resident_bytes: 0,
            last_lines: Vec::new(),
            pacing: None,
        }
    }

    #[test]
    fn who_says_nothing_while_others_do_is_replaced() {
        let mut story = Story::new(2);
        let found = story.find(600, |story| story.report(2, |_| {}));
        let (after, container, reason) = found.expect("one is silent");
        assert_eq!((after, container.as_str()), (90, "c1"));
        assert_eq!(reason, "its agent has said nothing for 90 s");
        // If all are silent, it is not they who are at fault.
        assert_eq!(Story::new(2).find(3_600, |_| {}), None);
        // One alone is given more time.
        let (after, ..) = Story::new(1).find(3_600, |_| {}).expect("it is silent");
        assert_eq!(after, 300);
    }

    #[test]
    fn who_holds_deliveries_and_does_nothing_with_them_is_replaced() {
        let mut story = Story::new(1);
        let found = story.find(600, |story| {
            story.report(1, |report| report.unacknowledged = 3);
        });
        let (after, _, reason) = found.expect("it is stuck");
        assert_eq!(after, 300);
        assert_eq!(
            reason,
            "it holds 3 deliveries and has done nothing with them for 300 s"
        );
        let innocent: [fn(&mut Report, u64); 4] = [
            |report, now| report.counters.done = now,
            |report, _| report.in_hand = 1,
            |report, _| report.reason = Some("it waits for the control plane".into()),
            |report, _| report.state = AgentState::HeldBack,
        ];
        for change in innocent {
            let found = Story::new(1).find(3_600, |story| {
                let now = story.now;
                story.report(1, |report| {
                    report.unacknowledged = 3;
                    change(report, now);
                });
            });
            assert_eq!(found, None);
        }
    }

    #[test]
    fn who_claims_to_be_idle_beside_a_full_queue_is_replaced() {
        let mut story = Story::new(1);
        story.queue(5);
        let found = story.find(600, |story| story.report(1, |_| {}));
        let (after, _, reason) = found.expect("it is starved");
        assert_eq!(after, 120);
        assert_eq!(
            reason,
            "messages wait for it, and it has taken none for 120 s"
        );
        // The queue was empty in between.
        let found = Story::new(1).find(3_600, |story| {
            story.queue(if story.now % 100_000 < 50_000 { 5 } else { 0 });
            story.report(1, |_| {});
        });
        assert_eq!(found, None);
        // It takes what comes.
        let mut received = 0;
        let found = Story::new(1).find(3_600, |story| {
            received += 1;
            story.queue(5);
            story.report(1, |report| report.counters.received = received);
        });
        assert_eq!(found, None);
    }

    #[test]
    fn nobody_is_blamed_for_a_time_in_which_we_were_cut_off() {
        // The broker is away now and then.
        let mut round = 0;
        let found = Story::new(2).find(3_600, |story| {
            round += 1;
            story.report(2, |_| {});
            story.loads = (round % 10 != 0).then(Loads::new);
        });
        assert_eq!(found, None);
        // We slept for an hour; then there are reports again, one by one.
        let mut story = Story::new(2);
        assert_eq!(story.find(30, |story| story.report(2, |_| {})), None);
        story.now += 3_600_000;
        let found = story.find(600, |story| story.report(2, |_| {}));
        assert_eq!(found.map(|it| it.0), Some(90));
    }

    #[test]
    fn one_of_a_step_at_a_time() {
        let mut story = Story::new(3);
        let found = story.find(600, |story| story.report(3, |_| {}));
        assert!(found.is_some());
        story.now += 5_000;
        story.report(3, |_| {});
        story.memory.recycle("c1", "why", &identity(1));
        let look = |story: &mut Story| {
            story.dog.look(
                &story.observed,
                &story.memory,
                story.loads.as_ref(),
                story.now,
            )
        };
        assert_eq!(look(&mut story), []);
        // It is gone, and another one has come: now the second.
        story.observed[0].container = "c9".into();
        story.memory.recycles.clear();
        let found = look(&mut story);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0, "c2");
    }
}
