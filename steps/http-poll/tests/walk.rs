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
use wiremock::matchers::{any, header, header_exists, path, query_param, query_param_is_missing};
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
async fn what_did_not_change_is_not_sent_again_by_a_source_that_knows_etags() {
    let server = MockServer::start().await;
    let page = ResponseTemplate::new(200)
        .insert_header("etag", "\"v1\"")
        .set_body_json(json!([{"id": 1}, {"id": 2}]));
    Mock::given(header("if-none-match", "\"v1\""))
        .respond_with(ResponseTemplate::new(304))
        .expect(1)
        .mount(&server)
        .await;
    Mock::given(any()).respond_with(page).mount(&server).await;
    let first = walk(&server.uri(), json!({}), None).await;
    assert_eq!(ids(&first), [1, 2]);
    let second = walk(&server.uri(), json!({}), Some(last(&first))).await;
    assert!(second.is_done(), "{:?}", second.failure);
    assert_eq!((second.outputs.len(), second.checkpoints.len()), (0, 0));
    // What is made of the list is another thing now, so its not having changed says nothing.
    let other = json!({"id": "id", "headers": {"authorization": "Bearer hush", "x": "1"}});
    let third = walk(&server.uri(), other, Some(last(&first))).await;
    assert!(third.is_done());
    // And a 304 that nobody asked for is no answer.
    let server = MockServer::start().await;
    Mock::given(any())
        .respond_with(ResponseTemplate::new(304))
        .mount(&server)
        .await;
    let outcome = walk(&server.uri(), json!({}), None).await;
    assert_eq!(outcome.fate(), Some(Fate::Permanent));
}

#[tokio::test]
async fn a_source_that_knows_only_when_it_changed_is_asked_by_that() {
    let server = MockServer::start().await;
    let modified = "Sat, 21 Nov 2026 12:00:00 GMT";
    let page = ResponseTemplate::new(200)
        .insert_header("last-modified", modified)
        .insert_header("date", "Sat, 21 Nov 2026 12:00:05 GMT")
        .set_body_json(json!([{"id": 1, "at": 7}]));
    // What is asked is in the unit tests: this matcher takes a date for a list.
    Mock::given(header_exists("if-modified-since"))
        .respond_with(ResponseTemplate::new(304))
        .expect(1)
        .mount(&server)
        .await;
    Mock::given(any()).respond_with(page).mount(&server).await;
    let config = json!({"cursor": "at"});
    let first = walk(&server.uri(), config.clone(), None).await;
    // The second asks another question, `updated_since=7`; the third asks it again.
    let second = walk(&server.uri(), config.clone(), Some(last(&first))).await;
    assert_eq!((second.outputs.len(), second.checkpoints.len()), (0, 1));
    let third = walk(&server.uri(), config, Some(last(&second))).await;
    assert_eq!((third.is_done(), third.checkpoints.len()), (true, 0));
}

#[tokio::test]
async fn a_first_page_that_did_not_change_says_nothing_of_the_second() {
    let server = MockServer::start().await;
    let first = ResponseTemplate::new(200)
        .insert_header("etag", "\"same\"")
        .insert_header("link", "</?page=2>; rel=\"next\"")
        .set_body_json(json!([{"id": 1}]));
    Mock::given(query_param_is_missing("page"))
        .respond_with(first)
        .mount(&server)
        .await;
    let second = ResponseTemplate::new(200)
        .insert_header("etag", "\"same\"")
        .set_body_json(json!([{"id": 2}]));
    Mock::given(query_param("page", "2"))
        .respond_with(second)
        .mount(&server)
        .await;
    let outcome = walk(&server.uri(), json!({}), None).await;
    assert_eq!(ids(&outcome), [1, 2]);
    assert!(last(&outcome).get("validators").is_none());
}

#[tokio::test]
async fn items_that_appear_late_are_brought_in_once() {
    let server = MockServer::start().await;
    let item =
        |id: u64, minute: u64| json!({"id": id, "at": format!("2026-11-21T10:{minute:02}:00Z")});
    let config = json!({"cursor": "at", "look_back": "5m"});
    let list = |items: Value| ResponseTemplate::new(200).set_body_json(items);
    Mock::given(query_param_is_missing("updated_since"))
        .respond_with(list(json!([item(1, 0), item(2, 10)])))
        .mount(&server)
        .await;
    let first = walk(&server.uri(), config.clone(), None).await;
    assert_eq!(ids(&first), [1, 2]);
    // Written at 10:07, but not seen before 10:10 was.
    Mock::given(query_param("updated_since", "2026-11-21T10:05:00Z"))
        .respond_with(list(json!([item(3, 7), item(2, 10)])))
        .expect(2)
        .mount(&server)
        .await;
    let second = walk(&server.uri(), config.clone(), Some(last(&first))).await;
    assert_eq!(ids(&second), [3]);
    let third = walk(&server.uri(), config, Some(last(&second))).await;
    assert_eq!((ids(&third), third.checkpoints.len()), (vec![], 0));
}

