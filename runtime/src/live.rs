//! The flows that are applied, as those see them who send messages into them: the scheduler, the
//! webhook ingress and replay.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use towpath_flow::model::{Fires, Flow, Missed, Overlap};
use towpath_protocol::DEFAULT_PORT;

use crate::broker::topology::{Entries, EntryStep, FlowTopology, Handover, branch_tag};
use crate::reconcile::FlowState;

/// All flows that are applied, by name; whoever changes a flow sends a new map.
pub type LiveFlows = watch::Receiver<Arc<BTreeMap<String, LiveFlow>>>;

/// A flow that is applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveFlow {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: u32,
    /// When this version was applied, in milliseconds since 1970.
    pub applied_at: u64,
    /// What its trigger should be doing: ticks and requests.
    pub state: FlowState,
    /// Whether it is noted what comes of its runs.
    pub track: bool,
    /// Its trigger.
    pub trigger: LiveTrigger,
    /// Its steps that have a queue, each with the (step, port) it takes messages from.
    pub steps: Vec<(String, Vec<(String, String)>)>,
    /// Those of them that do not take everything, or not as it comes.
    pub branches: BTreeMap<String, LiveBranch>,
    /// What it hands to other flows.
    pub handovers: Vec<Handover>,
    /// Those of them that keep an order, each with its number of partitions.
    pub ordered: BTreeMap<String, u32>,
}

/// What makes a step a branch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveBranch {
    /// Its condition.
    pub when: Option<String>,
    /// What it is called in routing keys; see [`branch_tag`].
    pub tag: String,
}

/// What brings messages into a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveTrigger {
    /// Its step.
    pub step: String,
    /// Whether it runs as containers: then it handles each request to a webhook first.
    pub has_image: bool,
    /// What sets it off.
    pub fires: Fires,
    /// What becomes of a firing while it still runs.
    pub overlap: Overlap,
    /// What becomes of firings that nobody was there for.
    pub missed: Missed,
}

impl LiveFlow {
    /// Takes from a checked flow what matters here.
    pub fn new(flow: &Flow, version: u32, applied_at: u64, state: FlowState) -> Self {
        Self {
            name: flow.name.clone(),
            version,
            applied_at,
            state,
            track: flow.track,
            trigger: LiveTrigger {
                step: flow.trigger_id.clone(),
                has_image: flow.steps.iter().any(|step| step.is_trigger),
                fires: flow.fires.clone(),
                overlap: flow.overlap,
                missed: flow.missed,
            },
            steps: flow
                .steps
                .iter()
                .map(|step| (step.id.clone(), step.after.clone()))
                .collect(),
            handovers: flow.handovers.iter().map(Handover::new).collect(),
            ordered: ordered(flow),
            branches: flow
                .steps
                .iter()
                .filter_map(|step| {
                    let branch = LiveBranch {
                        when: step.when.clone(),
                        tag: branch_tag(step.when.as_deref(), step.order.is_some())?,
                    };
                    Some((step.id.clone(), branch))
                })
                .collect(),
        }
    }

    /// The steps that take what other flows hand to it, in order; none if it takes nothing.
    pub fn entry(&self) -> Vec<EntryStep> {
        if self.trigger.fires != Fires::Flows {
            return Vec::new();
        }
        let steps = self.entry_steps().into_iter();
        let mut entry: Vec<EntryStep> = steps
            .map(|step| EntryStep {
                partitions: self.ordered.get(&step).copied(),
                step,
            })
            .collect();
        entry.sort();
        entry
    }

    /// Puts in what it hands over where it leads to: the steps that take it, by flow.
    pub fn join(&mut self, entries: &Entries) {
        for handover in &mut self.handovers {
            handover.entry = entries.get(&handover.to).cloned().unwrap_or_default();
        }
    }

    /// Whether it hands messages to other flows.
    pub fn hands_over(&self) -> bool {
        !self.handovers.is_empty()
    }

    /// What an action hands to another flow, if it is one that does.
    pub fn handover(&self, step: &str) -> Option<&Handover> {
        self.handovers.iter().find(|it| it.step == step)
    }

