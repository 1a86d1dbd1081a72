//! What can only be checked with facts: whether steps fit their images, and whether secrets and
//! variables are there.

use towpath_protocol::CONTRACT;
use towpath_protocol::manifest::{Kind, Manifest};
use towpath_protocol::start::Mode;

use crate::diagnostic::{Code, Diagnostic};
use crate::document::{CONDITION_HELP, Document, Draft, ORDER_HELP, describe, within};
use crate::facts::{Facts, ImageFact};
use crate::graph::{Edge, Graph};
use crate::limits::DIAGNOSTICS_MAX;
use crate::model::Fires;
use crate::placeholder::{Piece, pieces};
use crate::text::{did_you_mean, list, nearest, shown};
use crate::tree::{Content, Node};

mod bodies;
mod handovers;
mod reply;
mod with;
mod words;

/// Checks every step.
pub(crate) fn check(
    document: &Document<'_>,
    graph: &Graph,
    root: &Node,
    text: &str,
    facts: &Facts,
    found: &mut Vec<Diagnostic>,
) {
    let mut unknown = Vec::new();
    for (at, draft) in document.drafts.iter().enumerate() {
        for edge in &graph.edges[at] {
            found.extend(port(document, facts, draft, edge));
            bodies::check(document, facts, draft, edge, found);
        }
        found.extend(condition(draft, facts));
        handovers::check(document, draft, &graph.edges[at], facts, found);
        found.extend(order(draft, facts));
        found.extend(folders(draft, facts));
        if !draft.has_image {
            continue;
        }
        bodies::check_validate(draft, facts, found);
        found.extend(batch(draft, facts));
        found.extend(no_batch(draft, facts));
        match facts.image(&draft.step.image) {
            ImageFact::Unknown => unknown.push(draft.step.id.as_str()),
            ImageFact::Missing => found.push(missing(facts, draft)),
            ImageFact::Unreadable(why) => found.push(unreadable(draft, why)),
            ImageFact::Known(None) => {}
            ImageFact::Known(Some(manifest)) => {
                manifest_fits(draft, manifest, document.fires.as_ref(), found);
            }
        }
    }
    if !unknown.is_empty() {
        unknown.retain(|id| !id.is_empty());
        found.push(Diagnostic::new(
            Code::NotChecked,
            format!(
                "images were not looked at: `with` and ports of {} were not checked",
                list(&unknown)
            ),
        ));
    }
    reply::check(document, graph, root, facts, found);
    names(root, text, facts, found);
}

/// A condition must be a filter that compiles, if somebody tried.
fn condition(draft: &Draft<'_>, facts: &Facts) -> Option<Diagnostic> {
    let when = draft.step.when.as_ref()?;
    match facts.conditions.get(when) {
        Some(Ok(())) => None,
        Some(Err(why)) => Some(
            Diagnostic::new(
                Code::BadCondition,
                format!(
                    "the condition of {} cannot be compiled",
                    describe(&draft.step)
                ),
            )
            .at(draft.when_span.clone())
            .label(why.lines().next().unwrap_or_default().to_owned())
            .help(CONDITION_HELP),
        ),
        None => Some(Diagnostic::new(
            Code::NotChecked,
            format!(
                "the condition of {} was not compiled",
                describe(&draft.step)
            ),
        )),
    }
}

/// What messages are ordered by must be an expression that compiles, if somebody tried.
fn order(draft: &Draft<'_>, facts: &Facts) -> Option<Diagnostic> {
    let order = draft.step.order.as_ref()?;
    match facts.conditions.get(&order.by) {
        Some(Ok(())) => None,
        Some(Err(why)) => {
            let why = why.lines().next().unwrap_or_default();
            Some(
                Diagnostic::new(
                    Code::BadOrder,
                    format!(
                        "the `order_by` of {} cannot be compiled",
                        describe(&draft.step)
                    ),
                )
                .at(draft.order_span.clone())
                .label(why.replace("the condition", "the expression"))
                .help(ORDER_HELP),
            )
        }
        None => Some(Diagnostic::new(
            Code::NotChecked,
            format!(
                "the `order_by` of {} was not compiled",
                describe(&draft.step)
            ),
        )),
    }
}

