//! Jobs that send dead letters again: which letters each has, and how far it is.
//!
//! # Invariants
//!
//! - `a_letter_is_in_one_job_at_a_time`: a job takes only letters that are open, in the transaction
//!   that begins it.
//! - `what_a_job_does_not_send_is_open_again`, in the transaction that says so.
//! - `a_job_goes_on_where_it_was`: how far it is is stored with what it sent.

use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};

use super::dead_letters::{KeptLetter, one, read_letter};
use super::{Store, StoreError, columns, now_ms, tracking};

/// A job to begin.
#[derive(Debug, Clone, Default)]
pub struct NewJob {
    /// Which letters it was asked for, for people.
    pub what: String,
    /// The step that gets them, if it is not the one that failed.
    pub from_step: Option<String>,
    /// At most this many a second.
    pub rate: Option<f64>,
}

/// A job.
#[derive(Debug, Clone, PartialEq)]
pub struct JobRecord {
    /// Its number.
    pub id: u64,
    /// Which letters it was asked for, for people.
    pub what: String,
    /// The step that gets them, if it is not the one that failed.
    pub from_step: Option<String>,
    /// At most this many a second.
    pub rate: Option<f64>,
    /// How far it is.
    pub state: JobState,
    /// How many letters it took.
    pub total: u64,
    /// How many it sent.
    pub sent: u64,
    /// How many it could not send: they are open again.
    pub skipped: u64,
    /// Why the last letter was skipped.
    pub reason: Option<String>,
    /// Why it waits, if it does.
    pub waits: Option<String>,
    /// When it began, in milliseconds since 1970.
    pub created_at: u64,
    /// When anything about it changed last, in milliseconds since 1970.
    pub changed_at: u64,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// It sends, or waits until it can.
    Running,
    /// Somebody cancelled it; it ends after what it is just sending.
    Cancelling,
    /// It has nothing left.
    Done,
    /// It was cancelled; what it had not sent is open again.
    Cancelled,
}

impl JobState {
    /// Says whether nothing will happen any more.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Cancelled)
    }
}

/// What a job did with some of its letters.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// These were sent.
    pub sent: Vec<u64>,
    /// These cannot be sent, and are open again.
    pub skipped: Vec<u64>,
    /// Why the last of them cannot.
    pub reason: Option<String>,
    /// Why the job waits now, if it does.
    pub waits: Option<String>,
}

impl Store {
    /// Begins a job with those of the letters that are open. None if none of them is.
    pub async fn begin_job(
        &self,
        job: NewJob,
        letters: Vec<u64>,
    ) -> Result<Option<JobRecord>, StoreError> {
        self.with("begin a replay", move |database| {
            let transaction = database.transaction()?;
            let now = now_ms();
            transaction.execute(
                "INSERT INTO replay_jobs (what, from_step, rate, state, total, sent, skipped, created_at, changed_at)
                 VALUES (?1, ?2, ?3, 'running', 0, 0, 0, ?4, ?4)",
                params![job.what, job.from_step, job.rate, now],
            )?;
            let id = u64::try_from(transaction.last_insert_rowid()).unwrap_or_default();
            let mut total = 0;
            {
                let mut take = transaction.prepare_cached(
                    "UPDATE dead_letters SET state = 'replaying', job = ?2, changed_at = ?3
                     WHERE id = ?1 AND state = 'open'",
                )?;
                for letter in letters {
                    total += take.execute(params![letter, id, now])? as u64;
                }
            }
            if total == 0 {
                return Ok(None);
            }
            transaction.execute(
                "UPDATE replay_jobs SET total = ?2 WHERE id = ?1",
                params![id, total],
            )?;
            let job = read_one(&transaction, id)?;
            transaction.commit()?;
            Ok(job)
        })
        .await
    }

    /// A job.
    pub async fn job(&self, id: u64) -> Result<Option<JobRecord>, StoreError> {
        self.with("read a replay", move |database| {
            let transaction = database.transaction()?;
            read_one(&transaction, id)
        })
        .await
    }

    /// Jobs, newest first.
    pub async fn jobs(&self, limit: u32) -> Result<Vec<JobRecord>, StoreError> {
        self.with("list replays", move |database| {
            database
                .prepare_cached("SELECT * FROM replay_jobs ORDER BY id DESC LIMIT ?1")?
                .query_map([limit], read_job)?
                .collect()
        })
        .await
    }

