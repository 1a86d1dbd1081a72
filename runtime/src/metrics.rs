//! What Prometheus reads.
//!
//! Two sources: what this process counts itself, and what agents report, which [`Reports`] keeps
//! from going back when an agent starts again. States (depths, replicas) are handed over when the
//! text is written, so that nothing is shown of a flow that is gone.

use std::sync::Arc;

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};
use prometheus::{IntCounterVec, Opts, Registry, TextEncoder};
use towpath_protocol::frame::Why;
use towpath_protocol::office::{Grant, LATENCY_BOUNDS_US};

use crate::reports::{Reports, Totals};
use crate::store::records::{DeadLetterRecord, OpenDeadLetters};

/// The content type of the text.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// What this process counts. Clones share the counters.
#[derive(Clone)]
pub struct Metrics {
    counts: Arc<Counts>,
}

struct Counts {
    registry: Registry,
    webhooks: IntCounterVec,
    webhooks_unmatched: IntCounterVec,
    ticks: IntCounterVec,
    runs_abandoned: IntCounterVec,
    dead_letters: IntCounterVec,
    replayed: IntCounterVec,
    restarts: IntCounterVec,
    recycled: IntCounterVec,
    ledger_claims: IntCounterVec,
    ledger_settled: IntCounterVec,
    run_entries: IntCounterVec,
    runs_finished: IntCounterVec,
}

/// How things are when the text is written.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The steps of all flows.
    pub steps: Vec<StepState>,
    /// How many messages wait in the delay ladder: flow, step, count.
    pub waiting: Vec<(String, String, u64)>,
    /// How many messages are claimed in the ledger and not settled: flow, step, count.
    pub claimed: Vec<(String, String, u64)>,
    /// The dead letters that wait for someone.
    pub open_dead_letters: Vec<OpenDeadLetters>,
    /// Whether the broker answers.
    pub broker_up: bool,
    /// Whether the container engine answers.
    pub engine_up: bool,
}

