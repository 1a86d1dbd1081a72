//! The office: it reads what agents and the broker tell the control plane, and records it.
//!
//! # Invariants
//!
//! - Nothing is acknowledged before it is stored; a store that fails is tried again, and what
//!   waits, waits on the broker.
//! - News is handled in order, one after the other: an answer to "where was I?" includes every save
//!   before it.
//! - `what_is_delivered_twice_is_stored_once`.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use towpath_protocol::MessageId;
use towpath_protocol::message::BATCH_TYPE;
use towpath_protocol::office::{
    CheckpointAnswer, DeadCause, FOUND_TYPE, Found, News, RegistrationOutcome, Report, ToAgent,
};
use towpath_protocol::start::Identity;

use crate::broker::topology::{Handover, Names};
use crate::broker::{Broker, Delivery, Publication};
use crate::engine::chain;
use crate::ingress::Waiters;
use crate::inquiry::Inquiry;
use crate::live::LiveFlows;
use crate::metrics::Metrics;
use crate::rates::{Containers, Rates};
use crate::reports::Reports;
use crate::schedule::Clock;
use crate::store::checkpoints::{CheckpointKey, Saved};
use crate::store::dead_letters::Stored;
use crate::store::ledger::Sightings;
use crate::store::records::{DeadLetterRecord, RunState};
use crate::store::{Store, StoreError};

mod ledger;
pub mod letters;
mod runs;
mod waiting;

/// How many deliveries are taken at a time. Dead letters of so many are stored in one transaction.
const WINDOW: u16 = 64;

/// How long to wait before a store that failed is tried again.
const STORE_RETRY: Duration = Duration::from_secs(1);

/// How often silent replicas are forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(60);

/// What the office needs. Clones do the same work.
#[derive(Clone)]
pub struct Office {
    /// Where news, reports and dead letters come from.
    pub broker: Arc<dyn Broker>,
    /// Where they go.
    pub store: Store,
    /// The instance's names.
    pub names: Names,
    /// Where reports go.
    pub reports: Reports,
    /// Where answers to questions go.
    pub inquiry: Inquiry,
    /// Where dead letters are counted.
    pub metrics: Metrics,
    /// Told when a run may have ended.
    pub runs_changed: Arc<Notify>,
    /// Told when a trigger has answered a call to register.
    pub registrations_changed: Arc<Notify>,
    /// The flows.
    pub flows: LiveFlows,
    /// What is known of who claims messages.
    pub sightings: Sightings,
    /// Those who wait for what flows answer.
    pub waiters: Waiters,
    /// Who of a step's replicas may hand over how much of its rate.
    pub rates: Rates,
    /// The containers there are.
    pub containers: Arc<dyn Fn() -> Containers + Send + Sync>,
    /// What time it is.
    pub clock: Clock,
}

