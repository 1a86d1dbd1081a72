//! Replays of many dead letters: jobs that go on until they are done or cancelled.
//!
//! # Invariants
//!
//! - `a_job_sends_each_letter_once_and_in_order`: those that entered their flow first go first, one
//!   batch after the other, each confirmed before the next, so messages of one key stay in order.
//! - `a_job_that_was_cut_off_goes_on`: letters are marked after they were sent. Cut off in between,
//!   one batch is sent again, with the same ids; nothing is left out.
//! - `a_full_queue_slows_a_job_and_does_not_end_it`.
//! - `a_letter_that_cannot_go_is_open_again`, and counted.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use towpath_protocol::message::BATCH_TYPE;

use super::{ReplayError, Replayer, Sending};
use crate::broker::Publication;
use crate::engine::chain;
use crate::store::StoreError;
use crate::store::dead_letters::KeptLetter;
use crate::store::replay_jobs::{JobRecord, JobState, Progress};

/// How many letters are sent in one go: as many are sent twice if a job is cut off, and as many are
/// held by one replica at least.
const TOGETHER: u32 = 50;

/// How many bytes are in one batch, unless one message alone has more: far below what the broker
/// takes.
const BATCH_BYTES: usize = 512 << 10;

/// How long to wait after the broker or the store refused; doubled each time…
const BACKOFF: Duration = Duration::from_millis(250);

/// …up to this.
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// How often to look for jobs nobody told of.
const LOOK: Duration = Duration::from_secs(30);

impl Replayer {
    /// Works on all jobs until `shutdown`, those that were under way when the process began
    /// included.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut jobs = JoinSet::new();
        let mut under_way = HashSet::new();
        while !shutdown.is_cancelled() {
            match self.scheduler.store.jobs_under_way().await {
                Ok(found) => {
                    for job in found {
                        if under_way.insert(job.id) {
                            jobs.spawn(self.clone().work(job, shutdown.clone()));
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(error = chain(&error), "cannot look for replays to do");
                }
            }
            // Cancel-safe: a job that ended and is not taken note of is taken note of later.
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = self.changed.notified() => {}
                Some(ended) = jobs.join_next() => match ended {
                    Ok(id) => { under_way.remove(&id); }
                    Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                    Err(_) => {}
                },
                () = tokio::time::sleep(LOOK) => {}
            }
        }
        // Each ends after what it is just sending.
        while jobs.join_next().await.is_some() {}
    }

