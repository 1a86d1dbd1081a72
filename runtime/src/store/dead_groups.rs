//! Dead letters by what kind they are.
//!
//! # Invariants
//!
//! - `groups_of_fifty_thousand_are_counted_in_under_a_second`: from an index, without a look at any
//!   dead letter.

use towpath_protocol::office::DeadCause;

use super::{Store, StoreError, columns};

/// Dead letters of one kind that are open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupRecord {
    /// Its fingerprint.
    pub id: String,
    /// The flow.
    pub flow: String,
    /// The step.
    pub step: String,
    /// What kind of end it was.
    pub cause: DeadCause,
    /// What the reasons have in common.
    pub pattern: String,
    /// How many letters.
    pub count: u64,
    /// How often a trigger repeated one of them.
    pub repeats: u64,
    /// When the first died, in milliseconds since 1970.
    pub first_at: u64,
    /// When it happened last, in milliseconds since 1970.
    pub last_at: u64,
    /// The number of the newest.
    pub example: u64,
}

impl Store {
    /// Counts the open dead letters of each kind; the largest group first.
    pub async fn dead_groups(
        &self,
        flow: Option<String>,
        step: Option<String>,
    ) -> Result<Vec<GroupRecord>, StoreError> {
        self.with("count dead letters by kind", move |database| {
            database
                .prepare_cached(
                    "SELECT g.id, g.flow, g.step, g.cause, g.pattern, l.count, l.repeats, l.first_at,
                            l.last_at, l.example
                     FROM (SELECT fingerprint, count(*) AS count, sum(repeats) AS repeats,
                                  min(at) AS first_at, max(last_at) AS last_at, max(id) AS example
                           FROM dead_letters WHERE state = 'open' GROUP BY fingerprint) AS l
                     JOIN dead_groups AS g ON g.id = l.fingerprint
                     WHERE (?1 IS NULL OR g.flow = ?1) AND (?2 IS NULL OR g.step = ?2)
                     ORDER BY l.count DESC, l.last_at DESC, g.id",
                )?
                .query_map([flow, step], |row| {
                    Ok(GroupRecord {
                        id: row.get("id")?,
                        flow: row.get("flow")?,
                        step: row.get("step")?,
                        cause: columns::unword(row, "cause")?,
                        pattern: row.get("pattern")?,
                        count: row.get("count")?,
                        repeats: row.get("repeats")?,
                        first_at: row.get("first_at")?,
                        last_at: row.get("last_at")?,
                        example: row.get("example")?,
                    })
                })?
                .collect()
        })
        .await
    }

    /// What a group is, whether or not any of its letters are open.
    pub async fn dead_group(&self, id: &str) -> Result<Option<String>, StoreError> {
        let id = id.to_owned();
        self.with("look for a kind of dead letters", move |database| {
            use rusqlite::OptionalExtension as _;
            database
                .prepare_cached("SELECT pattern FROM dead_groups WHERE id = ?1")?
                .query_row([id], |row| row.get(0))
                .optional()
        })
        .await
    }
}
