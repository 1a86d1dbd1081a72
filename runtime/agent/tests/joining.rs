//! Outputs that are made from several messages, by the agent's real mind in a simulated world.

mod simulated;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use simulated::{Cut, Setting, Told, World};
use towpath_protocol::MessageId;
use towpath_protocol::handing::{Batch, Handing};
use towpath_protocol::manifest::Kind;
use towpath_protocol::runs::Entry;

/// A second, in turns.
const SECOND: usize = 50;

/// A world in which a step puts messages together that are handed over together.
fn world(setting: Setting, max: u32, bodies: &[Value]) -> (World, Vec<MessageId>) {
    let handing = Handing {
        batch: Some(Batch {
            max,
            wait_ms: 1_000,
        }),
        ..Handing::default()
    };
    World::handing(setting, handing, bodies)
}

fn setting(once: bool, cut: Cut, replicas: u32) -> Setting {
    Setting {
        once,
        concurrency: 10,
        ..Setting::once(cut, replicas)
    }
}

/// Messages of three keys.
fn of_three_keys(count: u64) -> Vec<Value> {
    (0..count).map(|n| json!({"key": n % 3})).collect()
}

fn sizes(world: &World) -> Vec<usize> {
    world.together.iter().map(Vec::len).collect()
}

/// The outputs by their ids: what each was made from. Published twice, an output is the same.
#[track_caller]
fn outputs(world: &World) -> BTreeMap<String, BTreeSet<String>> {
    let mut outputs = BTreeMap::new();
    for output in &world.broker.outputs {
        let id = output["id"].as_str().expect("an id").to_owned();
        let parts: Vec<MessageId> = serde_json::from_value(output["body"][0].clone()).expect("ids");
        let joint = MessageId::of_several(&parts);
        assert_eq!(id, MessageId::derive(joint, "step", "out", 0).to_string());
        assert!(
            parts.contains(
                &output["parent"]
                    .to_string()
                    .trim_matches('"')
                    .parse()
                    .expect("an id")
            ),
            "its parent is one of them"
        );
        let parts: BTreeSet<String> = parts.iter().map(ToString::to_string).collect();
        let before = outputs.insert(id, parts.clone());
        assert!(before.is_none_or(|before| before == parts));
    }
    outputs
}

/// In how many outputs each message is.
fn times(world: &World) -> BTreeMap<String, usize> {
    let mut times = BTreeMap::new();
    for id in outputs(world).into_values().flatten() {
        *times.entry(id).or_default() += 1;
    }
    times
}

fn dead(world: &World) -> BTreeSet<String> {
    let dead = world.broker.dead.iter();
    dead.map(|letter| letter["message"]["id"].as_str().expect("an id").to_owned())
        .collect()
}

/// Each message is in so many outputs, unless it was given up.
#[track_caller]
fn check(world: &World, parents: &[MessageId], exactly_once: bool, what: &str) {
    let (times, dead) = (times(world), dead(world));
    for id in parents {
        let id = id.to_string();
        let count = times.get(&id).copied().unwrap_or(0);
        let is_dead = dead.contains(&id);
        assert!(count > 0 || is_dead, "{what}: {id} is lost");
        assert!(
            !exactly_once || count + usize::from(is_dead) == 1,
            "{what}: {id} is in {count} outputs"
        );
    }
}

#[test]
fn messages_that_are_put_together_are_in_one_output_each() {
    for once in [false, true] {
        let bodies = of_three_keys(20);
        let (mut world, parents) = world(setting(once, Cut::Never, 1), 10, &bodies);
        world.run();
        assert_eq!(sizes(&world), [10, 10]);
        assert_eq!(world.broker.outputs.len(), 6, "three keys, two windows");
        check(&world, &parents, true, "nothing broke");
    }
}

#[test]
fn the_same_messages_make_the_same_output() {
    let bodies = of_three_keys(9);
    let run = |delivery| {
        let setting = Setting {
            batch: delivery,
            ..setting(false, Cut::Never, 1)
        };
        let (mut world, _) = world(setting, 9, &bodies);
        world.run();
        outputs(&world)
    };
    assert_eq!(run(1), run(9));
}

#[test]
fn what_fails_makes_void_what_it_shares_and_the_others_come_again_at_once() {
    for once in [false, true] {
        for what in ["permanent", "fail_once"] {
            let mut bodies = of_three_keys(9);
            bodies[3] = json!({"key": 0, "do": what});
            let (mut world, parents) = world(setting(once, Cut::Never, 1), 9, &bodies);
            world.run();
            // The two that had the same key, and the one that failed, by itself.
            let mut sizes = sizes(&world);
            assert_eq!(sizes.remove(0), 9);
            sizes.sort_unstable();
            assert_eq!(sizes, [1, 2], "{what}");
            check(&world, &parents, true, what);
            let is_given_up = what == "permanent";
            assert_eq!(dead(&world).len(), usize::from(is_given_up));
            assert_eq!(world.report().counters.failed, 1 + u64::from(is_given_up));
            assert_eq!(world.broker.outputs.len(), 4 - usize::from(is_given_up));
        }
    }
}

#[test]
fn whoever_shares_an_output_is_settled_with_the_others() {
    // Each shares an output with its neighbours, so all of them are bound.
    let chain = |what: Option<&str>| {
        let mut bodies: Vec<Value> = (0..6).map(|_| json!({"key": 1, "chain": true})).collect();
        if let Some(what) = what {
            bodies[5]["do"] = json!(what);
        }
        let (mut world, parents) = world(setting(false, Cut::Never, 1), 6, &bodies);
        world.run();
        (world, parents)
    };
    let (world, parents) = chain(None);
    assert_eq!(sizes(&world), [6]);
    assert_eq!(world.broker.outputs.len(), 5);
    check(&world, &parents, false, "all done");
    let (world, parents) = chain(Some("permanent"));
    let mut sizes = sizes(&world);
    sizes.sort_unstable();
    assert_eq!(sizes, [1, 5, 6]);
    assert_eq!(world.broker.outputs.len(), 4, "nothing of the first try");
    check(&world, &parents, false, "one failed");
}

