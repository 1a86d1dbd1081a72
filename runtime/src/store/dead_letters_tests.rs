//! Tests of dead letters: kinds, repetitions, edits and jobs.

use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use towpath_protocol::MessageId;
use towpath_protocol::frame::Why;
use towpath_protocol::office::DeadCause;

use super::Store;
use super::dead_letters::{DeadQuery, Stored};
use super::flows::NewVersion;
use super::records::{DeadLetterRecord, DeadState, RunRecord, RunState};
use super::replay_jobs::{JobState, NewJob, Progress};

fn raw(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.into()).unwrap()
}

fn id(number: u32) -> MessageId {
    let mut bytes = [7; 16];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    MessageId::from_bytes(bytes)
}

fn letter(number: u32, reason: &str) -> DeadLetterRecord {
    let message = format!(
        r#"{{"id":"{}","lineage":{{"run":"{}","version":1,"at":{}}},"body":{{"n":{number}}}}}"#,
        id(number),
        id(0),
        1_000_000 - number
    );
    DeadLetterRecord {
        id: 0,
        flow: "orders".into(),
        step: "crm".into(),
        port: None,
        version: 1,
        connection: "default".into(),
        run: Some(id(0)),
        message_id: id(number),
        cause: DeadCause::Permanent,
        reason: reason.into(),
        chain: Vec::new(),
        attempts: Vec::new(),
        replica: 1,
        at: 1_000 + u64::from(number),
        replays: 0,
        state: DeadState::Open,
        message: raw(&message),
    }
}

async fn with_letters(count: u32) -> Store {
    let store = Store::in_memory().unwrap();
    let letters = (1..=count)
        .map(|number| letter(number, "no deal"))
        .collect();
    store.insert_dead_letters(letters).await.unwrap();
    store
}

async fn ids(store: &Store, state: DeadState) -> Vec<u64> {
    let query = DeadQuery {
        state: Some(state),
        ..DeadQuery::default()
    };
    store.dead_letter_ids(query).await.unwrap()
}

#[tokio::test]
async fn letters_of_one_kind_are_a_group() {
    let store = Store::in_memory().unwrap();
    let mut letters: Vec<_> = (1..=5)
        .map(|number| letter(number, &format!("no deal {number}")))
        .collect();
    letters.push(letter(9, "refused"));
    store.insert_dead_letters(letters).await.unwrap();
    let groups = store.dead_groups(None, None).await.unwrap();
    let seen: Vec<_> = groups
        .iter()
        .map(|it| (it.pattern.as_str(), it.count, it.first_at, it.last_at))
        .collect();
    assert_eq!(
        seen,
        [("no deal …", 5, 1_001, 1_005), ("refused", 1, 1_009, 1_009)]
    );
    assert_eq!(groups[0].example, 5);
    let of_group = DeadQuery {
        group: Some(groups[0].id.clone()),
        ..DeadQuery::default()
    };
    assert_eq!(store.dead_letter_ids(of_group).await.unwrap().len(), 5);
    store
        .change_dead_letter(6, DeadState::Open, DeadState::Discarded)
        .await
        .unwrap();
    assert_eq!(store.dead_groups(None, None).await.unwrap().len(), 1);
    let elsewhere = store.dead_groups(Some("other".into()), None).await.unwrap();
    assert!(elsewhere.is_empty());
    assert!(store.dead_group(&groups[1].id).await.unwrap().is_some());
    store.forget_decided(u64::MAX >> 1).await.unwrap();
    assert!(store.dead_group(&groups[1].id).await.unwrap().is_none());
}

#[tokio::test]
async fn groups_of_fifty_thousand_are_counted_in_under_a_second() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    for chunk in 0..50 {
        let letters = (0..1_000).map(|number| {
            let number = chunk * 1_000 + number;
            letter(
                number,
                &format!(
                    "kind {}: no deal {number}",
                    "x".repeat(number as usize % 40)
                ),
            )
        });
        store.insert_dead_letters(letters.collect()).await.unwrap();
    }
    let began = Instant::now();
    let groups = store.dead_groups(None, None).await.unwrap();
    let took = began.elapsed();
    assert_eq!(groups.len(), 40);
    assert_eq!(groups.iter().map(|group| group.count).sum::<u64>(), 50_000);
    assert!(took < Duration::from_secs(1), "it took {took:?}");
    eprintln!("groups of 50,000 dead letters: {took:?}");
}

