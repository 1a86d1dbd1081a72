//! Changing flows that have messages, and going back, on a simulated engine and broker.

use std::collections::BTreeMap;

use super::super::error::ErrorKind;
use super::super::testing::{Bench, FLOW, draft, image};
use super::super::view::Draft;
use super::*;

fn queue(step: &str) -> String {
    format!("t.flow.orders.{step}")
}

/// The flow with `crm` under another name.
fn renamed() -> String {
    FLOW.replace("id: crm", "id: deals")
}

async fn with_messages() -> Bench {
    let bench = Bench::new().await;
    bench.control.apply(&draft(FLOW)).await.unwrap();
    bench.settle().await;
    bench.report(0);
    for _ in 0..3 {
        bench.put("crm").await;
    }
    bench
}

async fn refusal(bench: &Bench, draft: &Draft) -> ControlError {
    bench.control.apply(draft).await.unwrap_err()
}

#[tokio::test]
async fn a_renamed_step_with_messages_is_refused_with_counts_and_choices() {
    let bench = with_messages().await;
    let plan = bench.control.plan(&draft(&renamed())).await.unwrap();
    assert!(plan.removed[0].refused && !plan.applied, "{plan:?}");
    assert_eq!(plan.removed[0].left.queued, 3);
    let error = refusal(&bench, &draft(&renamed())).await;
    assert_eq!(
        (error.kind, error.code),
        (ErrorKind::Conflict, "queues_not_empty")
    );
    assert!(error.message.contains("`crm` has 3 queued"), "{error:?}");
    let hint = error.hint.unwrap();
    for choice in ["--drain-first", "--move", "--dead-letter"] {
        assert!(hint.contains(choice), "{hint}");
    }
    assert_eq!(bench.control.status("orders").await.unwrap().version, 1);
    assert_eq!(
        bench.broker.ready(&queue("crm")).len(),
        3,
        "nothing is touched"
    );
}

#[tokio::test]
async fn messages_move_to_the_step_that_takes_them_and_late_ones_follow() {
    let bench = with_messages().await;
    let mut moving = draft(&renamed());
    moving.moves = BTreeMap::from([("crm".to_owned(), "deals".to_owned())]);
    assert!(bench.control.apply(&moving).await.unwrap().applied);
    bench.settle().await;
    assert_eq!(bench.control.remove_queues().await, Ok(0));
    assert_eq!(bench.broker.ready(&queue("deals")).len(), 3, "each once");
    let gone = crate::broker::Broker::depths(&*bench.broker, &[queue("crm")]).await;
    assert!(gone.unwrap().is_empty(), "its queue is removed");
    // What comes out of the delay ladder now still has the old name.
    bench.put("crm").await;
    assert_eq!(bench.broker.ready(&queue("deals")).len(), 4);
    // The old name is taken again: the step has its messages itself.
    bench.broker.purge(&queue("deals"));
    let both = renamed() + "  - { id: crm, image: \"log:1\" }\n";
    bench.control.apply(&draft(&both)).await.unwrap();
    bench.put("crm").await;
    assert_eq!(bench.broker.ready(&queue("deals")).len(), 0);
    assert_eq!(bench.broker.ready(&queue("crm")).len(), 1);
}

#[tokio::test]
async fn messages_become_dead_letters_when_that_is_chosen() {
    let bench = with_messages().await;
    let mut dead = draft(&renamed());
    dead.dead_letter = true;
    assert!(bench.control.apply(&dead).await.unwrap().applied);
    bench.settle().await;
    assert_eq!(bench.control.remove_queues().await, Ok(0));
    assert_eq!(
        bench.broker.ready("t.lost").len(),
        3,
        "the office makes letters of them"
    );
}