#[tokio::test]
async fn a_first_run_goes_back_as_far_as_it_is_told() {
    let server = MockServer::start().await;
    let page = json!([{"id": 1, "at": 100}, {"id": 2, "at": 9_999_999_999_u64}]);
    let asked = Mock::given(any()).respond_with(ResponseTemplate::new(200).set_body_json(page));
    asked.mount(&server).await;
    let config = json!({"cursor": "at", "since": "90d", "since_format": "seconds"});
    let outcome = walk(&server.uri(), config, None).await;
    // Whether the source heeds the parameter or not.
    assert_eq!(ids(&outcome), [2]);
    let requests = server.received_requests().await.unwrap();
    let query = requests[0].url.query().unwrap();
    assert!(query.starts_with("updated_since=1"), "{query}");

    let outcome = walk(&server.uri(), json!({"cursor": "at", "since": "90d"}), None).await;
    assert_eq!(outcome.fate(), Some(Fate::Permanent));
    assert!(
        outcome.reason().contains("set `since_format`"),
        "{}",
        outcome.reason()
    );
}

#[tokio::test]
async fn a_list_by_offset_is_read_to_its_end() {
    let server = MockServer::start().await;
    let page = |request: &Request| {
        let offset = request.url.query_pairs().find(|(name, _)| name == "offset");
        let offset: u64 = offset.unwrap().1.parse().unwrap();
        let items: Vec<_> = (offset..25.min(offset + 10))
            .map(|id| json!({"id": id}))
            .collect();
        ResponseTemplate::new(200).set_body_json(json!({"value": items}))
    };
    Mock::given(query_param("limit", "10"))
        .respond_with(page)
        .expect(4)
        .mount(&server)
        .await;
    let config = json!({"page": {"style": "offset", "size": 10}});
    let outcome = walk(&server.uri(), config, None).await;
    assert_eq!(ids(&outcome), (0..25).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_source_that_does_not_know_page_numbers_is_read_once() {
    let server = MockServer::start().await;
    let page = ResponseTemplate::new(200).set_body_json(json!([{"id": 1}, {"id": 2}]));
    Mock::given(any())
        .respond_with(page)
        .expect(2)
        .mount(&server)
        .await;
    let outcome = walk(&server.uri(), json!({"page": {"style": "number"}}), None).await;
    assert_eq!((ids(&outcome), outcome.is_done()), (vec![1, 2], true));
}

#[tokio::test]
async fn a_page_that_never_ends_is_noticed() {
    let mut servers = JoinSet::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let endless = || async {
        let items = futures_util::stream::unfold(0_u64, |n| async move {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let start = if n == 0 { "[" } else { "," };
            let item = format!("{start}{{\"id\":{n},\"at\":{n}}}");
            Some((Ok::<_, std::convert::Infallible>(item), n + 1))
        });
        axum::body::Body::from_stream(items)
    };
    let router = Router::new().route("/", axum::routing::get(endless));
    servers.spawn(async move { axum::serve(listener, router).await.unwrap() });
    let config = json!({"cursor": "at", "timeout": "300ms", "patience": "1ms"});
    let outcome = walk(&url, config, None).await;
    assert_eq!(outcome.fate(), Some(Fate::Retry));
    assert_eq!(
        outcome.reason(),
        "127.0.0.1 took longer than 300ms to answer"
    );
    assert!(outcome.checkpoints.is_empty(), "it is not sorted");
}

#[tokio::test]
async fn a_page_that_breaks_off_is_asked_for_again_and_repeats_nothing() {
    let mut servers = JoinSet::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let asked = std::sync::Arc::new(AtomicUsize::new(0));
    let page = move || {
        let breaks = asked.fetch_add(1, Ordering::Relaxed) < 2;
        async move {
            let items = (0..1000_u64).map(|n| {
                let start = if n == 0 { "[" } else { "," };
                format!("{start}{{\"id\":{n}}}")
            });
            let (items, end): (Vec<_>, _) = if breaks {
                (
                    items.take(500).collect(),
                    Err(std::io::Error::other("broken")),
                )
            } else {
                (items.collect(), Ok("]".to_owned()))
            };
            let items = items.into_iter().map(Ok).chain([end]);
            axum::body::Body::from_stream(futures_util::stream::iter(items))
        }
    };
    let router = Router::new().route("/", axum::routing::get(page));
    servers.spawn(async move { axum::serve(listener, router).await.unwrap() });
    let outcome = walk(&url, json!({"timeout": "10s"}), None).await;
    assert_eq!(ids(&outcome), (0..1000).collect::<Vec<_>>());
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
    for key in ["look_back", "since"] {
        let reason = refusal(json!({"url": "http://x", key: "5m"})).await;
        assert!(
            reason.starts_with(&format!("`{key}` needs `cursor`")),
            "{reason}"
        );
    }
    assert!(
        refusal(json!({"url": "http://x", "page": {"style": "links"}}))
            .await
            .contains("links")
    );
}
