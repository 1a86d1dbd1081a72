//! The ingress on a simulated broker.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use towpath_flow::webhook::{Auth, BodyType, Handshake, KeyPlace, Rate, Scheme, Webhook};
use towpath_protocol::office::DeadCause;

use super::*;
use crate::broker::Broker as _;
use crate::broker::simulated::Simulated;
use crate::broker::topology::Topology;
use crate::live::LiveTrigger;
use crate::store::flows::NewVersion;
use crate::store::records::{DeadLetterRecord, DeadState};

struct World {
    broker: Simulated,
    ingress: Ingress,
    gates: Gates,
    now: Arc<AtomicU64>,
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
        applied_at: 0,
        state,
        track: false,
        trigger: LiveTrigger {
            step: "hook".into(),
            has_image,
            fires: towpath_flow::Fires::Webhook,
            overlap: towpath_flow::Overlap::Skip,
            missed: towpath_flow::Missed::Skip,
        },
        ordered: BTreeMap::new(),
        steps,
        branches: BTreeMap::new(),
        handovers: Vec::new(),
    }
}

async fn world() -> World {
    world_on(Store::in_memory().unwrap()).await
}

async fn world_on(store: Store) -> World {
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
    let now = Arc::new(AtomicU64::new(77));
    let time = Arc::clone(&now);
    let clock: Clock = Arc::new(move || time.load(Ordering::SeqCst));
    let gates = Gates::default();
    let (ingress, worker) = Ingress::new(
        names,
        gates.clone(),
        receiver,
        Metrics::new(),
        store,
        clock,
        1_000,
        std::path::PathBuf::new(),
    );
    gates.replace(["plain", "image", "nothing"].map(|flow| gate(flow, &Webhook::default())));
    let shutdown = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(worker.run(Arc::new(broker.clone()), shutdown.clone()));
    World {
        broker,
        ingress,
        gates,
        now,
        flows,
        shutdown,
        tasks,
    }
}

fn gate(flow: &str, webhook: &Webhook) -> Gate {
    let fill = |text: &str| Ok(text.to_owned());
    Gate::new(flow, vec![UrlKey::new("key", None)], webhook, fill)
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

    async fn answer(&self, flow: &str, request: &Request) -> Result<Answer, IngressError> {
        let gate = self.ingress.gate(flow, "key").expect("its key is good");
        self.ingress.accept(&gate, request).await
    }

    async fn take(&self, flow: &str, request: &Request) -> Result<MessageId, IngressError> {
        match self.answer(flow, request).await? {
            Answer::Taken(id) => Ok(id),
            other => panic!("{other:?}"),
        }
    }

    async fn refused(&self, flow: &str, request: &Request) -> IngressError {
        let outcome = self.answer(flow, request).await;
        outcome.expect_err("it is not taken")
    }
}

#[tokio::test]
async fn a_request_becomes_a_message() {
    let world = world().await;
    let id = world.take("plain", &request("{ \"n\": 1 }")).await.unwrap();
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
    world.take("image", &request("2")).await.unwrap();
    assert_eq!(world.lines("t.flow.image.hook").len(), 1);
    assert!(world.lines("t.flow.image.crm").is_empty());
}

fn named(body: &str, name: &str) -> Request {
    let mut request = request(body);
    request
        .headers
        .push(("Idempotency-Key".into(), name.into()));
    request
}

