//! What happens between the queue and the step's hands.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use towpath_tests::machine::docker;
use towpath_tests::{BrokerVersion, Instance, eventually, holds, http};

use crate::{LONG, SOON};

fn hook(instance: &Instance, flow: &str) -> String {
    let status = instance.status(flow);
    let hook = status["webhook_url"].as_str();
    hook.expect("a URL").to_owned()
}

fn post(hook: &str, body: &Value) {
    let answer = http::send("POST", hook, None, Some(&body.to_string())).expect("an answer");
    assert_eq!(answer.status, 202, "{answer:?}");
}

/// The step takes orders of what to do: an object with a text `do`.
fn checked(validate: &str) -> String {
    format!(
        r#"
flow: checked
trigger: {{ id: hook, webhook: true }}
actions:
  - id: step
    image: towpath/test-step:test
    validate: {validate}
    retry: {{ attempts: 5, initial: 10m, max: 10m }}
"#
    )
}

#[track_caller]
fn are(instance: &Instance, done: u64, invalid: u64) {
    eventually("the messages are settled", SOON, || {
        let status = instance.status("checked");
        holds(status["steps"][0]["done"].as_u64() == Some(done), || {
            status.to_string()
        })?;
        let metrics = http::send("GET", &format!("{}/metrics", instance.url), None, None)?.text;
        let line =
            format!("towpath_messages_invalid_total{{flow=\"checked\",step=\"step\"}} {invalid}\n");
        holds(metrics.contains(&line), || metrics)
    });
}

#[test]
fn a_body_that_is_not_what_the_step_takes_is_a_dead_letter_at_once_and_says_where() {
    let instance = Instance::start(BrokerVersion::V40);
    instance.apply(&checked("dead-letter"));
    let hook = hook(&instance, "checked");
    post(&hook, &json!({ "do": "ok" }));
    post(
        &hook,
        &json!({ "do": 7, "pass": "a value that is nobody's business" }),
    );
    post(&hook, &json!({ "do": "ok" }));
    are(&instance, 2, 1);
    let list = eventually("there is a dead letter", SOON, || {
        let list = instance.run(&["dead", "list", "--flow", "checked", "--output", "json"]);
        let list = list.ok().out;
        holds(list.contains("invalid"), || list.clone())?;
        Ok(list)
    });
    assert!(list.contains("`.do`"), "{list}");
    assert!(list.contains("string"), "{list}");
    assert!(!list.contains("nobody's business"), "{list}");
    let status = instance.status("checked");
    assert_eq!(
        status["steps"][0]["retrying"].as_u64().unwrap_or(0),
        0,
        "{status}"
    );
}

#[test]
fn a_body_that_is_not_what_the_step_takes_is_only_told_when_that_is_wanted() {
    let instance = Instance::start(BrokerVersion::V40);
    instance.apply(&checked("warn"));
    let hook = hook(&instance, "checked");
    // `count` is a number that is not negative: the schema says so, and the step looks at it only
    // when it needs it.
    post(&hook, &json!({ "do": "ok" }));
    for _ in 0..20 {
        post(&hook, &json!({ "do": "ok", "delays": "none" }));
    }
    eventually("the step was handed them, and gave them up", SOON, || {
        let list = instance.run(&["dead", "list", "--flow", "checked", "--output", "json"]);
        let list = list.ok().out;
        holds(list.matches("\"permanent\"").count() >= 20, || list.clone())
    });
    are(&instance, 1, 20);
    let log = instance
        .run(&["logs", "checked", "--tail", "1000"])
        .ok()
        .out;
    let warnings = log.matches("not what the step takes").count();
    assert!((1..=2).contains(&warnings), "one line, not twenty:\n{log}");
}

/// An image with a manifest of a test's own.
fn image(instance: &Instance, name: &str, manifest: &Value) -> String {
    let text = format!("FROM towpath/test-step:test\nLABEL io.towpath.manifest='{manifest}'\n");
    let file = instance.write(&format!("{name}.Dockerfile"), &text);
    let folder = file.rsplit_once('/').expect("a folder").0;
    let image = format!("towpath/{name}:{}", instance.name);
    docker(&["build", "--quiet", "--tag", &image, "--file", &file, folder]);
    image
}