/// How a step is when the text is written.
#[derive(Debug, Clone, Default)]
pub struct StepState {
    /// The flow.
    pub flow: String,
    /// The step.
    pub step: String,
    /// How many replicas there should be.
    pub replicas_desired: u32,
    /// How many run.
    pub replicas_running: u32,
    /// How many deliveries are ready in its queue; none if the broker does not say.
    pub queue_ready: Option<u64>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Makes counters that all stand at zero.
    pub fn new() -> Self {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels)
                .expect("the names below are names of metrics");
            registry
                .register(Box::new(counter.clone()))
                .expect("each name is used once");
            counter
        };
        let webhooks = counter(
            "towpath_webhook_requests_total",
            "Requests to webhook URLs, by the status they were answered with.",
            &["flow", "connection", "status"],
        );
        let webhooks_unmatched = counter(
            "towpath_webhook_unmatched_total",
            "Requests to webhook URLs that went nowhere, because no condition (`when`) held.",
            &["flow"],
        );
        let ticks = counter(
            "towpath_ticks_fired_total",
            "Ticks sent to triggers.",
            &["flow", "step", "connection", "why"],
        );
        let runs_abandoned = counter(
            "towpath_runs_abandoned_total",
            "Runs whose tick was nowhere any more.",
            &["flow", "step", "connection"],
        );
        let dead_letters = counter(
            "towpath_dead_letters_stored_total",
            "Dead letters stored, by what kind of end it was.",
            &["flow", "step", "connection", "cause"],
        );
        let replayed = counter(
            "towpath_dead_letters_replayed_total",
            "Dead letters sent again.",
            &["flow", "step", "connection"],
        );
        let restarts = counter(
            "towpath_replica_restarts_total",
            "Containers started again after they ended by themselves.",
            &["flow", "step"],
        );
        let recycled = counter(
            "towpath_replicas_recycled_total",
            "Containers replaced although they ran, because they did nothing.",
            &["flow", "step"],
        );
        let ledger_claims = counter(
            "towpath_ledger_claims_total",
            "Messages that agents claimed, by what they were answered.",
            &["flow", "step", "answer"],
        );
        let ledger_settled = counter(
            "towpath_ledger_settled_total",
            "Messages that agents said are settled.",
            &["flow", "step"],
        );
        let run_entries = counter(
            "towpath_run_entries_total",
            "What agents reported of runs: a message that was emitted, or one that is done.",
            &[],
        );
        let runs_finished = counter(
            "towpath_runs_finished_total",
            "Runs of which everything that came of them is settled.",
            &[],
        );
        Self {
            counts: Arc::new(Counts {
                registry,
                webhooks,
                webhooks_unmatched,
                ticks,
                runs_abandoned,
                dead_letters,
                replayed,
                restarts,
                recycled,
                ledger_claims,
                ledger_settled,
                run_entries,
                runs_finished,
            }),
        }
    }

    /// Counts a request to a webhook.
    pub fn webhook(&self, flow: &str, connection: &str, status: u16) {
        let status = status.to_string();
        self.counts
            .webhooks
            .with_label_values(&[flow, connection, &status])
            .inc();
    }

    /// Counts a request that no condition of the first actions held for.
    pub fn webhook_unmatched(&self, flow: &str) {
        self.counts
            .webhooks_unmatched
            .with_label_values(&[flow])
            .inc();
    }

    /// How many requests of a flow no condition held for, since this process started.
    pub fn webhooks_unmatched(&self, flow: &str) -> u64 {
        self.counts
            .webhooks_unmatched
            .with_label_values(&[flow])
            .get()
    }

    /// Counts a tick.
    pub fn tick(&self, flow: &str, step: &str, connection: &str, why: Why) {
        let why = match why {
            Why::Schedule => "schedule",
            Why::Manual => "manual",
            Why::Webhook => "webhook",
        };
        self.counts
            .ticks
            .with_label_values(&[flow, step, connection, why])
            .inc();
    }

    /// Counts a run that was given up.
    pub fn run_abandoned(&self, flow: &str, step: &str, connection: &str) {
        self.counts
            .runs_abandoned
            .with_label_values(&[flow, step, connection])
            .inc();
    }

    /// Counts a dead letter.
    pub fn dead_letter(&self, letter: &DeadLetterRecord) {
        let cause = format!("{:?}", letter.cause).to_lowercase();
        let labels = [&letter.flow, &letter.step, &letter.connection, &cause];
        self.counts.dead_letters.with_label_values(&labels).inc();
    }

    /// Counts a dead letter that was sent again.
    pub fn replayed(&self, letter: &DeadLetterRecord) {
        let labels = [&letter.flow, &letter.step, &letter.connection];
        self.counts.replayed.with_label_values(&labels).inc();
    }

    /// Counts a container that was started again after it ended by itself.
    pub fn replica_restart(&self, flow: &str, step: &str) {
        self.counts.restarts.with_label_values(&[flow, step]).inc();
    }

    /// Counts a container that was replaced although it ran, because it did nothing.
    pub fn replica_recycled(&self, flow: &str, step: &str) {
        self.counts.recycled.with_label_values(&[flow, step]).inc();
    }

    /// Counts the answers to a claim.
    pub fn ledger_answers(&self, flow: &str, step: &str, grants: &[Grant]) {
        let word = |grant: &Grant| match grant {
            Grant::Yours {
                uncertain: false, ..
            } => "granted",
            Grant::Yours { .. } => "taken_over",
            Grant::Settled => "settled",
            Grant::Busy { .. } => "busy",
        };
        for answer in ["granted", "taken_over", "settled", "busy"] {
            let count = grants.iter().filter(|grant| word(grant) == answer).count() as u64;
            if count > 0 {
                self.counts
                    .ledger_claims
                    .with_label_values(&[flow, step, answer])
                    .inc_by(count);
            }
        }
    }

    /// Counts messages that an agent said are settled.
    pub fn ledger_settled(&self, flow: &str, step: &str, count: u64) {
        self.counts
            .ledger_settled
            .with_label_values(&[flow, step])
            .inc_by(count);
    }

    /// Counts what agents reported of runs, and the runs that are finished by it.
    pub fn runs_noted(&self, entries: u64, finished: u64) {
        let none: [&str; 0] = [];
        self.counts
            .run_entries
            .with_label_values(&none)
            .inc_by(entries);
        self.counts
            .runs_finished
            .with_label_values(&none)
            .inc_by(finished);
    }

    /// Writes everything as Prometheus reads it.
    pub fn render(&self, reports: &Reports, snapshot: &Snapshot) -> String {
        let mut families = self.counts.registry.gather();
        families.extend(of_agents(reports));
        families.extend(of_states(reports, snapshot));
        families.retain(|family| !family.get_metric().is_empty());
        families.sort_by(|one, other| one.name().cmp(other.name()));
        TextEncoder::new()
            .encode_to_string(&families)
            .expect("every family that is left has a name and a metric")
    }
}