/// Folders must be some that the control plane has.
fn folders(draft: &Draft<'_>, facts: &Facts) -> Vec<Diagnostic> {
    let Some(Content::Mapping(entries)) = draft.folders.map(|entry| &entry.value.content) else {
        return Vec::new();
    };
    let Some(known) = &facts.folders else {
        return vec![Diagnostic::new(
            Code::NotChecked,
            format!(
                "the folders of {} were not looked for",
                describe(&draft.step)
            ),
        )];
    };
    let unknown = entries.iter().filter(|entry| !known.contains(&entry.key));
    unknown
        .map(|entry| {
            let meant = did_you_mean(&entry.key, known.iter().map(String::as_str));
            Diagnostic::new(
                Code::UnknownFolder,
                format!("there is no folder {}", shown(&entry.key)),
            )
            .at(entry.key_span.clone())
            .label("the control plane has none of that name")
            .help(meant.unwrap_or_else(|| {
                format!(
                    "name it in the settings of the control plane: `folders: {{ {}: /srv/… }}`",
                    entry.key
                )
            }))
        })
        .collect()
}

fn missing(facts: &Facts, draft: &Draft<'_>) -> Diagnostic {
    let image = &draft.step.image;
    let there = facts
        .images
        .iter()
        .filter(|(_, fact)| matches!(fact, ImageFact::Known(_)));
    Diagnostic::new(
        Code::MissingImage,
        format!("the image {} does not exist", shown(image)),
    )
    .at(draft.image_span.clone())
    .label("neither on the engine nor to be had")
    .help(
        did_you_mean(image, there.map(|(name, _)| name.as_str()))
            .unwrap_or_else(|| "build it, or look at how it is spelt".to_owned()),
    )
}

fn unreadable(draft: &Draft<'_>, why: &str) -> Diagnostic {
    Diagnostic::new(
        Code::BadManifest,
        format!(
            "the manifest of the image {} cannot be read",
            shown(&draft.step.image)
        ),
    )
    .at(draft.image_span.clone())
    .label(why.lines().next().unwrap_or_default().to_owned())
    .help("build the image again with a manifest of this Towpath")
}

fn manifest_fits(
    draft: &Draft<'_>,
    manifest: &Manifest,
    fires: Option<&Fires>,
    found: &mut Vec<Diagnostic>,
) {
    let image = shown(&draft.step.image);
    if manifest.contract != CONTRACT {
        let age = if manifest.contract > CONTRACT {
            "Towpath"
        } else {
            "the image"
        };
        found.push(
            Diagnostic::new(
                Code::WrongContract,
                format!("the image {image} speaks another version of the step protocol"),
            )
            .at(draft.image_span.clone())
            .label(format!(
                "it speaks version {}, this Towpath version {CONTRACT}",
                manifest.contract
            ))
            .help(format!("bring {age} up to date")),
        );
        return;
    }
    let expected = match (draft.step.is_trigger, fires) {
        (true, Some(fires)) if fires.by_ticks() => Some(Kind::Poll),
        (true, Some(Fires::Webhook)) => Some(Kind::Webhook),
        (true, _) => None,
        (false, _) => Some(Kind::Action),
    };
    if let Some(expected) = expected.filter(|expected| *expected != manifest.kind) {
        found.push(wrong_kind(draft, manifest.kind, expected));
    }
    with::check(draft, manifest, found);
}

