//! The step against servers that answer in every way.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use towpath_http_request::{handle, setup};
use towpath_step::testing::{Outcome, TestRun};
use towpath_step::{Fate, Step};
use wiremock::matchers::{any, body_json, header, method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

async fn send(server: &MockServer, more: Value, body: Value) -> Outcome {
    let mut config = json!({
        "method": "PUT",
        "url": format!("{}/deals/{{{{ .id }}}}?key=hush", server.uri()),
        "headers": {"authorization": "Bearer hush"},
        "timeout": "500ms",
    });
    let object = config.as_object_mut().expect("it is an object");
    object.extend(more.as_object().expect("it is an object").clone());
    let step = Step::action(handle).setup(setup);
    let outcome = TestRun::of(step).config(config).input(body).await;
    if let Some(failure) = &outcome.failure {
        let text = format!("{failure:?}");
        assert!(!text.contains("hush"), "a reason tells no secret: {text}");
    }
    outcome
}

async fn answering(response: ResponseTemplate) -> MockServer {
    let server = MockServer::start().await;
    Mock::given(any())
        .respond_with(response)
        .mount(&server)
        .await;
    server
}

fn order() -> Value {
    json!({"id": 7, "name": "Ada"})
}

#[tokio::test]
async fn a_success_is_done_and_its_answer_emitted() {
    let server = MockServer::start().await;
    let answer = ResponseTemplate::new(201)
        .set_body_raw("{\n \"id\": 7 }", "application/json")
        .insert_header("x-request-id", "r1")
        .insert_header("set-cookie", "private");
    Mock::given(method("PUT"))
        .and(path("/deals/7"))
        .and(header("authorization", "Bearer hush"))
        .and(body_json(order()))
        .respond_with(answer)
        .expect(1)
        .mount(&server)
        .await;
    let outcome = send(&server, json!({}), order()).await;
    let expect = json!({
        "status": 201,
        "headers": {"content-type": "application/json", "x-request-id": "r1"},
        "body": {"id": 7},
    });
    assert_eq!(outcome.bodies(), [&expect], "{outcome:?}");
    let request = &server.received_requests().await.expect("they are recorded")[0];
    let key = request.headers["idempotency-key"]
        .to_str()
        .expect("it is text");
    assert_eq!(key.len(), 32, "the id of the message: {key}");
}

#[tokio::test]
async fn what_is_emitted_can_be_chosen() {
    let server = answering(ResponseTemplate::new(200).set_body_string("not json")).await;
    let outcome = send(&server, json!({}), order()).await;
    assert_eq!(outcome.bodies()[0]["body"], "not json");
    let outcome = send(&server, json!({"emit": "input"}), order()).await;
    assert_eq!(outcome.bodies(), [&order()]);
    let outcome = send(&server, json!({"emit": "none"}), order()).await;
    assert!(outcome.is_done() && outcome.outputs.is_empty());
    let server = answering(ResponseTemplate::new(204)).await;
    let outcome = send(&server, json!({}), order()).await;
    assert_eq!(outcome.bodies()[0]["body"], Value::Null);
}

#[tokio::test]
async fn what_may_pass_is_retried_when_the_server_says() {
    for status in [408, 425, 429, 500, 502, 503, 504] {
        let answer = ResponseTemplate::new(status).set_body_string("come back");
        let outcome = send(&answering(answer.clone()).await, json!({}), order()).await;
        assert_eq!(outcome.fate(), Some(Fate::Retry), "{status}");
        assert!(
            outcome.reason().ends_with("come back"),
            "{}",
            outcome.reason()
        );
        assert_eq!(delay(&outcome), None);
        let later = answer.insert_header("retry-after", "7");
        let outcome = send(&answering(later).await, json!({}), order()).await;
        assert_eq!(delay(&outcome), Some(Duration::from_secs(7)), "{status}");
    }
    let date = SystemTime::now() + Duration::from_secs(100);
    let answer =
        ResponseTemplate::new(503).insert_header("retry-after", httpdate::fmt_http_date(date));
    let outcome = send(&answering(answer).await, json!({}), order()).await;
    let wait = delay(&outcome).expect("it says when");
    assert!((90..=100).contains(&wait.as_secs()), "{wait:?}");
}

#[tokio::test]
async fn what_cannot_pass_is_given_up_with_what_the_server_said() {
    for status in [400, 401, 403, 404, 409, 410, 422] {
        let answer = ResponseTemplate::new(status).set_body_string("no\nsuch deal");
        let outcome = send(&answering(answer).await, json!({}), order()).await;
        assert_eq!(outcome.fate(), Some(Fate::Permanent), "{status}");
        assert!(
            outcome.reason().ends_with(": no such deal"),
            "{}",
            outcome.reason()
        );
    }
    let conflict = answering(ResponseTemplate::new(409)).await;
    let outcome = send(&conflict, json!({"success": [409]}), order()).await;
    assert_eq!(outcome.bodies()[0]["status"], 409);
}

#[tokio::test]
async fn no_answer_is_retried_with_its_cause() {
    let slow = answering(ResponseTemplate::new(200).set_delay(Duration::from_secs(30))).await;
    let outcome = send(&slow, json!({}), order()).await;
    assert_eq!(outcome.fate(), Some(Fate::Retry));
    assert_eq!(outcome.reason(), "no answer from 127.0.0.1");
    let refused = json!({"url": "http://127.0.0.1:9/?key=hush"});
    let outcome = send(&slow, refused, order()).await;
    assert_eq!(outcome.fate(), Some(Fate::Retry));
    let unknown = json!({"url": "http://shop.invalid/?key=hush"});
    let outcome = send(&slow, unknown, order()).await;
    assert_eq!(outcome.fate(), Some(Fate::Retry), "{}", outcome.reason());
}

#[tokio::test]
async fn a_message_that_the_templates_do_not_fit_is_given_up() {
    let server = answering(ResponseTemplate::new(200)).await;
    let outcome = send(&server, json!({}), json!({"name": "Ada"})).await;
    assert_eq!(outcome.fate(), Some(Fate::Permanent));
    assert_eq!(
        outcome.reason(),
        "the template `url` fails at `.id`: is not there, or a part of it is not"
    );
    assert!(
        server
            .received_requests()
            .await
            .expect("they are recorded")
            .is_empty()
    );
}

async fn checked(server: &MockServer, more: Value, is_uncertain: bool) -> Outcome {
    let mut config = json!({
        "url": format!("{}/deals", server.uri()),
        "headers": {"authorization": "Bearer hush"},
        "check": {"url": format!("{}/deals/{{{{ .id }}}}", server.uri())},
    });
    let object = config.as_object_mut().expect("it is an object");
    object.extend(more.as_object().expect("it is an object").clone());
    let step = Step::action(handle).setup(setup);
    let trial = TestRun::of(step).config(config).input(order());
    if is_uncertain {
        trial.uncertain().await
    } else {
        trial.await
    }
}

async fn methods(server: &MockServer) -> Vec<String> {
    let requests = server.received_requests().await.expect("they are recorded");
    requests
        .iter()
        .map(|request| request.method.to_string())
        .collect()
}

async fn knowing(check: ResponseTemplate) -> MockServer {
    let server = MockServer::start().await;
    Mock::given(method("GET"))
        .and(path("/deals/7"))
        .and(header("authorization", "Bearer hush"))
        .respond_with(check)
        .mount(&server)
        .await;
    Mock::given(method("POST"))
        .respond_with(ResponseTemplate::new(201).set_body_json(json!({"made": true})))
        .mount(&server)
        .await;
    server
}

#[tokio::test]
async fn what_may_have_been_sent_before_is_asked_about_first() {
    let server = knowing(ResponseTemplate::new(200).set_body_json(json!({"found": true}))).await;
    let outcome = checked(&server, json!({}), true).await;
    assert_eq!(outcome.bodies()[0]["body"], json!({"found": true}));
    assert_eq!(methods(&server).await, ["GET"], "nothing is sent");
    let outcome = checked(&server, json!({"emit": "input"}), true).await;
    assert_eq!(outcome.bodies(), [&order()]);

    let server = knowing(ResponseTemplate::new(404)).await;
    let outcome = checked(&server, json!({}), true).await;
    assert_eq!(outcome.bodies()[0]["body"], json!({"made": true}));
    assert_eq!(methods(&server).await, ["GET", "POST"]);
}

#[tokio::test]
async fn what_is_new_is_sent_without_a_question() {
    let server = knowing(ResponseTemplate::new(200)).await;
    let outcome = checked(&server, json!({}), false).await;
    assert_eq!(outcome.bodies()[0]["body"], json!({"made": true}));
    assert_eq!(methods(&server).await, ["POST"]);
}

#[tokio::test]
async fn without_a_clear_answer_nothing_is_sent() {
    for status in [400, 401, 403, 410, 429, 500, 503] {
        let answer = ResponseTemplate::new(status).insert_header("retry-after", "7");
        let server = knowing(answer).await;
        let outcome = checked(&server, json!({}), true).await;
        assert_eq!(outcome.fate(), Some(Fate::Retry), "{status}");
        assert!(
            outcome.reason().starts_with("it may have been done before"),
            "{}",
            outcome.reason()
        );
        let expect = (status >= 429).then(|| Duration::from_secs(7));
        assert_eq!(delay(&outcome), expect, "{status}");
        assert_eq!(methods(&server).await, ["GET"], "{status}");
    }
    let away = ResponseTemplate::new(302).insert_header("location", "http://elsewhere.example/");
    let server = knowing(away).await;
    let outcome = checked(&server, json!({}), true).await;
    assert_eq!(outcome.fate(), Some(Fate::Retry), "{}", outcome.reason());
    let nowhere = json!({"check": {"url": "http://127.0.0.1:9/{{ .id }}", "headers": {}}});
    let outcome = checked(&server, nowhere, true).await;
    assert_eq!(outcome.fate(), Some(Fate::Retry), "{}", outcome.reason());
}

#[tokio::test]
async fn a_redirect_takes_no_secret_elsewhere() {
    let away =
        ResponseTemplate::new(307).insert_header("location", "http://elsewhere.example/?x=hush");
    let outcome = send(&answering(away).await, json!({}), order()).await;
    assert_eq!(outcome.fate(), Some(Fate::Permanent));
    assert!(
        outcome
            .reason()
            .ends_with("http://elsewhere.example/, which is another origin")
    );
}

#[tokio::test]
async fn an_answer_too_large_for_a_message_is_given_up_only_if_it_is_wanted() {
    let large = answering(ResponseTemplate::new(200).set_body_string("x".repeat(2 << 20))).await;
    let outcome = send(&large, json!({"timeout": "10s"}), order()).await;
    assert_eq!(outcome.fate(), Some(Fate::Permanent));
    assert_eq!(outcome.reason(), "the answer is larger than 1048576 bytes");
    let outcome = send(&large, json!({"timeout": "10s", "emit": "input"}), order()).await;
    assert_eq!(outcome.bodies(), [&order()]);
}

#[tokio::test]
async fn a_wrong_configuration_is_refused() {
    let refusal = |config: Value| async {
        TestRun::of(Step::action(handle).setup(setup))
            .config(config)
            .refusal()
            .await
    };
    let reason = refusal(json!({"url": "http://x/{{ .id + }}"}))
        .await
        .expect("it is refused");
    assert!(reason.starts_with("the template `url` fails"), "{reason}");
    assert_eq!(
        refusal(json!({"url": "crm/deals"})).await.as_deref(),
        Some("`url` is not a URL: relative URL without a base")
    );
    assert_eq!(
        refusal(json!({"url": "http://x/", "check": {"url": "deals"}})).await,
        Some("`url` is not a URL: relative URL without a base".to_owned())
    );
    let reason = refusal(json!({"url": "http://x/", "metod": "PUT"}))
        .await
        .expect("it is refused");
    assert!(reason.contains("metod"), "{reason}");
    let reason = refusal(json!({"url": "http://x/", "timeout": "soon"}))
        .await
        .expect("it is refused");
    assert!(reason.contains("not a length of time"), "{reason}");
}

#[test]
fn the_manifest_names_what_can_be_set() {
    let step = Step::action(handle).setup(setup);
    let config = step.manifest().config.expect("it has a configuration");
    for name in [
        "method", "url", "headers", "body", "timeout", "success", "emit", "check",
    ] {
        assert!(!config["properties"][name].is_null(), "{name}: {config}");
    }
    assert_eq!(config["required"], json!(["url"]));
    assert_eq!(config["additionalProperties"], false);
}

fn delay(outcome: &Outcome) -> Option<Duration> {
    outcome.failure.as_ref().and_then(|failure| failure.delay)
}
