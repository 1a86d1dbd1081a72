//! The office on a simulated broker with faults.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use towpath_protocol::MessageId;
use towpath_protocol::frame::Why;
use towpath_protocol::message::BATCH_TYPE;
use towpath_protocol::office::{DEAD_TYPE, Grant, LEDGER_KEY, LEDGER_TYPE, NEWS_KEY, ToAgent};
use towpath_protocol::runs::{Entry, Head, RUNS_KEY, RUNS_TYPE, write_run};

use super::*;
use crate::broker::Publication;
use crate::broker::simulated::{Faults, Simulated};
use crate::broker::topology::{FlowTopology, Topology};
use crate::live::LiveFlow;
use crate::store::dead_letters::DeadQuery;
use crate::store::flows::NewVersion;
use crate::store::records::RunRecord;

struct World {
    broker: Simulated,
    store: Store,
    office: Office,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

async fn world(faults: Faults) -> World {
    let store = Store::in_memory().unwrap();
    let version = NewVersion {
        flow: "orders".into(),
        ..NewVersion::default()
    };
    store.store_version(version).await.unwrap();
    let broker = Simulated::new(11);
    let names = Names::new("t");
    let after = vec![("poll".to_owned(), "out".to_owned())];
    let flow = FlowTopology {
        flow: "orders".into(),
        steps: vec![("poll".into(), vec![]), ("crm".into(), after)],
        aliases: vec![],
        ..FlowTopology::default()
    };
    let topology = Topology {
        names: names.clone(),
        flows: vec![flow],
    };
    broker.declare(&topology, &[]).await.unwrap();
    broker.set_faults(faults);
    let office = Office {
        broker: Arc::new(broker.clone()),
        store: store.clone(),
        names,
        reports: Reports::default(),
        inquiry: Inquiry::default(),
        metrics: Metrics::new(),
        runs_changed: Arc::new(Notify::new()),
        registrations_changed: Arc::new(Notify::new()),
        flows: tokio::sync::watch::channel(Arc::default()).1,
        sightings: Arc::new(|_| crate::ledger::Sighting::default()),
        waiters: Waiters::default(),
        rates: crate::rates::Rates::default(),
        containers: Arc::new(crate::rates::Containers::default),
        clock: crate::schedule::system_clock(),
    };
    let shutdown = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(office.clone().run(shutdown.clone()));
    World {
        broker,
        store,
        office,
        shutdown,
        tasks,
    }
}

fn id(number: u32) -> MessageId {
    let mut bytes = [0; 16];
    bytes[12..].copy_from_slice(&number.to_be_bytes());
    MessageId::from_bytes(bytes)
}

fn run(number: u32) -> RunRecord {
    RunRecord {
        id: id(number),
        flow: "orders".into(),
        step: "poll".into(),
        connection: "default".into(),
        version: 1,
        why: Why::Schedule,
        state: RunState::Published,
        due: u64::from(number),
        started_at: 1,
        ended_at: None,
        emitted: None,
        attempts: 0,
        next_at: None,
        reason: None,
        payload: None,
        tracked: false,
        cancel_at: None,
    }
}

const IDENTITY: &str = r#"{"instance":"t","flow":"orders","step":"poll","replica":1,"spec":"s"}"#;

fn news(body: &str) -> Publication {
    Publication {
        exchange: "t.office".into(),
        key: NEWS_KEY.into(),
        kind: "news",
        body: Bytes::copy_from_slice(body.as_bytes()),
        count: 1,
    }
}

fn checkpoint(run: MessageId, value: u32) -> Publication {
    news(&format!(
        r#"{{"checkpoint":{{"identity":{IDENTITY},"run":"{run}","connection":"default","number":1,"value":{value}}}}}"#
    ))
}

fn ended(run: MessageId) -> Publication {
    news(&format!(
        r#"{{"run_ended":{{"identity":{IDENTITY},"run":"{run}","emitted":5,"at":9}}}}"#
    ))
}

fn message(number: u32) -> String {
    format!(
        r#"{{"id":"{}","lineage":{{"run":"{}","version":1,"at":1}},"body":{number}}}"#,
        id(number),
        id(0)
    )
}

impl World {
    /// Publishes as agents do: again and again until it is confirmed.
    async fn publish(&self, publication: Publication) {
        while self.broker.publish(publication.clone()).await.is_err() {}
    }

