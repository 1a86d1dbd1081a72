//! Pause, resume, drain and stop on a simulated engine and broker.

use super::super::error::ErrorKind;
use super::super::testing::{Bench, FLOW, draft};
use super::*;

const POLL: &str = "
flow: orders
trigger: { id: poll, image: poll:1, every: 1h }
actions:
  - { id: shape, image: jq:1 }
  - { id: log, image: log:1 }
";

async fn states(bench: &Bench) -> Vec<(String, String)> {
    let status = bench.control.status("orders").await.unwrap();
    status
        .steps
        .into_iter()
        .map(|step| (step.step, step.state))
        .collect()
}

/// Lets the reconciler work, lets every agent report, and says how the steps are.
async fn settled(bench: &Bench) -> String {
    bench.settle().await;
    bench.report(0);
    let states = states(bench).await;
    let words: Vec<String> = states
        .into_iter()
        .map(|(step, state)| format!("{step} {state}"))
        .collect();
    words.join(", ")
}

#[tokio::test]
async fn a_step_that_is_held_stays_held_when_its_flow_runs_again() {
    let bench = Bench::new().await;
    bench.control.apply(&draft(POLL)).await.unwrap();
    let all = "poll running, shape running, log running";
    assert_eq!(settled(&bench).await, all);
    let containers = bench.containers();
    let log = async |verb| {
        bench
            .control
            .tell_step("orders", "log", verb)
            .await
            .unwrap()
    };

    assert!(log(Verb::Pause).await.changed);
    assert!(!log(Verb::Pause).await.changed);
    assert_eq!(
        settled(&bench).await,
        "poll running, shape running, log paused"
    );
    assert_eq!(bench.containers(), containers, "no container was replaced");
    assert!(bench.control.status("orders").await.unwrap().converged);

    bench.control.pause("orders").await.unwrap();
    assert_eq!(
        settled(&bench).await,
        "poll paused, shape paused, log paused"
    );
    let resumed = bench.control.resume("orders").await.unwrap();
    assert!(
        resumed.message.contains("`log` still is paused"),
        "{resumed:?}"
    );
    assert_eq!(
        settled(&bench).await,
        "poll running, shape running, log paused"
    );

    assert!(log(Verb::Stop).await.changed);
    assert!(
        !log(Verb::Pause).await.changed,
        "stopped is more than paused"
    );
    assert_eq!(
        settled(&bench).await,
        "poll running, shape running, log stopped"
    );
    assert_eq!(bench.containers().len(), 2);
    let changed = POLL.replace("jq:1 }", "jq:1, replicas: 2 }");
    bench.control.apply(&draft(&changed)).await.unwrap();
    assert_eq!(
        settled(&bench).await,
        "poll running, shape running, log stopped",
        "an apply changes nothing about it"
    );
    assert!(log(Verb::Resume).await.changed);
    assert!(!log(Verb::Resume).await.changed);
    assert_eq!(settled(&bench).await, all);
}

#[tokio::test]
async fn a_replica_of_a_paused_step_starts_paused() {
    let bench = Bench::new().await;
    bench.control.apply(&draft(POLL)).await.unwrap();
    let log = async |verb| {
        bench
            .control
            .tell_step("orders", "log", verb)
            .await
            .unwrap()
    };
    log(Verb::Pause).await;
    bench.control.scale("orders", "log", 3).await.unwrap();
    bench.settle().await;
    let started = bench.engine.started_paused();
    let log: Vec<_> = started
        .iter()
        .filter(|(name, _)| name.contains(".log."))
        .collect();
    assert_eq!(log.len(), 3);
    assert!(log.iter().all(|(_, paused)| *paused), "{log:?}");
    assert!(
        started.iter().any(|(_, paused)| !paused),
        "the others do not: {started:?}"
    );
}

