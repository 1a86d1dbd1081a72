//! What the tests of this module share: a flow and what should be of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::json;
use towpath_flow::{Facts, FilledStep, Flow, Source, check};
use towpath_protocol::manifest::Manifest;

use super::spec::{Ground, StepFacts, desired_flow};
use super::{Desired, FlowState};
use crate::broker::topology::Names;
use crate::engine::Image;

/// A trigger, `shape`, `crm` twice, and `audit` beside `shape`.
pub(crate) const FLOW: &str = "
flow: f
trigger:
  id: orders
  image: towpath/poll:1
  every: 30s
actions:
  - id: shape
    image: towpath/jq:1
  - id: crm
    image: towpath/http:1
    replicas: 2
    concurrency: 4
  - id: audit
    after: [orders]
    image: towpath/log:1
";

pub(crate) fn flow(text: &str) -> Arc<Flow> {
    let checked = check(&Source::new("flow.yaml", text), &Facts::default());
    Arc::new(
        checked
            .unwrap_or_else(|found| panic!("{}", found.render(towpath_flow::Paint::Plain)))
            .flow,
    )
}

pub(crate) fn ground() -> Ground {
    Ground {
        names: Names::new("i"),
        broker_url: "amqp://user:password@broker:5672/".to_owned(),
        agent: "agent".to_owned(),
        body_bytes_max: 1 << 20,
        folders: Arc::new(
            ["inbox", "outbox"]
                .map(|name| (name.to_owned(), format!("/srv/{name}").into()))
                .into(),
        ),
        key: [7; 32],
    }
}

pub(crate) fn image(id: &str) -> Image {
    let manifest = json!({"contract": 1, "name": "step", "kind": "action"});
    Image {
        id: id.to_owned(),
        manifest: serde_json::from_value::<Manifest>(manifest).ok(),
        unreadable: None,
        user: String::new(),
        workdir: String::new(),
        command: vec!["/step".to_owned()],
        size: 1,
    }
}

/// Everything is known and there.
pub(crate) fn facts(flow: &Flow) -> BTreeMap<String, StepFacts> {
    let known = flow.steps.iter().map(|step| {
        let filled = FilledStep {
            with: step.with.clone(),
            env: step.env.clone(),
            command: step.command.clone(),
            secrets: BTreeSet::new(),
        };
        let image = Ok(image(&step.image));
        (
            step.id.clone(),
            StepFacts {
                filled: Ok(filled),
                image,
                replicas: None,
                held: None,
            },
        )
    });
    known.collect()
}

/// What should be, once `change` has changed what is known.
pub(crate) fn desired(
    state: FlowState,
    change: impl FnOnce(&mut BTreeMap<String, StepFacts>),
) -> Desired {
    let flow = flow(FLOW);
    let mut facts = facts(&flow);
    change(&mut facts);
    let flows = vec![desired_flow(&ground(), flow, 1, state, &facts)];
    Desired {
        instance: "i".to_owned(),
        flows,
    }
}

/// What replica 1 of a step is made from.
pub(crate) fn replica(text: &str, step: &str) -> crate::engine::ReplicaSpec {
    let flow = flow(text);
    let known = facts(&flow);
    let all = desired_flow(&ground(), flow, 1, FlowState::Running, &known);
    let step = all
        .steps
        .iter()
        .find(|it| it.id == step)
        .expect("the flow has this step");
    step.blueprint
        .as_ref()
        .expect("everything is known")
        .replica(1, false)
}
