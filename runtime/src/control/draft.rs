//! `plan` and `apply`: from a flow file to a new version, or to every reason why not.
//!
//! # Invariants
//!
//! - `a_mistake_changes_nothing`: everything is checked before anything is changed.
//! - `applying_twice_is_applying_once`.
//! - `messages_of_a_step_that_goes_are_kept`, unless whoever applies says otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use towpath_flow::{Facts, Finding, Fires, Flow, ImageFact, Source, check, references_in};

use super::Control;
use super::changes::changes;
use super::choices::{Choices, Fate};
use super::error::{ControlError, ErrorKind};
use super::operate::queue_parts;
use super::registrations::{registers, trigger};
use super::view::{Change, ChangeAction, Draft, Left, PlanView, RemovedStep};
use crate::broker::topology::FlowTopology;
use crate::engine::Image;
use crate::filter::compile;
use crate::live::LiveFlow;
use crate::reconcile::FlowState;
use crate::store::flows::{FlowRecord, NewVersion};

/// What is to become the newest version of its flow.
pub(super) struct Proposal {
    /// What the file is called.
    pub(super) file: String,
    /// What is in it.
    pub(super) source: String,
    /// The environment variables it names, and perhaps others.
    pub(super) env: BTreeMap<String, String>,
    /// The engine's ids of its images, if they are not to be those that have their names now.
    pub(super) pinned: Option<BTreeMap<String, String>>,
    /// What becomes of messages of steps that go away.
    pub(super) choices: Choices,
    /// What is said of the version beside what changes.
    pub(super) note: Option<String>,
}

/// A proposal that was checked, and what it would change.
struct Checked {
    proposal: Proposal,
    flow: Arc<Flow>,
    warnings: Vec<Finding>,
    images: BTreeMap<String, Image>,
    env: BTreeMap<String, String>,
    hash: String,
    before: Option<FlowRecord>,
    flow_before: Option<Arc<Flow>>,
}

/// A step that goes away.
struct Removed {
    step: String,
    left: Left,
    fate: Fate,
}

impl Control {
    /// Says what applying a flow file would do, and changes nothing.
    pub async fn plan(&self, draft: &Draft) -> Result<PlanView, ControlError> {
        let checked = self.check(Proposal::of(draft)).await?;
        let changes = self.changes_of(&checked).await?;
        let removed = self.removed_steps(&checked).await?;
        let version = checked.before.as_ref().map_or(0, |before| before.version);
        Ok(checked.view(
            version + u32::from(!checked.is_unchanged()),
            changes,
            &removed,
        ))
    }

    /// Makes a flow file the newest version of its flow.
    pub async fn apply(&self, draft: &Draft) -> Result<PlanView, ControlError> {
        self.apply_proposal(Proposal::of(draft)).await
    }

    /// Makes a proposal the newest version of its flow, unless steps that go away have to finish
    /// first: then it sees to that, and applies nothing yet.
    pub(super) async fn apply_proposal(
        &self,
        proposal: Proposal,
    ) -> Result<PlanView, ControlError> {
        let _alone = self.applying.lock().await;
        let checked = self.check(proposal).await?;
        let changes = self.changes_of(&checked).await?;
        let removed = self.removed_steps(&checked).await?;
        refuse(&removed)?;
        self.refuse_reordering(&checked).await?;
        self.refuse_unregistering(&checked).await?;
        if self.drain(&checked, &removed).await? {
            let version = checked.before.as_ref().map_or(0, |before| before.version);
            return Ok(checked.view(version, changes, &removed));
        }
        let (version, key) = if checked.is_unchanged() {
            let before = checked.before.as_ref();
            // What could not be declared the last time is declared now.
            self.declare().await?;
            (
                before.map_or(0, |it| it.version),
                before.and_then(|it| it.webhook_key.clone()),
            )
        } else {
            self.store_draft(&checked, &changes).await?
        };
        if checked
            .before
            .as_ref()
            .is_some_and(|before| before.deleting.is_some())
        {
            // It was to go, and is wanted again.
            let store = &self.catalog.store;
            store.set_deleting(&checked.flow.name, None).await?;
        }
        self.changed().await?;
        self.removals.notify_one();
        Ok(PlanView {
            applied: true,
            webhook_url: key.map(|key| self.webhook_url(&checked.flow.name, &key)),
            ..checked.view(version, changes, &removed)
        })
    }

