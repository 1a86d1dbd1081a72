//! What should be, from what was applied: the store's flows, checked, with their images and secrets.
//!
//! # Invariants
//!
//! - A flow that cannot be read back is an error, never an absence: nothing of it is removed.
//! - An image is the one it was when the flow was applied; another one of the same name replaces
//!   nothing by itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use towpath_flow::{Facts, Flow, Source, Values, check, substitute_step};

use super::error::ControlError;
use crate::broker::topology::{Entries, FlowTopology, Handover, Topology};
use crate::engine::{Engine, Image};
use crate::live::LiveFlow;
use crate::reconcile::intent::{Held, intake};
use crate::reconcile::run::DesiredSource;
use crate::reconcile::spec::{Ground, StepFacts, desired_flow};
use crate::reconcile::{Desired, DesiredFlow, FlowState};
use crate::store::Store;
use crate::store::flows::FlowRecord;

/// The most checked flows and images that are remembered.
const REMEMBERED_MAX: usize = 1_000;

/// Checked flows by name and version, each with the hash of what it was checked from.
type CheckedFlows = BTreeMap<(String, u32), (String, Arc<Flow>)>;

/// The flows that were applied.
pub struct Catalog {
    /// The records.
    pub store: Store,
    /// What runs containers.
    pub engine: Arc<dyn Engine>,
    /// What all replicas share.
    pub ground: Ground,
    checked: Mutex<CheckedFlows>,
    images: Mutex<BTreeMap<String, Image>>,
}

impl Catalog {
    /// Makes it; nothing is read yet.
    pub fn new(store: Store, engine: Arc<dyn Engine>, ground: Ground) -> Self {
        Self {
            store,
            engine,
            ground,
            checked: Mutex::default(),
            images: Mutex::default(),
        }
    }

    /// The checked flow of a record.
    pub fn flow(&self, record: &FlowRecord) -> Result<Arc<Flow>, ControlError> {
        let key = (record.name.clone(), record.version);
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        // A flow that was deleted and applied again begins with version 1 again.
        if let Some((hash, flow)) = checked.get(&key)
            && *hash == record.hash
        {
            return Ok(Arc::clone(flow));
        }
        let source = Source::new(&*record.file, record.source.clone());
        let flow = match check(&source, &Facts::default()) {
            Ok(checked) => Arc::new(checked.flow),
            Err(diagnostics) => {
                tracing::error!(
                    flow = record.name,
                    "a stored flow is no longer valid: {diagnostics}"
                );
                return Err(ControlError::new(
                    super::error::ErrorKind::Internal,
                    "stored_flow_invalid",
                    format!(
                        "the stored flow `{}` is not valid in this version of Towpath",
                        record.name
                    ),
                )
                .hint("correct its file and apply it"));
            }
        };
        if checked.len() >= REMEMBERED_MAX {
            checked.clear();
        }
        checked.insert(key, (record.hash.clone(), Arc::clone(&flow)));
        Ok(flow)
    }

    /// What should be of one flow.
    pub async fn desired_of(
        &self,
        record: &FlowRecord,
        entries: &Entries,
    ) -> anyhow::Result<DesiredFlow> {
        let values = self.values(record).await?;
        let flow = self.flow(record)?;
        let (state, held) = orders(record, &flow);
        let mut facts = BTreeMap::new();
        for step in &flow.steps {
            let image = match record.images.get(&step.image) {
                Some(id) => self.image(&step.image, id).await?,
                None => Err(format!("it is not known which `{}` was meant", step.image)),
            };
            let known = StepFacts {
                filled: substitute_step(step, &values).map_err(|error| error.to_string()),
                image,
                replicas: record.scales.get(&step.id).copied(),
                held: held.get(&step.id).copied(),
            };
            facts.insert(step.id.clone(), known);
        }
        Ok(desired_flow(
            &self.ground,
            flow,
            record.version,
            state,
            &facts,
            entries,
        ))
    }

    /// All flows, as those see them who send messages into them.
    pub async fn live_flows(&self) -> Result<BTreeMap<String, LiveFlow>, ControlError> {
        let mut flows = BTreeMap::new();
        for record in self.store.flows().await? {
            let flow = self.flow(&record)?;
            let state = match record.deleting {
                Some(_) => FlowState::Stopped,
                None => intake(&flow, record.state, &record.held),
            };
            let live = LiveFlow::new(&flow, record.version, record.applied_at, state);
            flows.insert(record.name, live);
        }
        let entries: Entries = flows
            .iter()
            .map(|(name, flow)| (name.clone(), flow.entry()))
            .collect();
        for flow in flows.values_mut() {
            flow.join(&entries);
        }
        Ok(flows)
    }

    /// The steps that take what other flows hand over, of all flows.
    pub async fn entries(&self) -> Result<Entries, ControlError> {
        self.entries_of(&self.store.flows().await?)
    }

