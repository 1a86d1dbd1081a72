//! Checkpoints as an operator sees and writes them.

use serde_json::json;
use towpath_protocol::frame::Why;

use super::super::testing::{Bench, FLOW, draft};
use super::*;
use crate::store::records::RunState;

const POLL: &str = "
flow: orders
trigger: { id: poll, image: poll:1, every: 1h }
actions:
  - { id: log, image: log:1 }
";

async fn bench() -> Bench {
    let bench = Bench::new().await;
    bench.control.apply(&draft(POLL)).await.unwrap();
    bench
}

fn choice(version: Option<u64>, force: bool) -> CheckpointChoice {
    CheckpointChoice { version, force }
}

#[tokio::test]
async fn a_checkpoint_is_not_written_under_a_run() {
    let bench = bench().await;
    let control = &bench.control;
    let set = async |value: Value, force| {
        control
            .set_checkpoint("orders", Some(&value), &choice(None, force))
            .await
    };
    let begin = control.checkpoint("orders").await.unwrap();
    assert_eq!(
        (begin.version, begin.value, begin.saved_at),
        (0, None, None)
    );
    let written = set(json!({"since": 5}), false).await.unwrap();
    assert_eq!((written.version, written.run), (1, None));
    assert_eq!(written.value, Some(json!({"since": 5})));

    let run = control
        .scheduler
        .fire("orders", Why::Manual, None)
        .await
        .unwrap();
    let error = set(json!(6), false).await.unwrap_err();
    assert_eq!(
        (error.kind, error.code),
        (ErrorKind::Conflict, "run_active")
    );
    assert!(
        error.hint.as_ref().unwrap().contains("--force"),
        "{error:?}"
    );
    assert_eq!(set(json!(6), true).await.unwrap().version, 2);
    // A flow that holds still may be written to: its run goes on from what is written.
    control
        .tell("orders", super::super::Verb::Pause)
        .await
        .unwrap();
    assert_eq!(set(json!(7), false).await.unwrap().version, 3);
    let unforced = choice(None, false);
    let reset = control.set_checkpoint("orders", None, &unforced);
    let reset = reset.await.unwrap();
    assert_eq!((reset.version, reset.value), (4, None));

    // What the run saves is shown with the run.
    let store = &control.catalog.store;
    let key = key(&control.record("orders").await.unwrap().1).unwrap();
    let value = RawValue::from_string("8".into()).unwrap();
    store
        .save_checkpoint(&key, run, 1, value, Some(4))
        .await
        .unwrap();
    let saved = control.checkpoint("orders").await.unwrap();
    assert_eq!((saved.version, saved.run), (5, Some(run.to_string())));
    store
        .run_ended(run, RunState::Done, 9, Some(1), None)
        .await
        .unwrap();
}

#[test]
fn a_stream_whose_checkpoint_stands_still_says_so() {
    let minute = 60_000;
    assert_eq!(still(0, 14 * minute), None);
    // A clock that was set back is no reason.
    assert_eq!(still(20 * minute, 0), None);
    assert_eq!(
        still(minute, 26 * minute).as_deref(),
        Some(
            "its checkpoint has not moved for 25 minutes: its source has nothing to say, or it hangs"
        )
    );
}

#[tokio::test]
async fn of_two_people_only_the_one_who_saw_the_last_version_writes() {
    let bench = bench().await;
    let set = async |value: Value, version| {
        bench
            .control
            .set_checkpoint("orders", Some(&value), &choice(Some(version), false))
            .await
    };
    set(json!(1), 0).await.unwrap();
    let error = set(json!(2), 0).await.unwrap_err();
    assert_eq!(
        (error.kind, error.code),
        (ErrorKind::Conflict, "checkpoint_changed")
    );
    assert_eq!(set(json!(2), 1).await.unwrap().version, 2);
}

#[tokio::test]
async fn a_checkpoint_is_a_position_and_of_a_trigger_that_has_one() {
    let bench = bench().await;
    let large = json!("x".repeat(CHECKPOINT_BYTES_MAX));
    let error = bench
        .control
        .set_checkpoint("orders", Some(&large), &choice(None, false))
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind, error.code),
        (ErrorKind::Bad, "checkpoint_too_large")
    );

    let bench = Bench::new().await;
    bench.control.apply(&draft(FLOW)).await.unwrap();
    let error = bench.control.checkpoint("orders").await.unwrap_err();
    assert_eq!(error.code, "no_checkpoint");
    let error = bench.control.checkpoint("nothing").await.unwrap_err();
    assert_eq!(error.code, "no_such_flow");
}
