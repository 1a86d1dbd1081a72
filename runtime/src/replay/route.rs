//! Where a dead letter can go: pure, from the flows as they are now.
//!
//! # Invariants
//!
//! - `it_goes_to_the_step_that_failed_or_to_one_before_it`.
//! - `a_step_that_is_gone_is_said_with_those_there_are`.
//! - `a_tick_goes_nowhere_but_to_its_trigger`: another step cannot read it, and a trigger that is
//!   fired by the clock can read nothing else.

use std::collections::BTreeSet;

use crate::live::LiveFlow;

/// Where a dead letter was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place<'a> {
    /// The flow.
    pub flow: &'a str,
    /// The step.
    pub step: &'a str,
    /// The port by which it left the step, if it was lost on the way to the next.
    pub port: Option<&'a str>,
}

/// Where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// To a step.
    Step(String),
    /// To another flow, as an action of this one hands messages over.
    Handover(String),
    /// On from where it was lost.
    Port {
        /// The step it left.
        step: String,
        /// By which port.
        port: String,
    },
    /// It is a tick: a new run begins in its place.
    Tick,
}

/// Why it can go nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoRoute {
    /// The flow is gone.
    #[error("there is no flow `{flow}`, so no step `{step}` could take it")]
    NoFlow {
        /// The flow.
        flow: String,
        /// The step.
        step: String,
    },
    /// The step is gone.
    #[error("there is no step `{step}` in the flow `{flow}` that could take it")]
    NoStep {
        /// The flow.
        flow: String,
        /// The step.
        step: String,
        /// Those there are.
        steps: Vec<String>,
    },
    /// Nobody takes what leaves by this port.
    #[error("no step of the flow `{flow}` takes what leaves `{step}` by the port `{port}`")]
    NoPort {
        /// The flow.
        flow: String,
        /// The step.
        step: String,
        /// The port.
        port: String,
        /// The steps there are.
        steps: Vec<String>,
    },
    /// The step it is to go to is not before the one that failed.
    #[error(
        "`{from}` is neither the step that failed, `{step}`, nor before it in the flow `{flow}`"
    )]
    NotBefore {
        /// The flow.
        flow: String,
        /// The step that failed.
        step: String,
        /// Where it is to go.
        from: String,
        /// Where it can go.
        steps: Vec<String>,
    },
}

impl NoRoute {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::NoFlow { flow, .. } => {
                format!("apply a flow `{flow}` that has this step, or discard it")
            }
            Self::NoStep { steps, .. } | Self::NoPort { steps, .. } => format!(
                "`--from` sends it to a step there is: {}; or apply a flow that has this one",
                list(steps)
            ),
            Self::NotBefore { steps, .. } => format!("it can go to {}", list(steps)),
        }
    }
}

fn list(steps: &[String]) -> String {
    if steps.is_empty() {
        return "none".to_owned();
    }
    let quoted: Vec<String> = steps.iter().map(|step| format!("`{step}`")).collect();
    quoted.join(", ")
}

/// Says where a dead letter goes: to the step that failed, or to `from`.
pub fn route(
    flow: Option<&LiveFlow>,
    place: Place<'_>,
    from: Option<&str>,
) -> Result<Route, NoRoute> {
    let Some(flow) = flow else {
        return Err(NoRoute::NoFlow {
            flow: place.flow.to_owned(),
            step: from.unwrap_or(place.step).to_owned(),
        });
    };
    let takers = takers(flow);
    if is_tick(flow, place) && from.is_none_or(|from| from == place.step) {
        return Ok(Route::Tick);
    }
    let failed = failed(flow, place);
    match from {
        Some(from) => {
            if !takers.iter().any(|step| step == from) {
                return Err(no_step(place, from, takers));
            }
            let can = if is_tick(flow, place) {
                vec![place.step.to_owned()]
            } else if failed.is_empty() {
                // The step that failed is gone, so nothing says what is before it.
                takers
            } else {
                let before = before(flow, &failed);
                takers
                    .into_iter()
                    .filter(|step| before.contains(step.as_str()))
                    .collect()
            };
            if can.iter().any(|step| step == from) {
                Ok(to_step(flow, from))
            } else {
                Err(NoRoute::NotBefore {
                    flow: place.flow.to_owned(),
                    step: place.step.to_owned(),
                    from: from.to_owned(),
                    steps: can,
                })
            }
        }
        None if failed.is_empty() => Err(match place.port {
            Some(port) => NoRoute::NoPort {
                flow: place.flow.to_owned(),
                step: place.step.to_owned(),
                port: port.to_owned(),
                steps: takers,
            },
            None => no_step(place, place.step, takers),
        }),
        None => Ok(match place.port {
            Some(port) => Route::Port {
                step: place.step.to_owned(),
                port: port.to_owned(),
            },
            None => to_step(flow, place.step),
        }),
    }
}

