//! Tests of dead letters as the API shows them.

use serde_json::json;
use serde_json::value::RawValue;
use towpath_protocol::MessageId;
use towpath_protocol::office::DeadCause;

use super::view::{DeadSelection, DiscardRequest, EditManyRequest, EditRequest, ReplayManyRequest};
use crate::control::error::ControlError;
use crate::control::testing::{Bench, FLOW, draft};
use crate::store::records::{DeadLetterRecord, DeadState};

fn letter(number: u8, step: &str) -> DeadLetterRecord {
    let id = MessageId::from_bytes([number; 16]);
    let line = json!({ "id": id.to_string(), "lineage": { "run": id.to_string(), "version": 1, "at": number }, "body": { "n": number } });
    DeadLetterRecord {
        id: 0,
        flow: "orders".into(),
        step: step.into(),
        port: None,
        version: 1,
        connection: "default".into(),
        run: None,
        message_id: id,
        cause: DeadCause::Permanent,
        reason: format!("no deal {number}"),
        chain: Vec::new(),
        attempts: Vec::new(),
        replica: 1,
        at: u64::from(number),
        replays: 0,
        state: DeadState::Open,
        message: serde_json::value::to_raw_value(&line).unwrap(),
    }
}

/// Letters 1 to 3 of `crm`, 4 of a step that is gone.
async fn bench() -> Bench {
    let bench = Bench::new().await;
    bench.control.apply(&draft(FLOW)).await.unwrap();
    let letters = [(1, "crm"), (2, "crm"), (3, "crm"), (4, "gone")];
    let letters = letters.map(|(number, step)| letter(number, step));
    let store = &bench.control.catalog.store;
    store.insert_dead_letters(letters.into()).await.unwrap();
    bench
}

fn ids(ids: &[&str]) -> DeadSelection {
    DeadSelection {
        ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        ..DeadSelection::default()
    }
}

fn all() -> DeadSelection {
    DeadSelection {
        all: true,
        ..DeadSelection::default()
    }
}

fn replay(select: DeadSelection, from: Option<&str>) -> ReplayManyRequest {
    ReplayManyRequest {
        select,
        from: from.map(ToOwned::to_owned),
        rate: None,
        dry_run: false,
    }
}

fn said(error: &ControlError) -> String {
    let hint = error.hint.as_deref().unwrap_or("-");
    format!("{} [{}] hint: {hint}", error.message, error.code)
}

#[tokio::test]
async fn what_cannot_be_replayed_is_said() {
    let bench = bench().await;
    let control = &bench.control;
    let mut seen = Vec::new();
    for (select, from) in [
        (DeadSelection::default(), None),
        (ids(&["99"]), None),
        (ids(&["x"]), None),
        (ids(&["4"]), None),
        (ids(&["1"]), Some("nosuch")),
        (ids(&["1"]), Some("hook")),
        (
            DeadSelection {
                group: Some("0123456789ab".into()),
                ..all()
            },
            None,
        ),
        (
            DeadSelection {
                flow: Some("nosuch".into()),
                ..all()
            },
            None,
        ),
        (
            DeadSelection {
                cause: Some("bored".into()),
                ..all()
            },
            None,
        ),
    ] {
        let error = control.dead_replay_many(&replay(select, from)).await;
        seen.push(said(&error.unwrap_err()));
    }
    let rate = ReplayManyRequest {
        rate: Some(0.0),
        ..replay(all(), None)
    };
    seen.push(said(&control.dead_replay_many(&rate).await.unwrap_err()));
    // Nobody works on jobs here, so the first one keeps what it took.
    let first = control
        .dead_replay_many(&replay(ids(&["1", "2"]), None))
        .await
        .unwrap();
    assert_eq!(first.selected, 2);
    for select in [ids(&["1"]), ids(&["3", "2"])] {
        let error = control.dead_replay_many(&replay(select, None)).await;
        seen.push(said(&error.unwrap_err()));
    }
    seen.push(said(
        &control.dead_replay("1", None, None).await.unwrap_err(),
    ));
    seen.push(said(&control.dead_discard("2").await.unwrap_err()));
    let body = RawValue::from_string("1".into()).unwrap();
    let edit = control.dead_edit("2", Some(EditRequest { body })).await;
    seen.push(said(&edit.unwrap_err()));
    seen.push(said(&control.dead_job("9").await.unwrap_err()));
    control.dead_discard("3").await.unwrap();
    seen.push(said(
        &control.dead_replay("3", None, None).await.unwrap_err(),
    ));
    insta::assert_snapshot!(seen.join("\n"));
}

