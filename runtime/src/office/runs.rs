//! The desk that notes what came of runs.
//!
//! # Invariants
//!
//! - Reports are read in their order, and acknowledged after they are stored: one that comes again
//!   changes nothing.
//! - `a_report_that_cannot_be_read_holds_nothing_up`.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::FutureExt as _;
use tokio::sync::mpsc;
use towpath_protocol::runs;

use super::{Office, WINDOW, settle, until_stored};
use crate::broker::Delivery;
use crate::store::tracking::{Report, WebhookRuns};

/// How many entries are written in one transaction: about a tenth of a second, in which nobody else
/// can use the store.
const ENTRIES_MAX: usize = 8_192;

impl Office {
    pub(super) async fn read_runs(self, mut deliveries: mpsc::Receiver<Delivery>) {
        let mut waiting = Vec::new();
        let mut batch = Vec::new();
        loop {
            if waiting.is_empty()
                && deliveries
                    .recv_many(&mut waiting, usize::from(WINDOW))
                    .await
                    == 0
            {
                return;
            }
            let mut reports: Vec<Report> = Vec::new();
            let mut entries = 0;
            let mut taken = 0;
            for delivery in &waiting {
                if taken > 0 && entries >= ENTRIES_MAX {
                    break;
                }
                taken += 1;
                match runs::read(&delivery.body) {
                    Ok(report) => {
                        entries += report.1.len();
                        reports.push(report);
                    }
                    // It can never be read.
                    Err(error) => tracing::error!(%error, "a report of runs is dropped"),
                }
            }
            batch.extend(waiting.drain(..taken));
            let reports = Arc::new(reports);
            let webhooks = Arc::new(self.webhooks(&reports));
            let note = || {
                let now = (self.clock)();
                self.store
                    .note_runs(Arc::clone(&reports), Arc::clone(&webhooks), now)
                    .boxed()
            };
            let noted = until_stored(note).await;
            self.metrics
                .runs_noted(noted.entries, noted.finished.len() as u64);
            for run in noted.finished {
                tracing::debug!(%run, "everything that came of the run is settled");
            }
            batch.drain(..).for_each(settle);
        }
    }

    /// The flows among the reporters' whose requests are runs.
    fn webhooks(&self, reports: &[Report]) -> BTreeMap<String, WebhookRuns> {
        let flows = self.flows.borrow();
        let mut webhooks = BTreeMap::new();
        for (head, _) in reports {
            let name = &head.identity.flow;
            let Some(flow) = flows
                .get(name)
                .filter(|flow| !webhooks.contains_key(&flow.name))
            else {
                continue;
            };
            if flow.track && !flow.trigger.fires.by_ticks() {
                let takers = flow.entry_steps();
                let runs = WebhookRuns {
                    version: flow.version,
                    trigger: flow.trigger.step.clone(),
                    takers,
                };
                webhooks.insert(name.clone(), runs);
            }
        }
        webhooks
    }
}
