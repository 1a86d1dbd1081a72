//! The shop and the CRM, asked over HTTP as the steps of a flow ask them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::time::Duration;

use axum::Router;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use towpath_demo::mischief::{Mischief, Rates};
use towpath_demo::{crm, shop};
use towpath_step_http::{Answer, Client, HeaderMap, Method, Request, Settings, Url};

/// Servers of one test, and who asks them.
struct Bench {
    servers: JoinSet<()>,
    client: Client,
}

impl Bench {
    fn new() -> Self {
        let settings = Settings {
            timeout: Duration::from_secs(5),
            user_agent: "test".into(),
            answer_bytes_max: 16 << 20,
            certificates: None,
        };
        Self {
            servers: JoinSet::new(),
            client: Client::new(&settings).unwrap(),
        }
    }

    async fn serve(&mut self, router: Router) -> Url {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        self.servers
            .spawn(async move { axum::serve(listener, router).await.unwrap() });
        url.parse().unwrap()
    }

    async fn ask(
        &self,
        method: Method,
        url: Url,
        key: Option<&str>,
        body: Option<Value>,
    ) -> Answer {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", "Bearer hush".parse().unwrap());
        if let Some(key) = key {
            headers.insert("idempotency-key", key.parse().unwrap());
        }
        let body = body.map(|body| body.to_string().into());
        self.client
            .send(Request {
                method,
                url,
                headers,
                body,
            })
            .await
            .unwrap()
    }

    async fn get(&self, url: Url) -> Value {
        let answer = self.ask(Method::GET, url, None, None).await;
        assert_eq!(answer.status, 200, "{}", answer.complaint());
        serde_json::from_slice(&answer.body).unwrap()
    }

    async fn put(&self, url: &Url, key: &str, body: Value) -> u16 {
        self.ask(Method::PUT, url.clone(), Some(key), Some(body))
            .await
            .status
            .as_u16()
    }
}

fn fine() -> Mischief {
    Mischief::new(Rates::NONE, 1)
}

fn ids(list: &Value) -> impl Iterator<Item = u64> + '_ {
    list.as_array()
        .unwrap()
        .iter()
        .map(|order| order["id"].as_u64().unwrap())
}

#[tokio::test]
async fn links_lead_to_every_order() {
    let mut bench = Bench::new();
    let base = bench.serve(shop::router(250, fine()).unwrap()).await;
    let mut url = base.join("/orders?size=40").unwrap();
    let mut seen = Vec::new();
    loop {
        let answer = bench.ask(Method::GET, url.clone(), None, None).await;
        let page: Value = serde_json::from_slice(&answer.body).unwrap();
        seen.extend(ids(&page));
        let Some(link) = answer.headers.get("link") else {
            break;
        };
        let link = link.to_str().unwrap();
        let target = link
            .strip_prefix('<')
            .unwrap()
            .strip_suffix(">; rel=\"next\"")
            .unwrap();
        url = base.join(target).unwrap();
    }
    assert_eq!(seen, (1..=250).collect::<Vec<_>>());
}

#[tokio::test]
async fn cursors_and_numbers_lead_to_every_order() {
    let mut bench = Bench::new();
    let base = bench.serve(shop::router(95, fine()).unwrap()).await;
    let mut seen = Vec::new();
    let mut cursor = String::new();
    loop {
        let url = base
            .join(&format!("/v2/orders?limit=40&cursor={cursor}"))
            .unwrap();
        let page = bench.get(url).await;
        seen.extend(ids(&page["data"]["items"]));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => break,
        }
        assert_eq!(page["has_more"], true);
    }
    assert_eq!(seen, (1..=95).collect::<Vec<_>>());

    let page = bench
        .get(base.join("/orders?page=3&size=40").unwrap())
        .await;
    assert_eq!(
        ids(&page).collect::<Vec<_>>(),
        (81..=95).collect::<Vec<_>>()
    );
    let page = bench
        .get(base.join("/orders?page=4&size=40").unwrap())
        .await;
    assert_eq!(page, json!([]));
}

#[tokio::test]
async fn the_shop_misbehaves_as_told() {
    let mut bench = Bench::new();
    let rates = Rates {
        too_many: 500,
        error: 500,
        ..Rates::NONE
    };
    let base = bench
        .serve(shop::router(1, Mischief::new(rates, 3)).unwrap())
        .await;
    let mut statuses = BTreeSet::new();
    for _ in 0..20 {
        let answer = bench
            .ask(Method::GET, base.join("/orders").unwrap(), None, None)
            .await;
        assert_eq!(
            answer.status == 429,
            answer.headers.contains_key("retry-after")
        );
        statuses.insert(answer.status.as_u16());
    }
    assert_eq!(statuses, BTreeSet::from([429, 500]));
    let stats = bench.get(base.join("/stats").unwrap()).await;
    assert_eq!(stats["requests"], 20);
    let wrong = &stats["misbehaved"];
    assert_eq!(
        wrong["too_many"].as_u64().unwrap() + wrong["error"].as_u64().unwrap(),
        20
    );
}