    /// Refuses to order messages in another way while some are there, or may come: those of one key
    /// would be in two partitions.
    async fn refuse_reordering(&self, checked: &Checked) -> Result<(), ControlError> {
        let (Some(before), Some(flow)) = (&checked.before, &checked.flow_before) else {
            return Ok(());
        };
        for step in &flow.steps {
            let new = checked.flow.steps.iter().find(|it| it.id == step.id);
            if new.is_none_or(|new| new.order == step.order) {
                continue;
            }
            let left = self.left_in(&flow.name, &step.id).await?;
            let hold = before.held.get(&step.id);
            let is_quiet = before.state != FlowState::Running || hold.is_some();
            let is_drained = match hold {
                Some(FlowState::Draining) => {
                    let left = self.left_of_step(before, flow, &step.id).await?;
                    left.is_some_and(|left| left.drained)
                }
                _ => left.queued + left.in_hand + left.waiting == 0,
            };
            if is_quiet && is_drained {
                continue;
            }
            let (name, id) = (&flow.name, &step.id);
            let message = format!(
                "`{id}` of `{name}` is to order its messages in another way, and has {} queued, {} in hand and {} to be tried again, or may get more: those of one key would overtake each other",
                left.queued, left.in_hand, left.waiting
            );
            let hint = format!(
                "let it finish first: `towpath drain {name} {id} --wait`, then apply, then `towpath resume {name} {id}`"
            );
            let error = ControlError::new(ErrorKind::Conflict, "order_would_break", message);
            return Err(error.hint(hint));
        }
        Ok(())
    }

    /// Refuses to replace a trigger that is registered at its source by one that could not take that
    /// back.
    async fn refuse_unregistering(&self, checked: &Checked) -> Result<(), ControlError> {
        let (Some(before), Some(flow)) = (&checked.before, &checked.flow_before) else {
            return Ok(());
        };
        if self
            .catalog
            .store
            .registration(&before.name)
            .await?
            .is_none()
        {
            return Ok(());
        }
        let image = |flow: &Flow| trigger(flow).map(|step| step.image.clone());
        let new = image(&checked.flow).and_then(|image| checked.images.get(&image));
        let old = match image(flow).and_then(|image| Some((before.images.get(&image)?, image))) {
            Some((id, image)) => self.catalog.image(&image, id).await,
            None => return Ok(()),
        };
        let old = old.map_err(|error| ControlError::engine(&error))?;
        let name = |image: &Image| image.manifest.as_ref().map(|it| it.name.clone());
        // If the old image is gone, nobody knows better than whoever applies.
        if new.is_some_and(|new| registers(new) && old.is_ok_and(|old| name(&old) == name(new))) {
            return Ok(());
        }
        let (name, id) = (&flow.name, &flow.trigger_id);
        let message = format!(
            "`{id}` of `{name}` has registered the flow's URL at its source, and only the same step can take that back"
        );
        let error = ControlError::new(ErrorKind::Conflict, "still_registered", message);
        Err(error.hint(format!(
            "`towpath delete {name}` takes it back; then apply this file"
        )))
    }

