//! The API on a simulated control plane, one request at a time.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use towpath_protocol::BODY_BYTES_MAX;
use utoipa::OpenApi;

use super::{ApiDoc, ApiState, Token, router};
use crate::broker::topology::Names;
use crate::control::testing::{Bench, FLOW, draft};
use crate::ingress::Ingress;
use crate::schedule::system_clock;

const TOKEN: &str = "a-token-for-these-tests";

struct Api {
    bench: Bench,
    router: Router,
    stop: CancellationToken,
}

impl Api {
    async fn new() -> Self {
        let bench = Bench::new().await;
        let (ingress, worker) = Ingress::new(
            Names::new("t"),
            bench.gates.clone(),
            bench.live.clone(),
            bench.metrics.clone(),
            crate::store::Store::in_memory().unwrap(),
            system_clock(),
            BODY_BYTES_MAX,
            std::path::PathBuf::new(),
        );
        let stop = CancellationToken::new();
        let tasks = tokio_util::task::TaskTracker::new();
        tasks.spawn(worker.run(bench.broker.clone(), stop.clone()));
        let router = router(ApiState {
            control: Arc::clone(&bench.control),
            ingress,
            token: Token::new(TOKEN),
            body_bytes_max: 2 << 20,
            stop: stop.clone(),
        });
        Self {
            bench,
            router,
            stop,
        }
    }

    async fn send(&self, request: Request<Body>) -> Response<Body> {
        self.router.clone().oneshot(request).await.unwrap()
    }

