use std::sync::Arc;

use towpath_protocol::runs::{Entry, Head};
use towpath_protocol::start::Identity;

use super::*;
use crate::store::flows::NewVersion;
use crate::store::tracking::{RequestRun, WebhookRuns};

fn id(number: u8) -> MessageId {
    MessageId::from_bytes([number; 16])
}

fn of() -> WebhookRuns {
    WebhookRuns {
        version: 1,
        trigger: "hook".into(),
        takers: vec!["crm".into()],
    }
}

/// A store with a flow and the runs of so many requests.
async fn store(requests: u8) -> Store {
    let store = Store::in_memory().unwrap();
    let version = NewVersion {
        flow: "orders".into(),
        ..NewVersion::default()
    };
    store.store_version(version).await.unwrap();
    let runs = (1..=requests).map(|number| {
        Arc::new(RequestRun {
            run: id(number),
            flow: "orders".into(),
            of: of(),
        })
    });
    let runs: Vec<_> = runs.collect();
    let begun = store.begin_requests(runs.clone(), 1).await.unwrap();
    assert_eq!(begun.len(), usize::from(requests));
    assert!(store.begin_requests(runs, 2).await.unwrap().is_empty());
    store
}

async fn keep(store: &Store, number: u8, answer: &str, now: u64) -> bool {
    let one = vec![(id(number), answer.to_owned())];
    store.keep_answers(one, now).await.unwrap()[0]
}

/// The step says that it is done with the message of a run.
async fn done(store: &Store, number: u8) {
    let head = Head {
        identity: Identity {
            instance: "t".into(),
            flow: "orders".into(),
            step: "crm".into(),
            replica: 1,
            spec: "s".into(),
        },
        ways: vec![],
    };
    let entry = Entry::Done {
        id: id(number),
        replays: 0,
    };
    let reports = Arc::new(vec![(head, vec![(id(number), entry)])]);
    store.note_runs(reports, Arc::default(), 5).await.unwrap();
}

#[tokio::test]
async fn the_first_answer_of_a_run_counts() {
    let store = store(1).await;
    assert_eq!(store.outcome_of(id(1)).await.unwrap(), Outcome::Open);
    assert!(keep(&store, 1, "{}", 7).await);
    assert!(!keep(&store, 1, r#"{"status":500}"#, 8).await);
    assert!(!keep(&store, 9, "{}", 8).await, "there is no such run");
    let kept = KeptAnswer {
        at: 7,
        answer: "{}".into(),
    };
    assert_eq!(store.answer_of(id(1)).await.unwrap().as_ref(), Some(&kept));
    done(&store, 1).await;
    let outcome = store.outcome_of(id(1)).await.unwrap();
    assert_eq!(outcome, Outcome::Answered(kept));
}

#[tokio::test]
async fn a_run_that_ends_without_an_answer_is_over() {
    let store = store(1).await;
    done(&store, 1).await;
    let over = Outcome::Over { has_dead: false };
    assert_eq!(store.outcome_of(id(1)).await.unwrap(), over);
    assert_eq!(store.outcome_of(id(9)).await.unwrap(), Outcome::Unknown);
}

#[tokio::test]
async fn answers_go_with_their_runs_the_oldest_first() {
    let store = store(5).await;
    for number in 1..=5 {
        assert!(keep(&store, number, "1234567890", u64::from(number) * 100).await);
        if number != 2 {
            done(&store, number).await;
        }
    }
    // Runs that answered are kept as long as their answers are.
    store.forget_run_messages(1_000, 100).await.unwrap();
    store.forget_run_messages(1_000, 100).await.unwrap();
    let runs = async || store.runs("orders", 10).await.unwrap().len();
    assert_eq!(runs().await, 5);
    assert_eq!(store.forget_answers(300, 1).await.unwrap(), 1);
    assert_eq!(store.forget_answers(300, 10).await.unwrap(), 1);
    assert_eq!(store.forget_answers(300, 10).await.unwrap(), 0);
    assert_eq!(runs().await, 4, "the second is not finished");
    assert_eq!(store.answer_of(id(2)).await.unwrap(), None);
    assert_eq!(store.forget_answers_over(0, 20, 1).await.unwrap(), 1);
    assert_eq!(store.forget_answers_over(0, 20, 1).await.unwrap(), 0);
    assert!(store.answer_of(id(3)).await.unwrap().is_none());
    assert!(store.answer_of(id(4)).await.unwrap().is_some());
    store.delete_flow("orders", vec![], false).await.unwrap();
    assert_eq!(store.answer_of(id(4)).await.unwrap(), None);
}

#[tokio::test]
async fn a_request_that_did_not_enter_leaves_no_run() {
    let store = store(2).await;
    store.take_back_requests(vec![id(1)]).await.unwrap();
    assert_eq!(store.outcome_of(id(1)).await.unwrap(), Outcome::Unknown);
    assert_eq!(store.outcome_of(id(2)).await.unwrap(), Outcome::Open);
}
