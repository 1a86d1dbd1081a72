//! A control plane on a simulated engine and a simulated broker, for tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{Mutex, Notify, watch};
use towpath_protocol::manifest::Manifest;
use towpath_protocol::start::Identity;

use super::catalog::Catalog;
use super::view::Draft;
use super::{Control, Parts};
use crate::broker::simulated::Simulated;
use crate::broker::topology::{Names, STEP_QUEUE_DELIVERIES_MAX};
use crate::broker::{Broker, Publication};
use crate::engine::Image;
use crate::engine::simulated::SimulatedEngine;
use crate::ingress::{Gates, Recent};
use crate::inquiry::Inquiry;
use crate::metrics::Metrics;
use crate::reconcile::gauge::BrokerGauge;
use crate::reconcile::run::{Pace, Reconciler, Round};
use crate::reconcile::spec::Ground;
use crate::reports::Reports;
use crate::schedule::{Scheduler, system_clock};
use crate::store::Store;

/// A webhook, then `shape`, then `crm` twice.
pub(crate) const FLOW: &str = r#"
flow: orders
trigger: { id: hook, webhook: true }
actions:
  - id: shape
    image: jq:1
    with: { filter: .id }
  - id: crm
    image: http:1
    replicas: 2
    with: { token: "${secrets.crm_token}", url: "${env.CRM}" }
"#;

/// The parts that a test looks at.
pub(crate) struct Bench {
    pub(crate) control: Arc<Control>,
    pub(crate) engine: SimulatedEngine,
    pub(crate) broker: Arc<Simulated>,
    pub(crate) metrics: Metrics,
    pub(crate) gates: Gates,
    pub(crate) live: watch::Receiver<Arc<BTreeMap<String, crate::live::LiveFlow>>>,
    reconciler: Mutex<Reconciler>,
}

impl Bench {
    /// Makes one with the images and the secret that [`FLOW`] wants.
    pub(crate) async fn new() -> Self {
        let engine = SimulatedEngine::new(1);
        for name in ["jq:1", "http:1", "log:1", "poll:1"] {
            engine.add_image(name, image(name));
        }
        let broker = Arc::new(Simulated::new(1));
        let store = Store::in_memory().unwrap();
        store.set_secret("crm_token", "s3cret").await.unwrap();
        let names = Names::new("t");
        let ground = Ground {
            names: names.clone(),
            broker_url: "amqp://broker".into(),
            agent: "agent".into(),
            body_bytes_max: 1 << 20,
            folders: Arc::default(),
            key: store.derive_key("test"),
        };
        let catalog = Arc::new(Catalog::new(
            store.clone(),
            Arc::new(engine.clone()),
            ground,
        ));
        let (metrics, reports) = (Metrics::new(), Reports::default());
        let agents = engine.clone();
        let live = watch::Sender::new(Arc::default());
        let (reconciler, handle) = Reconciler::new(
            "t",
            Arc::new(engine.clone()),
            catalog.clone(),
            Arc::new(move |identity: &Identity| agents.report(identity)),
            Arc::new(BrokerGauge {
                broker: broker.clone(),
                reports: reports.clone(),
                flows: live.subscribe(),
                names: names.clone(),
                deliveries_max: STEP_QUEUE_DELIVERIES_MAX,
            }),
            Pace::default(),
        );
        let gates = Gates::default();
        let subscribed = live.subscribe();
        let scheduler = Scheduler {
            broker: broker.clone(),
            store,
            names,
            flows: live.subscribe(),
            reports: reports.clone(),
            metrics: metrics.clone(),
            runs_changed: Arc::new(Notify::new()),
            clock: system_clock(),
        };
        let control = Control::start(Parts {
            catalog,
            broker: broker.clone(),
            reconciler: handle,
            scheduler,
            reports,
            inquiry: Inquiry::default(),
            entered: Recent::default(),
            gates: gates.clone(),
            metrics: metrics.clone(),
            stalled_after_ms: 600_000,
            public_url: "http://here".into(),
            program: "towpath".into(),
            live,
            registrations_changed: Arc::new(Notify::new()),
        });
        let control = Arc::new(control.await.unwrap());
        control.declare().await.unwrap();
        let reconciler = Mutex::new(reconciler);
        Self {
            control,
            engine,
            broker,
            metrics,
            gates,
            live: subscribed,
            reconciler,
        }
    }

    /// Lets the reconciler work until there is nothing to do.
    pub(crate) async fn settle(&self) {
        for _ in 0..100 {
            let round = self.reconciler.lock().await.round(self.engine.now()).await;
            self.engine.advance(1_000);
            let status = self.control.reconciler.status.borrow().clone();
            let is_quiet = status
                .flows
                .values()
                .flat_map(|flow| flow.steps.values())
                .all(|step| {
                    step.replicas.len() == step.desired as usize
                        && step
                            .replicas
                            .iter()
                            .all(|it| it.is_current && it.container.is_some())
                });
            if round == Round::AtRest && is_quiet {
                return;
            }
        }
        panic!(
            "it does not come to rest: {:?}",
            self.control.reconciler.status.borrow()
        );
    }

    /// Lets every agent that runs report, `later` milliseconds from now.
    pub(crate) fn report(&self, later: u64) {
        for one in self.engine.containers() {
            if let Some(mut report) = self.engine.report(&one.identity) {
                report.at = crate::store::now_ms() + later;
                self.control.reports.record(report, crate::store::now_ms());
            }
        }
    }

    /// The names of the containers that there are.
    pub(crate) fn containers(&self) -> Vec<String> {
        self.engine
            .containers()
            .into_iter()
            .map(|one| one.name)
            .collect()
    }

    /// Puts a message into a step's queue.
    pub(crate) async fn put(&self, step: &str) {
        let publication = Publication {
            exchange: Names::new("t").steps(),
            key: Names::step_key("orders", step),
            kind: towpath_protocol::message::BATCH_TYPE,
            body: "{}".into(),
            count: 1,
        };
        self.broker.publish(publication).await.unwrap();
    }
}

/// A flow file to apply.
pub(crate) fn draft(source: &str) -> Draft {
    Draft {
        file: "orders.yaml".into(),
        source: source.into(),
        env: BTreeMap::from([
            ("CRM".to_owned(), "http://crm".to_owned()),
            ("HOME".to_owned(), "/root".to_owned()),
        ]),
        ..Draft::default()
    }
}

pub(crate) fn image(name: &str) -> Image {
    Image {
        id: format!("sha256:{name}"),
        manifest: None::<Manifest>,
        unreadable: None,
        user: String::new(),
        workdir: String::new(),
        command: vec!["/step".into()],
        size: 1,
    }
}
