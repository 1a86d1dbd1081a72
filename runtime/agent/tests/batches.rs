//! Messages that are handed over together, by the agent's real mind in a simulated world.

mod simulated;

use std::collections::BTreeMap;

use serde_json::{Value, json};
use simulated::{Cut, Setting, World, expected, ids};
use towpath_protocol::MessageId;
use towpath_protocol::handing::{Batch, Handing, Rate};
use towpath_protocol::manifest::Kind;

/// A second, in turns.
const SECOND: usize = 50;

fn batch(max: u32, wait_ms: u64) -> Handing {
    Handing {
        batch: Some(Batch { max, wait_ms }),
        ..Handing::default()
    }
}

/// A world with deliveries of so many messages.
fn world(
    once: bool,
    cut: Cut,
    delivery: usize,
    handing: Handing,
    bodies: &[Value],
) -> (World, Vec<MessageId>) {
    let setting = Setting {
        once,
        kind: Kind::Action,
        concurrency: handing.batch.map_or(1, |batch| batch.max),
        batch: delivery,
        ..Setting::once(cut, 1)
    };
    World::handing(setting, handing, bodies)
}

fn sizes(world: &World) -> Vec<usize> {
    world.together.iter().map(Vec::len).collect()
}

/// How often each message was handed over.
fn times(world: &World) -> BTreeMap<&str, usize> {
    let mut times = BTreeMap::new();
    for id in world.together.iter().flatten() {
        *times.entry(id.as_str()).or_default() += 1;
    }
    times
}

#[test]
fn as_many_as_there_are_are_handed_over_together_and_no_more_than_the_most() {
    for once in [false, true] {
        for delivery in [1, 4, 25] {
            let bodies = vec![json!({}); 25];
            let (mut world, parents) = world(once, Cut::Never, delivery, batch(10, 2_000), &bodies);
            world.run();
            assert_eq!(sizes(&world), [10, 10, 5], "once {once}, {delivery}");
            assert_eq!(ids(&world.broker.outputs), expected(&bodies, &parents));
            assert!(world.target.values().all(|times| *times == 1));
        }
    }
}

#[test]
fn a_lone_message_waits_for_others_no_longer_than_it_may() {
    for once in [false, true] {
        let bodies = [json!({})];
        let (mut world, parents) = world(once, Cut::Never, 1, batch(10, 3_000), &bodies);
        world.run_for(2 * SECOND);
        assert_eq!(sizes(&world), [0; 0], "it waits");
        let reason = world.report().reason.expect("it says why");
        assert!(reason.contains("it has 1 of 10 messages"), "{reason}");
        world.run_for(2 * SECOND);
        assert_eq!(sizes(&world), [1]);
        assert_eq!(ids(&world.broker.outputs), expected(&bodies, &parents));
    }
}

#[test]
fn no_wait_is_taken_for_a_broken_connection() {
    let bodies = [json!({})];
    let (mut world, _) = world(false, Cut::Never, 1, batch(10, 600_000), &bodies);
    world.run_for(599 * SECOND);
    assert_eq!(sizes(&world), [0; 0]);
    assert_eq!(world.broker.recycled, [""; 0]);
    world.run();
    assert_eq!(sizes(&world), [1]);
}

#[test]
fn who_can_hold_no_more_does_not_wait_for_more() {
    let bodies = vec![json!({}); 400];
    let (mut world, _) = world(false, Cut::Never, 1, batch(400, 600_000), &bodies);
    world.run_for(20 * SECOND);
    assert_eq!(sizes(&world), [256], "deliveries");
}

#[test]
fn who_is_to_leave_waits_for_no_more_messages() {
    let bodies = vec![json!({}); 6];
    let leaving: [fn(&mut World); 2] = [World::pause, World::drain];
    for leave in leaving {
        let (mut world, parents) = world(false, Cut::Never, 2, batch(10, 60_000), &bodies);
        world.run_for(SECOND);
        assert_eq!(sizes(&world), [0; 0]);
        leave(&mut world);
        world.run_for(SECOND);
        assert_eq!(sizes(&world), [6]);
        assert_eq!(ids(&world.broker.outputs), expected(&bodies, &parents));
        assert!(world.is_settled());
    }
    // What was only claimed goes back to the queue, where others have it sooner.
    let (mut world, _) = world(true, Cut::Never, 2, batch(10, 60_000), &bodies);
    world.run_for(SECOND);
    world.drain();
    world.run_for(SECOND);
    assert_eq!(sizes(&world), [0; 0]);
    assert!(!world.is_settled(), "all of it is in the queue");
}

