//! What agents report of runs, in a simulated world where anything may be cut off anywhere.

mod simulated;

use std::collections::BTreeSet;

use serde_json::{Value, json};
use simulated::{Cut, Setting, Told, World, expected, ids};
use towpath_protocol::MessageId;
use towpath_protocol::manifest::Kind;
use towpath_protocol::runs::Entry;

fn bodies(count: usize) -> Vec<Value> {
    let mut bodies = vec![json!({}); count];
    bodies[2] = json!({"do": "fail_once"});
    bodies[3] = json!({"do": "permanent"});
    bodies[5] = json!({"do": "flood"});
    bodies
}

/// Looks at what was told, in its order, as the control plane does: a message is known to be open
/// from when it is reported to be emitted.
#[track_caller]
fn check(world: &World, bodies: &[Value], parents: &[MessageId], what: &str) {
    let is_there = ids(&world.broker.outputs);
    let dead: BTreeSet<&str> = world
        .broker
        .dead
        .iter()
        .filter_map(|letter| letter["message"]["id"].as_str())
        .collect();
    let mut emitted = BTreeSet::new();
    let mut done = BTreeSet::new();
    for told in &world.broker.told {
        match told {
            Told::Run((run, Entry::Emitted { id, way, .. })) => {
                assert_eq!(*way, 0);
                assert!(parents.contains(run), "{what}: {run} is a run");
                // What is waited for is there to be waited for.
                let id = id.to_string();
                assert!(is_there.contains(&id), "{what}: {id} is nowhere");
                emitted.insert(id);
            }
            Told::Run((run, Entry::Done { id, replays })) => {
                assert_eq!((run, *replays), (id, 0), "each is its own run");
                let index = parents.iter().position(|parent| parent == id);
                let index = index.expect("one of ours");
                let made = expected(&bodies[index..=index], &parents[index..=index]);
                let missing: Vec<_> = made.difference(&emitted).collect();
                assert!(
                    missing.is_empty(),
                    "{what}: {id} is done before {missing:?} are known to be open"
                );
                done.insert(id.to_string());
            }
            Told::Run((_, Entry::Lost)) => panic!("{what}: nothing was refused"),
            Told::Checkpoint(_) => {}
        }
    }
    for parent in parents {
        let id = parent.to_string();
        assert!(
            done.contains(&id) || dead.contains(id.as_str()),
            "{what}: {id} is settled, and nobody was told"
        );
    }
}

#[test]
fn a_run_is_finished_exactly_when_everything_that_came_of_it_is_settled() {
    let bodies = bodies(12);
    let run = |cut| {
        let (mut world, parents) = World::of(Setting::tracked(cut, Kind::Action, 1), &bodies);
        world.run();
        check(&world, &bodies, &parents, &format!("{cut:?}"));
        world.calls
    };
    let calls = run(Cut::Never);
    for at in 1..=calls {
        run(Cut::Agent(at));
        run(Cut::Connection(at));
        run(Cut::Step(at));
    }
}

#[test]
fn it_is_so_whatever_breaks_and_with_several_replicas() {
    for seed in 1..=150 {
        let bodies = bodies(30);
        let setting = Setting::tracked(Cut::Chance(seed), Kind::Action, 3);
        let (mut world, parents) = World::of(setting, &bodies);
        world.run();
        check(&world, &bodies, &parents, &format!("seed {seed}"));
    }
}

#[test]
fn with_once_it_is_so_too() {
    for seed in 1..=100 {
        let bodies = bodies(30);
        let setting = Setting {
            once: true,
            ..Setting::tracked(Cut::Chance(seed), Kind::Action, 2)
        };
        let (mut world, parents) = World::of(setting, &bodies);
        world.run();
        check(&world, &bodies, &parents, &format!("seed {seed}"));
    }
}