    async fn ask(&self, method: &str, path: &str, body: Value) -> (StatusCode, Value) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {TOKEN}"));
        let body = if body.is_null() {
            Body::empty()
        } else {
            Body::from(body.to_string())
        };
        read(self.send(request.body(body).unwrap()).await).await
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn read(response: Response<Body>) -> (StatusCode, Value) {
    let status = response.status();
    let bytes = to_bytes(response.into_body(), 10 << 20).await.unwrap();
    let value = serde_json::from_slice(&bytes)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
    (status, value)
}

#[tokio::test]
async fn everything_under_api_needs_the_token_and_nothing_else_does() {
    let api = Api::new().await;
    for (path, item) in ApiDoc::openapi().paths.paths {
        for (method, is_there) in [
            ("GET", item.get.is_some()),
            ("POST", item.post.is_some()),
            ("PUT", item.put.is_some()),
            ("DELETE", item.delete.is_some()),
        ] {
            if !is_there {
                continue;
            }
            for token in [None, Some("Bearer wrong"), Some(TOKEN), Some("Basic x")] {
                let mut request = Request::builder().method(method).uri(&path);
                if let Some(token) = token {
                    request = request.header("authorization", token);
                }
                let (status, body) =
                    read(api.send(request.body(Body::empty()).unwrap()).await).await;
                let is_refused = status == StatusCode::UNAUTHORIZED;
                assert_eq!(
                    is_refused,
                    path.starts_with("/api/"),
                    "{method} {path}: {status}"
                );
                if is_refused {
                    assert_eq!(body["error"]["code"], "unauthorized");
                }
            }
            let (status, body) = api.ask(method, &path, Value::Null).await;
            assert_ne!(
                status,
                StatusCode::METHOD_NOT_ALLOWED,
                "{method} {path} is documented only"
            );
            assert_ne!(
                body["error"]["code"], "no_such_path",
                "{method} {path} is documented only"
            );
        }
    }
}

#[tokio::test]
async fn every_error_has_one_shape() {
    let api = Api::new().await;
    for (method, path, body, status, code) in [
        ("GET", "/nowhere", Value::Null, 404, "no_such_path"),
        ("GET", "/api/v1/nowhere", Value::Null, 404, "no_such_path"),
        ("DELETE", "/api/v1/plan", Value::Null, 405, "wrong_method"),
        (
            "GET",
            "/api/v1/flows/nosuch",
            Value::Null,
            404,
            "no_such_flow",
        ),
        (
            "POST",
            "/api/v1/apply",
            json!({"sauce": 1}),
            400,
            "bad_request",
        ),
        (
            "POST",
            "/api/v1/apply",
            json!({"source": "["}),
            422,
            "invalid_flow",
        ),
        (
            "PUT",
            "/api/v1/secrets/a",
            json!({"value": 5}),
            400,
            "bad_request",
        ),
        ("GET", "/api/v1/dead?limit=x", Value::Null, 400, "bad_query"),
        (
            "GET",
            "/api/v1/dead?state=x",
            Value::Null,
            400,
            "bad_filter",
        ),
        (
            "GET",
            "/api/v1/dead/no-such-id",
            Value::Null,
            404,
            "no_such_dead_letter",
        ),
        ("GET", "/api/v1/runs/x", Value::Null, 404, "no_such_run"),
        (
            "GET",
            "/api/v1/manifest?image=nosuch:1",
            Value::Null,
            404,
            "no_such_image",
        ),
    ] {
        let (found, answer) = api.ask(method, path, body).await;
        assert_eq!(
            (found.as_u16(), &answer["error"]["code"]),
            (status, &json!(code)),
            "{path}: {answer}"
        );
        assert!(answer["error"]["message"].is_string(), "{answer}");
    }
    let (_, answer) = api
        .ask("POST", "/api/v1/apply", json!({"source": "flow: a\n"}))
        .await;
    let first = &answer["error"]["diagnostics"][0];
    assert!(
        first["line"].is_u64() && first["column"].is_u64() && first["code"].is_string(),
        "{answer}"
    );
}

#[tokio::test]
async fn no_answer_holds_the_value_of_a_secret() {
    let api = Api::new().await;
    let value = json!({"value": "very-s3cret-value"});
    let (status, answer) = api.ask("PUT", "/api/v1/secrets/crm_token", value).await;
    assert_eq!(status, StatusCode::OK);
    let mut all = answer.to_string();
    api.ask("POST", "/api/v1/apply", json!(draft(FLOW))).await;
    for path in [
        "/api/v1/secrets",
        "/api/v1/flows",
        "/api/v1/flows/orders",
        "/metrics",
    ] {
        all.push_str(&api.ask("GET", path, Value::Null).await.1.to_string());
    }
    let wrong = json!({"value": {"very-s3cret-value": 1}});
    all.push_str(
        &api.ask("PUT", "/api/v1/secrets/b", wrong)
            .await
            .1
            .to_string(),
    );
    assert!(all.contains("crm_token"), "{all}");
    assert!(!all.contains("very-s3cret-value"), "{all}");
}

#[tokio::test]
async fn verbs_do_over_http_what_they_do() {
    let api = Api::new().await;
    let (status, plan) = api.ask("POST", "/api/v1/apply", json!(draft(FLOW))).await;
    assert_eq!((status, &plan["version"]), (StatusCode::OK, &json!(1)));
    api.bench.settle().await;
    let (status, _) = api
        .ask(
            "PUT",
            "/api/v1/flows/orders/steps/crm/scale",
            json!({"replicas": 3}),
        )
        .await;
    assert_eq!(status, StatusCode::OK);
    let (status, _) = api
        .ask("POST", "/api/v1/flows/orders/pause", Value::Null)
        .await;
    assert_eq!(status, StatusCode::OK);
    api.bench.settle().await;
    let (_, flow) = api.ask("GET", "/api/v1/flows/orders", Value::Null).await;
    assert_eq!(
        (&flow["state"], &flow["steps"][1]["desired"]),
        (&json!("paused"), &json!(3))
    );
    let (_, list) = api.ask("GET", "/api/v1/flows", Value::Null).await;
    assert_eq!(list["flows"].as_array().map(Vec::len), Some(1));
    let (status, _) = api.ask("DELETE", "/api/v1/flows/orders", Value::Null).await;
    assert_eq!(status, StatusCode::OK);
    let (_, list) = api.ask("GET", "/api/v1/flows", Value::Null).await;
    assert_eq!(list["flows"], json!([]));
}

#[tokio::test]
async fn a_webhook_takes_requests_and_a_wrong_key_looks_like_a_wrong_flow() {
    let api = Api::new().await;
    let (_, plan) = api.ask("POST", "/api/v1/apply", json!(draft(FLOW))).await;
    let url = plan["webhook_url"]
        .as_str()
        .unwrap()
        .strip_prefix("http://here")
        .unwrap();
    let post = async |path: &str, body: Vec<u8>| {
        let request = Request::builder().method("POST").uri(path);
        read(api.send(request.body(Body::from(body)).unwrap()).await).await
    };
    let (status, taken) = post(url, b"{\"a\":1}".to_vec()).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{taken}");
    assert_eq!(taken["id"].as_str().map(str::len), Some(32));
    assert_eq!(api.bench.broker.ready("t.flow.orders.shape").len(), 1);

    let key = url.rsplit('/').next().unwrap();
    let wrong_key = post(
        &format!("/hooks/orders/{}", "x".repeat(key.len())),
        b"{}".to_vec(),
    )
    .await;
    let wrong_flow = post(&format!("/hooks/nosuch/{key}"), b"{}".to_vec()).await;
    assert_eq!(wrong_key, wrong_flow);
    assert_eq!(wrong_key.0, StatusCode::NOT_FOUND);
    for (body, expect) in [
        (b"{not json".to_vec(), 400),
        (format!("\"{}\"", "x".repeat(3 << 19)).into_bytes(), 413),
        (format!("\"{}\"", "x".repeat(3 << 20)).into_bytes(), 413),
    ] {
        assert_eq!(post(url, body).await.0.as_u16(), expect);
    }
    api.bench.broker.set_full("t.flow.orders.shape", true);
    let request = Request::builder()
        .method("POST")
        .uri(url)
        .body(Body::from("{}"))
        .unwrap();
    let refused = api.send(request).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(refused.headers().contains_key("retry-after"));
    api.ask("POST", "/api/v1/flows/orders/stop", Value::Null)
        .await;
    assert_eq!(post(url, b"{}".to_vec()).await.0, StatusCode::CONFLICT);
}

#[tokio::test]
async fn probes_say_what_is_away_by_name() {
    let api = Api::new().await;
    assert_eq!(api.ask("GET", "/live", Value::Null).await.0, StatusCode::OK);
    assert_eq!(
        api.ask("GET", "/ready", Value::Null).await.0,
        StatusCode::OK
    );
    api.bench.broker.set_up(false);
    let (status, ready) = api.ask("GET", "/ready", Value::Null).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ready["parts"]["store"], "up");
    assert_ne!(ready["parts"]["broker"], "up");
    assert_eq!(api.ask("GET", "/live", Value::Null).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_panic_is_a_clean_error() {
    async fn handler() -> &'static str {
        panic!("s3cret inside")
    }
    let router: Router = Router::new()
        .route("/", axum::routing::get(handler))
        .layer(super::CatchPanicLayer::custom(super::panicked));
    let request = Request::builder().uri("/").body(Body::empty()).unwrap();
    let (status, body) = read(router.oneshot(request).await.unwrap()).await;
    assert_eq!(
        (status.as_u16(), &body["error"]["code"]),
        (500, &json!("internal"))
    );
    assert!(!body.to_string().contains("s3cret"));
}

#[test]
fn the_document_says_what_it_always_said() {
    insta::assert_json_snapshot!(ApiDoc::openapi());
}
