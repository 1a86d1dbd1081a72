//! The verbs on a simulated engine and broker.

use super::error::ErrorKind;
use super::testing::{Bench, FLOW, draft, image};
use super::view::ChangeAction;
use super::{DeleteChoices, RunFilter};
use crate::reconcile::FlowState;

fn queue(step: &str) -> String {
    format!("t.flow.orders.{step}")
}

#[tokio::test]
async fn applying_twice_is_applying_once() {
    let bench = Bench::new().await;
    let planned = bench.control.plan(&draft(FLOW)).await.unwrap();
    assert!(
        bench.control.list().await.unwrap().flows.is_empty(),
        "a plan changes nothing"
    );
    let first = bench.control.apply(&draft(FLOW)).await.unwrap();
    assert_eq!((first.version, first.unchanged), (1, false));
    assert_eq!(planned.changes, first.changes);
    assert!(
        first
            .changes
            .iter()
            .all(|change| change.action == ChangeAction::Create)
    );
    bench.settle().await;
    let containers = bench.containers();
    assert_eq!(containers.len(), 3, "{containers:?}");

    let second = bench.control.apply(&draft(FLOW)).await.unwrap();
    assert_eq!((second.version, second.unchanged), (1, true));
    assert!(second.changes.is_empty());
    assert_eq!(second.webhook_url, first.webhook_url);
    bench.settle().await;
    assert_eq!(bench.containers(), containers);
    let status = bench.control.status("orders").await.unwrap();
    assert!(status.converged, "{status:?}");
    assert_eq!(status.webhook_url, first.webhook_url);
    let key = first
        .webhook_url
        .unwrap()
        .rsplit('/')
        .next()
        .unwrap()
        .to_owned();
    assert!(key.len() >= 32, "{key}");
    assert!(bench.gates.open("orders", &key, 0).is_some());
    assert!(bench.gates.open("orders", "x", 0).is_none());
    assert!(bench.gates.open("other", &key, 0).is_none());
}

#[tokio::test]
async fn a_change_replaces_only_what_it_touches_and_says_why() {
    let bench = Bench::new().await;
    let url = bench.control.apply(&draft(FLOW)).await.unwrap().webhook_url;
    bench.settle().await;
    let before = bench.containers();
    let changed = FLOW.replace(".id }", ".name }");
    let plan = bench.control.apply(&draft(&changed)).await.unwrap();
    assert_eq!(plan.version, 2);
    assert_eq!(plan.webhook_url, url, "the URL is kept");
    let [change] = &plan.changes[..] else {
        panic!("{:?}", plan.changes)
    };
    assert_eq!(
        (change.action, change.step.as_deref()),
        (ChangeAction::Replace, Some("shape"))
    );
    assert!(change.reason.contains("`with`"), "{}", change.reason);
    bench.settle().await;
    let after = bench.containers();
    let kept = before.iter().filter(|name| after.contains(name)).count();
    assert_eq!((after.len(), kept), (3, 2), "{before:?} {after:?}");
}

#[tokio::test]
async fn an_environment_or_an_image_that_changed_is_a_change() {
    let bench = Bench::new().await;
    bench.control.apply(&draft(FLOW)).await.unwrap();
    let mut other = draft(FLOW);
    other.env.insert("HOME".into(), "/home".into());
    assert!(
        bench.control.plan(&other).await.unwrap().unchanged,
        "the flow does not name HOME"
    );
    other.env.insert("CRM".into(), "http://other".into());
    assert!(!bench.control.plan(&other).await.unwrap().unchanged);

    let mut newer = image("jq:1");
    newer.id = "sha256:newer".into();
    bench.engine.add_image("jq:1", newer);
    bench.settle().await;
    let plan = bench.control.apply(&draft(FLOW)).await.unwrap();
    assert_eq!(plan.changes[0].step.as_deref(), Some("shape"));
    assert!(
        plan.changes[0].reason.contains("another image"),
        "{:?}",
        plan.changes
    );
}

#[tokio::test]
async fn a_mistake_changes_nothing() {
    let bench = Bench::new().await;
    bench.control.apply(&draft(FLOW)).await.unwrap();
    bench.settle().await;
    let before = bench.containers();
    for wrong in [
        FLOW.replace("jq:1", "nosuch:1"),
        FLOW.replace("crm_token", "nosuch"),
        FLOW.replace("env.CRM", "env.NOSUCH"),
        FLOW.replace("replicas: 2", "replicas: two"),
        "[".to_owned(),
    ] {
        for result in [
            bench.control.plan(&draft(&wrong)).await,
            bench.control.apply(&draft(&wrong)).await,
        ] {
            let error = result.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Invalid, "{wrong}: {error:?}");
            assert!(!error.diagnostics.is_empty());
        }
    }
    bench.settle().await;
    assert_eq!(bench.containers(), before);
    assert_eq!(bench.control.status("orders").await.unwrap().version, 1);

    bench.broker.set_up(false);
    let changed = FLOW.replace(".id }", ".name }");
    let error = bench.control.apply(&draft(&changed)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert_eq!(
        bench.control.status("orders").await.unwrap().version,
        1,
        "nothing was stored"
    );
}

