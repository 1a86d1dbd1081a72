//! What each step should be doing, from what an operator said of the flow and of its steps: pure.
//!
//! # Invariants
//!
//! - `what_is_said_of_the_flow_holds_for_every_step`; a step that is held by itself stays held when
//!   the flow runs again.
//! - `a_flow_that_drains_takes_in_nothing_new_and_finishes_the_rest`.
//! - `while_a_step_drains_only_what_comes_before_it_holds_still`.

use std::collections::BTreeMap;

use towpath_flow::model::{Flow, Step};

use super::FlowState;

/// What an operator said of single steps: paused, draining or stopped. Who is not in it runs.
pub type Held = BTreeMap<String, FlowState>;

/// What a step should be doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// What. A step that drains runs.
    pub state: FlowState,
    /// Because of what, if it does not simply run.
    pub because: Option<String>,
}

impl Intent {
    fn new(state: FlowState, because: impl Into<String>) -> Self {
        Self {
            state,
            because: Some(because.into()),
        }
    }
}

/// Says what a step should be doing.
pub fn intent(flow: &Flow, state: FlowState, held: &Held, step: &Step) -> Intent {
    let own = held.get(&step.id).copied().unwrap_or_default();
    if state == FlowState::Stopped {
        return Intent::new(FlowState::Stopped, "the flow is stopped");
    }
    if own == FlowState::Stopped {
        return Intent::new(FlowState::Stopped, "the step is stopped");
    }
    if state == FlowState::Paused {
        return Intent::new(FlowState::Paused, "the flow is paused");
    }
    if own == FlowState::Paused {
        return Intent::new(FlowState::Paused, "the step is paused");
    }
    // Before what comes after it: of several steps in a row the first is empty first.
    if own == FlowState::Draining {
        return Intent::new(FlowState::Draining, "the step drains");
    }
    if let Some(draining) = drains_after(flow, held, &step.id) {
        return Intent::new(
            FlowState::Paused,
            format!("`{draining}`, which comes after it, drains"),
        );
    }
    // A tick that waits would bring in something new; a request that waits was taken already.
    if state == FlowState::Draining && step.is_trigger && flow.fires.by_ticks() {
        return Intent::new(FlowState::Paused, "the flow drains");
    }
    Intent {
        state: FlowState::Running,
        because: None,
    }
}

/// Says what whatever brings messages into a flow should be doing: ticks and requests.
pub fn intake(flow: &Flow, state: FlowState, held: &Held) -> FlowState {
    if state != FlowState::Running {
        return state;
    }
    match flow.steps.iter().find(|step| step.is_trigger) {
        Some(trigger) => intent(flow, state, held, trigger).state,
        None if drains_after(flow, held, &flow.trigger_id).is_some() => FlowState::Draining,
        None => FlowState::Running,
    }
}

/// The steps that come right before a step.
pub fn steps_before<'a>(flow: &'a Flow, step: &str) -> impl Iterator<Item = &'a Step> {
    let after: Vec<String> = flow
        .steps
        .iter()
        .filter(|it| it.id == step)
        .flat_map(|it| it.after.iter().map(|(before, _)| before.clone()))
        .collect();
    flow.steps.iter().filter(move |it| after.contains(&it.id))
}

/// A step right after this one that drains, if there is one.
fn drains_after<'a>(flow: &'a Flow, held: &Held, step: &str) -> Option<&'a str> {
    flow.steps
        .iter()
        .filter(|it| held.get(&it.id) == Some(&FlowState::Draining))
        .find(|it| it.after.iter().any(|(before, _)| before == step))
        .map(|it| it.id.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::testing;

    /// What the steps `orders`, `shape`, `crm` (after `shape`) and `audit` (after `orders`) should
    /// be doing, a letter each.
    #[track_caller]
    fn check(state: FlowState, held: &[(&str, FlowState)], expect: &str) {
        let flow = testing::flow(testing::FLOW);
        let held: Held = held
            .iter()
            .map(|(step, state)| ((*step).to_owned(), *state))
            .collect();
        let letters: String = ["orders", "shape", "crm", "audit"]
            .iter()
            .map(|id| {
                let step = flow.steps.iter().find(|it| it.id == *id).expect("a step");
                let intent = intent(&flow, state, &held, step);
                assert_eq!(
                    intent.because.is_none(),
                    intent.state == FlowState::Running,
                    "{id}: {intent:?}"
                );
                match intent.state {
                    FlowState::Running => 'r',
                    FlowState::Draining => 'd',
                    FlowState::Paused => 'p',
                    FlowState::Stopped => 's',
                }
            })
            .collect();
        assert_eq!(letters, expect, "{state:?} {held:?}");
    }

    #[test]
    fn what_is_said_of_the_flow_holds_for_every_step() {
        use FlowState::{Paused, Running, Stopped};
        check(Running, &[], "rrrr");
        check(Paused, &[], "pppp");
        check(Stopped, &[], "ssss");
        check(Running, &[("crm", Paused), ("audit", Stopped)], "rrps");
        check(Paused, &[("crm", Paused), ("audit", Stopped)], "ppps");
        check(Stopped, &[("crm", Paused)], "ssss");
    }

    #[test]
    fn a_flow_that_drains_takes_in_nothing_new_and_finishes_the_rest() {
        check(FlowState::Draining, &[], "prrr");
        check(FlowState::Draining, &[("crm", FlowState::Paused)], "prpr");
        let webhook = testing::flow(&testing::FLOW.replace("every: 30s", "webhook: true"));
        let none = Held::new();
        let trigger = &webhook.steps[0];
        let is = intent(&webhook, FlowState::Draining, &none, trigger);
        assert_eq!(
            is.state,
            FlowState::Running,
            "it finishes the requests that were taken"
        );
        let taken_in = intake(&webhook, FlowState::Draining, &none);
        assert_eq!(taken_in, FlowState::Draining, "and gets no further ones");
    }

    #[test]
    fn while_a_step_drains_only_what_comes_before_it_holds_still() {
        use FlowState::{Draining, Paused, Running, Stopped};
        check(Running, &[("crm", Draining)], "rpdr");
        check(Running, &[("shape", Draining)], "pdrr");
        check(Running, &[("audit", Draining)], "prrd");
        check(Running, &[("shape", Draining), ("crm", Draining)], "pddr");
        check(Running, &[("orders", Draining)], "drrr");
        check(Paused, &[("crm", Draining)], "pppp");
        let flow = testing::flow(testing::FLOW);
        let held = |step: &str, state| Held::from([(step.to_owned(), state)]);
        let cases = [
            (Held::new(), Running),
            (held("shape", Draining), Paused),
            (held("crm", Draining), Running),
            (held("orders", Draining), Draining),
            (held("orders", Stopped), Stopped),
        ];
        for (held, expect) in cases {
            assert_eq!(intake(&flow, Running, &held), expect, "{held:?}");
        }
        let before: Vec<_> = steps_before(&flow, "crm").map(|it| &*it.id).collect();
        assert_eq!(before, ["shape"]);
    }
}
