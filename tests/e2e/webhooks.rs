//! Webhooks: who may send, what is taken, and what is answered, by real requests to a real control
//! plane.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use serde_json::Value;
use towpath_tests::load::{self, Load};
use towpath_tests::{BrokerVersion, Condition, Instance, eventually, holds, http};

use crate::SOON;

/// What the senders of these tests sign with.
const SECRET: &str = "c2VjcmV0LW9mLXRoZS1zZW5kZXJz";

/// A flow whose webhook asks for `asks`; its step keeps no message.
fn flow(asks: &str) -> String {
    format!(
        "flow: hooks\ntrigger: {{ id: hook, webhook: {asks} }}\nactions:\n  - {{ id: log, image: \"towpath/log:test\" }}\n"
    )
}

fn begin(asks: &str) -> (Instance, String) {
    let instance = Instance::start(BrokerVersion::V40);
    instance.run_with(&["secret", "set", "sender"], SECRET).ok();
    instance.apply(&flow(asks));
    let hook = url(&instance);
    (instance, hook)
}

fn url(instance: &Instance) -> String {
    instance.status("hooks")["webhook_url"]
        .as_str()
        .expect("a URL")
        .to_owned()
}

#[track_caller]
fn post(hook: &str, headers: &[(&str, &str)], body: &str) -> http::Answer {
    http::send_with("POST", hook, headers, body.as_bytes()).expect("an answer")
}

/// The id in an answer of 202.
#[track_caller]
fn taken(answer: &http::Answer) -> String {
    assert_eq!(answer.status, 202, "{answer:?}");
    let body: Value = serde_json::from_str(&answer.text).expect("JSON");
    body["id"].as_str().expect("an id").to_owned()
}

/// Waits until the step has handled so many messages, and holds for a moment that it is no more.
#[track_caller]
fn handled(instance: &Instance, count: u64) {
    let done = || {
        let status = instance.status("hooks");
        let done = status["steps"][0]["done"].as_u64();
        holds(done == Some(count), || {
            format!("{done:?} of {count}: {status}")
        })
    };
    eventually(&format!("{count} messages are handled"), SOON, done);
    let status = instance.status("hooks");
    assert_eq!(status["steps"][0]["queued"], 0, "nothing is left");
}

fn seconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("a clock").as_secs()
}

fn sign(key: &[u8], text: &str) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign(&key, text.as_bytes()).as_ref().to_vec()
}

/// The headers of a request that somebody signed at a time, by the type of `auth`.
fn signed(kind: &str, secret: &str, at: u64, body: &str) -> Vec<(&'static str, String)> {
    let key = secret.as_bytes();
    let hexed = |text: &str| hex::encode(sign(key, text));
    match kind {
        "github" => vec![("x-hub-signature-256", format!("sha256={}", hexed(body)))],
        "shopify" => vec![("x-shopify-hmac-sha256", STANDARD.encode(sign(key, body)))],
        "stripe" => vec![(
            "stripe-signature",
            format!("t={at},v1={}", hexed(&format!("{at}.{body}"))),
        )],
        "slack" => vec![
            ("x-slack-request-timestamp", at.to_string()),
            (
                "x-slack-signature",
                format!("v0={}", hexed(&format!("v0:{at}:{body}"))),
            ),
        ],
        "standard-webhooks" => {
            let key = STANDARD.decode(secret).expect("base64");
            let id = format!("msg_{at}_{}", body.len());
            let tag = STANDARD.encode(sign(&key, &format!("{id}.{at}.{body}")));
            vec![
                ("webhook-id", id),
                ("webhook-timestamp", at.to_string()),
                ("webhook-signature", format!("v1,{tag}")),
            ]
        }
        "hmac, header: x-sig, prefix: v1-" => vec![("x-sig", format!("v1-{}", hexed(body)))],
        "basic, user: shop" => vec![(
            "authorization",
            format!("Basic {}", STANDARD.encode(format!("shop:{secret}"))),
        )],
        "api-key, header: x-key" => vec![("x-key", secret.to_owned())],
        other => panic!("{other}"),
    }
}

