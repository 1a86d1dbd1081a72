//! What an operator said of single steps: paused, draining or stopped, whatever the flow file says.
//!
//! # Invariants
//!
//! - `a_hold_stays_when_the_flow_is_applied_again`, as long as the flow has the step.

use rusqlite::{Connection, params};

use super::{Store, StoreError, columns};
use crate::reconcile::FlowState;
use crate::reconcile::intent::Held;

impl Store {
    /// Says what a step should be doing; `Running` forgets what was said.
    pub async fn set_hold(
        &self,
        flow: &str,
        step: &str,
        state: FlowState,
    ) -> Result<(), StoreError> {
        let (flow, step) = (flow.to_owned(), step.to_owned());
        self.with("hold a step", move |connection| {
            if state == FlowState::Running {
                connection.execute(
                    "DELETE FROM holds WHERE flow = ?1 AND step = ?2",
                    params![flow, step],
                )?;
            } else {
                connection.execute(
                    "INSERT INTO holds (flow, step, state) VALUES (?1, ?2, ?3)
                     ON CONFLICT (flow, step) DO UPDATE SET state = ?3",
                    params![flow, step, columns::word(state)],
                )?;
            }
            Ok(())
        })
        .await
    }
}

/// What was said of the steps of a flow.
pub(super) fn holds(connection: &Connection, flow: &str) -> rusqlite::Result<Held> {
    connection
        .prepare_cached("SELECT step, state FROM holds WHERE flow = ?1")?
        .query_map([flow], |row| {
            Ok((row.get("step")?, columns::unword(row, "state")?))
        })?
        .collect()
}

/// Forgets what was said of steps that the flow no longer has.
pub(super) fn forget_others(
    connection: &Connection,
    flow: &str,
    steps: &[String],
) -> rusqlite::Result<()> {
    for step in holds(connection, flow)?.into_keys() {
        if !steps.contains(&step) {
            connection.execute(
                "DELETE FROM holds WHERE flow = ?1 AND step = ?2",
                params![flow, step],
            )?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::flows::NewVersion;

    #[tokio::test]
    async fn a_hold_stays_when_the_flow_is_applied_again() {
        let store = Store::in_memory().unwrap();
        let version = |steps: &[&str]| NewVersion {
            flow: "orders".into(),
            steps: steps.iter().map(|step| (*step).to_owned()).collect(),
            ..NewVersion::default()
        };
        store.store_version(version(&["a", "b"])).await.unwrap();
        let held = async || store.flow("orders").await.unwrap().unwrap().held;
        for (step, state) in [
            ("a", FlowState::Draining),
            ("a", FlowState::Paused),
            ("b", FlowState::Stopped),
        ] {
            store.set_hold("orders", step, state).await.unwrap();
        }
        let both = Held::from([
            ("a".to_owned(), FlowState::Paused),
            ("b".to_owned(), FlowState::Stopped),
        ]);
        assert_eq!(held().await, both);
        store.store_version(version(&["a", "c"])).await.unwrap();
        assert_eq!(
            held().await,
            Held::from([("a".to_owned(), FlowState::Paused)])
        );
        store
            .set_hold("orders", "a", FlowState::Running)
            .await
            .unwrap();
        assert_eq!(held().await, Held::new());
    }
}
