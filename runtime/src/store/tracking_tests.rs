use proptest::prelude::*;
use serde_json::value::RawValue;
use towpath_protocol::frame::Why;
use towpath_protocol::office::DeadCause;
use towpath_protocol::start::Identity;

use super::*;
use crate::store::flows::NewVersion;
use crate::store::records::{DeadState, RunRecord};
use crate::store::runs::Cancelling;

fn id(number: u8) -> MessageId {
    MessageId::from_bytes([number; 16])
}

const RUN: u8 = 1;

fn record(number: u8) -> RunRecord {
    RunRecord {
        id: id(number),
        flow: "orders".into(),
        step: "poll".into(),
        connection: "default".into(),
        version: 1,
        why: Why::Schedule,
        state: RunState::Recorded,
        due: u64::from(number),
        started_at: u64::from(number),
        ended_at: None,
        emitted: None,
        attempts: 0,
        next_at: None,
        reason: None,
        payload: None,
        tracked: true,
        cancel_at: None,
    }
}

async fn store() -> Store {
    let store = Store::in_memory().unwrap();
    let version = NewVersion {
        flow: "orders".into(),
        ..NewVersion::default()
    };
    store.store_version(version).await.unwrap();
    store
}

/// A store with a run that has begun.
async fn begun() -> Store {
    let store = store().await;
    assert!(store.run_started(&record(RUN)).await.unwrap());
    store
}

/// A report of a step: what leaves by its only port goes to `next`.
fn report(step: &str, next: &[&str], entries: &[Entry]) -> Report {
    let head = Head {
        identity: Identity {
            instance: "t".into(),
            flow: "orders".into(),
            step: step.into(),
            replica: 1,
            spec: "s".into(),
        },
        ways: vec![next.iter().map(|step| (*step).to_owned()).collect()],
    };
    let entries = entries.iter().map(|entry| (id(RUN), *entry)).collect();
    (head, entries)
}

fn emitted(number: u8) -> Entry {
    Entry::Emitted {
        id: id(number),
        way: 0,
        of_replayed: false,
    }
}

fn done(number: u8) -> Entry {
    Entry::Done {
        id: id(number),
        replays: 0,
    }
}

async fn note(store: &Store, reports: Vec<Report>) -> Noted {
    store
        .note_runs(Arc::new(reports), Arc::default(), 100)
        .await
        .unwrap()
}

async fn known(store: &Store) -> RunProgress {
    store.runs_progress(vec![id(RUN)]).await.unwrap().remove(0)
}

/// Open, done and dead of a step.
async fn sums(store: &Store, step: &str) -> (u64, u64, u64) {
    let known = known(store).await;
    let found = known.steps.iter().find(|sums| sums.step == step);
    found.map_or((0, 0, 0), |it| (it.open, it.done, it.dead))
}

async fn is_finished(store: &Store) -> bool {
    known(store).await.finished_at.is_some()
}

async fn end(store: &Store) {
    assert!(
        store
            .run_ended(id(RUN), RunState::Done, 9, Some(2), None)
            .await
            .unwrap()
    );
}

fn letter(number: u8, step: &str, replays: u32) -> DeadLetterRecord {
    DeadLetterRecord {
        id: 0,
        flow: "orders".into(),
        step: step.into(),
        port: None,
        version: 1,
        connection: "default".into(),
        run: Some(id(RUN)),
        message_id: id(number),
        cause: DeadCause::Permanent,
        reason: "no".into(),
        chain: Vec::new(),
        attempts: Vec::new(),
        replica: 1,
        at: 5,
        replays,
        state: DeadState::Open,
        message: RawValue::from_string("{}".into()).unwrap(),
    }
}

async fn die(store: &Store, letter: DeadLetterRecord) -> u64 {
    let message = letter.message_id;
    store.store_dead_letters(vec![letter]).await.unwrap();
    let query = super::super::dead_letters::DeadQuery {
        message: Some(message),
        limit: 1,
        ..Default::default()
    };
    store.dead_letters(query).await.unwrap()[0].id
}

