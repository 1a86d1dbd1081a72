//! What becomes of a file that is right.

mod facts;

use std::time::Duration;

use proptest::prelude::*;
use towpath_flow::{
    Autoscale, Facts, Fires, Flow, ImageFact, Replicas, ScaleBy, Source, Values, check, references,
    substitute_step,
};
use towpath_protocol::start::Mode;

#[track_caller]
fn flow(text: &str) -> Flow {
    let checked = check(&Source::new("flow.yaml", text), &Facts::default());
    checked.unwrap_or_else(|found| panic!("{found}")).flow
}

#[test]
fn what_is_left_out_has_its_default() {
    let flow = flow(
        "flow: a\ntrigger: {id: t, image: p, every: 90s}\nactions: [{id: one, image: i}, {id: two, image: i}]",
    );
    assert_eq!(flow.fires, Fires::Every(Duration::from_secs(90)));
    assert_eq!(
        (flow.trigger_id.as_str(), flow.description.as_str()),
        ("t", "")
    );
    let [trigger, one, two] = flow.steps.as_slice() else {
        panic!("{:?}", flow.steps)
    };
    assert!(trigger.is_trigger && trigger.after.is_empty());
    assert_eq!(trigger.timeout, Duration::ZERO);
    assert_eq!(one.timeout, Duration::from_secs(30));
    assert_eq!(one.after, [("t".to_owned(), "out".to_owned())]);
    assert_eq!(two.after, [("one".to_owned(), "out".to_owned())]);
    assert_eq!(
        (one.replicas, one.concurrency, one.mode),
        (Replicas::Fixed(1), None, Mode::Frames)
    );
    assert_eq!(one.with, serde_json::json!({}));
    assert_eq!(
        (one.retry.attempts, one.retry.initial_ms, one.retry.max_ms),
        (8, 1_000, 600_000)
    );
    assert_eq!((one.limits.memory_bytes, one.limits.pids), (256 << 20, 256));
    assert!(!one.once);
    assert!(!one.limits.writable && !one.limits.image_privileges);
}

#[test]
fn runs_are_tracked_unless_each_is_a_request() {
    let track = |text: &str| {
        flow(&format!(
            "flow: a\n{text}\nactions: [{{id: one, image: i}}]"
        ))
        .track
    };
    assert!(track("trigger: {id: t, image: p, every: 90s}"));
    assert!(!track("trigger: {id: t, webhook: true}"));
    assert!(!track(
        "track: false\ntrigger: {id: t, image: p, every: 90s}"
    ));
    assert!(track("track: true\ntrigger: {id: t, webhook: true}"));
}

#[test]
fn replicas_are_a_number_or_how_the_work_counts_them() {
    let replicas = |text: &str| {
        let flow = flow(&format!(
            "flow: a\ntrigger: {{id: t, webhook: true}}\nactions: [{{id: one, image: i, replicas: {text}}}]"
        ));
        flow.steps[0].replicas
    };
    assert_eq!(replicas("3"), Replicas::Fixed(3));
    let backlog = Autoscale {
        min: 0,
        max: 8,
        by: ScaleBy::Backlog { per_replica: 500 },
    };
    assert_eq!(
        replicas("{ min: 0, max: 8, backlog_per_replica: 500 }"),
        Replicas::Auto(backlog)
    );
    let latency = Autoscale {
        min: 1,
        max: 1,
        by: ScaleBy::Latency(Duration::from_secs(30)),
    };
    assert_eq!(
        replicas("{ max: 1, latency: 30s }"),
        Replicas::Auto(latency)
    );
    assert_eq!(Replicas::Auto(backlog).to_string(), "0–8");
}

