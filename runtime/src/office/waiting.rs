//! The desk that keeps the notes about messages that wait in the delay ladder.
//!
//! # Invariants
//!
//! - `notes_are_stored`, many at a time; nothing depends on them but what people see.

use futures_util::FutureExt as _;
use tokio::sync::mpsc;
use towpath_protocol::office::Waiting;

use super::{Office, WINDOW, lines, settle, until_stored};
use crate::broker::Delivery;
use crate::engine::chain;
use crate::store::waiting::OVERDUE_MS_KEPT;

impl Office {
    pub(super) async fn read_waiting(self, mut deliveries: mpsc::Receiver<Delivery>) {
        let mut forget = tokio::time::interval(super::FORGET_EVERY);
        let mut batch = Vec::new();
        let mut is_full = false;
        loop {
            // Cancel-safe: `recv_many` and a tick lose nothing.
            tokio::select! {
                taken = deliveries.recv_many(&mut batch, usize::from(WINDOW)) => if taken == 0 {
                    return;
                },
                _ = forget.tick() => {
                    let before = (self.clock)().saturating_sub(OVERDUE_MS_KEPT);
                    if let Err(error) = self.store.forget_due(before).await {
                        tracing::warn!(error = %chain(&error), "cannot forget notes of what came back");
                    }
                    continue;
                }
            }
            let notes: Vec<Waiting> = batch
                .iter()
                .flat_map(|delivery| lines(&delivery.body))
                .filter_map(|line| {
                    serde_json::from_slice(line)
                        .inspect_err(|error| tracing::debug!(%error, "a note that cannot be read"))
                        .ok()
                })
                .collect();
            let beyond = until_stored(|| self.store.note_waiting(notes.clone()).boxed()).await;
            if beyond > 0 && !is_full {
                tracing::warn!(
                    "more messages wait in the delay ladder than are noted; `retries list` shows a part"
                );
            }
            is_full = beyond > 0;
            batch.drain(..).for_each(settle);
        }
    }
}