#[tokio::test]
async fn a_repeated_request_is_answered_as_the_first_was_and_makes_no_second_message() {
    let folder = tempfile::tempdir().unwrap();
    let world = world_on(Store::open(folder.path()).unwrap()).await;
    let first = world.take("plain", &named("1", "abc")).await.unwrap();
    // Whatever else is in it: its name is what counts.
    let again = world.take("plain", &named("2", "abc")).await.unwrap();
    assert_eq!(again, first);
    assert_eq!(world.lines("t.flow.plain.crm").len(), 1);
    let other = world.take("plain", &request("1")).await.unwrap();
    assert_ne!(other, first);
    assert_eq!(
        world.lines("t.flow.plain.crm").len(),
        2,
        "without a name it is another one"
    );
    let stopped = flow("plain", false, FlowState::Stopped);
    world
        .flows
        .send_replace(Arc::new(BTreeMap::from([("plain".to_owned(), stopped)])));
    assert_eq!(
        world.take("plain", &named("1", "abc")).await.unwrap(),
        first
    );
    assert_eq!(
        world.refused("plain", &named("1", "new")).await.status(),
        409
    );
    // Another control plane, later.
    world.shutdown.cancel();
    world.tasks.join_all().await;
    drop((world.ingress, world.gates));
    let world = world_on(Store::open(folder.path()).unwrap()).await;
    world.now.store(77 + ANSWERED_MS - 1, Ordering::SeqCst);
    assert_eq!(
        world.take("plain", &named("1", "abc")).await.unwrap(),
        first
    );
    assert!(world.lines("t.flow.plain.crm").is_empty());
    world.now.store(77 + ANSWERED_MS, Ordering::SeqCst);
    assert_eq!(
        world.take("plain", &named("1", "abc")).await.unwrap(),
        first,
        "after that it is a message again, of the same id"
    );
    assert_eq!(world.lines("t.flow.plain.crm").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_the_same_instant_make_one_message() {
    let world = world().await;
    let request = named("1", "abc");
    let many = (0..50).map(|_| world.take("plain", &request));
    let ids: HashSet<MessageId> = futures_util::future::join_all(many)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(world.lines("t.flow.plain.crm").len(), 1);
}

#[tokio::test]
async fn a_sender_that_left_before_its_answer_gets_it_when_it_comes_again() {
    let world = world().await;
    let request = named("1", "abc");
    {
        let mut first = Box::pin(world.take("plain", &request));
        while world.lines("t.flow.plain.crm").is_empty() {
            assert!(futures_util::poll!(&mut first).is_pending());
            tokio::task::yield_now().await;
        }
    }
    world.take("plain", &request).await.unwrap();
    assert_eq!(world.lines("t.flow.plain.crm").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_confirmed_is_not_remembered() {
    let world = world().await;
    let request = named("1", "abc");
    world.broker.set_full("t.flow.plain.crm", true);
    assert_eq!(world.refused("plain", &request).await.status(), 429);
    world.broker.set_full("t.flow.plain.crm", false);
    world.take("plain", &request).await.unwrap();
    assert_eq!(world.lines("t.flow.plain.crm").len(), 1);
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
    let many = (0..500).map(|_| async { world.take("plain", &request("1")).await });
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
    let gate = ingress.gate("plain", "key").unwrap();
    let mut requests = JoinSet::new();
    for _ in 0..100 {
        let (ingress, gate) = (ingress.clone(), Arc::clone(&gate));
        requests.spawn(async move { ingress.accept(&gate, &request("1")).await.is_ok() });
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

#[tokio::test]
async fn whoever_does_not_show_who_they_are_learns_nothing() {
    let world = world().await;
    let mut webhook = Webhook::default();
    webhook.auth = Some(Auth {
        scheme: Scheme::ApiKey {
            place: KeyPlace::Header("x-key".into()),
            prefix: String::new(),
        },
        secrets: vec!["s3cret".into()],
    });
    webhook.handshake = Some(Handshake::Slack);
    webhook.types = Some([BodyType::Json].into());
    world.gates.replace([gate("plain", &webhook)]);
    let stopped = flow("plain", false, FlowState::Stopped);
    let mut signed = request("1");
    signed.headers.push(("X-Key".into(), "s3cret".into()));
    let id = world.take("plain", &signed).await.unwrap();
    assert!(
        !world.lines("t.flow.plain.crm")[0].contains("s3cret"),
        "{id}"
    );
    world
        .flows
        .send_replace(Arc::new(BTreeMap::from([("plain".to_owned(), stopped)])));
    assert_eq!(world.refused("plain", &signed).await.status(), 409);
    let challenge = r#"{"type":"url_verification","challenge":"c"}"#;
    for body in ["1", "{", challenge] {
        let refused = world.refused("plain", &request(body)).await;
        assert_eq!((refused.status(), refused.code()), (401, "not_authentic"));
    }
    let mut shaken = request(challenge);
    shaken.headers.clone_from(&signed.headers);
    let answer = world.answer("plain", &shaken).await.unwrap();
    assert!(matches!(answer, Answer::Challenge(challenge) if challenge == "c"));
    assert_eq!(world.lines("t.flow.plain.crm").len(), 1);
}

#[tokio::test]
async fn a_head_request_asks_and_makes_no_message() {
    let world = world().await;
    let head = Request {
        method: "HEAD".into(),
        ..Request::default()
    };
    let answer = world.answer("plain", &head).await.unwrap();
    assert!(matches!(answer, Answer::Open));
    let stopped = flow("plain", false, FlowState::Stopped);
    world
        .flows
        .send_replace(Arc::new(BTreeMap::from([("plain".to_owned(), stopped)])));
    assert_eq!(world.refused("plain", &head).await.status(), 409);
    assert!(world.lines("t.flow.plain.crm").is_empty());
}

#[tokio::test]
async fn what_is_over_the_rate_is_told_when_to_come_again() {
    let world = world().await;
    let mut webhook = Webhook::default();
    webhook.rate = Some(Rate {
        count: 2,
        per: Duration::from_secs(60),
    });
    world.gates.replace([gate("plain", &webhook)]);
    for _ in 0..2 {
        world.take("plain", &request("1")).await.unwrap();
    }
    let over = world.refused("plain", &request("1")).await;
    assert_eq!((over.status(), over.code()), (429, "over_rate"));
    assert_eq!(over.retry_after(), Some(60));
    assert_eq!(world.lines("t.flow.plain.crm").len(), 2);
}

#[tokio::test]
async fn a_webhook_that_cannot_check_requests_takes_none() {
    let world = world().await;
    let mut webhook = Webhook::default();
    webhook.auth = Some(Auth {
        scheme: Scheme::GitHub,
        secrets: vec!["${secrets.x}".into()],
    });
    let missing = |_: &str| Err("the secret `x` does not exist".to_owned());
    let keys = vec![UrlKey::new("key", None)];
    world
        .gates
        .replace([Gate::new("plain", keys, &webhook, missing)]);
    let refused = world.refused("plain", &request("1")).await;
    assert_eq!((refused.status(), refused.retry_after()), (503, Some(60)));
    assert!(!refused.to_string().contains('x'), "callers learn no names");
}

/// Has the requests of `plain` wait for the flow's answer.
async fn world_that_waits(wait: Duration) -> World {
    let store = Store::in_memory().unwrap();
    let version = NewVersion {
        flow: "plain".into(),
        ..NewVersion::default()
    };
    store.store_version(version).await.unwrap();
    let world = world_on(store).await;
    let mut webhook = Webhook::default();
    webhook.reply = Some(wait);
    world.gates.replace([gate("plain", &webhook)]);
    world
}

impl World {
    /// Waits until a request is in the queue, and says which run it began.
    async fn entered(&self) -> MessageId {
        loop {
            if let Some(line) = self.lines("t.flow.plain.crm").pop() {
                let message: Message<'_> = serde_json::from_str(&line).unwrap();
                return message.id;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// The flow answers.
    async fn reply(&self, run: MessageId, answer: &str) {
        let answers = vec![(run, answer.to_owned())];
        let kept = self.ingress.store.keep_answers(answers, 80).await.unwrap();
        assert_eq!(kept, [true], "its run has begun");
        self.ingress.waiters().wake(run);
    }
}

const LONG: Duration = Duration::from_secs(60);

fn replied(answer: Result<Answer, IngressError>) -> (MessageId, u16) {
    match answer {
        Ok(Answer::Replied(run, answer)) => (run, answer.status),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_request_that_waits_gets_the_answer_of_its_flow() {
    let world = world_that_waits(LONG).await;
    let request = request("1");
    let (answer, run) = tokio::join!(world.answer("plain", &request), async {
        let run = world.entered().await;
        world.ingress.waiters().wake(run);
        world.reply(run, r#"{"status":201}"#).await;
        run
    });
    assert_eq!(replied(answer), (run, 201));
}

#[tokio::test]
async fn a_repeated_request_gets_the_answer_that_the_first_got() {
    let world = world_that_waits(LONG).await;
    let request = named("1", "abc");
    // One that comes again while the first still waits, one that comes later.
    let (first, second, run) = tokio::join!(
        world.answer("plain", &request),
        async {
            world.entered().await;
            world.answer("plain", &request).await
        },
        async {
            let run = world.entered().await;
            while world.ingress.store.answered(run).await.unwrap().is_none() {
                tokio::task::yield_now().await;
            }
            world.reply(run, r#"{"status":201}"#).await;
            run
        }
    );
    for answer in [first, second, world.answer("plain", &request).await] {
        assert_eq!(replied(answer), (run, 201));
    }
    assert_eq!(world.lines("t.flow.plain.crm").len(), 1);
}

#[tokio::test]
async fn whoever_waited_long_enough_learns_that_the_request_was_taken() {
    let world = world_that_waits(Duration::from_millis(100)).await;
    let run = world.take("plain", &named("1", "abc")).await.unwrap();
    // Late, but it is the answer of a repeated request.
    world.reply(run, "{}").await;
    let again = world.answer("plain", &named("1", "abc")).await;
    assert_eq!(replied(again), (run, 200));
}

#[tokio::test]
async fn whoever_waits_is_let_go_when_the_control_plane_ends() {
    let world = world_that_waits(LONG).await;
    let request = request("1");
    let (taken, run) = tokio::join!(world.take("plain", &request), async {
        let run = world.entered().await;
        world.ingress.waiters().release();
        run
    });
    assert_eq!(taken.unwrap(), run);
}

/// The step gives the request up.
fn letter(run: MessageId) -> DeadLetterRecord {
    DeadLetterRecord {
        id: 0,
        flow: "plain".into(),
        step: "crm".into(),
        port: None,
        version: 4,
        connection: DEFAULT_CONNECTION.into(),
        run: Some(run),
        message_id: run,
        cause: DeadCause::Permanent,
        reason: "no customer".into(),
        chain: vec![],
        attempts: vec![],
        replica: 1,
        at: 80,
        replays: 0,
        state: DeadState::Open,
        message: raw(&"what it was"),
    }
}

#[tokio::test]
async fn whoever_waits_for_what_was_given_up_is_told_so() {
    let world = world_that_waits(LONG).await;
    let request = request("1");
    let (refused, run) = tokio::join!(world.refused("plain", &request), async {
        let run = world.entered().await;
        let letters = world.ingress.store.store_dead_letters(vec![letter(run)]);
        letters.await.unwrap();
        world.ingress.waiters().wake(run);
        run
    });
    assert_eq!((refused.status(), refused.code()), (502, "given_up"));
    assert!(refused.to_string().contains(&run.to_string()));
}

#[tokio::test]
async fn a_request_that_was_not_taken_leaves_no_run() {
    let world = world_that_waits(LONG).await;
    world.broker.set_full("t.flow.plain.crm", true);
    assert_eq!(world.refused("plain", &request("1")).await.status(), 429);
    let runs = world.ingress.store.runs("plain", 10).await.unwrap();
    assert!(runs.is_empty(), "{runs:?}");
}
