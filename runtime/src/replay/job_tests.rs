//! Tests of jobs, on a simulated broker.

use serde_json::value::RawValue;
use towpath_protocol::MessageId;

use super::*;
use crate::broker::simulated::Faults;
use crate::replay::tests::{LINE, World, letter, world};
use crate::store::records::{DeadLetterRecord, DeadState};
use crate::store::replay_jobs::NewJob;

/// A letter whose message entered the flow at `at`.
fn numbered(number: u8, at: u64) -> DeadLetterRecord {
    let id = MessageId::from_bytes([number; 16]);
    let line = LINE
        .replace("00000000000000000000000000000001", &id.to_string())
        .replace(r#""at":5"#, &format!(r#""at":{at}"#));
    DeadLetterRecord {
        message_id: id,
        message: RawValue::from_string(line).unwrap(),
        ..letter("crm", None, LINE)
    }
}

struct Running {
    stop: CancellationToken,
    task: JoinSet<()>,
}

impl Running {
    fn start(world: &World) -> Self {
        let stop = CancellationToken::new();
        let mut task = JoinSet::new();
        task.spawn(world.replayer.clone().run(stop.clone()));
        Self { stop, task }
    }

    async fn stop(mut self) {
        self.stop.cancel();
        self.task.join_next().await.unwrap().unwrap();
    }
}

async fn until(world: &World, job: u64, is: impl Fn(&JobRecord) -> bool) -> JobRecord {
    for _ in 0..3_000 {
        let now = world.store.job(job).await.unwrap().unwrap();
        if is(&now) {
            return now;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{:?}", world.store.job(job).await);
}

fn lines(world: &World) -> Vec<String> {
    let ready = world.ready("crm");
    ready
        .iter()
        .flat_map(|body| body.lines())
        .map(|line| line[7..9].to_owned())
        .collect()
}

async fn begin(world: &World, ids: Vec<u64>, rate: Option<f64>) -> JobRecord {
    let job = NewJob {
        what: "test".into(),
        from_step: None,
        rate,
    };
    world.replayer.begin(job, ids).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_job_sends_each_letter_once_and_in_order() {
    let world = world().await;
    let mut ids = Vec::new();
    for number in 1..=9_u8 {
        ids.push(world.store(numbered(number, 100 - u64::from(number))).await);
    }
    let running = Running::start(&world);
    let job = begin(&world, ids.clone(), None).await;
    let again = world.replayer.replay(ids[0], None, None).await;
    let done = until(&world, job.id, |job| job.state.is_over()).await;
    assert_eq!(
        (done.state, done.sent, done.skipped),
        (JobState::Done, 9, 0)
    );
    let expect: Vec<String> = (1..=9).rev().map(|number| format!("0{number}")).collect();
    assert_eq!(lines(&world), expect, "as they entered the flow");
    assert!(again.is_err(), "{again:?}");
    running.stop().await;
}

#[tokio::test]
async fn the_second_of_two_replays_says_which_job_has_it() {
    let world = world().await;
    let id = world.store(numbered(1, 1)).await;
    let job = begin(&world, vec![id], None).await;
    let error = world.replayer.replay(id, None, None).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("dead letter {id} is being replayed by job {}", job.id)
    );
    let error = world.replayer.discard(id).await.unwrap_err();
    assert!(matches!(error, ReplayError::InJob { .. }), "{error}");
    let empty = world.replayer.begin(NewJob::default(), vec![id]).await;
    assert!(empty.unwrap().is_none());
}

#[tokio::test]
async fn a_full_queue_slows_a_job_and_does_not_end_it() {
    let world = world().await;
    let id = world.store(numbered(1, 1)).await;
    world.broker.set_up(false);
    let running = Running::start(&world);
    let job = begin(&world, vec![id], None).await;
    let held = until(&world, job.id, |job| job.waits.is_some()).await;
    assert_eq!(held.state, JobState::Running);
    assert_eq!(world.state(id).await, DeadState::Replaying);
    world.broker.set_up(true);
    let done = until(&world, job.id, |job| job.state.is_over()).await;
    assert_eq!((done.sent, done.waits), (1, None));
    assert_eq!(world.state(id).await, DeadState::Replayed);
    running.stop().await;
}

#[tokio::test]
async fn a_job_that_was_cut_off_goes_on() {
    let world = world().await;
    let mut ids = Vec::new();
    for number in 1..=4 {
        ids.push(world.store(numbered(number, u64::from(number))).await);
    }
    let running = Running::start(&world);
    let job = begin(&world, ids, Some(1.0)).await;
    until(&world, job.id, |job| job.sent >= 1).await;
    running.stop().await;
    let cut = world.store.job(job.id).await.unwrap().unwrap();
    assert_eq!(cut.state, JobState::Running, "{cut:?}");
    // The broker takes the next, and the word of it is lost with the process.
    world.broker.set_faults(Faults {
        confirm_lost: 1.0,
        ..Faults::default()
    });
    let letters = world.store.job_letters(job.id, 1).await.unwrap();
    let progress = world.replayer.send_all(&letters, None).await;
    assert!(progress.sent.is_empty() && progress.waits.is_some());
    world.broker.set_faults(Faults::default());
    let running = Running::start(&world);
    until(&world, job.id, |job| job.state.is_over()).await;
    let mut sent = lines(&world);
    assert_eq!(sent.len(), 5, "one batch of one was sent twice");
    sent.dedup();
    assert_eq!(sent, ["01", "02", "03", "04"]);
    running.stop().await;
}

#[tokio::test]
async fn a_cancelled_job_gives_back_what_it_has_not_sent() {
    let world = world().await;
    let mut ids = Vec::new();
    for number in 1..=3 {
        ids.push(world.store(numbered(number, u64::from(number))).await);
    }
    let running = Running::start(&world);
    let job = begin(&world, ids.clone(), Some(0.01)).await;
    until(&world, job.id, |job| job.sent == 1).await;
    assert!(world.replayer.cancel(job.id).await.unwrap());
    let over = until(&world, job.id, |job| job.state.is_over()).await;
    assert_eq!((over.state, over.sent), (JobState::Cancelled, 1));
    assert_eq!(world.state(ids[0]).await, DeadState::Replayed);
    assert_eq!(world.state(ids[2]).await, DeadState::Open);
    world.replayer.replay(ids[2], None, None).await.unwrap();
    assert_eq!(lines(&world), ["01", "03"]);
    running.stop().await;
}

#[tokio::test]
async fn a_letter_that_cannot_go_is_open_again() {
    let world = world().await;
    let gone = world.store(letter("gone", None, LINE)).await;
    let broken = DeadLetterRecord {
        message: RawValue::from_string("\"garbage\"".into()).unwrap(),
        ..numbered(8, 1)
    };
    let broken = world.store(broken).await;
    let good = world.store(numbered(1, 1)).await;
    let running = Running::start(&world);
    let job = begin(&world, vec![gone, broken, good], None).await;
    let done = until(&world, job.id, |job| job.state.is_over()).await;
    assert_eq!((done.sent, done.skipped), (1, 2));
    assert!(done.reason.is_some(), "{done:?}");
    for id in [gone, broken] {
        assert_eq!(world.state(id).await, DeadState::Open);
    }
    running.stop().await;
}

#[test]
fn a_rate_is_kept() {
    let mut pace = Pace::new(Some(500.0));
    assert_eq!(pace.together, 50);
    let began = Instant::now();
    pace.due = began;
    pace.sent(began, 50);
    assert_eq!(pace.due - began, Duration::from_millis(100));
    assert_eq!(Pace::new(Some(0.5)).together, 1);
    assert_eq!(Pace::new(None).together, TOGETHER);
}

#[test]
fn batches_are_bounded() {
    let kept = |_: usize| crate::store::dead_letters::KeptLetter {
        record: letter("crm", None, LINE),
        fingerprint: String::new(),
        repeats: 0,
        last_at: 0,
        edited: None,
        job: None,
    };
    let letters: Vec<_> = (0..4).map(kept).collect();
    let line = "x".repeat(BATCH_BYTES / 2);
    let large = "x".repeat(BATCH_BYTES * 2);
    let lines = letters
        .iter()
        .zip([line.clone(), line.clone(), line, large]);
    let sizes: Vec<usize> = batches(lines.collect()).map(|batch| batch.len()).collect();
    assert_eq!(sizes, [2, 1, 1]);
}