    /// The steps that take all that enters the flow: the trigger, if it runs as containers, else
    /// those after it that have no condition.
    pub fn entry_steps(&self) -> Vec<String> {
        if self.trigger.has_image {
            return vec![self.trigger.step.clone()];
        }
        let follows = |sources: &[(String, String)]| {
            let mut sources = sources.iter();
            sources.any(|(step, port)| *step == self.trigger.step && port == DEFAULT_PORT)
        };
        self.steps
            .iter()
            .filter(|(step, sources)| follows(sources) && !self.branches.contains_key(step))
            .map(|(step, _)| step.clone())
            .collect()
    }

    /// What it needs on the broker.
    pub fn topology(&self) -> FlowTopology {
        FlowTopology {
            flow: self.name.clone(),
            steps: self.steps.clone(),
            branches: self
                .branches
                .iter()
                .map(|(step, branch)| (step.clone(), branch.tag.clone()))
                .collect(),
            handovers: self.handovers.clone(),
            entry: self.entry(),
            ordered: self.ordered.clone(),
            aliases: Vec::new(),
        }
    }

    /// The routing key by which a step's port leads to one that follows it, in the flow's exchange.
    pub fn key_to(&self, step: &str, port: &str, follower: &str) -> String {
        self.topology().key_to(step, port, follower)
    }

    /// The routing key by which a step's port leads to those that take everything, in the flow's
    /// exchange.
    pub fn port_key(&self, step: &str, port: &str) -> String {
        self.topology().port_key(step, port)
    }
}

/// The other flows that what enters a flow may come to.
pub fn reached<'f>(flows: &'f BTreeMap<String, LiveFlow>, flow: &str) -> Vec<&'f LiveFlow> {
    let mut found: Vec<&LiveFlow> = Vec::new();
    let mut open = vec![flow.to_owned()];
    while let Some(name) = open.pop() {
        let handovers = flows.get(&name).map(|flow| &flow.handovers);
        for handover in handovers.into_iter().flatten() {
            if let Some(other) = flows.get(&handover.to)
                && found.iter().all(|it| it.name != other.name)
            {
                found.push(other);
                open.push(other.name.clone());
            }
        }
    }
    found
}

/// The steps of a flow that keep an order, each with its number of partitions.
pub fn ordered(flow: &Flow) -> BTreeMap<String, u32> {
    let steps = flow.steps.iter();
    steps
        .filter_map(|step| Some((step.id.clone(), step.order.as_ref()?.partitions)))
        .collect()
}

#[cfg(test)]
mod tests {
    use towpath_flow::{Facts, Source, check};

    use super::*;

    fn flow(name: &str, to: &[&str]) -> LiveFlow {
        let over = to
            .iter()
            .map(|to| format!("  - {{ id: to-{to}, after: a, to: flow/{to} }}\n"));
        let text = format!(
            "flow: {name}\ntrigger: {{ id: t, from: flows }}\nactions:\n  - {{ id: a, image: a }}\n{}",
            over.collect::<String>()
        );
        let checked = check(&Source::new("f", text), &Facts::default());
        let checked = checked.unwrap_or_else(|found| panic!("{found}"));
        LiveFlow::new(&checked.flow, 1, 0, FlowState::Running)
    }

    #[test]
    fn what_enters_a_flow_may_come_to_all_that_it_is_handed_to_from_there() {
        let flows = [
            flow("one", &["two", "three"]),
            flow("two", &["four"]),
            flow("three", &["four"]),
            flow("four", &[]),
        ];
        let flows: BTreeMap<String, LiveFlow> = flows.map(|flow| (flow.name.clone(), flow)).into();
        let reached = |from: &str| {
            let mut names: Vec<&str> = reached(&flows, from).iter().map(|it| &*it.name).collect();
            names.sort_unstable();
            names
        };
        assert_eq!(reached("one"), ["four", "three", "two"]);
        assert_eq!(reached("three"), ["four"]);
        assert!(reached("four").is_empty() && reached("five").is_empty());
        assert_eq!(flows["two"].entry(), ["a".into()]);
    }
}
