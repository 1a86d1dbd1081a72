//! Outputs that go to branches: each to exactly those whose condition holds, whatever breaks.

mod simulated;

use std::collections::BTreeSet;

use serde_json::{Value, json};
use simulated::{Cut, Setting, Told, World, ids};
use towpath_protocol::MessageId;
use towpath_protocol::manifest::Kind;
use towpath_protocol::runs::Entry;

fn bodies() -> Vec<Value> {
    let mut bodies = vec![json!({}); 5];
    bodies.insert(2, json!({"do": "fail_once"}));
    bodies.insert(3, json!({"do": "flood"}));
    bodies
}

fn setting(cut: Cut, once: bool) -> Setting {
    Setting {
        once,
        branches: true,
        ..Setting::once(cut, 1)
    }
}

/// The ids of the outputs of these messages for which something holds.
fn expected(
    bodies: &[Value],
    parents: &[MessageId],
    holds: impl Fn(u64) -> bool,
) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for (body, parent) in bodies.iter().zip(parents) {
        let emitted = if body["do"] == "flood" { 0..40 } else { 1..3 };
        for (index, _) in (0..).zip(emitted).filter(|(_, number)| holds(*number)) {
            all.insert(MessageId::derive(*parent, "step", "out", index).to_string());
        }
    }
    all
}

/// The ids of what died of a condition.
fn torn(world: &World) -> BTreeSet<String> {
    let letters = world.broker.dead.iter();
    let letters = letters.filter(|letter| letter["cause"] == "condition");
    letters
        .map(|letter| {
            assert_eq!(letter["identity"]["step"], "torn", "whose condition it is");
            assert!(
                letter["reason"]
                    .as_str()
                    .expect("a reason")
                    .contains("it is torn"),
                "{letter}"
            );
            letter["message"]["id"].as_str().expect("an id").to_owned()
        })
        .collect()
}

#[track_caller]
fn check(setting: Setting) -> usize {
    let cut = setting.cut;
    let bodies = bodies();
    let (mut world, parents) = World::of(setting, &bodies);
    world.run();
    let of = |holds: fn(u64) -> bool| expected(&bodies, &parents, holds);
    // A message whose step died too often while it was alone in hand is a dead letter itself: of its
    // outputs nothing is promised.
    let letters = world.broker.dead.iter();
    let letters = letters.filter(|letter| letter["cause"] != "condition");
    let gone = letters.map(|letter| letter["message"]["id"].to_string());
    let gone: BTreeSet<String> = gone.collect();
    assert!(gone.is_empty() || matches!(cut, Cut::Chance(_)), "{gone:?}");
    let is_gone = |parent: &MessageId| gone.contains(&format!("\"{parent}\""));
    let (died, of_died): (Vec<MessageId>, Vec<Value>) = parents
        .iter()
        .zip(&bodies)
        .filter(|(parent, _)| is_gone(parent))
        .map(|(parent, body)| (*parent, body.clone()))
        .unzip();
    let same = |mut seen: BTreeSet<String>, holds: fn(u64) -> bool| {
        seen.extend(expected(&of_died, &died, holds));
        assert_eq!(seen, of(holds), "{cut:?}");
    };
    same(ids(&world.broker.to["odd"]), |it| it % 2 == 1);
    same(ids(&world.broker.to["small"]), |it| it < 5);
    same(torn(&world), |it| it == 2);
    assert_eq!(world.broker.to.len(), 2, "nothing goes anywhere else");
    if cut == Cut::Never {
        let counters = world.report().counters;
        let nowhere = of(|it| it % 2 == 0 && it >= 5).len() as u64;
        assert_eq!(counters.unmatched, nowhere);
        let somewhere = of(|it| it % 2 == 1 || it < 5).len() as u64;
        assert_eq!(counters.emitted, somewhere, "each is counted once");
    }
    world.calls
}

#[test]
fn an_output_goes_to_exactly_the_branches_that_hold_for_it() {
    check(setting(Cut::Never, false));
}

#[test]
fn what_goes_to_a_branch_is_reported_of_its_step() {
    let bodies = bodies();
    let run = |cut| {
        let setting = Setting {
            branches: true,
            ..Setting::tracked(cut, Kind::Action, 1)
        };
        let (mut world, parents) = World::of(setting, &bodies);
        world.run();
        let reported = |branch: u16| -> BTreeSet<String> {
            let told = world.broker.told.iter().filter_map(|told| match told {
                Told::Run((_, Entry::Emitted { id, way, .. })) if *way == branch => Some(id),
                _ => None,
            });
            told.map(ToString::to_string).collect()
        };
        let of = |holds: fn(u64) -> bool| expected(&bodies, &parents, holds);
        assert_eq!(reported(1), of(|it| it % 2 == 1), "{cut:?}");
        assert_eq!(reported(2), of(|it| it < 5), "{cut:?}");
        assert_eq!(
            reported(3),
            of(|it| it == 2),
            "{cut:?}: dead, so it was emitted"
        );
        assert!(reported(0).is_empty(), "nobody takes everything");
        world.calls
    };
    let calls = run(Cut::Never);
    for at in 1..=calls {
        run(Cut::Agent(at));
        run(Cut::Connection(at));
    }
}

#[test]
fn nothing_is_lost_wherever_it_is_cut_with_branches() {
    let calls = check(setting(Cut::Never, false));
    assert!(calls > 50, "the run is long enough to be cut: {calls}");
    for at in 1..=calls {
        check(setting(Cut::Agent(at), false));
        check(setting(Cut::Connection(at), false));
        check(setting(Cut::Step(at), false));
        check(setting(Cut::Agent(at), true));
    }
}

#[test]
fn nothing_is_lost_whatever_breaks_with_branches() {
    for seed in 1..=150 {
        check(setting(Cut::Chance(seed), false));
    }
}

/// A checkpoint is saved only when what was emitted before it is where it belongs.
#[test]
fn a_trigger_with_branches_loses_nothing_wherever_it_is_cut() {
    let run = |cut| {
        let tick = json!({"why": "schedule", "due": 1});
        let setting = Setting {
            kind: Kind::Poll,
            concurrency: 1,
            batch: 1,
            ..setting(cut, false)
        };
        let (mut world, _) = World::of(setting, &[tick.clone(), tick]);
        world.run();
        let of = |numbers: &mut dyn Iterator<Item = u64>| -> BTreeSet<String> {
            let id = |number: u64| {
                MessageId::from_source("flow", "step", "out", &number.to_string()).to_string()
            };
            numbers.map(id).collect()
        };
        let odd = of(&mut (1..30).step_by(2));
        assert_eq!(ids(&world.broker.to["odd"]), odd, "{cut:?}");
        assert_eq!(ids(&world.broker.to["small"]), of(&mut (0..5)), "{cut:?}");
        assert_eq!(torn(&world), of(&mut (2..3)), "{cut:?}");
        let saved = world.broker.news.iter();
        let saved = saved.filter_map(|news| news["checkpoint"]["value"].as_u64());
        assert_eq!(saved.max(), Some(30), "{cut:?}");
        world.calls
    };
    let calls = run(Cut::Never);
    for at in 1..=calls {
        run(Cut::Agent(at));
        run(Cut::Connection(at));
        run(Cut::Step(at));
    }
}