impl Office {
    /// Works until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let news = self.broker.consume(&self.names.news(), WINDOW).await;
        let reports = self.broker.consume(&self.names.reports(), WINDOW).await;
        let dead = self.broker.consume(&self.names.dead(), WINDOW).await;
        let lost = self.broker.consume(&self.names.lost(), WINDOW).await;
        let ledger = self
            .broker
            .consume(&self.names.ledger(), ledger::WINDOW)
            .await;
        let waiting = self.broker.consume(&self.names.waiting(), WINDOW).await;
        let runs = self.broker.consume(&self.names.runs(), WINDOW).await;
        let mut tasks = JoinSet::new();
        tasks.spawn(self.clone().read_news(news));
        tasks.spawn(self.clone().read_reports(reports));
        tasks.spawn(self.clone().read_ledger(ledger));
        tasks.spawn(self.clone().read_waiting(waiting));
        tasks.spawn(self.clone().read_runs(runs));
        tasks.spawn(self.clone().read_letters(dead));
        tasks.spawn(self.read_letters(lost));
        // Cancel-safe: what is cut off was not acknowledged, and comes again.
        tokio::select! {
            () = shutdown.cancelled() => {}
            ended = tasks.join_next() => {
                if let Some(Err(error)) = ended && error.is_panic() {
                    std::panic::resume_unwind(error.into_panic());
                }
            }
        }
    }

    async fn read_news(self, mut deliveries: mpsc::Receiver<Delivery>) {
        while let Some(delivery) = deliveries.recv().await {
            for line in lines(&delivery.body) {
                match serde_json::from_slice::<News>(line) {
                    Ok(news) => self.handle(news, delivery.reply.as_ref()).await,
                    // It can never be read; an older control plane must not stand still over what a
                    // newer agent has to say.
                    Err(error) => tracing::error!(%error, "news that cannot be read is dropped"),
                }
            }
            settle(delivery);
        }
    }

    async fn run_ended(
        &self,
        identity: &Identity,
        run: MessageId,
        state: RunState,
        emitted: u64,
        at: u64,
    ) {
        let end = || {
            self.store
                .run_ended(run, state, at, Some(emitted), None)
                .boxed()
        };
        if until_stored(end).await {
            tracing::info!(flow = identity.flow, %run, emitted, ?state, "the trigger of a run has ended");
        }
        self.runs_changed.notify_one();
    }

    async fn handle(&self, news: News, reply: Option<&(String, String)>) {
        match news {
            News::AskCheckpoint {
                identity,
                run,
                connection,
            } => {
                let key = key(&identity, &connection);
                let found = until_stored(|| self.store.checkpoint(&key).boxed()).await;
                let version = found.as_ref().map_or(0, |found| found.version);
                let checkpoint = found.and_then(|found| found.value);
                let begin = || {
                    let now = (self.clock)();
                    self.store
                        .run_began(run, checkpoint.as_deref(), now)
                        .boxed()
                };
                let begun = until_stored(begin).await;
                let answer = CheckpointAnswer {
                    run,
                    checkpoint,
                    version,
                    cancelled: begun.is_cancelled,
                };
                self.answer(answer, reply).await;
            }
            News::Checkpoint {
                identity,
                run,
                connection,
                number,
                follows,
                value,
            } => {
                let key = key(&identity, &connection);
                let save = || {
                    self.store
                        .save_checkpoint(&key, run, number, value.clone(), follows)
                        .boxed()
                };
                let (flow, step) = (&identity.flow, &identity.step);
                match until_stored(save).await {
                    Saved::Yes | Saved::Repeated => {}
                    Saved::NotActive => tracing::warn!(
                        flow, step, %run,
                        "a checkpoint of a run that is not the trigger's active one is not stored"
                    ),
                    Saved::Overtaken { version } => tracing::warn!(
                        flow, step, %run, version,
                        "a checkpoint is not stored: another one was written since the run began"
                    ),
                }
            }
            News::RunEnded {
                identity,
                run,
                emitted,
                at,
            } => {
                self.run_ended(&identity, run, RunState::Done, emitted, at)
                    .await;
            }
            News::RunRetries {
                identity,
                run,
                reason,
                next,
                is_rebound,
            } => {
                let retry = || {
                    self.store
                        .run_retries(run, &reason, next, is_rebound)
                        .boxed()
                };
                if until_stored(retry).await {
                    tracing::warn!(flow = identity.flow, %run, reason, "the run failed and is tried again");
                }
            }
            News::Registration {
                identity,
                call,
                outcome,
            } => self.registration_answered(&identity, call, outcome).await,
            News::RunCancelled {
                identity,
                run,
                emitted,
                at,
            } => {
                self.run_ended(&identity, run, RunState::Cancelled, emitted, at)
                    .await;
            }
        }
    }

    async fn registration_answered(
        &self,
        identity: &Identity,
        call: MessageId,
        outcome: RegistrationOutcome,
    ) {
        let now = (self.clock)();
        let record = || {
            let outcome = outcome.clone();
            self.store
                .registration_answered(call, move |last| last.answered(outcome, now))
                .boxed()
        };
        let is_last = until_stored(record).await;
        let (flow, step) = (&identity.flow, &identity.step);
        match outcome {
            _ if !is_last => {
                tracing::debug!(flow, step, %call, "an answer to an earlier call to register");
            }
            RegistrationOutcome::Activated { .. } => {
                tracing::info!(flow, step, %call, "its trigger has registered at its source");
            }
            RegistrationOutcome::Deactivated => {
                tracing::info!(flow, step, %call, "its trigger has taken back what it registered");
            }
            RegistrationOutcome::Failed { reason, .. } => {
                tracing::warn!(flow, step, %call, reason, "its trigger cannot register, or take that back; trying on");
            }
        }
        self.registrations_changed.notify_one();
    }

    async fn answer(&self, answer: CheckpointAnswer, reply: Option<&(String, String)>) {
        let Some((reply_to, correlation)) = reply else {
            tracing::error!(run = %answer.run, "a question about a checkpoint does not say where to answer");
            return;
        };
        let run = answer.run;
        let body = serde_json::to_vec(&ToAgent::Checkpoint(answer)).expect("an answer is JSON");
        // Who asked and got no answer asks again.
        if let Err(error) = self.broker.reply(reply_to, correlation, body.into()).await {
            tracing::warn!(%run, error = %chain(&error), "cannot answer a question about a checkpoint");
        }
    }

    async fn read_reports(self, mut deliveries: mpsc::Receiver<Delivery>) {
        let mut forget = tokio::time::interval(FORGET_EVERY);
        loop {
            // Cancel-safe: `recv` and a tick lose nothing.
            tokio::select! {
                delivery = deliveries.recv() => {
                    let Some(delivery) = delivery else { return };
                    for line in lines(&delivery.body) {
                        if delivery.kind == FOUND_TYPE {
                            self.take_answer(line);
                        } else {
                            self.take_report(line, &delivery).await;
                        }
                    }
                    settle(delivery);
                }
                _ = forget.tick() => self.reports.forget_silent((self.clock)()),
            }
        }
    }

    async fn take_report(&self, line: &[u8], delivery: &Delivery) {
        match serde_json::from_slice::<Report>(line) {
            Ok(report) if report.identity.instance == self.names.instance => {
                if let Some((reply_to, _)) = &delivery.reply {
                    self.reports.note_address(&report.identity, reply_to);
                    self.answer_report(&report, reply_to, !delivery.is_redelivered)
                        .await;
                }
                self.reports.record(report, (self.clock)());
            }
            Ok(report) => {
                tracing::debug!(
                    instance = report.identity.instance,
                    "a report of another instance"
                );
            }
            Err(error) => tracing::debug!(%error, "a report that cannot be read"),
        }
    }

    /// Tells a replica its share of its step's rate.
    async fn answer_report(&self, report: &Report, reply_to: &str, is_fresh: bool) {
        if report.pacing.is_none() {
            return;
        }
        let containers = (self.containers)();
        let now = (self.clock)();
        let Some(share) = self.rates.answer(report, is_fresh, &containers, now) else {
            return;
        };
        let body = serde_json::to_vec(&ToAgent::Share(share)).expect("an answer is JSON");
        // Whoever gets no answer keeps what it has, and reports again.
        if let Err(error) = self.broker.reply(reply_to, "share", body.into()).await {
            tracing::debug!(error = %chain(&error), "cannot tell a replica its share of the rate");
        }
    }

    fn take_answer(&self, line: &[u8]) {
        match serde_json::from_slice::<Found>(line) {
            Ok(found) => self.inquiry.answered(found),
            Err(error) => tracing::debug!(%error, "an answer that cannot be read"),
        }
    }

    async fn read_letters(self, mut deliveries: mpsc::Receiver<Delivery>) {
        let mut batch = Vec::new();
        while deliveries.recv_many(&mut batch, usize::from(WINDOW)).await > 0 {
            let now = (self.clock)();
            let records: Vec<_> = batch
                .iter()
                .flat_map(|delivery| letters::of(&self.names, delivery, now))
                .collect();
            let records = self.redirect(records).await;
            let stored =
                until_stored(|| self.store.store_dead_letters(records.clone()).boxed()).await;
            for (record, stored) in records.iter().zip(stored) {
                if let Some(run) = record.run {
                    self.waiters.wake(run);
                }
                if stored == Stored::Known {
                    continue;
                }
                self.metrics.dead_letter(record);
                tracing::warn!(
                    flow = record.flow,
                    step = record.step,
                    message_id = %record.message_id,
                    cause = ?record.cause,
                    reason = record.reason,
                    repeated = stored == Stored::Repeated,
                    "a message was given up"
                );
            }
            self.runs_changed.notify_one();
            batch.drain(..).for_each(settle);
        }
    }
}