#[tokio::test]
async fn rows_from_before_get_their_kind_when_the_store_opens() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let letters = (1..=3).map(|number| letter(number, "no deal"));
    store.insert_dead_letters(letters.collect()).await.unwrap();
    store
        .with("make it old", |database| {
            database.execute_batch(
                "UPDATE dead_letters SET fingerprint = '', entered_at = 0, last_at = 0;
                 DELETE FROM dead_groups;
                 UPDATE dead_letters SET state = 'replaying' WHERE id = 2;",
            )
        })
        .await
        .unwrap();
    drop(store);
    let store = Store::open(folder.path()).unwrap();
    let groups = store.dead_groups(None, None).await.unwrap();
    assert_eq!(
        (groups.len(), groups[0].count, groups[0].last_at),
        (1, 3, 1_003),
        "what was just being sent is open again"
    );
}

fn run(number: u32) -> RunRecord {
    RunRecord {
        id: id(number),
        flow: "orders".into(),
        step: "poll".into(),
        connection: "default".into(),
        version: 1,
        why: Why::Schedule,
        state: RunState::Recorded,
        due: 1,
        started_at: 1,
        ended_at: None,
        emitted: None,
        attempts: 0,
        next_at: None,
        reason: None,
        payload: None,
        tracked: false,
        cancel_at: None,
    }
}

#[tokio::test]
async fn a_trigger_that_fails_for_good_makes_one_letter() {
    let store = Store::in_memory().unwrap();
    let version = NewVersion {
        flow: "orders".into(),
        ..NewVersion::default()
    };
    store.store_version(version).await.unwrap();
    let tick = |number: u32, reason: &str| DeadLetterRecord {
        step: "poll".into(),
        run: Some(id(number)),
        ..letter(number, reason)
    };
    for number in 1..=3 {
        assert!(store.run_started(&run(number)).await.unwrap());
        let letters = vec![tick(number, &format!("answered 401 to {number}"))];
        let expect = if number == 1 {
            Stored::New
        } else {
            Stored::Repeated
        };
        // The broker may deliver it again.
        for expect in [expect, Stored::Known] {
            let stored = store.store_dead_letters(letters.clone()).await.unwrap();
            assert_eq!(stored, [expect], "{number}");
        }
        assert!(store.active_run("orders").await.unwrap().is_none());
    }
    let again = store.store_dead_letters(vec![tick(2, "answered 401 to 2")]);
    assert_eq!(again.await.unwrap(), [Stored::Known]);
    let kept = store.dead_letter(1).await.unwrap().unwrap();
    assert_eq!(
        (kept.repeats, kept.at, kept.last_at, kept.reason.as_str()),
        (2, 1_001, 1_003, "answered 401 to 3")
    );
    assert_eq!(store.dead_groups(None, None).await.unwrap()[0].repeats, 2);
    // Another failure, or one after a decision, is a letter of its own.
    store.run_started(&run(4)).await.unwrap();
    let other = store.store_dead_letters(vec![tick(4, "answered 500")]);
    assert_eq!(other.await.unwrap(), [Stored::New]);
    store
        .change_dead_letter(1, DeadState::Open, DeadState::Discarded)
        .await
        .unwrap();
    store.run_started(&run(5)).await.unwrap();
    let later = store.store_dead_letters(vec![tick(5, "answered 401 to 5")]);
    assert_eq!(later.await.unwrap(), [Stored::New]);
}

#[tokio::test]
async fn an_edited_body_stands_beside_the_original() {
    let store = with_letters(2).await;
    let body = |text| Some(raw(text));
    let edited = store.edit_dead_letters(vec![(1, body("7")), (99, body("8"))]);
    assert_eq!(edited.await.unwrap(), 1);
    let kept = store.dead_letter(1).await.unwrap().unwrap();
    assert_eq!(kept.edited.as_ref().unwrap().get(), "7");
    assert_eq!(
        kept.message.get(),
        letter(1, "").message.get(),
        "the original stays"
    );
    store.edit_dead_letters(vec![(1, None)]).await.unwrap();
    let kept = store.dead_letter(1).await.unwrap().unwrap();
    assert!(kept.edited.is_none());
    store
        .change_dead_letter(2, DeadState::Open, DeadState::Discarded)
        .await
        .unwrap();
    let late = store.edit_dead_letters(vec![(2, body("7"))]);
    assert_eq!(late.await.unwrap(), 0);
}

