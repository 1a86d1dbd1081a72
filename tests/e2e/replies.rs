//! Webhooks that wait for what their flow answers: by real requests, with a target that takes its time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use towpath_tests::machine::docker;
use towpath_tests::{BrokerVersion, Instance, Source, eventually, holds, http};

use crate::{SOON, flow_of_readme};

/// A target that answers nobody until it is told to.
struct Target {
    source: Source,
    calls: Arc<AtomicUsize>,
    gate: Arc<Semaphore>,
    status: Arc<Mutex<StatusCode>>,
}

#[derive(Clone)]
struct Held {
    calls: Arc<AtomicUsize>,
    gate: Arc<Semaphore>,
    status: Arc<Mutex<StatusCode>>,
}

async fn work(State(held): State<Held>) -> (StatusCode, axum::Json<Value>) {
    let call = held.calls.fetch_add(1, Ordering::SeqCst) + 1;
    if let Ok(permit) = held.gate.acquire().await {
        permit.forget();
    }
    let status = *held.status.lock().unwrap_or_else(PoisonError::into_inner);
    (status, axum::Json(json!({"call": call})))
}

impl Target {
    fn start(instance: &Instance) -> Self {
        let held = Held {
            calls: Arc::default(),
            gate: Arc::new(Semaphore::new(0)),
            status: Arc::new(Mutex::new(StatusCode::OK)),
        };
        let router = Router::new()
            .route("/", post(work))
            .with_state(held.clone());
        let Held {
            calls,
            gate,
            status,
        } = held;
        Self {
            source: Source::start(instance, router),
            calls,
            gate,
            status,
        }
    }

    /// Lets so many calls be answered.
    fn answer(&self, count: usize) {
        self.gate.add_permits(count);
    }

    fn is_called(&self, count: usize) {
        eventually(&format!("the target is called {count} times"), SOON, || {
            let calls = self.calls.load(Ordering::SeqCst);
            holds(calls == count, || format!("{calls} calls"))
        });
    }
}

/// A flow that answers with what a target says, and the URL of its webhook.
fn begin(wait: &str) -> (Instance, Target, String) {
    let instance = Instance::start(BrokerVersion::V40);
    let target = Target::start(&instance);
    instance.apply(&format!(
        r#"
flow: ask
trigger: {{ id: request, webhook: {{ reply: {wait} }} }}
actions:
  - id: work
    image: towpath/http-request:test
    with: {{ url: "{}/" }}
  - id: answer
    image: towpath/reply:test
    with:
      status: 201
      headers: {{ location: "/calls/{{{{ .body.call }}}}" }}
      body: {{ call: "{{{{ .body.call }}}}" }}
"#,
        target.source.url
    ));
    let hook = hook(&instance, "ask");
    (instance, target, hook)
}

fn hook(instance: &Instance, flow: &str) -> String {
    instance.status(flow)["webhook_url"]
        .as_str()
        .expect("a URL")
        .to_owned()
}

fn ask(hook: &str, key: Option<&str>) -> Result<http::Answer, String> {
    let headers: Vec<(&str, &str)> = key.iter().map(|key| ("idempotency-key", *key)).collect();
    http::send_with("POST", hook, &headers, b"{\"n\":1}")
}

#[track_caller]
fn answered(answer: &http::Answer, call: usize) -> String {
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(answer.headers["location"], format!("/calls/{call}"));
    assert_eq!(answer.text, format!("{{\"call\":{call}}}"));
    answer.headers["towpath-run"].clone()
}

fn run(instance: &Instance, run: &str) -> Value {
    let said = instance.run(&["runs", "show", run, "--output", "json"]);
    said.ok().json()
}

#[test]
fn the_flow_of_the_readme_of_reply_answers_with_status_headers_and_body() {
    let instance = Instance::start(BrokerVersion::V40);
    instance.apply(&flow_of_readme(include_str!("../../steps/reply/README.md")));
    let hook = hook(&instance, "quotes");
    let quote = eventually("the flow answers", SOON, || {
        let body = b"{\"sku\": \"apple\", \"count\": 4}";
        let answer = http::send_with("POST", &hook, &[], body)?;
        holds(answer.status != 202, || {
            "its steps are not there".to_owned()
        })?;
        Ok(answer)
    });
    assert_eq!(quote.status, 201, "{quote:?}");
    assert_eq!(quote.headers["location"], "/quotes/apple");
    assert_eq!(quote.headers["content-type"], "application/json");
    let body: Value = serde_json::from_str(&quote.text).expect("JSON");
    assert_eq!(body, json!({"cents": 1000, "text": "4 of apple"}));
    let id = &quote.headers["towpath-run"];
    eventually("its run is done, and has the answer", SOON, || {
        let run = run(&instance, id);
        let is_done = run["state"] == "done" && run["answer"]["status"] == 201;
        holds(is_done, || run.to_string())
    });
    let shown = instance.run(&["runs", "show", id]).ok().out;
    assert!(shown.contains("201  location: /quotes/apple"), "{shown}");
}

