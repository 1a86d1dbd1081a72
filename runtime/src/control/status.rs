//! How everything is: what should be, what the reconciler sees, what agents report, what waits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use towpath_flow::{Fires, Flow, Replicas, Step};
use towpath_protocol::office::RegistrationAct;

use super::Control;
use super::changes::fires;
use super::error::ControlError;
use super::view::{FlowList, FlowStatus, FlowSummary, Readiness, ReplicaView, StepStatus};
use crate::broker::Depth;
use crate::engine::chain;
use crate::metrics::{Snapshot, StepState};
use crate::reconcile::FlowState;
use crate::reconcile::intent::intent;
use crate::reconcile::status::{ReplicaState, ReplicaStatus};
use crate::registration::Registration;
use crate::reports::quantile_us;
use crate::store::flows::FlowRecord;
use crate::store::now_ms;
use crate::store::records::{DeadState, OpenDeadLetters};

/// How long a part may take to say that it is there.
const PROBE: Duration = Duration::from_secs(3);

/// What is known beside the flow itself.
struct Facts {
    /// What waits in each queue; none if the broker does not say.
    depths: Option<BTreeMap<String, Depth>>,
    /// Open dead letters by flow and step.
    dead: BTreeMap<(String, String), u64>,
    /// Dead letters that were replayed and are still kept, by flow and step.
    replayed: BTreeMap<(String, String), u64>,
    engine_up: bool,
    /// Queues that somebody else deleted, and when they were made again.
    remade: BTreeMap<String, u64>,
    /// Why the broker takes nothing now.
    broker_trouble: Option<String>,
    /// The last calls to triggers that register at their sources, by flow.
    registrations: BTreeMap<String, Registration>,
}

impl Control {
    /// Lists all flows.
    pub async fn list(&self) -> Result<FlowList, ControlError> {
        let mut records = Vec::new();
        for record in self.catalog.store.flows().await? {
            let flow = self.catalog.flow(&record)?;
            records.push((record, flow));
        }
        let facts = self.facts(records.iter().map(|(_, flow)| flow)).await?;
        let flows = records
            .iter()
            .map(|(record, flow)| self.summary(record, flow, &facts));
        Ok(FlowList {
            flows: flows.collect(),
        })
    }

    /// Says how a flow is.
    pub async fn status(&self, flow: &str) -> Result<FlowStatus, ControlError> {
        let (record, flow) = self.record(flow).await?;
        let facts = self.facts([&flow].into_iter()).await?;
        let mut steps: Vec<StepStatus> = flow
            .steps
            .iter()
            .map(|step| self.step_status(&record, step, &facts))
            .collect();
        // While the broker is away it is not known what is left, and `reason` says so.
        let left = self.left_of_flow(&record, &flow).await.ok().flatten();
        for step in &mut steps {
            let left = self.left_of_step(&record, &flow, &step.step).await;
            step.left = left.ok().flatten();
            if step.left.is_some_and(|left| left.drained) && step.state == "draining" {
                "drained".clone_into(&mut step.state);
            }
        }
        let last_run = if flow.fires.by_ticks() {
            self.catalog.store.last_run(&flow.name).await?
        } else {
            None
        };
        let next_run_at = self.next_run_at(&record, &flow).await?;
        if let Some(run) = last_run.as_ref().filter(|run| run.state.is_active())
            && let Some(still) = self.stands_still(&flow, run).await?
            && let Some(step) = steps.iter_mut().find(|it| it.step == flow.trigger_id)
            && step.state == "running"
        {
            step.reason.get_or_insert(still);
        }
        let shown_run = match &last_run {
            Some(run) => Some(self.view_of_run(&record, &flow, run).await?),
            None => None,
        };
        Ok(FlowStatus {
            flow: record.name.clone(),
            description: flow.description.clone(),
            state: record.state,
            reason: self.flow_reason(&record, &steps, &facts),
            left,
            version: record.version,
            applied_at: record.applied_at,
            fires: fires(&flow.fires),
            handed_by: self.handed_by(&record.name).await?,
            hands: self.hands(&flow).await?,
            webhook_url: record
                .webhook_key
                .as_ref()
                .filter(|_| flow.fires == Fires::Webhook)
                .map(|key| self.webhook_url(&record.name, key)),
            last_run: shown_run,
            webhook_former_until: match flow.fires {
                Fires::Webhook => self.former_keys_until(&record.name).await?,
                _ => Vec::new(),
            },
            registration: {
                let last = facts.registrations.get(&record.name);
                self.registration_view(&record, &flow, last).await?
            },
            deleting: record.deleting.is_some(),
            next_run_at,
            timezone: match &flow.fires {
                Fires::Cron(cron) => Some(cron.zone().to_owned()),
                _ => None,
            },
            dead_letters: dead_of_flow(&record.name, &facts),
            unmatched_requests: self.metrics.webhooks_unmatched(&record.name),
            converged: self.is_converged(&record, &flow),
            steps,
            engine_up: facts.engine_up,
            broker_up: facts.broker_trouble.is_none(),
        })
    }

