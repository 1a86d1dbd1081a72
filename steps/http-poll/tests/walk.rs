//! Walks over real servers: the demonstration's shop, and servers that misbehave on purpose.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use towpath_demo::mischief::{Mischief, Rates};
use towpath_demo::shop;
use towpath_http_poll::{poll, setup};
use towpath_step::testing::{Outcome, TestRun};
use towpath_step::{Fate, Step};
use wiremock::matchers::{any, header, path, query_param, query_param_is_missing};
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

async fn walk(url: &str, more: Value, checkpoint: Option<Value>) -> Outcome {
    let mut config = json!({
        "url": url,
        "headers": {"authorization": "Bearer hush"},
        "timeout": "500ms",
    });
    let object = config.as_object_mut().unwrap();
    object.extend(more.as_object().unwrap().clone());
    let trial = TestRun::of(Step::poll(poll).setup(setup))
        .config(config)
        .tick();
    let outcome = match checkpoint {
        Some(checkpoint) => trial.checkpoint(checkpoint).await,
        None => trial.await,
    };
    if let Some(failure) = &outcome.failure {
        let text = format!("{failure:?}");
        assert!(!text.contains("hush"), "a reason tells no secret: {text}");
    }
    outcome
}

fn ids(outcome: &Outcome) -> Vec<u64> {
    outcome
        .bodies()
        .iter()
        .map(|body| body["id"].as_u64().unwrap())
        .collect()
}

fn last(outcome: &Outcome) -> Value {
    outcome.checkpoints.last().unwrap().clone()
}