#[test]
fn what_fails_in_a_batch_is_tried_alone_before_it_is_given_up() {
    for once in [false, true] {
        for (what, others_are_blamed) in [("spoils", true), ("permanent", false)] {
            let mut bodies = vec![json!({}); 10];
            bodies[3] = json!({ "do": what });
            let (mut world, parents) = world(once, Cut::Never, 5, batch(10, 1_000), &bodies);
            world.run();
            let alone = if others_are_blamed { 10 } else { 1 };
            assert_eq!(sizes(&world), [vec![10], vec![1; alone]].concat(), "{what}");
            assert_eq!(ids(&world.broker.outputs), expected(&bodies, &parents));
            assert_eq!(world.broker.outputs.len(), 18, "each once");
            assert_eq!(world.broker.dead.len(), 1, "{:#?}", world.broker.dead);
            let letter = &world.broker.dead[0];
            assert_eq!(letter["message"]["id"], parents[3].to_string());
            assert_eq!(letter["cause"], "permanent");
            let attempts = letter["attempts"].as_array().expect("a list");
            let numbers: Vec<_> = attempts.iter().map(|it| &it["attempt"]).collect();
            assert_eq!(numbers, [1, 2], "{letter:#}");
        }
    }
}

#[test]
fn a_batch_that_kills_the_process_is_taken_apart_and_costs_its_neighbours_no_attempt() {
    for once in [false, true] {
        let mut bodies = vec![json!({}); 8];
        bodies[2] = json!({ "do": "poison" });
        let (mut world, parents) = world(once, Cut::Never, 4, batch(8, 1_000), &bodies);
        world.run();
        let poison = parents[2].to_string();
        assert_eq!(sizes(&world)[..2], [8, 1]);
        assert!(sizes(&world)[1..].iter().all(|size| *size == 1));
        for (id, times) in times(&world) {
            let expect = if id == poison { 4 } else { 2 };
            assert_eq!(times, expect, "{id}: together, and alone for each attempt");
        }
        assert_eq!(ids(&world.broker.outputs), expected(&bodies, &parents));
        assert_eq!(world.broker.dead.len(), 1, "{:#?}", world.broker.dead);
        let letter = &world.broker.dead[0];
        assert_eq!(letter["message"]["id"], poison);
        assert_eq!(letter["cause"], "attempts");
        assert_eq!(letter["attempts"].as_array().map(Vec::len), Some(3));
    }
}

#[test]
fn a_batch_counts_as_one_for_the_rate() {
    for once in [false, true] {
        let bodies = vec![json!({}); 60];
        let handing = Handing {
            rate: Some(Rate {
                count: 1,
                per_ms: 1_000,
            }),
            ..batch(10, 3_000)
        };
        let (mut world, parents) = world(once, Cut::Never, 5, handing, &bodies);
        world.share = Some(1.0);
        let begin = world.report().at;
        while !world.is_settled() {
            world.run_for(1);
        }
        let took = world.report().at - begin;
        assert!((5_000..9_000).contains(&took), "{took} ms");
        assert_eq!(sizes(&world), [10; 6]);
        assert_eq!(ids(&world.broker.outputs), expected(&bodies, &parents));
    }
}

/// Of every kind.
fn mixed() -> Vec<Value> {
    let mut bodies = vec![json!({}); 24];
    bodies[3] = json!({ "do": "spoils" });
    bodies[8] = json!({ "do": "flood" });
    bodies[9] = json!({ "do": "fail_once" });
    bodies[15] = json!({ "do": "permanent" });
    bodies
}

#[track_caller]
fn nothing_is_lost(cut: Cut, once: bool, bodies: &[Value]) -> usize {
    let (mut world, parents) = world(once, cut, 3, batch(6, 100), bodies);
    world.run();
    let mut seen = ids(&world.broker.outputs);
    for letter in &world.broker.dead {
        // Whoever's process died too often while it was alone in hand is a dead letter.
        let id = letter["message"]["id"].as_str().expect("an id");
        let index = parents.iter().position(|it| it.to_string() == id);
        let index = index.expect("one of ours");
        seen.extend(expected(&bodies[index..=index], &parents[index..=index]));
    }
    assert_eq!(seen, expected(bodies, &parents), "{cut:?}");
    for index in [3, 15] {
        let id = parents[index].to_string();
        let is_dead = world.broker.dead.iter().any(|it| it["message"]["id"] == id);
        assert!(is_dead, "{cut:?}: {index} is told");
    }
    world.calls
}

#[test]
fn nothing_of_a_batch_is_lost_whatever_breaks() {
    for seed in 1..=100 {
        for once in [false, true] {
            nothing_is_lost(Cut::Chance(seed), once, &mixed());
        }
    }
}

#[test]
fn nothing_of_a_batch_is_lost_wherever_it_is_cut() {
    let cuts: [fn(usize) -> Cut; 3] = [Cut::Agent, Cut::Connection, Cut::Step];
    for cut in cuts {
        for at in 1.. {
            if nothing_is_lost(cut(at), at % 2 == 0, &mixed()) < at {
                break;
            }
        }
    }
}
