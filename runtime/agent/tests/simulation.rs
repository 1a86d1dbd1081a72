//! The agent's real mind in a simulated world where things break by chance.

mod simulated;

use serde_json::{Value, json};
use simulated::{Cut, Setting, World, expected, ids};
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

/// Messages of every kind, some of them slow.
fn mixed(count: usize) -> Vec<Value> {
    let mut bodies: Vec<Value> = vec![json!({}); count];
    for index in (3..count).step_by(5) {
        bodies[index] = json!({"do": "slow"});
    }
    bodies[7] = json!({"do": "flood"});
    bodies[11] = json!({"do": "fail_once"});
    bodies[12] = json!({"do": "fail_once"});
    bodies[14] = json!({"do": "permanent"});
    bodies
}

/// That no two replicas have one message in hand, and that what is settled is not handed over, is
/// looked at by the world at every hand-over.
#[track_caller]
fn check_once(seed: u64, replicas: u32) -> u32 {
    let bodies = mixed(40);
    let (mut world, parents) = World::of(Setting::once(Cut::Chance(seed), replicas), &bodies);
    world.run();
    let expect = expected(&bodies, &parents);
    let mut seen = ids(&world.broker.outputs);
    // A message whose step or container died too often while it was alone in hand is a dead letter.
    for letter in &world.broker.dead {
        let id = letter["message"]["id"].as_str().expect("an id");
        let index = parents
            .iter()
            .position(|parent| parent.to_string() == id)
            .expect("one of ours");
        seen.extend(expected(&bodies[index..=index], &parents[index..=index]));
    }
    assert_eq!(seen, expect, "seed {seed}");
    // What was told while it was away waits for it.
    world.return_control_plane();
    assert_eq!(world.broker.ledger.settled(), bodies.len(), "seed {seed}");
    world.target.values().copied().max().unwrap_or(0)
}

#[test]
fn what_is_settled_is_not_handled_again() {
    for seed in 1..=150 {
        assert_eq!(
            check_once(seed, 1),
            1,
            "seed {seed}: the target has each once"
        );
    }
}

#[test]
fn two_replicas_never_have_the_same_message_in_hand() {
    for seed in 1..=150 {
        assert_eq!(
            check_once(seed, 3),
            1,
            "seed {seed}: the target has each once"
        );
    }
}

#[test]
fn without_a_fault_nothing_is_uncertain_and_every_message_is_asked_for_once() {
    let bodies = vec![json!({}); 40];
    let (mut world, parents) = World::of(Setting::once(Cut::Never, 2), &bodies);
    world.run();
    assert_eq!(
        world.broker.outputs.len(),
        expected(&bodies, &parents).len()
    );
    assert_eq!((world.uncertain, world.repeated()), (0, 0));
    let entries = world.broker.ledger.entries;
    assert!(
        entries < 2 * bodies.len(),
        "they are batched: {entries} entries"
    );
}

#[test]
fn what_comes_twice_is_recognised() {
    let bodies = vec![json!({}); 12];
    let (mut world, parents) = World::of(Setting::once(Cut::Never, 2), &bodies);
    world.broker.deliver_all_twice();
    world.run();
    assert_eq!(
        world.broker.outputs.len(),
        expected(&bodies, &parents).len()
    );
    assert!(world.target.values().all(|times| *times == 1));
    assert!(world.repeated() > 0);
}

#[test]
fn without_the_control_plane_a_step_with_once_waits_and_says_so() {
    let bodies = vec![json!({}); 12];
    let (mut world, parents) = World::of(Setting::once(Cut::Never, 1), &bodies);
    world.broker.ledger.is_away = true;
    world.run_for(500);
    assert!(world.broker.outputs.is_empty());
    let reason = world.report().reason.expect("it says why");
    assert!(reason.contains("wait for the control plane"), "{reason}");
    world.return_control_plane();
    world.run();
    assert_eq!(ids(&world.broker.outputs), expected(&bodies, &parents));
    assert!(world.target.values().all(|times| *times == 1));
    assert_eq!(world.report().reason, None);
}

#[test]
fn a_step_without_once_needs_no_ledger() {
    let bodies = mixed(40);
    let (mut world, parents) = World::new(Cut::Never, Kind::Action, 4, &bodies, 3);
    world.broker.ledger.is_away = true;
    world.run();
    assert_eq!(ids(&world.broker.outputs), expected(&bodies, &parents));
    assert!(
        world.broker.ledger.take_waiting().is_empty(),
        "it asks nothing"
    );
}

#[track_caller]
fn check_killer(once: bool, is_away: bool) {
    for position in [0, 4, 9] {
        let mut bodies: Vec<Value> = vec![json!({}); 10];
        bodies[position] = json!({"do": "kill_container"});
        let setting = Setting {
            once,
            batch: 5,
            ..Setting::once(Cut::Never, 2)
        };
        let (mut world, parents) = World::of(setting, &bodies);
        world.broker.ledger.is_away = is_away;
        if is_away {
            // It goes round and round, but gets away from its neighbours.
            world.run_for(20_000);
            assert_eq!(ids(&world.broker.outputs), expected(&bodies, &parents));
            world.return_control_plane();
        }
        world.run();
        assert_eq!(ids(&world.broker.outputs), expected(&bodies, &parents));
        assert_eq!(world.broker.dead.len(), 1, "{:#?}", world.broker.dead);
        let letter = &world.broker.dead[0];
        assert_eq!(letter["message"]["id"], parents[position].to_string());
        assert_eq!(letter["cause"], "attempts");
        let reason = letter["reason"].as_str().expect("a reason");
        let how = "its container died with it alone in hand: killed by the memory limit, 256 MiB";
        let attempt = reason
            .strip_prefix(how)
            .and_then(|rest| rest.strip_prefix("; attempt "));
        let attempt: u32 = attempt.and_then(|it| it.parse().ok()).expect(reason);
        // While nobody counted, it had more.
        assert!(attempt == 3 || is_away, "{reason}");
        let last = letter["attempts"].as_array().and_then(|all| all.last());
        assert_eq!(
            last.map(|last| &last["attempt"]),
            Some(&json!(attempt)),
            "{letter:#}"
        );
    }
}

#[test]
fn a_message_that_kills_the_container_becomes_a_dead_letter_and_its_neighbours_do_not() {
    check_killer(false, false);
    check_killer(true, false);
}

#[test]
fn without_the_control_plane_the_neighbours_of_a_killer_get_away_all_the_same() {
    check_killer(false, true);
}