fn to_step(flow: &LiveFlow, step: &str) -> Route {
    match flow.handover(step) {
        Some(_) => Route::Handover(step.to_owned()),
        None => Route::Step(step.to_owned()),
    }
}

fn no_step(place: Place<'_>, step: &str, steps: Vec<String>) -> NoRoute {
    NoRoute::NoStep {
        flow: place.flow.to_owned(),
        step: step.to_owned(),
        steps,
    }
}

fn is_tick(flow: &LiveFlow, place: Place<'_>) -> bool {
    flow.trigger.fires.by_ticks() && place.port.is_none() && flow.trigger.step == place.step
}

/// The steps that can take a message: all with a queue but a trigger that takes ticks.
fn takers(flow: &LiveFlow) -> Vec<String> {
    let is_taker = |step: &&(String, Vec<(String, String)>)| {
        !flow.trigger.fires.by_ticks() || step.0 != flow.trigger.step
    };
    let steps = flow.steps.iter().filter(is_taker);
    let steps = steps.map(|(step, _)| step.clone());
    // What is handed to another flow can be sent there again.
    let handovers = flow.handovers.iter();
    steps.chain(handovers.map(|it| it.step.clone())).collect()
}

/// The steps that would have had it next, if they are still there.
fn failed<'a>(flow: &'a LiveFlow, place: Place<'_>) -> Vec<&'a str> {
    let is_it = |step: &str, after: &[(String, String)]| match place.port {
        Some(port) => after.iter().any(|it| it.0 == place.step && it.1 == port),
        None => step == place.step,
    };
    let steps = flow.steps.iter().filter(|(step, after)| is_it(step, after));
    let handover = flow.handover(place.step).filter(|_| place.port.is_none());
    steps
        .map(|(step, _)| step.as_str())
        .chain(handover.map(|it| it.step.as_str()))
        .collect()
}