fn new_job() -> NewJob {
    NewJob {
        what: "all".into(),
        ..NewJob::default()
    }
}

#[tokio::test]
async fn a_letter_is_in_one_job_at_a_time() {
    let store = with_letters(5).await;
    let first = store.begin_job(new_job(), vec![1, 2, 3]).await.unwrap();
    let second = store.begin_job(new_job(), vec![2, 3, 4]).await.unwrap();
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!((first.total, second.total), (3, 1));
    assert!(
        store
            .begin_job(new_job(), vec![1, 4])
            .await
            .unwrap()
            .is_none()
    );
    assert_eq!(store.jobs(9).await.unwrap().len(), 2, "and no empty job");
    assert_eq!(
        store.dead_letter(2).await.unwrap().unwrap().job,
        Some(first.id)
    );
    let discarded = store.change_dead_letters(vec![1, 5], DeadState::Open, DeadState::Discarded);
    assert_eq!(discarded.await.unwrap(), 1);
}

#[tokio::test]
async fn a_job_goes_on_where_it_was() {
    let store = with_letters(5).await;
    let job = store
        .begin_job(new_job(), vec![1, 2, 3, 4, 5])
        .await
        .unwrap();
    let job = job.unwrap().id;
    let next = store.job_letters(job, 2).await.unwrap();
    // The later a number, the earlier it entered its flow.
    assert_eq!(next.iter().map(|it| it.id).collect::<Vec<_>>(), [5, 4]);
    let progress = Progress {
        sent: vec![5],
        skipped: vec![4],
        reason: Some("it cannot be read".into()),
        waits: None,
    };
    store.job_progress(job, progress.clone()).await.unwrap();
    // Said twice, it counts once.
    store.job_progress(job, progress).await.unwrap();
    let now = store.job(job).await.unwrap().unwrap();
    assert_eq!((now.sent, now.skipped, now.total), (1, 1, 5));
    let next = store.job_letters(job, 9).await.unwrap();
    assert_eq!(next.iter().map(|it| it.id).collect::<Vec<_>>(), [3, 2, 1]);
    assert_eq!(ids(&store, DeadState::Open).await, [4]);
    assert_eq!(store.jobs_under_way().await.unwrap(), [now]);
}

#[tokio::test]
async fn what_a_job_does_not_send_is_open_again() {
    let store = with_letters(3).await;
    let job = store.begin_job(new_job(), vec![1, 2, 3]).await.unwrap();
    let job = job.unwrap().id;
    let progress = Progress {
        sent: vec![3],
        ..Progress::default()
    };
    store.job_progress(job, progress).await.unwrap();
    assert!(store.cancel_job(job).await.unwrap());
    assert!(!store.cancel_job(job).await.unwrap());
    store.end_job(job, JobState::Cancelled).await.unwrap();
    assert_eq!(ids(&store, DeadState::Open).await, [1, 2]);
    assert_eq!(ids(&store, DeadState::Replayed).await, [3]);
    assert!(store.jobs_under_way().await.unwrap().is_empty());
    assert_eq!(store.forget_decided(0).await.unwrap(), 0);
    assert!(store.job(job).await.unwrap().unwrap().state.is_over());
}

#[tokio::test]
async fn letters_are_chosen_by_all_that_is_known_of_them() {
    let store = with_letters(5).await;
    let find = |query: DeadQuery| {
        let store = store.clone();
        async move { store.dead_letter_ids(query).await.unwrap() }
    };
    let base = DeadQuery::default;
    let query = DeadQuery {
        ids: vec![2, 4, 99],
        ..base()
    };
    assert_eq!(find(query).await, [2, 4]);
    let query = DeadQuery {
        since: Some(1_002),
        until: Some(1_004),
        ..base()
    };
    assert_eq!(find(query).await, [2, 3]);
    let query = DeadQuery {
        message: Some(id(3)),
        ..base()
    };
    assert_eq!(find(query).await, [3]);
    let query = DeadQuery {
        cause: Some(DeadCause::Attempts),
        ..base()
    };
    assert!(find(query).await.is_empty());
    let query = DeadQuery {
        step: Some("crm".into()),
        flow: Some("orders".into()),
        before: Some(2),
        limit: 9,
        ..base()
    };
    assert_eq!(store.dead_letters(query).await.unwrap().len(), 1);
}