#[test]
fn every_key_arrives() {
    let checked = check(
        &Source::new("good.yaml", include_str!("flows/good.yaml")),
        &facts::facts(),
    );
    let flow = checked.unwrap_or_else(|found| panic!("{found}")).flow;
    let step = |id: &str| {
        flow.steps
            .iter()
            .find(|step| step.id == id)
            .expect("it is in the file")
    };
    assert_eq!(step("orders").timeout, Duration::from_secs(7200));
    let split = step("split");
    assert_eq!(
        (split.replicas, split.concurrency),
        (Replicas::Fixed(2), Some(32))
    );
    assert_eq!(split.timeout, Duration::from_millis(250));
    let retry = &split.retry;
    assert_eq!(
        (retry.attempts, retry.initial_ms, retry.max_ms),
        (3, 250, 7_200_000)
    );
    let shape = step("shape");
    let after = [
        ("split".to_owned(), "small".to_owned()),
        ("split".to_owned(), "large".to_owned()),
    ];
    assert_eq!(shape.after, after);
    assert_eq!(shape.command.len(), 4);
    assert_eq!(shape.mode, Mode::Lines);
    assert_eq!(
        (shape.limits.memory_bytes, shape.limits.pids),
        (64 << 20, 32)
    );
    assert!(shape.once && !split.once);
    assert!(shape.limits.writable && shape.limits.image_privileges);
    let values = Values {
        secrets: [("crm_token".to_owned(), "s3cr3t".to_owned())].into(),
        env: [("CRM_HOST".to_owned(), "crm".to_owned())].into(),
    };
    let filled = substitute_step(shape, &values).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(filled.env["TOKEN"], "s3cr3t");
    assert_eq!(filled.env["SHELL_LIKE"], "${HOME}");
    assert_eq!(filled.command[3], "--token=s3cr3t");
    assert_eq!(filled.with["filter"], "crm");
    assert_eq!(filled.secrets, ["s3cr3t".to_owned()].into());
    let references = references(&flow);
    assert_eq!(references.images.len(), 5);
    assert_eq!(references.secrets, ["crm_token".to_owned()].into());
    assert_eq!(references.env, ["CRM_HOST".to_owned()].into());
}

#[test]
fn a_webhook_trigger_without_an_image_is_no_step() {
    let flow = flow("flow: a\ntrigger: {id: hook, webhook: true}\nactions: [{id: one, image: i}]");
    assert_eq!(flow.fires, Fires::Webhook);
    assert_eq!(flow.trigger_id, "hook");
    assert_eq!(flow.steps.len(), 1);
    assert_eq!(flow.steps[0].after, [("hook".to_owned(), "out".to_owned())]);
}

#[test]
fn a_retry_that_names_one_wait_moves_the_other() {
    let retry = |text: &str| {
        let file = format!(
            "flow: a\ntrigger: {{id: t, webhook: true}}\nactions: [{{id: one, image: i, retry: {text}}}]"
        );
        let retry = flow(&file).steps[0].retry.clone();
        (retry.initial_ms, retry.max_ms)
    };
    assert_eq!(retry("{max: 500ms}"), (500, 500));
    assert_eq!(retry("{initial: 1h}"), (3_600_000, 3_600_000));
    assert_eq!(retry("{initial: 2s, max: 5s}"), (2_000, 5_000));
}

#[test]
fn an_image_with_a_manifest_and_one_without_are_both_fine() {
    let text =
        "flow: a\ntrigger: {id: t, webhook: true}\nactions: [{id: one, image: i, with: {any: 1}}]";
    let images = [("i".to_owned(), ImageFact::Known(None))].into();
    let facts = Facts {
        images,
        ..Facts::default()
    };
    let checked = check(&Source::new("f", text), &facts).unwrap_or_else(|found| panic!("{found}"));
    assert!(checked.warnings.is_empty(), "{}", checked.warnings);
}

/// Actions in any order, each after some of those with a smaller number.
fn actions() -> impl Strategy<Value = Vec<(usize, Vec<usize>)>> {
    let followed = proptest::collection::vec(any::<u16>(), 0..4);
    proptest::collection::vec(followed, 1..30)
        .prop_map(|all| {
            all.into_iter()
                .enumerate()
                .map(|(at, after)| {
                    let mut after: Vec<usize> = after
                        .into_iter()
                        .map(|from| usize::from(from) % (at + 1))
                        .collect();
                    after.push(at);
                    after.sort_unstable();
                    after.dedup();
                    (at + 1, after)
                })
                .collect::<Vec<_>>()
        })
        .prop_shuffle()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_step_comes_after_those_it_follows(actions in actions()) {
        let lines: Vec<String> = actions
            .iter()
            .map(|(at, after)| {
                let after: Vec<String> = after.iter().map(|from| format!("s{from}")).collect();
                format!("- {{id: s{at}, image: i, after: [{}]}}\n", after.join(", "))
            })
            .collect();
        let flow = flow(&format!(
            "flow: a\ntrigger: {{id: s0, image: i, every: 1s}}\nactions:\n{}", lines.concat()
        ));
        prop_assert_eq!(flow.steps.len(), actions.len() + 1);
        for (place, step) in flow.steps.iter().enumerate() {
            for (from, _) in &step.after {
                let before = flow.steps.iter().position(|other| other.id == *from);
                prop_assert!(before.is_some_and(|before| before < place));
            }
        }
    }
}
