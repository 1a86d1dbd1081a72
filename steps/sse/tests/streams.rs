//! Real streams over real connections, through the step's own loop.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use towpath_sse::{listen, setup};
use towpath_step::testing::{Outcome, TestRun};
use towpath_step::{Fate, Step};

/// What a server answers to one connection after the other; the last answer again and again.
#[derive(Clone)]
struct Server {
    answers: Arc<Mutex<Vec<Answer>>>,
    /// What each connection asked.
    asked: Arc<Mutex<Vec<Asked>>>,
}

/// The `Last-Event-ID` of a connection, and when it came.
type Asked = (Option<String>, Instant);

#[derive(Clone)]
enum Answer {
    /// These events, and the end of the connection.
    Events(&'static str),
    /// These events, and then silence.
    Silence(&'static str),
    /// Some other status.
    Status(u16, &'static str),
}

async fn answer(State(server): State<Server>, headers: HeaderMap) -> Response {
    let last = headers.get("last-event-id");
    let last = last.map(|id| id.to_str().unwrap().to_owned());
    server.asked.lock().unwrap().push((last, Instant::now()));
    let answer = {
        let mut answers = server.answers.lock().unwrap();
        if answers.len() > 1 {
            answers.remove(0)
        } else {
            answers[0].clone()
        }
    };
    let kind = [(header::CONTENT_TYPE, "text/event-stream; charset=utf-8")];
    match answer {
        Answer::Events(events) => (kind, events).into_response(),
        Answer::Silence(events) => {
            let first = stream::iter([Ok::<_, std::io::Error>(events)]);
            (kind, Body::from_stream(first.chain(stream::pending()))).into_response()
        }
        Answer::Status(status, body) => {
            let status = StatusCode::from_u16(status).unwrap();
            (status, [(header::RETRY_AFTER, "60")], body).into_response()
        }
    }
}

async fn serve(servers: &mut JoinSet<()>, answers: Vec<Answer>) -> (String, Server) {
    let server = Server {
        answers: Arc::new(Mutex::new(answers)),
        asked: Arc::default(),
    };
    let router = Router::new().fallback(answer).with_state(server.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/events", listener.local_addr().unwrap());
    servers.spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, server)
}

async fn run(url: &str, more: Value, checkpoint: Option<Value>) -> Outcome {
    let mut config = json!({"url": url, "for": "1s"});
    config
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let trial = TestRun::of(Step::poll(listen).setup(setup))
        .config(config)
        .tick();
    match checkpoint {
        Some(checkpoint) => trial.checkpoint(checkpoint).await,
        None => trial.await,
    }
}

impl Server {
    fn asked(&self) -> Vec<Option<String>> {
        let asked = self.asked.lock().unwrap();
        asked.iter().map(|(id, _)| id.clone()).collect()
    }
}

#[tokio::test]
async fn events_are_messages_and_the_next_run_goes_on_after_the_last() {
    let mut servers = JoinSet::new();
    let events =
        "retry: 50\n\nid: 1\nevent: order\ndata: {\"n\": 1}\n\nid: 2\ndata: {\"n\": 2}\n\n";
    let (url, server) = serve(&mut servers, vec![Answer::Silence(events)]).await;
    let first = run(&url, json!({}), None).await;
    assert!(first.is_done(), "{:?}", first.failure);
    assert_eq!(first.bodies(), [&json!({"n": 1}), &json!({"n": 2})]);
    assert_eq!(first.outputs[0].source_id.as_deref(), Some("1"));
    assert_eq!(first.outputs[0].headers["sse.event"], "order");
    assert_eq!(first.outputs[1].headers["sse.event"], "message");
    let saved = first.checkpoints.last().unwrap().clone();
    assert_eq!(saved, json!({"last_event_id": "2", "retry_ms": 50}));

    let second = run(&url, json!({"events": ["nothing"]}), Some(saved)).await;
    assert!(second.is_done() && second.outputs.is_empty());
    assert_eq!(server.asked(), [None, Some("2".to_owned())]);
}

#[tokio::test]
async fn a_connection_that_breaks_off_is_made_again_after_the_servers_retry() {
    let mut servers = JoinSet::new();
    let answers = vec![
        Answer::Events("retry: 200\n\nid: 1\ndata: 1\n\nid: 2\ndata: cut off"),
        Answer::Silence("id: 2\ndata: 2\n\n"),
    ];
    let (url, server) = serve(&mut servers, answers).await;
    let outcome = run(&url, json!({}), None).await;
    assert!(outcome.is_done(), "{:?}", outcome.failure);
    assert_eq!(outcome.bodies(), [&json!(1), &json!(2)]);
    assert_eq!(server.asked(), [None, Some("1".to_owned())]);
    let asked = server.asked.lock().unwrap();
    let wait = asked[1].1.duration_since(asked[0].1);
    assert!(wait >= Duration::from_millis(200), "{wait:?}");
}

#[tokio::test]
async fn a_silent_connection_is_made_again() {
    let mut servers = JoinSet::new();
    let (url, server) = serve(
        &mut servers,
        vec![Answer::Silence("retry: 10\n\nid: 1\ndata: 1\n\n")],
    )
    .await;
    let outcome = run(&url, json!({"idle": "300ms", "for": "2s"}), None).await;
    assert!(outcome.is_done(), "{:?}", outcome.failure);
    assert!(server.asked().len() >= 2);
    // The server sends the same event again: it is the same message.
    let names: Vec<_> = outcome
        .outputs
        .iter()
        .map(|it| it.source_id.as_deref())
        .collect();
    assert!(names.iter().all(|name| *name == Some("1")), "{names:?}");
}

#[tokio::test]
async fn a_server_that_wants_nobody_is_left_alone() {
    let mut servers = JoinSet::new();
    let (url, server) = serve(&mut servers, vec![Answer::Status(204, "")]).await;
    let outcome = run(&url, json!({}), None).await;
    assert!(outcome.is_done());
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn what_is_no_stream_says_what_it_is() {
    let mut servers = JoinSet::new();
    for (status, fate, reason) in [
        (
            503,
            Fate::Rebound,
            "the server answered 503 Service Unavailable: no",
        ),
        (
            401,
            Fate::Permanent,
            "the server answered 401 Unauthorized: no",
        ),
        (
            200,
            Fate::Permanent,
            "the answer is `text/plain; charset=utf-8`, not `text/event-stream`: this is no stream of events",
        ),
    ] {
        let (url, _) = serve(&mut servers, vec![Answer::Status(status, "no")]).await;
        let outcome = run(&url, json!({}), None).await;
        assert_eq!((outcome.fate(), outcome.reason()), (Some(fate), reason));
    }
}

#[tokio::test]
async fn data_that_is_not_json_ends_the_run_unless_it_may_be_left_out() {
    let mut servers = JoinSet::new();
    let events = "id: 1\ndata: {\"n\":1}\n\nid: 2\ndata: oops\n\nid: 3\ndata: {\"n\":3}\n\n";
    let (url, _) = serve(&mut servers, vec![Answer::Silence(events)]).await;
    let outcome = run(&url, json!({}), None).await;
    assert_eq!(outcome.fate(), Some(Fate::Permanent));
    assert!(
        outcome
            .reason()
            .contains("the data of the event `message` (2) is not JSON"),
        "{}",
        outcome.reason()
    );
    let saved = outcome.checkpoints.last().unwrap();
    assert_eq!(saved["last_event_id"], "1", "what was before it is safe");
    let outcome = run(&url, json!({"data": "json_or_skip", "id": "n"}), None).await;
    assert_eq!(outcome.bodies(), [&json!({"n": 1}), &json!({"n": 3})]);
    assert_eq!(outcome.outputs[1].source_id.as_deref(), Some("3"));
    let outcome = run(&url, json!({"data": "text"}), None).await;
    assert_eq!(outcome.bodies()[1], &json!("oops"));
}

#[tokio::test]
async fn a_wrong_configuration_is_refused() {
    let refusal = |config: Value| async {
        let step = Step::poll(listen).setup(setup);
        TestRun::of(step).config(config).refusal().await.unwrap()
    };
    assert!(
        refusal(json!({"url": "events"}))
            .await
            .starts_with("`url` is not a URL")
    );
    let reason = refusal(json!({"url": "http://x", "data": "text", "id": "n"})).await;
    assert!(reason.starts_with("`id` is a path in JSON"), "{reason}");
    assert!(
        refusal(json!({"url": "http://x", "event": []}))
            .await
            .contains("event")
    );
}
