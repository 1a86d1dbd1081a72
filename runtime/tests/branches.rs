//! Webhooks without an image whose first actions have conditions: on a simulated broker, with the
//! real binary evaluating.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use towpath::broker::Broker as _;
use towpath::broker::simulated::Simulated;
use towpath::broker::topology::{FlowTopology, Handover, Names, Topology, branch_tag};
use towpath::filter::compile;
use towpath::ingress::{Answer, Gate, Gates, Ingress, Recent, Request, UrlKey};
use towpath::live::{LiveBranch, LiveFlow, LiveTrigger};
use towpath::metrics::Metrics;
use towpath::reconcile::FlowState;
use towpath::store::Store;
use towpath_flow::model::{Fires, Missed, Overlap};
use towpath_flow::webhook::Webhook;
use towpath_flow::{Source, references_in};

struct World {
    broker: Simulated,
    ingress: Ingress,
    metrics: Metrics,
    _tasks: JoinSet<()>,
}

/// A webhook that leads to one step for each condition, `step-<number>`, and to `all` if there is one
/// for everything.
async fn world(conditions: &[&str], has_all: bool) -> World {
    world_of(conditions, has_all, |_| {}).await
}

async fn world_of(conditions: &[&str], has_all: bool, change: fn(&mut LiveFlow)) -> World {
    let after = || vec![("hook".to_owned(), "out".to_owned())];
    let mut steps = Vec::new();
    let mut branches = BTreeMap::new();
    for (number, condition) in conditions.iter().enumerate() {
        let step = format!("step-{number}");
        let branch = LiveBranch {
            when: Some((*condition).to_owned()),
            tag: branch_tag(Some(condition), false).unwrap(),
        };
        branches.insert(step.clone(), branch);
        steps.push((step, after()));
    }
    if has_all {
        steps.push(("all".to_owned(), after()));
    }
    let mut flow = LiveFlow {
        name: "orders".into(),
        version: 1,
        applied_at: 0,
        state: FlowState::Running,
        track: false,
        trigger: LiveTrigger {
            step: "hook".into(),
            has_image: false,
            fires: Fires::Webhook,
            overlap: Overlap::default(),
            missed: Missed::default(),
        },
        steps,
        branches,
        handovers: Vec::new(),
        ordered: BTreeMap::new(),
    };
    change(&mut flow);
    let broker = Simulated::new(5);
    let names = Names::new("t");
    let steps = flow.handovers.iter().flat_map(|it| &it.entry);
    let invoices = FlowTopology {
        flow: "invoices".into(),
        steps: steps.map(|it| (it.step.clone(), Vec::new())).collect(),
        ..FlowTopology::default()
    };
    let topology = Topology {
        names: names.clone(),
        flows: vec![flow.topology(), invoices],
    };
    broker.declare(&topology, &[]).await.unwrap();
    let flows = BTreeMap::from([(flow.name.clone(), flow)]);
    let (_, receiver) = watch::channel(Arc::new(flows));
    let metrics = Metrics::new();
    let (ingress, worker) = Ingress::new(
        names,
        Gates::default(),
        receiver,
        metrics.clone(),
        Store::in_memory().unwrap(),
        Arc::new(|| 77),
        10_000,
        PathBuf::from(env!("CARGO_BIN_EXE_towpath")),
    );
    let mut tasks = JoinSet::new();
    tasks.spawn(worker.run(Arc::new(broker.clone()), CancellationToken::new()));
    World {
        broker,
        ingress,
        metrics,
        _tasks: tasks,
    }
}

impl World {
    async fn post(&self, body: &str) -> String {
        let request = Request {
            method: "POST".into(),
            headers: vec![("content-type".into(), "application/json".into())],
            body: body.to_owned().into(),
            ..Request::default()
        };
        let keys = vec![UrlKey::new("key", None)];
        let fill = |text: &str| Ok(text.to_owned());
        let gate = Gate::new("orders", keys, &Webhook::default(), fill);
        let answer = self.ingress.accept(&gate, &request).await.unwrap();
        let Answer::Taken(id) = answer else {
            panic!("it is a message")
        };
        let recent: Recent = self.ingress.recent();
        assert!(recent.find(id).is_some(), "`why` knows of it");
        id.to_string()
    }

    /// The bodies in a queue.
    fn bodies(&self, queue: &str) -> Vec<Value> {
        self.lines(queue)
            .into_iter()
            .map(|mut it| it["body"].take())
            .collect()
    }

