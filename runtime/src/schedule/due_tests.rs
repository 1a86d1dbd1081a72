//! When a trigger is due, by table.

use std::collections::BTreeSet;

use towpath_flow::{Facts, Source, check};
use towpath_protocol::DEFAULT_CONNECTION;
use towpath_protocol::frame::Why;

use super::*;

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;

/// What `orders` is whose trigger fires as this says.
fn live(fires: &str) -> LiveFlow {
    let text = format!(
        "flow: orders\ntrigger: {{id: poll, image: p, {fires}}}\nactions: [{{id: crm, image: i}}]"
    );
    let checked = check(&Source::new("flow.yaml", text), &Facts::default());
    let flow = checked.unwrap_or_else(|found| panic!("{found}")).flow;
    LiveFlow::new(&flow, 3, 0, FlowState::Running)
}

pub(in crate::schedule) fn run(state: RunState, due: u64, ended_at: Option<u64>) -> RunRecord {
    RunRecord {
        id: MessageId::from_bytes([1; 16]),
        flow: "orders".into(),
        step: "poll".into(),
        connection: DEFAULT_CONNECTION.into(),
        version: 3,
        why: Why::Schedule,
        state,
        due,
        started_at: due,
        ended_at,
        emitted: None,
        attempts: 0,
        next_at: None,
        reason: None,
        payload: None,
        tracked: false,
        cancel_at: None,
    }
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "it stands where there may be none"
)]
fn done(due: u64, ended: u64) -> Option<RunRecord> {
    Some(run(RunState::Done, due, Some(ended)))
}

/// A time on the grid of `orders` with an interval of a minute.
fn grid(index: u64) -> u64 {
    offset("orders", MINUTE) + (1_000_000 + index) * MINUTE
}

/// A time on 27 November 2026 in UTC: `at(6, 30)` is half past six.
fn at(hour: u64, minute: u64) -> u64 {
    1_795_737_600_000 + hour * HOUR + minute * MINUTE
}

#[expect(clippy::needless_pass_by_value, reason = "the cases below read better")]
#[track_caller]
fn check_due(fires: &str, last: Option<RunRecord>, now: u64, expect: Decision) {
    assert_eq!(due(&live(fires), last.as_slice(), now), expect);
}

const EVERY: &str = "every: 1m";
const CRON: &str = "cron: '30 6,7,8,9 * * *'";

fn and(fires: &str, more: &str) -> String {
    format!("{fires}, {more}")
}

#[test]
fn a_trigger_that_never_fired_is_due_at_once() {
    check_due(EVERY, None, 12_345, Decision::Fire { due: 12_345 });
}

#[test]
fn it_is_due_on_its_grid() {
    check_due(
        EVERY,
        done(grid(0), grid(0) + 100),
        grid(0) + 200,
        Decision::Wait { until: grid(1) },
    );
    check_due(
        EVERY,
        done(grid(0), grid(0) + 100),
        grid(1),
        Decision::Fire { due: grid(1) },
    );
    // Started off the grid, just before a point of it: not again a moment later.
    check_due(
        EVERY,
        done(grid(1) - 5, grid(1) - 1),
        grid(1),
        Decision::Wait { until: grid(2) },
    );
}

#[test]
fn a_cron_trigger_is_due_when_it_says_and_not_when_it_is_applied() {
    let mut flow = live(CRON);
    flow.applied_at = at(6, 0);
    let until = at(6, 30);
    assert_eq!(due(&flow, &[], at(6, 10)), Decision::Wait { until });
    assert_eq!(due(&flow, &[], until), Decision::Fire { due: until });
    // What was before it was applied was not missed.
    flow.trigger.missed = Missed::Once;
    flow.applied_at = at(7, 0);
    let until = at(7, 30);
    assert_eq!(due(&flow, &[], at(7, 0)), Decision::Wait { until });
    check_due(
        CRON,
        done(at(6, 30), at(6, 31)),
        at(6, 32),
        Decision::Wait { until: at(7, 30) },
    );
    // A moment late is late, and not missed.
    check_due(
        CRON,
        done(at(6, 30), at(6, 31)),
        at(7, 30) + 40 * SECOND,
        Decision::Fire { due: at(7, 30) },
    );
    // A run by hand changes nothing about it.
    check_due(
        CRON,
        done(at(7, 29), at(7, 29) + SECOND),
        at(7, 30),
        Decision::Fire { due: at(7, 30) },
    );
}

#[test]
fn what_was_due_during_a_run_is_left_out_or_comes_once() {
    // It ran from the first point until after the third.
    let long = || done(grid(0), grid(2) + 5);
    let now = grid(2) + 10;
    check_due(EVERY, long(), now, Decision::Wait { until: grid(3) });
    let queues = and(EVERY, "overlap: queue-one");
    check_due(&queues, long(), now, Decision::Fire { due: grid(2) });
    // That one made up for both.
    check_due(
        &queues,
        done(grid(2), now + 20),
        now + 30,
        Decision::Wait { until: grid(3) },
    );

    let long = || done(at(6, 30), at(8, 35));
    let now = at(8, 36);
    check_due(CRON, long(), now, Decision::Wait { until: at(9, 30) });
    let queues = and(CRON, "overlap: queue-one");
    check_due(&queues, long(), now, Decision::Fire { due: at(7, 30) });
    // It also comes if nobody was there when the run ended: it is not missed, it waited.
    check_due(&queues, long(), at(9, 0), Decision::Fire { due: at(7, 30) });
    let mut made_up = run(RunState::Done, at(7, 30), Some(at(8, 37)));
    made_up.started_at = now;
    check_due(
        &queues,
        Some(made_up),
        at(8, 38),
        Decision::Wait { until: at(9, 30) },
    );
}

