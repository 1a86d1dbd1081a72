//! What an agent remembers and tells, and when it takes its connection to be broken.

mod simulated;

use serde_json::{Value, json};
use simulated::{Cut, World};
use towpath_protocol::MessageId;
use towpath_protocol::manifest::Kind;

/// Rounds of 20 ms in 61 s, more than the limit after which a connection is made again.
const STALLED: usize = 61 * 50;

fn world(bodies: &[Value]) -> (World, Vec<MessageId>) {
    World::new(Cut::Never, Kind::Action, 4, bodies, 3)
}

#[test]
fn what_was_logged_goes_with_the_attempt_that_failed() {
    let (mut world, _) = world(&[json!({"do": "permanent"}), json!({})]);
    world.run();
    let attempts = &world.broker.dead[0]["attempts"];
    assert_eq!(attempts[0]["log"], json!(["I shall not"]), "{attempts:#}");
}

#[test]
fn a_message_that_waits_is_noted_with_its_reason_and_its_time() {
    let (mut world, ids) = world(&[json!({"do": "fail_once"}), json!({})]);
    world.run();
    let [note] = world.broker.waiting.as_slice() else {
        panic!("{:#?}", world.broker.waiting);
    };
    assert_eq!(note["id"], ids[0].to_string());
    assert_eq!(note["run"], ids[0].to_string());
    assert_eq!(note["connection"], "default");
    assert_eq!(note["attempt"], 2);
    assert_eq!(note["attempts"], 3);
    assert_eq!(note["reason"], "once");
    assert_eq!(note["is_rebound"], false);
    let (since, due) = (note["since"].as_u64(), note["due"].as_u64());
    assert!(due > since, "{note:#}");
}

#[test]
fn an_agent_remembers_what_happened_to_a_message_and_its_children() {
    let (mut world, ids) = world(&[json!({"do": "fail_once"}), json!({})]);
    world.run();
    let found = world.find(ids[0]);
    assert_eq!(found["question"], 7);
    assert_eq!(found["now"], Value::Null);
    let events = found["events"].as_array().expect("events");
    let whats: Vec<&str> = events
        .iter()
        .map(|event| {
            let what = event["what"].as_object().expect("one key");
            what.keys().next().expect("one key").as_str()
        })
        .collect();
    assert_eq!(
        whats,
        ["delayed", "emitted", "emitted", "done"],
        "{found:#}"
    );
    let child = MessageId::derive(ids[0], "step", "out", 1);
    assert_eq!(events[2]["id"], child.to_string());
    assert_eq!(events[2]["what"]["emitted"]["port"], "out");
    assert_eq!(events[3]["what"]["done"]["attempt"], 2);
    let stranger = world.find(MessageId::from_bytes([1; 16]));
    assert_eq!(stranger["events"], json!([]));
    assert!(stranger["reach"].as_u64().is_some());
}

#[test]
fn an_agent_says_how_it_holds_a_message() {
    let (mut world, ids) = world(&vec![json!({}); 9]);
    world.set_step_idle(true);
    world.run_for(50);
    let in_hand = world.find(ids[0]);
    assert_eq!(in_hand["now"]["in_hand"]["attempt"], 1, "{in_hand:#}");
    let unread = world.find(ids[8]);
    assert_eq!(unread["now"], "waiting", "{unread:#}");
    world.broker.is_mute = true;
    world.set_step_idle(false);
    world.run_for(50);
    let settling = world.find(ids[0]);
    assert_eq!(settling["now"], "settling", "{settling:#}");
}

#[test]
fn a_consumer_that_makes_no_progress_is_recycled() {
    let (mut world, ids) = world(&vec![json!({}); 9]);
    world.run_for(4);
    world.broker.is_mute = true;
    world.run_for(STALLED);
    let [reason] = world.broker.recycled.as_slice() else {
        panic!("{:?}", world.broker.recycled);
    };
    assert!(reason.starts_with("nothing moved for 60 s"), "{reason}");
    world.run();
    assert_eq!(ids.len() * 2, simulated::ids(&world.broker.outputs).len());
    let told = world.report().reason.expect("it says so");
    assert!(told.contains("was made again"), "{told}");
    world.run_for(300 * 50);
    assert_eq!(world.report().reason, None, "for a while only");
}

#[test]
fn whoever_works_or_waits_for_a_reason_is_not_recycled() {
    let (mut working, _) = world(&vec![json!({}); 3]);
    working.set_step_idle(true);
    working.run_for(STALLED * 2);
    assert_eq!(working.broker.recycled, [""; 0], "a step takes its time");

    let (mut idle, _) = world(&[]);
    idle.run_for(STALLED * 2);
    assert_eq!(idle.broker.recycled, [""; 0], "nothing is there to do");

    let (mut refused, _) = world(&vec![json!({}); 3]);
    refused.broker.refuses = true;
    refused.run_for(STALLED * 2);
    assert_eq!(refused.broker.recycled, [""; 0], "the next queue is full");
}
