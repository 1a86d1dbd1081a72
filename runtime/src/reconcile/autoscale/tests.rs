//! The rules by example, and a simulation of a step whose work comes in different ways.

use std::time::Duration;

use super::*;

const BACKLOG: Autoscale = Autoscale {
    min: 1,
    max: 8,
    by: ScaleBy::Backlog { per_replica: 300 },
};

const LATENCY: Autoscale = Autoscale {
    min: 0,
    max: 8,
    by: ScaleBy::Latency(Duration::from_secs(30)),
};

fn signals(replicas: u32, waiting: u64) -> Signals {
    Signals {
        replicas,
        ready: replicas,
        waiting: Some(waiting),
        ..Signals::default()
    }
}

fn measured(rate: f64) -> History {
    History {
        rate: Some(rate),
        ..History::default()
    }
}

#[track_caller]
fn check(signals: &Signals, history: &History, policy: Autoscale, replicas: u32, reason: &str) {
    let decision = decide(signals, history, policy, 1_000_000);
    assert_eq!(
        (decision.replicas, decision.reason.as_str()),
        (replicas, reason)
    );
}

#[test]
fn more_are_wanted_at_once_but_not_before_the_last_ones_are_ready() {
    let none = History::default();
    check(
        &signals(1, 1_230),
        &none,
        BACKLOG,
        5,
        "5 of 1–8: 1,230 waiting, 300 a replica",
    );
    check(
        &signals(1, 1_000_000),
        &none,
        BACKLOG,
        8,
        "8 of 1–8: 1,000,000 waiting, 300 a replica",
    );
    let half = Signals {
        ready: 2,
        held: 900,
        ..signals(4, 1_000)
    };
    check(
        &half,
        &none,
        BACKLOG,
        4,
        "4 of 1–8: 1,900 waiting, 300 a replica; more once all 4 are ready, 2 are now",
    );
    // On the edge: exactly what four are for.
    check(
        &signals(4, 1_200),
        &none,
        BACKLOG,
        4,
        "4 of 1–8: 1,200 waiting, 300 a replica",
    );
}

#[test]
fn a_latency_counts_by_what_one_replica_was_measured_to_do() {
    check(
        &signals(1, 3_000),
        &measured(20.0),
        LATENCY,
        5,
        "5 of 0–8: 3,000 waiting, 20/s a replica, 30 s to finish",
    );
    // Nothing was measured: one shows what it can do.
    check(
        &signals(0, 3_000),
        &History::default(),
        LATENCY,
        1,
        "1 of 0–8: 3,000 waiting, nothing measured yet",
    );
    let busy = Signals {
        rate: 40.0,
        is_busy: true,
        ..signals(2, 5_000)
    };
    let decision = decide(&busy, &History::default(), LATENCY, 0);
    assert_eq!(decision.history.rate, Some(20.0));
    assert_eq!(decision.replicas, 8, "5,000 at 20/s in 30 s are nine");
    // One that has little to do is not slow.
    let idle = Signals {
        rate: 2.0,
        ..signals(2, 0)
    };
    let decision = decide(&idle, &measured(20.0), LATENCY, 0);
    assert_eq!(decision.history.rate, Some(20.0));
}

#[test]
fn a_bottleneck_after_it_is_not_made_worse() {
    let blocked = Signals {
        obstacle: Some("`crm` after it is the bottleneck".to_owned()),
        ..signals(2, 5_000)
    };
    check(
        &blocked,
        &History::default(),
        BACKLOG,
        2,
        "2 of 1–8: 5,000 waiting, 300 a replica; no more, because `crm` after it is the bottleneck",
    );
}

#[test]
fn a_paused_step_keeps_what_it_has() {
    let paused = Signals {
        is_paused: true,
        ..signals(3, 5_000)
    };
    check(
        &paused,
        &History::default(),
        BACKLOG,
        3,
        "3 of 1–8: it is paused",
    );
    let unknown = Signals {
        waiting: None,
        ..signals(3, 0)
    };
    check(
        &unknown,
        &History::default(),
        BACKLOG,
        3,
        "3 of 1–8: the broker does not say what waits",
    );
}

#[test]
fn the_file_has_the_last_word_on_the_bounds() {
    let many = signals(20, 0);
    assert_eq!(
        decide(&many, &History::default(), BACKLOG, 0).replicas,
        8,
        "`max` was made smaller"
    );
    let none = signals(0, 0);
    assert_eq!(decide(&none, &History::default(), BACKLOG, 0).replicas, 1);
}

/// Decides once a second for some seconds, always on the same signals but for the number.
fn go_on(mut signals: Signals, policy: Autoscale, seconds: u64) -> (u32, History) {
    let mut history = History::default();
    for second in 0..=seconds {
        let decision = decide(&signals, &history, policy, second * 1_000);
        signals.replicas = decision.replicas;
        signals.ready = decision.replicas;
        history = decision.history;
    }
    (signals.replicas, history)
}

#[test]
fn fewer_only_after_a_calm_minute() {
    assert_eq!(go_on(signals(6, 100), BACKLOG, 59).0, 6);
    assert_eq!(go_on(signals(6, 100), BACKLOG, 60).0, 1);
    // A wave within the minute keeps them.
    let (_, history) = go_on(signals(6, 100), BACKLOG, 50);
    let wave = decide(&signals(6, 1_500), &history, BACKLOG, 51_000);
    assert_eq!(wave.replicas, 6);
    let after = decide(&signals(6, 100), &wave.history, BACKLOG, 100_000);
    assert_eq!(after.replicas, 6);
    let later = decide(&signals(6, 100), &after.history, BACKLOG, 112_000);
    assert_eq!(later.replicas, 1);
}