fn wrong_kind(draft: &Draft<'_>, is: Kind, expected: Kind) -> Diagnostic {
    let noun = |kind| match kind {
        Kind::Poll => "a trigger that is fired by ticks",
        Kind::Webhook => "a trigger that takes webhooks",
        Kind::Action => "an action",
    };
    let place = match expected {
        Kind::Poll => "`every`, `cron` and `stream` need an image that is fired by ticks",
        Kind::Webhook => "`webhook` needs an image that takes webhooks",
        Kind::Action => "an action stands here",
    };
    let help = match (is, expected) {
        (Kind::Poll, Kind::Webhook) => {
            "write `every: 30s` in place of `webhook: true`, or use another image"
        }
        (Kind::Webhook, Kind::Poll) => {
            "write `webhook: true` in place of `every`, or use another image"
        }
        (Kind::Action, _) => "move it to `actions`, or use another image",
        (_, Kind::Action) => "make it the `trigger`, or use another image",
        _ => "use another image",
    };
    Diagnostic::new(
        Code::WrongKind,
        format!("the image {} is {}", shown(&draft.step.image), noun(is)),
    )
    .at(draft.image_span.clone())
    .label(place)
    .help(help)
}

/// A step must be able to handle as many messages together as it is to be handed.
fn batch(draft: &Draft<'_>, facts: &Facts) -> Option<Diagnostic> {
    let (entry, batch) = (draft.batch?, draft.step.handing.batch?);
    let image = shown(&draft.step.image);
    let most = match facts.image(&draft.step.image) {
        _ if draft.step.mode == Mode::Lines => None,
        ImageFact::Known(Some(manifest)) if draft.step.command.is_empty() => manifest.batch,
        _ => return None,
    };
    let Some(most) = most else {
        let why = match draft.step.mode {
            Mode::Lines => "with `mode: lines` a program is given one line a message".to_owned(),
            Mode::Frames => format!("the manifest of the image {image} has no `batch`"),
        };
        return Some(
            Diagnostic::new(
                Code::BatchOfOne,
                format!("{} handles each message by itself", describe(&draft.step)),
            )
            .at(entry.key_span.clone())
            .label(why)
            .help("leave it out: messages would only wait for each other"),
        );
    };
    (batch.max > most).then(|| {
        let span = entry.value.entry("max").map(|max| max.value.span.clone());
        Diagnostic::new(
            Code::BatchTooLarge,
            format!(
                "{} handles at most {most} messages together",
                describe(&draft.step)
            ),
        )
        .at(span.unwrap_or_else(|| entry.key_span.clone()))
        .label(format!(
            "the manifest of the image {image} says `batch: {most}`"
        ))
        .help(format!("write `max: {most}`, or less"))
    })
}

/// A step that makes something of several messages must be handed some together.
fn no_batch(draft: &Draft<'_>, facts: &Facts) -> Option<Diagnostic> {
    let ImageFact::Known(Some(manifest)) = facts.image(&draft.step.image) else {
        return None;
    };
    let is_its_own = draft.step.mode == Mode::Frames && draft.step.command.is_empty();
    (manifest.needs_batch && is_its_own && draft.batch.is_none()).then(|| {
        Diagnostic::new(
            Code::BatchMissing,
            format!(
                "{} puts messages together, and nothing says which",
                describe(&draft.step)
            ),
        )
        .at(draft.image_span.clone())
        .label("it needs `batch`")
        .help("say how many messages it gets together, and how long the first of them waits for others: `batch: { max: 500, wait: 10s }`")
    })
}

/// The port must be one of those that the step before has, if that is known.
fn port(
    document: &Document<'_>,
    facts: &Facts,
    draft: &Draft<'_>,
    edge: &Edge,
) -> Option<Diagnostic> {
    let from = &document.drafts[edge.from];
    let ports = ports(facts, from)?;
    if from.step.id.is_empty() || ports.contains(&edge.port.as_str()) {
        return None;
    }
    let whole = |port: &str| shown(&format!("{}.{port}", from.step.id));
    let help = match ports.as_slice() {
        [] => format!(
            "{} emits nothing: follow another step",
            describe(&from.step)
        ),
        [only] => format!("its only port is {}", shown(only)),
        _ => match nearest(&edge.port, ports.iter().copied()) {
            Some(port) => format!("did you mean {}?", whole(port)),
            None => format!(
                "its ports are {}: follow for instance {}",
                list(&ports),
                whole(ports[0])
            ),
        },
    };
    let span = edge.span.clone().unwrap_or_else(|| draft.place.clone());
    Some(
        Diagnostic::new(
            Code::UnknownPort,
            format!("{} has no port {}", describe(&from.step), shown(&edge.port)),
        )
        .at(span)
        .label(format!("{} takes messages from it", describe(&draft.step)))
        .help(help),
    )
}

