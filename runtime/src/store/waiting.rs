//! Notes about messages that wait in the delay ladder, for people. The messages are on the broker.
//!
//! # Invariants
//!
//! - `a_note_is_replaced_by_the_next_one_of_the_same_message`.
//! - `what_is_due_is_forgotten`, a minute later: then the message is back at its step.
//! - There are at most [`NOTES_MAX`]: what goes beyond is not noted, and waits all the same.

use std::collections::BTreeMap;

use rusqlite::{Row, Transaction, params};
use towpath_protocol::MessageId;
use towpath_protocol::office::Waiting;

use super::{Store, StoreError, columns};
use crate::fingerprint::pattern;

/// The most notes that are kept: as many as the ladder holds deliveries.
pub const NOTES_MAX: u64 = 1_000_000;

/// The number of bytes that a reason is cut to: a line of a list.
const REASON_BYTES_MAX: usize = 300;

/// How long a note is kept after its message was to come back: it may be held up on its way.
pub const OVERDUE_MS_KEPT: u64 = 60_000;

/// A message that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingRecord {
    /// The flow.
    pub flow: String,
    /// The step that it waits for.
    pub step: String,
    /// The message.
    pub id: MessageId,
    /// How often it was replayed.
    pub replays: u32,
    /// Its run.
    pub run: MessageId,
    /// The external account.
    pub connection: String,
    /// The attempt that comes next, from 1.
    pub attempt: u32,
    /// How many attempts there are in all.
    pub attempts: u32,
    /// The rebounds so far.
    pub rebounds: u32,
    /// It is not yet time, rather than that it failed.
    pub is_rebound: bool,
    /// Why.
    pub reason: String,
    /// When its first attempt at this step failed or was put off, in milliseconds since 1970.
    pub since: u64,
    /// When it comes back, in milliseconds since 1970.
    pub due: u64,
}

/// Messages that wait for the same kind of reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingGroup {
    /// The step.
    pub step: String,
    /// What their reasons have in common.
    pub pattern: String,
    /// They are not yet due, rather than that they failed.
    pub is_rebound: bool,
    /// How many.
    pub count: u64,
    /// When the next one comes back, in milliseconds since 1970.
    pub next: u64,
    /// When the last one does.
    pub last: u64,
}

/// Which messages.
#[derive(Debug, Clone, Default)]
pub struct WaitingQuery {
    /// Of this flow.
    pub flow: String,
    /// Of this step only.
    pub step: Option<String>,
    /// Those that come back after this only, in milliseconds since 1970.
    pub after: u64,
    /// At most this many.
    pub limit: u32,
}

impl Store {
    /// Takes notes in, in one transaction. Returns how many there is no room for.
    pub async fn note_waiting(&self, notes: Vec<Waiting>) -> Result<u64, StoreError> {
        self.with("note what waits", move |database| {
            let transaction = database.transaction()?;
            let there: u64 =
                transaction.query_row("SELECT count(*) FROM waiting", [], |row| row.get(0))?;
            let room = usize::try_from(NOTES_MAX.saturating_sub(there)).unwrap_or(usize::MAX);
            for note in notes.iter().take(room) {
                insert(&transaction, note)?;
            }
            transaction.commit()?;
            Ok(notes.len().saturating_sub(room) as u64)
        })
        .await
    }

    /// Messages that wait, the next one first.
    pub async fn waiting(&self, query: WaitingQuery) -> Result<Vec<WaitingRecord>, StoreError> {
        self.with("list what waits", move |database| {
            database
                .prepare_cached(
                    "SELECT * FROM waiting WHERE flow = ?1 AND (?2 IS NULL OR step = ?2)
                     AND due > ?3 ORDER BY due LIMIT ?4",
                )?
                .query_map(
                    params![query.flow, query.step, query.after, query.limit],
                    read_record,
                )?
                .collect()
        })
        .await
    }

    /// What one message waits for, in any step.
    pub async fn waiting_of(&self, id: MessageId) -> Result<Vec<WaitingRecord>, StoreError> {
        self.with("read what waits", move |database| {
            database
                .prepare_cached("SELECT * FROM waiting WHERE id = ?1 ORDER BY due")?
                .query_map([id.as_bytes()], read_record)?
                .collect()
        })
        .await
    }