#[track_caller]
fn send(hook: &str, headers: &[(&'static str, String)], body: &str) -> http::Answer {
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, it)| (*name, &**it)).collect();
    post(hook, &headers, body)
}

#[test]
fn signed_requests_become_messages_and_forged_ones_are_refused() {
    let (instance, hook) = begin("true");
    let containers = instance.containers("hooks", None);
    let body = "{\"order\": 7}";
    let mut count = 0;
    for kind in [
        "github",
        "shopify",
        "stripe",
        "slack",
        "standard-webhooks",
        "hmac, header: x-sig, prefix: v1-",
        "basic, user: shop",
        "api-key, header: x-key",
    ] {
        let secret = "\"${secrets.sender}\"";
        instance.apply(&flow(&format!(
            "{{ auth: {{ type: {kind}, secret: {secret} }} }}"
        )));
        let right = signed(kind, SECRET, seconds(), body);
        taken(&send(&hook, &right, body));
        count += 1;
        let other = STANDARD.encode("another secret");
        let forged = signed(kind, &other, seconds(), body);
        for (headers, body) in [(&forged, body), (&Vec::new(), body)] {
            let refused = send(&hook, headers, body);
            assert_eq!(refused.status, 401, "{kind}: {refused:?}");
            assert!(!refused.text.contains(SECRET), "{refused:?}");
        }
        let is_signed = !matches!(kind, "basic, user: shop" | "api-key, header: x-key");
        if is_signed {
            assert_eq!(send(&hook, &right, "{\"order\": 8}").status, 401, "{kind}");
        }
        if matches!(kind, "stripe" | "slack" | "standard-webhooks") {
            let recorded = signed(kind, SECRET, seconds() - 301, body);
            assert_eq!(send(&hook, &recorded, body).status, 401, "{kind}: a replay");
        }
    }
    handled(&instance, count);
    assert_eq!(
        instance.containers("hooks", None),
        containers,
        "nothing that runs was touched"
    );
    let key = hook.rsplit('/').next().expect("a key");
    let log = instance.log();
    assert!(!log.contains(key), "the key is in the log");
    assert!(!log.contains(SECRET), "the secret is in the log");
}

#[test]
fn two_secrets_are_good_while_one_is_changed() {
    let (instance, hook) = begin("true");
    instance
        .run_with(&["secret", "set", "next"], "the next secret")
        .ok();
    instance.apply(&flow(
        "{ auth: { type: github, secret: [\"${secrets.sender}\", \"${secrets.next}\"] } }",
    ));
    for secret in [SECRET, "the next secret"] {
        taken(&send(&hook, &signed("github", secret, 0, "{}"), "{}"));
    }
    // A secret that is set anew counts from the next request on, without an apply.
    instance
        .run_with(&["secret", "set", "next"], "and another")
        .ok();
    taken(&send(
        &hook,
        &signed("github", "and another", 0, "{}"),
        "{}",
    ));
    let former = signed("github", "the next secret", 0, "{}");
    assert_eq!(send(&hook, &former, "{}").status, 401);
    let said = instance.run(&["secret", "delete", "next"]);
    assert_eq!(said.code, 1, "it is used: {said:?}");
    handled(&instance, 3);
}

#[test]
fn a_former_url_is_good_for_its_grace_and_no_longer() {
    let (instance, first) = begin("true");
    let rotate = |grace: &str| {
        let said = instance.run(&[
            "webhook", "rotate", "hooks", "--grace", grace, "--output", "json",
        ]);
        said.ok().json()["webhook_url"]
            .as_str()
            .expect("a URL")
            .to_owned()
    };
    let status = |hook: &str| post(hook, &[], "{}").status;
    let second = rotate("15s");
    assert_ne!(first, second);
    assert_eq!(url(&instance), second);
    let shown = instance.run(&["status", "hooks"]).ok().out;
    assert!(shown.contains("a former URL is good until"), "{shown}");
    assert_eq!((status(&first), status(&second)), (202, 202));
    eventually("the former URL is good no longer", SOON, || {
        let status = status(&first);
        holds(status == 404, || status.to_string())
    });
    let third = rotate("1h");
    assert_eq!((status(&second), status(&third)), (202, 202));
    let fourth = rotate("0s");
    let all = [&first, &second, &third, &fourth].map(|hook| status(hook));
    assert_eq!(all, [404, 404, 404, 202]);
    instance.apply(&flow("{ types: [json] }"));
    assert_eq!(
        url(&instance),
        fourth,
        "it is kept when the flow is applied"
    );
}