/// Sends a dead letter again, as the replayer does.
async fn replay(store: &Store, letter: u64, to: Option<&str>) {
    let (from, taken) = (DeadState::Open, DeadState::Replaying);
    assert!(store.change_dead_letter(letter, from, taken).await.unwrap());
    let to = to.map(ToOwned::to_owned);
    assert!(store.dead_letter_sent(letter, to).await.unwrap());
}

#[tokio::test]
async fn a_run_is_followed_from_its_tick_to_its_last_message() {
    let store = begun().await;
    assert_eq!(sums(&store, "poll").await, (1, 0, 0));
    let poll = |entries: &[Entry]| report("poll", &["shape", "audit"], entries);
    note(&store, vec![poll(&[emitted(11), emitted(12)])]).await;
    assert_eq!(sums(&store, "shape").await, (2, 0, 0));
    assert_eq!(sums(&store, "audit").await, (2, 0, 0));
    note(&store, vec![poll(&[done(RUN)])]).await;
    end(&store).await;
    let shape = report("shape", &["crm"], &[emitted(21), done(11), done(12)]);
    let audit = report("audit", &[], &[done(11), done(12)]);
    let noted = note(&store, vec![shape, audit]).await;
    assert_eq!((noted.entries, noted.finished.len()), (5, 0));
    assert!(!is_finished(&store).await, "one is at the CRM");
    let noted = note(&store, vec![report("crm", &[], &[done(21)])]).await;
    assert_eq!(noted.finished, [id(RUN)]);
    assert!(is_finished(&store).await);
    assert_eq!(sums(&store, "shape").await, (0, 2, 0));
    assert_eq!(sums(&store, "audit").await, (0, 2, 0));
    assert_eq!(sums(&store, "crm").await, (0, 1, 0));
}

#[tokio::test]
async fn a_run_is_not_finished_before_its_tick_has_ended() {
    let store = begun().await;
    note(&store, vec![report("poll", &["crm"], &[done(RUN)])]).await;
    assert!(!is_finished(&store).await, "its end is not heard yet");
    end(&store).await;
    assert!(is_finished(&store).await);
}

/// What is said of a run with some messages at two steps, some of them dead: in the order in which
/// it is true.
fn story() -> Vec<Report> {
    let mut all = Vec::new();
    for number in 10..16 {
        all.push(report("poll", &["shape"], &[emitted(number)]));
    }
    all.push(report("poll", &["shape"], &[done(RUN)]));
    for number in 10..16 {
        let out = [emitted(number + 10), emitted(number + 20), done(number)];
        all.push(report("shape", &["crm"], &out));
    }
    // The dead ones, 20 and 25, are said by their letters.
    for number in (21..25).chain(30..36) {
        all.push(report("crm", &[], &[done(number)]));
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_run_is_finished_exactly_when_everything_that_came_of_it_is_settled(
        order in Just(story()).prop_shuffle(),
        twice in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
        letters_at in 0_usize..24,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let store = begun().await;
            end(&store).await;
            let mut order = order;
            for index in &twice {
                let again = index.get(&order).clone();
                order.push(again);
            }
            let count = order.len();
            let mut said = BTreeSet::new();
            let all: BTreeSet<String> = story().iter().map(|it| format!("{it:?}")).collect();
            for (at, report) in order.into_iter().enumerate() {
                if at == letters_at.min(count - 1) {
                    for number in [20, 25] {
                        die(&store, letter(number, "crm", 0)).await;
                    }
                }
                said.insert(format!("{report:?}"));
                note(&store, vec![report]).await;
                // What is open is known to be open as soon as whoever made it said so, so nothing
                // that is said earlier ends the run for good.
                if said == all && at >= letters_at.min(count - 1) {
                    assert!(is_finished(&store).await);
                }
            }
            assert_eq!(sums(&store, "poll").await, (0, 1, 0));
            assert_eq!(sums(&store, "shape").await, (0, 6, 0));
            assert_eq!(sums(&store, "crm").await, (0, 10, 2));
            assert!(is_finished(&store).await);
        });
    }

    /// In the order that agents keep (what a message made is said before that it is done), it is
    /// never finished too early, however the agents are interleaved.
    #[test]
    fn a_run_is_never_finished_too_early(seed in any::<u64>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let store = begun().await;
            end(&store).await;
            let mut left = story();
            let mut chance = seed | 1;
            die(&store, letter(20, "crm", 0)).await;
            die(&store, letter(25, "crm", 0)).await;
            while !left.is_empty() {
                // Everybody says his own in order; who says next is left to chance.
                chance ^= chance << 13;
                chance ^= chance >> 7;
                chance ^= chance << 17;
                let step = ["poll", "shape", "crm"][usize::try_from(chance % 3).unwrap()];
                let Some(at) = left.iter().position(|it| it.0.identity.step == step) else {
                    continue;
                };
                note(&store, vec![left.remove(at)]).await;
                assert_eq!(is_finished(&store).await, left.is_empty());
            }
        });
    }
}