    /// How many messages wait for each step of a flow, as of `now`.
    pub async fn waiting_counts(
        &self,
        flow: &str,
        now: u64,
    ) -> Result<BTreeMap<String, u64>, StoreError> {
        let flow = flow.to_owned();
        self.with("count what waits", move |database| {
            database
                .prepare_cached(
                    "SELECT step, count(*) FROM waiting WHERE flow = ?1 AND due > ?2 GROUP BY step",
                )?
                .query_map(params![flow, now], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        })
        .await
    }

    /// How many messages wait for each step (flow, step) of all flows, as of `now`.
    pub async fn all_waiting_counts(
        &self,
        now: u64,
    ) -> Result<Vec<(String, String, u64)>, StoreError> {
        self.with("count what waits", move |database| {
            database
                .prepare_cached(
                    "SELECT flow, step, count(*) FROM waiting WHERE due > ?1 GROUP BY flow, step",
                )?
                .query_map([now], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
                .collect()
        })
        .await
    }

    /// Why the messages of a flow, or of one step of it, wait: the largest groups first.
    pub async fn waiting_groups(
        &self,
        query: WaitingQuery,
    ) -> Result<Vec<WaitingGroup>, StoreError> {
        self.with("group what waits", move |database| {
            database
                .prepare_cached(
                    "SELECT step, pattern, is_rebound, count(*), min(due), max(due) FROM waiting
                     WHERE flow = ?1 AND (?2 IS NULL OR step = ?2) AND due > ?3
                     GROUP BY step, pattern, is_rebound ORDER BY count(*) DESC, step LIMIT ?4",
                )?
                .query_map(
                    params![query.flow, query.step, query.after, query.limit],
                    |row| {
                        Ok(WaitingGroup {
                            step: row.get(0)?,
                            pattern: row.get(1)?,
                            is_rebound: row.get(2)?,
                            count: row.get(3)?,
                            next: row.get(4)?,
                            last: row.get(5)?,
                        })
                    },
                )?
                .collect()
        })
        .await
    }

    /// Forgets the notes of messages of a flow that were taken out of the ladder, but for those that
    /// have gone into it again since `now`.
    pub async fn forget_waiting(
        &self,
        flow: &str,
        ids: Vec<MessageId>,
        now: u64,
    ) -> Result<(), StoreError> {
        let flow = flow.to_owned();
        self.with("forget what waited", move |database| {
            let transaction = database.transaction()?;
            for id in &ids {
                transaction
                    .prepare_cached(
                        "DELETE FROM waiting WHERE id = ?1 AND flow = ?2 AND noted <= ?3",
                    )?
                    .execute(params![id.as_bytes(), flow, now])?;
            }
            transaction.commit()
        })
        .await
    }

    /// Forgets notes of messages that came back before `before`, in milliseconds since 1970.
    pub async fn forget_due(&self, before: u64) -> Result<usize, StoreError> {
        self.with("forget what came back", move |database| {
            database.execute("DELETE FROM waiting WHERE due < ?1", [before])
        })
        .await
    }
}

/// Forgets what waits for the steps of a flow that is gone.
pub(super) fn forget_flow(transaction: &Transaction<'_>, flow: &str) -> rusqlite::Result<()> {
    transaction.execute("DELETE FROM waiting WHERE flow = ?1", [flow])?;
    Ok(())
}

fn insert(transaction: &Transaction<'_>, note: &Waiting) -> rusqlite::Result<()> {
    let mut reason = note.reason.clone();
    let end = (0..=REASON_BYTES_MAX.min(reason.len()))
        .rfind(|end| reason.is_char_boundary(*end))
        .unwrap_or(0);
    reason.truncate(end);
    transaction
        .prepare_cached(
            "INSERT INTO waiting (id, flow, step, replays, run, connection, attempt, attempts,
                 rebounds, is_rebound, reason, pattern, since, due, noted)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)
             ON CONFLICT (id, flow, step, replays) DO UPDATE SET attempt = ?7, attempts = ?8,
                 rebounds = ?9, is_rebound = ?10, reason = ?11, pattern = ?12, since = ?13,
                 due = ?14, noted = ?15",
        )?
        .execute(params![
            note.id.as_bytes(),
            note.identity.flow,
            note.identity.step,
            note.replays,
            note.run.as_bytes(),
            note.connection,
            note.attempt,
            note.attempts,
            note.rebounds,
            note.is_rebound,
            reason,
            pattern(&reason),
            note.since,
            note.due,
            super::now_ms(),
        ])?;
    Ok(())
}

fn read_record(row: &Row<'_>) -> rusqlite::Result<WaitingRecord> {
    Ok(WaitingRecord {
        flow: row.get("flow")?,
        step: row.get("step")?,
        id: read_id(row, "id")?,
        replays: row.get("replays")?,
        run: read_id(row, "run")?,
        connection: row.get("connection")?,
        attempt: row.get("attempt")?,
        attempts: row.get("attempts")?,
        rebounds: row.get("rebounds")?,
        is_rebound: row.get("is_rebound")?,
        reason: row.get("reason")?,
        since: row.get("since")?,
        due: row.get("due")?,
    })
}