    async fn eventually(&self, what: &str, mut is_true: impl AsyncFnMut(&Self) -> bool) {
        for _ in 0..400 {
            if is_true(self).await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{what} did not come true");
    }

    async fn checkpoint(&self) -> Option<String> {
        let checkpoint = self
            .store
            .checkpoint(&crate::store::checkpoints::CheckpointKey {
                flow: "orders".into(),
                step: "poll".into(),
                connection: "default".into(),
            })
            .await
            .unwrap();
        checkpoint?.value.map(|value| value.get().to_owned())
    }

    async fn dead(&self) -> Vec<crate::store::dead_letters::KeptLetter> {
        self.store
            .dead_letters(DeadQuery {
                limit: 10_000,
                ..DeadQuery::default()
            })
            .await
            .unwrap()
    }

    /// What was answered in the first run.
    async fn answer(&self) -> String {
        let empty = async |world: &World| world.broker.ready("t.runs").is_empty();
        self.eventually("everything is read", empty).await;
        let answer = async |world: &World| world.store.answer_of(id(1)).await.unwrap();
        let is_there = async |world: &World| answer(world).await.is_some();
        self.eventually("it is kept", is_there).await;
        answer(self).await.unwrap().answer
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        self.tasks.join_next().await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_includes_every_save_before_it() {
    let world = world(Faults::default()).await;
    assert!(world.store.run_started(&run(1)).await.unwrap());
    for value in 0..50 {
        world.publish(checkpoint(id(1), value)).await;
    }
    let ask = format!(
        r#"{{"ask_checkpoint":{{"identity":{IDENTITY},"run":"{}","connection":"default"}}}}"#,
        id(1)
    );
    world.broker.ask(news(&ask), "back", "c1");
    world
        .eventually("an answer", async |world| {
            !world.broker.answers().is_empty()
        })
        .await;
    let answer = world.broker.answers().remove(0);
    assert_eq!(
        (answer.reply_to.as_str(), answer.correlation.as_str()),
        ("back", "c1")
    );
    let ToAgent::Checkpoint(answer) = serde_json::from_slice(&answer.body).unwrap() else {
        panic!("not a checkpoint");
    };
    assert_eq!(answer.checkpoint.unwrap().get(), "49");
    assert_eq!(answer.version, 50);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_active_run_moves_the_checkpoint() {
    let world = world(Faults::default()).await;
    assert!(world.store.run_started(&run(1)).await.unwrap());
    world.publish(checkpoint(id(1), 1)).await;
    world.publish(ended(id(1))).await;
    world.publish(checkpoint(id(1), 2)).await;
    world.publish(checkpoint(id(7), 3)).await;
    world.publish(news("{\"future\":{}}\nnonsense")).await;
    world.publish(ended(id(2))).await;
    let is_read = async |world: &World| world.broker.ready("t.news").is_empty();
    world.eventually("all news read", is_read).await;
    let is_ended = async |world: &World| world.store.active_run("orders").await.unwrap().is_none();
    world.eventually("the end of the run", is_ended).await;
    assert_eq!(world.checkpoint().await.as_deref(), Some("1"));
    let run = world.store.run(id(1)).await.unwrap().unwrap();
    assert_eq!((run.state, run.emitted), (RunState::Done, Some(5)));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_delivered_twice_is_stored_once() {
    let faults = Faults {
        refused: 0.2,
        confirm_lost: 0.3,
        acknowledgement_lost: 0.3,
    };
    let world = world(faults).await;
    for number in 0..200 {
        let letter = format!(
            r#"{{"identity":{IDENTITY},"at":1,"cause":"permanent","reason":"no","message":{}}}"#,
            message(number)
        );
        let publication = Publication {
            exchange: "t.dead".into(),
            key: String::new(),
            kind: DEAD_TYPE,
            body: letter.into(),
            count: 1,
        };
        world.publish(publication).await;
    }
    let lost = Publication {
        exchange: "t.flow.orders".into(),
        key: "crm.out".into(),
        kind: BATCH_TYPE,
        body: format!("{}\n{}\n", message(1_000), message(1_001)).into(),
        count: 2,
    };
    world.publish(lost).await;
    world
        .eventually("all stored", async |world| world.dead().await.len() == 202)
        .await;
    // All that comes again changes nothing.
    world.broker.set_faults(Faults::default());
    let is_read = async |world: &World| {
        world.broker.ready("t.dead").is_empty() && world.broker.ready("t.lost").is_empty()
    };
    world.eventually("all read", is_read).await;
    assert_eq!(world.dead().await.len(), 202);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_agents_report_of_a_run_is_stored_whatever_comes_twice() {
    let faults = Faults {
        refused: 0.2,
        confirm_lost: 0.3,
        acknowledgement_lost: 0.3,
    };
    let world = world(faults).await;
    let tracked = RunRecord {
        tracked: true,
        ..run(1)
    };
    assert!(world.store.run_started(&tracked).await.unwrap());
    let head = |step: &str, next: &str| Head {
        identity: serde_json::from_str(&IDENTITY.replace("poll", step)).unwrap(),
        ways: vec![vec![next.to_owned()]],
    };
    let report = |head: &Head, entries: &[Entry]| {
        let mut body = Vec::new();
        head.write(&mut body);
        write_run(id(1), &mut body);
        for entry in entries {
            entry.write(&mut body);
        }
        Publication {
            exchange: "t.office".into(),
            key: RUNS_KEY.into(),
            kind: RUNS_TYPE,
            body: body.into(),
            count: 1,
        }
    };
    let (poll, crm) = (head("poll", "crm"), head("crm", "none"));
    let done = |number: u32| Entry::Done {
        id: id(number),
        replays: 0,
    };
    let garbage = Publication {
        body: "nonsense".into(),
        ..report(&poll, &[])
    };
    world.publish(garbage).await;
    for number in 100..150 {
        // Done before it is known that it was emitted.
        world.publish(report(&crm, &[done(number)])).await;
        let emitted = Entry::Emitted {
            id: id(number),
            way: 0,
            of_replayed: false,
        };
        world.publish(report(&poll, &[emitted])).await;
    }
    world.publish(report(&poll, &[done(1)])).await;
    world.publish(ended(id(1))).await;
    let progress = async |world: &World| {
        let all = world.store.runs_progress(vec![id(1)]).await.unwrap();
        all.into_iter().next().unwrap()
    };
    world
        .eventually("the run is finished", async |world| {
            let is_read = world.broker.ready("t.runs").is_empty();
            is_read && progress(world).await.finished_at.is_some()
        })
        .await;
    let sums: Vec<_> = progress(&world)
        .await
        .steps
        .into_iter()
        .map(|it| (it.step, it.open, it.done, it.dead))
        .collect();
    assert_eq!(sums.len(), 2, "{sums:?}");
    assert!(sums.contains(&("crm".into(), 0, 50, 0)), "{sums:?}");
    assert!(sums.contains(&("poll".into(), 0, 1, 0)), "{sums:?}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_tick_ends_its_run() {
    let world = world(Faults::default()).await;
    assert!(world.store.run_started(&run(1)).await.unwrap());
    let letter = format!(
        r#"{{"identity":{IDENTITY},"at":4,"cause":"attempts","reason":"the shop is down","message":{}}}"#,
        message(1)
    );
    let publication = Publication {
        exchange: "t.dead".into(),
        key: String::new(),
        kind: DEAD_TYPE,
        body: letter.into(),
        count: 1,
    };
    world.publish(publication).await;
    let told = tokio::time::timeout(
        Duration::from_secs(10),
        world.office.runs_changed.notified(),
    );
    told.await.expect("the scheduler is told");
    let run = world.store.run(id(1)).await.unwrap().unwrap();
    assert_eq!(
        (run.state, run.reason.as_deref()),
        (RunState::Failed, Some("the shop is down"))
    );
    world.stop().await;
}

fn ledger(body: &str) -> Publication {
    Publication {
        exchange: "t.office".into(),
        key: LEDGER_KEY.into(),
        kind: LEDGER_TYPE,
        body: Bytes::copy_from_slice(body.as_bytes()),
        count: 1,
    }
}

fn claim(question: u64, messages: std::ops::Range<u32>) -> Publication {
    let messages: Vec<_> = messages.map(|number| (id(number), 0)).collect();
    let messages = serde_json::to_string(&messages).unwrap();
    ledger(&format!(
        r#"{{"claim":{{"identity":{IDENTITY},"incarnation":"a","question":{question},"lease_ms":60000,"messages":{messages}}}}}"#
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_answered_after_what_was_settled_before() {
    let faults = Faults {
        acknowledgement_lost: 0.3,
        ..Faults::default()
    };
    let world = world(faults).await;
    world.publish(ledger("nonsense")).await;
    for number in 0..50 {
        let settled = format!(
            r#"{{"settled":{{"identity":{IDENTITY},"incarnation":"a","at":1,"messages":[["{}",0]]}}}}"#,
            id(number)
        );
        world.publish(ledger(&settled)).await;
        world
            .broker
            .ask(claim(u64::from(number), 0..60), "back", "c");
    }
    let answers = |world: &World| -> std::collections::BTreeMap<u64, usize> {
        let answers = world.broker.answers().into_iter().map(|answer| {
            let ToAgent::Claimed(claimed) = serde_json::from_slice(&answer.body).unwrap() else {
                panic!("not the answer to a claim");
            };
            assert_eq!(claimed.grants.len(), 60);
            let is_settled = |grant: &&Grant| **grant == Grant::Settled;
            let count = claimed.grants.iter().filter(is_settled).count();
            (claimed.question, count)
        });
        answers.collect()
    };
    world
        .eventually("all answers", async |world| answers(world).len() == 50)
        .await;
    for (question, settled) in answers(&world) {
        // More, if its delivery came again.
        assert!(settled as u64 > question, "{settled} after {question}");
    }
    let text = world
        .office
        .metrics
        .render(&Reports::default(), &crate::metrics::Snapshot::default());
    assert!(text.contains("towpath_ledger_claims_total"), "{text}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_for_a_step_that_is_gone_goes_to_its_successor_or_says_so() {
    let world = world(Faults::default()).await;
    let version = NewVersion {
        flow: "orders".into(),
        steps: vec!["poll".into(), "crm".into()],
        removed: vec!["renamed".into(), "gone".into()],
        moves: [("renamed".to_owned(), "crm".to_owned())].into(),
        ..NewVersion::default()
    };
    world.store.store_version(version).await.unwrap();
    for (number, step) in [(1, "renamed"), (2, "gone"), (3, "never")] {
        let late = Publication {
            exchange: "t.steps".into(),
            key: format!("0.1.orders.{step}"),
            kind: BATCH_TYPE,
            body: message(number).into(),
            count: 1,
        };
        world.publish(late).await;
    }
    world
        .eventually("passed on and stored", async |world| {
            world.broker.ready("t.flow.orders.crm").len() == 1 && world.dead().await.len() == 2
        })
        .await;
    let passed_on = world.broker.ready("t.flow.orders.crm");
    assert_eq!(passed_on[0], message(1).as_bytes());
    let mut letters = world.dead().await;
    letters.sort_by_key(|letter| letter.message_id);
    let causes: Vec<_> = letters.iter().map(|letter| letter.cause).collect();
    assert_eq!(causes, [DeadCause::Removed, DeadCause::Unroutable]);
    assert!(
        letters[0]
            .reason
            .contains("`gone` was taken out of `orders` with version 2")
    );
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_missed_its_queue_while_the_broker_started_goes_there_after_all() {
    let world = world(Faults::default()).await;
    for (number, step) in [(1, "crm"), (2, "never")] {
        let lost = Publication {
            exchange: "t.lost".into(),
            key: format!("0.1.orders.{step}"),
            kind: BATCH_TYPE,
            body: message(number).into(),
            count: 1,
        };
        world.publish(lost).await;
    }
    world
        .eventually("passed on and stored", async |world| {
            world.broker.ready("t.flow.orders.crm").len() == 1 && world.dead().await.len() == 1
        })
        .await;
    let passed_on = world.broker.ready("t.flow.orders.crm");
    assert_eq!(passed_on[0], message(1).as_bytes());
    assert_eq!(world.dead().await[0].cause, DeadCause::Unroutable);
    world.stop().await;
}

/// What a step answers, as it comes from its agent.
fn answers(run: MessageId, bodies: &[&str]) -> Publication {
    let line = |body: &&str| {
        format!(
            r#"{{"id":"{}","lineage":{{"run":"{run}","version":1,"at":1}},"body":{body}}}"#,
            id(700)
        )
    };
    let lines: Vec<String> = bodies.iter().map(line).collect();
    Publication {
        exchange: "t.office".into(),
        key: RUNS_KEY.into(),
        kind: BATCH_TYPE,
        body: lines.join("\n").into(),
        count: 1,
    }
}

#[tokio::test]
async fn an_answer_is_kept_with_its_run_and_the_first_one_counts() {
    let world = world(Faults::default()).await;
    assert!(world.store.run_started(&run(1)).await.unwrap());
    let first = r#"{"status":201,"headers":{"location":"/7"},"body":{"b":1,"a":1.50}}"#;
    world.publish(answers(id(9), &["{}"])).await;
    world.publish(answers(id(1), &[first, "{}"])).await;
    world.publish(answers(id(1), &["{}"])).await;
    assert_eq!(world.answer().await, first, "as it was written");
    world.stop().await;
}

#[tokio::test]
async fn an_answer_that_cannot_be_sent_says_so() {
    for (body, why) in [
        (r#"{"id":7}"#, "unknown field `id`"),
        (r#"{"status":99}"#, "the status 99"),
        (r#"{"headers":{"te":"x"}}"#, "the header `te`"),
    ] {
        let world = world(Faults::default()).await;
        assert!(world.store.run_started(&run(1)).await.unwrap());
        world.publish(answers(id(1), &[body])).await;
        let kept = world.answer().await;
        assert!(kept.starts_with(r#"{"status":502"#), "{kept}");
        assert!(kept.contains(why), "{kept}");
        world.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_handed_over_by_a_former_way_goes_to_the_steps_there_are() {
    let mut world = world(Faults::default()).await;
    world.shutdown.cancel();
    let handover = |to: &str, entry: &[&str]| Handover {
        step: "over".into(),
        after: vec![("poll".into(), "out".into())],
        when: None,
        to: to.into(),
        entry: entry.iter().map(|step| (*step).into()).collect(),
    };
    let text =
        "flow: orders\ntrigger: {id: poll, image: a, every: 1s}\nactions: [{id: crm, image: a}]";
    let source = towpath_flow::Source::new("f", text);
    let flow = towpath_flow::check(&source, &towpath_flow::Facts::default())
        .unwrap()
        .flow;
    let mut flow = LiveFlow::new(&flow, 1, 0, crate::reconcile::FlowState::Running);
    let way = |handover: &Handover| Publication {
        exchange: "t.flow.orders".into(),
        key: handover.key_after("poll", "out"),
        kind: BATCH_TYPE,
        body: message(1).into(),
        count: 1,
    };
    // The flow `takes` begins with other steps now, and `gone` with none.
    flow.handovers = vec![handover("takes", &["bill", "mail"])];
    let takes = FlowTopology {
        flow: "takes".into(),
        steps: vec![("bill".into(), vec![]), ("mail".into(), vec![])],
        entry: vec!["bill".into(), "mail".into()],
        ..FlowTopology::default()
    };
    let topology = Topology {
        names: Names::new("t"),
        flows: vec![flow.topology(), takes],
    };
    world.broker.declare(&topology, &[]).await.unwrap();
    let flows = BTreeMap::from([("orders".to_owned(), flow)]);
    world.office.flows = tokio::sync::watch::channel(Arc::new(flows)).1;
    world.shutdown = CancellationToken::new();
    let office = world.office.clone();
    world.tasks.spawn(office.run(world.shutdown.clone()));
    world.publish(way(&handover("takes", &["bill"]))).await;
    world
        .eventually("handed over", async |world| {
            let has = |step: &str| world.broker.ready(&format!("t.flow.takes.{step}")).len() == 1;
            has("bill") && has("mail")
        })
        .await;
    assert!(world.dead().await.is_empty());

    world
        .broker
        .delete_queue("t.flow.takes.mail", true)
        .await
        .unwrap();
    world.publish(way(&handover("takes", &["bill"]))).await;
    world
        .eventually("kept", async |world| world.dead().await.len() == 1)
        .await;
    let letter = world.dead().await.remove(0);
    assert_eq!((&*letter.flow, &*letter.step), ("orders", "over"));
    assert!(
        letter.reason.contains("the flow `takes`"),
        "{}",
        letter.reason
    );
    world.stop().await;
}
