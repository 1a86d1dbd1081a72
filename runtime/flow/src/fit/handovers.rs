//! Whether what a flow hands to others, or takes from them, can get where it belongs.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::diagnostic::{Code, Diagnostic};
use crate::document::{Document, Draft, describe};
use crate::facts::{Facts, FlowFact};
use crate::graph::Edge;
use crate::model::Fires;
use crate::text::{did_you_mean, shown};

/// Checks one step; `edges` lead to it.
pub(super) fn check(
    document: &Document<'_>,
    draft: &Draft<'_>,
    edges: &[Edge],
    facts: &Facts,
    found: &mut Vec<Diagnostic>,
) {
    found.extend(after_handover(document, draft, edges));
    found.extend(nobody_decides(document, draft, edges));
    found.extend(handover(document, draft, facts));
}

/// What a step before hands to another flow does not come to this one.
fn after_handover(document: &Document<'_>, draft: &Draft<'_>, edges: &[Edge]) -> Vec<Diagnostic> {
    let from = |edge: &&Edge| document.drafts[edge.from].to.is_some();
    let diagnostic = |edge: &Edge| {
        let before = &document.drafts[edge.from];
        let span = edge.span.clone().unwrap_or_else(|| draft.place.clone());
        Diagnostic::new(
            Code::AfterHandover,
            format!("no message ever reaches {}", describe(&draft.step)),
        )
        .at(span)
        .label(format!(
            "{} hands its messages to another flow",
            describe(&before.step)
        ))
        .help("name another step in `after`, or do it in the other flow")
    };
    edges.iter().filter(from).map(diagnostic).collect()
}

/// The agents of other flows do not know the conditions of this one, nor what it hands over: what
/// follows its trigger must be a step that runs, and takes everything.
fn nobody_decides(
    document: &Document<'_>,
    draft: &Draft<'_>,
    edges: &[Edge],
) -> Option<Diagnostic> {
    let from_trigger = |edge: &Edge| document.drafts[edge.from].step.is_trigger;
    if document.fires != Some(Fires::Flows) || !edges.iter().any(from_trigger) {
        return None;
    }
    let (span, what) = if draft.step.when.is_some() {
        (&draft.when_span, "its condition")
    } else if draft.to.is_some() {
        (&draft.to_span, "it")
    } else {
        return None;
    };
    let message = format!(
        "{} cannot be first where other flows hand messages over",
        describe(&draft.step)
    );
    Some(
        Diagnostic::new(Code::NobodyDecides, message)
            .at(span.clone())
            .label(format!("nothing runs before {what} that could decide"))
            .help("put a step that runs before it, or this where the messages are handed over"),
    )
}

/// The flow that messages are handed to must be there, take them, and not hand them back.
fn handover(document: &Document<'_>, draft: &Draft<'_>, facts: &Facts) -> Option<Diagnostic> {
    let to = draft.to.as_deref().filter(|to| !to.is_empty())?;
    let at = |code, message: String, label: &str| {
        Diagnostic::new(code, message)
            .at(draft.to_span.clone())
            .label(label)
    };
    if to == document.name {
        let message = format!("{} hands messages to its own flow", describe(&draft.step));
        return Some(at(Code::FlowLoop, message, "this is the flow itself"));
    }
    let Some(flows) = &facts.flows else {
        return Some(Diagnostic::new(
            Code::NotChecked,
            format!(
                "other flows were not looked at: {} may be missing",
                shown(to)
            ),
        ));
    };
    let Some(target) = flows.get(to) else {
        let message = format!("the flow {} does not exist", shown(to));
        let help = did_you_mean(to, flows.keys().map(String::as_str));
        return Some(at(Code::UnknownFlow, message, "no such flow").help(
            help.unwrap_or_else(|| "apply it first: what is handed over must not get lost".into()),
        ));
    };
    if !target.takes {
        let message = format!("the flow {} takes no messages of other flows", shown(to));
        return Some(
            at(
                Code::UnknownFlow,
                message,
                "its trigger fires in another way",
            )
            .help("its trigger must say `from: flows`"),
        );
    }
    let way = way_back(to, &document.name, flows)?;
    let way: Vec<String> = way.iter().map(|flow| shown(flow)).collect();
    let message = format!("flows form a loop: {}", way.join(" -> "));
    Some(
        at(Code::FlowLoop, message, "messages would come back")
            .help("a message would go round for ever: let one of them end"),
    )
}

/// The flows that messages go through from `from` back to `own`, `own` at both ends.
fn way_back<'f>(
    from: &'f str,
    own: &'f str,
    flows: &'f BTreeMap<String, FlowFact>,
) -> Option<Vec<&'f str>> {
    let mut ways = VecDeque::from([vec![own, from]]);
    let mut seen = BTreeSet::from([from]);
    while let Some(way) = ways.pop_front() {
        let next = flows.get(*way.last()?).map(|flow| &flow.to);
        for next in next.into_iter().flatten() {
            let way = [way.as_slice(), &[next]].concat();
            if next == own {
                return Some(way);
            }
            if seen.insert(next) {
                ways.push_back(way);
            }
        }
    }
    None
}
