//! The desk that notes what came of runs, and keeps what flows answer.
//!
//! # Invariants
//!
//! - Reports are read in their order, and acknowledged after they are stored: one that comes again
//!   changes nothing.
//! - `a_report_that_cannot_be_read_holds_nothing_up`.
//! - `an_answer_is_kept_before_its_run_is_finished`: whoever waits is told of the answer, not of the end.
//! - `an_answer_that_cannot_be_sent_says_so`.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::FutureExt as _;
use serde_json::json;
use serde_json::value::to_raw_value;
use tokio::sync::mpsc;
use towpath_protocol::answer::Answer;
use towpath_protocol::message::{BATCH_TYPE, Lineage, Message};
use towpath_protocol::{MessageId, runs};

use super::{Office, WINDOW, lines, settle, until_stored};
use crate::broker::Delivery;
use crate::store::tracking::{Report, WebhookRuns};

/// How many entries are written in one transaction: about a tenth of a second, in which nobody else
/// can use the store.
const ENTRIES_MAX: usize = 8_192;

/// Reads what a step answers: of which run it is, and the answer as it is kept. What cannot be sent is
/// an answer that says so, because whoever waits is to learn it.
fn answer(line: &[u8]) -> Option<(MessageId, String)> {
    let message: Message<'_> = serde_json::from_slice(line)
        .inspect_err(|error| tracing::error!(%error, "an answer that is no message is dropped"))
        .ok()?;
    let lineage: Lineage = serde_json::from_str(message.lineage.get())
        .inspect_err(|error| tracing::error!(%error, "an answer of no known run is dropped"))
        .ok()?;
    let read: Result<Answer, String> =
        serde_json::from_str(message.body.get()).map_err(|error| error.to_string());
    let answer = read.and_then(|answer| answer.check().map(|()| answer));
    let answer = answer.unwrap_or_else(|why| {
        tracing::warn!(run = %lineage.run, why, "a step gave an answer that cannot be sent");
        unusable(&why)
    });
    Some((
        lineage.run,
        serde_json::to_string(&answer).expect("an answer is JSON"),
    ))
}

fn unusable(why: &str) -> Answer {
    let message = format!("the flow gave an answer that cannot be sent: {why}");
    let body = json!({"error": {"code": "unusable_answer", "message": message}});
    Answer {
        status: 502,
        headers: BTreeMap::new(),
        body: to_raw_value(&body).ok(),
    }
}

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
            let mut answers = Vec::new();
            let mut entries = 0;
            let mut taken = 0;
            for delivery in &waiting {
                if taken > 0 && entries >= ENTRIES_MAX {
                    break;
                }
                taken += 1;
                if delivery.kind == BATCH_TYPE {
                    answers.extend(lines(&delivery.body).filter_map(answer));
                    continue;
                }
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
            self.keep(answers).await;
            if reports.is_empty() {
                batch.drain(..).for_each(settle);
                continue;
            }
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
                self.waiters.wake(run);
            }
            batch.drain(..).for_each(settle);
        }
    }

    /// Keeps answers, and tells those who wait for them.
    async fn keep(&self, answers: Vec<(MessageId, String)>) {
        if answers.is_empty() {
            return;
        }
        let keep = || {
            self.store
                .keep_answers(answers.clone(), (self.clock)())
                .boxed()
        };
        let kept = until_stored(keep).await;
        for ((run, _), kept) in answers.iter().zip(kept) {
            if kept {
                self.waiters.wake(*run);
            } else {
                tracing::debug!(%run, "an answer is dropped: its run has one, or is forgotten");
            }
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