/// Of a trigger: nothing that it brought in before a checkpoint is unknown once that is saved,
/// because nobody will bring it in again; and all of it is known when the tick is done.
#[track_caller]
fn check_tick(cut: Cut) -> usize {
    let bodies = [json!({"why": "schedule", "due": 1})];
    let (mut world, parents) = World::of(Setting::tracked(cut, Kind::Poll, 1), &bodies);
    world.run();
    let made = |number: u64| MessageId::from_source("flow", "step", "out", &number.to_string());
    let is_there = ids(&world.broker.outputs);
    let mut emitted = BTreeSet::new();
    let mut is_done = false;
    for told in &world.broker.told {
        match told {
            Told::Run((run, Entry::Emitted { id, .. })) => {
                assert_eq!(*run, parents[0]);
                assert!(is_there.contains(&id.to_string()), "{cut:?}");
                emitted.insert(*id);
            }
            Told::Checkpoint(number) => {
                let missing = (0..*number).filter(|one| !emitted.contains(&made(*one)));
                assert_eq!(missing.count(), 0, "{cut:?}: saved at {number}");
            }
            Told::Run((_, Entry::Done { id, .. })) => {
                assert_eq!(*id, parents[0]);
                assert_eq!(emitted.len(), 30, "{cut:?}");
                is_done = true;
            }
            Told::Run((_, Entry::Lost)) => panic!("nothing was refused"),
        }
    }
    assert!(is_done, "{cut:?}");
    world.calls
}

#[test]
fn what_a_trigger_brought_in_is_known_before_its_checkpoint_is_saved() {
    let calls = check_tick(Cut::Never);
    for at in 1..=calls {
        check_tick(Cut::Agent(at));
        check_tick(Cut::Connection(at));
        check_tick(Cut::Step(at));
    }
}

#[test]
fn a_full_queue_of_reports_stops_no_message() {
    let bodies = bodies(12);
    let setting = Setting::tracked(Cut::Never, Kind::Action, 1);
    let (mut world, parents) = World::of(setting, &bodies);
    world.broker.refuses_reports = true;
    world.run();
    assert_eq!(ids(&world.broker.outputs), expected(&bodies, &parents));
    assert!(world.broker.told.is_empty());
    // As soon as there is room, it is said of which runs something was lost.
    world.broker.refuses_reports = false;
    world.run_for(400);
    let lost: BTreeSet<MessageId> = world
        .broker
        .told
        .iter()
        .filter_map(|told| match told {
            Told::Run((run, Entry::Lost)) => Some(*run),
            _ => None,
        })
        .collect();
    // The dead one says it itself.
    let all: BTreeSet<MessageId> = parents.iter().copied().collect();
    let dead = parents[3];
    assert_eq!(lost, all.into_iter().filter(|id| *id != dead).collect());
    world.run_for(600);
    let count = world.broker.told.len();
    world.run_for(600);
    assert_eq!(world.broker.told.len(), count, "it is said once");
}

#[test]
fn without_track_nothing_is_reported() {
    let bodies = bodies(12);
    let setting = Setting {
        track: false,
        ..Setting::tracked(Cut::Never, Kind::Action, 1)
    };
    let (mut world, _) = World::of(setting, &bodies);
    world.run();
    assert!(world.broker.told.is_empty());
}

#[test]
fn a_cancelled_run_is_not_tried_again() {
    let bodies = [json!({"why": "schedule", "due": 1, "do": "slow"})];
    // Cut off at any moment of it, it is left in the end.
    for at in 0..60 {
        let cut = match at % 3 {
            0 => Cut::Agent(at),
            1 => Cut::Connection(at),
            _ => Cut::Step(at),
        };
        let (mut world, parents) = World::of(Setting::tracked(cut, Kind::Poll, 1), &bodies);
        world.set_step_idle(true);
        world.run_for(30);
        let before = world.broker.news.len();
        world.cancel(parents[0]);
        world.run();
        let news = |word: &str| {
            let news = world.broker.news[before..].iter();
            news.filter(|news| news.get(word).is_some()).count()
        };
        assert!(news("run_cancelled") > 0, "{cut:?}");
        assert_eq!((news("run_ended"), news("run_retries")), (0, 0), "{cut:?}");
        assert!(world.broker.outputs.is_empty() && world.broker.dead.is_empty());
        let done = world.broker.told.iter().filter(
            |told| matches!(told, Told::Run((_, Entry::Done { id, .. })) if *id == parents[0]),
        );
        assert!(done.count() > 0, "{cut:?}: it is settled, and that is said");
    }
}