#[tokio::test]
async fn steps_that_go_finish_first_when_that_is_chosen() {
    let bench = with_messages().await;
    let mut draining = draft(&renamed());
    draining.drain_first = true;
    let plan = bench.control.apply(&draining).await.unwrap();
    assert!(!plan.applied, "{plan:?}");
    bench.settle().await;
    bench.report(0);
    let status = bench.control.status("orders").await.unwrap();
    assert_eq!(
        (status.version, status.steps[0].state.as_str()),
        (1, "paused")
    );
    assert_eq!(status.steps[1].state, "draining");
    assert!(!bench.control.apply(&draining).await.unwrap().applied);
    bench.broker.purge(&queue("crm"));
    bench.report(0);
    assert!(
        !bench.control.apply(&draining).await.unwrap().applied,
        "at first sight"
    );
    bench.report(60_000);
    assert!(bench.control.apply(&draining).await.unwrap().applied);
    bench.settle().await;
    let status = bench.control.status("orders").await.unwrap();
    let states: Vec<_> = status
        .steps
        .iter()
        .map(|it| (&*it.step, it.wanted))
        .collect();
    let runs = crate::reconcile::FlowState::Running;
    assert_eq!(
        states,
        [("shape", runs), ("deals", runs)],
        "everything runs again"
    );

    bench.control.pause("orders").await.unwrap();
    let mut again = draft(FLOW);
    again.drain_first = true;
    assert_eq!(refusal(&bench, &again).await.code, "flow_not_running");
}

#[tokio::test]
async fn a_rollback_is_a_new_version_with_the_images_and_the_environment_of_then() {
    let bench = Bench::new().await;
    bench.control.apply(&draft(FLOW)).await.unwrap();
    bench.settle().await;
    let before = bench.containers();
    let mut newer = image("jq:1");
    newer.id = "sha256:newer".into();
    bench.engine.add_image("jq:1", newer);
    let mut other = draft(&FLOW.replace("replicas: 2", "replicas: 1"));
    other.env.insert("CRM".into(), "http://other".into());
    bench.control.apply(&other).await.unwrap();
    bench.settle().await;
    let request = RollbackRequest::default();
    let plan = bench.control.rollback("orders", &request).await.unwrap();
    assert_eq!((plan.version, plan.applied), (3, true));
    bench.settle().await;
    assert_eq!(bench.containers(), before, "made from the same things");
    let record = bench.control.record("orders").await.unwrap().0;
    assert_eq!(record.images["jq:1"], "sha256:jq:1");
    assert_eq!(record.env["CRM"], "http://crm");

    let list = bench.control.versions("orders").await.unwrap().versions;
    let numbers: Vec<_> = list.iter().map(|it| (it.version, it.current)).collect();
    assert_eq!(numbers, [(3, true), (2, false), (1, false)]);
    assert_eq!(list[0].running, 3);
    assert!(
        list[0].summary.starts_with("back to version 1; "),
        "{list:?}"
    );
    assert!(
        list[1]
            .summary
            .contains("crm: 1 replica in place of 2 replicas"),
        "{list:?}"
    );
    assert_eq!(list[2].summary, "+shape; +crm");

    let back = RollbackRequest {
        version: Some(1),
        ..RollbackRequest::default()
    };
    assert!(
        bench
            .control
            .rollback("orders", &back)
            .await
            .unwrap()
            .unchanged
    );
    let none = RollbackRequest {
        version: Some(9),
        ..RollbackRequest::default()
    };
    let error = bench.control.rollback("orders", &none).await.unwrap_err();
    assert_eq!(
        (error.kind, error.code),
        (ErrorKind::NotFound, "no_such_version")
    );
    assert!(error.hint.unwrap().contains("1 to 3"));
}

#[tokio::test]
async fn a_diff_shows_no_secret() {
    let bench = Bench::new().await;
    bench.control.apply(&draft(FLOW)).await.unwrap();
    assert_eq!(
        bench
            .control
            .diff("orders", None, None)
            .await
            .unwrap_err()
            .code,
        "no_version_before"
    );
    let mut careless = draft(&FLOW.replace(".id }", "s3cret }"));
    careless.env.insert("CRM".into(), "http://other".into());
    bench.control.apply(&careless).await.unwrap();
    let diff = bench.control.diff("orders", None, None).await.unwrap();
    assert_eq!((diff.from, diff.to), (1, 2));
    assert!(
        diff.diff.contains("-    with: { filter: .id }"),
        "{}",
        diff.diff
    );
    assert!(
        diff.diff.contains("+    with: { filter: *** }"),
        "{}",
        diff.diff
    );
    assert!(diff.diff.contains("--- orders version 1"), "{}", diff.diff);
    assert_eq!(
        diff.notes,
        ["the environment variable `CRM` is another one"]
    );
    let same = bench
        .control
        .diff("orders", Some(2), Some(2))
        .await
        .unwrap();
    assert!(same.diff.is_empty() && same.notes.is_empty());
    let error = bench
        .control
        .diff("orders", Some(7), None)
        .await
        .unwrap_err();
    assert_eq!(error.code, "no_such_version");
}
