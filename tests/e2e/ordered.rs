//! `order_by`: messages of one key are handled in order, one at a time, by several replicas, whatever
//! is killed; a retry holds its partition and no other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use serde_json::{Value, json};
use towpath_protocol::MessageId;
use towpath_tests::machine::{docker, try_docker};
use towpath_tests::{BrokerVersion, Instance, Source, eventually, holds, http};

use crate::{LONG, SOON};

const FLOW: &str = "in-order";

const KEYS: u64 = 500;

/// How many messages a request to the webhook becomes.
const OF_A_REQUEST: u64 = 500;

/// How many messages there are where things are killed: fewer with `once`, which takes five times as
/// long for each; as many as the variable says, for a longer run.
fn messages(once: bool) -> u64 {
    let wanted = std::env::var("TOWPATH_TEST_ORDERED_MESSAGES").ok();
    let usual = if once { 10_000 } else { 50_000 };
    wanted.and_then(|it| it.parse().ok()).unwrap_or(usual)
}

/// Long enough for 50,000 messages on two busy cores, with kills.
const VERY_LONG: Duration = Duration::from_secs(420);

/// What a target was given, as it came.
#[derive(Default)]
struct Given {
    /// By key: the numbers.
    by_key: BTreeMap<u64, Vec<u64>>,
    /// How many different ones.
    count: u64,
    /// Numbers that are refused, once for each time they are here.
    refuses: Vec<u64>,
    /// How many of a key are there at a time.
    at_a_time: BTreeMap<u64, u32>,
    /// How often one came while another of its key was there.
    overlaps: u64,
}

/// A target that writes down what it is given.
#[derive(Clone, Default)]
struct Target {
    given: Arc<Mutex<Given>>,
}

impl Target {
    fn serve(&self, instance: &Instance) -> Source {
        let router = Router::new().route("/", post(take));
        Source::start(instance, router.with_state(self.clone()))
    }

    fn look<T>(&self, look: impl FnOnce(&mut Given) -> T) -> T {
        look(&mut self.given.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn of_key(&self, key: u64) -> Vec<u64> {
        self.look(|given| given.by_key.get(&key).cloned().unwrap_or_default())
    }

    /// Waits until so many different messages arrived.
    #[track_caller]
    fn has(&self, count: u64, limit: Duration) {
        eventually("messages arrive", limit, || {
            let seen = self.look(|given| given.count);
            holds(seen >= count, || {
                let is_here = |n: &u64| self.of_key(n % KEYS).contains(n);
                let missing: Vec<u64> = (0..count).filter(|n| !is_here(n)).take(20).collect();
                format!("{seen} of {count}; not {missing:?}")
            })
        });
    }

    /// Each key has had its numbers in order; what was given again was followed by what came after it.
    #[track_caller]
    fn was_given_all_in_order(&self, messages: u64) {
        for key in 0..KEYS.min(messages) {
            let numbers = self.of_key(key);
            let expect: Vec<u64> = (0..messages).filter(|n| n % KEYS == key).collect();
            let mut first = Vec::new();
            for number in &numbers {
                if !first.contains(number) {
                    first.push(*number);
                }
            }
            assert_eq!(first, expect, "key {key}: {numbers:?}");
            assert_eq!(numbers.last(), expect.last(), "key {key}: {numbers:?}");
        }
    }

    /// In all.
    fn times(&self) -> usize {
        self.look(|given| given.by_key.values().map(Vec::len).sum())
    }
}

/// A message that is at the target now. Who gave it may leave in the middle: then nobody waits for
/// the end.
struct Here {
    target: Target,
    key: u64,
}

impl Drop for Here {
    fn drop(&mut self) {
        let key = self.key;
        self.target
            .look(|given| *given.at_a_time.entry(key).or_default() -= 1);
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
        let refused = refused.map(|index| given.refuses.swap_remove(index));
        if refused.is_none() {
            let numbers = given.by_key.entry(key).or_default();
            given.count += u64::from(!numbers.contains(&number));
            numbers.push(number);
        }
        refused.is_some()
    });
    let here = Here { target, key };
    // Long enough for another of the key to be seen beside it.
    tokio::time::sleep(Duration::from_millis(2)).await;
    drop(here);
    if is_refused {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::OK
    }
}

/// A webhook, a step that makes many messages of a request, one after the other, and one that writes
/// them by their keys.
fn flow(target: &Source, write: &str) -> String {
    let url = &target.url;
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
    order_by: .key
    retry: {{ attempts: 20, initial: 500ms, factor: 1.5, max: 5s }}
    with: {{ method: POST, url: "{url}/" }}
    {write}
"#
    )
}

