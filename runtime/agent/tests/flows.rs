//! The real agent on a real broker: what comes of messages, one behaviour a test.

mod support;

use serde_json::{Value, json};
use support::{Agent, Bench, derived, ids, report};
use towpath_protocol::MessageId;

fn echo(count: usize) -> Vec<Value> {
    (0..count).map(|number| json!({"number": number})).collect()
}

#[tokio::test]
async fn messages_flow_through() {
    let bench = Bench::new("through", |_| {}).await;
    let mut out = bench.read(&bench.out()).await;
    let agent = Agent::start(&bench.start);
    let parents = bench.publish(&echo(1000), 10).await;
    let lines = out.until("1000 outputs", |lines| lines.len() >= 1000).await;
    assert_eq!(lines.len(), 1000);
    assert_eq!(ids(lines), derived(&parents));
    assert_eq!(lines[0]["lineage"]["version"], 1);
    assert_eq!(lines[0]["parent"], lines[0]["lineage"]["run"]);
    agent.drain().await;
    assert_eq!(bench.waiting(&bench.start.routes.queue).await, 0);
    bench.clean().await;
}

/// Publishes one message that asks for a behaviour among healthy ones, and checks that the healthy
/// ones come through.
async fn among_neighbours(bench: &Bench, body: Value, neighbours: usize) -> MessageId {
    let mut bodies = echo(neighbours);
    bodies.insert(neighbours / 2, body);
    let mut ids = bench.publish(&bodies, 100).await;
    ids.remove(neighbours / 2)
}

#[tokio::test]
async fn what_fails_is_tried_again_and_then_succeeds() {
    let bench = Bench::new("retry", |_| {}).await;
    let mut out = bench.read(&bench.out()).await;
    let agent = Agent::start(&bench.start);
    let id = among_neighbours(&bench, json!({"do": "retry_until", "at": 3}), 20).await;
    let lines = out.until("21 outputs", |lines| lines.len() >= 21).await;
    let last = lines.last().expect("there are 21");
    assert_eq!(
        last["parent"],
        id.to_string(),
        "it comes last, because it waits twice"
    );
    assert_eq!(
        last["body"]["attempt"], 3,
        "the step sees which attempt it is"
    );
    assert_eq!(last["body"]["history"].as_array().map(Vec::len), Some(2));
    assert_eq!(last["body"]["history"][0]["reason"], "not this time, ***");
    assert!(
        !lines.iter().any(|line| line["body"] == "must not be seen"),
        "what fails emits nothing"
    );
    agent.drain().await;
    bench.clean().await;
}

#[tokio::test]
async fn attempts_are_used_up() {
    let bench = Bench::new("attempts", |_| {}).await;
    let mut dead = bench.read(&bench.dead()).await;
    let agent = Agent::start(&bench.start);
    let id = bench
        .publish(&[json!({"do": "retry_until", "at": 99})], 1)
        .await[0];
    let letter = dead.next("a dead letter").await;
    assert_eq!(letter["cause"], "attempts");
    assert_eq!(letter["message"]["id"], id.to_string());
    assert_eq!(letter["attempts"].as_array().map(Vec::len), Some(3));
    assert_eq!(letter["chain"], json!(["because", "of that"]));
    agent.drain().await;
    bench.clean().await;
}

#[tokio::test]
async fn what_can_never_work_is_given_up_at_once() {
    let bench = Bench::new("permanent", |_| {}).await;
    let mut dead = bench.read(&bench.dead()).await;
    let mut out = bench.read(&bench.out()).await;
    let agent = Agent::start(&bench.start);
    let id = among_neighbours(&bench, json!({"do": "permanent"}), 10).await;
    let letter = dead.next("a dead letter").await;
    assert_eq!(
        (&letter["cause"], &letter["reason"]),
        (&json!("permanent"), &json!("it can never work"))
    );
    assert_eq!(letter["message"]["id"], id.to_string());
    out.until("its neighbours", |lines| lines.len() >= 10).await;
    agent.drain().await;
    bench.clean().await;
}

