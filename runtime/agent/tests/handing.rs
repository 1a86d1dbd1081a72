//! How messages are handed to the step, by the agent's real mind in a simulated world.

mod simulated;

use serde_json::{Value, json};
use simulated::{Cut, Setting, World, expected, ids};
use towpath_protocol::handing::{Handing, Misfit, Validation};
use towpath_protocol::manifest::Kind;

/// What to do is a text, if it is said.
fn validate(misfit: Misfit) -> Handing {
    let schema = json!({ "type": "object", "properties": { "do": { "type": "string" } } });
    Handing {
        validate: Some(Validation { schema, misfit }),
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
        assert!(reason.contains("`.do`") && reason.contains("string"), "{reason}");
        assert_eq!(letter["attempts"][0]["attempt"], 1, "no other attempt was made");
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
            let invalid = world.broker.dead.iter().filter(|it| it["cause"] == "invalid");
            let invalid: Vec<&Value> = invalid.map(|it| &it["message"]["id"]).collect();
            assert!(!invalid.is_empty(), "seed {seed}");
            let fifth = parents[4].to_string();
            assert!(invalid.iter().all(|id| **id == fifth), "seed {seed}: {invalid:?}");
        }
    }
}
