//! Many messages become one: through the step's own loop.

use std::path::PathBuf;

use serde_json::{Value, json};
use towpath_aggregate::{BATCH_MAX, Config, aggregate, setup_with};
use towpath_step::testing::{Outcome, TestRun};
use towpath_step::{Fate, Step};

/// Filters run in processes of the step's own program.
async fn setup(config: &Config) -> towpath_step::Result<towpath_aggregate::State> {
    setup_with(config, PathBuf::from(env!("CARGO_BIN_EXE_aggregate"))).await
}

/// What becomes of messages that are in one window.
async fn run(config: Value, bodies: Vec<Value>) -> Vec<Outcome> {
    let step = Step::batch(aggregate, BATCH_MAX).setup(setup);
    TestRun::of(step)
        .config(config)
        .concurrency(1_000)
        .inputs(bodies)
        .await
}

fn bodies(outcomes: &[Outcome]) -> Vec<&Value> {
    outcomes.iter().flat_map(Outcome::bodies).collect()
}

#[tokio::test]
async fn one_output_for_each_key_with_the_items_in_their_order() {
    let orders = ["ada", "bob", "ada", "ada", "bob"];
    let orders = orders.iter().enumerate();
    let orders = orders.map(|(n, who)| json!({"n": n, "who": who}));
    let outcomes = run(json!({"key": ".who"}), orders.collect()).await;
    assert!(outcomes.iter().all(Outcome::is_done), "{outcomes:?}");
    let item = |n: u64, who: &str| json!({"n": n, "who": who});
    assert_eq!(
        bodies(&outcomes),
        [
            &json!({"key": "ada", "count": 3, "items": [item(0, "ada"), item(2, "ada"), item(3, "ada")]}),
            &json!({"key": "bob", "count": 2, "items": [item(1, "bob"), item(4, "bob")]}),
        ]
    );
    assert_eq!(outcomes[0].outputs[0].of, [0, 2, 3]);
    assert_eq!(outcomes[1].outputs[0].of, [1, 4]);
}

#[tokio::test]
async fn without_a_key_all_of_a_window_is_one_message() {
    let outcomes = run(json!({}), vec![json!(1), json!("two"), json!(null)]).await;
    let expect = json!({"count": 3, "items": [1, "two", null]});
    assert_eq!(bodies(&outcomes), [&expect]);
}

#[tokio::test]
async fn a_filter_shapes_what_leaves() {
    let config = json!({
        "key": "[.shop, .day]",
        "filter": "{shop: .key[0], total: ([.items[].cents] | add)}, (if .count > 1 then {many: .count} else empty end)",
    });
    let sale = |shop: &str, cents: u64| json!({"shop": shop, "day": 1, "cents": cents});
    let outcomes = run(config, vec![sale("a", 5), sale("b", 7), sale("a", 8)]).await;
    assert_eq!(
        bodies(&outcomes),
        [
            &json!({"shop": "a", "total": 13}),
            &json!({"many": 2}),
            &json!({"shop": "b", "total": 7}),
        ]
    );
}

#[tokio::test]
async fn what_has_no_key_is_named_and_the_others_go_on() {
    let config = json!({"key": ".who, .also // empty"});
    let given = vec![
        json!({"who": "ada"}),
        json!({"who": null}),
        json!("x"),
        json!({"who": "ada", "also": 1}),
        json!({"who": "ada", "n": 2}),
    ];
    let outcomes = run(config, given).await;
    let reasons: Vec<_> = outcomes.iter().map(Outcome::reason).collect();
    assert_eq!(reasons[0], "");
    assert_eq!(reasons[1], "the message has no key (`key`): it gives null");
    assert!(
        reasons[2].starts_with("the message has no key (`key`): ") && reasons[2].contains("index"),
        "{reasons:?}"
    );
    assert_eq!(
        reasons[3],
        "the message has no key (`key`): it gives 2 values, and a key is one"
    );
    assert_eq!(outcomes[2].fate(), Some(Fate::Permanent));
    assert_eq!(outcomes[0].outputs[0].of, [0, 4]);
}

#[tokio::test]
async fn a_filter_that_fails_is_a_failure_of_those_of_its_key() {
    let config = json!({"key": ".who", "filter": ".items[].n + 1"});
    let given = ["a", "b", "a"];
    let given =
        given.map(|who| json!({"who": who, "n": if who == "a" { json!("x") } else { json!(1) }}));
    let outcomes = run(config, given.to_vec()).await;
    let fates: Vec<_> = outcomes.iter().map(Outcome::fate).collect();
    assert_eq!(fates, [Some(Fate::Permanent), None, Some(Fate::Permanent)]);
    assert_eq!(bodies(&outcomes), [&json!(2)]);
}

#[tokio::test]
async fn no_output_is_larger_than_an_output_may_be() {
    let given: Vec<_> = (0..7)
        .map(|n| json!({"n": n, "text": "x".repeat(300_000)}))
        .collect();
    let outcomes = run(json!({}), given).await;
    assert!(outcomes.iter().all(Outcome::is_done), "{outcomes:?}");
    let of = outcomes.iter().flat_map(|it| &it.outputs);
    let of: Vec<_> = of.map(|output| output.of.clone()).collect();
    assert_eq!(of, [vec![0, 1, 2], vec![3, 4, 5], vec![6]]);
}

#[tokio::test]
async fn a_wrong_configuration_is_refused() {
    for (config, why) in [
        (json!({"key": ".a["}), "key"),
        (json!({"filter": "nothing_like_it"}), "filter"),
        (json!({"keys": ".a"}), "keys"),
    ] {
        let step = Step::batch(aggregate, BATCH_MAX).setup(setup);
        let refusal = TestRun::of(step).config(config).refusal().await;
        assert!(refusal.is_some_and(|it| it.contains(why)), "{why}");
    }
}