#[test]
fn what_comes_in_needs_its_replicas_also_when_nothing_waits() {
    let steady = Signals {
        rate: 60.0,
        held: 10,
        ..signals(4, 0)
    };
    let mut history = measured(20.0);
    let mut replicas = 4;
    for second in 0..200 {
        let now = Signals {
            replicas,
            ready: replicas,
            ..steady.clone()
        };
        let decision = decide(&now, &history, BACKLOG, second * 1_000);
        (replicas, history) = (decision.replicas, decision.history);
    }
    assert_eq!(replicas, 4, "three could just do it, with nothing to spare");
}

#[test]
fn it_sleeps_when_nothing_comes_and_wakes_at_the_first_message() {
    let (replicas, history) = go_on(signals(1, 0), LATENCY, 60);
    assert_eq!(replicas, 0);
    let asleep = decide(&signals(0, 0), &history, LATENCY, 61_000);
    assert_eq!(
        asleep.reason,
        "0 of 0–8: asleep, the first message wakes it"
    );
    let awake = decide(&signals(0, 1), &asleep.history, LATENCY, 62_000);
    assert_eq!(awake.replicas, 1);
    // Who holds something does not go to sleep over it.
    let holding = Signals {
        held: 1,
        ..signals(1, 0)
    };
    assert_eq!(go_on(holding, LATENCY, 300).0, 1);
}

/// A step whose replicas take a while to start and handle so many messages a second each.
struct World {
    policy: Autoscale,
    of_one: f64,
    backlog: f64,
    replicas: u32,
    /// When each is ready.
    ready_at: Vec<u64>,
    rates: VecDeque<f64>,
    history: History,
    changes: Vec<(u64, u32)>,
    most_waiting: f64,
}

impl World {
    fn new(policy: Autoscale, of_one: f64) -> Self {
        Self {
            policy,
            of_one,
            backlog: 0.0,
            replicas: policy.min,
            ready_at: vec![0; policy.min as usize],
            rates: VecDeque::new(),
            history: History::default(),
            changes: Vec::new(),
            most_waiting: 0.0,
        }
    }

    /// A second passes, in which so many messages come.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a backlog is small and not negative"
    )]
    fn second(&mut self, second: u64, comes: f64) {
        let ready = self.ready_at.iter().filter(|at| **at <= second).count();
        let ready = u32::try_from(ready).unwrap();
        self.backlog += comes;
        let done = self.backlog.min(f64::from(ready) * self.of_one);
        self.backlog -= done;
        self.most_waiting = self.most_waiting.max(self.backlog);
        // Rates are of the last twenty seconds, as reports say them.
        self.rates.push_back(done);
        if self.rates.len() > 20 {
            self.rates.pop_front();
        }
        let signals = Signals {
            replicas: self.replicas,
            ready,
            waiting: Some(self.backlog as u64),
            rate: self.rates.iter().sum::<f64>() / self.rates.len() as f64,
            is_busy: self.backlog > 0.0,
            ..Signals::default()
        };
        let decision = decide(&signals, &self.history, self.policy, second * 1_000);
        self.history = decision.history;
        if decision.replicas != self.replicas {
            self.replicas = decision.replicas;
            self.changes.push((second, self.replicas));
            self.ready_at.resize(self.replicas as usize, second + 3);
        }
    }
}

#[test]
fn it_does_not_flap() {
    for policy in [BACKLOG, LATENCY] {
        // Steady load that three replicas can just not carry.
        let mut world = World::new(policy, 20.0);
        for second in 0..3_600 {
            let ripple = if second % 2 == 0 { 5.0 } else { -5.0 };
            world.second(second, 62.0 + ripple);
        }
        assert!(
            world.changes.len() <= 8,
            "{policy:?}: in an hour of steady load {:?}",
            world.changes
        );
        let late: Vec<_> = world.changes.iter().filter(|(at, _)| *at > 1_200).collect();
        assert!(late.len() <= 2, "{policy:?}: {:?}", world.changes);
        assert!(world.backlog < 1_300.0, "{policy:?}: {}", world.backlog);
    }
}

#[test]
fn a_burst_is_worked_off_and_then_it_rests() {
    let mut world = World::new(LATENCY, 20.0);
    for second in 0..1_000 {
        let comes = if second == 100 { 4_000.0 } else { 0.0 };
        world.second(second, comes);
        if second == 180 {
            assert!(world.backlog < 1.0, "4,000 at 160/s: {}", world.backlog);
        }
    }
    assert_eq!(world.replicas, 0, "{:?}", world.changes);
    let most = world.changes.iter().map(|(_, replicas)| *replicas).max();
    assert!(
        most >= Some(7),
        "4,000 at 20/s in 30 s: {:?}",
        world.changes
    );
    assert!(world.most_waiting <= 4_000.0);
}

#[test]
fn numbers_are_written_as_people_read_them() {
    for (number, text) in [
        (0, "0"),
        (999, "999"),
        (1_000, "1,000"),
        (1_234_567, "1,234,567"),
    ] {
        assert_eq!(grouped(number), text);
    }
    assert_eq!(rate_words(12.34), "12/s");
    assert_eq!(rate_words(1.25), "1.2/s");
    assert_eq!(rate_words(0.05), "3.0/min");
}