#[test]
fn what_was_due_while_nobody_looked_is_left_out_or_comes_once() {
    let last = || done(grid(0), grid(0) + 100);
    let now = grid(7) + 500;
    // An interval is made up for unless it says otherwise.
    check_due(EVERY, last(), now, Decision::Fire { due: grid(7) });
    let hourly = "every: 1h";
    let on = |index: u64| offset("orders", HOUR) + (400_000 + index) * HOUR;
    let late = on(3) + 20 * MINUTE;
    let last = || done(on(0), on(0) + 100);
    check_due(hourly, last(), late, Decision::Fire { due: on(3) });
    check_due(
        &and(hourly, "missed: skip"),
        last(),
        late,
        Decision::Wait { until: on(4) },
    );

    // A time of day is left out unless it says otherwise.
    let last = || done(at(6, 30), at(6, 31));
    let late = at(8, 45);
    check_due(CRON, last(), late, Decision::Wait { until: at(9, 30) });
    let once = and(CRON, "missed: once");
    check_due(&once, last(), late, Decision::Fire { due: at(7, 30) });
    let mut made_up = run(RunState::Done, at(7, 30), Some(at(8, 46)));
    made_up.started_at = late;
    check_due(
        &once,
        Some(made_up),
        at(8, 47),
        Decision::Wait { until: at(9, 30) },
    );
}

#[test]
fn a_trigger_has_at_most_one_active_run() {
    for state in [RunState::Recorded, RunState::Published] {
        let active = || run(state, grid(0), None);
        let run = active().id;
        let busy = |then| Decision::Busy { run, then };
        let now = grid(9) + 1;
        check_due(EVERY, Some(active()), now, busy(Some(grid(10))));
        // One is remembered: it is due since the first point that was passed.
        check_due(
            &and(EVERY, "overlap: queue-one"),
            Some(active()),
            now,
            busy(Some(grid(1))),
        );
        check_due("stream: true", Some(active()), now, busy(None));
    }
}

#[test]
fn only_running_flows_fire() {
    for fires in [EVERY, CRON, "stream: true"] {
        for state in [FlowState::Draining, FlowState::Paused, FlowState::Stopped] {
            let mut flow = live(fires);
            flow.state = state;
            assert_eq!(due(&flow, &[], at(6, 30)), Decision::Off);
        }
    }
    assert_eq!(due(&live("webhook: true"), &[], 5), Decision::Off);
}

#[test]
fn a_stream_is_fired_at_once_and_again_when_it_ends() {
    let flow = live("stream: true");
    let now = at(6, 0);
    assert_eq!(due(&flow, &[], now), Decision::Fire { due: now });
    let long = done(at(1, 0), now).unwrap();
    assert_eq!(due(&flow, &[long], now), Decision::Fire { due: now });
}

#[test]
fn a_stream_that_ends_at_once_or_fails_waits_longer_and_longer() {
    let flow = live("stream: true");
    let now = at(6, 0);
    let quick = |state| run(state, now - 100, Some(now));
    let long = done(at(1, 0), at(5, 0)).unwrap();
    for (bad, seconds) in [(1, 1_u64), (2, 2), (3, 4), (6, 32), (7, 60), (8, 60)] {
        for state in [RunState::Done, RunState::Failed, RunState::Abandoned] {
            let mut runs = vec![quick(state); bad];
            runs.push(long.clone());
            let until = now + seconds * SECOND;
            assert_eq!(due(&flow, &runs, now), Decision::Wait { until }, "{bad}");
            assert_eq!(due(&flow, &runs, until), Decision::Fire { due: until });
        }
    }
    // It failed after hours.
    let mut failed = long;
    failed.state = RunState::Failed;
    let until = at(5, 0) + SECOND;
    assert_eq!(due(&flow, &[failed], at(5, 0)), Decision::Wait { until });
    const { assert!(STREAM_WAIT_MS << (STREAM_RUNS - 1) >= STREAM_WAIT_MS_MAX) };
}

#[test]
fn a_thousand_flows_with_the_same_interval_are_spread_over_seconds() {
    for (every, seconds) in [(MINUTE, 10), (30 * SECOND, 6), (24 * HOUR, 10)] {
        let mut by_second = vec![0; 10];
        for number in 0..1_000 {
            let it = offset(&format!("flow-{number}"), every);
            by_second[usize::try_from(it / SECOND).unwrap()] += 1;
        }
        let used = by_second.iter().filter(|count| **count > 0).count();
        assert_eq!(used, seconds, "{every}: {by_second:?}");
        // None of the seconds has much more than its share.
        let most = by_second.iter().max().unwrap();
        assert!(*most < 1_500 / seconds, "{every}: {by_second:?}");
    }
    // Neither do they fire in the same instant within it.
    let instants: BTreeSet<u64> = (0..1_000)
        .map(|number| offset(&format!("flow-{number}"), MINUTE))
        .collect();
    assert!(instants.len() > 900, "{}", instants.len());
}

#[test]
fn the_offset_is_small_and_always_the_same() {
    for every in [1, 100, 1_000, 30_000, 86_400_000] {
        for name in ["orders", "b", "c"] {
            let it = offset(name, every);
            assert_eq!(it, offset(name, every));
            assert!(it <= every / 5 && it < OFFSET_MS_MAX, "{it} {every}");
        }
    }
}
