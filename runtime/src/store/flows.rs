//! Flows, their versions, and how far an operator scaled their steps.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use super::{Store, StoreError, columns, former, holds, now_ms};
use crate::reconcile::FlowState;
use crate::reconcile::intent::Held;

/// The most versions of a flow that are kept.
const VERSIONS_MAX: u32 = 50;

/// How many versions back a binding may have been left over: an apply that was cut off between
/// storing and declaring leaves one, and the next one removes it.
const FORMER_MAX: u32 = 3;

/// A flow and its newest version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowRecord {
    /// Its name.
    pub name: String,
    /// What it should be doing.
    pub state: FlowState,
    /// Its version, from 1.
    pub version: u32,
    /// The part of its webhook URL that cannot be guessed; kept when it is applied again.
    pub webhook_key: Option<String>,
    /// What the file was called.
    pub file: String,
    /// The flow file.
    pub source: Vec<u8>,
    /// The environment variables that the flow names, as they were when it was applied.
    pub env: BTreeMap<String, String>,
    /// The engine's ids of the images, by their names in the file, as they were then: a name may be
    /// given to another image later, and that is not to replace anything by itself.
    pub images: BTreeMap<String, String>,
    /// The hash of file, environment and images.
    pub hash: String,
    /// When this version was applied, in milliseconds since 1970.
    pub applied_at: u64,
    /// How many replicas an operator wants, by step.
    pub scales: BTreeMap<String, u32>,
    /// What an operator said of single steps.
    pub held: Held,
    /// It goes as soon as its trigger has taken back what it registered.
    pub deleting: Option<Deletion>,
}

/// How a flow goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Deletion {
    /// When no messages wait in its queues.
    WhenEmpty,
    /// With all of them.
    WithMessages,
}

/// A version to store.
#[derive(Debug, Clone, Default)]
pub struct NewVersion {
    /// The flow.
    pub flow: String,
    /// What the file was called.
    pub file: String,
    /// The flow file.
    pub source: Vec<u8>,
    /// The environment variables that the flow names.
    pub env: BTreeMap<String, String>,
    /// The engine's ids of the images, by their names in the file.
    pub images: BTreeMap<String, String>,
    /// The hash of file, environment and images.
    pub hash: String,
    /// The flow's webhook key, if it has a webhook: used unless it has one already.
    pub webhook_key: Option<String>,
    /// The ids of all its steps.
    pub steps: Vec<String>,
    /// The steps whose scale is kept; the others have as many replicas as the file says.
    pub scaled: Vec<String>,
    /// The steps that go away.
    pub removed: Vec<String>,
    /// The queues of its steps, by the ends of their names.
    pub queues: Vec<String>,
    /// The queues that its steps had and have no more: they are to be removed.
    pub queues_removed: Vec<String>,
    /// Whether messages in those queues may be dropped.
    pub drop_messages: bool,
    /// The steps that take the messages of those that go away.
    pub moves: BTreeMap<String, String>,
    /// What changes, in a line.
    pub summary: String,
}

/// One version of a flow, in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct VersionRecord {
    /// The version, from 1.
    pub version: u32,
    /// When it was applied, in milliseconds since 1970.
    pub applied_at: u64,
    /// The hash of its file, environment and images.
    pub hash: String,
    /// What changed with it, in a line.
    pub summary: String,
}

/// One version of a flow, with all that was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredVersion {
    /// The version, from 1.
    pub version: u32,
    /// What the file was called.
    pub file: String,
    /// The flow file.
    pub source: Vec<u8>,
    /// The environment variables that the flow names, as they were when it was applied.
    pub env: BTreeMap<String, String>,
    /// The engine's ids of the images, by their names in the file.
    pub images: BTreeMap<String, String>,
}

const SELECT: &str = "SELECT f.name, f.state, f.version, f.webhook_key, v.file, v.source, v.env, v.images, v.hash, v.applied_at, f.deleting
    FROM flows f JOIN versions v ON v.flow = f.name AND v.version = f.version";

impl Store {
    /// All flows, by name.
    pub async fn flows(&self) -> Result<Vec<FlowRecord>, StoreError> {
        self.with("list flows", |connection| {
            let mut statement = connection.prepare_cached(&format!("{SELECT} ORDER BY f.name"))?;
            let mut flows = statement
                .query_map([], read_flow)?
                .collect::<rusqlite::Result<Vec<_>>>()?;
            for flow in &mut flows {
                flow.scales = scales(connection, &flow.name)?;
                flow.held = holds::holds(connection, &flow.name)?;
            }
            Ok(flows)
        })
        .await
    }