    /// Sends the letters of a job until there are none, or it is cancelled, or `shutdown`.
    async fn work(self, job: JobRecord, shutdown: CancellationToken) -> u64 {
        let store = &self.scheduler.store;
        let mut pace = Pace::new(job.rate);
        let mut backoff = BACKOFF;
        tracing::info!(
            job = job.id,
            what = job.what,
            total = job.total,
            "replaying dead letters"
        );
        while !shutdown.is_cancelled() {
            let wait = match self.step(&job, &mut pace).await {
                Ok(Step::Ended(state)) => {
                    tracing::info!(job = job.id, ?state, "a replay ended");
                    return job.id;
                }
                Ok(Step::Sent) => {
                    backoff = BACKOFF;
                    pace.due
                }
                Ok(Step::Held) => {
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                    Instant::now() + backoff
                }
                Err(error) => {
                    tracing::warn!(
                        job = job.id,
                        error = chain(&error),
                        "a replay waits for the store"
                    );
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                    Instant::now() + backoff
                }
            };
            // Cancel-safe: all of them only wait.
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = self.cancelled(store, job.id) => {}
                () = tokio::time::sleep_until(wait) => {}
            }
        }
        job.id
    }

    /// Waits until somebody cancels the job.
    async fn cancelled(&self, store: &crate::store::Store, job: u64) {
        loop {
            let told = self.cancels.notified();
            if let Ok(Some(now)) = store.job(job).await
                && now.state != JobState::Running
            {
                return;
            }
            told.await;
        }
    }

    /// Sends the next letters of a job.
    async fn step(&self, job: &JobRecord, pace: &mut Pace) -> Result<Step, StoreError> {
        let store = &self.scheduler.store;
        let state = store.job(job.id).await?.map(|now| now.state);
        if state != Some(JobState::Running) {
            store.end_job(job.id, JobState::Cancelled).await?;
            return Ok(Step::Ended(JobState::Cancelled));
        }
        if Instant::now() < pace.due {
            return Ok(Step::Sent);
        }
        let letters = store.job_letters(job.id, pace.together).await?;
        if letters.is_empty() {
            store.end_job(job.id, JobState::Done).await?;
            return Ok(Step::Ended(JobState::Done));
        }
        let began = Instant::now();
        let progress = self.send_all(&letters, job.from_step.as_deref()).await;
        pace.sent(began, progress.sent.len());
        let is_held = progress.waits.is_some();
        // What was sent must not be sent again because the store was in trouble just then.
        while let Err(error) = store.job_progress(job.id, progress.clone()).await {
            tracing::error!(
                job = job.id,
                error = chain(&error),
                "cannot note what a replay has sent; trying on"
            );
            tokio::time::sleep(BACKOFF_MAX / 10).await;
        }
        Ok(if is_held { Step::Held } else { Step::Sent })
    }

    /// Sends letters in their order; ends at the first batch that the broker does not take.
    async fn send_all(&self, letters: &[KeptLetter], from: Option<&str>) -> Progress {
        let mut progress = Progress::default();
        let mut queues: BTreeMap<(String, String), Vec<(&KeptLetter, String)>> = BTreeMap::new();
        for letter in letters {
            let sending = match self.sending(letter, None, from) {
                Ok(Sending::Message {
                    exchange,
                    key,
                    line,
                }) => {
                    queues
                        .entry((exchange, key))
                        .or_default()
                        .push((letter, line));
                    continue;
                }
                Ok(Sending::Tick { payload }) => self.fire(letter, payload).await.map(drop),
                Err(error) => Err(error),
            };
            match sending {
                Ok(()) => self.sent(letter, from, &mut progress),
                Err(error) => skip(letter, &error, &mut progress),
            }
        }
        for ((exchange, key), lines) in queues {
            for batch in batches(lines) {
                let lines: Vec<&str> = batch.iter().map(|(_, line)| line.as_str()).collect();
                let body = lines.join("\n") + "\n";
                let publication = Publication {
                    exchange: exchange.clone(),
                    key: key.clone(),
                    kind: BATCH_TYPE,
                    body: body.into(),
                    count: u32::try_from(batch.len()).unwrap_or(u32::MAX),
                };
                if let Err(error) = self.scheduler.broker.publish(publication).await {
                    progress.waits = Some(chain(&error));
                    return progress;
                }
                for (letter, _) in batch {
                    self.sent(letter, from, &mut progress);
                }
            }
        }
        progress
    }

    fn sent(&self, letter: &KeptLetter, from: Option<&str>, progress: &mut Progress) {
        self.scheduler.metrics.replayed(letter);
        progress.sent.push((letter.id, self.takers(letter, from)));
    }
}

fn skip(letter: &KeptLetter, error: &ReplayError, progress: &mut Progress) {
    progress.skipped.push(letter.id);
    progress.reason = Some(format!("dead letter {}: {}", letter.id, chain(error)));
}

/// What one step of a job came to.
enum Step {
    /// Some letters were sent, or it is not time.
    Sent,
    /// The broker did not take some.
    Held,
    /// There is nothing more to do.
    Ended(JobState),
}

/// Parts of what goes to one queue, each small enough.
fn batches(lines: Vec<(&KeptLetter, String)>) -> impl Iterator<Item = Vec<(&KeptLetter, String)>> {
    let mut rest = lines.into_iter().peekable();
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let batch: Vec<_> = std::iter::from_fn(|| {
            let next = rest.next_if(|(_, line)| bytes == 0 || bytes + line.len() <= BATCH_BYTES)?;
            bytes += next.1.len();
            Some(next)
        })
        .collect();
        (!batch.is_empty()).then_some(batch)
    })
}

/// How fast a job sends.
struct Pace {
    rate: Option<f64>,
    /// How many at a time: a tenth of a second's worth.
    together: u32,
    /// When the next may be sent.
    due: Instant,
}

impl Pace {
    fn new(rate: Option<f64>) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is clamped to what fits"
        )]
        let together = rate.map_or(TOGETHER, |rate| {
            (rate / 10.0).clamp(1.0, f64::from(TOGETHER)) as u32
        });
        Self {
            rate,
            together,
            due: Instant::now(),
        }
    }

    /// Notes that some were sent. What was late is not made up for in one go.
    fn sent(&mut self, began: Instant, count: usize) {
        if let Some(rate) = self.rate {
            let latest = began.checked_sub(Duration::from_secs(1)).unwrap_or(began);
            self.due = self.due.max(latest) + Duration::from_secs_f64(count as f64 / rate);
        }
    }
}

#[cfg(test)]
#[path = "job_tests.rs"]
mod tests;