#[tokio::test]
async fn the_crm_tells_repeats_from_updates() {
    let mut bench = Bench::new();
    let base = bench.serve(crm::router("hush", fine())).await;
    let deal = base.join("/deals/7").unwrap();
    assert_eq!(bench.put(&deal, "a", json!({"v": 1})).await, 201);
    assert_eq!(bench.put(&deal, "a", json!({"v": 1})).await, 201);
    assert_eq!(bench.put(&deal, "b", json!({"v": 2})).await, 200);
    assert_eq!(bench.put(&deal, "b", json!({"v": 3})).await, 422);
    let post = bench
        .ask(
            Method::POST,
            base.join("/deals").unwrap(),
            None,
            Some(json!({"id": 8})),
        )
        .await;
    assert_eq!(post.status, 201);
    let post = bench
        .ask(
            Method::POST,
            base.join("/deals").unwrap(),
            None,
            Some(json!({"v": 8})),
        )
        .await;
    assert_eq!(post.status, 422);

    let stats = bench.get(base.join("/stats").unwrap()).await;
    let expect = [
        ("deals", 2),
        ("idempotency_keys", 2),
        ("stored", 5),
        ("updates", 1),
        ("repeated", 1),
        ("conflicting", 1),
        ("without_key", 1),
        ("requests", 6),
    ];
    for (name, count) in expect {
        assert_eq!(stats[name], count, "{name}: {stats}");
    }
    assert_eq!(bench.get(deal).await["deal"], json!({"v": 2}));
    let list = bench.get(base.join("/deals?after=7").unwrap()).await;
    assert_eq!(list[0]["key"], "8");
}

#[tokio::test]
async fn the_crm_wants_its_token() {
    let mut bench = Bench::new();
    let base = bench.serve(crm::router("other", fine())).await;
    assert_eq!(
        bench
            .put(&base.join("/deals/7").unwrap(), "a", json!(1))
            .await,
        401
    );
    let stats = bench.get(base.join("/stats").unwrap()).await;
    assert_eq!(
        (&stats["unauthorized"], &stats["deals"]),
        (&json!(1), &json!(0))
    );
}

#[tokio::test]
async fn an_error_after_the_deed_is_recognised_when_repeated() {
    let mut bench = Bench::new();
    let rates = Rates {
        error_after: 1000,
        ..Rates::NONE
    };
    let base = bench
        .serve(crm::router("hush", Mischief::new(rates, 1)))
        .await;
    let deal = base.join("/deals/7").unwrap();
    assert_eq!(bench.put(&deal, "a", json!({"v": 1})).await, 500);
    assert_eq!(bench.put(&deal, "a", json!({"v": 1})).await, 500);
    let stats = bench.get(base.join("/stats").unwrap()).await;
    assert_eq!(
        (&stats["deals"], &stats["repeated"]),
        (&json!(1), &json!(1))
    );
}

#[tokio::test]
async fn a_held_crm_waits_or_refuses_until_released() {
    let mut bench = Bench::new();
    let base = bench.serve(crm::router("hush", fine())).await;
    let deal = base.join("/deals/7").unwrap();
    let post = |path: &str| bench.ask(Method::POST, base.join(path).unwrap(), None, None);
    assert_eq!(post("/hold?how=refuse").await.status, 204);
    assert_eq!(bench.put(&deal, "a", json!(1)).await, 503);
    assert_eq!(post("/hold").await.status, 204);
    let release = async {
        let held = || async { bench.get(base.join("/stats").unwrap()).await["held"] == 2 };
        while !held().await {
            tokio::task::yield_now().await;
        }
        post("/release").await
    };
    let (put, released) = tokio::join!(bench.put(&deal, "a", json!(1)), release);
    assert_eq!((put, released.status.as_u16()), (201, 204));
}

#[tokio::test]
async fn orders_are_pushed_until_they_are_accepted() {
    let mut bench = Bench::new();
    let shop = bench.serve(shop::router(5, fine()).unwrap()).await;
    // A CRM that answers every tenth request with 500 stands in for the webhook.
    let rates = Rates {
        error: 100,
        ..Rates::NONE
    };
    let hook = crm::router("hush", Mischief::new(rates, 5));
    let hook = hook.layer(axum::middleware::from_fn(
        |mut request: axum::extract::Request, next: axum::middleware::Next| {
            request
                .headers_mut()
                .insert("authorization", "Bearer hush".parse().unwrap());
            next.run(request)
        },
    ));
    let hook = bench.serve(hook).await;
    let push = shop.join(&format!("/push?n=30&url={hook}deals")).unwrap();
    let answer = bench.ask(Method::POST, push, None, None).await;
    let answer: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(answer["pushed"], 30, "{answer}");
    assert!(answer["requests"].as_u64().unwrap() > 30, "{answer}");
    let stats = bench.get(hook.join("/stats").unwrap()).await;
    assert_eq!(
        (&stats["deals"], &stats["idempotency_keys"]),
        (&json!(30), &json!(30))
    );
    assert_eq!(bench.get(shop.join("/stats").unwrap()).await["orders"], 35);
}