/// Sends requests for so many messages; returns the ids of the requests.
fn send(instance: &Instance, messages: u64) -> Vec<String> {
    let status = instance.status(FLOW);
    let hook = status["webhook_url"].as_str().expect("a URL");
    let each = usize::try_from(OF_A_REQUEST).expect("few");
    let requests = (0..messages).step_by(each).map(|from| {
        let body = json!({ "from": from }).to_string();
        let answer = http::send("POST", hook, None, Some(&body)).expect("an answer");
        assert_eq!(answer.status, 202, "{answer:?}");
        let answer: Value = serde_json::from_str(&answer.text).expect("JSON");
        answer["id"].as_str().expect("an id").to_owned()
    });
    requests.collect()
}

/// What is killed, each after its part of the messages.
#[derive(Debug, Clone, Copy)]
enum Kill {
    Container(&'static str),
    /// Of the step and of the agent's workers, and not the agent.
    Processes,
    ControlPlane,
}

/// The processes of a container that are not its agent, as this machine numbers them: that of the
/// step, and those of the agent's own workers.
fn processes_of(container: &str) -> Vec<u32> {
    let agent = try_docker(&["inspect", "--format", "{{.State.Pid}}", container]);
    let children = agent.ok().and_then(|agent| {
        std::fs::read_to_string(format!("/proc/{agent}/task/{agent}/children")).ok()
    });
    let children = children.unwrap_or_default();
    children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

fn kill(instance: &Instance, target: &Target, kill: Kill, round: usize) {
    let one_of = |step: &str| {
        eventually("there is something to kill", SOON, || {
            let containers = instance.containers(FLOW, Some(step));
            let one = containers.values().nth(round % containers.len().max(1));
            one.cloned().ok_or_else(|| "no container".to_owned())
        })
    };
    match kill {
        Kill::Container(step) => drop(docker(&["kill", &one_of(step)])),
        Kill::Processes => {
            let processes = eventually("there are processes to kill", SOON, || {
                let processes = processes_of(&one_of("write"));
                holds(!processes.is_empty(), || "none".to_owned())?;
                Ok(processes)
            });
            for process in processes {
                // One that ended meanwhile needs no killing.
                let said = std::process::Command::new("kill")
                    .args(["-9", &process.to_string()])
                    .status();
                said.expect("`kill` can be run");
            }
        }
        Kill::ControlPlane => {
            instance.kill_control_plane();
            let then = target.look(|given| given.count);
            target.has(then + 100, SOON);
            instance.launch();
        }
    }
}

/// Sends messages, kills in the middle of them, and looks whether the order held.
#[track_caller]
#[expect(clippy::print_stdout, reason = "what a longer run is for")]
fn order_holds(version: BrokerVersion, once: bool, kills: &[Kill]) {
    let instance = Instance::start(version);
    let target = Target::default();
    let source = target.serve(&instance);
    let messages = messages(once);
    target.look(|given| given.refuses = (0..messages).step_by(997).collect());
    let write = format!("partitions: 16\n    replicas: 3\n    once: {once}\n");
    instance.apply(&flow(&source, &write));
    send(&instance, messages);
    let began = Instant::now();
    for (round, what) in kills.iter().enumerate() {
        let parts = kills.len() as u64 + 1;
        target.has(messages * (round as u64 + 1) / parts, VERY_LONG);
        kill(&instance, &target, *what, round);
    }
    target.has(messages, VERY_LONG);
    let took = began.elapsed();
    eventually("nothing is left", VERY_LONG, || {
        let status = instance.status(FLOW);
        let step = &status["steps"][1];
        let left = [&step["queued"], &step["in_hand"], &step["unacknowledged"]];
        holds(left.iter().all(|it| it.as_u64() == Some(0)), || {
            step.to_string()
        })
    });
    target.was_given_all_in_order(messages);
    let (times, overlaps) = (target.times(), target.look(|given| given.overlaps));
    println!(
        "{messages} messages of {KEYS} keys in {took:.1?}, {} kills, once: {once}: given {times} times, {overlaps} times beside another of the key",
        kills.len()
    );
    if once {
        for key in 0..KEYS {
            // Only what was in a hand that was lost is given again, and before anything after it.
            assert!(target.of_key(key).is_sorted(), "{:?}", target.of_key(key));
        }
    }
    // Whoever is killed leaves at the target what it had in hand: at most one of each partition.
    let lost_hands = 16 * kills.len() as u64;
    assert!(overlaps <= lost_hands, "{overlaps}");
    assert_eq!(instance.status(FLOW)["dead_letters"].as_u64(), Some(0));
}

const KILLS: [Kill; 6] = [
    Kill::Container("write"),
    Kill::Processes,
    Kill::ControlPlane,
    Kill::Container("write"),
    Kill::Processes,
    Kill::Container("write"),
];

#[test]
fn order_holds_whatever_is_killed() {
    order_holds(BrokerVersion::V40, false, &KILLS);
}

#[test]
fn order_holds_whatever_is_killed_on_an_old_broker() {
    order_holds(BrokerVersion::V310, false, &KILLS);
}

#[test]
fn with_once_nothing_is_given_again_after_what_came_behind_it() {
    // What the step before emits again is recognised.
    let kills = [
        Kill::Container("many"),
        Kill::Container("write"),
        Kill::Processes,
        Kill::Container("many"),
        Kill::Container("write"),
    ];
    order_holds(BrokerVersion::V40, true, &kills);
}

#[test]
fn a_retry_holds_its_partition_and_replayed_dead_letters_keep_their_order() {
    let instance = Instance::start(BrokerVersion::V40);
    let target = Target::default();
    let source = target.serve(&instance);
    // The first two messages of key 3 are refused until they are given up.
    target.look(|given| given.refuses = [[3; 3], [503; 3]].concat());
    let flow = flow(&source, "partitions: 16\n    replicas: 2\n").replace(
        "attempts: 20, initial: 500ms, factor: 1.5, max: 5s",
        "attempts: 3, initial: 4s, factor: 1, max: 4s, jitter: 0",
    );
    instance.apply(&flow);
    send(&instance, 1_500);
    eventually("the other partitions go on", SOON, || {
        let seen = target.look(|given| given.by_key.len());
        holds(seen > 400, || seen.to_string())
    });
    assert_eq!(target.of_key(3), [0; 0], "nothing overtakes what is held");
    eventually("status says what is held", SOON, || {
        let status = instance.status(FLOW);
        let text = status.to_string();
        holds(text.contains("held until they are tried again"), || text)
    });
    target.has(1_498, SOON);
    assert_eq!(
        target.of_key(3),
        [1_003],
        "it goes on without the dead letters"
    );
    eventually("there are dead letters", SOON, || {
        let count = instance.status(FLOW)["dead_letters"].as_u64();
        holds(count == Some(2), || format!("{count:?}"))
    });
    instance.run(&["dead", "replay", "--all"]).ok();
    target.has(1_500, SOON);
    assert_eq!(
        target.of_key(3),
        [1_003, 3, 503],
        "they come after their successor, and in their order"
    );
}

#[test]
fn the_order_changes_only_when_nothing_is_there() {
    let instance = Instance::start(BrokerVersion::V310);
    let target = Target::default();
    let source = target.serve(&instance);
    let plain = flow(&source, "replicas: 2").replace("order_by: .key", "");
    instance.apply(&plain);
    send(&instance, 500);
    target.has(500, SOON);
    let ordered = |partitions: u32| {
        let write = format!("partitions: {partitions}\n    replicas: 2\n");
        instance.write("ordered.yaml", &flow(&source, &write))
    };
    let refused = instance.run(&["apply", &ordered(4)]);
    assert!(
        refused.code == 1 && refused.err.contains("order its messages in another way"),
        "{refused:?}"
    );
    for partitions in [4, 6, 3] {
        instance.run(&["drain", FLOW, "write", "--wait"]).ok();
        instance.run(&["apply", &ordered(partitions)]).ok();
        instance.run(&["resume", FLOW, "write"]).ok();
        target.look(|given| *given = Given::default());
        send(&instance, 500);
        target.has(500, SOON);
        target.was_given_all_in_order(500);
        let status = instance.status(FLOW);
        assert_eq!(status["dead_letters"].as_u64(), Some(0), "{status}");
    }
    eventually("queues of former partitions are gone", LONG, || {
        let queues = queues(&instance);
        let write = queues.iter().filter(|it| it.contains(".write")).count();
        holds(write == 4, || format!("{queues:?}"))
    });
}

fn ctl(instance: &Instance, arguments: &[&str]) -> String {
    let broker = instance.broker.container.as_str();
    let ctl = ["exec", broker, "rabbitmqctl", "-q"];
    docker(&[ctl.as_slice(), arguments].concat())
}

fn queues(instance: &Instance) -> Vec<String> {
    let list = ctl(instance, &["list_queues", "-p", &instance.name, "name"]);
    let mark = format!("{}.flow.", instance.name);
    let ours = list.lines().filter(|line| line.contains(&mark));
    ours.map(str::to_owned).collect()
}

/// The replicas that have a partition each.
fn who_has_partitions(instance: &Instance) -> BTreeSet<String> {
    let columns = ["queue_name", "consumer_tag", "activity_status"];
    let list = [&["list_consumers", "-p", &instance.name], &columns[..]].concat();
    let list = ctl(instance, &list);
    let active = list
        .lines()
        .filter(|line| line.contains(".write.") && line.contains("single_active"));
    // The tag says the replica after the step.
    let replica = |line: &str| {
        let (_, rest) = line.split('\t').nth(1)?.split_once(".write.")?;
        Some(rest.split_whitespace().next()?.to_owned())
    };
    active.filter_map(replica).collect()
}

#[test]
fn replicas_that_come_and_go_share_the_partitions_and_nothing_is_given_twice() {
    let instance = Instance::start(BrokerVersion::V40);
    let target = Target::default();
    let source = target.serve(&instance);
    instance.apply(&flow(&source, "partitions: 16\n    replicas: 1\n"));
    let messages = 5_000;
    send(&instance, messages);
    target.has(500, SOON);
    for replicas in ["4", "2", "3"] {
        instance.run(&["scale", FLOW, "write", replicas]).ok();
        eventually("each replica has a part", SOON, || {
            let who = who_has_partitions(&instance);
            holds(who.len().to_string() == replicas, || format!("{who:?}"))
        });
    }
    target.has(messages, LONG);
    target.was_given_all_in_order(messages);
    let messages = usize::try_from(messages).expect("few");
    assert_eq!(target.times(), messages, "who leaves finishes what it has");
    assert_eq!(target.look(|given| given.overlaps), 0);
}

#[test]
fn an_ordered_step_is_paused_stopped_asked_about_and_deleted_like_any_other() {
    let instance = Instance::start(BrokerVersion::V40);
    let target = Target::default();
    let source = target.serve(&instance);
    // The first message is refused for a long time, and all others are behind it.
    target.look(|given| given.refuses = vec![0; 2]);
    let flow = flow(&source, "partitions: 1\n").replace(
        "initial: 500ms, factor: 1.5, max: 5s",
        "initial: 10m, max: 10m",
    );
    instance.apply(&flow);
    let request = send(&instance, 500).remove(0);
    let why = |id: &str| instance.run(&["why", id, "--output", "json"]).json();
    let root = MessageId::decode(request.as_bytes()).expect("it is an id");
    let child = |index: u64| MessageId::derive(root, "many", "out", index).to_string();
    let is = |id: &str, state: &str| {
        eventually(&format!("the message is {state}"), SOON, || {
            let found = why(id);
            holds(found["state"] == state, || found.to_string())
        });
    };
    let step_is = |what: &str, look: &dyn Fn(&Value) -> bool| {
        eventually(what, SOON, || {
            let status = instance.status(FLOW);
            holds(look(&status["steps"][1]), || status.to_string())
        });
    };
    let (first, second) = (child(0), child(1));
    is(&first, "waiting");
    step_is("the others wait behind it", &|step| {
        step["queued_deliveries"].as_u64() >= Some(20) && step["in_hand"] == 0
    });
    instance.run(&["pause", FLOW, "write"]).ok();
    step_is("what is held goes back", &|step| {
        step["state"] == "paused" && step["unacknowledged"] == 0
    });
    is(&second, "queued");
    instance.run(&["stop", FLOW, "write"]).ok();
    step_is("it is stopped, and keeps what it has", &|step| {
        step["state"] == "stopped" && step["queued_deliveries"].as_u64() >= Some(20)
    });
    assert_eq!(target.times(), 0, "nothing overtook the first");
    target.look(|given| given.refuses.clear());
    instance.run(&["resume", FLOW, "write"]).ok();
    target.has(500, SOON);
    target.was_given_all_in_order(500);
    target.look(|given| *given = Given::default());
    instance.run(&["pause", FLOW, "write"]).ok();
    step_is("it is paused", &|step| step["state"] == "paused");
    send(&instance, 500);
    step_is("messages wait in its queues", &|step| {
        step["queued_deliveries"].as_u64() >= Some(5)
    });
    let refused = instance.run(&["delete", FLOW, "--yes"]);
    assert!(
        refused.code == 1 && refused.err.contains("`write` about"),
        "{refused:?}"
    );
    let delete = ["delete", FLOW, "--drop-messages", "--yes"];
    instance.run(&delete).ok();
    eventually("nothing of it is left", LONG, || {
        let left = queues(&instance);
        holds(left.is_empty(), || format!("{left:?}"))
    });
    assert_eq!(target.times(), 0);
}