#[tokio::test]
async fn a_replay_opens_its_run_again() {
    let store = begun().await;
    let poll = report("poll", &["crm"], &[emitted(11), emitted(12), done(RUN)]);
    note(&store, vec![poll]).await;
    end(&store).await;
    note(&store, vec![report("crm", &["log"], &[done(11)])]).await;
    let number = die(&store, letter(12, "crm", 0)).await;
    assert_eq!(sums(&store, "crm").await, (0, 1, 1));
    assert!(is_finished(&store).await);
    // Much later, when only the dead are remembered.
    store.forget_run_messages(1_000, 100).await.unwrap();
    replay(&store, number, None).await;
    assert_eq!(sums(&store, "crm").await, (1, 1, 0));
    assert!(!is_finished(&store).await);
    let of_replay = Entry::Emitted {
        id: id(21),
        way: 0,
        of_replayed: true,
    };
    let done_again = Entry::Done {
        id: id(12),
        replays: 1,
    };
    note(
        &store,
        vec![report("crm", &["log"], &[of_replay, done_again])],
    )
    .await;
    assert_eq!(sums(&store, "crm").await, (0, 2, 0));
    assert!(
        !is_finished(&store).await,
        "what came of the replay is open"
    );
    note(&store, vec![report("log", &[], &[done(21)])]).await;
    assert!(is_finished(&store).await);
}

#[tokio::test]
async fn a_replay_that_is_done_before_it_is_noted_stays_done() {
    let store = begun().await;
    note(
        &store,
        vec![report("poll", &["crm"], &[emitted(12), done(RUN)])],
    )
    .await;
    end(&store).await;
    let number = die(&store, letter(12, "crm", 0)).await;
    let again = Entry::Done {
        id: id(12),
        replays: 1,
    };
    note(&store, vec![report("crm", &[], &[again])]).await;
    replay(&store, number, None).await;
    assert_eq!(sums(&store, "crm").await, (0, 1, 0));
    assert!(is_finished(&store).await);
    // Dead once more, with a letter of its own.
    die(&store, letter(12, "crm", 2)).await;
    assert_eq!(sums(&store, "crm").await, (0, 0, 1));
}

#[tokio::test]
async fn a_replay_from_an_earlier_step_moves_the_message_there() {
    let store = begun().await;
    note(&store, vec![report("poll", &["shape"], &[done(RUN)])]).await;
    end(&store).await;
    let number = die(&store, letter(12, "crm", 0)).await;
    assert_eq!(sums(&store, "crm").await, (0, 0, 1));
    replay(&store, number, Some("shape")).await;
    assert_eq!(sums(&store, "shape").await, (1, 0, 0));
    assert_eq!(sums(&store, "crm").await, (0, 1, 0));
}

