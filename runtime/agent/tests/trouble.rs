//! The real agent on a real broker while things break: counted messages, none lost.

mod support;

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use support::{Agent, Bench, DEADLINE, derived, ids};
use towpath_protocol::MessageId;
use towpath_protocol::manifest::Kind;

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
    let mut parents = bench.publish(&echo(20_000), 50).await;
    for round in 1..=3 {
        let mut agent = Agent::start(&bench.start);
        out.until("some outputs", |lines| lines.len() >= round * 3_000)
            .await;
        agent.signal(Signal::KILL);
        assert_eq!(agent.exit_code().await, None);
    }
    // It comes after all that came back.
    parents.extend(bench.publish(&echo(1), 1).await);
    let expect = derived(&parents);
    let agent = Agent::start(&bench.start);
    let lines = out
        .until("all outputs", |lines| ids(lines).len() >= expect.len())
        .await;
    assert_eq!(ids(lines), expect, "and every output has its one id");
    agent.drain().await;
    assert_eq!(bench.waiting(&bench.start.routes.queue).await, 0);
    bench.clean().await;
}

/// Answers claims until something else is told to the ledger, which is returned.
async fn grant_until_told(bench: &Bench, ledger: &mut support::Reader) -> Value {
    loop {
        let entry = ledger.next("an entry of the ledger").await;
        if entry.get("claim").is_none() {
            return entry;
        }
        bench.grant(&entry, &json!({"yours": {}})).await;
    }
}

#[tokio::test]
async fn a_delivery_that_came_back_again_and_again_is_taken_apart() {
    let bench = Bench::new("apart", |_| {}).await;
    let mut out = bench.read(&bench.out()).await;
    let mut ledger = bench.read(&bench.ledger()).await;
    // The first is in the way of the others, as what kills a container is.
    let bodies = [json!({"do": "hang"}), json!({}), json!({})];
    let parents = bench.publish(&bodies, 3).await;
    let queue = bench.start.routes.queue.clone();
    for _ in 0..2 {
        let mut agent = Agent::start(&bench.start);
        agent.logs("the step is ready").await;
        eventually("the messages to be taken", async || {
            bench.waiting(&queue).await == 0
        })
        .await;
        agent.signal(Signal::KILL);
        agent.exit_code().await;
        eventually("the messages to be back", async || {
            bench.waiting(&queue).await == 1
        })
        .await;
    }
    let agent = Agent::start(&bench.start);
    agent
        .logs("came back 2 times: its 3 messages are taken one by one")
        .await;
    let claim = ledger.next("a claim").await;
    assert_eq!(claim["claim"]["alone"], true, "{claim:#}");
    let died = json!({"yours": {"uncertain": true, "deaths": 3, "death": "killed by the memory limit, 256 MiB"}});
    let ids = bench.grant(&claim, &died).await;
    assert_eq!(ids, [parents[0].to_string()], "one at a time");
    let mut dead = bench.read(&bench.dead()).await;
    let letter = dead.next("a dead letter").await;
    assert_eq!(
        letter["reason"],
        "its container died with it alone in hand: killed by the memory limit, 256 MiB; attempt 3"
    );
    let mut settled = Vec::new();
    while settled.len() < 3 {
        let told = grant_until_told(&bench, &mut ledger).await;
        let messages = told["settled"]["messages"].as_array().expect("settled");
        settled.extend(messages.iter().map(|it| it[0].to_string()));
    }
    out.until("its neighbours", |lines| lines.len() >= 2).await;
    agent.drain().await;
    assert_eq!(bench.waiting(&queue).await, 0);
    bench.clean().await;
}

#[tokio::test]
async fn with_once_only_what_is_granted_is_handed_over() {
    let bench = Bench::new("once", |start| start.settings.once = true).await;
    let mut out = bench.read(&bench.out()).await;
    let mut ledger = bench.read(&bench.ledger()).await;
    let agent = Agent::start(&bench.start);
    let settled = bench.publish(&echo(2), 2).await;
    let claim = ledger.next("a claim").await;
    let ids = bench.grant(&claim, &json!("settled")).await;
    assert_eq!(
        ids,
        settled.iter().map(ToString::to_string).collect::<Vec<_>>()
    );
    let busy = bench.publish(&echo(1), 1).await;
    let claim = ledger.next("a claim").await;
    bench
        .grant(&claim, &json!({"busy": {"again_ms": 300}}))
        .await;
    // It comes back by the ladder, and is asked for again.
    let told = grant_until_told(&bench, &mut ledger).await;
    assert_eq!(
        told["settled"]["messages"],
        json!([[busy[0].to_string(), 0]]),
        "{told:#}"
    );
    let lines = out.until("one output", |lines| !lines.is_empty()).await;
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0]["parent"], busy[0].to_string());
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