#[tokio::test]
async fn a_replay_that_can_go_nowhere_begins_no_job() {
    let bench = bench().await;
    let control = &bench.control;
    let dry = ReplayManyRequest {
        dry_run: true,
        ..replay(all(), None)
    };
    let answer = control.dead_replay_many(&dry).await.unwrap();
    insta::assert_json_snapshot!(answer);
    assert!(
        control
            .dead_replay_many(&replay(ids(&["4"]), None))
            .await
            .is_err()
    );
    assert!(control.dead_jobs().await.unwrap().jobs.is_empty());
    // A step that is gone says nothing of what is before it: any will do.
    let rescued = control
        .dead_replay_many(&replay(ids(&["4"]), Some("shape")))
        .await;
    assert_eq!(rescued.unwrap().routes[0].to, "`shape`");
    let job = control.dead_job("1").await.unwrap();
    assert_eq!((job.total, job.from.as_deref()), (1, Some("shape")));
    let rest = control
        .dead_replay_many(&replay(all(), None))
        .await
        .unwrap();
    assert_eq!(rest.selected, 3);
    assert_eq!(rest.left_out[0].why, "they are being replayed by job 1");
}

#[tokio::test]
async fn an_edited_body_is_replayed_and_can_be_undone() {
    let bench = bench().await;
    let control = &bench.control;
    let body = |text: &str| EditRequest {
        body: RawValue::from_string(text.into()).unwrap(),
    };
    let done = control
        .dead_edit("1", Some(body("{ \"n\": 1.10 }")))
        .await
        .unwrap();
    assert!(done.changed, "{}", done.message);
    let again = control
        .dead_edit("1", Some(body("{\"n\":1.10}")))
        .await
        .unwrap();
    assert!(!again.changed, "{}", again.message);
    let shown = control.dead_show("1").await.unwrap();
    assert!(shown.edited);
    assert_eq!(shown.body.unwrap().get(), "{\"n\":1.10}");
    assert_eq!(shown.original_body.unwrap().get(), "{\"n\":1}");
    let undo = EditManyRequest {
        select: all(),
        undo: true,
        ..EditManyRequest::default()
    };
    let undone = control.dead_edit_many(&undo).await.unwrap();
    assert_eq!((undone.selected, undone.changed), (4, 1));
    assert!(!control.dead_show("1").await.unwrap().edited);
    let large = format!("\"{}\"", "x".repeat(2 << 20));
    let error = control
        .dead_edit("1", Some(body(&large)))
        .await
        .unwrap_err();
    assert_eq!(error.code, "body_too_large");
    let neither = EditManyRequest {
        select: all(),
        ..EditManyRequest::default()
    };
    assert!(control.dead_edit_many(&neither).await.is_err());
}

#[tokio::test]
async fn a_dry_run_discards_nothing() {
    let bench = bench().await;
    let control = &bench.control;
    let group = control.dead_groups(None, None).await.unwrap().groups[0].clone();
    assert_eq!((group.pattern.as_str(), group.count), ("no deal …", 3));
    let select = DeadSelection {
        group: Some(group.group),
        ..DeadSelection::default()
    };
    for dry_run in [true, false] {
        let request = DiscardRequest {
            select: select.clone(),
            dry_run,
        };
        let answer = control.dead_discard_many(&request).await.unwrap();
        assert_eq!((answer.selected, answer.changed), (3, 3));
    }
    let left = control
        .dead_list(&super::DeadFilter::default())
        .await
        .unwrap();
    assert_eq!(left.dead.len(), 1);
}

#[tokio::test]
async fn an_export_has_everything_page_by_page() {
    use futures_util::StreamExt as _;
    let bench = bench().await;
    let store = &bench.control.catalog.store;
    let letters = (0..450_u32).map(|number| DeadLetterRecord {
        replays: number + 1,
        ..letter(9, "crm")
    });
    store.insert_dead_letters(letters.collect()).await.unwrap();
    let filter = super::DeadFilter::default();
    let pages: Vec<_> = bench
        .control
        .dead_export(&filter)
        .await
        .unwrap()
        .collect()
        .await;
    assert!(pages.len() >= 3, "{}", pages.len());
    let text: String = pages
        .into_iter()
        .map(|page| String::from_utf8(page.unwrap().to_vec()).unwrap())
        .collect();
    assert_eq!(text.lines().count(), 454);
    let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    insta::assert_json_snapshot!(last);
}