#[tokio::test]
async fn messages_of_a_step_that_goes_are_kept() {
    let bench = Bench::new().await;
    bench.control.apply(&draft(FLOW)).await.unwrap();
    bench.control.stop("orders").await.unwrap();
    bench.settle().await;
    bench.put("crm").await;
    let without = FLOW.split("  - id: crm").next().unwrap();
    let error = bench.control.apply(&draft(without)).await.unwrap_err();
    assert_eq!(
        (error.kind, error.code),
        (ErrorKind::Conflict, "queues_not_empty")
    );
    assert!(error.message.contains("`crm`"), "{error}");
    assert!(error.hint.unwrap().contains("--drop-messages"));
    assert_eq!(bench.broker.ready(&queue("crm")).len(), 1);

    let mut dropping = draft(without);
    dropping.drop_messages = true;
    let plan = bench.control.apply(&dropping).await.unwrap();
    assert!(
        plan.changes
            .iter()
            .any(|change| change.action == ChangeAction::Remove)
    );
    bench.settle().await;
    assert_eq!(bench.control.remove_queues().await, Ok(0));
    let gone = [queue("crm"), queue("shape")];
    let left = crate::broker::Broker::depths(&*bench.broker, &gone)
        .await
        .unwrap();
    assert_eq!(left.keys().collect::<Vec<_>>(), [&queue("shape")]);
}

#[tokio::test]
async fn only_delete_with_drop_messages_drops_messages() {
    let bench = Bench::new().await;
    bench.control.apply(&draft(FLOW)).await.unwrap();
    bench.settle().await;
    bench.put("shape").await;
    for verb in ["pause", "stop", "resume", "stop"] {
        match verb {
            "pause" => bench.control.pause("orders").await.unwrap(),
            "resume" => bench.control.resume("orders").await.unwrap(),
            _ => bench.control.stop("orders").await.unwrap(),
        };
        bench.settle().await;
        assert_eq!(bench.broker.ready(&queue("shape")).len(), 1, "after {verb}");
    }
    assert!(bench.containers().is_empty());
    let error = bench
        .control
        .delete("orders", DeleteChoices::default())
        .await
        .unwrap_err();
    assert_eq!(error.code, "queues_not_empty");
    let drop = DeleteChoices {
        drop_messages: true,
        ..DeleteChoices::default()
    };
    bench.control.delete("orders", drop).await.unwrap();
    bench.settle().await;
    assert_eq!(bench.control.remove_queues().await, Ok(0));
    assert!(bench.broker.ready(&queue("shape")).is_empty());
    assert_eq!(
        bench.control.status("orders").await.unwrap_err().kind,
        ErrorKind::NotFound
    );
    assert!(
        bench.live.borrow().is_empty(),
        "no webhook and no schedule any more"
    );
}

#[tokio::test]
async fn a_queue_is_not_removed_while_a_replica_uses_it() {
    let bench = Bench::new().await;
    bench.control.apply(&draft(FLOW)).await.unwrap();
    bench.settle().await;
    bench
        .control
        .delete("orders", DeleteChoices::default())
        .await
        .unwrap();
    assert_eq!(
        bench.control.remove_queues().await,
        Ok(2),
        "its replicas are still there"
    );
    bench.settle().await;
    assert!(bench.containers().is_empty());
    assert_eq!(bench.control.remove_queues().await, Ok(0));
}

#[tokio::test]
async fn a_scale_stays_until_the_file_says_something_new() {
    let bench = Bench::new().await;
    bench.control.apply(&draft(FLOW)).await.unwrap();
    bench.settle().await;
    let before = bench.containers();
    assert!(
        bench
            .control
            .scale("orders", "crm", 4)
            .await
            .unwrap()
            .changed
    );
    assert!(
        !bench
            .control
            .scale("orders", "crm", 4)
            .await
            .unwrap()
            .changed
    );
    bench.settle().await;
    let after = bench.containers();
    assert_eq!(after.len(), 5);
    assert!(
        before.iter().all(|name| after.contains(name)),
        "none was restarted"
    );

    let crm = |status: super::view::FlowStatus| status.steps[1].desired;
    bench
        .control
        .apply(&draft(&FLOW.replace(".id }", ".name }")))
        .await
        .unwrap();
    bench.settle().await;
    assert_eq!(crm(bench.control.status("orders").await.unwrap()), 4);
    bench
        .control
        .apply(&draft(&FLOW.replace("replicas: 2", "replicas: 3")))
        .await
        .unwrap();
    bench.settle().await;
    assert_eq!(crm(bench.control.status("orders").await.unwrap()), 3);

    for (step, replicas, kind) in [
        ("crm", 0, ErrorKind::Bad),
        ("crm", 65, ErrorKind::Bad),
        ("nosuch", 2, ErrorKind::NotFound),
    ] {
        assert_eq!(
            bench
                .control
                .scale("orders", step, replicas)
                .await
                .unwrap_err()
                .kind,
            kind
        );
    }
}

