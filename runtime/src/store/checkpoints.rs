//! Where triggers are in their sources.
//!
//! # Invariants
//!
//! - `only_the_active_run_moves_the_checkpoint`: what an abandoned run still says is not stored.

use rusqlite::{OptionalExtension, params};
use serde_json::value::RawValue;
use towpath_protocol::MessageId;

use super::{Store, StoreError, columns, now_ms};

impl Store {
    /// The last position of a trigger; none if none was saved.
    pub async fn checkpoint(
        &self,
        flow: &str,
        step: &str,
        connection: &str,
    ) -> Result<Option<Box<RawValue>>, StoreError> {
        let key = [flow.to_owned(), step.to_owned(), connection.to_owned()];
        self.with("read a checkpoint", move |database| {
            let value = database
                .prepare_cached(
                    "SELECT value FROM checkpoints WHERE flow = ?1 AND step = ?2 AND connection = ?3",
                )?
                .query_row(key, |row| columns::raw(row, "value"))
                .optional()?;
            Ok(value.flatten())
        })
        .await
    }

    /// Stores a trigger's position. Returns whether `run` is its active run; if not, nothing is
    /// stored.
    pub async fn save_checkpoint(
        &self,
        flow: &str,
        step: &str,
        connection: &str,
        run: MessageId,
        number: u64,
        value: Box<RawValue>,
    ) -> Result<bool, StoreError> {
        let (flow, step, connection) = (flow.to_owned(), step.to_owned(), connection.to_owned());
        self.with("save a checkpoint", move |database| {
            let transaction = database.transaction()?;
            let changed = transaction.execute(
                "INSERT INTO checkpoints (flow, step, connection, run, number, value, saved_at)
                 SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7 WHERE EXISTS (
                    SELECT 1 FROM runs WHERE id = ?4 AND flow = ?1 AND connection = ?3
                    AND state IN ('recorded', 'published'))
                 ON CONFLICT (flow, step, connection)
                 DO UPDATE SET run = ?4, number = ?5, value = ?6, saved_at = ?7",
                params![
                    flow,
                    step,
                    connection,
                    run.to_string(),
                    number,
                    value.get(),
                    now_ms()
                ],
            )?;
            if changed == 1 {
                transaction.execute(
                    "UPDATE runs SET checkpoint_after = ?2, progress_at = ?3 WHERE id = ?1",
                    params![run.to_string(), super::runs::shown(value.get()), now_ms()],
                )?;
            }
            transaction.commit()?;
            Ok(changed == 1)
        })
        .await
    }
}
