//! Real agents' paces and the real control plane's shares, in a world where everything is lost now
//! and then.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use towpath_agent::pace::Pace;
use towpath_protocol::handing::{BURST_PART, Rate};
use towpath_protocol::office::{AgentState, Counters, Latency};

use super::*;

const RATE: Rate = Rate {
    count: 40,
    per_ms: 1_000,
};

/// How long a turn takes, in milliseconds.
const TURN_MS: u64 = 20;

struct Replica {
    identity: Identity,
    incarnation: String,
    pace: Pace,
    next_report: u64,
    /// Neither reports nor answers come through.
    is_cut_off: bool,
}

/// Something on its way, and when it arrives.
struct Sent<T>(u64, T);

struct World {
    rng: StdRng,
    begin: Instant,
    now_ms: u64,
    rates: Rates,
    is_away: bool,
    replicas: Vec<Replica>,
    /// What was seen of the containers, and is not told yet.
    containers: Containers,
    /// In order, each with whether a control plane was given it before.
    reports: VecDeque<Sent<(Report, bool)>>,
    /// What the control plane read last, and may read again after a start.
    read: VecDeque<Report>,
    answers: Vec<Sent<(Identity, String, Share)>>,
    handed: Vec<u64>,
    made: u32,
}

fn identity(replica: u32) -> Identity {
    Identity {
        instance: "t".into(),
        flow: "orders".into(),
        step: "crm".into(),
        replica,
        spec: "s".into(),
    }
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            begin: Instant::now(),
            now_ms: 1_000,
            rates: Rates::default(),
            is_away: false,
            replicas: Vec::new(),
            containers: Containers::default(),
            reports: VecDeque::new(),
            read: VecDeque::new(),
            answers: Vec::new(),
            handed: Vec::new(),
            made: 0,
        }
    }

    fn now(&self) -> Instant {
        self.begin + Duration::from_millis(self.now_ms)
    }

    fn one_in(&mut self, count: u32) -> bool {
        self.rng.random_range(0..count) == 0
    }

    fn create(&mut self) {
        let free = (1..=u32::MAX).find(|number| {
            self.replicas
                .iter()
                .all(|it| it.identity.replica != *number)
        });
        let number = free.expect("there are numbers");
        self.made += 1;
        self.replicas.push(Replica {
            identity: identity(number),
            incarnation: self.made.to_string(),
            pace: Pace::new(RATE, self.now()),
            next_report: self.now_ms,
            is_cut_off: false,
        });
    }

    fn look(&mut self) {
        self.containers = Containers {
            looked_at: self.now_ms,
            there: self.replicas.iter().map(|it| it.identity.clone()).collect(),
        };
    }

    /// Everything that can break, does so now and then.
    fn break_something(&mut self) {
        if self.replicas.len() < 6 && self.one_in(150) {
            self.create();
        }
        if !self.replicas.is_empty() && self.one_in(200) {
            let which = self.rng.random_range(0..self.replicas.len());
            self.replicas.remove(which);
        }
        if !self.replicas.is_empty() && self.one_in(100) {
            let which = self.rng.random_range(0..self.replicas.len());
            let replica = &mut self.replicas[which];
            replica.is_cut_off = !replica.is_cut_off;
        }
        if self.one_in(400) {
            // It starts again, and has forgotten everything.
            self.rates = Rates::default();
            self.containers = Containers::default();
            for report in std::mem::take(&mut self.read).into_iter().rev() {
                self.reports.push_front(Sent(self.now_ms, (report, true)));
            }
        }
        if self.one_in(300) {
            self.is_away = !self.is_away;
        }
    }

    fn turn(&mut self, is_rough: bool) {
        self.now_ms += TURN_MS;
        if is_rough {
            self.break_something();
        }
        if !self.is_away && self.one_in(25) {
            self.look();
        }
        let now = self.now();
        for at in 0..self.replicas.len() {
            while self.replicas[at].pace.is_open(now) {
                self.replicas[at].pace.take(now);
                self.handed.push(self.now_ms);
            }
            if self.now_ms >= self.replicas[at].next_report {
                self.report(at, is_rough);
            }
        }
        self.deliver();
        let shares: f64 = self
            .replicas
            .iter()
            .map(|it| it.pace.report(now).share)
            .sum();
        assert!(
            shares <= RATE.per_second() + 1e-6,
            "{shares} at {}",
            self.now_ms
        );
    }

    fn report(&mut self, at: usize, is_rough: bool) {
        let now = self.now();
        let replica = &mut self.replicas[at];
        let pacing = replica.pace.report(now);
        let report = Report {
            identity: replica.identity.clone(),
            incarnation: replica.incarnation.clone(),
            at: self.now_ms,
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
            pacing: Some(pacing.clone()),
        };
        replica.pace.is_reported(&pacing);
        replica.next_report = self.now_ms + 200;
        let is_lost = replica.is_cut_off || is_rough && self.one_in(10);
        if is_lost {
            return;
        }
        for _ in 0..if is_rough && self.one_in(10) { 2 } else { 1 } {
            let late = if is_rough {
                self.rng.random_range(0..600)
            } else {
                0
            };
            let sent = Sent(self.now_ms + late, (report.clone(), false));
            self.reports.push_back(sent);
        }
    }

    fn deliver(&mut self) {
        let now_ms = self.now_ms;
        while !self.is_away
            && let Some(Sent(_, (report, is_old))) =
                self.reports.pop_front_if(|sent| sent.0 <= now_ms)
        {
            let answer = self
                .rates
                .answer(&report, !is_old, &self.containers, now_ms);
            if let Some(share) = answer {
                let late = self.rng.random_range(0..400);
                let to = (report.identity.clone(), report.incarnation.clone(), share);
                self.answers.push(Sent(now_ms + late, to));
            }
            self.read.push_back(report);
            if self.read.len() > 4 {
                self.read.pop_front();
            }
        }
        let now = self.now();
        let (answers, later) = std::mem::take(&mut self.answers)
            .into_iter()
            .partition(|it| it.0 <= now_ms);
        self.answers = later;
        for Sent(_, (identity, incarnation, share)) in answers {
            let to = self.replicas.iter_mut().find(|it| {
                it.identity == identity && it.incarnation == incarnation && !it.is_cut_off
            });
            if let Some(replica) = to {
                replica.pace.on_share(&share, now);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn the_shares_are_never_more_than_the_rate(seed in any::<u64>()) {
        let mut world = World::new(seed);
        for _ in 0..3_000 {
            world.turn(true);
        }
        // In no second is more handed over than the rate and the bursts of those that were there.
        for (index, from) in world.handed.iter().enumerate() {
            let within = world.handed[index..].iter().take_while(|at| **at < from + 1_000);
            let made = f64::from(world.made.min(12));
            let most = RATE.per_second() * (1.0 + BURST_PART) + made + RATE.per_second() * 0.02;
            prop_assert!((within.count() as f64) <= most, "from {from}");
        }
        // When nothing breaks any more, everybody gets an equal share.
        world.is_away = false;
        for replica in &mut world.replicas {
            replica.is_cut_off = false;
        }
        if world.replicas.is_empty() {
            world.create();
        }
        for _ in 0..600 {
            world.turn(false);
        }
        let now = world.now();
        let fair = RATE.per_second() / world.replicas.len() as f64;
        for replica in &world.replicas {
            let share = replica.pace.report(now).share;
            prop_assert!((share - fair).abs() < 1e-6, "{share} is not {fair}");
        }
    }
}

fn settled(replicas: u32) -> World {
    let mut world = World::new(7);
    for _ in 0..replicas {
        world.create();
    }
    for _ in 0..600 {
        world.turn(false);
    }
    world
}

#[test]
fn everybody_gets_an_equal_share_in_the_end() {
    for replicas in [1, 2, 4, 7] {
        let mut world = settled(replicas);
        let before = world.handed.len();
        for _ in 0..500 {
            world.turn(false);
        }
        let handed = world.handed.len() - before;
        // A turn is 20 ms: a bucket of one message may have been full for so long.
        assert!((380..=410).contains(&handed), "{handed} in ten seconds");
    }
}

#[test]
fn while_the_control_plane_is_away_nothing_changes() {
    let mut world = settled(2);
    world.is_away = true;
    world.create();
    let before = world.handed.len();
    for _ in 0..500 {
        world.turn(false);
    }
    let handed = world.handed.len() - before;
    assert!((390..=410).contains(&handed), "{handed} in ten seconds");
    assert!(
        world.replicas[2].pace.has_none(),
        "nobody gave the third a share"
    );
    // It starts again, with three that it does not know.
    world.rates = Rates::default();
    world.containers = Containers::default();
    world.is_away = false;
    for _ in 0..600 {
        world.turn(false);
    }
    assert!(!world.replicas[2].pace.has_none());
}

#[test]
fn while_a_rate_is_changed_the_lower_one_is_kept() {
    let rates = Rates::default();
    let there = vec![identity(1), identity(2)];
    let containers = Containers {
        looked_at: 5,
        there,
    };
    let mut world = World::new(1);
    world.create();
    world.create();
    world.replicas[1].pace = Pace::new(Rate { count: 10, ..RATE }, world.now());
    let mut said = |at: usize| {
        world.report(at, false);
        let Sent(_, (report, _)) = world.reports.pop_back().expect("it was sent");
        rates
            .answer(&report, true, &containers, 10)
            .expect("an answer")
            .per_second
    };
    assert!(said(0) <= 0.0, "the other may hold all");
    said(1);
    assert!((said(0) - 5.0).abs() < 1e-9);
}
