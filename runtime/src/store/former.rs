//! Steps that flows had once: what still comes for them out of the delay ladder has a place to go.
//!
//! # Invariants
//!
//! - `a_step_that_is_there_again_is_no_former_step`.
//! - `what_went_to_a_step_that_goes_as_well_goes_on_with_it`.

use rusqlite::{Connection, OptionalExtension, Row, params};
use towpath_protocol::start::{DELAY_LEVELS, DELAY_UNIT_MS};

use super::flows::NewVersion;
use super::{Store, StoreError, now_ms};

/// How long something may still come for a step: the longest delay of the ladder, and a day for
/// what the broker holds back.
const COMES_MS: u64 = (DELAY_UNIT_MS << DELAY_LEVELS) + 24 * 3_600_000;

/// A step that a flow had once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormerStep {
    /// The flow.
    pub flow: String,
    /// The step.
    pub step: String,
    /// The first version of the flow without it.
    pub version: u32,
    /// The step that takes its messages; none if they become dead letters.
    pub successor: Option<String>,
    /// Until when something may come for it, in milliseconds since 1970.
    pub until: u64,
}

const SELECT: &str = "SELECT flow, step, version, successor, until FROM former_steps";

impl Store {
    /// All former steps.
    pub async fn former_steps(&self) -> Result<Vec<FormerStep>, StoreError> {
        self.with("list former steps", |connection| {
            connection
                .prepare_cached(&format!("{SELECT} ORDER BY flow, step"))?
                .query_map([], read)?
                .collect()
        })
        .await
    }

    /// A former step.
    pub async fn former_step(
        &self,
        flow: &str,
        step: &str,
    ) -> Result<Option<FormerStep>, StoreError> {
        let (flow, step) = (flow.to_owned(), step.to_owned());
        self.with("read a former step", move |connection| {
            connection
                .prepare_cached(&format!("{SELECT} WHERE flow = ?1 AND step = ?2"))?
                .query_row([&flow, &step], read)
                .optional()
        })
        .await
    }

    /// Forgets a former step: nothing comes for it any more.
    pub async fn forget_former_step(&self, flow: &str, step: &str) -> Result<(), StoreError> {
        let (flow, step) = (flow.to_owned(), step.to_owned());
        self.with("forget a former step", move |connection| {
            connection.execute(
                "DELETE FROM former_steps WHERE flow = ?1 AND step = ?2",
                [&flow, &step],
            )?;
            Ok(())
        })
        .await
    }
}

/// Records which steps a new version no longer has, and where their messages go.
pub(super) fn record(
    connection: &Connection,
    new: &NewVersion,
    version: u32,
) -> rusqlite::Result<()> {
    for step in &new.steps {
        connection.execute(
            "DELETE FROM former_steps WHERE flow = ?1 AND step = ?2",
            params![new.flow, step],
        )?;
    }
    for step in &new.removed {
        let successor = new.moves.get(step);
        connection.execute(
            "UPDATE former_steps SET successor = ?3 WHERE flow = ?1 AND successor = ?2",
            params![new.flow, step, successor],
        )?;
        connection.execute(
            "INSERT INTO former_steps (flow, step, version, successor, until)
             VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (flow, step) DO UPDATE SET version = ?3, successor = ?4, until = ?5",
            params![new.flow, step, version, successor, now_ms() + COMES_MS],
        )?;
        if let Some(successor) = successor {
            // A trigger goes on from where it was under its other name.
            connection.execute(
                "UPDATE OR REPLACE checkpoints SET step = ?3 WHERE flow = ?1 AND step = ?2",
                params![new.flow, step, successor],
            )?;
        }
    }
    Ok(())
}

fn read(row: &Row<'_>) -> rusqlite::Result<FormerStep> {
    Ok(FormerStep {
        flow: row.get("flow")?,
        step: row.get("step")?,
        version: row.get("version")?,
        successor: row.get("successor")?,
        until: row.get("until")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn apply(store: &Store, steps: &[&str], removed: &[&str], moves: &[(&str, &str)]) {
        let owned = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect();
        let new = NewVersion {
            flow: "orders".into(),
            steps: owned(steps),
            removed: owned(removed),
            queues: owned(steps),
            queues_removed: owned(removed),
            moves: moves
                .iter()
                .map(|(from, to)| ((*from).to_owned(), (*to).to_owned()))
                .collect(),
            ..NewVersion::default()
        };
        store.store_version(new).await.unwrap();
    }

    async fn former(store: &Store) -> Vec<(String, u32, Option<String>)> {
        let former = store.former_steps().await.unwrap();
        former
            .into_iter()
            .map(|it| (it.step, it.version, it.successor))
            .collect()
    }

    #[tokio::test]
    async fn a_step_that_is_there_again_is_no_former_step() {
        let store = Store::in_memory().unwrap();
        apply(&store, &["a", "b"], &[], &[]).await;
        apply(&store, &["a"], &["b"], &[]).await;
        assert_eq!(former(&store).await, [("b".to_owned(), 2, None)]);
        apply(&store, &["a", "b"], &[], &[]).await;
        assert_eq!(former(&store).await, []);
    }

    #[tokio::test]
    async fn what_went_to_a_step_that_goes_as_well_goes_on_with_it() {
        let store = Store::in_memory().unwrap();
        apply(&store, &["a"], &[], &[]).await;
        apply(&store, &["b"], &["a"], &[("a", "b")]).await;
        apply(&store, &["c"], &["b"], &[("b", "c")]).await;
        let to = |name: &str| Some(name.to_owned());
        let expect = [("a".to_owned(), 2, to("c")), ("b".to_owned(), 3, to("c"))];
        assert_eq!(former(&store).await, expect);
        let one = store.former_step("orders", "a").await.unwrap().unwrap();
        assert!(one.until > now_ms() + (1 << 24) * 250);
        apply(&store, &["d"], &["c"], &[]).await;
        assert!(
            former(&store).await.iter().all(|(_, _, to)| to.is_none()),
            "nobody takes what comes for them now"
        );
        let removals = store.removals().await.unwrap();
        let of_c = removals.iter().find(|it| it.step == "c").unwrap();
        assert_eq!((of_c.version, &of_c.successor), (Some(4), &None));
        store.forget_former_step("orders", "a").await.unwrap();
        assert_eq!(former(&store).await.len(), 2);
    }
}