#[test]
fn bodies_of_every_kind_are_taken_unless_the_flow_says_which() {
    let (instance, hook) = begin("true");
    let kinds = [
        ("application/json", "{\"a\": 1}"),
        ("application/x-www-form-urlencoded", "a=1&b=2"),
        ("text/plain", "two\nlines"),
        ("application/xml", "<a/>"),
        ("image/png", "\u{1}png"),
    ];
    for (kind, body) in kinds {
        taken(&post(&hook, &[("content-type", kind)], body));
    }
    for method in ["GET", "PUT"] {
        let below = format!("{hook}/orders/7?shop=1");
        taken(&http::send_with(method, &below, &[], b"").expect("an answer"));
    }
    let head = http::send_with("HEAD", &hook, &[], b"").expect("an answer");
    assert_eq!((head.status, head.text.as_str()), (200, ""));
    handled(&instance, 7);

    instance.apply(&flow("{ types: [json, form] }"));
    let statuses = kinds.map(|(kind, body)| post(&hook, &[("content-type", kind)], body).status);
    assert_eq!(statuses, [202, 202, 415, 415, 415]);
    let large = "x".repeat((1 << 20) + 1);
    let status = eventually("a refusal", SOON, || {
        Ok(http::send_with("POST", &hook, &[], large.as_bytes())?.status)
    });
    assert_eq!(status, 413);
    instance.run(&["stop", "hooks"]).ok();
    let head = http::send_with("HEAD", &hook, &[], b"").expect("an answer");
    assert_eq!(head.status, 409);
}

#[test]
fn slack_and_meta_are_shown_that_the_url_is_ours() {
    let secret = "\"${secrets.sender}\"";
    let (instance, hook) = begin("true");
    instance.apply(&flow(&format!(
        "{{ auth: {{ type: slack, secret: {secret} }}, handshake: slack }}"
    )));
    let asked = "{\"type\": \"url_verification\", \"challenge\": \"3eZbrw1aBm2rZgRNFdxV\"}";
    let answer = send(&hook, &signed("slack", SECRET, seconds(), asked), asked);
    assert_eq!(
        (answer.status, answer.text.as_str()),
        (200, "3eZbrw1aBm2rZgRNFdxV")
    );
    let forged = send(&hook, &signed("slack", "other", seconds(), asked), asked);
    assert_eq!(forged.status, 401);

    instance.apply(&flow(&format!(
        "{{ auth: {{ type: github, secret: {secret} }}, handshake: {{ type: meta, secret: {secret} }} }}"
    )));
    let ask = |token: &str| {
        let query = format!("hub.mode=subscribe&hub.challenge=1158201444&hub.verify_token={token}");
        let answer = http::send_with("GET", &format!("{hook}?{query}"), &[], b"");
        let answer = answer.expect("an answer");
        (answer.status, answer.text)
    };
    assert_eq!(ask(SECRET), (200, "1158201444".to_owned()));
    assert_eq!(ask("other").0, 403);
    let event = signed("github", SECRET, 0, "{}");
    taken(&send(&hook, &event, "{}"));
    handled(&instance, 1);
}

#[test]
fn a_flow_says_how_much_it_takes_in_a_time() {
    let (instance, hook) = begin("{ rate: 5/h }");
    let answers: Vec<http::Answer> = (0..8).map(|_| post(&hook, &[], "{}")).collect();
    let ids: BTreeSet<String> = answers.iter().take(5).map(taken).collect();
    assert_eq!(ids.len(), 5);
    for over in &answers[5..] {
        assert_eq!(over.status, 429, "{over:?}");
        let again: u64 = over
            .retry_after
            .as_ref()
            .and_then(|text| text.parse().ok())
            .expect("when to come again");
        assert!((3_000..=3_600).contains(&again), "{again}");
    }
    handled(&instance, 5);
}