#[test]
fn an_output_that_cannot_be_sent_is_a_failure_of_all_it_was_made_from() {
    let mut bodies = of_three_keys(6);
    bodies[0]["do"] = json!("large");
    let (mut world, parents) = world(setting(false, Cut::Never, 1), 6, &bodies);
    world.run();
    // Alone, each makes one that is small enough.
    assert_eq!(sizes(&world), [6, 1, 1]);
    check(&world, &parents, true, "too large together");
    assert_eq!(dead(&world).len(), 0);
}

#[test]
fn who_names_a_message_that_is_not_in_its_hands_is_started_again() {
    let bodies = [json!({"key": 1, "do": "stranger"})];
    let (mut world, parents) = world(setting(false, Cut::Never, 1), 6, &bodies);
    world.run();
    assert_eq!(world.broker.outputs.len(), 0);
    let letter = &world.broker.dead[0];
    assert_eq!(letter["message"]["id"], parents[0].to_string());
    let reason = letter["reason"].as_str().expect("a text");
    assert!(reason.contains("not in its hands"), "{reason}");
}

#[test]
fn why_knows_what_became_of_a_message_that_was_put_together_with_others() {
    let bodies = of_three_keys(3).into_iter().map(|_| json!({"key": 1}));
    let (mut world, parents) = world(
        setting(false, Cut::Never, 1),
        3,
        &bodies.collect::<Vec<_>>(),
    );
    world.run();
    let output = world.broker.outputs[0]["id"].clone();
    let lead = world.broker.outputs[0]["parent"].clone();
    for id in parents {
        let found = world.find(id);
        let events = found["events"].as_array().expect("a list").clone();
        let is_told = events.iter().any(|event| {
            event["what"]["joined"]["output"] == output
                || (event["id"] == output && event["what"]["emitted"]["parent"] == lead)
        });
        assert!(is_told, "{found:#}");
    }
}

/// Of every kind.
fn mixed() -> Vec<Value> {
    let mut bodies = of_three_keys(15);
    bodies[4]["do"] = json!("fail_once");
    bodies[10]["do"] = json!("permanent");
    bodies[12] = json!({});
    bodies
}

#[track_caller]
fn nothing_is_lost(cut: Cut, once: bool, replicas: u32) -> usize {
    let bodies = mixed();
    let (mut world, mut parents) = world(setting(once, cut, replicas), 6, &bodies);
    world.run();
    // One of them is none that is put together.
    let plain = parents.remove(12);
    let is_its = |output: &Value| output["parent"] == plain.to_string();
    assert!(world.broker.outputs.iter().any(is_its), "{cut:?}");
    world.broker.outputs.retain(|output| !is_its(output));
    // An agent that lives knows what it has sent.
    let exactly_once = matches!(cut, Cut::Never | Cut::Connection(_) | Cut::Step(_));
    check(
        &world,
        &parents,
        exactly_once,
        &format!("{cut:?}, once {once}"),
    );
    assert!(dead(&world).contains(&parents[10].to_string()), "{cut:?}");
    world.calls
}

#[test]
fn every_message_is_in_an_output_wherever_it_is_cut() {
    let cuts: [fn(usize) -> Cut; 3] = [Cut::Agent, Cut::Connection, Cut::Step];
    for cut in cuts {
        for once in [false, true] {
            for at in 1.. {
                if nothing_is_lost(cut(at), once, 1) < at {
                    break;
                }
            }
        }
    }
}

#[test]
fn every_message_is_in_an_output_whatever_breaks() {
    for seed in 1..=100 {
        for once in [false, true] {
            nothing_is_lost(Cut::Chance(seed), once, 2);
        }
    }
}

#[test]
fn a_run_is_not_done_before_what_was_made_of_it_with_others_is_known() {
    let run = |cut| {
        let bodies = of_three_keys(12);
        let setting = Setting {
            track: true,
            kind: Kind::Action,
            ..setting(false, cut, 1)
        };
        let (mut world, parents) = world(setting, 6, &bodies);
        world.run();
        let mut known = BTreeSet::new();
        let mut done = BTreeSet::new();
        let outputs = outputs(&world);
        for told in &world.broker.told {
            match told {
                Told::Run((_, Entry::Emitted { id, .. })) => {
                    known.extend(outputs[&id.to_string()].iter().cloned());
                }
                Told::Run((run, Entry::Done { id, .. })) => {
                    assert_eq!(run, id, "each is its own run");
                    assert!(known.contains(&id.to_string()), "{cut:?}: {id}");
                    done.insert(*id);
                }
                told => panic!("{told:?}"),
            }
        }
        assert_eq!(done, parents.into_iter().collect(), "{cut:?}");
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
fn who_is_to_leave_finishes_what_is_put_together() {
    let leaving: [fn(&mut World); 2] = [World::pause, World::drain];
    for leave in leaving {
        for after in 1..40 {
            let mut bodies = of_three_keys(6);
            bodies[3]["do"] = json!("fail_once");
            let (mut world, _) = world(setting(false, Cut::Never, 1), 6, &bodies);
            world.run_for(after);
            leave(&mut world);
            world.run_for(4 * SECOND);
            let counts = times(&world);
            assert!(
                counts.values().all(|count| *count == 1),
                "{after}: {counts:?}"
            );
        }
    }
}