    /// Says which parts answer.
    pub async fn readiness(&self) -> Readiness {
        let (store, broker, engine) = tokio::join!(
            self.catalog.store.is_up(),
            timeout(PROBE, self.broker.trouble()),
            timeout(PROBE, self.engine().version()),
        );
        let word = |up: bool, down: &str| if up { "up".to_owned() } else { down.to_owned() };
        let engine = match engine {
            Ok(Ok(_)) => "up".to_owned(),
            Ok(Err(error)) => chain(&error),
            Err(_) => "it does not answer in time".to_owned(),
        };
        let parts = BTreeMap::from([
            ("store".to_owned(), word(store, "it does not answer")),
            (
                "broker".to_owned(),
                match broker {
                    Ok(None) => "up".to_owned(),
                    Ok(Some(trouble)) => trouble,
                    Err(_) => "it does not answer in time".to_owned(),
                },
            ),
            ("engine".to_owned(), engine),
        ]);
        Readiness {
            ready: parts.values().all(|part| part == "up"),
            parts,
        }
    }

    /// Everything that is counted, as Prometheus reads it.
    pub async fn metrics_text(&self) -> String {
        let snapshot = self.snapshot().await.unwrap_or_else(|error| {
            tracing::warn!("the metrics lack how the flows are: {error}");
            Snapshot::default()
        });
        self.metrics.render(&self.reports, &snapshot)
    }

    async fn snapshot(&self) -> Result<Snapshot, ControlError> {
        let mut records = Vec::new();
        for record in self.catalog.store.flows().await? {
            let flow = self.catalog.flow(&record)?;
            records.push((record, flow));
        }
        let facts = self.facts(records.iter().map(|(_, flow)| flow)).await?;
        let steps = records.iter().flat_map(|(record, flow)| {
            flow.steps
                .iter()
                .map(|step| self.step_status(record, step, &facts))
                .map(|step| StepState {
                    flow: record.name.clone(),
                    step: step.step,
                    replicas_desired: step.desired,
                    replicas_running: step.running,
                    queue_ready: step.queued_deliveries,
                })
        });
        Ok(Snapshot {
            steps: steps.collect(),
            waiting: {
                let now = (self.scheduler.clock)();
                self.catalog.store.all_waiting_counts(now).await?
            },
            claimed: self.catalog.store.ledger_claims().await?,
            open_dead_letters: self.catalog.store.open_dead_letters().await?,
            broker_up: facts.broker_trouble.is_none(),
            engine_up: facts.engine_up,
        })
    }