    /// The steps that go away, what they have, and what becomes of it.
    async fn removed_steps(&self, checked: &Checked) -> Result<Vec<Removed>, ControlError> {
        let choices = &checked.proposal.choices;
        choices.check(checked.flow_before.as_deref(), &checked.flow)?;
        let mut removed = Vec::new();
        for step in checked.removed() {
            let left = self.left_in(&checked.flow.name, &step).await?;
            let has_messages = left.queued + left.in_hand + left.waiting > 0;
            removed.push(Removed {
                fate: choices.fate(&step, has_messages),
                step,
                left,
            });
        }
        Ok(removed)
    }

    /// Lets steps that go away finish first, if that was chosen. Says whether they still have to.
    async fn drain(&self, checked: &Checked, removed: &[Removed]) -> Result<bool, ControlError> {
        let draining: Vec<&str> = removed
            .iter()
            .filter(|it| it.fate == Fate::Drained)
            .map(|it| it.step.as_str())
            .collect();
        let (Some(before), Some(flow)) = (&checked.before, &checked.flow_before) else {
            return Ok(false);
        };
        if draining.is_empty() {
            return Ok(false);
        }
        if !matches!(before.state, FlowState::Running | FlowState::Draining) {
            let message = format!(
                "`{}` {}: nothing of it can finish",
                before.name,
                super::hold::is(before.state)
            );
            return Err(
                ControlError::new(ErrorKind::Conflict, "flow_not_running", message).hint(format!(
                    "`towpath resume {}` first, or move the messages or make them dead letters",
                    before.name
                )),
            );
        }
        let mut is_new = false;
        for step in &draining {
            if before.held.get(*step) != Some(&FlowState::Draining) {
                let store = &self.catalog.store;
                store
                    .set_hold(&before.name, step, FlowState::Draining)
                    .await?;
                tracing::info!(
                    flow = before.name,
                    step,
                    "it finishes what it has, and then goes"
                );
                is_new = true;
            }
        }
        if is_new {
            self.changed().await?;
            return Ok(true);
        }
        for step in &draining {
            let left = self.left_of_step(before, flow, step).await?;
            if !left.is_some_and(|left| left.drained) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn store_draft(
        &self,
        checked: &Checked,
        changes: &[Change],
    ) -> Result<(u32, Option<String>), ControlError> {
        let flow = &checked.flow;
        let proposal = &checked.proposal;
        let mut topology = self.catalog.topology().await?;
        let mut next = LiveFlow::new(flow, 0, 0, FlowState::Running).topology();
        let before = topology.flows.iter().position(|one| one.flow == flow.name);
        let mut former = Vec::new();
        if let Some(before) = before.map(|index| topology.flows.remove(index)) {
            // A former step that is there again takes its messages itself. All other bindings stay
            // as long as a replica of an earlier version may use them: see `removals`.
            let is_step = |id: &String| flow.steps.iter().any(|step| step.id == *id);
            let (back, kept): (Vec<_>, Vec<_>) = before
                .aliases
                .clone()
                .into_iter()
                .partition(|(old, _)| is_step(old));
            next.aliases = kept.into_iter().filter(|(_, to)| is_step(to)).collect();
            // What comes for a step by its name goes to its new queue alone.
            let order = |topology: &FlowTopology, id: &str| topology.ordered.contains_key(id);
            let moved = before.steps.iter().filter(|(id, _)| {
                next.steps.iter().any(|(it, _)| it == id) && order(&before, id) != order(&next, id)
            });
            let moved: Vec<(String, Vec<(String, String)>)> =
                moved.map(|(id, _)| (id.clone(), Vec::new())).collect();
            former.push(FlowTopology {
                flow: flow.name.clone(),
                ordered: moved
                    .iter()
                    .filter(|(id, _)| order(&before, id))
                    .map(|(id, _)| (id.clone(), 0))
                    .collect(),
                steps: moved,
                aliases: back,
                ..FlowTopology::default()
            });
        }
        topology.flows.push(next);
        topology.join();
        self.broker.declare(&topology, &former).await?;

        let key = (flow.fires == Fires::Webhook).then(super::webhooks::new_key);
        let kept = |step: &towpath_flow::Step| {
            let before = checked.flow_before.iter().flat_map(|flow| &flow.steps);
            before
                .filter(|it| it.id == step.id)
                .all(|it| it.replicas == step.replicas)
        };
        let new = NewVersion {
            flow: flow.name.clone(),
            file: proposal.file.clone(),
            source: proposal.source.clone().into_bytes(),
            env: checked.env.clone(),
            images: checked
                .images
                .iter()
                .map(|(name, it)| (name.clone(), it.id.clone()))
                .collect(),
            hash: checked.hash.clone(),
            webhook_key: key,
            steps: flow.steps.iter().map(|step| step.id.clone()).collect(),
            scaled: flow
                .steps
                .iter()
                .filter(|step| kept(step))
                .map(|it| it.id.clone())
                .collect(),
            removed: checked.removed(),
            queues_removed: {
                let before = checked.flow_before.as_deref();
                let mut before = before.map(queue_parts).unwrap_or_default();
                let queues = queue_parts(flow);
                before.retain(|part| !queues.contains(part));
                before
            },
            queues: queue_parts(flow),
            drop_messages: proposal.choices.drop_messages,
            moves: proposal.choices.moves.clone(),
            summary: summary(proposal.note.as_deref(), changes),
        };
        for image in checked.images.values() {
            self.catalog.remember(image.clone());
        }
        let version = self.catalog.store.store_version(new).await?;
        tracing::info!(flow = flow.name, version, "applied");
        let stored = self.catalog.store.flow(&flow.name).await?;
        let key = stored.and_then(|record| record.webhook_key);
        Ok((version, key.filter(|_| flow.fires == Fires::Webhook)))
    }

    async fn check(&self, proposal: Proposal) -> Result<Checked, ControlError> {
        let source = Source::new(&*proposal.file, proposal.source.clone().into_bytes());
        let references = references_in(&source);
        let images = match &proposal.pinned {
            Some(pinned) => self.pinned_images(pinned).await?,
            None => self.find_images(references.images.iter()).await?,
        };
        let secrets = self.catalog.store.secret_records().await?;
        let env: BTreeMap<String, String> = proposal
            .env
            .iter()
            .filter(|(name, _)| references.env.contains(*name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let facts = Facts {
            images: images
                .iter()
                .map(|(name, found)| (name.clone(), image_fact(found.as_ref())))
                .collect(),
            secrets: Some(secrets.into_iter().map(|secret| secret.name).collect()),
            env: Some(env.keys().cloned().collect()),
            folders: Some(self.catalog.ground.folders.keys().cloned().collect()),
            conditions: self.conditions(references.conditions).await?,
            flows: Some(self.flow_facts().await?),
        };
        let checked = check(&source, &facts)
            .map_err(|diagnostics| ControlError::invalid(diagnostics.into_findings()))?;
        let flow = Arc::new(checked.flow);
        let images: BTreeMap<String, Image> = images
            .into_iter()
            .filter_map(|(name, found)| Some((name, found?)))
            .collect();
        if flow.fires != Fires::Flows {
            self.refuse_if_handed_to(&flow.name, "takes no messages of other flows any more")
                .await?;
        }
        let before = self.catalog.store.flow(&flow.name).await?;
        let flow_before = before
            .as_ref()
            .and_then(|before| self.catalog.flow(before).ok());
        Ok(Checked {
            hash: hash(&proposal.source, &env, &images),
            proposal,
            warnings: checked.warnings.into_findings(),
            flow,
            images,
            env,
            before,
            flow_before,
        })
    }

    /// Which conditions compile.
    async fn conditions(
        &self,
        conditions: BTreeSet<String>,
    ) -> Result<BTreeMap<String, Result<(), String>>, ControlError> {
        let compiled = compile(&self.program, conditions).await;
        compiled.map_err(|error| {
            let text = crate::engine::chain(&error);
            ControlError::new(ErrorKind::Unavailable, "conditions_not_checked", text)
                .hint("the control plane must be able to start processes of its own binary")
        })
    }

    /// The images that were there when a version was applied.
    async fn pinned_images(
        &self,
        pinned: &BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, Option<Image>>, ControlError> {
        let mut images = BTreeMap::new();
        for (name, id) in pinned {
            let found = self.catalog.image(name, id).await;
            let found = found.map_err(|error| ControlError::engine(&error))?;
            let image = found.map_err(|_| {
                let message =
                    format!("the image `{name}` that this version ran with is gone ({id})");
                ControlError::new(ErrorKind::Conflict, "image_gone", message)
                    .hint("apply its file instead: that takes the image that has this name now")
            })?;
            images.insert(name.clone(), Some(image));
        }
        Ok(images)
    }

    async fn find_images(
        &self,
        names: impl Iterator<Item = &String>,
    ) -> Result<BTreeMap<String, Option<Image>>, ControlError> {
        let mut images = BTreeMap::new();
        for name in names {
            let found = self.engine().image(name).await;
            images.insert(name.clone(), found?);
        }
        Ok(images)
    }

    async fn changes_of(&self, checked: &Checked) -> Result<Vec<Change>, ControlError> {
        if checked.is_unchanged() {
            return Ok(Vec::new());
        }
        let Some(before) = &checked.before else {
            return Ok(changes(None, None, &self.desired_draft(checked).await?));
        };
        let entries = self.catalog.entries().await?;
        let old = self
            .catalog
            .desired_of(before, &entries)
            .await
            .map_err(|error| {
                tracing::warn!(
                    flow = before.name,
                    "cannot compare with what runs: {error:#}"
                );
                ControlError::engine(&error)
            })?;
        let mut changes = changes(
            Some(before),
            Some(&old),
            &self.desired_draft(checked).await?,
        );
        let entry = LiveFlow::new(&checked.flow, 0, 0, FlowState::Running).entry();
        if entries.get(&before.name) != Some(&entry) {
            let senders = self.handed_by(&before.name).await?;
            changes.extend(senders.into_iter().map(|sender| Change {
                action: ChangeAction::Update,
                step: None,
                reason: format!(
                    "other steps are first: those of `{sender}` that hand messages to them are replaced"
                ),
            }));
        }
        Ok(changes)
    }

    /// What should be if the draft were applied.
    async fn desired_draft(
        &self,
        checked: &Checked,
    ) -> Result<crate::reconcile::DesiredFlow, ControlError> {
        let values = towpath_flow::Values {
            secrets: self.catalog.store.secret_values().await?,
            env: checked.env.clone(),
        };
        let scales = checked.before.as_ref().map(|before| &before.scales);
        let held = checked.before.as_ref().map(|before| &before.held);
        let facts = checked.flow.steps.iter().map(|step| {
            let same = checked.flow_before.iter().flat_map(|flow| &flow.steps);
            let kept = same
                .filter(|it| it.id == step.id)
                .all(|it| it.replicas == step.replicas);
            let known = crate::reconcile::spec::StepFacts {
                filled: towpath_flow::substitute_step(step, &values).map_err(|it| it.to_string()),
                image: checked
                    .images
                    .get(&step.image)
                    .cloned()
                    .ok_or_else(|| format!("there is no image `{}`", step.image)),
                replicas: scales
                    .and_then(|it| it.get(&step.id))
                    .copied()
                    .filter(|_| kept),
                held: held.and_then(|it| it.get(&step.id)).copied(),
            };
            (step.id.clone(), known)
        });
        let (version, state) = checked
            .before
            .as_ref()
            .map_or((1, FlowState::Running), |before| {
                (before.version + 1, before.state)
            });
        Ok(crate::reconcile::spec::desired_flow(
            &self.catalog.ground,
            Arc::clone(&checked.flow),
            version,
            state,
            &facts.collect(),
            &self.catalog.entries().await?,
        ))
    }
}

impl Proposal {
    fn of(draft: &Draft) -> Self {
        Self {
            file: draft.file.clone(),
            source: draft.source.clone(),
            env: draft.env.clone(),
            pinned: None,
            choices: Choices {
                drain_first: draft.drain_first,
                dead_letter: draft.dead_letter,
                drop_messages: draft.drop_messages,
                moves: draft.moves.clone(),
            },
            note: None,
        }
    }
}

/// Refuses to remove steps that have messages nobody decided about.
fn refuse(removed: &[Removed]) -> Result<(), ControlError> {
    let refused: Vec<String> = removed
        .iter()
        .filter(|it| it.fate == Fate::Refused)
        .map(|it| format!("`{}` has {}", it.step, words(it.left)))
        .collect();
    if refused.is_empty() {
        return Ok(());
    }
    let message = format!(
        "messages wait for a step that is no longer in the file: {}",
        refused.join("; ")
    );
    Err(ControlError::new(ErrorKind::Conflict, "queues_not_empty", message).hint(
        "choose what becomes of them: `--drain-first` lets the step finish, `--move OLD=NEW` gives them to another step, \
         `--dead-letter` keeps them as dead letters (`--drop-messages` drops them)",
    ))
}

/// What is left, in words.
fn words(left: Left) -> String {
    let parts = [
        (left.queued, "queued"),
        (left.in_hand, "in hand"),
        (left.waiting, "waiting to be tried again"),
    ];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    parts.join(", ")
}

/// What changes with a version, in a line.
fn summary(note: Option<&str>, changes: &[Change]) -> String {
    let parts = changes.iter().map(|change| {
        let step = change.step.as_deref().unwrap_or("flow");
        match change.action {
            ChangeAction::Create => format!("+{step}"),
            ChangeAction::Remove => format!("-{step}"),
            ChangeAction::Replace | ChangeAction::Scale | ChangeAction::Update => {
                format!("{step}: {}", change.reason)
            }
        }
    });
    let parts: Vec<String> = note.map(str::to_owned).into_iter().chain(parts).collect();
    parts.join("; ")
}

impl Checked {
    fn view(&self, version: u32, changes: Vec<Change>, removed: &[Removed]) -> PlanView {
        let removed = removed.iter().map(|it| RemovedStep {
            step: it.step.clone(),
            left: it.left,
            refused: it.fate == Fate::Refused,
            messages: it.fate.words(),
        });
        PlanView {
            flow: self.flow.name.clone(),
            version,
            unchanged: self.is_unchanged(),
            applied: false,
            changes,
            removed: removed.collect(),
            warnings: self.warnings.clone(),
            webhook_url: None,
        }
    }

    fn is_unchanged(&self) -> bool {
        self.before
            .as_ref()
            .is_some_and(|before| before.hash == self.hash)
    }

    /// The steps that go away.
    fn removed(&self) -> Vec<String> {
        let before = self.flow_before.iter().flat_map(|flow| &flow.steps);
        before
            .filter(|step| self.flow.steps.iter().all(|it| it.id != step.id))
            .map(|step| step.id.clone())
            .collect()
    }
}

fn image_fact(found: Option<&Image>) -> ImageFact {
    match found {
        None => ImageFact::Missing,
        Some(Image {
            unreadable: Some(reason),
            ..
        }) => ImageFact::Unreadable(reason.clone()),
        Some(image) => ImageFact::Known(image.manifest.clone()),
    }
}

/// What makes a version the same as another: the file, the environment it names, its images.
fn hash(source: &str, env: &BTreeMap<String, String>, images: &BTreeMap<String, Image>) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut part = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    part(source);
    for (name, value) in env {
        part(name);
        part(value);
    }
    for (name, image) in images {
        part(name);
        part(&image.id);
    }
    hasher.finalize().to_hex()[..32].to_owned()
}
