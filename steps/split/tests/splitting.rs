//! Lists become messages: through the step's own loop.

use serde_json::{Value, json};
use towpath_split::{setup, split};
use towpath_step::testing::{Outcome, TestRun};
use towpath_step::{Fate, Step};

async fn run(config: Value, body: Value) -> Outcome {
    let step = Step::action(split).setup(setup);
    TestRun::of(step).config(config).input(body).await
}

#[tokio::test]
async fn each_item_of_a_list_is_a_message_in_its_order() {
    let order = json!({"id": 7, "lines": [{"sku": "a"}, {"sku": "b"}, {"sku": "c"}]});
    for config in [json!({}), json!({"items": "lines"})] {
        let outcome = run(config, order.clone()).await;
        assert!(outcome.is_done(), "{:?}", outcome.failure);
        let skus: Vec<_> = outcome
            .bodies()
            .iter()
            .map(|body| body["sku"].clone())
            .collect();
        assert_eq!(skus, ["a", "b", "c"]);
    }
    let outcome = run(json!({}), json!([1, "two", null])).await;
    assert_eq!(
        outcome.bodies(),
        [&json!(1), &json!("two")],
        "null is no message"
    );
    let outcome = run(json!({"items": "lines"}), json!({"lines": []})).await;
    assert!(outcome.is_done() && outcome.outputs.is_empty());
}

#[tokio::test]
async fn a_message_can_have_the_key_of_its_item() {
    let body = json!([{"sku": "a", "of": {"id": 1}}, {"sku": "b", "of": {"id": 2}}]);
    let outcome = run(json!({"key": "of.id"}), body).await;
    let keys: Vec<_> = outcome
        .outputs
        .iter()
        .map(|it| it.key.clone().unwrap())
        .collect();
    assert_eq!(keys, ["1", "2"]);
}

#[tokio::test]
async fn a_list_that_cannot_be_split_emits_nothing() {
    let check = |config: Value, body: Value, reason: &'static str| async move {
        let outcome = run(config, body).await;
        assert_eq!(
            (outcome.fate(), outcome.reason()),
            (Some(Fate::Permanent), reason)
        );
        assert_eq!(outcome.outputs.len(), 0);
    };
    check(
        json!({"items": "lines"}),
        json!({"id": 7}),
        "the message cannot be split: there is nothing at `lines`",
    )
    .await;
    check(
        json!({"key": "id"}),
        json!([{"id": 1}, {"name": "x"}]),
        "item 2 has no `id` (`key`)",
    )
    .await;
    check(
        json!({"items_max": 2}),
        json!([1, 2, 3]),
        "the list has 3 items, more than 2 (`items_max`)",
    )
    .await;
}

#[tokio::test]
async fn a_wrong_configuration_is_refused() {
    let refusal = |config: Value| async {
        let step = Step::action(split).setup(setup);
        TestRun::of(step).config(config).refusal().await.unwrap()
    };
    let reason = refusal(json!({"items": "a", "filter": ".a[]"})).await;
    assert!(reason.starts_with("`items` and `filter`"), "{reason}");
    assert!(refusal(json!({"item": "a"})).await.contains("item"));
}

#[test]
fn a_filter_says_where_the_list_is() {
    // The filter runs in processes of the step's own binary, so this is the binary.
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let folder = std::env::temp_dir().join(format!("towpath-split-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let config = folder.join("with.json");
    std::fs::write(&config, json!({"filter": ".orders[].lines[]"}).to_string()).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_split"))
        .args(["run-local", "--config", config.to_str().unwrap()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let body = json!({"orders": [{"lines": [1, 2]}, {"lines": [{"a": 3}]}]});
    writeln!(child.stdin.take().unwrap(), "{body}").unwrap();
    let output = child.wait_with_output().unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(output.status.success());
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "1\n2\n{\"a\":3}\n"
    );
}
