//! The ingress on a simulated broker.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::broker::Broker as _;
use crate::broker::simulated::Simulated;
use crate::broker::topology::Topology;
use crate::live::LiveTrigger;

struct World {
    broker: Simulated,
    ingress: Ingress,
    flows: tokio::sync::watch::Sender<Arc<BTreeMap<String, LiveFlow>>>,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

fn flow(name: &str, has_image: bool, state: FlowState) -> LiveFlow {
    let mut steps = vec![(
        "crm".to_owned(),
        vec![("hook".to_owned(), "out".to_owned())],
    )];
    if has_image {
        steps.insert(0, ("hook".to_owned(), vec![]));
    }
    LiveFlow {
        name: name.into(),
        version: 4,
        state,
        trigger: LiveTrigger {
            step: "hook".into(),
            has_image,
            every: None,
        },
        ordered: BTreeMap::new(),
        steps,
    }
}

async fn world() -> World {
    let flows = [
        flow("plain", false, FlowState::Running),
        flow("image", true, FlowState::Paused),
    ];
    let broker = Simulated::new(5);
    let names = Names::new("t");
    let topology = Topology {
        names: names.clone(),
        flows: flows.iter().map(LiveFlow::topology).collect(),
    };
    broker.declare(&topology, &[]).await.unwrap();
    let flows = flows
        .into_iter()
        .map(|flow| (flow.name.clone(), flow))
        .collect();
    let (flows, receiver) = tokio::sync::watch::channel(Arc::new(flows));
    let clock: Clock = Arc::new(|| 77);
    let (ingress, worker) = Ingress::new(names, receiver, Metrics::new(), clock, 1_000);
    let shutdown = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(worker.run(Arc::new(broker.clone()), shutdown.clone()));
    World {
        broker,
        ingress,
        flows,
        shutdown,
        tasks,
    }
}

fn request(body: &str) -> Request {
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    Request {
        method: "POST".into(),
        query: "a=1".into(),
        headers: vec![
            header("Content-Type", "application/json"),
            header("Authorization", "Bearer secret"),
        ],
        body: Bytes::copy_from_slice(body.as_bytes()),
        ..Request::default()
    }
}

impl World {
    fn lines(&self, queue: &str) -> Vec<String> {
        let text = |body: &Bytes| String::from_utf8(body.to_vec()).unwrap();
        let bodies = self.broker.ready(queue);
        bodies
            .iter()
            .flat_map(|body| text(body).lines().map(str::to_owned).collect::<Vec<_>>())
            .collect()
    }

    async fn refused(&self, flow: &str, request: &Request) -> IngressError {
        self.ingress
            .accept(flow, request)
            .await
            .expect_err("it is not taken")
    }
}

#[tokio::test]
async fn a_request_becomes_a_message() {
    let world = world().await;
    let id = world
        .ingress
        .accept("plain", &request("{ \"n\": 1 }"))
        .await
        .unwrap();
    let lines = world.lines("t.flow.plain.crm");
    assert_eq!(lines.len(), 1);
    let message: Message<'_> = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!((message.id, message.body.get()), (id, r#"{"n":1}"#));
    let lineage: Lineage = serde_json::from_str(message.lineage.get()).unwrap();
    assert_eq!((lineage.run, lineage.version, lineage.at), (id, 4, 77));
    assert!(headers::is_traceparent(&lineage.trace.unwrap()));
    assert_eq!(
        message.headers.unwrap().get(),
        r#"{"http.content-type":"application/json","http.method":"POST","http.query":"a=1"}"#
    );
    // With an image its own step is first, paused or not.
    world.ingress.accept("image", &request("2")).await.unwrap();
    assert_eq!(world.lines("t.flow.image.hook").len(), 1);
    assert!(world.lines("t.flow.image.crm").is_empty());
}

#[tokio::test]
async fn the_same_idempotency_key_is_the_same_message() {
    let world = world().await;
    let mut one = request("1");
    one.headers.push(("Idempotency-Key".into(), "abc".into()));
    let first = world.ingress.accept("plain", &one).await.unwrap();
    assert_eq!(world.ingress.accept("plain", &one).await.unwrap(), first);
    let other = world.ingress.accept("plain", &request("1")).await.unwrap();
    assert_ne!(other, first);
}

#[tokio::test]
async fn what_cannot_be_taken_now_is_said_at_once() {
    let world = world().await;
    assert_eq!(world.refused("nothing", &request("1")).await.status(), 404);
    assert_eq!(world.refused("plain", &request("{")).await.status(), 400);
    assert_eq!(
        world
            .refused("plain", &request(&"1".repeat(2_000)))
            .await
            .status(),
        413
    );

    world.broker.set_full("t.flow.plain.crm", true);
    let full = world.refused("plain", &request("1")).await;
    assert_eq!((full.status(), full.retry_after().is_some()), (429, true));
    world.broker.set_full("t.flow.plain.crm", false);

    world.broker.set_up(false);
    let away = world.refused("plain", &request("1")).await;
    assert_eq!((away.status(), away.retry_after().is_some()), (503, true));
    world.broker.set_up(true);

    let stopped = flow("plain", false, FlowState::Stopped);
    world
        .flows
        .send_replace(Arc::new(BTreeMap::from([("plain".to_owned(), stopped)])));
    assert_eq!(world.refused("plain", &request("1")).await.status(), 409);
    let draining = flow("plain", false, FlowState::Draining);
    world
        .flows
        .send_replace(Arc::new(BTreeMap::from([("plain".to_owned(), draining)])));
    let drains = world.refused("plain", &request("1")).await;
    assert_eq!(
        (drains.status(), drains.retry_after().is_some()),
        (503, true)
    );
    assert_eq!(drains.code(), "flow_draining");
    assert!(
        world.lines("t.flow.plain.crm").is_empty(),
        "nothing of all that was taken"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_id_without_a_confirm() {
    let world = world().await;
    world.broker.set_faults(crate::broker::simulated::Faults {
        refused: 0.3,
        confirm_lost: 0.3,
        acknowledgement_lost: 0.0,
    });
    let many = (0..500).map(|_| async { world.ingress.accept("plain", &request("1")).await });
    let outcomes = futures_util::future::join_all(many).await;
    let taken: HashSet<MessageId> = outcomes.into_iter().filter_map(Result::ok).collect();
    let lines = world.lines("t.flow.plain.crm");
    let there: HashSet<MessageId> = lines
        .iter()
        .map(|line| serde_json::from_str::<Message<'_>>(line).unwrap().id)
        .collect();
    assert!(!taken.is_empty() && taken.len() < 500, "{}", taken.len());
    assert!(taken.is_subset(&there));
    assert!(
        world.broker.ready("t.flow.plain.crm").len() < lines.len(),
        "they travel in batches"
    );
}

#[tokio::test]
async fn what_was_taken_is_still_published_at_the_end() {
    let mut world = world().await;
    let ingress = world.ingress.clone();
    let mut requests = JoinSet::new();
    for _ in 0..100 {
        let ingress = ingress.clone();
        requests.spawn(async move { ingress.accept("plain", &request("1")).await.is_ok() });
    }
    tokio::task::yield_now().await;
    world.shutdown.cancel();
    let end = tokio::time::timeout(Duration::from_secs(10), world.tasks.join_next());
    end.await.expect("the worker ends").unwrap().unwrap();
    let taken = requests
        .join_all()
        .await
        .into_iter()
        .filter(|taken| *taken)
        .count();
    assert_eq!(taken, world.lines("t.flow.plain.crm").len());
    assert_eq!(world.refused("plain", &request("1")).await.status(), 503);
}