type Count = (&'static str, &'static str, fn(&Totals) -> u64);

/// What agents count, with its names.
const COUNTS: [Count; 15] = [
    (
        "messages_received_total",
        "Messages taken from the queue.",
        |it| it.counters.received,
    ),
    (
        "deliveries_received_total",
        "Deliveries they came in.",
        |it| it.counters.deliveries,
    ),
    (
        "messages_emitted_total",
        "Outputs confirmed by the broker.",
        |it| it.counters.emitted,
    ),
    (
        "messages_unconnected_total",
        "Outputs of ports that lead nowhere.",
        |it| it.counters.unconnected,
    ),
    ("messages_done_total", "Messages settled as done.", |it| {
        it.counters.done
    }),
    (
        "messages_failed_total",
        "Attempts that failed, whatever came of them.",
        |it| it.counters.failed,
    ),
    (
        "messages_retried_total",
        "Messages sent back to be tried again.",
        |it| it.counters.retried,
    ),
    (
        "messages_rebounded_total",
        "Messages sent back because it was not yet time.",
        |it| it.counters.rebounded,
    ),
    ("messages_dead_lettered_total", "Messages given up.", |it| {
        it.counters.dead
    }),
    (
        "messages_timed_out_total",
        "Attempts that took too long.",
        |it| it.counters.timed_out,
    ),
    (
        "messages_crashed_total",
        "Attempts in which the step process died.",
        |it| it.counters.crashed,
    ),
    (
        "messages_repeated_total",
        "Messages that were settled before, and not handled again.",
        |it| it.counters.repeated,
    ),
    (
        "messages_unmatched_total",
        "Messages sent on to nobody, because no condition (`when`) held.",
        |it| it.counters.unmatched,
    ),
    (
        "messages_invalid_total",
        "Messages whose body is not what the step takes (`validate`).",
        |it| it.counters.invalid,
    ),
    (
        "step_process_restarts_total",
        "Step processes started again by their agents.",
        |it| it.restarts,
    ),
];

fn of_agents(reports: &Reports) -> Vec<MetricFamily> {
    let totals = reports.all_totals();
    let mut families: Vec<MetricFamily> = COUNTS
        .iter()
        .map(|(name, help, count)| {
            let metrics = totals.iter().map(|((flow, step), totals)| {
                let mut counter = Counter::default();
                counter.set_value(count(totals) as f64);
                let mut metric = metric(&[("flow", flow), ("step", step)]);
                metric.set_counter(counter);
                metric
            });
            family(name, help, MetricType::COUNTER, metrics.collect())
        })
        .collect();
    let latencies = totals.iter().map(|((flow, step), totals)| {
        let mut metric = metric(&[("flow", flow), ("step", step)]);
        metric.set_histogram(histogram(totals));
        metric
    });
    families.push(family(
        "handler_duration_seconds",
        "How long handlers took for one message.",
        MetricType::HISTOGRAM,
        latencies.collect(),
    ));
    families
}

fn histogram(totals: &Totals) -> Histogram {
    let mut histogram = Histogram::default();
    let mut sum = 0;
    let buckets = LATENCY_BOUNDS_US
        .iter()
        .zip(&totals.latency.counts)
        .map(|(bound, count)| {
            sum += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound as f64 / 1e6);
            bucket.set_cumulative_count(sum);
            bucket
        });
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(totals.latency.counts.iter().sum());
    histogram.set_sample_sum(totals.latency.sum_us as f64 / 1e6);
    histogram
}

