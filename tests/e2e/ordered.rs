//! `order_by`: messages of one key are handled in order, one at a time, by several replicas, whatever
//! is killed; a retry holds its partition and no other.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use serde_json::{Value, json};
use towpath_tests::machine::docker;
use towpath_tests::{BrokerVersion, Instance, eventually, holds, http};

use crate::SOON;

const FLOW: &str = "in-order";

const KEYS: u64 = 500;

/// How many messages a request to the webhook becomes.
const OF_A_REQUEST: u64 = 500;

/// How many messages there are; as many as the variable says, for a longer run.
fn messages() -> u64 {
    let wanted = std::env::var("TOWPATH_ORDERED_MESSAGES").ok();
    wanted.and_then(|it| it.parse().ok()).unwrap_or(10_000)
}

/// Long enough for 50,000 messages on two busy cores, with kills.
const VERY_LONG: Duration = Duration::from_secs(420);

/// What a target was given, as it came.
#[derive(Default)]
struct Given {
    /// By key: the numbers.
    by_key: BTreeMap<u64, Vec<u64>>,
    count: u64,
    /// Numbers that are refused the next time.
    refuses: Vec<u64>,
    /// How many of a key were there at a time, at most.
    at_a_time: BTreeMap<u64, u32>,
    overlaps: u64,
}

/// A target on a thread of its own.
#[derive(Clone, Default)]
struct Target {
    given: Arc<Mutex<Given>>,
}