    async fn facts<'a>(
        &self,
        flows: impl Iterator<Item = &'a Arc<Flow>>,
    ) -> Result<Facts, ControlError> {
        let queues: Vec<String> = flows
            .flat_map(|flow| {
                let steps = flow.steps.iter();
                steps.flat_map(|step| self.queues_of(&flow.name, &step.id))
            })
            .collect();
        let (depths, trouble) = tokio::join!(
            timeout(PROBE, self.broker.depths(&queues)),
            timeout(PROBE, self.broker.trouble()),
        );
        let (depths, refused) = match depths {
            Ok(Ok(depths)) => (Some(depths), None),
            // Connected, and not allowed to look.
            Ok(Err(error)) => (None, Some(chain(&error))),
            Err(_) => (None, None),
        };
        let dead = by_step(self.catalog.store.open_dead_letters().await?);
        let replayed = self.catalog.store.count_dead_letters(DeadState::Replayed);
        let replayed = by_step(replayed.await?);
        let registrations = self.catalog.store.registrations().await?;
        let status = self.reconciler.status.borrow();
        Ok(Facts {
            depths,
            dead,
            replayed,
            engine_up: status.trouble.is_none() && status.at > 0,
            remade: self.broker.remade(),
            broker_trouble: trouble
                .unwrap_or_else(|_| Some("the broker does not answer in time".to_owned()))
                .or(refused),
            registrations,
        })
    }

    fn summary(&self, record: &FlowRecord, flow: &Flow, facts: &Facts) -> FlowSummary {
        let steps: Vec<StepStatus> = flow
            .steps
            .iter()
            .map(|step| self.step_status(record, step, facts))
            .collect();
        let queued: Option<Vec<u64>> = steps.iter().map(|step| step.queued).collect();
        FlowSummary {
            flow: record.name.clone(),
            description: flow.description.clone(),
            state: record.state,
            version: record.version,
            applied_at: record.applied_at,
            fires: fires(&flow.fires),
            steps: u32::try_from(steps.len()).unwrap_or(u32::MAX),
            running: steps.iter().map(|step| step.running).sum(),
            desired: steps.iter().map(|step| step.desired).sum(),
            queued: queued.map(|queued| queued.iter().sum()),
            dead_letters: dead_of_flow(&record.name, facts),
            reason: self.flow_reason(record, &steps, facts),
        }
    }

    fn step_status(&self, record: &FlowRecord, step: &Step, facts: &Facts) -> StepStatus {
        let flow = &record.name;
        let status = self.reconciler.status.borrow();
        let seen = status
            .flows
            .get(flow)
            .and_then(|flow| flow.steps.get(&step.id))
            .cloned();
        drop(status);
        let is_seen = seen.is_some();
        let seen = seen.unwrap_or_default();
        let totals = self.reports.totals(flow, &step.id);
        let rates = self.reports.rates(flow, &step.id, now_ms());
        let reports = self.seen(flow, &step.id);
        let queues = self.queues_of(flow, &step.id);
        let deliveries = facts.depths.as_ref().map(|depths| {
            let depths = queues.iter().filter_map(|queue| depths.get(queue));
            depths.map(|depth| depth.ready).sum()
        });
        let (state, reason) = if is_seen {
            step_state(&seen)
        } else {
            ("unknown", Some("nobody has looked yet".to_owned()))
        };
        // A loss is said before anything that mends itself.
        let reason = match (
            remade(
                queues
                    .iter()
                    .filter_map(|it| facts.remade.get(it))
                    .copied()
                    .max(),
            ),
            reason,
        ) {
            (Some(loss), Some(reason)) => Some(format!("{loss}; {reason}")),
            (loss, reason) => loss.or(reason),
        };
        let ms = |part: f64| quantile_us(&totals.latency, part).map(|us| us / 1_000.0);
        StepStatus {
            step: step.id.clone(),
            image: step.image.clone(),
            wanted: seen.state,
            because: seen.because.clone(),
            left: None,
            state: state.to_owned(),
            reason,
            next_at: worst(&seen).and_then(|replica| replica.next),
            desired: seen.desired,
            scaling: scaling(record, step, &seen),
            running: seen.running,
            queued: deliveries.map(|deliveries| self.messages_in(flow, &step.id, deliveries)),
            queued_deliveries: deliveries,
            in_hand: reports.iter().map(|report| report.in_hand).sum(),
            unacknowledged: reports.iter().map(|report| report.unacknowledged).sum(),
            in_rate: rates.received,
            out_rate: rates.emitted,
            received: totals.counters.received,
            emitted: totals.counters.emitted,
            done: totals.counters.done,
            failed: totals.counters.failed,
            retried: totals.counters.retried,
            rebounded: totals.counters.rebounded,
            dead: totals.counters.dead,
            unmatched: totals.counters.unmatched,
            replayed: facts
                .replayed
                .get(&(record.name.clone(), step.id.clone()))
                .copied()
                .unwrap_or(0),
            dead_letters: facts
                .dead
                .get(&(flow.clone(), step.id.clone()))
                .copied()
                .unwrap_or_default(),
            restarts: seen.restarts + totals.restarts,
            p50_ms: ms(0.50),
            p99_ms: ms(0.99),
            replicas: seen.replicas.iter().map(replica_view).collect(),
        }
    }

    fn flow_reason(
        &self,
        record: &FlowRecord,
        steps: &[StepStatus],
        facts: &Facts,
    ) -> Option<String> {
        let status = self.reconciler.status.borrow();
        if let Some(trouble) = &status.trouble {
            return Some(trouble.clone());
        }
        drop(status);
        if let Some(trouble) = &facts.broker_trouble {
            return Some(format!("{trouble}; what it holds is safe"));
        }
        let registration = facts.registrations.get(&record.name);
        if let Some(reason) = registration.and_then(|it| registration_reason(record, it)) {
            return Some(reason);
        }
        let is_well = |step: &&StepStatus| match step.state.as_str() {
            "running" | "starting" | "asleep" | "unknown" => true,
            "paused" => step.wanted == FlowState::Paused,
            "stopped" => step.wanted == FlowState::Stopped,
            "draining" | "drained" => step.wanted == FlowState::Draining,
            _ => false,
        };
        if !matches!(record.state, FlowState::Running | FlowState::Draining) {
            return None;
        }
        steps
            .iter()
            .find(|step| !is_well(step))
            .map(|step| match &step.reason {
                Some(reason) => format!("`{}` is {}: {reason}", step.step, words(&step.state)),
                None => format!("`{}` is {}", step.step, words(&step.state)),
            })
    }

    /// Whether all that should be is.
    fn is_converged(&self, record: &FlowRecord, flow: &Flow) -> bool {
        let status = self.reconciler.status.borrow();
        let Some(seen) = status.flows.get(&record.name) else {
            return false;
        };
        if status.trouble.is_some() || seen.version != record.version || seen.state != record.state
        {
            return false;
        }
        // A step of an earlier version that is still there counts as well.
        let all = seen.steps.iter().all(|(id, step)| {
            let model = flow.steps.iter().find(|it| it.id == *id);
            let intended = model.map(|it| intent(flow, record.state, &record.held, it).state);
            if intended.is_some_and(|intended| intended != step.state) {
                return false;
            }
            let wanted = match step.state {
                FlowState::Running | FlowState::Draining => ReplicaState::Running,
                FlowState::Paused => ReplicaState::Paused,
                FlowState::Stopped => ReplicaState::Exited,
            };
            step.blocked.is_none()
                && step.replicas.len() == step.desired as usize
                && step.replicas.iter().all(|it| {
                    // Held back is how a flow that works looks when it is full.
                    it.is_current && (it.state == wanted || it.state == ReplicaState::HeldBack)
                })
        });
        all && flow
            .steps
            .iter()
            .all(|step| seen.steps.contains_key(&step.id))
    }
}

