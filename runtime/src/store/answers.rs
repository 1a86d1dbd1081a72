//! What flows answered the requests that began their runs: kept with the runs.
//!
//! # Invariants
//!
//! - `the_first_answer_of_a_run_counts`.
//! - `answers_go_with_their_runs_the_oldest_first`.

use rusqlite::{OptionalExtension, params};
use towpath_protocol::MessageId;

use super::{Store, StoreError};

/// The most bytes of answers that are kept, beyond which the oldest go before their time: 256 MiB.
pub const ANSWERS_BYTES_MAX: u64 = 256 << 20;

/// An answer that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptAnswer {
    /// When it came, in milliseconds since 1970.
    pub at: u64,
    /// The answer, as JSON.
    pub answer: String,
}

/// What came of a request that somebody waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Its flow answered.
    Answered(KeptAnswer),
    /// Everything that came of it is settled, and nobody answered.
    Over {
        /// Some of it was given up.
        has_dead: bool,
    },
    /// It is under way.
    Open,
    /// Nothing is known of it any more.
    Unknown,
}

impl Store {
    /// Keeps answers, each with its run; a run has one, the first. Returns for each whether it is kept.
    pub async fn keep_answers(
        &self,
        answers: Vec<(MessageId, String)>,
        now: u64,
    ) -> Result<Vec<bool>, StoreError> {
        self.with("keep the answers of flows", move |database| {
            let transaction = database.transaction()?;
            let kept = {
                let mut insert = transaction.prepare_cached(
                    "INSERT INTO answers (run, at, bytes, answer)
                     SELECT ?1, ?2, ?3, ?4 WHERE EXISTS (SELECT 1 FROM runs WHERE id = ?1)
                     ON CONFLICT (run) DO NOTHING",
                )?;
                let kept = answers.iter().map(|(run, answer)| {
                    let kept = insert.execute(params![run.to_string(), now, answer.len(), answer]);
                    Ok(kept? == 1)
                });
                kept.collect::<rusqlite::Result<_>>()?
            };
            transaction.commit()?;
            Ok(kept)
        })
        .await
    }

    /// What a flow answered in a run.
    pub async fn answer_of(&self, run: MessageId) -> Result<Option<KeptAnswer>, StoreError> {
        self.with("read the answer of a run", move |database| {
            answer(database, &run.to_string())
        })
        .await
    }

    /// What came of a request that somebody waits for.
    pub async fn outcome_of(&self, run: MessageId) -> Result<Outcome, StoreError> {
        self.with("look for the answer of a run", move |database| {
            let run = run.to_string();
            if let Some(answer) = answer(database, &run)? {
                return Ok(Outcome::Answered(answer));
            }
            let found = database
                .prepare_cached(
                    "SELECT finished_at IS NOT NULL,
                         EXISTS (SELECT 1 FROM run_steps WHERE run = ?1 AND dead > 0)
                     FROM runs WHERE id = ?1",
                )?
                .query_row([run], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            Ok(match found {
                None => Outcome::Unknown,
                Some((false, _)) => Outcome::Open,
                Some((true, has_dead)) => Outcome::Over { has_dead },
            })
        })
        .await
    }

    /// Forgets answers that came before a time, and what is over [`ANSWERS_BYTES_MAX`]: the oldest
    /// first, at most `at_once`. Finished runs that were kept for them go as well. Returns how many.
    pub async fn forget_answers(&self, before: u64, at_once: u32) -> Result<usize, StoreError> {
        self.forget_answers_over(before, ANSWERS_BYTES_MAX, at_once)
            .await
    }

    async fn forget_answers_over(
        &self,
        before: u64,
        bytes_max: u64,
        at_once: u32,
    ) -> Result<usize, StoreError> {
        self.with("forget the answers of flows", move |database| {
            let transaction = database.transaction()?;
            let runs = transaction
                .prepare_cached(
                    "DELETE FROM answers
                     WHERE number IN (SELECT number FROM answers ORDER BY number LIMIT ?1)
                       AND (at < ?2 OR (SELECT sum(bytes) FROM answers) > ?3)
                     RETURNING run",
                )?
                .query_map(params![at_once, before, bytes_max], |row| row.get(0))?
                .collect::<rusqlite::Result<Vec<String>>>()?;
            for run in &runs {
                transaction
                    .prepare_cached(
                        "DELETE FROM runs WHERE id = ?1 AND why = 'webhook'
                             AND finished_at IS NOT NULL AND NOT EXISTS (
                                 SELECT 1 FROM run_steps WHERE run = ?1 AND dead > 0)",
                    )?
                    .execute([run])?;
            }
            transaction.commit()?;
            Ok(runs.len())
        })
        .await
    }
}

fn answer(database: &rusqlite::Connection, run: &str) -> rusqlite::Result<Option<KeptAnswer>> {
    database
        .prepare_cached("SELECT at, answer FROM answers WHERE run = ?1")?
        .query_row([run], |row| {
            Ok(KeptAnswer {
                at: row.get(0)?,
                answer: row.get(1)?,
            })
        })
        .optional()
}

#[cfg(test)]
#[path = "answers_tests.rs"]
mod tests;
