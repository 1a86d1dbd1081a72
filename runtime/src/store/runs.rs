//! Runs: firings of triggers.
//!
//! # Invariants
//!
//! - `a_trigger_has_one_active_run_at_a_time`: two would share one checkpoint.
//! - `at_most_one_further_run_is_remembered`.
//! - `an_end_is_an_end`: a run that has ended is never active again.

use rusqlite::{OptionalExtension, Row, params};
use towpath_protocol::MessageId;

use super::records::{RunRecord, RunState};
use super::{Store, StoreError, columns};

/// The most ended runs of a flow that are remembered.
const RUNS_MAX: u32 = 500;

impl Store {
    /// Records a run. Returns false, and records nothing, if there is no such flow or if it has an
    /// active run for this connection; of one that is to be remembered, if one is already.
    pub async fn run_started(&self, run: &RunRecord) -> Result<bool, StoreError> {
        let run = run.clone();
        self.with("record a run", move |database| {
            let transaction = database.transaction()?;
            let changed = transaction.execute(
                "INSERT INTO runs (id, flow, step, connection, version, why, state, due, started_at, ended_at,
                    emitted, attempts, next_at, reason, payload)
                 SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15
                 WHERE EXISTS (SELECT 1 FROM flows WHERE name = ?2)
                 ON CONFLICT DO NOTHING",
                params![
                    run.id.to_string(),
                    run.flow,
                    run.step,
                    run.connection,
                    run.version,
                    columns::word(run.why),
                    columns::word(run.state),
                    run.due,
                    run.started_at,
                    run.ended_at,
                    run.emitted,
                    run.attempts,
                    run.next_at,
                    run.reason,
                    run.payload.as_ref().map(|payload| payload.get()),
                ],
            )?;
            transaction.execute(
                "DELETE FROM runs WHERE flow = ?1 AND state NOT IN ('queued', 'recorded', 'published') AND due <
                 (SELECT due FROM runs WHERE flow = ?1 ORDER BY due DESC LIMIT 1 OFFSET ?2)",
                params![run.flow, RUNS_MAX],
            )?;
            transaction.commit()?;
            Ok(changed == 1)
        })
        .await
    }

    /// Lets the run that is remembered begin, unless one is active; it is due now, and makes up for
    /// whatever was due until now. Returns it.
    pub async fn run_released(
        &self,
        flow: &str,
        now: u64,
    ) -> Result<Option<RunRecord>, StoreError> {
        let flow = flow.to_owned();
        self.with("let a run begin", move |database| {
            database
                .prepare_cached(
                    "UPDATE runs SET state = 'recorded', due = ?2, started_at = ?2
                     WHERE flow = ?1 AND state = 'queued' AND NOT EXISTS (
                        SELECT 1 FROM runs WHERE flow = ?1 AND state IN ('recorded', 'published'))
                     RETURNING *",
                )?
                .query_row(params![flow, now], read_run)
                .optional()
        })
        .await
    }

    /// Says that the tick of a run is with the broker.
    pub async fn run_published(&self, run: MessageId) -> Result<(), StoreError> {
        self.with("record a published tick", move |database| {
            database.execute(
                "UPDATE runs SET state = 'published' WHERE id = ?1 AND state = 'recorded'",
                [run.to_string()],
            )?;
            Ok(())
        })
        .await
    }

    /// Says that an active run will be tried again.
    pub async fn run_retries(
        &self,
        run: MessageId,
        reason: &str,
        next: u64,
    ) -> Result<bool, StoreError> {
        let reason = reason.to_owned();
        self.with("record a failed attempt at a run", move |database| {
            let changed = database.execute(
                "UPDATE runs SET attempts = attempts + 1, reason = ?2, next_at = ?3
                 WHERE id = ?1 AND state IN ('recorded', 'published')",
                params![run.to_string(), reason, next],
            )?;
            Ok(changed == 1)
        })
        .await
    }

    /// Says how an active run ended. Returns whether it was active.
    pub async fn run_ended(
        &self,
        run: MessageId,
        state: RunState,
        at: u64,
        emitted: Option<u64>,
        reason: Option<String>,
    ) -> Result<bool, StoreError> {
        self.with("record the end of a run", move |database| {
            let changed = database.execute(
                "UPDATE runs SET state = ?2, ended_at = ?3, emitted = ?4, reason = ?5, next_at = NULL
                 WHERE id = ?1 AND state IN ('recorded', 'published')",
                params![run.to_string(), columns::word(state), at, emitted, reason],
            )?;
            Ok(changed == 1)
        })
        .await
    }

    /// The run of a flow that has not ended, if there is one.
    pub async fn active_run(&self, flow: &str) -> Result<Option<RunRecord>, StoreError> {
        self.one_run(
            "flow = ?1 AND state IN ('recorded', 'published') ORDER BY due DESC LIMIT 1",
            flow,
        )
        .await
    }

    /// The run of a flow that was due last, if it has begun.
    pub async fn last_run(&self, flow: &str) -> Result<Option<RunRecord>, StoreError> {
        Ok(self.last_runs(flow, 1).await?.pop())
    }

    /// The runs of a flow that have begun, the newest first.
    pub async fn last_runs(&self, flow: &str, limit: u32) -> Result<Vec<RunRecord>, StoreError> {
        let flow = flow.to_owned();
        self.with("read the last runs", move |database| {
            database
                .prepare_cached(
                    "SELECT * FROM runs WHERE flow = ?1 AND state <> 'queued'
                     ORDER BY due DESC, started_at DESC LIMIT ?2",
                )?
                .query_map(params![flow, limit], read_run)?
                .collect()
        })
        .await
    }

    /// A run.
    pub async fn run(&self, id: MessageId) -> Result<Option<RunRecord>, StoreError> {
        self.one_run("id = ?1", &id.to_string()).await
    }

    /// The last runs of a flow, newest first.
    pub async fn runs(&self, flow: &str, limit: u32) -> Result<Vec<RunRecord>, StoreError> {
        let flow = flow.to_owned();
        self.with("list runs", move |database| {
            database
                .prepare_cached(
                    "SELECT * FROM runs WHERE flow = ?1 ORDER BY due DESC, started_at DESC LIMIT ?2",
                )?
                .query_map(params![flow, limit], read_run)?
                .collect()
        })
        .await
    }

    async fn one_run(
        &self,
        which: &'static str,
        key: &str,
    ) -> Result<Option<RunRecord>, StoreError> {
        let key = key.to_owned();
        self.with("read a run", move |database| {
            database
                .prepare_cached(&format!("SELECT * FROM runs WHERE {which}"))?
                .query_row([key], read_run)
                .optional()
        })
        .await
    }
}

fn read_run(row: &Row<'_>) -> rusqlite::Result<RunRecord> {
    Ok(RunRecord {
        id: columns::id(row, "id")?,
        flow: row.get("flow")?,
        step: row.get("step")?,
        connection: row.get("connection")?,
        version: row.get("version")?,
        why: columns::unword(row, "why")?,
        state: columns::unword(row, "state")?,
        due: row.get("due")?,
        started_at: row.get("started_at")?,
        ended_at: row.get("ended_at")?,
        emitted: row.get("emitted")?,
        attempts: row.get("attempts")?,
        next_at: row.get("next_at")?,
        reason: row.get("reason")?,
        payload: columns::raw(row, "payload")?,
    })
}
