//! How the steps of a flow hang together: who takes messages from whom, and in which order.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use towpath_protocol::DEFAULT_PORT;

use crate::diagnostic::{Code, Diagnostic};
use crate::document::{Document, Draft, describe};
use crate::model::{Fires, Flow};
use crate::text::{did_you_mean, list, shown};

/// Who takes messages from whom. Steps are their places in [`Document::drafts`].
#[derive(Debug)]
pub(crate) struct Graph {
    /// What each step takes messages from.
    pub(crate) edges: Vec<Vec<Edge>>,
    /// The steps, each after those it follows. In a flow with a loop, some are missing.
    order: Vec<usize>,
}

/// Messages that go from a port of one step to another.
#[derive(Debug, Clone)]
pub(crate) struct Edge {
    pub(crate) from: usize,
    pub(crate) port: String,
    /// Where the file says so; none if it does not, and the step before is meant.
    pub(crate) span: Option<Range<usize>>,
}

/// Finds out who follows whom.
pub(crate) fn connect(document: &Document<'_>, found: &mut Vec<Diagnostic>) -> Graph {
    let drafts = &document.drafts;
    let ids = ids(drafts, found);
    let edges: Vec<Vec<Edge>> = (0..drafts.len())
        .map(|at| edges_to(drafts, at, &ids, found))
        .collect();
    let order = order(&edges);
    if order.len() < drafts.len() {
        report_loops(drafts, &edges, &order, found);
    }
    Graph { edges, order }
}

impl Graph {
    /// The flow, if every part of it was read.
    pub(crate) fn into_flow(self, document: Document<'_>) -> Option<Flow> {
        let fires = document.fires?;
        let webhook = document.webhook.filter(|_| fires == Fires::Webhook);
        let ids: Vec<String> = document
            .drafts
            .iter()
            .map(|draft| draft.step.id.clone())
            .collect();
        let trigger = document.drafts.iter().find(|draft| draft.step.is_trigger)?;
        let trigger_id = trigger.step.id.clone();
        let mut drafts: Vec<Option<Draft<'_>>> = document.drafts.into_iter().map(Some).collect();
        let mut steps = Vec::new();
        for at in self.order {
            let Some(mut draft) = drafts[at].take() else {
                continue;
            };
            if !draft.has_image {
                continue;
            }
            draft.step.after = self.edges[at]
                .iter()
                .map(|edge| (ids[edge.from].clone(), edge.port.clone()))
                .collect();
            steps.push(draft.step);
        }
        // Each request to a webhook is a run of its own, a row or two for every message, unless it waits
        // for what comes of it; a stream is one run for ever.
        let waits = webhook.as_ref().is_some_and(|it| it.reply.is_some());
        let track = document
            .track
            .unwrap_or(waits || !matches!(fires, Fires::Webhook | Fires::Stream));
        Some(Flow {
            name: document.name,
            description: document.description,
            fires,
            overlap: document.overlap,
            missed: document.missed,
            track,
            webhook,
            trigger_id,
            steps,
        })
    }
}