#[test]
fn whoever_waits_is_answered_though_the_container_is_killed_in_the_middle() {
    let (instance, target, hook) = begin("50s");
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| ask(&hook, None));
        target.is_called(1);
        for container in instance.containers("ask", Some("work")).values() {
            docker(&["kill", container]);
        }
        target.answer(1);
        target.is_called(2);
        target.answer(1);
        answered(&asked.join().expect("no panic").expect("an answer"), 2);
    });
}

#[test]
fn after_its_time_a_request_is_answered_202_and_the_late_answer_is_kept_with_its_run() {
    let (instance, target, hook) = begin("1s");
    let taken = ask(&hook, Some("k1")).expect("an answer");
    assert_eq!(taken.status, 202, "{taken:?}");
    let body: Value = serde_json::from_str(&taken.text).expect("JSON");
    let id = body["id"].as_str().expect("the id of its run");
    let open = run(&instance, id);
    assert_eq!(
        (&open["state"], &open["answer"]),
        (&json!("running"), &Value::Null)
    );
    target.is_called(1);
    target.answer(1);
    eventually("the late answer is there", SOON, || {
        let run = run(&instance, id);
        let is_there = run["answer"]["body"] == json!({"call": 1}) && run["state"] == "done";
        holds(is_there, || run.to_string())
    });
    // Whoever sends the request again gets it.
    assert_eq!(answered(&ask(&hook, Some("k1")).expect("an answer"), 1), id);
    target.is_called(1);
}

#[test]
fn a_repeated_delivery_gets_the_answer_of_the_first_not_only_its_sender() {
    let (mut instance, target, hook) = begin("50s");
    std::thread::scope(|scope| {
        let first = scope.spawn(|| ask(&hook, Some("k1")));
        target.is_called(1);
        let others: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| ask(&hook, Some("k1"))))
            .collect();
        target.answer(1);
        let first = first.join().expect("no panic").expect("an answer");
        let id = answered(&first, 1);
        for other in others {
            let other = other.join().expect("no panic").expect("an answer");
            assert_eq!(answered(&other, 1), id);
        }
    });
    // The control plane dies while somebody waits: the answer is not lost.
    std::thread::scope(|scope| {
        let cut_off = scope.spawn(|| ask(&hook, Some("k2")));
        target.is_called(2);
        instance.kill();
        assert!(cut_off.join().expect("no panic").is_err());
    });
    target.answer(1);
    instance.serve();
    let again = eventually("it is there again", SOON, || ask(&hook, Some("k2")));
    answered(&again, 2);
    answered(&ask(&hook, Some("k1")).expect("an answer"), 1);
    target.is_called(2);
}

#[test]
fn whoever_waits_for_what_the_flow_gave_up_is_told_so_at_once() {
    let (instance, target, hook) = begin("50s");
    *target.status.lock().unwrap_or_else(PoisonError::into_inner) = StatusCode::BAD_REQUEST;
    target.answer(1);
    let begun = Instant::now();
    let refused = ask(&hook, None).expect("an answer");
    assert!(begun.elapsed() < Duration::from_secs(45), "it did not wait");
    assert_eq!(refused.status, 502, "{refused:?}");
    let body: Value = serde_json::from_str(&refused.text).expect("JSON");
    assert_eq!(body["error"]["code"], "given_up");
    let message = body["error"]["message"].as_str().expect("a message");
    let runs = instance.run(&["runs", "list", "ask", "--output", "json"]);
    let runs = runs.ok().json();
    let id = runs["runs"][0]["id"].as_str().expect("a run");
    assert!(message.contains(id), "{message}");
    assert_eq!(runs["runs"][0]["state"], "done_with_dead_letters");
}

/// A step by the protocol's page alone. It answers twice, and cannot be sent what it says of `odd`.
const PYTHON: &str = r#"
import json
say = open(4, "w")
for line in open(3):
    frame = json.loads(line)
    if "hello" in frame:
        out = [{"ready": {"contract": 1}}]
    elif "message" in frame:
        id, body = frame["message"]["id"], frame["message"]["body"]
        answer = body if body == "odd" else {"status": 404, "body": body}
        emit = lambda body: {"emit": {"id": id, "port": "reply", "body": body}}
        out = [emit(answer), emit({"status": 200}), {"done": {"id": id}}]
    else:
        break
    say.write("".join(json.dumps(frame) + "\n" for frame in out))
    say.flush()
"#;

#[test]
fn a_step_in_any_language_answers_and_is_told_what_cannot_be_sent() {
    let instance = Instance::start(BrokerVersion::V310);
    let command = json!(["python3", "-c", PYTHON]);
    instance.apply(&format!(
        r#"
flow: python
trigger: {{ id: request, webhook: {{ reply: 50s }} }}
actions:
  - id: answer
    image: towpath/demo-enrich:test
    command: {command}
"#
    ));
    let hook = hook(&instance, "python");
    let ask = |body: &str| {
        let answer = http::send("POST", &hook, None, Some(body)).expect("an answer");
        (answer.status, answer.text)
    };
    assert_eq!(ask("[1.50]"), (404, "[1.5]".to_owned()));
    let (status, text) = ask("\"odd\"");
    assert_eq!(status, 502, "{text}");
    assert!(text.contains("unusable_answer"), "{text}");
}