#[test]
fn a_webhook_says_when_to_come_again_while_the_broker_is_away() {
    let instance = Instance::start_linked(BrokerVersion::V40, BrokerVersion::V40.share(), "");
    instance.apply(&flow("true"));
    let hook = url(&instance);
    taken(&post(&hook, &[], "{}"));
    let links = instance.links.as_ref().expect("it was started with links");
    links.control.set(Condition::Cut);
    eventually("requests are asked to come again", SOON, || {
        let answer = http::send_with("POST", &hook, &[], b"{}")?;
        holds(answer.status == 503 && answer.retry_after.is_some(), || {
            format!("{answer:?}")
        })
    });
    links.control.set(Condition::Open);
    eventually("requests are taken again", Duration::from_secs(60), || {
        let answer = http::send_with("POST", &hook, &[], b"{}")?;
        holds(answer.status == 202, || format!("{answer:?}"))
    });
}

/// How many requests a second the test of a load sends, and for how many seconds:
/// `TOWPATH_TEST_WEBHOOK_LOAD=1000x60`. That much is for a machine that does nothing else.
fn load_wanted() -> (u32, u32) {
    let Ok(text) = std::env::var("TOWPATH_TEST_WEBHOOK_LOAD") else {
        return (200, 5);
    };
    let (rate, seconds) = text.split_once('x').expect("such as `1000x60`");
    let number = |text: &str| text.parse().expect("such as `1000x60`");
    (number(rate), number(seconds))
}

#[test]
fn all_that_was_acknowledged_under_load_is_in_the_queue() {
    let (instance, hook) = begin("true");
    instance.run(&["pause", "hooks"]).ok();
    eventually("`log` is paused", SOON, || {
        let status = instance.status("hooks");
        holds(status["steps"][0]["state"] == "paused", || {
            status.to_string()
        })
    });
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    let (rate, seconds) = load_wanted();
    for named in [false, true] {
        let load = Load {
            url: hook.clone(),
            rate,
            seconds,
            named,
            broker: format!(
                "amqp://{}@{}/{}",
                instance.broker.login, instance.broker.host, instance.name
            ),
            queue: format!("{}.flow.hooks.log", instance.name),
        };
        let figures = runtime.block_on(load::run(&load)).expect("figures");
        println!("{figures}");
        assert!(figures.acknowledged > 0, "{figures}");
        assert_eq!((figures.missing, figures.repeated), (0, 0), "{figures}");
    }
}

#[test]
fn a_repeated_delivery_makes_no_second_message_not_even_after_a_restart() {
    let (mut instance, hook) = begin("{ id: body.event.id }");
    let body =
        |id: &str, text: &str| format!("{{\"event\": {{\"id\": \"{id}\"}}, \"text\": \"{text}\"}}");
    let first = taken(&post(&hook, &[], &body("e1", "first")));
    assert_eq!(taken(&post(&hook, &[], &body("e1", "again"))), first);
    let key = [("idempotency-key", "k1")];
    let by_key = taken(&post(&hook, &key, "{}"));
    assert_ne!(by_key, first);
    let at_once: BTreeSet<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| taken(&post(&hook, &[], &body("e2", "at once")))))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("an answer"))
            .collect()
    });
    assert_eq!(at_once.len(), 1);
    handled(&instance, 3);
    instance.kill();
    instance.serve();
    assert_eq!(taken(&post(&hook, &[], &body("e1", "later"))), first);
    assert_eq!(taken(&post(&hook, &key, "{}")), by_key);
    instance.run(&["stop", "hooks"]).ok();
    assert_eq!(taken(&post(&hook, &[], &body("e1", "stopped"))), first);
    assert_eq!(post(&hook, &[], &body("e3", "new")).status, 409);
    instance.run(&["resume", "hooks"]).ok();
    taken(&post(&hook, &[], &body("e3", "new")));
    eventually("the new one is handled", SOON, || {
        let status = instance.status("hooks");
        let step = &status["steps"][0];
        holds(step["queued"] == 0 && step["in_hand"] == 0, || {
            status.to_string()
        })
    });
}