/// Why a step has as many replicas as it has, if that is not simply what the file says.
fn scaling(
    record: &FlowRecord,
    step: &Step,
    seen: &crate::reconcile::status::StepStatus,
) -> Option<String> {
    match (record.scales.get(&step.id), step.replicas) {
        (Some(count), Replicas::Auto(auto)) => Some(format!(
            "{count} by an operator, in place of {auto}; `towpath scale {} {} auto` lets it go",
            record.name, step.id
        )),
        _ => seen.scaling.clone(),
    }
}

/// Why the trigger of a flow is not registered, or is so still, if that fails or the flow is to go.
fn registration_reason(record: &FlowRecord, last: &Registration) -> Option<String> {
    let what = match (record.deleting, last.act) {
        (Some(_), _) => "it is being deleted, and its trigger cannot take back what it registered",
        (None, RegistrationAct::Activate) => "its trigger cannot register at its source",
        (None, RegistrationAct::Deactivate) => return None,
    };
    let reason = last.reason.as_ref()?;
    Some(format!("{what}: {reason}"))
}

fn by_step(counts: Vec<OpenDeadLetters>) -> BTreeMap<(String, String), u64> {
    let mut by_step = BTreeMap::new();
    for of in counts {
        *by_step.entry((of.flow, of.step)).or_default() += of.count;
    }
    by_step
}