/// The first step of each id.
fn ids<'d>(drafts: &'d [Draft<'_>], found: &mut Vec<Diagnostic>) -> BTreeMap<&'d str, usize> {
    let mut ids = BTreeMap::new();
    for (at, draft) in drafts
        .iter()
        .enumerate()
        .filter(|(_, draft)| !draft.step.id.is_empty())
    {
        if let Some(first) = ids.get(draft.step.id.as_str()) {
            let first: &Draft<'_> = &drafts[*first];
            found.push(
                Diagnostic::new(
                    Code::DuplicateStep,
                    format!("two steps have the id {}", shown(&draft.step.id)),
                )
                .at(draft.place.clone())
                .label("the second one")
                .related(first.place.clone(), "the first one")
                .help("an id names a step in `after`, in `status` and in logs: it must be unique"),
            );
        } else {
            ids.insert(draft.step.id.as_str(), at);
        }
    }
    ids
}

fn edges_to(
    drafts: &[Draft<'_>],
    at: usize,
    ids: &BTreeMap<&str, usize>,
    found: &mut Vec<Diagnostic>,
) -> Vec<Edge> {
    let draft = &drafts[at];
    if draft.step.is_trigger {
        return Vec::new();
    }
    let Some(after) = &draft.after else {
        let before = at.checked_sub(1);
        return before
            .map(|from| Edge {
                from,
                port: DEFAULT_PORT.to_owned(),
                span: None,
            })
            .into_iter()
            .collect();
    };
    let mut edges: Vec<Edge> = Vec::new();
    for entry in after {
        let Some(from) = ids.get(entry.step.as_str()) else {
            let names = ids.keys().copied().filter(|id| *id != draft.step.id);
            let help = did_you_mean(&entry.step, names.clone()).unwrap_or_else(|| {
                format!("its other steps are {}", list(&names.collect::<Vec<_>>()))
            });
            found.push(
                Diagnostic::new(
                    Code::UnknownStep,
                    format!(
                        "{} takes messages from {}, which is not a step of this flow",
                        describe(&draft.step),
                        shown(&entry.step)
                    ),
                )
                .at(entry.span.clone())
                .label("no such step")
                .help(help),
            );
            continue;
        };
        if let Some(first) = edges
            .iter()
            .find(|edge| edge.from == *from && edge.port == entry.port)
        {
            found.push(
                Diagnostic::new(
                    Code::DuplicateAfter,
                    format!("{} takes the same messages twice", describe(&draft.step)),
                )
                .at(entry.span.clone())
                .label("the second time")
                .related(first.span.clone().unwrap_or_default(), "the first time"),
            );
            continue;
        }
        edges.push(Edge {
            from: *from,
            port: entry.port.clone(),
            span: Some(entry.span.clone()),
        });
    }
    edges
}

/// The steps, each after those it follows, otherwise as they are in the file.
fn order(edges: &[Vec<Edge>]) -> Vec<usize> {
    let mut done = vec![false; edges.len()];
    let mut order = Vec::new();
    while let Some(next) =
        (0..edges.len()).find(|at| !done[*at] && edges[*at].iter().all(|edge| done[edge.from]))
    {
        done[next] = true;
        order.push(next);
    }
    order
}

/// Every loop once, and every step that is behind one.
fn report_loops(
    drafts: &[Draft<'_>],
    edges: &[Vec<Edge>],
    order: &[usize],
    found: &mut Vec<Diagnostic>,
) {
    let mut reported = vec![false; drafts.len()];
    let mut loops = vec![Vec::new(); drafts.len()];
    for at in (0..drafts.len()).filter(|at| !order.contains(at)) {
        loops[at] = shortest_loop(edges, at);
    }
    for at in 0..drafts.len() {
        if loops[at].is_empty() || reported[at] {
            continue;
        }
        for step in &loops[at] {
            reported[*step] = true;
        }
        found.push(describe_loop(drafts, edges, &loops[at]));
    }
    for at in (0..drafts.len()).filter(|at| !order.contains(at) && loops[*at].is_empty()) {
        let waits = edges[at].iter().find(|edge| !order.contains(&edge.from));
        let Some(waits) = waits else { continue };
        let draft = &drafts[at];
        let span = waits.span.clone().unwrap_or_else(|| draft.place.clone());
        found.push(
            Diagnostic::new(
                Code::Unreachable,
                format!("no message ever reaches {}", describe(&draft.step)),
            )
            .at(span)
            .label(format!(
                "it follows {}, which is in or behind a loop",
                describe(&drafts[waits.from].step)
            )),
        );
    }
}

/// The shortest way from a step back to itself, in the direction of messages; empty if none.
fn shortest_loop(edges: &[Vec<Edge>], start: usize) -> Vec<usize> {
    let mut next_on_way = vec![None; edges.len()];
    let mut queue = VecDeque::from([start]);
    while let Some(at) = queue.pop_front() {
        for edge in &edges[at] {
            if edge.from == start {
                let mut way = vec![start];
                let mut step = at;
                while step != start {
                    way.push(step);
                    step = next_on_way[step].unwrap_or(start);
                }
                return way;
            }
            if next_on_way[edge.from].is_none() {
                next_on_way[edge.from] = Some(at);
                queue.push_back(edge.from);
            }
        }
    }
    Vec::new()
}

fn describe_loop(drafts: &[Draft<'_>], edges: &[Vec<Edge>], way: &[usize]) -> Diagnostic {
    let place = |at: usize, from: usize| {
        let edge = edges[at].iter().find(|edge| edge.from == from);
        edge.and_then(|edge| edge.span.clone())
            .unwrap_or_else(|| drafts[at].place.clone())
    };
    let first = way[0];
    let last = way[way.len() - 1];
    if way.len() == 1 {
        return Diagnostic::new(
            Code::Loop,
            format!(
                "{} takes messages from itself",
                describe(&drafts[first].step)
            ),
        )
        .at(place(first, first))
        .label("this is the step itself");
    }
    let names: Vec<String> = way
        .iter()
        .chain([&first])
        .map(|at| shown(&drafts[*at].step.id))
        .collect();
    let mut diagnostic = Diagnostic::new(
        Code::Loop,
        format!("steps form a loop: {}", names.join(" -> ")),
    )
    .at(place(first, last))
    .label(format!(
        "{} follows {} here",
        shown(&drafts[first].step.id),
        shown(&drafts[last].step.id)
    ));
    for pair in way.windows(2) {
        diagnostic = diagnostic.related(
            place(pair[1], pair[0]),
            format!(
                "{} follows {}",
                shown(&drafts[pair[1]].step.id),
                shown(&drafts[pair[0]].step.id)
            ),
        );
    }
    diagnostic.help("a message goes from the trigger towards the end: leave one of them out")
}