    /// The jobs that are not over, oldest first.
    pub async fn jobs_under_way(&self) -> Result<Vec<JobRecord>, StoreError> {
        self.with("list replays", |database| {
            database
                .prepare_cached(
                    "SELECT * FROM replay_jobs WHERE state IN ('running', 'cancelling') ORDER BY id",
                )?
                .query_map([], read_job)?
                .collect()
        })
        .await
    }

    /// The next letters of a job: those that entered their flow first come first.
    pub async fn job_letters(&self, job: u64, limit: u32) -> Result<Vec<KeptLetter>, StoreError> {
        self.with("read the letters of a replay", move |database| {
            database
                .prepare_cached(
                    "SELECT * FROM dead_letters WHERE job = ?1 AND state = 'replaying'
                     ORDER BY entered_at, id LIMIT ?2",
                )?
                .query_map([job, u64::from(limit)], read_letter)?
                .collect()
        })
        .await
    }

    /// Notes what a job did.
    pub async fn job_progress(&self, job: u64, progress: Progress) -> Result<(), StoreError> {
        self.with("note how far a replay is", move |database| {
            let transaction = database.transaction()?;
            let now = now_ms();
            let mut counts = [0_u64; 2];
            {
                let mut mark = transaction.prepare_cached(
                    "UPDATE dead_letters SET state = ?3, job = ?4, changed_at = ?5
                     WHERE id = ?1 AND job = ?2 AND state = 'replaying'",
                )?;
                let to: Option<String> = transaction
                    .prepare_cached("SELECT from_step FROM replay_jobs WHERE id = ?1")?
                    .query_row([job], |row| row.get(0))
                    .optional()?
                    .flatten();
                for id in &progress.sent {
                    let sent = mark.execute(params![id, job, "replayed", job, now])? as u64;
                    counts[0] += sent;
                    if sent == 1
                        && let Some(letter) = one(&transaction, *id)?
                    {
                        tracking::replayed(&transaction, &letter, to.as_deref(), now)?;
                    }
                }
                for id in &progress.skipped {
                    let nobody = None::<u64>;
                    counts[1] += mark.execute(params![id, job, "open", nobody, now])? as u64;
                }
            }
            transaction.execute(
                "UPDATE replay_jobs SET sent = sent + ?2, skipped = skipped + ?3,
                        reason = coalesce(?4, reason), waits = ?5, changed_at = ?6
                 WHERE id = ?1",
                params![
                    job,
                    counts[0],
                    counts[1],
                    progress.reason,
                    progress.waits,
                    now
                ],
            )?;
            transaction.commit()
        })
        .await
    }

    /// Asks a job to end. Returns whether it was running.
    pub async fn cancel_job(&self, job: u64) -> Result<bool, StoreError> {
        self.with("cancel a replay", move |database| {
            let changed = database.execute(
                "UPDATE replay_jobs SET state = 'cancelling', changed_at = ?2
                 WHERE id = ?1 AND state = 'running'",
                params![job, now_ms()],
            )?;
            Ok(changed == 1)
        })
        .await
    }

    /// Ends a job. What it has not sent is open again.
    pub async fn end_job(&self, job: u64, state: JobState) -> Result<(), StoreError> {
        self.with("end a replay", move |database| {
            let transaction = database.transaction()?;
            let now = now_ms();
            transaction.execute(
                "UPDATE dead_letters SET state = 'open', job = NULL, changed_at = ?2
                 WHERE job = ?1 AND state = 'replaying'",
                params![job, now],
            )?;
            transaction.execute(
                "UPDATE replay_jobs SET state = ?2, waits = NULL, changed_at = ?3 WHERE id = ?1",
                params![job, columns::word(state), now],
            )?;
            transaction.commit()
        })
        .await
    }
}

fn read_one(transaction: &Transaction<'_>, id: u64) -> rusqlite::Result<Option<JobRecord>> {
    transaction
        .prepare_cached("SELECT * FROM replay_jobs WHERE id = ?1")?
        .query_row([id], read_job)
        .optional()
}

fn read_job(row: &Row<'_>) -> rusqlite::Result<JobRecord> {
    Ok(JobRecord {
        id: row.get("id")?,
        what: row.get("what")?,
        from_step: row.get("from_step")?,
        rate: row.get("rate")?,
        state: columns::unword(row, "state")?,
        total: row.get("total")?,
        sent: row.get("sent")?,
        skipped: row.get("skipped")?,
        reason: row.get("reason")?,
        waits: row.get("waits")?,
        created_at: row.get("created_at")?,
        changed_at: row.get("changed_at")?,
    })
}