/// Some steps, and all before them.
fn before<'a>(flow: &'a LiveFlow, steps: &[&'a str]) -> BTreeSet<&'a str> {
    let mut found: BTreeSet<&str> = BTreeSet::new();
    let mut open: Vec<&str> = steps.to_vec();
    while let Some(step) = open.pop() {
        if !found.insert(step) {
            continue;
        }
        let after = flow.steps.iter().find(|it| it.0 == step);
        let after = after.map(|it| &it.1);
        let after = after.or_else(|| flow.handover(step).map(|it| &it.after));
        open.extend(after.into_iter().flatten().map(|it| it.0.as_str()));
    }
    found
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use towpath_flow::{Fires, Missed, Overlap};

    use super::*;
    use crate::broker::topology::Handover;
    use crate::live::LiveTrigger;
    use crate::reconcile::FlowState;

    /// `poll` or `hook`, then `shape`, then `crm` and beside it `audit`.
    fn flow(every: Option<Duration>) -> LiveFlow {
        let after = |step: &str| vec![(step.to_owned(), "out".to_owned())];
        let trigger = if every.is_some() { "poll" } else { "hook" };
        LiveFlow {
            name: "orders".into(),
            version: 1,
            applied_at: 0,
            state: FlowState::Running,
            track: false,
            trigger: LiveTrigger {
                step: trigger.into(),
                has_image: true,
                fires: every.map_or(Fires::Webhook, Fires::Every),
                overlap: Overlap::Skip,
                missed: Missed::Once,
            },
            ordered: std::collections::BTreeMap::new(),
            steps: vec![
                (trigger.into(), vec![]),
                ("shape".into(), after(trigger)),
                ("crm".into(), after("shape")),
                ("audit".into(), after("shape")),
            ],
            branches: BTreeMap::new(),
            handovers: Vec::new(),
        }
    }

    fn at<'a>(step: &'a str, port: Option<&'a str>) -> Place<'a> {
        Place {
            flow: "orders",
            step,
            port,
        }
    }

    #[track_caller]
    fn check(every: bool, place: Place<'_>, from: Option<&str>, expect: &str) {
        let flow = flow(every.then_some(Duration::from_secs(1)));
        let said = match route(Some(&flow), place, from) {
            Ok(Route::Step(step)) => step,
            Ok(Route::Port { step, port }) => format!("{step}.{port}"),
            Ok(Route::Handover(step)) => format!("{step} hands over"),
            Ok(Route::Tick) => "tick".into(),
            Err(no) => format!("{no}; {}", no.hint()),
        };
        assert_eq!(said, expect);
    }

    #[test]
    fn it_goes_to_the_step_that_failed_or_to_one_before_it() {
        check(false, at("crm", None), None, "crm");
        check(false, at("crm", None), Some("crm"), "crm");
        check(false, at("crm", None), Some("shape"), "shape");
        check(false, at("crm", None), Some("hook"), "hook");
        check(false, at("shape", Some("out")), None, "shape.out");
        check(false, at("shape", Some("out")), Some("audit"), "audit");
        check(
            false,
            at("crm", None),
            Some("audit"),
            "`audit` is neither the step that failed, `crm`, nor before it in the flow `orders`; it can go to `hook`, `shape`, `crm`",
        );
    }

    #[test]
    fn a_step_that_is_gone_is_said_with_those_there_are() {
        check(
            true,
            at("gone", None),
            None,
            "there is no step `gone` in the flow `orders` that could take it; `--from` sends it to a step there is: `shape`, `crm`, `audit`; or apply a flow that has this one",
        );
        check(true, at("gone", None), Some("audit"), "audit");
        check(
            true,
            at("crm", None),
            Some("gone"),
            "there is no step `gone` in the flow `orders` that could take it; `--from` sends it to a step there is: `shape`, `crm`, `audit`; or apply a flow that has this one",
        );
        check(
            true,
            at("crm", Some("other")),
            None,
            "no step of the flow `orders` takes what leaves `crm` by the port `other`; `--from` sends it to a step there is: `shape`, `crm`, `audit`; or apply a flow that has this one",
        );
        let no = route(None, at("crm", None), None).unwrap_err();
        assert_eq!(
            no.to_string(),
            "there is no flow `orders`, so no step `crm` could take it"
        );
    }

    #[test]
    fn a_tick_goes_nowhere_but_to_its_trigger() {
        check(true, at("poll", None), None, "tick");
        check(true, at("poll", None), Some("poll"), "tick");
        check(
            true,
            at("poll", None),
            Some("crm"),
            "`crm` is neither the step that failed, `poll`, nor before it in the flow `orders`; it can go to `poll`",
        );
        check(
            true,
            at("crm", None),
            Some("poll"),
            "there is no step `poll` in the flow `orders` that could take it; `--from` sends it to a step there is: `shape`, `crm`, `audit`; or apply a flow that has this one",
        );
    }

    #[test]
    fn what_could_not_be_handed_over_is_handed_over_again() {
        let mut flow = flow(None);
        flow.handovers.push(Handover {
            step: "over".into(),
            after: vec![("shape".into(), "out".into())],
            when: Some(".total".into()),
            to: "invoices".into(),
            entry: vec!["bill".into()],
        });
        let go = |from| route(Some(&flow), at("over", None), from);
        assert_eq!(go(None), Ok(Route::Handover("over".into())));
        assert_eq!(go(Some("over")), Ok(Route::Handover("over".into())));
        assert_eq!(go(Some("shape")), Ok(Route::Step("shape".into())));
        let beside = go(Some("audit")).unwrap_err();
        assert_eq!(beside.hint(), "it can go to `hook`, `shape`, `over`");
    }
}
