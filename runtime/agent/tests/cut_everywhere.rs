//! Cut off at every single call: nothing is lost, and nothing is made up.

mod simulated;

use std::collections::BTreeSet;

use serde_json::{Value, json};
use simulated::{Cut, Setting, World, expected, ids};
use towpath_protocol::MessageId;
use towpath_protocol::manifest::Kind;

fn bodies() -> Vec<Value> {
    let mut bodies = vec![json!({}); 7];
    bodies.insert(2, json!({"do": "fail_once"}));
    bodies.insert(3, json!({"do": "permanent"}));
    bodies.insert(5, json!({"do": "flood"}));
    bodies
}

#[track_caller]
fn check(cut: Cut, once: bool) -> usize {
    let bodies = bodies();
    let setting = Setting {
        once,
        ..Setting::once(cut, 1)
    };
    let (mut world, parents) = World::of(setting, &bodies);
    world.run();
    if once {
        assert!(
            world.target.values().all(|times| *times == 1),
            "{cut:?}: {:?}",
            world.target
        );
        assert_eq!(world.broker.ledger.settled(), bodies.len(), "{cut:?}");
        assert_eq!(world.broker.ledger.held(), 0, "{cut:?}");
    }
    assert_eq!(
        ids(&world.broker.outputs),
        expected(&bodies, &parents),
        "{cut:?}"
    );
    assert!(
        world
            .broker
            .outputs
            .iter()
            .all(|output| output["body"] != "void"),
        "{cut:?}"
    );
    let dead: BTreeSet<_> = world
        .broker
        .dead
        .iter()
        .map(|letter| letter["message"]["id"].to_string())
        .collect();
    assert_eq!(
        dead,
        BTreeSet::from([format!("\"{}\"", parents[3])]),
        "{cut:?}"
    );
    world.calls
}

#[test]
fn nothing_is_lost_wherever_it_is_cut() {
    let calls = check(Cut::Never, false);
    assert!(calls > 50, "the run is long enough to be cut: {calls}");
    for at in 1..=calls {
        check(Cut::Agent(at), false);
        check(Cut::Connection(at), false);
        check(Cut::Step(at), false);
    }
}

/// A step that asks its target before it repeats anything writes everything exactly once.
#[test]
fn nothing_is_lost_wherever_it_is_cut_with_once() {
    let calls = check(Cut::Never, true);
    assert!(calls > 50, "the run is long enough to be cut: {calls}");
    for at in 1..=calls {
        check(Cut::Agent(at), true);
        check(Cut::Connection(at), true);
        check(Cut::Step(at), true);
    }
}

#[test]
fn without_a_cut_everything_happens_once() {
    let bodies = bodies();
    let (mut world, parents) = World::new(Cut::Never, Kind::Action, 4, &bodies, 3);
    world.run();
    assert_eq!(
        world.broker.outputs.len(),
        expected(&bodies, &parents).len()
    );
    assert_eq!(world.broker.dead.len(), 1);
}

#[test]
fn a_lost_connection_makes_nobody_do_anything_twice() {
    let calls = check(Cut::Never, false);
    for at in 1..=calls {
        let bodies = vec![json!({}); 8];
        let (mut world, parents) = World::new(Cut::Connection(at), Kind::Action, 4, &bodies, 3);
        world.run();
        let outputs = world.broker.outputs.len();
        let expected = expected(&bodies, &parents).len();
        // What was published and not confirmed is published again; that is a few of all.
        assert!(
            outputs <= expected + 12,
            "cut at {at}: {outputs} outputs for {expected}"
        );
    }
}

#[track_caller]
fn check_trigger(cut: Cut) -> usize {
    let tick = json!({"why": "schedule", "due": 1});
    let (mut world, runs) = World::new(cut, Kind::Poll, 1, &[tick.clone(), tick], 1);
    world.run();
    let expect: BTreeSet<String> = (0..30)
        .map(|number| {
            MessageId::from_source("flow", "step", "out", &number.to_string()).to_string()
        })
        .collect();
    assert_eq!(ids(&world.broker.outputs), expect, "{cut:?}");
    let mut emitted = BTreeSet::new();
    let mut ended = BTreeSet::new();
    for news in &world.broker.news {
        if let Some(value) = news["checkpoint"]["value"].as_u64() {
            emitted.insert(value);
        }
        ended.extend(news["run_ended"]["run"].as_str().map(str::to_owned));
    }
    assert!(
        emitted.contains(&30),
        "{cut:?}: the last checkpoint is saved: {emitted:?}"
    );
    assert_eq!(
        ended,
        runs.iter().map(ToString::to_string).collect(),
        "{cut:?}"
    );
    world.calls
}

#[test]
fn a_trigger_loses_nothing_wherever_it_is_cut() {
    let calls = check_trigger(Cut::Never);
    for at in 1..=calls {
        check_trigger(Cut::Agent(at));
        check_trigger(Cut::Connection(at));
        check_trigger(Cut::Step(at));
    }
}