impl Target {
    /// Starts the server; returns its port.
    fn serve(&self) -> u16 {
        let listener = std::net::TcpListener::bind("0.0.0.0:0").expect("a port is free");
        listener.set_nonblocking(true).expect("it can be made so");
        let port = listener.local_addr().expect("it has an address").port();
        let target = self.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime can be made");
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("it listens");
                let router = Router::new().route("/", post(take)).with_state(target);
                axum::serve(listener, router)
                    .await
                    .expect("it does not end");
            });
        });
        port
    }

    fn look<T>(&self, look: impl FnOnce(&mut Given) -> T) -> T {
        look(&mut self.given.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until so many different messages arrived.
    #[track_caller]
    fn has(&self, count: u64, limit: Duration) {
        eventually("messages arrive", limit, || {
            let seen = self.look(|given| given.count);
            holds(seen >= count, || format!("{seen} of {count}"))
        });
    }

    /// Each key has had its numbers in order; what was given again was followed by what came after it.
    /// With `once`, nothing is given again but what was in a hand that was lost.
    #[track_caller]
    fn was_given_all_in_order(&self, messages: u64, once: bool) {
        self.look(|given| {
            for key in 0..KEYS.min(messages) {
                let numbers = given.by_key.get(&key).cloned().unwrap_or_default();
                let expect: Vec<u64> = (0..messages).filter(|n| n % KEYS == key).collect();
                let mut first = Vec::new();
                for number in &numbers {
                    if !first.contains(number) {
                        first.push(*number);
                    }
                }
                assert_eq!(first, expect, "key {key}: {numbers:?}");
                assert_eq!(numbers.last(), expect.last(), "key {key}: {numbers:?}");
                if once {
                    assert!(numbers.is_sorted(), "key {key}: {numbers:?}");
                }
            }
        });
    }
}

async fn take(State(target): State<Target>, body: String) -> StatusCode {
    let body: Value = serde_json::from_str(&body).expect("JSON");
    let (key, number) = (body["key"].as_u64(), body["n"].as_u64());
    let (Some(key), Some(number)) = (key, number) else {
        return StatusCode::BAD_REQUEST;
    };
    let is_refused = target.look(|given| {
        let at_a_time = given.at_a_time.entry(key).or_default();
        *at_a_time += 1;
        given.overlaps += u64::from(*at_a_time > 1);
        let refused = given.refuses.iter().position(|it| *it == number);
        refused
            .map(|index| given.refuses.swap_remove(index))
            .is_some()
    });
    // Long enough for another of the key to be seen beside it.
    tokio::time::sleep(Duration::from_millis(2)).await;
    target.look(|given| {
        *given.at_a_time.entry(key).or_default() -= 1;
        if !is_refused {
            let numbers = given.by_key.entry(key).or_default();
            given.count += u64::from(!numbers.contains(&number));
            numbers.push(number);
        }
    });
    if is_refused {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::OK
    }
}

/// A webhook, a step that makes many messages of a request, one after the other, and one that writes
/// them by their keys.
fn flow(instance: &Instance, port: u16, write: &str) -> String {
    let gateway = instance.gateway();
    format!(
        r#"
flow: {FLOW}
trigger: {{ id: hook, webhook: true }}
actions:
  - id: many
    image: towpath/jq:test
    concurrency: 1
    with: {{ filter: ".from as $from | range($from; $from + {OF_A_REQUEST}) | {{key: (. % {KEYS}), n: .}}" }}
  - id: write
    image: towpath/http-request:test
{write}
    retry: {{ attempts: 20, initial: 500ms, factor: 1.5, max: 5s }}
    with: {{ method: POST, url: "http://{gateway}:{port}/" }}
"#
    )
}

fn send(instance: &Instance, messages: u64) {
    let status = instance.status(FLOW);
    let hook = status["webhook_url"].as_str().expect("a URL");
    for from in (0..messages).step_by(usize::try_from(OF_A_REQUEST).expect("few")) {
        let body = json!({ "from": from }).to_string();
        let answer = http::send("POST", hook, None, Some(&body)).expect("an answer");
        assert_eq!(answer.status, 202, "{answer:?}");
    }
}

/// Kills the replicas of the step in turn, one every few seconds, until all has arrived.
fn kill_until_done(instance: &Instance, target: &Target, messages: u64, kills: usize) -> usize {
    let began = Instant::now();
    let mut killed = 0;
    while killed < kills {
        let share = messages * u64::try_from(killed + 1).expect("few") / (kills as u64 + 1);
        let is_there = || target.look(|given| given.count) >= share;
        while !is_there() {
            assert!(began.elapsed() < VERY_LONG, "it does not get on");
            std::thread::sleep(Duration::from_millis(100));
        }
        let containers = instance.containers(FLOW, Some("write"));
        if let Some(container) = containers.values().nth(killed % containers.len().max(1)) {
            docker(&["kill", container]);
            killed += 1;
        }
    }
    killed
}

#[track_caller]
fn order_holds(version: BrokerVersion, once: bool) {
    let instance = Instance::start(version);
    let target = Target::default();
    let port = target.serve();
    let messages = messages();
    target.look(|given| given.refuses = (0..messages).step_by(997).collect());
    let write =
        format!("    order_by: .key\n    partitions: 16\n    replicas: 3\n    once: {once}\n");
    instance.apply(&flow(&instance, port, &write));
    send(&instance, messages);
    let began = Instant::now();
    let killed = kill_until_done(&instance, &target, messages, 6);
    target.has(messages, VERY_LONG);
    eventually("nothing is left", VERY_LONG, || {
        let status = instance.status(FLOW);
        let step = &status["steps"][1];
        let left = [&step["queued"], &step["in_hand"], &step["unacknowledged"]];
        holds(left.iter().all(|it| it.as_u64() == Some(0)), || {
            step.to_string()
        })
    });
    target.was_given_all_in_order(messages, once);
    let (given, overlaps) = target.look(|given| {
        (
            given.by_key.values().map(Vec::len).sum::<usize>(),
            given.overlaps,
        )
    });
    println!(
        "{messages} messages of {KEYS} keys in {:?}, {killed} replicas killed: given {given} times, {overlaps} times beside another of the key",
        began.elapsed()
    );
    // Whoever is killed leaves at most what it had in hand: one of each partition.
    assert!(overlaps <= 16 * killed as u64, "{overlaps}");
    assert_eq!(instance.status(FLOW)["dead_letters"].as_u64(), Some(0));
}

#[test]
fn order_holds_through_failovers() {
    order_holds(BrokerVersion::V40, false);
}

#[test]
fn order_holds_through_failovers_on_an_old_broker() {
    order_holds(BrokerVersion::V310, false);
}

#[test]
fn with_once_nothing_comes_again_out_of_order() {
    order_holds(BrokerVersion::V40, true);
}

#[test]
fn a_retry_holds_its_partition_and_a_dead_letter_lets_it_go_on() {
    let instance = Instance::start(BrokerVersion::V40);
    let target = Target::default();
    let port = target.serve();
    // The first message of key 3 is refused again and again.
    target.look(|given| given.refuses = vec![3; 4]);
    let write = "    order_by: .key\n    partitions: 16\n    replicas: 2\n";
    let flow = flow(&instance, port, write).replace(
        "attempts: 20, initial: 500ms, factor: 1.5",
        "attempts: 4, initial: 4s, factor: 1",
    );
    instance.apply(&flow);
    send(&instance, 1_000);
    eventually("the other partitions go on", SOON, || {
        let keys = target.look(|given| given.by_key.len());
        holds(keys > 400, || keys.to_string())
    });
    assert_eq!(target.look(|given| given.by_key.get(&3).cloned()), None);
    target.has(999, SOON);
    target.look(|given| {
        assert_eq!(
            given.by_key[&3],
            [503],
            "it goes on without the dead letter"
        )
    });
    eventually("there is a dead letter", SOON, || {
        let count = instance.status(FLOW)["dead_letters"].as_u64();
        holds(count == Some(1), || format!("{count:?}"))
    });
    instance.run(&["dead", "replay", "--all", "--yes"]).ok();
    target.has(1_000, SOON);
    target.look(|given| assert_eq!(given.by_key[&3], [503, 3], "it comes after its successor"));
}

#[test]
fn the_order_changes_only_when_nothing_is_there() {
    let instance = Instance::start(BrokerVersion::V310);
    let target = Target::default();
    let port = target.serve();
    instance.apply(&flow(&instance, port, "    replicas: 2\n"));
    send(&instance, 500);
    target.has(500, SOON);
    let ordered = |partitions: u32| {
        let write = format!("    order_by: .key\n    partitions: {partitions}\n    replicas: 2\n");
        instance.write("ordered.yaml", &flow(&instance, port, &write))
    };
    let refused = instance.run(&["apply", &ordered(4)]);
    assert!(
        refused.err.contains("order its messages in another way"),
        "{refused:?}"
    );
    for (round, partitions) in [(1, 4), (2, 6)] {
        instance.run(&["drain", FLOW, "write", "--wait"]).ok();
        instance.run(&["apply", &ordered(partitions)]).ok();
        instance.run(&["resume", FLOW, "write"]).ok();
        target.look(|given| *given = Given::default());
        send(&instance, 500);
        target.has(500, SOON);
        target.was_given_all_in_order(500, false);
        let status = instance.status(FLOW);
        assert_eq!(
            status["dead_letters"].as_u64(),
            Some(0),
            "round {round}: {status}"
        );
    }
}