#[tokio::test]
async fn what_is_not_yet_due_comes_back_without_a_failure() {
    let bench = Bench::new("rebound", |start| start.settings.retry.attempts = 1).await;
    let mut out = bench.read(&bench.out()).await;
    let agent = Agent::start(&bench.start);
    bench
        .publish(&[json!({"do": "rebound", "delay_ms": 600})], 1)
        .await;
    let begun = std::time::Instant::now();
    let line = out.next("its output").await;
    assert!(begun.elapsed().as_millis() >= 600, "never early");
    assert_eq!(
        (&line["body"]["rebounds"], &line["body"]["attempt"]),
        (&json!(1), &Value::Null)
    );
    agent.drain().await;
    bench.clean().await;
}

#[tokio::test]
async fn what_hangs_is_cancelled_and_killed_and_its_neighbour_loses_no_attempt() {
    let bench = Bench::new("timeout", |start| {
        start.settings.timeout_ms = 500;
        start.settings.concurrency = 2;
        start.settings.retry.attempts = 1;
    })
    .await;
    let (mut dead, mut out) = (
        bench.read(&bench.dead()).await,
        bench.read(&bench.out()).await,
    );
    let agent = Agent::start(&bench.start);
    let hang = json!({"do": "hang"});
    let neighbour = json!({"do": "echo", "neighbour": true});
    let id = bench.publish(&[hang, neighbour], 2).await[0];
    // The step blocks: both time out, and then each is tried alone.
    let letter = dead.next("a dead letter").await;
    assert_eq!(
        (&letter["cause"], &letter["message"]["id"]),
        (&json!("attempts"), &json!(id.to_string()))
    );
    assert_eq!(
        letter["reason"],
        "the step took longer than 500 ms, did not come back when told to, and was killed"
    );
    bench.publish(&echo(5), 5).await;
    out.until("the neighbour's output, and the next ones'", |lines| {
        lines.len() >= 6
    })
    .await;
    agent.drain().await;
    bench.clean().await;
}

#[tokio::test]
async fn a_process_that_dies_costs_one_message_its_attempt() {
    let bench = Bench::new("crash", |start| {
        start.settings.concurrency = 1;
        start.settings.retry.attempts = 2;
    })
    .await;
    let (mut dead, mut out) = (
        bench.read(&bench.dead()).await,
        bench.read(&bench.out()).await,
    );
    let agent = Agent::start(&bench.start);
    let id = among_neighbours(&bench, json!({"do": "exit", "code": 7}), 20).await;
    let letter = dead.next("a dead letter").await;
    assert_eq!(
        (&letter["cause"], &letter["message"]["id"]),
        (&json!("attempts"), &json!(id.to_string()))
    );
    assert_eq!(letter["reason"], "the step process exited with code 7");
    assert_eq!(letter["chain"], json!(["last words, ***"]));
    assert_eq!(letter["attempts"].as_array().map(Vec::len), Some(2));
    out.until("its neighbours", |lines| lines.len() >= 20).await;
    agent.drain().await;
    bench.clean().await;
}

#[tokio::test]
async fn a_poison_message_costs_its_neighbours_nothing() {
    let bench = Bench::new("poison", |start| start.settings.retry.attempts = 2).await;
    let (mut dead, mut out) = (
        bench.read(&bench.dead()).await,
        bench.read(&bench.out()).await,
    );
    let agent = Agent::start(&bench.start);
    // Neighbours that take a while are in the step's hands when it dies.
    let mut bodies = vec![json!({"do": "sleep", "ms": 150}); 40];
    bodies.insert(20, json!({"do": "exit", "code": 9}));
    let ids = bench.publish(&bodies, 10).await;
    let letter = dead.next("a dead letter").await;
    assert_eq!(letter["message"]["id"], ids[20].to_string());
    assert_eq!(letter["attempts"].as_array().map(Vec::len), Some(2));
    let lines = out
        .until("all of its neighbours", |lines| lines.len() >= 40)
        .await;
    assert_eq!(lines.len(), 40);
    let mut neighbours = ids.clone();
    neighbours.remove(20);
    assert_eq!(self::ids(lines), derived(&neighbours));
    agent.logs("they are tried one at a time").await;
    let retried: Vec<_> = agent
        .log()
        .into_iter()
        .filter(|line| line.contains("tried again in"))
        .collect();
    assert_eq!(
        retried.len(),
        1,
        "only the poison message lost an attempt: {retried:#?}"
    );
    agent.drain().await;
    bench.clean().await;
}

