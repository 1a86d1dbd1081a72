//! The real agent on a real broker while things break: counted messages, none lost.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use support::{Agent, Bench, DEADLINE};
use towpath_protocol::MessageId;
use towpath_protocol::manifest::Kind;

fn ids(lines: &[Value]) -> BTreeSet<String> {
    lines
        .iter()
        .map(|line| line["id"].as_str().expect("an id").to_owned())
        .collect()
}

fn derived(parents: &[MessageId]) -> BTreeSet<String> {
    parents
        .iter()
        .map(|parent| MessageId::derive(*parent, "step", "out", 0).to_string())
        .collect()
}

fn echo(count: usize) -> Vec<Value> {
    (0..count).map(|number| json!({"number": number})).collect()
}

async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let deadline = std::time::Instant::now() + DEADLINE;
    while !check().await {
        assert!(
            std::time::Instant::now() < deadline,
            "waited too long for {what}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Closes the connections of one agent from the broker's side; returns how many there were.
fn close_connections(bench: &Bench) -> usize {
    bench.close_connections_of(&format!("{}.flow.step.1", bench.prefix))
}

#[tokio::test]
async fn a_drain_finishes_what_is_started_and_gives_back_the_rest() {
    let bench = Bench::new("drain", |start| start.settings.concurrency = 4).await;
    let mut out = bench.read(&bench.out()).await;
    let parents = bench
        .publish(&vec![json!({"do": "sleep", "ms": 300}); 60], 1)
        .await;
    let agent = Agent::start(&bench.start);
    out.until("the first outputs", |lines| lines.len() >= 4)
        .await;
    agent.drain().await;
    let queue = bench.start.routes.queue.clone();
    eventually("what was not started to be back", async || {
        bench.waiting(&queue).await > 30
    })
    .await;
    let waiting = bench.waiting(&queue).await as usize;
    let done = out
        .until("what was finished", |lines| lines.len() + waiting >= 60)
        .await
        .len();
    assert_eq!(
        done + waiting,
        60,
        "nothing was handled and given back as well"
    );
    let agent = Agent::start(&bench.start);
    let lines = out.until("the rest", |lines| lines.len() >= 60).await;
    assert_eq!(lines.len(), 60);
    assert_eq!(ids(lines), derived(&parents));
    agent.drain().await;
    bench.clean().await;
}

#[tokio::test]
async fn a_step_that_does_not_finish_is_killed_at_the_drain_deadline() {
    let bench = Bench::new("late", |start| start.settings.drain_ms = 500).await;
    let mut agent = Agent::start(&bench.start);
    bench.publish(&[json!({"do": "hang"})], 1).await;
    let queue = bench.start.routes.queue.clone();
    agent.logs("the step is ready").await;
    eventually("the message to be taken", async || {
        bench.waiting(&queue).await == 0
    })
    .await;
    agent.signal(Signal::TERM);
    assert_eq!(agent.exit_code().await, Some(3));
    eventually("the message to be back", async || {
        bench.waiting(&queue).await == 1
    })
    .await;
    bench.clean().await;
}

#[tokio::test]
async fn a_paused_agent_takes_nothing_and_a_resumed_one_goes_on() {
    let bench = Bench::new("pause", |_| {}).await;
    let mut out = bench.read(&bench.out()).await;
    let mut reports = bench.read(&bench.reports()).await;
    let agent = Agent::start(&bench.start);
    bench.publish(&echo(5), 5).await;
    out.until("outputs", |lines| lines.len() >= 5).await;
    agent.signal(Signal::USR1);
    let is_paused = |line: &Value| line["state"] == "paused";
    reports
        .until("a report of the pause", |lines| lines.iter().any(is_paused))
        .await;
    bench.publish(&echo(5), 1).await;
    let queue = bench.start.routes.queue.clone();
    eventually("the messages to wait", async || {
        bench.waiting(&queue).await == 5
    })
    .await;
    agent.signal(Signal::USR2);
    out.until("the rest", |lines| lines.len() >= 10).await;
    assert!(
        !agent
            .log()
            .iter()
            .any(|line| line.contains("start number 2")),
        "the process stays warm"
    );
    agent.drain().await;
    bench.clean().await;
}

#[tokio::test]
async fn an_agent_can_start_paused() {
    let bench = Bench::new("startpaused", |start| start.paused = true).await;
    let mut reports = bench.read(&bench.reports()).await;
    let agent = Agent::start(&bench.start);
    bench.publish(&echo(1), 1).await;
    reports
        .until("a report of the pause", |lines| {
            lines.iter().any(|line| line["state"] == "paused")
        })
        .await;
    assert_eq!(bench.waiting(&bench.start.routes.queue).await, 1);
    agent.drain().await;
    bench.clean().await;
}

#[tokio::test]
async fn connections_closed_in_the_middle_lose_nothing() {
    let bench = Bench::new("closed", |_| {}).await;
    let mut out = bench.read(&bench.out()).await;
    let agent = Agent::start(&bench.start);
    let mut parents = Vec::new();
    for round in 0..4 {
        let mut bodies = echo(2_000);
        bodies.extend(vec![json!({"do": "sleep", "ms": 100}); 20]);
        parents.extend(bench.publish(&bodies, 20).await);
        let so_far = round * 2_020 + 300;
        out.until("some outputs", |lines| lines.len() >= so_far)
            .await;
        eventually("connections to close", async || {
            close_connections(&bench) > 0
        })
        .await;
    }
    let expect = derived(&parents);
    let lines = out
        .until("all outputs", |lines| ids(lines).len() >= expect.len())
        .await;
    assert_eq!(ids(lines), expect);
    eventually("the connection to be back", async || {
        agent
            .log()
            .iter()
            .filter(|line| line.contains("connected to the broker"))
            .count()
            >= 2
    })
    .await;
    agent.drain().await;
    assert_eq!(bench.waiting(&bench.start.routes.queue).await, 0);
    bench.clean().await;
}

#[tokio::test]
async fn what_the_step_has_in_hand_is_not_handed_over_twice_when_the_connection_is_lost() {
    let bench = Bench::new("reattach", |_| {}).await;
    let mut out = bench.read(&bench.out()).await;
    let agent = Agent::start(&bench.start);
    let parents = bench
        .publish(&vec![json!({"do": "sleep", "ms": 4000}); 4], 1)
        .await;
    let queue = bench.start.routes.queue.clone();
    agent.logs("the step is ready").await;
    eventually("the messages to be taken", async || {
        bench.waiting(&queue).await == 0
    })
    .await;
    eventually("connections to close", async || {
        close_connections(&bench) > 0
    })
    .await;
    let lines = out.until("all outputs", |lines| lines.len() >= 4).await;
    assert_eq!(ids(lines), derived(&parents));
    agent.drain().await;
    assert_eq!(
        bench.waiting(&queue).await,
        0,
        "all were acknowledged when they came again"
    );
    bench.publish(&echo(1), 1).await;
    let agent = Agent::start(&bench.start);
    let lines = out.until("a later output", |lines| lines.len() >= 5).await;
    assert_eq!(
        lines[4]["body"]["number"], 0,
        "no output came twice before it: {lines:#?}"
    );
    agent.drain().await;
    bench.clean().await;
}

#[tokio::test]
async fn an_agent_killed_in_the_middle_loses_nothing() {
    let bench = Bench::new("killed", |_| {}).await;
    let mut out = bench.read(&bench.out()).await;
    let parents = bench.publish(&echo(20_000), 50).await;
    let expect = derived(&parents);
    for round in 1..=3 {
        let mut agent = Agent::start(&bench.start);
        out.until("some outputs", |lines| lines.len() >= round * 3_000)
            .await;
        agent.signal(Signal::KILL);
        assert_eq!(agent.exit_code().await, None);
    }
    let agent = Agent::start(&bench.start);
    let lines = out
        .until("all outputs", |lines| ids(lines).len() >= expect.len())
        .await;
    assert_eq!(ids(lines), expect, "and every output has its one id");
    agent.drain().await;
    assert_eq!(bench.waiting(&bench.start.routes.queue).await, 0);
    bench.clean().await;
}

#[tokio::test]
async fn a_step_dies_with_its_agent() {
    let bench = Bench::new("orphan", |_| {}).await;
    let mut agent = Agent::start(&bench.start);
    agent.logs("the step is ready").await;
    let step = agent.step_pid().expect("the agent has one child");
    agent.signal(Signal::KILL);
    agent.exit_code().await;
    eventually("the step to be gone", async || {
        !std::path::Path::new(&format!("/proc/{step}/fd")).exists()
    })
    .await;
    bench.clean().await;
}

#[tokio::test]
async fn a_full_queue_holds_the_agent_back_and_loses_nothing() {
    let bench = Bench::new("full", |_| {}).await;
    bench.limit_out(2).await;
    let mut reports = bench.read(&bench.reports()).await;
    let agent = Agent::start(&bench.start);
    let parents = bench.publish(&echo(1_000), 10).await;
    let is_held = |line: &Value| line["state"] == "held_back";
    reports
        .until("a report of it", |lines| lines.iter().any(is_held))
        .await;
    let mut out = bench.read(&bench.limited_out()).await;
    let expect = derived(&parents);
    let lines = out
        .until("all outputs", |lines| ids(lines).len() >= expect.len())
        .await;
    assert_eq!(ids(lines), expect);
    agent.drain().await;
    bench.clean().await;
}

#[tokio::test]
async fn a_trigger_asks_where_it_was_and_saves_how_far_it_came() {
    let bench = Bench::new("poll", |start| start.kind = Kind::Poll).await;
    let (mut out, mut news) = (
        bench.read(&bench.out()).await,
        bench.read(&bench.news()).await,
    );
    let agent = Agent::start(&bench.start);
    let tick = json!({"why": "manual", "due": 5, "payload": {"items": 25}});
    let run = bench.publish(&[tick], 1).await[0];
    let ask = news.next("the question").await;
    assert_eq!(ask["ask_checkpoint"]["run"], run.to_string());
    // Nobody answered: it asks again.
    let ask = news.next("the question again").await;
    let (correlation, reply_to) = (&ask["correlation"], &ask["reply_to"]);
    let answer = json!({"checkpoint": {"run": run, "checkpoint": 100}});
    bench
        .answer(
            correlation.as_str().expect("one"),
            reply_to.as_str().expect("one"),
            &answer,
        )
        .await;
    let lines = out.until("25 outputs", |lines| lines.len() >= 25).await;
    let expect = MessageId::from_source("flow", "step", "out", "100").to_string();
    assert_eq!(
        (&lines[0]["id"], &lines[0]["parent"]),
        (&json!(expect), &json!(run.to_string()))
    );
    assert_eq!(lines[0]["body"]["number"], 100);
    let ended = |line: &Value| line["run_ended"]["emitted"] == 25;
    let news = news
        .until("the end of the run", |lines| lines.iter().any(ended))
        .await;
    let saved: Vec<_> = news
        .iter()
        .filter_map(|line| line["checkpoint"]["value"].as_u64())
        .collect();
    assert_eq!(saved.last(), Some(&125));
    assert!(saved.is_sorted(), "{saved:?}");
    assert!(
        ended(news.last().expect("there is some")),
        "the end comes after every checkpoint"
    );
    agent.drain().await;
    assert_eq!(bench.waiting(&bench.start.routes.queue).await, 0);
    bench.clean().await;
}

#[tokio::test]
async fn a_bad_start_document_is_refused_without_quoting_it() {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let mut agent = Command::new(env!("CARGO_BIN_EXE_towpath-agent"))
        .args(["--", "true"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut stdin = agent.stdin.take().expect("a pipe");
    stdin
        .write_all(br#"{"contract":1,"broker_url":17,"my":"secret"}"#)
        .expect("it reads");
    drop(stdin);
    let output = agent.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.starts_with("error: the start document is not understood"),
        "{text}"
    );
    assert!(!text.contains("secret"), "{text}");
}
