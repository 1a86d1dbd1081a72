//! `plan` and `apply`: from a flow file to a new version, or to every reason why not.
//!
//! # Invariants
//!
//! - `a_mistake_changes_nothing`: everything is checked before anything is changed.
//! - `applying_twice_is_applying_once`.
//! - `messages_of_a_step_that_goes_are_kept`, unless whoever applies says otherwise.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use towpath_flow::{Facts, Finding, Fires, Flow, ImageFact, Source, check, references_in};

use super::Control;
use super::changes::changes;
use super::error::{ControlError, ErrorKind};
use super::view::{Change, Draft, PlanView};
use crate::engine::Image;
use crate::live::LiveFlow;
use crate::reconcile::FlowState;
use crate::store::flows::{FlowRecord, NewVersion};

/// The random bytes of a webhook key: 256 bits cannot be guessed.
const WEBHOOK_KEY_BYTES: usize = 32;

/// A file that was checked, and what it would change.
struct Checked {
    flow: Arc<Flow>,
    warnings: Vec<Finding>,
    images: BTreeMap<String, Image>,
    env: BTreeMap<String, String>,
    hash: String,
    before: Option<FlowRecord>,
    flow_before: Option<Arc<Flow>>,
}

impl Control {
    /// Says what applying a flow file would do, and changes nothing.
    pub async fn plan(&self, draft: &Draft) -> Result<PlanView, ControlError> {
        let checked = self.check(draft).await?;
        let changes = self.changes_of(&checked).await?;
        let version = checked.before.as_ref().map_or(0, |before| before.version);
        let unchanged = checked.is_unchanged();
        Ok(PlanView {
            flow: checked.flow.name.clone(),
            version: if unchanged { version } else { version + 1 },
            unchanged,
            changes,
            warnings: checked.warnings,
            webhook_url: None,
        })
    }

    /// Makes a flow file the newest version of its flow.
    pub async fn apply(&self, draft: &Draft) -> Result<PlanView, ControlError> {
        let _alone = self.applying.lock().await;
        let checked = self.check(draft).await?;
        let changes = self.changes_of(&checked).await?;
        let (version, key) = if checked.is_unchanged() {
            let before = checked.before.as_ref();
            // What could not be declared the last time is declared now.
            self.declare().await?;
            (
                before.map_or(0, |it| it.version),
                before.and_then(|it| it.webhook_key.clone()),
            )
        } else {
            self.store_draft(draft, &checked).await?
        };
        self.changed().await?;
        Ok(PlanView {
            flow: checked.flow.name.clone(),
            version,
            unchanged: checked.is_unchanged(),
            changes,
            warnings: checked.warnings,
            webhook_url: key.map(|key| self.webhook_url(&checked.flow.name, &key)),
        })
    }

    async fn store_draft(
        &self,
        draft: &Draft,
        checked: &Checked,
    ) -> Result<(u32, Option<String>), ControlError> {
        let flow = &checked.flow;
        let removed = checked.removed();
        if !draft.drop_messages {
            self.refuse_full_queues(&flow.name, &removed, "is no longer in the file")
                .await?;
        }
        let mut topology = self.catalog.topology().await?;
        let former = topology.flows.clone();
        topology.flows.retain(|one| one.flow != flow.name);
        topology
            .flows
            .push(LiveFlow::new(flow, 0, FlowState::Running).topology());
        self.broker.declare(&topology, &former).await?;

        let key = (flow.fires == Fires::Webhook).then(webhook_key);
        let kept = |step: &towpath_flow::Step| {
            let before = checked.flow_before.iter().flat_map(|flow| &flow.steps);
            before
                .filter(|it| it.id == step.id)
                .all(|it| it.replicas == step.replicas)
        };
        let new = NewVersion {
            flow: flow.name.clone(),
            file: draft.file.clone(),
            source: draft.source.clone().into_bytes(),
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
            removed,
            drop_messages: draft.drop_messages,
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

    async fn check(&self, draft: &Draft) -> Result<Checked, ControlError> {
        let source = Source::new(&*draft.file, draft.source.clone().into_bytes());
        let references = references_in(&source);
        let images = self.find_images(references.images.iter()).await?;
        let secrets = self.catalog.store.secret_records().await?;
        let env: BTreeMap<String, String> = draft
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
        };
        let checked = check(&source, &facts)
            .map_err(|diagnostics| ControlError::invalid(diagnostics.into_findings()))?;
        let flow = Arc::new(checked.flow);
        let images: BTreeMap<String, Image> = images
            .into_iter()
            .filter_map(|(name, found)| Some((name, found?)))
            .collect();
        let before = self.catalog.store.flow(&flow.name).await?;
        let flow_before = before
            .as_ref()
            .and_then(|before| self.catalog.flow(before).ok());
        Ok(Checked {
            hash: hash(&draft.source, &env, &images),
            warnings: checked.warnings.into_findings(),
            flow,
            images,
            env,
            before,
            flow_before,
        })
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
        let old = self.catalog.desired_of(before).await.map_err(|error| {
            tracing::warn!(
                flow = before.name,
                "cannot compare with what runs: {error:#}"
            );
            ControlError::new(
                ErrorKind::Unavailable,
                "engine_unavailable",
                format!("{error:#}"),
            )
        })?;
        Ok(changes(
            Some(before),
            Some(&old),
            &self.desired_draft(checked).await?,
        ))
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
        ))
    }
}

impl Checked {
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

fn webhook_key() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; WEBHOOK_KEY_BYTES]>())
}