impl Office {
    /// What comes for a step that its flow no longer has goes to the step that takes its messages,
    /// or becomes a dead letter that says so. What comes for a step whose queue is there goes to it:
    /// a broker that starts lets go of retries before it has its bindings again. Returns the dead
    /// letters.
    async fn redirect(&self, records: Vec<DeadLetterRecord>) -> Vec<DeadLetterRecord> {
        let mut letters = Vec::with_capacity(records.len());
        for mut record in records {
            if record.cause == DeadCause::Unroutable && record.port.is_none() {
                let (flow, step) = (&record.flow, &record.step);
                if let Some(handover) = self.handover(flow, step) {
                    if self.hand_over(&record, &handover).await {
                        continue;
                    }
                    record.reason = format!(
                        "`{step}` hands messages to the flow `{}`, and none of its steps takes them",
                        handover.to
                    );
                    letters.push(record);
                    continue;
                }
                let former = || self.store.former_step(flow, step).boxed();
                if let Some(former) = until_stored(former).await {
                    if let Some(successor) = &former.successor
                        && self.pass_on(&record, successor).await
                    {
                        let now = (self.clock)();
                        let note = || {
                            self.store
                                .run_message_moved(&record, successor, now)
                                .boxed()
                        };
                        until_stored(note).await;
                        continue;
                    }
                    record.cause = DeadCause::Removed;
                    record.reason = format!(
                        "the step `{step}` was taken out of `{flow}` with version {}, and no step takes its messages",
                        former.version
                    );
                } else if self.has_queue(flow, step).await && self.pass_on(&record, step).await {
                    continue;
                }
            }
            letters.push(record);
        }
        letters
    }