    /// A flow.
    pub async fn flow(&self, name: &str) -> Result<Option<FlowRecord>, StoreError> {
        let name = name.to_owned();
        self.with("read a flow", move |connection| {
            let found = connection
                .prepare_cached(&format!("{SELECT} WHERE f.name = ?1"))?
                .query_row([&name], read_flow)
                .optional()?;
            let Some(mut flow) = found else {
                return Ok(None);
            };
            flow.scales = scales(connection, &name)?;
            flow.held = holds::holds(connection, &name)?;
            Ok(Some(flow))
        })
        .await
    }

    /// Stores a new version of a flow, which may be its first, and returns its number. A flow that
    /// was paused or stopped stays so.
    pub async fn store_version(&self, new: NewVersion) -> Result<u32, StoreError> {
        let env = serde_json::to_string(&new.env).expect("a map of strings is JSON");
        let images = serde_json::to_string(&new.images).expect("a map of strings is JSON");
        self.with("store a version of a flow", move |connection| {
            let transaction = connection.transaction()?;
            let before: Option<u32> = transaction
                .query_row("SELECT version FROM flows WHERE name = ?1", [&new.flow], |row| row.get(0))
                .optional()?;
            let version = before.unwrap_or(0) + 1;
            transaction.execute(
                "INSERT INTO flows (name, state, version, webhook_key, created_at) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (name) DO UPDATE SET version = ?3, webhook_key = coalesce(webhook_key, ?4)",
                params![new.flow, "running", version, new.webhook_key, now_ms()],
            )?;
            transaction.execute(
                "INSERT INTO versions (flow, version, file, source, env, images, hash, applied_at, summary)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                params![
                    new.flow, version, new.file, new.source, env, images, new.hash, now_ms(),
                    new.summary
                ],
            )?;
            transaction.execute(
                "DELETE FROM versions WHERE flow = ?1 AND version <= ?2",
                params![new.flow, version.saturating_sub(VERSIONS_MAX)],
            )?;
            for step in scales(&transaction, &new.flow)?.into_keys() {
                if !new.scaled.contains(&step) {
                    transaction.execute(
                        "DELETE FROM scales WHERE flow = ?1 AND step = ?2",
                        params![new.flow, step],
                    )?;
                }
            }
            holds::forget_others(&transaction, &new.flow, &new.steps)?;
            former::record(&transaction, &new, version)?;
            for queue in &new.queues {
                transaction.execute(
                    "DELETE FROM removals WHERE flow = ?1 AND step = ?2",
                    params![new.flow, queue],
                )?;
            }
            for queue in &new.queues_removed {
                insert_removal(&transaction, &new.flow, queue, new.drop_messages)?;
            }
            transaction.commit()?;
            Ok(version)
        })
        .await
    }

    /// The versions of a flow that are kept, newest first.
    pub async fn versions(&self, flow: &str) -> Result<Vec<VersionRecord>, StoreError> {
        let flow = flow.to_owned();
        self.with("list versions", move |connection| {
            connection
                .prepare_cached(
                    "SELECT version, applied_at, hash, summary FROM versions WHERE flow = ?1
                     ORDER BY version DESC",
                )?
                .query_map([&flow], |row| {
                    Ok(VersionRecord {
                        version: row.get(0)?,
                        applied_at: row.get(1)?,
                        hash: row.get(2)?,
                        summary: row.get(3)?,
                    })
                })?
                .collect()
        })
        .await
    }

    /// One version of a flow, if it is kept.
    pub async fn version(
        &self,
        flow: &str,
        version: u32,
    ) -> Result<Option<StoredVersion>, StoreError> {
        let flow = flow.to_owned();
        self.with("read a version", move |connection| {
            connection
                .prepare_cached(
                    "SELECT version, file, source, env, images FROM versions
                     WHERE flow = ?1 AND version = ?2",
                )?
                .query_row(params![flow, version], |row| {
                    Ok(StoredVersion {
                        version: row.get("version")?,
                        file: row.get("file")?,
                        source: row.get("source")?,
                        env: columns::json(row, "env")?,
                        images: columns::json(row, "images")?,
                    })
                })
                .optional()
        })
        .await
    }

    /// The files of the last versions of each flow before its newest: name and content.
    pub async fn former_sources(&self) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        self.with("read former versions", |connection| {
            connection
                .prepare_cached(
                    "SELECT v.file, v.source FROM versions v JOIN flows f ON f.name = v.flow
                     WHERE v.version < f.version AND v.version >= f.version - ?1",
                )?
                .query_map([FORMER_MAX], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        })
        .await
    }

    /// Says what a flow should be doing. Returns whether there is such a flow.
    pub async fn set_state(&self, flow: &str, state: FlowState) -> Result<bool, StoreError> {
        let flow = flow.to_owned();
        self.with("change the state of a flow", move |connection| {
            let changed = connection.execute(
                "UPDATE flows SET state = ?2 WHERE name = ?1",
                params![flow, columns::word(state)],
            )?;
            Ok(changed == 1)
        })
        .await
    }

    /// Says whether a flow is to go as soon as nothing of it is registered. Returns whether there is
    /// such a flow.
    pub async fn set_deleting(
        &self,
        flow: &str,
        deleting: Option<Deletion>,
    ) -> Result<bool, StoreError> {
        let flow = flow.to_owned();
        self.with("say that a flow is to go", move |connection| {
            let changed = connection.execute(
                "UPDATE flows SET deleting = ?2 WHERE name = ?1",
                params![flow, deleting.map(columns::word)],
            )?;
            Ok(changed == 1)
        })
        .await
    }

    /// Says how many replicas a step should have, whatever the flow file says.
    pub async fn set_scale(&self, flow: &str, step: &str, replicas: u32) -> Result<(), StoreError> {
        let (flow, step) = (flow.to_owned(), step.to_owned());
        self.with("scale a step", move |connection| {
            connection.execute(
                "INSERT INTO scales (flow, step, replicas) VALUES (?1, ?2, ?3)
                 ON CONFLICT (flow, step) DO UPDATE SET replicas = ?3",
                params![flow, step, replicas],
            )?;
            Ok(())
        })
        .await
    }

    /// Lets the flow file say how many replicas a step should have.
    pub async fn clear_scale(&self, flow: &str, step: &str) -> Result<(), StoreError> {
        let (flow, step) = (flow.to_owned(), step.to_owned());
        self.with("scale a step as its file says", move |connection| {
            connection.execute(
                "DELETE FROM scales WHERE flow = ?1 AND step = ?2",
                params![flow, step],
            )?;
            Ok(())
        })
        .await
    }

    /// Forgets a flow, its versions, checkpoints and runs. Its dead letters stay, and the queues of
    /// `steps` are to be removed.
    pub async fn delete_flow(
        &self,
        flow: &str,
        steps: Vec<String>,
        drop_messages: bool,
    ) -> Result<bool, StoreError> {
        let flow = flow.to_owned();
        self.with("delete a flow", move |connection| {
            let transaction = connection.transaction()?;
            let deleted = transaction.execute("DELETE FROM flows WHERE name = ?1", [&flow])?;
            super::ledger::forget_flow(&transaction, &flow)?;
            super::waiting::forget_flow(&transaction, &flow)?;
            super::answered::forget_flow(&transaction, &flow)?;
            for step in &steps {
                insert_removal(&transaction, &flow, step, drop_messages)?;
            }
            transaction.commit()?;
            Ok(deleted == 1)
        })
        .await
    }

    /// The queues that are to be removed.
    pub async fn removals(&self) -> Result<Vec<Removal>, StoreError> {
        self.with("list queues to remove", |connection| {
            connection
                .prepare_cached(
                    "SELECT r.flow, r.step, r.drop_messages, f.version, f.successor FROM removals r
                     LEFT JOIN former_steps f ON f.flow = r.flow
                       AND f.step = substr(r.step || '.', 1, instr(r.step || '.', '.') - 1)
                     ORDER BY r.flow, r.step",
                )?
                .query_map([], |row| {
                    Ok(Removal {
                        flow: row.get(0)?,
                        step: row.get(1)?,
                        drop_messages: row.get(2)?,
                        version: row.get(3)?,
                        successor: row.get(4)?,
                    })
                })?
                .collect()
        })
        .await
    }

    /// Says that a queue was removed, or is no longer to be.
    pub async fn removed(&self, removal: &Removal) -> Result<(), StoreError> {
        let Removal { flow, step, .. } = removal.clone();
        self.with("forget a removed queue", move |connection| {
            connection.execute(
                "DELETE FROM removals WHERE flow = ?1 AND step = ?2",
                params![flow, step],
            )?;
            Ok(())
        })
        .await
    }
}

