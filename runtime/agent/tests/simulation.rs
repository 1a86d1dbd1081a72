//! The agent's real mind in a simulated world where things break by chance.

mod simulated;

use serde_json::{Value, json};
use simulated::{Cut, World, expected, ids};
use towpath_protocol::manifest::Kind;

#[test]
fn nothing_is_lost_whatever_breaks() {
    for seed in 1..=300 {
        let mut bodies: Vec<Value> = vec![json!({}); 40];
        bodies[7] = json!({"do": "flood"});
        bodies[11] = json!({"do": "fail_once"});
        bodies[12] = json!({"do": "fail_once"});
        let (mut world, parents) = World::new(Cut::Chance(seed), Kind::Action, 8, &bodies, 5);
        world.run();
        let expect = expected(&bodies, &parents);
        let mut seen = ids(&world.broker.outputs);
        // A message whose step died three times while it was alone in hand is a dead letter.
        for letter in &world.broker.dead {
            let id = letter["message"]["id"].as_str().expect("an id");
            let index = parents
                .iter()
                .position(|parent| parent.to_string() == id)
                .expect("one of ours");
            seen.extend(expected(&bodies[index..=index], &parents[index..=index]));
        }
        assert_eq!(seen, expect, "seed {seed}");
    }
}

#[test]
fn neighbours_of_a_poison_message_lose_no_attempt() {
    for position in [0, 3, 9] {
        let mut bodies: Vec<Value> = vec![json!({}); 10];
        bodies[position] = json!({"do": "poison"});
        let (mut world, parents) = World::new(Cut::Never, Kind::Action, 8, &bodies, 4);
        world.run();
        assert!(world.most_in_hand() > 1, "it had company");
        assert_eq!(ids(&world.broker.outputs), expected(&bodies, &parents));
        assert_eq!(world.broker.dead.len(), 1, "{:#?}", world.broker.dead);
        assert_eq!(
            world.broker.dead[0]["message"]["id"],
            parents[position].to_string()
        );
        assert_eq!(world.broker.dead[0]["cause"], "attempts");
        assert_eq!(
            world.broker.dead[0]["attempts"].as_array().map(Vec::len),
            Some(3)
        );
    }
}

#[test]
fn what_fails_together_comes_back_together() {
    let bodies = vec![json!({"do": "fail_once"}); 6];
    let (mut world, parents) = World::new(Cut::Never, Kind::Action, 6, &bodies, 6);
    world.run();
    assert_eq!(ids(&world.broker.outputs), expected(&bodies, &parents));
}