    fn lines(&self, queue: &str) -> Vec<Value> {
        let deliveries = self.broker.ready(queue);
        let lines = deliveries
            .iter()
            .flat_map(|body| body.split(|byte| *byte == b'\n'));
        let lines = lines.filter(|line| !line.is_empty());
        lines
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect()
    }
}

#[tokio::test]
async fn a_request_goes_to_exactly_the_branches_that_hold_for_it() {
    let world = world(
        &[
            ".n % 2 == 0",
            ".n > 2",
            "$message.headers[\"http.method\"] == \"PUT\"",
        ],
        true,
    )
    .await;
    for number in 0..5 {
        world.post(&format!("{{\"n\":{number}}}")).await;
    }
    let numbers = |step: &str| -> Vec<i64> {
        let bodies = world.bodies(&format!("t.flow.orders.{step}"));
        bodies
            .iter()
            .map(|body| body["n"].as_i64().unwrap())
            .collect()
    };
    assert_eq!(numbers("step-0"), [0, 2, 4]);
    assert_eq!(numbers("step-1"), [3, 4]);
    assert!(numbers("step-2").is_empty());
    assert_eq!(numbers("all"), [0, 1, 2, 3, 4]);
    assert!(world.bodies("t.lost").is_empty());
}

#[tokio::test]
async fn a_request_that_no_condition_holds_for_is_taken_and_counted() {
    let world = world(&[".n == 1"], false).await;
    world.post("{\"n\":1}").await;
    world.post("{\"n\":2}").await;
    assert_eq!(world.bodies("t.flow.orders.step-0").len(), 1);
    assert_eq!(world.metrics.webhooks_unmatched("orders"), 1);
    assert!(world.bodies("t.lost").is_empty());
}

#[tokio::test]
async fn a_condition_that_fails_makes_a_dead_letter() {
    let world = world(&[".n.deep", "def loop: loop; loop", ".n == 3"], false).await;
    let id = world.post("{\"n\":3}").await;
    assert_eq!(
        world.bodies("t.flow.orders.step-2").len(),
        1,
        "no other is stopped"
    );
    let letters = world.lines("t.dead");
    let of = |step: &str| {
        letters
            .iter()
            .find(|it| it["identity"]["step"] == step)
            .unwrap()
    };
    for (step, why) in [
        ("step-0", "cannot index 3"),
        ("step-1", "did not end within 1s"),
    ] {
        let letter = of(step);
        assert_eq!(letter["cause"], "condition");
        assert_eq!(letter["message"]["id"], id.as_str());
        assert!(letter["reason"].as_str().unwrap().contains(why), "{letter}");
    }
    assert_eq!(letters.len(), 2);
    assert_eq!(world.metrics.webhooks_unmatched("orders"), 0);
}

#[tokio::test]
async fn every_condition_of_the_manual_compiles() {
    let page = include_str!("../../docs/flow-shapes.md");
    let blocks = page.split("```yaml").skip(1);
    let blocks = blocks.filter_map(|rest| rest.split("```").next());
    let conditions = blocks.flat_map(|block| references_in(&Source::new("page", block)).conditions);
    let conditions: Vec<String> = conditions.collect();
    assert!(conditions.len() >= 2, "they were found: {conditions:?}");
    let program = PathBuf::from(env!("CARGO_BIN_EXE_towpath"));
    for (condition, outcome) in compile(&program, conditions).await.unwrap() {
        assert_eq!(outcome, Ok(()), "{condition}");
    }
}

#[tokio::test]
async fn a_request_is_handed_to_another_flow_if_the_condition_holds() {
    let world = world_of(&[], true, |flow| {
        flow.handovers = [("over", None), ("big", Some(".n > 2"))]
            .map(|(step, when)| Handover {
                step: step.into(),
                after: vec![("hook".into(), "out".into())],
                when: when.map(str::to_owned),
                to: "invoices".into(),
                entry: vec![step.into()],
            })
            .into();
    })
    .await;
    world.post("{\"n\":1}").await;
    world.post("{\"n\":3}").await;
    for (queue, count) in [
        ("t.flow.orders.all", 2),
        ("t.flow.invoices.over", 2),
        ("t.flow.invoices.big", 1),
    ] {
        let lines = world.lines(queue);
        assert_eq!(lines.len(), count, "{queue}");
        for line in lines {
            assert_eq!(
                line["lineage"]["flow"], "orders",
                "it says where it is from"
            );
        }
    }
    assert!(world.bodies("t.lost").is_empty());
}
