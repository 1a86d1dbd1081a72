//! Whether those who wait for an answer and those who give one are in the same flow.
//!
//! # Invariants
//!
//! - What an image does not say is not spoken of: a step of which nothing is known may answer.

use towpath_protocol::answer::REPLY_PORT;
use towpath_protocol::start::Mode;

use crate::diagnostic::{Code, Diagnostic};
use crate::document::{Document, Draft, describe};
use crate::facts::{Facts, ImageFact};
use crate::graph::Graph;
use crate::text::shown;
use crate::tree::Node;

pub(super) fn check(
    document: &Document<'_>,
    graph: &Graph,
    root: &Node,
    facts: &Facts,
    found: &mut Vec<Diagnostic>,
) {
    let webhook = root
        .entry("trigger")
        .and_then(|trigger| trigger.value.entry("webhook"));
    let reply = webhook.and_then(|webhook| webhook.value.entry("reply"));
    let followed = || {
        let edges = graph.edges.iter().enumerate();
        edges.flat_map(|(at, edges)| edges.iter().map(move |edge| (at, edge)))
    };
    let Some(reply) = reply else {
        for (at, draft) in document.drafts.iter().enumerate() {
            let is_followed = || followed().any(|(_, it)| it.from == at && it.port == REPLY_PORT);
            if answers(draft, facts) == Some(true) && !is_followed() {
                found.push(nobody_waits(draft));
            }
        }
        return;
    };
    for (at, edge) in followed().filter(|(_, edge)| edge.port == REPLY_PORT) {
        let draft = &document.drafts[at];
        found.push(
            Diagnostic::new(
                Code::FollowsReply,
                format!("{} follows the port `{REPLY_PORT}`", describe(&draft.step)),
            )
            .at(edge.span.clone().unwrap_or_else(|| draft.place.clone()))
            .label("what leaves by it is the answer of the flow")
            .related(reply.key_span.clone(), "requests wait for it")
            .help("follow another port of the step"),
        );
    }
    let drafts = document.drafts.iter().filter(|draft| draft.has_image);
    let mut known = drafts.map(|draft| answers(draft, facts)).peekable();
    if known.peek().is_some() && known.all(|answers| answers == Some(false)) {
        found.push(
            Diagnostic::new(
                Code::NobodyReplies,
                "requests wait for an answer, and no step gives one",
            )
            .at(reply.key_span.clone())
            .label("no step has the port `reply`")
            .help("add a step that answers: `{ id: answer, image: \"towpath/reply:1\" }`"),
        );
    }
}

/// Whether a step gives answers; none if that is not known.
fn answers(draft: &Draft<'_>, facts: &Facts) -> Option<bool> {
    if draft.step.mode == Mode::Lines {
        // Its outputs leave by one port.
        return Some(false);
    }
    match facts.image(&draft.step.image) {
        ImageFact::Known(Some(manifest)) => Some(manifest.ports.contains_key(REPLY_PORT)),
        _ => None,
    }
}

fn nobody_waits(draft: &Draft<'_>) -> Diagnostic {
    Diagnostic::new(
        Code::NobodyWaits,
        format!("{} answers, and no request waits", describe(&draft.step)),
    )
    .at(draft.image_span.clone())
    .label(format!(
        "what the image {} emits by its port `{REPLY_PORT}` goes nowhere",
        shown(&draft.step.image)
    ))
    .help("let requests wait: `webhook: { reply: 30s }`")
}
