//! The keys that webhook URLs had before, while they are still good.

use rusqlite::params;

use super::{Store, StoreError};
use crate::ingress::KEYS_MAX;

/// A key that a webhook's URL had before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormerKey {
    /// The flow.
    pub flow: String,
    /// The key.
    pub key: String,
    /// Until when it is good, in milliseconds since 1970.
    pub until: u64,
}

impl Store {
    /// All former keys, those that will be good for the longest first; some may no longer be good.
    pub async fn former_webhook_keys(&self) -> Result<Vec<FormerKey>, StoreError> {
        self.with("list former webhook keys", |connection| {
            connection
                .prepare_cached(
                    "SELECT flow, key, until FROM former_webhook_keys ORDER BY flow, until DESC",
                )?
                .query_map([], |row| {
                    Ok(FormerKey {
                        flow: row.get(0)?,
                        key: row.get(1)?,
                        until: row.get(2)?,
                    })
                })?
                .collect()
        })
        .await
    }

    /// Gives a webhook another key. The one before is good for `grace_ms` more; if that is nothing,
    /// all former ones are forgotten, else those that are no longer good, and the oldest beyond
    /// [`KEYS_MAX`].
    pub async fn rotate_webhook_key(
        &self,
        flow: &str,
        key: &str,
        now: u64,
        grace_ms: u64,
    ) -> Result<(), StoreError> {
        let (flow, key) = (flow.to_owned(), key.to_owned());
        self.with("change a webhook key", move |connection| {
            let transaction = connection.transaction()?;
            if grace_ms > 0 {
                transaction.execute(
                    "INSERT INTO former_webhook_keys (flow, key, until)
                     SELECT name, webhook_key, ?2 FROM flows
                     WHERE name = ?1 AND webhook_key IS NOT NULL",
                    params![flow, now.saturating_add(grace_ms)],
                )?;
            }
            transaction.execute(
                "UPDATE flows SET webhook_key = ?2 WHERE name = ?1",
                params![flow, key],
            )?;
            let kept = if grace_ms > 0 { KEYS_MAX - 1 } else { 0 };
            transaction.execute(
                "DELETE FROM former_webhook_keys WHERE flow = ?1 AND (until <= ?2 OR key NOT IN (
                     SELECT key FROM former_webhook_keys WHERE flow = ?1 ORDER BY rowid DESC LIMIT ?3))",
                params![flow, now, kept],
            )?;
            transaction.commit()
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::flows::NewVersion;

    #[tokio::test]
    async fn former_keys_are_kept_for_their_time_and_no_more_of_them_than_are_looked_at() {
        let store = Store::in_memory().unwrap();
        let flow = NewVersion {
            flow: "orders".into(),
            webhook_key: Some("k0".into()),
            ..NewVersion::default()
        };
        store.store_version(flow).await.unwrap();
        let rotate = async |key: &str, now, grace| {
            store
                .rotate_webhook_key("orders", key, now, grace)
                .await
                .unwrap();
            let former = store.former_webhook_keys().await.unwrap();
            let mut keys: Vec<String> = former.into_iter().map(|one| one.key).collect();
            keys.sort();
            keys
        };
        assert_eq!(rotate("k1", 1_000, 100).await, ["k0"]);
        let record = store.flow("orders").await.unwrap().unwrap();
        assert_eq!(record.webhook_key.as_deref(), Some("k1"));
        assert_eq!(rotate("k2", 1_050, 100).await, ["k0", "k1"]);
        assert_eq!(
            rotate("k3", 1_100, 500).await,
            ["k1", "k2"],
            "k0 had its time"
        );
        assert_eq!(rotate("k4", 1_101, 500).await.len(), 3);
        assert_eq!(rotate("k5", 1_102, 500).await.len(), 4);
        let most = rotate("k6", 1_103, 500).await;
        assert_eq!(most, ["k2", "k3", "k4", "k5"]);
        assert_eq!(most.len() + 1, KEYS_MAX);
        assert!(rotate("k7", 1_104, 0).await.is_empty(), "without grace");
        assert_eq!(rotate("k8", 1_105, 500).await, ["k7"]);
        store.delete_flow("orders", vec![], false).await.unwrap();
        assert!(store.former_webhook_keys().await.unwrap().is_empty());
    }
}