/// A queue that is to be removed, because its step or its flow is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// The flow.
    pub flow: String,
    /// The end of the queue's name: the step, with what follows if it is one of several.
    pub step: String,
    /// Whether messages in it may be dropped.
    pub drop_messages: bool,
    /// The first version of the flow without the step; none if the flow is gone.
    pub version: Option<u32>,
    /// The step that takes its messages, if one does.
    pub successor: Option<String>,
}

fn insert_removal(
    transaction: &rusqlite::Transaction<'_>,
    flow: &str,
    step: &str,
    drop_messages: bool,
) -> rusqlite::Result<()> {
    transaction.execute(
        "INSERT INTO removals (flow, step, drop_messages) VALUES (?1, ?2, ?3)
         ON CONFLICT (flow, step) DO UPDATE SET drop_messages = ?3",
        params![flow, step, drop_messages],
    )?;
    Ok(())
}

fn scales(connection: &Connection, flow: &str) -> rusqlite::Result<BTreeMap<String, u32>> {
    connection
        .prepare_cached("SELECT step, replicas FROM scales WHERE flow = ?1")?
        .query_map([flow], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect()
}

fn read_flow(row: &Row<'_>) -> rusqlite::Result<FlowRecord> {
    let env: String = row.get(6)?;
    let images: String = row.get(7)?;
    Ok(FlowRecord {
        name: row.get(0)?,
        state: columns::unword(row, "state")?,
        version: row.get(2)?,
        webhook_key: row.get(3)?,
        file: row.get(4)?,
        source: row.get(5)?,
        env: serde_json::from_str(&env).map_err(|error| unreadable(6, error))?,
        images: serde_json::from_str(&images).map_err(|error| unreadable(7, error))?,
        hash: row.get(8)?,
        applied_at: row.get(9)?,
        scales: BTreeMap::new(),
        held: Held::new(),
        deleting: columns::optional_word(row, "deleting")?,
    })
}

fn unreadable(
    column: usize,
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(source: &str, key: Option<&str>) -> NewVersion {
        NewVersion {
            flow: "orders".into(),
            file: "orders.yaml".into(),
            source: source.into(),
            env: BTreeMap::from([("SHOP".into(), "http://shop".into())]),
            images: BTreeMap::from([("jq:1".into(), "sha256:1".into())]),
            hash: source.into(),
            webhook_key: key.map(str::to_owned),
            steps: vec!["shape".into()],
            scaled: vec!["shape".into()],
            removed: vec!["old".into()],
            queues: vec!["shape".into()],
            queues_removed: vec!["old".into()],
            drop_messages: true,
            moves: BTreeMap::new(),
            summary: "it is new".into(),
        }
    }

    #[tokio::test]
    async fn a_flow_keeps_its_key_its_state_and_its_scales_when_it_is_applied_again() {
        let store = Store::in_memory().unwrap();
        assert_eq!(
            store
                .store_version(version("one", Some("key-1")))
                .await
                .unwrap(),
            1
        );
        assert!(store.set_state("orders", FlowState::Paused).await.unwrap());
        store.set_scale("orders", "shape", 3).await.unwrap();
        store.set_scale("orders", "gone", 2).await.unwrap();
        assert_eq!(
            store
                .store_version(version("two", Some("key-2")))
                .await
                .unwrap(),
            2
        );

        let flow = store.flow("orders").await.unwrap().unwrap();
        assert_eq!(flow.webhook_key.as_deref(), Some("key-1"));
        assert_eq!(flow.state, FlowState::Paused);
        assert_eq!(flow.scales, BTreeMap::from([("shape".to_owned(), 3)]));
        assert_eq!(flow.source, b"two");
        assert_eq!(flow.env["SHOP"], "http://shop");
        assert_eq!(flow.images["jq:1"], "sha256:1");
        assert_eq!(store.flows().await.unwrap(), [flow]);
        let versions = store.versions("orders").await.unwrap();
        assert_eq!(
            versions
                .iter()
                .map(|version| version.version)
                .collect::<Vec<_>>(),
            [2, 1]
        );
    }

    #[tokio::test]
    async fn a_deleted_flow_is_gone_with_all_that_hangs_on_it() {
        let store = Store::in_memory().unwrap();
        store.store_version(version("one", None)).await.unwrap();
        store.set_scale("orders", "shape", 3).await.unwrap();
        assert!(
            store
                .delete_flow("orders", vec!["shape".into()], false)
                .await
                .unwrap()
        );
        assert!(
            !store
                .delete_flow("orders", vec!["shape".into()], false)
                .await
                .unwrap()
        );
        assert_eq!(store.flow("orders").await.unwrap(), None);
        let removals = store.removals().await.unwrap();
        let steps: Vec<_> = removals
            .iter()
            .map(|it| (it.step.as_str(), it.drop_messages))
            .collect();
        assert_eq!(steps, [("old", true), ("shape", false)]);
        assert_eq!(store.store_version(version("one", None)).await.unwrap(), 1);
        assert!(
            store
                .flow("orders")
                .await
                .unwrap()
                .unwrap()
                .scales
                .is_empty()
        );
        let removals = store.removals().await.unwrap();
        assert_eq!(
            removals.len(),
            1,
            "a step that is there again keeps its queue: {removals:?}"
        );
        store.removed(&removals[0]).await.unwrap();
        assert!(store.removals().await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn flows_survive_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store
            .store_version(version("one", Some("k")))
            .await
            .unwrap();
        drop(store);
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.flow("orders").await.unwrap().unwrap().source, b"one");
    }
}