#[tokio::test]
async fn garbage_on_the_protocol_is_a_crash_with_its_reason() {
    let bench = Bench::new("garbage", |start| {
        start.settings.retry.attempts = 1;
        start.settings.concurrency = 1;
    })
    .await;
    let (mut dead, mut out) = (
        bench.read(&bench.dead()).await,
        bench.read(&bench.out()).await,
    );
    let agent = Agent::start(&bench.start);
    let id = among_neighbours(&bench, json!({"do": "garbage"}), 10).await;
    let letter = dead.next("a dead letter").await;
    assert_eq!(letter["message"]["id"], id.to_string());
    let reason = letter["reason"].as_str().expect("a reason");
    assert!(reason.contains("`this is not a frame`"), "{reason}");
    out.until("its neighbours", |lines| lines.len() >= 10).await;
    agent.drain().await;
    bench.clean().await;
}

#[tokio::test]
async fn a_hundred_thousand_outputs_fit_in_bounded_memory() {
    let bench = Bench::new("flood", |_| {}).await;
    let mut out = bench.read(&bench.out()).await;
    let agent = Agent::start(&bench.start);
    let id = bench
        .publish(&[json!({"do": "flood", "count": 100_000})], 1)
        .await[0];
    let lines = out
        .until("100,000 outputs", |lines| lines.len() >= 100_000)
        .await;
    assert_eq!(ids(lines).len(), 100_000, "no two share an id");
    assert!(ids(lines).contains(&MessageId::derive(id, "step", "out", 99_999).to_string()));
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("it runs");
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .expect("the peak");
    let peak: u64 = peak
        .trim()
        .trim_end_matches(" kB")
        .trim()
        .parse()
        .expect("a number");
    assert!(peak < 64 << 10, "the agent's memory peaked at {peak} KiB");
    agent.drain().await;
    bench.clean().await;
}

#[tokio::test]
async fn a_body_above_the_limit_ends_its_message_and_not_the_step() {
    let bench = Bench::new("big", |_| {}).await;
    let (mut dead, mut out) = (
        bench.read(&bench.dead()).await,
        bench.read(&bench.out()).await,
    );
    let agent = Agent::start(&bench.start);
    for bytes in [100_001, 5_000_000] {
        let id = among_neighbours(&bench, json!({"do": "big", "bytes": bytes}), 4).await;
        let letter = dead.next("a dead letter").await;
        assert_eq!(
            (&letter["cause"], &letter["message"]["id"]),
            (&json!("output"), &json!(id.to_string()))
        );
        assert!(
            letter["reason"]
                .as_str()
                .expect("a reason")
                .contains("the limit is 100000"),
            "{letter}"
        );
    }
    out.until("its neighbours", |lines| lines.len() >= 8).await;
    let odd = bench
        .publish(&[json!({"do": "big_odd", "bytes": 5_000_000})], 1)
        .await[0];
    let letter = dead.next("a dead letter").await;
    assert_eq!(
        (&letter["cause"], &letter["message"]["id"]),
        (&json!("output"), &json!(odd.to_string()))
    );
    assert!(
        !agent
            .log()
            .iter()
            .any(|line| line.contains("started again")),
        "the step goes on"
    );
    agent.drain().await;
    bench.clean().await;
}