#[tokio::test]
async fn what_is_said_after_a_run_is_forgotten_changes_no_sum() {
    let store = begun().await;
    let poll = report("poll", &["crm"], &[emitted(11), done(RUN)]);
    note(&store, vec![poll.clone()]).await;
    end(&store).await;
    let crm = report("crm", &["log"], &[emitted(21), done(11)]);
    note(&store, vec![crm.clone()]).await;
    note(&store, vec![report("log", &[], &[done(21)])]).await;
    let before = known(&store).await;
    assert!(before.finished_at.is_some());
    assert_eq!(store.forget_run_messages(100, 100).await.unwrap(), 0);
    for _ in 0..2 {
        note(&store, vec![poll.clone(), crm.clone()]).await;
        assert_eq!(known(&store).await, before);
        assert!(store.forget_run_messages(101, 2).await.unwrap() <= 2);
    }
    store.forget_run_messages(101, 100).await.unwrap();
    let left = store.with("count", |database| {
        database.query_row("SELECT count(*) FROM run_messages", [], |row| {
            row.get::<_, u64>(0)
        })
    });
    assert_eq!(left.await.unwrap(), 0);
    note(&store, vec![poll, crm]).await;
    assert_eq!(known(&store).await, before);
}

#[tokio::test]
async fn what_is_of_no_tracked_run_is_not_kept() {
    let store = store().await;
    let untracked = RunRecord {
        tracked: false,
        ..record(RUN)
    };
    assert!(store.run_started(&untracked).await.unwrap());
    note(&store, vec![report("poll", &["crm"], &[emitted(11)])]).await;
    let known = known(&store).await;
    assert!(known.steps.is_empty() && !known.tracked);
}

#[tokio::test]
async fn what_was_lost_is_said() {
    let store = begun().await;
    let lost = report("poll", &["crm"], &[emitted(11), Entry::Lost, done(RUN)]);
    note(&store, vec![lost]).await;
    assert_eq!(known(&store).await.lost.as_deref(), Some(REPORT_LOST));
    // What was looked for and not found may turn up.
    let store = begun().await;
    note(
        &store,
        vec![report("poll", &["crm"], &[emitted(11), done(RUN)])],
    )
    .await;
    end(&store).await;
    assert_eq!(store.quiet_runs("orders", 100, 9).await.unwrap(), []);
    assert_eq!(store.quiet_runs("orders", 101, 9).await.unwrap(), [id(RUN)]);
    store.runs_lost(vec![id(RUN)], NOWHERE).await.unwrap();
    assert_eq!(store.quiet_runs("orders", 101, 9).await.unwrap(), []);
    assert_eq!(known(&store).await.lost.as_deref(), Some(NOWHERE));
    note(&store, vec![report("crm", &[], &[done(11)])]).await;
    let known = known(&store).await;
    assert!(known.lost.is_none() && known.finished_at.is_some());
}

#[tokio::test]
async fn a_request_to_a_webhook_is_a_run_that_begins_with_what_is_said_of_it() {
    let store = store().await;
    let runs = WebhookRuns {
        version: 1,
        trigger: "hook".into(),
        takers: vec!["crm".into(), "log".into()],
    };
    let webhooks = Arc::new(BTreeMap::from([("orders".to_owned(), runs)]));
    let say = async |step: &str| {
        let reports = Arc::new(vec![report(step, &[], &[done(RUN)])]);
        let noted = store.note_runs(reports, Arc::clone(&webhooks), 100);
        noted.await.unwrap().finished
    };
    assert_eq!(say("crm").await, []);
    assert_eq!(sums(&store, "log").await, (1, 0, 0));
    let run = store.run(id(RUN)).await.unwrap().unwrap();
    assert_eq!((run.why, run.step.as_str()), (Why::Webhook, "hook"));
    assert_eq!(say("log").await, [id(RUN)]);
    store.forget_run_messages(101, 100).await.unwrap();
    assert!(store.run(id(RUN)).await.unwrap().is_none());
}

#[tokio::test]
async fn a_message_that_went_to_another_step_is_open_there() {
    let store = begun().await;
    note(
        &store,
        vec![report("poll", &["old"], &[emitted(11), done(RUN)])],
    )
    .await;
    end(&store).await;
    store
        .run_message_moved(&letter(11, "old", 0), "new", 100)
        .await
        .unwrap();
    assert_eq!(sums(&store, "old").await, (0, 1, 0));
    assert_eq!(sums(&store, "new").await, (1, 0, 0));
    assert!(!is_finished(&store).await);
}

