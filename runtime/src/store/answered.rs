//! Requests to webhooks that were answered, by the ids of their messages: those whose senders gave
//! them a name.

use rusqlite::{OptionalExtension, Transaction, params};
use towpath_protocol::MessageId;

use super::{Store, StoreError};

/// The most that are remembered: some 80 MB on disk. Beyond that the oldest go before their time; a
/// request that is repeated later still makes the same message, by its id.
pub const ANSWERED_MAX: u32 = 1_000_000;

impl Store {
    /// When a request was answered, in milliseconds since 1970, if that is remembered.
    pub async fn answered(&self, message: MessageId) -> Result<Option<u64>, StoreError> {
        self.with("look for an answered request", move |connection| {
            connection
                .prepare_cached("SELECT at FROM answered_requests WHERE message = ?1")?
                .query_row([message.as_bytes().as_slice()], |row| row.get(0))
                .optional()
        })
        .await
    }

    /// Remembers that requests of a flow are answered.
    pub async fn remember_answered(
        &self,
        flow: &str,
        messages: Vec<MessageId>,
        now: u64,
    ) -> Result<(), StoreError> {
        let flow = flow.to_owned();
        self.with("remember answered requests", move |connection| {
            let transaction = connection.transaction()?;
            {
                // One that is there already, because it was answered long ago, moves to the end.
                let mut insert = transaction.prepare_cached(
                    "INSERT OR REPLACE INTO answered_requests (message, flow, at) VALUES (?1, ?2, ?3)",
                )?;
                for message in &messages {
                    insert.execute(params![message.as_bytes().as_slice(), flow, now])?;
                }
            }
            transaction.commit()
        })
        .await
    }

    /// Forgets requests that were answered before a time, and what is over [`ANSWERED_MAX`]: the
    /// oldest first, at most `at_once`. Returns how many.
    pub async fn forget_answered(&self, before: u64, at_once: u32) -> Result<usize, StoreError> {
        self.forget_answered_over(before, ANSWERED_MAX, at_once)
            .await
    }

    async fn forget_answered_over(
        &self,
        before: u64,
        most: u32,
        at_once: u32,
    ) -> Result<usize, StoreError> {
        self.with("forget answered requests", move |connection| {
            // Numbers only grow, so that how far the first is behind the last bounds how many there
            // are, without counting them.
            connection.execute(
                "DELETE FROM answered_requests
                 WHERE number IN (SELECT number FROM answered_requests ORDER BY number LIMIT ?1)
                   AND (at < ?2 OR number <= (SELECT max(number) FROM answered_requests) - ?3)",
                params![at_once, before, most],
            )
        })
        .await
    }
}

/// Forgets the requests of a flow that is deleted: another one of its name begins anew.
pub(super) fn forget_flow(transaction: &Transaction<'_>, flow: &str) -> rusqlite::Result<()> {
    transaction.execute("DELETE FROM answered_requests WHERE flow = ?1", [flow])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u128) -> MessageId {
        MessageId::from_bytes(number.to_be_bytes())
    }

    #[tokio::test]
    async fn answered_requests_are_remembered_and_forgotten_oldest_first() {
        let store = Store::in_memory().unwrap();
        let remember = async |number, now| {
            let one = vec![id(number)];
            store.remember_answered("orders", one, now).await.unwrap();
        };
        let at = async |number| store.answered(id(number)).await.unwrap();
        for number in 1..=4 {
            remember(number, 100 * u64::try_from(number).unwrap()).await;
        }
        assert_eq!((at(1).await, at(9).await), (Some(100), None));
        assert_eq!(
            store.forget_answered(300, 1).await.unwrap(),
            1,
            "a little at a time"
        );
        assert_eq!(store.forget_answered(300, 10).await.unwrap(), 1);
        assert_eq!(store.forget_answered(300, 10).await.unwrap(), 0);
        assert_eq!((at(2).await, at(3).await), (None, Some(300)));
        // Answered anew, long after: it counts from then on.
        remember(3, 500).await;
        assert_eq!(store.forget_answered(450, 10).await.unwrap(), 1, "4 alone");
        assert_eq!(at(3).await, Some(500));
        for number in 5..=8 {
            remember(number, 600).await;
        }
        assert_eq!(store.forget_answered_over(0, 2, 10).await.unwrap(), 3);
        assert_eq!((at(6).await, at(7).await), (None, Some(600)));
    }

    #[tokio::test]
    async fn a_deleted_flow_forgets_what_it_answered() {
        let store = Store::in_memory().unwrap();
        for flow in ["orders", "other"] {
            let number = flow.len() as u128;
            store
                .remember_answered(flow, vec![id(number)], 1)
                .await
                .unwrap();
        }
        store.delete_flow("orders", vec![], false).await.unwrap();
        assert_eq!(store.answered(id(6)).await.unwrap(), None);
        assert_eq!(store.answered(id(5)).await.unwrap(), Some(1));
    }
}
