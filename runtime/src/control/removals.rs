//! Removes the queues of steps and flows that are gone, once nothing uses them any more.
//!
//! # Invariants
//!
//! - A queue that holds something is never removed, unless its messages were given up by whoever
//!   deleted the step: they may have come back from a replica that just ended.
//! - It goes on where it was after a restart: what is to be removed is in the store.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Control;
use crate::engine::chain;
use crate::store::flows::Removal;

/// How often what could not be removed is tried again.
const AGAIN: Duration = Duration::from_secs(2);

impl Control {
    /// Removes queues until `stop`.
    pub async fn run_removals(self: Arc<Self>, stop: CancellationToken) {
        let mut last_trouble = String::new();
        loop {
            let rest = match self.remove_queues().await {
                Ok(0) => Duration::from_secs(60),
                Ok(_) => AGAIN,
                Err(trouble) => {
                    if trouble != last_trouble {
                        tracing::warn!("cannot remove queues: {trouble}");
                        last_trouble = trouble;
                    }
                    AGAIN
                }
            };
            // All are cancel-safe: a notification that is not taken is kept.
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.removals.notified() => tokio::time::sleep(Duration::from_millis(200)).await,
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    /// Removes what can be removed now, and returns how many queues still wait.
    pub(super) async fn remove_queues(&self) -> Result<usize, String> {
        let removals = self
            .catalog
            .store
            .removals()
            .await
            .map_err(|error| chain(&error))?;
        let mut left = 0;
        let mut done = Vec::new();
        for removal in removals {
            if self.is_used(&removal) {
                left += 1;
                continue;
            }
            let queue = self
                .catalog
                .ground
                .names
                .queue(&removal.flow, &removal.step);
            match self
                .broker
                .delete_queue(&queue, removal.drop_messages)
                .await
            {
                Ok(()) => {
                    tracing::info!(queue, "removed a queue, because its step is gone");
                    self.catalog
                        .store
                        .removed(&removal)
                        .await
                        .map_err(|error| chain(&error))?;
                    done.push(removal.flow);
                }
                Err(error) => {
                    left += 1;
                    tracing::debug!(
                        queue,
                        error = chain(&error),
                        "a queue cannot be removed yet"
                    );
                }
            }
        }
        self.remove_exchanges(done).await?;
        Ok(left)
    }

    /// Removes the exchanges of flows that are gone with all their queues.
    async fn remove_exchanges(&self, flows: Vec<String>) -> Result<(), String> {
        if flows.is_empty() {
            return Ok(());
        }
        let store = &self.catalog.store;
        let kept: BTreeSet<String> = store
            .flows()
            .await
            .map_err(|error| chain(&error))?
            .into_iter()
            .map(|flow| flow.name)
            .collect();
        let waiting: BTreeSet<String> = store
            .removals()
            .await
            .map_err(|error| chain(&error))?
            .into_iter()
            .map(|removal| removal.flow)
            .collect();
        let gone: BTreeSet<String> = flows
            .into_iter()
            .filter(|flow| !kept.contains(flow) && !waiting.contains(flow))
            .collect();
        for flow in gone {
            let exchange = self.catalog.ground.names.flow(&flow);
            self.broker
                .delete_exchange(&exchange)
                .await
                .map_err(|error| chain(&error))?;
            tracing::info!(exchange, "removed an exchange, because its flow is gone");
        }
        Ok(())
    }

    /// Whether a replica of the step is still there, or nobody knows.
    fn is_used(&self, removal: &Removal) -> bool {
        let status = self.reconciler.status.borrow();
        if status.at == 0 || status.trouble.is_some() {
            return true;
        }
        let step = status
            .flows
            .get(&removal.flow)
            .and_then(|flow| flow.steps.get(&removal.step));
        step.is_some_and(|step| step.replicas.iter().any(|it| it.container.is_some()))
    }
}