/// The ports of a step; none if they are not known.
fn ports<'f>(facts: &'f Facts, from: &Draft<'_>) -> Option<Vec<&'f str>> {
    if !from.has_image {
        let is_webhook = from.step.is_trigger && from.image_span.is_empty();
        return is_webhook.then(|| vec![towpath_protocol::DEFAULT_PORT]);
    }
    match facts.image(&from.step.image) {
        // An action in the place of a trigger was reported as such.
        ImageFact::Known(Some(manifest))
            if !(from.step.is_trigger && manifest.kind == Kind::Action) =>
        {
            Some(manifest.ports.keys().map(String::as_str).collect())
        }
        _ => None,
    }
}

/// Secrets and variables that the file speaks of must be there.
fn names(root: &Node, text: &str, facts: &Facts, found: &mut Vec<Diagnostic>) {
    let (mut secrets, mut variables) = (Vec::new(), Vec::new());
    for (node, value) in placeholder_texts(root) {
        for piece in pieces(value) {
            match piece {
                Piece::Secret(name) => secrets.push((node, name)),
                Piece::Env(name) => variables.push((node, name)),
                Piece::Literal(_) | Piece::Bad(..) => {}
            }
        }
    }
    match &facts.secrets {
        Some(known) => {
            for (node, name) in secrets
                .into_iter()
                .filter(|(_, name)| !known.contains(*name))
                .take(DIAGNOSTICS_MAX)
            {
                let help = did_you_mean(name, known.iter().map(String::as_str));
                found.push(
                    Diagnostic::new(
                        Code::UnknownSecret,
                        format!("the secret {} does not exist", shown(name)),
                    )
                    .at(within(text, node, &format!("${{secrets.{name}}}")))
                    .label("no such secret")
                    .help(
                        help.unwrap_or_else(|| format!("create it: `towpath secret set {name}`")),
                    ),
                );
            }
        }
        None => found.extend(not_checked("secrets", secrets)),
    }
    match &facts.env {
        Some(known) => {
            for (node, name) in variables
                .into_iter()
                .filter(|(_, name)| !known.contains(*name))
                .take(DIAGNOSTICS_MAX)
            {
                let help = did_you_mean(name, known.iter().map(String::as_str));
                found.push(
                    Diagnostic::new(
                        Code::UnknownEnv,
                        format!("the environment variable {} is not set", shown(name)),
                    )
                    .at(within(text, node, &format!("${{env.{name}}}")))
                    .label("not set where the flow is applied")
                    .help(help.unwrap_or_else(|| format!("set it: `export {name}=…`"))),
                );
            }
        }
        None => found.extend(not_checked("environment variables", variables)),
    }
}

fn not_checked(what: &str, mentioned: Vec<(&Node, &str)>) -> Option<Diagnostic> {
    let mut names: Vec<&str> = mentioned.into_iter().map(|(_, name)| name).collect();
    names.sort_unstable();
    names.dedup();
    (!names.is_empty()).then(|| {
        Diagnostic::new(
            Code::NotChecked,
            format!("{what} were not looked at: {} may be missing", list(&names)),
        )
    })
}

/// Every text in which placeholders are filled in.
fn placeholder_texts(root: &Node) -> Vec<(&Node, &str)> {
    let trigger = root.entry("trigger").map(|entry| &entry.value);
    let actions = root
        .entry("actions")
        .map(|entry| entry.value.items())
        .unwrap_or_default();
    trigger
        .into_iter()
        .chain(actions)
        .flat_map(|step| ["with", "env", "command", "webhook"].map(|key| step.entry(key)))
        .flatten()
        .flat_map(|entry| entry.value.texts())
        .collect()
}