fn dead_of_flow(flow: &str, facts: &Facts) -> u64 {
    facts
        .dead
        .iter()
        .filter(|((of, _), _)| of == flow)
        .map(|(_, count)| count)
        .sum()
}

/// Says for an hour that a queue was gone.
fn remade(at: Option<u64>) -> Option<String> {
    let minutes = now_ms().saturating_sub(at?) / 60_000;
    (minutes < 60).then(|| {
        format!(
            "its queue was gone from the broker and was made again {minutes} min ago: what was in it is lost"
        )
    })
}

fn words(state: &str) -> String {
    state.replace('_', " ")
}

/// The states of replicas, the worst first.
const ORDER: [ReplicaState; 10] = [
    ReplicaState::StepFails,
    ReplicaState::BackingOff,
    ReplicaState::WaitingForBroker,
    ReplicaState::HeldBack,
    ReplicaState::Missing,
    ReplicaState::Starting,
    ReplicaState::Draining,
    ReplicaState::Exited,
    ReplicaState::Paused,
    ReplicaState::Running,
];

/// How a step is: the worst of its replicas, and why.
fn step_state(step: &crate::reconcile::status::StepStatus) -> (&'static str, Option<String>) {
    if let Some(blocked) = &step.blocked {
        return ("blocked", Some(blocked.clone()));
    }
    let because = step.because.clone();
    if step.state == FlowState::Stopped && step.replicas.is_empty() {
        return ("stopped", because);
    }
    if step.desired == 0 && step.replicas.is_empty() {
        return ("asleep", None);
    }
    match worst(step) {
        None => ("starting", None),
        Some(worst) => {
            let word = match (worst.state, step.state) {
                (ReplicaState::Running, FlowState::Draining) => "draining",
                (state, _) => state_word(state),
            };
            (word, reason_of(worst).or(because))
        }
    }
}

/// The replica that is worst off: of those that are as bad, one that says why.
fn worst(step: &crate::reconcile::status::StepStatus) -> Option<&ReplicaStatus> {
    let rank = |replica: &&ReplicaStatus| {
        let order = ORDER.iter().position(|it| *it == replica.state);
        (order, replica.reason.is_none())
    };
    step.replicas.iter().min_by_key(rank)
}

fn reason_of(replica: &ReplicaStatus) -> Option<String> {
    let reason = replica.reason.clone()?;
    let last = replica.last_lines.last().filter(|_| replica.failures > 0);
    Some(match last {
        Some(line) => format!("{reason}; its last line: {line}"),
        None => reason,
    })
}

fn replica_view(replica: &ReplicaStatus) -> ReplicaView {
    ReplicaView {
        replica: replica.replica,
        container: replica.container.clone(),
        state: state_word(replica.state).to_owned(),
        reason: reason_of(replica),
        next_at: replica.next,
        last_lines: replica.last_lines.clone(),
    }
}

const fn state_word(state: ReplicaState) -> &'static str {
    match state {
        ReplicaState::Missing => "missing",
        ReplicaState::BackingOff => "backing_off",
        ReplicaState::Exited => "exited",
        ReplicaState::Starting => "starting",
        ReplicaState::Running => "running",
        ReplicaState::Paused => "paused",
        ReplicaState::Draining => "draining",
        ReplicaState::WaitingForBroker => "waiting_for_broker",
        ReplicaState::HeldBack => "held_back",
        ReplicaState::StepFails => "step_fails",
    }
}