#[tokio::test]
async fn a_flow_drains_until_nothing_is_left() {
    let bench = Bench::new().await;
    bench.control.apply(&draft(POLL)).await.unwrap();
    bench.settle().await;
    bench.put("shape").await;
    let done = bench.control.tell("orders", Verb::Drain).await.unwrap();
    assert!(done.changed, "{done:?}");
    assert!(
        !bench
            .control
            .tell("orders", Verb::Drain)
            .await
            .unwrap()
            .changed
    );
    assert_eq!(
        settled(&bench).await,
        "poll paused, shape running, log running"
    );
    assert_eq!(
        bench.control.run("orders", None).await.unwrap_err().code,
        "not_running",
        "no tick"
    );
    let left = async || bench.control.status("orders").await.unwrap().left.unwrap();
    let is = left().await;
    assert_eq!((is.queued, is.drained), (1, false));
    bench.broker.purge("t.flow.orders.shape");
    assert!(!left().await.drained, "at first sight");
    assert!(!left().await.drained, "nobody has said anything new");
    bench.report(60_000);
    assert!(left().await.drained);
    bench.put("log").await;
    assert!(!left().await.drained, "something came");
    assert!(bench.control.resume("orders").await.unwrap().changed);
    assert!(bench.control.status("orders").await.unwrap().left.is_none());
}

#[tokio::test]
async fn a_step_drains_while_the_one_before_it_holds_still() {
    let bench = Bench::new().await;
    bench.control.apply(&draft(POLL)).await.unwrap();
    bench.settle().await;
    let log = async |verb| {
        bench
            .control
            .tell_step("orders", "log", verb)
            .await
            .unwrap()
    };
    let done = log(Verb::Drain).await;
    assert!(done.message.contains("`shape` holds still"), "{done:?}");
    assert_eq!(
        settled(&bench).await,
        "poll running, shape paused, log draining"
    );
    bench.report(60_000);
    let status = bench.control.status("orders").await.unwrap();
    assert_eq!(status.steps[2].state, "drained");
    let because = status.steps[1].because.clone().unwrap();
    assert!(because.contains("`log`"), "{because}");
    assert_eq!(status.reason, None, "nothing is wrong");
    log(Verb::Resume).await;
    assert_eq!(
        settled(&bench).await,
        "poll running, shape running, log running"
    );
    let poll = bench
        .control
        .tell_step("orders", "poll", Verb::Drain)
        .await
        .unwrap();
    assert!(poll.message.contains("no tick is sent"), "{poll:?}");
    assert_eq!(
        settled(&bench).await,
        "poll draining, shape running, log running"
    );
    let fired = bench.control.run("orders", None).await.unwrap_err();
    assert_eq!(fired.code, "not_running");
    bench.report(60_000);
    let status = bench.control.status("orders").await.unwrap();
    assert_eq!(status.steps[0].state, "drained");
}

#[tokio::test]
async fn what_cannot_be_told_anything_says_why() {
    let bench = Bench::new().await;
    bench.control.apply(&draft(FLOW)).await.unwrap();
    let check = async |flow: &str, step: &str, verb, code: &str, hint: &str| {
        let error = bench.control.tell_step(flow, step, verb).await.unwrap_err();
        let said = error.hint.clone().unwrap_or_default();
        assert_eq!(error.code, code, "{error:?}");
        assert!(said.contains(hint), "{error:?}");
    };
    check(
        "order",
        "crm",
        Verb::Pause,
        "no_such_flow",
        "did you mean `orders`?",
    )
    .await;
    check(
        "orders",
        "crn",
        Verb::Pause,
        "no_such_step",
        "did you mean `crm`?",
    )
    .await;
    check("orders", "zzz", Verb::Stop, "no_such_step", "its steps are").await;
    check(
        "orders",
        "hook",
        Verb::Pause,
        "trigger_without_container",
        "drain",
    )
    .await;
    let error = bench
        .control
        .delete_step("orders", "crm")
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind, error.code),
        (ErrorKind::Conflict, "step_not_deletable")
    );
    assert!(error.hint.unwrap().contains("take it out"));
    let error = bench
        .control
        .delete_step("orders", "nope")
        .await
        .unwrap_err();
    assert_eq!(error.code, "no_such_step");
}