#[test]
fn what_a_step_emits_is_held_against_what_the_next_one_takes_before_anything_runs() {
    let instance = Instance::start(BrokerVersion::V40);
    let object = |kind: &str| json!({ "type": "object", "properties": { "cents": { "type": kind } }, "required": ["cents"] });
    let manifest = |name: &str, input: Value, output: Value| json!({ "contract": 1, "name": name, "kind": "action", "input": input, "ports": { "out": output, "late": {} } });
    let text = image(
        &instance,
        "text",
        &manifest("text", json!(true), object("string")),
    );
    let crm = image(
        &instance,
        "crm",
        &manifest("crm", object("integer"), json!(null)),
    );
    let flow = |after: &str| {
        format!(
            "flow: fitting\ntrigger: {{ id: hook, webhook: true }}\nactions:\n  - {{ id: make, image: \"{text}\" }}\n  - {{ id: take, image: \"{crm}\", after: {after} }}\n"
        )
    };
    let path = instance.write("fitting.yaml", &flow("make"));
    for verb in ["plan", "apply"] {
        let said = instance.run(&[verb, &path]);
        assert_eq!(said.code, 1, "{said:?}");
        for part in ["F105", "`make`", "`take`", "`.cents`", "fitting.yaml:5:"] {
            assert!(said.err.contains(part), "no {part} in {}", said.err);
        }
    }
    // Nothing is known of what leaves by the other port.
    let path = instance.write("fitting.yaml", &flow("make.late"));
    instance.run(&["plan", &path]).ok();
    for image in [&text, &crm] {
        docker(&["image", "rm", "--force", image]);
    }
}

/// An HTTP server of the test's own that notes when each request came.
struct Target {
    url: String,
    came: Arc<Mutex<Vec<Instant>>>,
}

impl Target {
    fn start(instance: &Instance) -> Self {
        let listener = TcpListener::bind("0.0.0.0:0").expect("a port is free");
        let port = listener.local_addr().expect("it has an address").port();
        let came = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&came);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let noted = Arc::clone(&noted);
                std::thread::spawn(move || answer(stream, &noted));
            }
        });
        Self {
            url: format!("http://{}:{port}/", instance.gateway()),
            came,
        }
    }

    fn came(&self) -> Vec<Instant> {
        self.came.lock().expect("nobody panicked").clone()
    }

    /// The most requests that came within so long.
    fn most_within(&self, time: Duration) -> usize {
        let came = self.came();
        let from = came.iter().enumerate();
        from.map(|(index, from)| {
            came[index..]
                .iter()
                .take_while(|at| **at < *from + time)
                .count()
        })
        .max()
        .unwrap_or(0)
    }
}

/// Answers requests on one connection: none of them has a body that matters.
fn answer(mut stream: TcpStream, noted: &Mutex<Vec<Instant>>) {
    let mut read = Vec::new();
    let mut part = [0; 4096];
    loop {
        let Ok(count @ 1..) = stream.read(&mut part) else {
            return;
        };
        read.extend_from_slice(&part[..count]);
        while let Some(end) = whole_request(&read) {
            noted.lock().expect("nobody panicked").push(Instant::now());
            read.drain(..end);
            if stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                .is_err()
            {
                return;
            }
        }
    }
}

/// The length of the request at the beginning, if all of it is there.
fn whole_request(read: &[u8]) -> Option<usize> {
    let head = read.windows(4).position(|it| it == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&read[..head]).to_lowercase();
    let length = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"));
    let length = length.and_then(|it| it.trim().parse().ok()).unwrap_or(0);
    (read.len() >= head + length).then_some(head + length)
}

const RATE: usize = 10;

fn paced(target: &Target) -> String {
    format!(
        r#"
flow: paced
trigger: {{ id: hook, webhook: true }}
actions:
  - id: call
    image: towpath/http-request:test
    rate: {RATE}/s
    with: {{ method: POST, url: "{}" }}
"#,
        target.url
    )
}

#[test]
fn no_more_than_the_rate_is_handed_over_by_all_replicas_together() {
    const REPLICAS: usize = 4;
    let instance = Instance::start(BrokerVersion::V40);
    let target = Target::start(&instance);
    instance.apply(&paced(&target));
    let hook = hook(&instance, "paced");
    for number in 0..600 {
        post(&hook, &json!({ "id": number }));
    }
    let reach = |count: usize| {
        eventually(&format!("{count} requests came"), LONG, || {
            let came = target.came().len();
            holds(came >= count, || format!("{came} came"))
        });
    };
    reach(50);
    eventually("it says what holds it back", SOON, || {
        let status = instance.run(&["status", "paced"]).ok().out;
        holds(status.contains("held back by its rate of 10/s"), || status)
    });
    // More replicas, one that is killed, and a control plane that is away.
    instance.run(&["scale", "paced", "call", "4"]).ok();
    reach(150);
    let one = instance.containers("paced", Some("call"));
    let one = one.values().next().expect("a container").clone();
    docker(&["kill", &one]);
    reach(250);
    instance.kill_control_plane();
    let begin = Instant::now();
    reach(target.came().len() + 50);
    let took = begin.elapsed();
    assert!(
        took < Duration::from_secs(30),
        "it goes on without it: {took:?}"
    );
    instance.launch();
    reach(600);
    // Requests that were handed over in time may come together where machines are busy.
    let late = RATE / 2;
    let most = target.most_within(Duration::from_secs(1));
    assert!(most <= RATE + REPLICAS + late, "{most} within a second");
    let most = target.most_within(Duration::from_secs(10));
    assert!(
        most <= 10 * RATE + REPLICAS + late,
        "{most} within ten seconds"
    );
}