#[tokio::test]
async fn a_trigger_is_not_scaled_and_fires_when_asked() {
    let bench = Bench::new().await;
    let flow = "flow: orders\ntrigger: { id: poll, image: poll:1, every: 1h }\nactions: [{ id: log, image: log:1 }]\n";
    bench.control.apply(&draft(flow)).await.unwrap();
    let error = bench.control.scale("orders", "poll", 2).await.unwrap_err();
    assert_eq!(error.code, "trigger_not_scalable");
    let run = bench
        .control
        .run("orders", Some(serde_json::json!({"a": 1})))
        .await
        .unwrap();
    assert_eq!((run.state.as_str(), run.why.as_str()), ("queued", "manual"));
    assert_eq!(bench.broker.ready(&queue("poll")).len(), 1);
    assert_eq!(
        bench.control.run("orders", None).await.unwrap_err().code,
        "busy"
    );
    let status = bench.control.status("orders").await.unwrap();
    assert_eq!(status.last_run.unwrap().id, run.id);
    bench.control.pause("orders").await.unwrap();
    assert_eq!(
        bench.control.run("orders", None).await.unwrap_err().code,
        "not_running"
    );
    assert_eq!(
        bench
            .control
            .runs("orders", &RunFilter::default())
            .await
            .unwrap()
            .runs
            .len(),
        1
    );
}

#[tokio::test]
async fn every_verb_says_whether_it_changed_anything() {
    let bench = Bench::new().await;
    bench.control.apply(&draft(FLOW)).await.unwrap();
    assert!(bench.control.pause("orders").await.unwrap().changed);
    assert!(!bench.control.pause("orders").await.unwrap().changed);
    assert!(bench.control.stop("orders").await.unwrap().changed);
    assert!(
        !bench.control.pause("orders").await.unwrap().changed,
        "stopped is more than paused"
    );
    assert_eq!(
        bench.control.status("orders").await.unwrap().state,
        FlowState::Stopped
    );
    assert!(bench.control.resume("orders").await.unwrap().changed);
    assert!(!bench.control.resume("orders").await.unwrap().changed);
    assert_eq!(
        bench.control.pause("nosuch").await.unwrap_err().kind,
        ErrorKind::NotFound
    );
}

#[tokio::test]
async fn a_secret_in_use_stays_and_a_new_value_replaces_what_uses_it() {
    let bench = Bench::new().await;
    bench.control.apply(&draft(FLOW)).await.unwrap();
    bench.settle().await;
    let before = bench.containers();
    assert_eq!(
        bench
            .control
            .delete_secret("crm_token")
            .await
            .unwrap_err()
            .code,
        "secret_in_use"
    );
    bench
        .control
        .set_secret("crm_token", "another")
        .await
        .unwrap();
    bench.settle().await;
    let after = bench.containers();
    let kept: Vec<_> = before.iter().filter(|name| after.contains(name)).collect();
    assert!(
        after.len() == 3 && kept.len() == 1 && kept[0].contains(".shape."),
        "{after:?}"
    );
    bench
        .control
        .delete("orders", DeleteChoices::default())
        .await
        .unwrap();
    bench.control.delete_secret("crm_token").await.unwrap();
    assert_eq!(
        bench
            .control
            .delete_secret("crm_token")
            .await
            .unwrap_err()
            .kind,
        ErrorKind::NotFound
    );
    for name in ["", "Bad Name", "a.b"] {
        assert_eq!(
            bench.control.set_secret(name, "x").await.unwrap_err().kind,
            ErrorKind::Bad
        );
    }
    assert_eq!(
        bench
            .control
            .set_secret("empty", "")
            .await
            .unwrap_err()
            .kind,
        ErrorKind::Bad
    );
}

#[tokio::test]
async fn readiness_names_what_is_away() {
    let bench = Bench::new().await;
    assert!(bench.control.readiness().await.ready);
    bench.broker.set_up(false);
    let readiness = bench.control.readiness().await;
    assert!(!readiness.ready);
    assert_eq!(readiness.parts["store"], "up");
    assert_ne!(readiness.parts["broker"], "up");
}
