//! What flows hand to each other: who has to stay because of it.
//!
//! # Invariants
//!
//! - `a_flow_that_others_hand_messages_to_stays`, and goes on taking them.
//! - `messages_are_handed_to_flows_that_are_there_and_take_them_and_never_back`.

use std::collections::BTreeMap;

use towpath_flow::{Fires, Flow, FlowFact};

use super::Control;
use super::error::{ControlError, ErrorKind};
use super::view::HandoverView;
use crate::live::LiveFlow;

impl Control {
    /// What is known of the flows there are.
    pub(super) async fn flow_facts(&self) -> Result<BTreeMap<String, FlowFact>, ControlError> {
        let flows = self.catalog.live_flows().await?;
        let facts = flows.into_iter().map(|(name, flow)| {
            let to = flow.handovers.into_iter().map(|it| it.to).collect();
            let takes = flow.trigger.fires == Fires::Flows;
            (name, FlowFact { takes, to })
        });
        Ok(facts.collect())
    }

    /// Refuses what would leave messages that another flow hands over without a place to go.
    pub(super) async fn refuse_if_handed_to(
        &self,
        flow: &str,
        then: &str,
    ) -> Result<(), ControlError> {
        let senders = self.handed_by(flow).await?;
        if senders.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = senders.iter().map(|name| format!("`{name}`")).collect();
        let (names, hand) = match names.as_slice() {
            [one] => (one.clone(), "hands"),
            several => (several.join(", "), "hand"),
        };
        let message = format!("`{flow}` {then}, and {names} {hand} messages to it");
        let refusal = ControlError::new(ErrorKind::Conflict, "flow_is_handed_to", message);
        Err(refusal.hint(format!(
            "take `to: flow/{flow}` out of {names} and apply that first"
        )))
    }

    /// The flows that hand messages to one.
    pub(super) async fn handed_by(&self, flow: &str) -> Result<Vec<String>, ControlError> {
        let flows = self.catalog.live_flows().await?;
        let hands = |other: &&LiveFlow| other.handovers.iter().any(|it| it.to == flow);
        Ok(flows
            .values()
            .filter(hands)
            .map(|it| it.name.clone())
            .collect())
    }

    /// What a flow hands to others.
    pub(super) async fn hands(&self, flow: &Flow) -> Result<Vec<HandoverView>, ControlError> {
        let mut views = Vec::new();
        for handover in &flow.handovers {
            if let Some(other) = self.catalog.store.flow(&handover.to).await? {
                views.push(HandoverView {
                    step: handover.id.clone(),
                    to: handover.to.clone(),
                    state: other.state,
                });
            }
        }
        Ok(views)
    }
}

#[cfg(test)]
#[path = "handovers_tests.rs"]
mod tests;