async fn serve_shop(servers: &mut JoinSet<()>, orders: u64, rates: Rates) -> String {
    let router: Router = shop::router(orders, Mischief::new(rates, 11)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    servers.spawn(async move { axum::serve(listener, router).await.unwrap() });
    url
}

/// Asks the shop to do something: its pages for people are plain `POST`s.
async fn post(url: &str) {
    use towpath_step_http::{Client, HeaderMap, Method, Request, Settings};
    let client = Client::new(&Settings {
        timeout: Duration::from_secs(5),
        user_agent: "test".into(),
        answer_bytes_max: 1 << 20,
        certificates: None,
    });
    let request = Request {
        method: Method::POST,
        url: url.parse().unwrap(),
        headers: HeaderMap::new(),
        body: None,
    };
    assert_eq!(client.unwrap().send(request).await.unwrap().status, 200);
}

#[tokio::test]
async fn the_shop_is_read_in_every_style_and_then_only_what_is_new() {
    let mut servers = JoinSet::new();
    let styles = [
        (
            "/orders?size=40",
            json!({"cursor": "updated_at", "sorted": true}),
        ),
        (
            "/orders",
            json!({"cursor": "updated_at", "page": {"style": "number", "size_param": "size", "size": 40}}),
        ),
        (
            "/v2/orders",
            json!({"cursor": "updated_at", "items": "data.items", "page": {
                "style": "cursor", "next": "next_cursor", "size_param": "limit", "size": 40, "more": "has_more",
            }}),
        ),
    ];
    for (at, config) in styles {
        let shop = serve_shop(&mut servers, 250, Rates::NONE).await;
        let url = format!("{shop}{at}");
        let first = walk(&url, config.clone(), None).await;
        assert!(first.is_done(), "{:?}", first.failure);
        assert_eq!(ids(&first), (1..=250).collect::<Vec<_>>(), "{at}");
        assert_eq!(
            first.outputs[0].source_id.as_deref(),
            Some("1@2026-01-01T00:00:00Z")
        );

        let second = walk(&url, config.clone(), Some(last(&first))).await;
        assert_eq!(
            (ids(&second), second.checkpoints.len()),
            (vec![], 0),
            "{at}"
        );

        post(&format!("{shop}/orders?n=3")).await;
        post(&format!("{shop}/change?n=2")).await;
        let third = walk(&url, config.clone(), Some(last(&first))).await;
        let new: BTreeSet<u64> = ids(&third).into_iter().collect();
        assert_eq!(new, BTreeSet::from([1, 2, 251, 252, 253]), "{at}");
        let fourth = walk(&url, config, Some(last(&third))).await;
        assert_eq!(ids(&fourth), Vec::<u64>::new(), "{at}");
    }
}

#[tokio::test]
async fn a_shop_that_misbehaves_is_read_whole_all_the_same() {
    let mut servers = JoinSet::new();
    let rates = Rates {
        too_many: 0,
        error: 150,
        slow: 50,
        slow_for: Duration::from_millis(700),
        ..Rates::NONE
    };
    let shop = serve_shop(&mut servers, 400, rates).await;
    let config = json!({"cursor": "updated_at", "sorted": true});
    let mut seen = BTreeSet::new();
    let mut checkpoint = None;
    let mut runs = 0;
    loop {
        runs += 1;
        assert!(runs < 20, "it never ends");
        let outcome = walk(
            &format!("{shop}/orders?size=10"),
            config.clone(),
            checkpoint.clone(),
        )
        .await;
        seen.extend(
            outcome
                .outputs
                .iter()
                .map(|output| output.source_id.clone().unwrap()),
        );
        if outcome.is_done() {
            break;
        }
        assert_eq!(outcome.fate(), Some(Fate::Retry));
        checkpoint = outcome.checkpoints.last().cloned().or(checkpoint);
    }
    assert_eq!(seen.len(), 400, "each order under one name");
}

#[tokio::test]
async fn a_busy_source_is_waited_for_or_left_alone() {
    let server = MockServer::start().await;
    let busy = |seconds: &str| {
        ResponseTemplate::new(429)
            .insert_header("retry-after", seconds)
            .set_body_string("slow down")
    };
    let page = ResponseTemplate::new(200).set_body_json(json!([{"id": 1}]));
    Mock::given(path("/short"))
        .respond_with(busy("0"))
        .up_to_n_times(2)
        .mount(&server)
        .await;
    Mock::given(path("/short"))
        .respond_with(page.clone())
        .mount(&server)
        .await;
    let outcome = walk(&format!("{}/short", server.uri()), json!({}), None).await;
    assert_eq!(ids(&outcome), [1]);

    Mock::given(path("/long"))
        .respond_with(busy("90"))
        .expect(1)
        .mount(&server)
        .await;
    let outcome = walk(&format!("{}/long", server.uri()), json!({}), None).await;
    assert_eq!(outcome.fate(), Some(Fate::Rebound));
    assert_eq!(
        outcome.failure.as_ref().unwrap().delay,
        Some(Duration::from_secs(90))
    );
    assert_eq!(
        outcome.reason(),
        "the server answered 429 Too Many Requests: slow down"
    );
}

#[tokio::test]
async fn a_run_that_is_given_back_goes_on_from_its_last_page() {
    let server = MockServer::start().await;
    let item = |id: u64| json!({"id": id, "at": id});
    let first = ResponseTemplate::new(200)
        .set_body_json(json!([item(1), item(2)]))
        .insert_header("link", "</list?page=2>; rel=\"next\"");
    Mock::given(query_param_is_missing("page"))
        .and(query_param_is_missing("updated_since"))
        .respond_with(first)
        .mount(&server)
        .await;
    let busy = ResponseTemplate::new(503).insert_header("retry-after", "60");
    Mock::given(query_param("page", "2"))
        .respond_with(busy)
        .mount(&server)
        .await;
    let rest = ResponseTemplate::new(200).set_body_json(json!([item(2), item(3)]));
    Mock::given(query_param("updated_since", "2"))
        .respond_with(rest)
        .mount(&server)
        .await;

    let url = format!("{}/list", server.uri());
    let config = json!({"cursor": "at", "sorted": true});
    let outcome = walk(&url, config.clone(), None).await;
    assert_eq!(
        (ids(&outcome), outcome.fate()),
        (vec![1, 2], Some(Fate::Rebound))
    );
    let outcome = walk(&url, config, Some(last(&outcome))).await;
    assert_eq!((ids(&outcome), outcome.is_done()), (vec![3], true));

    // Of a list that is not sorted, nothing is known before its end.
    let outcome = walk(&url, json!({"cursor": "at"}), None).await;
    assert_eq!((ids(&outcome).len(), outcome.checkpoints.len()), (2, 0));
}

#[tokio::test]
async fn what_may_pass_is_retried_and_what_cannot_is_given_up() {
    for (status, fate, asked) in [
        (500, Fate::Retry, 4),
        (502, Fate::Retry, 4),
        (408, Fate::Retry, 4),
        (401, Fate::Permanent, 1),
        (403, Fate::Permanent, 1),
        (404, Fate::Permanent, 1),
        (422, Fate::Permanent, 1),
    ] {
        let server = MockServer::start().await;
        let answer = ResponseTemplate::new(status).set_body_string("no such\nlist");
        Mock::given(any())
            .respond_with(answer)
            .expect(asked)
            .mount(&server)
            .await;
        let outcome = walk(&format!("{}/?key=hush", server.uri()), json!({}), None).await;
        assert_eq!(outcome.fate(), Some(fate), "{status}");
        assert!(
            outcome.reason().ends_with(": no such list"),
            "{}",
            outcome.reason()
        );
    }
}

#[tokio::test]
async fn answers_that_are_no_pages_say_what_they_are() {
    let reason = |answer: ResponseTemplate, config: Value| async move {
        let server = MockServer::start().await;
        Mock::given(any()).respond_with(answer).mount(&server).await;
        let outcome = walk(&server.uri(), config, None).await;
        (outcome.fate().unwrap(), outcome.reason().to_owned())
    };
    let json = |body: Value| ResponseTemplate::new(200).set_body_json(body);
    let (fate, text) = reason(
        ResponseTemplate::new(200).set_body_string("<html>"),
        json!({}),
    )
    .await;
    assert_eq!(fate, Fate::Retry);
    assert!(text.starts_with("the answer is not JSON"), "{text}");
    let (fate, text) = reason(json(json!({"a": [], "b": []})), json!({})).await;
    assert_eq!(fate, Fate::Permanent);
    assert!(
        text.contains("which of its lists (a, b) is meant is unclear"),
        "{text}"
    );
    let (_, text) = reason(json(json!([{"id": 1}, {"name": "x"}])), json!({})).await;
    assert_eq!(text, "item 2 of page 1 has no `id` to tell it by");
    let (_, text) = reason(
        json(json!([{"id": 1, "at": null}])),
        json!({"cursor": "at"}),
    )
    .await;
    assert_eq!(
        text,
        "item 1 of page 1, `1`, has no `at` to say when it changed"
    );
    let large = format!("[{{\"id\": 1, \"x\": \"{}\"}}]", "x".repeat(1 << 20));
    let (fate, text) = reason(
        ResponseTemplate::new(200).set_body_string(large),
        json!({"page_mib_max": 1, "timeout": "10s"}),
    )
    .await;
    assert_eq!(
        (fate, text.as_str()),
        (Fate::Permanent, "the answer is larger than 1048576 bytes")
    );
}

#[tokio::test]
async fn a_list_that_leads_in_a_circle_ends() {
    let server = MockServer::start().await;
    let page = ResponseTemplate::new(200)
        .set_body_json(json!({"rows": [{"id": 1}], "next_cursor": "same"}));
    Mock::given(any())
        .respond_with(page)
        .expect(2)
        .mount(&server)
        .await;
    let outcome = walk(&server.uri(), json!({"page": {"style": "cursor"}}), None).await;
    assert_eq!((ids(&outcome), outcome.is_done()), (vec![1], true));
    assert!(
        outcome
            .logs
            .iter()
            .any(|log| log.level == "warn" && log.text.contains("read already"))
    );
}

#[tokio::test]
async fn a_list_without_end_stops_at_max_pages() {
    let server = MockServer::start().await;
    let count = AtomicUsize::new(0);
    let endless = move |_: &Request| {
        let n = count.fetch_add(1, Ordering::Relaxed);
        ResponseTemplate::new(200)
            .set_body_json(json!([{"id": n, "at": n}]))
            .insert_header("link", format!("<?p={n}>; rel=\"next\"").as_str())
    };
    Mock::given(any())
        .respond_with(endless)
        .mount(&server)
        .await;
    let outcome = walk(&server.uri(), json!({"max_pages": 5, "cursor": "at"}), None).await;
    assert_eq!(
        (outcome.fate(), outcome.checkpoints.len()),
        (Some(Fate::Permanent), 0)
    );
    let outcome = walk(
        &server.uri(),
        json!({"max_pages": 5, "cursor": "at", "sorted": true}),
        None,
    )
    .await;
    assert_eq!(
        (
            outcome.is_done(),
            outcome.checkpoints.len(),
            outcome.outputs.len()
        ),
        (true, 5, 5)
    );
}

#[tokio::test]
async fn items_pass_as_they_are_written_on_one_line() {
    let server = MockServer::start().await;
    let body = "{\n  \"items\": [\n    { \"id\": 12345678901234567890123,\n  \"n\": 1.10 }\n  ]\n}";
    let page = ResponseTemplate::new(200).set_body_raw(body, "application/json");
    Mock::given(header("authorization", "Bearer hush"))
        .respond_with(page)
        .mount(&server)
        .await;
    let outcome = walk(&server.uri(), json!({}), None).await;
    let source_id = outcome.outputs[0].source_id.as_deref().unwrap();
    assert!(
        source_id.starts_with("12345678901234567890123@"),
        "{source_id}"
    );
    // What changed nothing but white space brings nothing in.
    let server = MockServer::start().await;
    let page =
        ResponseTemplate::new(200).set_body_string("[{\"id\":12345678901234567890123,\"n\":1.10}]");
    Mock::given(any()).respond_with(page).mount(&server).await;
    let outcome = walk(&server.uri(), json!({}), Some(last(&outcome))).await;
    assert_eq!(outcome.outputs.len(), 0);
}

#[tokio::test]
async fn a_wrong_configuration_is_refused() {
    let refusal = |config: Value| async {
        let step = Step::poll(poll).setup(setup);
        TestRun::of(step).config(config).refusal().await.unwrap()
    };
    assert!(
        refusal(json!({"url": "shop/orders"}))
            .await
            .starts_with("`url` is not a URL")
    );
    assert!(
        refusal(json!({"url": "http://x", "curser": "at"}))
            .await
            .contains("curser")
    );
    assert!(
        refusal(json!({"url": "http://x", "headers": {"a b": ""}}))
            .await
            .contains("`headers.a b`")
    );
    assert!(
        refusal(json!({"url": "http://x", "page": {"style": "links"}}))
            .await
            .contains("links")
    );
}
