//! Flows that hand messages to each other, on a simulated engine and broker.

use super::super::testing::{Bench, draft};
use super::super::view::{ChangeAction, PlanView};
use super::*;
use crate::broker::{Broker as _, Publication};
use crate::control::DeleteChoices;
use crate::reconcile::FlowState;

const TAKES: &str = "
flow: takes
trigger: { id: orders, from: flows }
actions:
  - { id: bill, image: 'jq:1' }
";

const HANDS: &str = "
flow: hands
trigger: { id: hook, webhook: true }
actions:
  - { id: shape, image: 'jq:1' }
  - { id: over, to: flow/takes }
  - { id: log, after: hook, image: 'log:1' }
";

async fn apply(bench: &Bench, text: &str) -> Result<PlanView, ControlError> {
    bench.control.apply(&draft(text)).await
}

/// A world in which `hands` hands messages to `takes`.
async fn bench() -> Bench {
    let bench = Bench::new().await;
    apply(&bench, TAKES).await.unwrap();
    apply(&bench, HANDS).await.unwrap();
    bench.settle().await;
    bench
}

/// Publishes what a step before the hand-over would.
async fn hand_over(bench: &Bench) {
    let key = {
        let flows = bench.live.borrow();
        flows["hands"]
            .handover("over")
            .unwrap()
            .key_after("shape", "out")
    };
    let publication = Publication {
        exchange: "t.flow.hands".into(),
        key,
        kind: towpath_protocol::message::BATCH_TYPE,
        body: "{}".into(),
        count: 1,
    };
    bench.broker.publish(publication).await.unwrap();
}

#[tokio::test]
async fn what_a_flow_hands_over_is_in_the_queue_of_the_other_whatever_that_does() {
    let bench = bench().await;
    let control = &bench.control;
    let waiting = || bench.broker.ready("t.flow.takes.bill").len();
    hand_over(&bench).await;
    control.pause("takes").await.unwrap();
    hand_over(&bench).await;
    control.stop("takes").await.unwrap();
    hand_over(&bench).await;
    bench.settle().await;
    assert_eq!(waiting(), 3);
    let status = control.status("hands").await.unwrap();
    let [over] = &status.hands[..] else {
        panic!("{:?}", status.hands)
    };
    assert_eq!(
        (&*over.step, &*over.to, over.state),
        ("over", "takes", FlowState::Stopped)
    );
    let status = control.status("takes").await.unwrap();
    assert_eq!(
        (&*status.fires, &status.handed_by[..]),
        ("from flows", &["hands".to_owned()][..])
    );
}

#[tokio::test]
async fn a_flow_that_others_hand_messages_to_stays() {
    let bench = bench().await;
    let control = &bench.control;
    for drop_messages in [false, true] {
        let choices = DeleteChoices {
            drop_messages,
            ..DeleteChoices::default()
        };
        let error = control.delete("takes", choices).await.unwrap_err();
        assert_eq!(
            (error.kind, error.code),
            (ErrorKind::Conflict, "flow_is_handed_to")
        );
        assert!(
            error.message.contains("`hands` hands messages to it"),
            "{error:?}"
        );
        assert!(
            error
                .hint
                .unwrap()
                .contains("take `to: flow/takes` out of `hands`")
        );
    }
    let other = TAKES.replace("from: flows", "webhook: true");
    let error = apply(&bench, &other).await.unwrap_err();
    assert_eq!(error.code, "flow_is_handed_to");
    let without = HANDS.replace("  - { id: over, to: flow/takes }\n", "");
    let plan = apply(&bench, &without).await.unwrap();
    let shown: Vec<_> = plan
        .changes
        .iter()
        .map(|it| (it.action, it.step.as_deref()))
        .collect();
    assert_eq!(
        shown,
        [
            (ChangeAction::Replace, Some("shape")),
            (ChangeAction::Remove, Some("over"))
        ]
    );
    control
        .delete("takes", DeleteChoices::default())
        .await
        .unwrap();
}