    fn entries_of(&self, records: &[FlowRecord]) -> Result<Entries, ControlError> {
        let entry = |record: &FlowRecord| {
            let flow = self.flow(record)?;
            let live = LiveFlow::new(&flow, record.version, record.applied_at, record.state);
            Ok((record.name.clone(), live.entry()))
        };
        records.iter().map(entry).collect()
    }

    /// What should be on the broker.
    pub async fn topology(&self) -> Result<Topology, ControlError> {
        let mut flows: Vec<FlowTopology> = self
            .live_flows()
            .await?
            .values()
            .map(LiveFlow::topology)
            .collect();
        let removals = self.store.removals().await?;
        for former in self.store.former_steps().await? {
            // As long as a queue is still there, what comes for its step goes there.
            let has_queue = removals.iter().any(|it| it.flow == former.flow);
            let flow = flows.iter_mut().find(|it| it.flow == former.flow);
            if let (Some(flow), Some(successor), false) = (flow, former.successor, has_queue) {
                flow.aliases.push((former.step, successor));
            }
        }
        Ok(Topology {
            names: self.ground.names.clone(),
            flows,
        })
    }

    /// What earlier versions of the flows had on the broker, as far as they are remembered; and what
    /// the newest had, when they handed messages to earlier versions of others.
    pub async fn former_topologies(&self) -> Result<Vec<FlowTopology>, ControlError> {
        let mut former = Vec::new();
        for (file, text) in self.store.former_sources().await? {
            let source = Source::new(file, text);
            if let Ok(checked) = check(&source, &Facts::default()) {
                former.push(LiveFlow::new(&checked.flow, 0, 0, FlowState::Running).topology());
            }
        }
        let now = self.live_flows().await?;
        let all: Vec<FlowTopology> = now.values().map(LiveFlow::topology).collect();
        let all: Vec<&FlowTopology> = all.iter().chain(&former).collect();
        let mut handed = Vec::new();
        for flow in &all {
            for handover in &flow.handovers {
                let entered = all.iter().filter(|it| it.flow == handover.to);
                handed.extend(entered.map(|to| FlowTopology {
                    flow: flow.flow.clone(),
                    handovers: vec![Handover {
                        entry: to.entry.clone(),
                        ..handover.clone()
                    }],
                    ..FlowTopology::default()
                }));
            }
        }
        former.extend(handed);
        Ok(former)
    }

    async fn values(&self, record: &FlowRecord) -> Result<Values, ControlError> {
        let secrets = self.store.secret_values().await?;
        Ok(Values {
            secrets,
            env: record.env.clone(),
        })
    }

    /// The image that was there when the flow was applied; `Err` inside if it is gone.
    pub(super) async fn image(
        &self,
        reference: &str,
        id: &str,
    ) -> anyhow::Result<Result<Image, String>> {
        let known = self
            .images
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(id)
            .cloned();
        if let Some(image) = known {
            return Ok(Ok(image));
        }
        let found = match self.engine.image(id).await? {
            Some(image) => Some(image),
            None => self
                .engine
                .image(reference)
                .await?
                .filter(|image| image.id == id),
        };
        let Some(image) = found else {
            return Ok(Err(format!(
                "the image `{reference}` that was applied is gone; apply the flow again to take the one there is"
            )));
        };
        self.remember(image.clone());
        Ok(Ok(image))
    }

    /// Remembers an image, so that the engine is not asked again in every round.
    pub fn remember(&self, image: Image) {
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        if images.len() >= REMEMBERED_MAX {
            images.clear();
        }
        images.insert(image.id.clone(), image);
    }
}

/// What the flow and its steps should be doing. If the flow is to go, a container of its trigger is
/// there, to take back what it registered; it takes in nothing.
fn orders(record: &FlowRecord, flow: &Flow) -> (FlowState, Held) {
    let (mut state, mut held) = (record.state, record.held.clone());
    if record.deleting.is_none() {
        return (state, held);
    }
    if state == FlowState::Stopped {
        state = FlowState::Running;
        let steps = flow.steps.iter();
        held = steps
            .map(|step| (step.id.clone(), FlowState::Stopped))
            .collect();
    }
    if let Some(own) = held.get_mut(&flow.trigger_id)
        && *own == FlowState::Stopped
    {
        *own = FlowState::Paused;
    }
    (state, held)
}

#[async_trait]
impl DesiredSource for Catalog {
    fn image_is_gone(&self, image: &str) {
        self.images
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(image);
    }

    async fn desired(&self) -> anyhow::Result<Desired> {
        let mut flows = Vec::new();
        let records = self.store.flows().await?;
        let entries = self.entries_of(&records)?;
        for record in &records {
            flows.push(self.desired_of(record, &entries).await?);
        }
        Ok(Desired {
            instance: self.ground.names.instance.clone(),
            flows,
        })
    }
}