fn of_states(reports: &Reports, snapshot: &Snapshot) -> Vec<MetricFamily> {
    let of_steps = |name: &str, help: &str, value: &dyn Fn(&StepState) -> Option<f64>| {
        let metrics = snapshot.steps.iter().filter_map(|state| {
            Some(gauge(
                &[("flow", &state.flow), ("step", &state.step)],
                value(state)?,
            ))
        });
        family(name, help, MetricType::GAUGE, metrics.collect())
    };
    let sum = |state: &StepState, count: fn(&crate::reports::Seen) -> u64| {
        reports
            .of_step(&state.flow, &state.step)
            .iter()
            .map(count)
            .sum::<u64>() as f64
    };
    let up = |name: &str, help: &str, is_up: bool| {
        family(
            name,
            help,
            MetricType::GAUGE,
            vec![gauge(&[], f64::from(u8::from(is_up)))],
        )
    };
    let open = snapshot.open_dead_letters.iter().map(|open| {
        let labels = [
            ("flow", &*open.flow),
            ("step", &*open.step),
            ("connection", &*open.connection),
        ];
        gauge(&labels, open.count as f64)
    });
    let version = gauge(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    vec![
        of_steps(
            "queue_ready_deliveries",
            "Deliveries ready in the step's queue.",
            &|state| state.queue_ready.map(|ready| ready as f64),
        ),
        of_steps(
            "queue_unacknowledged_deliveries",
            "Deliveries taken from the step's queue and not acknowledged.",
            &|state| Some(sum(state, |seen| seen.report.unacknowledged)),
        ),
        of_steps(
            "messages_in_hand",
            "Messages in the hands of step processes.",
            &|state| Some(sum(state, |seen| seen.report.in_hand)),
        ),
        of_steps(
            "step_resident_bytes",
            "Memory of step processes.",
            &|state| Some(sum(state, |seen| seen.report.step_resident_bytes)),
        ),
        of_steps("agent_resident_bytes", "Memory of agents.", &|state| {
            Some(sum(state, |seen| seen.report.agent_resident_bytes))
        }),
        of_steps("replicas_desired", "Replicas that should run.", &|state| {
            Some(f64::from(state.replicas_desired))
        }),
        of_steps("replicas_running", "Replicas that run.", &|state| {
            Some(f64::from(state.replicas_running))
        }),
        by_step(
            "retries_waiting",
            "Messages known to wait in the delay ladder.",
            &snapshot.waiting,
        ),
        by_step(
            "ledger_claims_open",
            "Messages that agents claimed and have not settled.",
            &snapshot.claimed,
        ),
        family(
            "dead_letters_open",
            "Dead letters that wait for someone to replay or discard them.",
            MetricType::GAUGE,
            open.collect(),
        ),
        up(
            "broker_up",
            "Whether the broker answers.",
            snapshot.broker_up,
        ),
        up(
            "engine_up",
            "Whether the container engine answers.",
            snapshot.engine_up,
        ),
        family(
            "build_info",
            "The version that runs.",
            MetricType::GAUGE,
            vec![version],
        ),
    ]
}

fn by_step(name: &str, help: &str, counts: &[(String, String, u64)]) -> MetricFamily {
    let gauges = counts
        .iter()
        .map(|(flow, step, count)| gauge(&[("flow", flow), ("step", step)], *count as f64));
    family(name, help, MetricType::GAUGE, gauges.collect())
}

fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(format!("towpath_{name}"));
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn gauge(labels: &[(&str, &str)], value: f64) -> Metric {
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    let mut metric = metric(labels);
    metric.set_gauge(gauge);
    metric
}

fn metric(labels: &[(&str, &str)]) -> Metric {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    let mut metric = Metric::default();
    metric.set_label(labels.iter().map(pair).collect());
    metric
}

#[cfg(test)]
mod tests {
    use towpath_protocol::office::{AgentState, Counters, Latency, Report};
    use towpath_protocol::start::Identity;

    use super::*;

    fn reports() -> Reports {
        let reports = Reports::default();
        let mut counts = vec![0; LATENCY_BOUNDS_US.len() + 1];
        counts[0] = 2;
        counts[LATENCY_BOUNDS_US.len()] = 1;
        let report = Report {
            identity: Identity {
                instance: "t".into(),
                flow: "orders".into(),
                step: "crm".into(),
                replica: 1,
                spec: "s".into(),
            },
            incarnation: "a".into(),
            at: 1,
            state: AgentState::Running,
            reason: None,
            in_hand: 4,
            held: 5,
            unacknowledged: 6,
            counters: Counters {
                received: 3,
                failed: 1,
                ..Counters::default()
            },
            latency: Latency {
                counts,
                sum_us: 200_000_100,
            },
            restarts: 0,
            step_resident_bytes: 0,
            agent_resident_bytes: 0,
            last_lines: Vec::new(),
            pacing: None,
        };
        reports.record(report, 1);
        reports
    }

    #[test]
    fn the_text_has_everything_by_flow_and_step() {
        let metrics = Metrics::new();
        metrics.webhook("orders", "default", 202);
        metrics.tick("orders", "poll", "default", Why::Schedule);
        metrics.replica_restart("orders", "crm");
        metrics.replica_recycled("orders", "crm");
        let open = OpenDeadLetters {
            flow: "orders".into(),
            step: "crm".into(),
            connection: "default".into(),
            count: 7,
        };
        let step = StepState {
            flow: "orders".into(),
            step: "crm".into(),
            replicas_desired: 2,
            replicas_running: 1,
            queue_ready: Some(9),
        };
        let of_crm = |count| vec![("orders".into(), "crm".into(), count)];
        let snapshot = Snapshot {
            waiting: of_crm(4),
            claimed: of_crm(3),
            steps: vec![step],
            open_dead_letters: vec![open],
            broker_up: true,
            engine_up: false,
        };
        let text = metrics.render(&reports(), &snapshot);
        for line in [
            r#"towpath_messages_received_total{flow="orders",step="crm"} 3"#,
            r#"towpath_messages_failed_total{flow="orders",step="crm"} 1"#,
            r#"towpath_handler_duration_seconds_bucket{flow="orders",step="crm",le="0.0001"} 2"#,
            r#"towpath_handler_duration_seconds_bucket{flow="orders",step="crm",le="120"} 2"#,
            r#"towpath_handler_duration_seconds_bucket{flow="orders",step="crm",le="+Inf"} 3"#,
            r#"towpath_handler_duration_seconds_sum{flow="orders",step="crm"} 200.0001"#,
            r#"towpath_handler_duration_seconds_count{flow="orders",step="crm"} 3"#,
            r#"towpath_queue_ready_deliveries{flow="orders",step="crm"} 9"#,
            r#"towpath_queue_unacknowledged_deliveries{flow="orders",step="crm"} 6"#,
            r#"towpath_replicas_desired{flow="orders",step="crm"} 2"#,
            r#"towpath_replicas_running{flow="orders",step="crm"} 1"#,
            r#"towpath_replica_restarts_total{flow="orders",step="crm"} 1"#,
            r#"towpath_replicas_recycled_total{flow="orders",step="crm"} 1"#,
            r#"towpath_webhook_requests_total{connection="default",flow="orders",status="202"} 1"#,
            r#"towpath_ticks_fired_total{connection="default",flow="orders",step="poll",why="schedule"} 1"#,
            r#"towpath_dead_letters_open{flow="orders",step="crm",connection="default"} 7"#,
            r#"towpath_retries_waiting{flow="orders",step="crm"} 4"#,
            r#"towpath_ledger_claims_open{flow="orders",step="crm"} 3"#,
            "towpath_broker_up 1",
            "towpath_engine_up 0",
            "# TYPE towpath_handler_duration_seconds histogram",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "no `{line}` in\n{text}"
            );
        }
    }

    #[test]
    fn every_name_ends_in_what_it_counts() {
        let text = Metrics::new().render(&reports(), &Snapshot::default());
        let units = [
            "_total",
            "_seconds",
            "_deliveries",
            "_bytes",
            "_in_hand",
            "_up",
            "_info",
            "_open",
            "_desired",
            "_waiting",
            "_running",
        ];
        for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let name = line.split(' ').next().unwrap();
            assert!(name.starts_with("towpath_"), "{name}");
            assert!(units.iter().any(|unit| name.ends_with(unit)), "{name}");
        }
    }
}