#[tokio::test]
async fn messages_are_handed_to_flows_that_are_there_and_take_them_and_never_back() {
    let bench = Bench::new().await;
    let code = async |text: &str| {
        let error = apply(&bench, text).await.unwrap_err();
        let [finding] = &error.diagnostics[..] else {
            panic!("{error:?}")
        };
        (finding.code.clone(), finding.message.clone())
    };
    let (early, message) = code(HANDS).await;
    assert_eq!(
        (&*early, &*message),
        ("F093", "the flow `takes` does not exist")
    );
    apply(&bench, TAKES).await.unwrap();
    apply(&bench, HANDS).await.unwrap();
    let (closed, _) = code(&HANDS.replace("flow/takes", "flow/hands")).await;
    assert_eq!(closed, "F094");
    let middle = "
flow: middle
trigger: { id: any, from: flows }
actions:
  - { id: jq, image: 'jq:1' }
  - { id: on, to: flow/takes }
";
    apply(&bench, middle).await.unwrap();
    let back = format!("{TAKES}  - {{ id: back, to: flow/middle }}\n");
    let (looped, message) = code(&back).await;
    assert_eq!(looped, "F094");
    assert!(
        message.contains("`takes` -> `middle` -> `takes`"),
        "{message}"
    );
}

#[tokio::test]
async fn when_other_steps_are_first_those_that_send_to_them_are_replaced_before_the_old_go() {
    let bench = bench().await;
    let before = bench.containers();
    hand_over(&bench).await;
    let renamed = TAKES.replace("bill", "invoice");
    let mut renamed = draft(&renamed);
    renamed.moves.insert("bill".into(), "invoice".into());
    let plan = bench.control.plan(&renamed).await.unwrap();
    let said = plan
        .changes
        .iter()
        .find(|change| change.step.is_none())
        .unwrap();
    assert!(said.reason.contains("those of `hands`"), "{}", said.reason);
    bench.control.apply(&renamed).await.unwrap();
    // A container of `hands` still knows the old way: nothing of it is taken away.
    assert_eq!(bench.control.remove_queues().await.unwrap(), 1);
    bench.settle().await;
    let kept = bench.containers();
    let is_kept = |step: &str| {
        let name = before.iter().find(|name| name.contains(step)).unwrap();
        kept.contains(name)
    };
    assert!(
        !is_kept(".shape.") && is_kept(".log."),
        "{before:?} {kept:?}"
    );
    assert_eq!(bench.control.remove_queues().await.unwrap(), 0);
    hand_over(&bench).await;
    assert_eq!(bench.broker.ready("t.flow.takes.invoice").len(), 2);
    assert!(bench.broker.ready("t.lost").is_empty());
}

#[tokio::test]
async fn an_action_that_hands_over_has_no_container_to_be_told_something() {
    let bench = bench().await;
    let tell = async |flow: &str, step: &str| {
        let told = bench
            .control
            .tell_step(flow, step, super::super::Verb::Pause);
        let error = told.await.unwrap_err();
        (error.code, error.hint.unwrap())
    };
    let (code, hint) = tell("hands", "over").await;
    assert_eq!(code, "action_without_container");
    assert!(hint.contains("towpath pause takes"), "{hint}");
    let (code, _) = tell("takes", "orders").await;
    assert_eq!(code, "trigger_without_container");
    let error = bench.control.run("takes", None).await.unwrap_err();
    assert_eq!(error.code, "not_fired_by_hand");
}

#[tokio::test]
async fn a_webhook_may_do_nothing_but_hand_over() {
    let bench = bench().await;
    let bare = "
flow: bare
trigger: { id: hook, webhook: true }
actions:
  - { id: over, to: flow/takes }
";
    apply(&bench, bare).await.unwrap();
    bench.settle().await;
    let status = bench.control.status("bare").await.unwrap();
    assert!(status.converged && status.steps.is_empty(), "{status:?}");
    let key = bench.live.borrow()["bare"].handovers[0].key_after("hook", "out");
    let publication = Publication {
        exchange: "t.flow.bare".into(),
        key,
        kind: towpath_protocol::message::BATCH_TYPE,
        body: "{}".into(),
        count: 1,
    };
    bench.broker.publish(publication.clone()).await.unwrap();
    assert_eq!(bench.broker.ready("t.flow.takes.bill").len(), 1);
    bench
        .control
        .delete("bare", DeleteChoices::default())
        .await
        .unwrap();
    bench.broker.publish(publication).await.unwrap_err();
}
