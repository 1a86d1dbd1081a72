//! Triggers that register at their source: what becomes of a call to do so.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod simulated;

use serde_json::{Value, json};
use simulated::{Cut, World};
use towpath_protocol::MessageId;
use towpath_protocol::manifest::Kind;
use towpath_protocol::office::REGISTRATION_MS;

/// More turns of 20 ms than a call may take.
fn too_long() -> usize {
    usize::try_from(REGISTRATION_MS / 20 + 10).unwrap()
}

fn id(number: u8) -> String {
    MessageId::from_bytes([number; 16]).to_string()
}

fn call(number: u8, act: &str) -> Value {
    json!({"call": id(number), "act": act, "url": "http://here/hooks/f/k", "kept": {"id": 7}})
}

/// A webhook trigger that was called.
fn called(act: &str) -> World {
    let (mut world, _) = World::new(Cut::Never, Kind::Webhook, 4, &[], 1);
    world.run_for(5);
    world.register(&call(1, act));
    world.run_for(2);
    world
}

/// What was told of calls: which, and what came of it.
fn told(world: &World) -> Vec<(String, Value)> {
    let news = world.broker.news.iter().map(|news| &news["registration"]);
    let told = news.filter(|told| told.is_object());
    told.map(|told| {
        let call = told["call"].as_str().unwrap().to_owned();
        (call, told["outcome"].clone())
    })
    .collect()
}

#[track_caller]
fn failed(world: &World, part: &str) {
    let told = told(world);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].0, id(1));
    let reason = told[0].1["failed"]["reason"].as_str().unwrap();
    assert!(reason.contains(part), "{reason}");
}

#[test]
fn a_call_to_register_is_handed_over_and_its_answer_told() {
    let mut world = called("activate");
    let frame = &world.calls_of_step()[0]["activate"];
    assert_eq!(frame["url"], "http://here/hooks/f/k");
    assert_eq!(frame["kept"], json!({"id": 7}));
    assert_eq!(world.report().in_hand, 0, "it is no message");
    world.step_says(json!({"activated": {"id": id(1), "kept": {"id": 8}}}));
    world.run_for(2);
    let outcome = json!({"activated": {"kept": {"id": 8}}});
    assert_eq!(told(&world), [(id(1), outcome)]);

    world.register(&call(2, "deactivate"));
    world.run_for(2);
    assert_eq!(world.calls_of_step().len(), 2);
    world.step_says(json!({"deactivated": {"id": id(2)}}));
    world.run_for(2);
    assert_eq!(told(&world)[1], (id(2), json!("deactivated")));
    assert!(world.broker.dead.is_empty() && world.broker.waiting.is_empty());
}

#[test]
fn an_agent_that_is_paused_hands_a_call_over() {
    let (mut world, _) = World::new(Cut::Never, Kind::Webhook, 4, &[], 1);
    world.pause();
    world.run_for(5);
    world.register(&call(1, "deactivate"));
    world.run_for(2);
    assert_eq!(world.calls_of_step().len(), 1);
}

#[test]
fn a_call_waits_for_a_step_that_starts() {
    let (mut world, _) = World::new(Cut::Never, Kind::Webhook, 4, &[], 1);
    world.register(&call(1, "activate"));
    assert!(world.calls_of_step().is_empty());
    world.run_for(5);
    assert_eq!(world.calls_of_step().len(), 1);
}

#[test]
fn why_a_step_cannot_register_is_told() {
    let mut world = called("activate");
    world.step_says(
        json!({"failed": {"id": id(1), "fate": "permanent", "delay_ms": 5000,
        "reason": "the shop does not let us", "chain": ["401"]}}),
    );
    world.run_for(2);
    let outcome = json!({"failed": {"reason": "the shop does not let us: 401",
        "delay_ms": 5000, "is_permanent": true}});
    assert_eq!(told(&world), [(id(1), outcome)]);
}

#[test]
fn a_call_to_register_is_told_however_it_ends() {
    let mut world = called("activate");
    world.run_for(too_long());
    failed(&world, "did not answer within");

    let mut world = called("activate");
    world.kill_first_step();
    world.run_for(50);
    failed(&world, "was killed by the test");
    assert!(world.calls_of_step().is_empty(), "nobody calls again here");

    let mut world = called("activate");
    world.drain();
    world.run_for(1);
    failed(&world, "is leaving");
    assert!(
        world.calls_of_step().is_empty(),
        "the step was told as well"
    );

    let mut world = called("activate");
    let kept = "x".repeat(70_000);
    world.step_says(json!({"activated": {"id": id(1), "kept": kept}}));
    world.run_for(2);
    failed(&world, "at most 65536 are allowed");

    let mut world = called("activate");
    world.step_says(json!({"deactivated": {"id": id(1)}}));
    world.run_for(2);
    failed(&world, "another call");
}

#[test]
fn an_answer_to_a_call_that_was_given_up_changes_nothing() {
    let mut world = called("activate");
    world.register(&call(2, "deactivate"));
    world.run_for(5);
    // The step was told to leave the first, and says so.
    assert!(told(&world).is_empty());
    world.step_says(json!({"deactivated": {"id": id(2)}}));
    world.step_says(json!({"activated": {"id": id(9)}}));
    world.run_for(5);
    assert_eq!(told(&world), [(id(2), json!("deactivated"))]);
}

#[test]
fn what_is_emitted_in_a_call_goes_nowhere() {
    let mut world = called("activate");
    world.step_says(json!({"emit": {"id": id(1), "body": 1}}));
    world.step_says(json!({"activated": {"id": id(1)}}));
    world.run_for(5);
    assert_eq!(told(&world), [(id(1), json!({"activated": {}}))]);
    assert!(world.broker.outputs.is_empty());
}
