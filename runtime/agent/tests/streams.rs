//! Triggers that run for ever: they come to an end when they are told to, and their runs end well.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod simulated;

use serde_json::{Value, json};
use simulated::World;
use towpath_protocol::MessageId;

/// Long enough, in turns of 20 ms, for everything that has a grace of 200 ms.
const LONG: usize = 100;

fn tick(how: &Value) -> Value {
    let mut payload = how.clone();
    payload["do"] = "stream".into();
    json!({"why": "schedule", "due": 1, "payload": payload})
}

fn has_ended(world: &World, run: MessageId) -> bool {
    let run = run.to_string();
    let mut news = world.broker.news.iter();
    news.any(|news| news["run_ended"]["run"] == run.as_str())
}

fn checkpoint(world: &World) -> Option<u64> {
    let mut news = world.broker.news.iter().rev();
    news.find_map(|news| news["checkpoint"]["value"].as_u64())
}

fn bodies(world: &World) -> Vec<u64> {
    let outputs = world.broker.outputs.iter();
    outputs.map(|line| line["body"].as_u64().unwrap()).collect()
}

/// Nothing failed: no attempt was counted, nothing is to be tried again, nothing is dead.
#[track_caller]
fn nothing_failed(world: &World) {
    let counters = world.report().counters;
    assert_eq!(
        (
            counters.failed,
            counters.retried,
            counters.timed_out,
            counters.crashed
        ),
        (0, 0, 0, 0)
    );
    assert!(world.broker.dead.is_empty() && world.broker.waiting.is_empty());
}

#[test]
fn a_stream_that_is_told_to_finish_ends_its_run_well() {
    let listens = tick(&json!({"listens": true}));
    let (mut world, runs) = World::stream(&[listens.clone(), listens]);
    world.run_for(LONG);
    assert!(!has_ended(&world, runs[0]), "it runs for ever");
    assert_eq!(checkpoint(&world), Some(5));

    world.pause();
    world.run_for(LONG);
    assert!(has_ended(&world, runs[0]));
    assert_eq!(
        (checkpoint(&world), bodies(&world)),
        (Some(7), (0..7).collect())
    );
    nothing_failed(&world);

    // The next one goes on from there when it is resumed, and not before.
    assert_eq!(world.report().in_hand, 0);
    world.resume();
    world.run_for(LONG);
    assert!(!has_ended(&world, runs[1]));
    assert_eq!(checkpoint(&world), Some(12));
}

#[test]
fn a_stream_that_does_not_listen_is_cancelled_and_its_run_ends_well() {
    for deaf in [false, true] {
        let (mut world, runs) = World::stream(&[tick(&json!({"deaf": deaf}))]);
        world.run_for(LONG);
        world.pause();
        world.run_for(LONG);
        assert!(has_ended(&world, runs[0]), "deaf: {deaf}");
        assert_eq!(checkpoint(&world), Some(5));
        let counters = world.report().counters;
        assert_eq!((counters.failed, counters.retried), (0, 0), "deaf: {deaf}");
        assert!(world.is_settled());
    }
}

#[test]
fn what_a_stream_emitted_after_its_last_checkpoint_comes_again_with_the_next_run() {
    let stubborn = tick(&json!({}));
    let (mut world, runs) = World::stream(&[stubborn.clone(), stubborn]);
    world.run_for(LONG);
    world.pause();
    world.run_for(LONG);
    assert_eq!(bodies(&world), (0..5).collect::<Vec<_>>());
    world.resume();
    world.run_for(LONG);
    world.pause();
    world.run_for(LONG);
    assert!(has_ended(&world, runs[1]));
    assert_eq!(bodies(&world), (0..10).collect::<Vec<_>>());
}

#[test]
fn a_drain_does_not_wait_for_a_stream() {
    for how in [json!({"listens": true}), json!({}), json!({"deaf": true})] {
        let (mut world, runs) = World::stream(&[tick(&how)]);
        world.run_for(LONG);
        world.drain();
        world.run_for(LONG);
        assert!(has_ended(&world, runs[0]), "{how}");
        assert!(world.has_drained() || world.report().in_hand == 0, "{how}");
        assert!(world.is_settled(), "{how}");
    }
}

#[test]
fn a_stream_whose_tick_came_back_very_often_begins_anew_before_the_broker_gives_it_up() {
    let listens = tick(&json!({"listens": true}));
    let (mut world, runs) = World::stream(&[listens.clone(), listens]);
    world.run_for(LONG);
    for _ in 0..24 {
        world.reconnect();
        world.run_for(10);
        assert!(
            !has_ended(&world, runs[0]),
            "it goes on over lost connections"
        );
    }
    world.reconnect();
    world.run_for(LONG);
    assert!(has_ended(&world, runs[0]));
    assert!(!has_ended(&world, runs[1]), "the next one runs");
    nothing_failed(&world);
}
