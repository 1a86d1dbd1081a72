//! What the real agent tells the control plane over a real broker, and what it says when the broker
//! takes something away.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::{Agent, Bench};

#[tokio::test]
async fn an_agent_answers_a_question_about_a_message() {
    let bench = Bench::new("found", |_| {}).await;
    let mut reports = bench.read(&bench.reports()).await;
    let mut out = bench.read(&bench.out()).await;
    let agent = Agent::start(&bench.start);
    let ids = bench.publish(&[json!({"number": 1})], 1).await;
    let outputs = out.until("the output", |lines| !lines.is_empty()).await;
    let child = outputs[0]["id"].clone();
    let lines = reports
        .until("a report that can be answered", |lines| {
            lines.iter().any(|line| line["reply_to"].is_string())
        })
        .await;
    let report = lines.iter().find(|line| line["reply_to"].is_string());
    let report = report.expect("there is one").clone();
    let text = |key: &str| report[key].as_str().expect("a string").to_owned();
    let (correlation, reply_to) = (text("correlation"), text("reply_to"));
    let find = json!({"find": {"question": 42, "id": ids[0]}});
    bench.answer(&correlation, &reply_to, &find).await;
    let lines = reports
        .until("an answer", |lines| {
            lines.iter().any(|line| line["question"] == 42)
        })
        .await;
    let found = lines.iter().find(|line| line["question"] == 42);
    let events = found.expect("there is one")["events"].clone();
    assert_eq!(events[0]["id"], child, "{events:#}");
    assert_eq!(events[0]["what"]["emitted"]["parent"], ids[0].to_string());
    assert_eq!(events[1]["what"]["done"]["attempt"], 1, "{events:#}");
    agent.drain().await;
    bench.clean().await;
}

#[tokio::test]
async fn a_message_that_waits_is_noted_and_takes_what_was_logged_with_it() {
    let bench = Bench::new("notes", |start| start.settings.concurrency = 1).await;
    let mut notes = bench.read(&bench.notes()).await;
    let mut dead = bench.read(&bench.dead()).await;
    let agent = Agent::start(&bench.start);
    let ids = bench.publish(&[json!({"do": "exit", "code": 3})], 1).await;
    let lines = notes.until("two notes", |lines| lines.len() >= 2).await;
    assert_eq!(lines[0]["id"], ids[0].to_string());
    assert_eq!(lines[1]["attempt"], 3, "{lines:#?}");
    assert!(
        lines[1]["since"].as_u64() < lines[1]["due"].as_u64(),
        "{lines:#?}"
    );
    let letters = dead.until("a dead letter", |lines| !lines.is_empty()).await;
    let attempts = letters[0]["attempts"].as_array().expect("attempts");
    assert_eq!(attempts.len(), 3, "{letters:#?}");
    agent.drain().await;
    bench.clean().await;
}

#[tokio::test]
async fn a_queue_that_was_deleted_is_taken_from_again_when_it_is_back() {
    let mut bench = Bench::new("deleted", |_| {}).await;
    let mut out = bench.read(&bench.out()).await;
    let mut reports = bench.read(&bench.reports()).await;
    let agent = Agent::start(&bench.start);
    bench.publish(&[json!({"number": 1})], 1).await;
    out.until("the output", |lines| !lines.is_empty()).await;
    bench.replace_queue(Duration::from_secs(2)).await;
    bench.publish(&[json!({"number": 2})], 1).await;
    out.until("the next output", |lines| lines.len() >= 2).await;
    agent.logs("the broker cancelled the consumer").await;
    agent.logs("the step's queue is not there").await;
    let told = |line: &Value| {
        line["state"] == "running"
            && line["reason"]
                .as_str()
                .is_some_and(|reason| reason.contains("was made again"))
    };
    reports
        .until("a report that says so", |lines| lines.iter().any(told))
        .await;
    agent.drain().await;
    bench.clean().await;
}

#[tokio::test]
async fn a_login_that_is_refused_is_named_and_tried_again() {
    let bench = Bench::new("login", |_| {}).await;
    let mut start = bench.start.clone();
    let (scheme, rest) = start.broker_url.split_once("://").expect("a URL");
    let (user, host) = rest.rsplit_once('@').expect("a user");
    let (user, _) = user.split_once(':').expect("a password");
    start.broker_url = format!("{scheme}://{user}:not-the-password@{host}");
    let agent = Agent::start(&start);
    agent.logs("the broker refuses the login").await;
    assert!(
        !agent
            .log()
            .iter()
            .any(|line| line.contains("not-the-password")),
        "no secret is logged"
    );
    drop(agent);
    bench.clean().await;
}