fn read_id(row: &Row<'_>, column: &str) -> rusqlite::Result<MessageId> {
    let bytes: Vec<u8> = row.get(column)?;
    let bytes = bytes
        .try_into()
        .map_err(|_| columns::unreadable("an id has 16 bytes"))?;
    Ok(MessageId::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use towpath_protocol::start::Identity;

    use super::*;
    use crate::store::flows::NewVersion;

    fn note(number: u8, step: &str, reason: &str, due: u64) -> Waiting {
        Waiting {
            identity: Identity {
                instance: "t".into(),
                flow: "orders".into(),
                step: step.into(),
                replica: 1,
                spec: "s".into(),
            },
            id: MessageId::from_bytes([number; 16]),
            run: MessageId::from_bytes([0; 16]),
            connection: "default".into(),
            attempt: 2,
            attempts: 5,
            rebounds: 0,
            replays: 0,
            is_rebound: false,
            reason: reason.into(),
            since: 1,
            due,
        }
    }

    fn all(after: u64) -> WaitingQuery {
        WaitingQuery {
            flow: "orders".into(),
            step: None,
            after,
            limit: 100,
        }
    }

    async fn due(store: &Store, after: u64) -> Vec<u64> {
        let waiting = store.waiting(all(after)).await.unwrap();
        waiting.iter().map(|one| one.due).collect()
    }

    #[tokio::test]
    async fn a_note_is_replaced_by_the_next_one_of_the_same_message() {
        let store = Store::in_memory().unwrap();
        let first = vec![
            note(1, "crm", "the shop answered 503", 100),
            note(2, "crm", "the shop answered 503", 90),
            note(2, "bill", "no", 95),
        ];
        assert_eq!(store.note_waiting(first).await.unwrap(), 0);
        assert_eq!(due(&store, 0).await, [90, 95, 100]);
        let mut next = note(2, "crm", &"é".repeat(1_000), 200);
        next.attempt = 3;
        store.note_waiting(vec![next]).await.unwrap();
        assert_eq!(due(&store, 95).await, [100, 200]);
        let of = store.waiting_of(MessageId::from_bytes([2; 16])).await;
        let of: Vec<_> = of
            .unwrap()
            .into_iter()
            .map(|it| (it.step, it.attempt))
            .collect();
        assert_eq!(of, [("bill".to_owned(), 2), ("crm".to_owned(), 3)]);
        let counts = store.waiting_counts("orders", 95).await.unwrap();
        assert_eq!(
            counts.into_iter().collect::<Vec<_>>(),
            [("crm".to_owned(), 2)]
        );
    }

    #[tokio::test]
    async fn groups_have_the_same_kind_of_reason() {
        let store = Store::in_memory().unwrap();
        let notes = (1..=9).map(|number| {
            note(
                number,
                "crm",
                &format!("deal {number}0{number} is locked"),
                100 + u64::from(number),
            )
        });
        let mut notes: Vec<_> = notes.collect();
        notes.push(note(10, "crm", "the connection was refused", 50));
        store.note_waiting(notes).await.unwrap();
        let groups = store.waiting_groups(all(0)).await.unwrap();
        let seen: Vec<_> = groups
            .iter()
            .map(|it| (it.count, it.next, it.last))
            .collect();
        assert_eq!(seen, [(9, 101, 109), (1, 50, 50)], "{groups:?}");
    }

    #[tokio::test]
    async fn what_is_due_is_forgotten() {
        let store = Store::in_memory().unwrap();
        store
            .store_version(NewVersion {
                flow: "orders".into(),
                ..NewVersion::default()
            })
            .await
            .unwrap();
        let notes = (1..=4).map(|number| note(number, "crm", "no", u64::from(number) * 10));
        store.note_waiting(notes.collect()).await.unwrap();
        assert_eq!(store.forget_due(20).await.unwrap(), 1);
        let moved = vec![MessageId::from_bytes([2; 16])];
        store
            .forget_waiting("orders", moved.clone(), 0)
            .await
            .unwrap();
        assert_eq!(due(&store, 0).await, [20, 30, 40], "noted since");
        store
            .forget_waiting("orders", moved, u64::MAX >> 1)
            .await
            .unwrap();
        assert_eq!(due(&store, 0).await, [30, 40]);
        store.delete_flow("orders", vec![], true).await.unwrap();
        assert_eq!(due(&store, 0).await, [0; 0]);
    }
}
