//! How messages are handed to the step, by the agent's real mind in a simulated world.

mod simulated;

use serde_json::{Value, json};
use simulated::{Cut, Setting, World, expected, ids};
use towpath_protocol::handing::{Handing, Misfit, Rate, Validation};
use towpath_protocol::manifest::Kind;

/// What to do is a text, if it is said.
fn validate(misfit: Misfit) -> Handing {
    let schema = json!({ "type": "object", "properties": { "do": { "type": "string" } } });
    Handing {
        validate: Some(Validation { schema, misfit }),
        ..Handing::default()
    }
}

/// Ten messages, the body of the fifth of which is not what the step takes.
fn with_a_misfit() -> Vec<Value> {
    let mut bodies = vec![json!({}); 10];
    bodies[4] = json!({ "do": 5 });
    bodies
}

fn setting(once: bool, cut: Cut) -> Setting {
    Setting {
        once,
        kind: Kind::Action,
        ..Setting::once(cut, 1)
    }
}

#[test]
fn a_misfit_is_a_dead_letter_before_the_step_sees_it() {
    for once in [false, true] {
        let bodies = with_a_misfit();
        let handing = validate(Misfit::DeadLetter);
        let (mut world, parents) = World::handing(setting(once, Cut::Never), handing, &bodies);
        world.run();
        let mut others = expected(&bodies, &parents);
        for id in expected(&bodies[4..5], &parents[4..5]) {
            assert!(others.remove(&id), "it has no outputs");
        }
        assert_eq!(ids(&world.broker.outputs), others);
        assert_eq!(world.broker.dead.len(), 1, "{:#?}", world.broker.dead);
        let letter = &world.broker.dead[0];
        assert_eq!(letter["message"]["id"], parents[4].to_string());
        assert_eq!(letter["cause"], "invalid");
        let reason = letter["reason"].as_str().expect("a reason");
        assert!(
            reason.contains("`.do`") && reason.contains("string"),
            "{reason}"
        );
        assert_eq!(
            letter["attempts"][0]["attempt"], 1,
            "no other attempt was made"
        );
        let counters = world.report().counters;
        assert_eq!((counters.invalid, counters.retried), (1, 0));
        if once {
            assert_eq!(world.broker.ledger.settled(), bodies.len());
        }
    }
}

#[test]
fn a_misfit_is_handed_over_when_it_is_only_to_be_told() {
    let bodies = with_a_misfit();
    let handing = validate(Misfit::Warn);
    let (mut world, parents) = World::handing(setting(false, Cut::Never), handing, &bodies);
    world.run();
    assert_eq!(ids(&world.broker.outputs), expected(&bodies, &parents));
    assert!(world.broker.dead.is_empty(), "{:#?}", world.broker.dead);
    assert_eq!(world.report().counters.invalid, 1);
}

#[test]
fn no_misfit_is_lost_whatever_breaks() {
    for seed in 1..=100 {
        for once in [false, true] {
            let bodies = with_a_misfit();
            let handing = validate(Misfit::DeadLetter);
            let setting = setting(once, Cut::Chance(seed));
            let (mut world, parents) = World::handing(setting, handing, &bodies);
            world.run();
            let invalid = world
                .broker
                .dead
                .iter()
                .filter(|it| it["cause"] == "invalid");
            let invalid: Vec<&Value> = invalid.map(|it| &it["message"]["id"]).collect();
            assert!(!invalid.is_empty(), "seed {seed}");
            let fifth = parents[4].to_string();
            assert!(
                invalid.iter().all(|id| **id == fifth),
                "seed {seed}: {invalid:?}"
            );
        }
    }
}

fn rate(count: u32, per_ms: u64) -> Handing {
    Handing {
        rate: Some(Rate { count, per_ms }),
        ..Handing::default()
    }
}

/// A second, in turns.
const SECOND: usize = 50;

fn written(world: &World) -> u32 {
    world.target.values().sum()
}

#[test]
fn what_waits_for_its_turn_waits_in_the_queue() {
    for once in [false, true] {
        let bodies = vec![json!({}); 60];
        let setting = Setting {
            batch: 1,
            ..setting(once, Cut::Never)
        };
        let (mut world, parents) = World::handing(setting, rate(5, 1_000), &bodies);
        world.run_for(2 * SECOND);
        assert_eq!(written(&world), 0, "nobody gave it a share");
        assert_eq!(world.report().held, 0);
        world.share = Some(5.0);
        world.run_for(4 * SECOND);
        assert!((17..=22).contains(&written(&world)), "{}", written(&world));
        let report = world.report();
        assert!(report.held <= 12, "two seconds' worth: {}", report.held);
        let reason = report.reason.expect("it says why");
        assert!(reason.contains("held back by its rate of 5/s"), "{reason}");
        world.run();
        assert_eq!(ids(&world.broker.outputs), expected(&bodies, &parents));
        assert!(world.target.values().all(|times| *times == 1));
        assert!(
            world.broker.recycled.is_empty(),
            "{:?}",
            world.broker.recycled
        );
    }
}

#[test]
fn of_a_slow_step_a_replica_takes_what_it_may_hand_over_and_no_more() {
    for once in [false, true] {
        let bodies = vec![json!({}); 8];
        let setting = Setting {
            batch: 4,
            ..setting(once, Cut::Never)
        };
        let (mut world, parents) = World::handing(setting, rate(1, 60_000), &bodies);
        world.share = Some(1.0 / 60.0);
        let begin = world.report().at;
        for _ in 0..7 * 60 {
            world.run_for(SECOND);
            assert!(world.report().held <= 4, "{:?}", world.report());
        }
        world.run();
        let took = world.report().at - begin;
        assert!(took >= 8 * 60_000, "{took} ms for eight");
        assert_eq!(ids(&world.broker.outputs), expected(&bodies, &parents));
        assert!(world.target.values().all(|times| *times == 1));
        assert!(
            world.broker.recycled.is_empty(),
            "{:?}",
            world.broker.recycled
        );
    }
}

#[test]
fn no_message_of_a_step_with_a_rate_is_lost_whatever_breaks() {
    for seed in 1..=60 {
        for (once, per_ms) in [(false, 1_000), (true, 1_000), (false, 20_000)] {
            let bodies = vec![json!({}); 12];
            let setting = setting(once, Cut::Chance(seed));
            let (mut world, parents) = World::handing(setting, rate(10, per_ms), &bodies);
            world.share = Some(10_000.0 / per_ms as f64);
            world.run();
            let mut seen = ids(&world.broker.outputs);
            for letter in &world.broker.dead {
                // Whoever died too often while alone in hand is a dead letter.
                let id = letter["message"]["id"].as_str().expect("an id");
                let index = parents.iter().position(|it| it.to_string() == id);
                let index = index.expect("one of ours");
                seen.extend(expected(&bodies[index..=index], &parents[index..=index]));
            }
            assert_eq!(seen, expected(&bodies, &parents), "seed {seed}");
        }
    }
}