    /// Whether a step has a queue now.
    async fn has_queue(&self, flow: &str, step: &str) -> bool {
        // Its intake, if it keeps an order.
        let queues = [self.names.queue(flow, step), self.names.intake(flow, step)];
        let depths = self.broker.depths(&queues).await;
        depths.is_ok_and(|depths| !depths.is_empty())
    }

    /// What an action of a flow hands to another, if it is one that does.
    fn handover(&self, flow: &str, step: &str) -> Option<Handover> {
        let flows = self.flows.borrow();
        flows.get(flow)?.handover(step).cloned()
    }

    /// Sends a message that missed the other flow to its steps as they are now: it was sent by the way
    /// of an earlier version. Says whether it did.
    async fn hand_over(&self, record: &DeadLetterRecord, handover: &Handover) -> bool {
        for entry in &handover.entry {
            if !self.has_queue(&handover.to, &entry.step).await {
                return false;
            }
        }
        let Some(key) = handover
            .keys()
            .next()
            .filter(|_| !handover.entry.is_empty())
        else {
            return false;
        };
        self.send_on(record, self.names.flow(&record.flow), key)
            .await
    }

    /// Sends a message that missed its queue to a step. Says whether it did.
    async fn pass_on(&self, record: &DeadLetterRecord, to: &str) -> bool {
        let key = Names::step_key(&record.flow, to);
        self.send_on(record, self.names.steps(), key).await
    }

    async fn send_on(&self, record: &DeadLetterRecord, exchange: String, key: String) -> bool {
        let publication = Publication {
            exchange,
            key,
            kind: BATCH_TYPE,
            body: record.message.get().to_owned().into(),
            count: 1,
        };
        match self.broker.publish(publication).await {
            Ok(()) => true,
            Err(error) => {
                // It is kept as a dead letter, and can be replayed.
                tracing::warn!(flow = record.flow, step = record.step, error = %chain(&error), "a message that missed its queue cannot be passed on");
                false
            }
        }
    }
}

fn key(identity: &Identity, connection: &str) -> CheckpointKey {
    CheckpointKey {
        flow: identity.flow.clone(),
        step: identity.step.clone(),
        connection: connection.to_owned(),
    }
}

/// Does something in the store until it succeeds. Meanwhile nothing is acknowledged.
async fn until_stored<'a, T>(mut work: impl FnMut() -> BoxFuture<'a, Result<T, StoreError>>) -> T {
    let mut warned = false;
    loop {
        match work().await {
            Ok(value) => return value,
            Err(error) if !warned => {
                tracing::error!(error = %chain(&error), "the store does not work; what agents say waits on the broker");
                warned = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(STORE_RETRY).await;
    }
}

fn settle(delivery: Delivery) {
    if delivery.settle.send(true).is_err() {
        tracing::debug!("a delivery came from a connection that is gone, and will come again");
    }
}

fn lines(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    body.split(|byte| *byte == b'\n')
        .filter(|line| !line.trim_ascii().is_empty())
}

#[cfg(test)]
mod tests;