#[tokio::test]
async fn what_cannot_be_read_is_a_dead_letter() {
    let bench = Bench::new("unreadable", |_| {}).await;
    let (mut dead, mut out) = (
        bench.read(&bench.dead()).await,
        bench.read(&bench.out()).await,
    );
    let agent = Agent::start(&bench.start);
    bench
        .publish_raw(b"{\"no\":\"message\"}\n\xff\xfe\n", "towpath.batch.1")
        .await;
    bench.publish_raw(b"something else", "another.type").await;
    bench.publish(&echo(3), 3).await;
    let letters = dead
        .until("three dead letters", |letters| letters.len() >= 3)
        .await;
    assert!(
        letters
            .iter()
            .all(|letter| letter["cause"] == "undecodable"),
        "{letters:#?}"
    );
    assert!(
        letters
            .iter()
            .any(|letter| letter["message"] == "{\"no\":\"message\"}"),
        "{letters:#?}"
    );
    assert!(
        letters
            .iter()
            .any(|letter| letter["message"] == "something else"),
        "{letters:#?}"
    );
    out.until("the others", |lines| lines.len() >= 3).await;
    agent.drain().await;
    bench.clean().await;
}

#[tokio::test]
async fn a_step_that_refuses_or_speaks_another_version_is_named() {
    for (config, expect) in [
        (
            json!({"refuse": "the url is missing"}),
            "the step refuses its configuration: the url is missing",
        ),
        (
            json!({"contract": 2}),
            "the step speaks contract 2, this agent speaks contract 1",
        ),
    ] {
        let bench = Bench::new("refuses", |start| {
            start.config = serde_json::value::to_raw_value(&config).expect("JSON");
        })
        .await;
        let mut reports = bench.read(&bench.reports()).await;
        let agent = Agent::start(&bench.start);
        let fails = |line: &Value| line["state"] == "step_fails";
        let lines = reports
            .until("a report", |lines| lines.iter().any(fails))
            .await;
        let last = report(lines.iter().find(|line| fails(line)).expect("there is one"));
        assert_eq!(last.reason.as_deref(), Some(expect));
        agent.drain().await;
        bench.clean().await;
    }
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let bench = Bench::new("absent", |_| {}).await;
    let mut reports = bench.read(&bench.reports()).await;
    let agent = Agent::start_with(&bench.start, "/no/such/program", &[]);
    let fails = |line: &Value| line["state"] == "step_fails";
    let lines = reports
        .until("a report", |lines| lines.iter().any(fails))
        .await;
    let last = report(lines.iter().find(|line| fails(line)).expect("there is one"));
    assert_eq!(
        last.reason.as_deref(),
        Some("the step process was not found (exit code 127)")
    );
    assert!(
        last.last_lines[0].contains("`/no/such/program`"),
        "{:?}",
        last.last_lines
    );
    agent.drain().await;
    bench.clean().await;
}

#[tokio::test]
async fn outputs_that_lead_nowhere_are_counted_and_logs_are_captured() {
    let bench = Bench::new("nowhere", |_| {}).await;
    let mut reports = bench.read(&bench.reports()).await;
    let agent = Agent::start(&bench.start);
    let text = "a log frame with secret-in-log";
    let ids = bench
        .publish(
            &[
                json!({"do": "unconnected"}),
                json!({"do": "log", "text": text}),
            ],
            1,
        )
        .await;
    let counted =
        |line: &Value| line["counters"]["unconnected"] == 1 && line["counters"]["done"] == 2;
    reports
        .until("the counters", |lines| lines.iter().any(counted))
        .await;
    agent.logs("a line on standard output").await;
    agent.logs("a log frame with ***").await;
    let log = agent.log();
    let frame = log
        .iter()
        .find(|line| line.contains("a log frame"))
        .expect("it is there");
    let frame: towpath_protocol::log::LogLine<'_> =
        serde_json::from_str(frame).expect("a log line");
    assert_eq!((frame.message_id, &*frame.step), (Some(ids[1]), "step"));
    agent.drain().await;
    bench.clean().await;
}