#[tokio::test]
async fn a_step_that_takes_the_messages_of_one_that_is_gone_settles_them() {
    let store = begun().await;
    let poll = report("poll", &["old"], &[emitted(11), emitted(12), done(RUN)]);
    note(&store, vec![poll]).await;
    end(&store).await;
    let version = NewVersion {
        flow: "orders".into(),
        steps: vec!["poll".into(), "new".into()],
        removed: vec!["old".into()],
        moves: [("old".to_owned(), "new".to_owned())].into(),
        ..NewVersion::default()
    };
    store.store_version(version).await.unwrap();
    note(&store, vec![report("new", &[], &[done(11)])]).await;
    assert_eq!(sums(&store, "old").await, (1, 1, 0));
    die(&store, letter(12, "new", 0)).await;
    assert_eq!(sums(&store, "old").await, (0, 2, 0));
    assert_eq!(sums(&store, "new").await, (0, 1, 1));
    assert!(is_finished(&store).await);
}

#[tokio::test]
async fn a_run_that_nobody_has_is_cancelled_at_once() {
    let store = begun().await;
    let cancel = async || store.cancel_run(id(RUN), 7).await.unwrap();
    assert_eq!(cancel().await, Cancelling::Ended);
    assert_eq!(cancel().await, Cancelling::Over(RunState::Cancelled));
    assert!(is_finished(&store).await);
    assert!(
        store
            .run_began(id(RUN), None, 8)
            .await
            .unwrap()
            .is_cancelled
    );
    // One that an agent has, when it is put off.
    assert!(store.run_started(&record(2)).await.unwrap());
    assert!(!store.run_began(id(2), None, 8).await.unwrap().is_cancelled);
    assert_eq!(store.cancel_run(id(2), 9).await.unwrap(), Cancelling::Asked);
    assert_eq!(store.runs_to_cancel().await.unwrap().len(), 1);
    assert!(store.run_began(id(2), None, 9).await.unwrap().is_cancelled);
    assert!(store.run_retries(id(2), "503", 99, false).await.unwrap());
    let run = store.run(id(2)).await.unwrap().unwrap();
    assert_eq!(run.state, RunState::Cancelled);
    assert!(store.runs_to_cancel().await.unwrap().is_empty());
    // And one that waits to be tried again.
    assert!(store.run_started(&record(3)).await.unwrap());
    store.run_began(id(3), None, 8).await.unwrap();
    store.run_retries(id(3), "503", 99, true).await.unwrap();
    assert_eq!(store.cancel_run(id(3), 9).await.unwrap(), Cancelling::Ended);
    assert_eq!(
        store.cancel_run(id(9), 9).await.unwrap(),
        Cancelling::Unknown
    );
}

#[tokio::test]
async fn a_dead_tick_settles_its_run() {
    let store = begun().await;
    note(&store, vec![report("poll", &["crm"], &[emitted(11)])]).await;
    let number = die(&store, letter(RUN, "poll", 0)).await;
    assert_eq!(sums(&store, "poll").await, (0, 0, 1));
    assert!(!is_finished(&store).await);
    note(&store, vec![report("crm", &[], &[done(11)])]).await;
    assert!(is_finished(&store).await);
    // A tick is not sent again: a new run begins in its place.
    replay(&store, number, None).await;
    assert!(is_finished(&store).await);
}

#[tokio::test]
async fn what_an_abandoned_run_left_is_counted_to_its_end() {
    let store = begun().await;
    note(&store, vec![report("poll", &["crm"], &[emitted(11)])]).await;
    let end = store.run_ended(id(RUN), RunState::Abandoned, 9, None, Some("gone".into()));
    assert!(end.await.unwrap());
    assert_eq!(sums(&store, "poll").await, (0, 1, 0));
    assert!(!is_finished(&store).await);
    note(&store, vec![report("crm", &[], &[done(11)])]).await;
    assert!(is_finished(&store).await);
}
