//! What is answered, and what goes on: through the step's own loop.

use serde_json::value::RawValue;
use serde_json::{Value, json};
use towpath_reply::{reply, setup};
use towpath_step::testing::{Outcome, TestRun};
use towpath_step::{Answer, Fate, REPLY_PORT, Step};

async fn run(config: Value, body: Value) -> Outcome {
    let step = Step::action(reply)
        .setup(setup)
        .port::<Box<RawValue>>("out")
        .port::<Answer>(REPLY_PORT);
    TestRun::of(step).config(config).input(body).await
}

#[tokio::test]
async fn the_answer_is_made_of_the_message_and_the_message_goes_on() {
    let order = json!({"id": 7, "lines": [1, 2], "kind": "order"});
    let config = json!({
        "status": 201,
        "headers": {"location": "/orders/{{ .id }}"},
        "body": {"id": "{{ .id }}", "count": "{{ .lines | length }}", "text": "no {{ .id }}"},
    });
    let outcome = run(config, order.clone()).await;
    assert!(outcome.is_done(), "{:?}", outcome.failure);
    let answer = json!({
        "status": 201,
        "headers": {"location": "/orders/7"},
        "body": {"id": 7, "count": 2, "text": "no 7"},
    });
    assert_eq!(outcome.bodies_of(REPLY_PORT), [&answer]);
    assert_eq!(outcome.bodies_of("out"), [&order]);
}

#[tokio::test]
async fn without_a_word_the_answer_is_the_message() {
    let outcome = run(json!({}), json!([1, "two"])).await;
    let answer = json!({"status": 200, "body": [1, "two"]});
    assert_eq!(outcome.bodies_of(REPLY_PORT), [&answer]);
}

#[tokio::test]
async fn a_status_can_come_from_the_message() {
    let config = json!({"status": "{{ 404 if .missing else 204 }}"});
    let outcome = run(config.clone(), json!({"missing": true})).await;
    let answer = json!({"status": 404, "body": {"missing": true}});
    assert_eq!(outcome.bodies_of(REPLY_PORT), [&answer]);
    let outcome = run(config, json!({"missing": false})).await;
    assert_eq!(outcome.bodies_of(REPLY_PORT), [&json!({"status": 204})]);
}

#[tokio::test]
async fn a_message_that_the_templates_do_not_fit_is_given_up_and_answers_nothing() {
    for (config, reason) in [
        (
            json!({"headers": {"location": "/{{ .nope }}"}}),
            "the template `headers.location` fails at `.nope`: is not there, or a part of it is not",
        ),
        (
            json!({"status": "{{ .id }}"}),
            "the status 7 is not one from 200 to 599",
        ),
        (
            json!({"headers": {"x": "{{ .text }}"}}),
            "the header `x` has a character that no header can have",
        ),
    ] {
        let outcome = run(config, json!({"id": 7, "text": "a\nb"})).await;
        let failed = (outcome.fate(), outcome.reason());
        assert_eq!(failed, (Some(Fate::Permanent), reason));
        assert!(outcome.outputs.is_empty());
    }
}

#[tokio::test]
async fn a_wrong_configuration_is_refused() {
    let refusal = |config: Value| async {
        let step = Step::action(reply).setup(setup);
        let refusal = TestRun::of(step).config(config).refusal().await;
        refusal.unwrap_or_default()
    };
    for (config, reason) in [
        (
            json!({"status": 99}),
            "the status 99 is not one from 200 to 599",
        ),
        (
            json!({"status": "ok"}),
            "the status `ok` is not a number from 200 to 599",
        ),
        (
            json!({"headers": {"content-length": "1"}}),
            "the header `content-length` is set by whoever carries the answer",
        ),
        (json!({"body": "{{ .id"}), "the template `body` fails"),
        (json!({"stauts": 200}), "stauts"),
    ] {
        let refusal = refusal(config).await;
        assert!(refusal.contains(reason), "{refusal}");
    }
}
