//! The versions of a flow: what was applied, what differs, and back again.
//!
//! # Invariants
//!
//! - `a_rollback_is_a_new_version_with_the_images_and_the_environment_of_then`.
//! - `a_diff_shows_no_secret`: neither a value of a secret nor one of the environment.

use std::collections::BTreeMap;

use similar::TextDiff;

use super::Control;
use super::choices::Choices;
use super::draft::Proposal;
use super::error::{ControlError, ErrorKind};
use super::view::{DiffView, PlanView, RollbackRequest, VersionList, VersionView};
use crate::store::flows::StoredVersion;

/// What stands in place of a value of a secret.
const HIDDEN: &str = "***";

/// The lines that are shown around each difference.
const CONTEXT_LINES: usize = 3;

impl Control {
    /// The versions of a flow, newest first.
    pub async fn versions(&self, flow: &str) -> Result<VersionList, ControlError> {
        let (record, _) = self.record(flow).await?;
        let versions = self.catalog.store.versions(flow).await?;
        let status = self.reconciler.status.borrow();
        let seen = status.flows.get(flow);
        let running = |is_current: bool| {
            let replicas = seen.iter().flat_map(|flow| flow.steps.values());
            let replicas = replicas.flat_map(|step| &step.replicas);
            let count = replicas
                .filter(|it| it.container.is_some() && it.is_current == is_current)
                .count();
            u32::try_from(count).unwrap_or(u32::MAX)
        };
        let views = versions.into_iter().map(|version| {
            let current = version.version == record.version;
            VersionView {
                version: version.version,
                applied_at: version.applied_at,
                current,
                // What is outdated is of the version before, or of one before that.
                running: if current {
                    running(true)
                } else if version.version + 1 == record.version {
                    running(false)
                } else {
                    0
                },
                summary: version.summary,
            }
        });
        Ok(VersionList {
            versions: views.collect(),
        })
    }

    /// What is different between two versions: the newest and the one before it, unless said
    /// otherwise.
    pub async fn diff(
        &self,
        flow: &str,
        from: Option<u32>,
        to: Option<u32>,
    ) -> Result<DiffView, ControlError> {
        let (record, _) = self.record(flow).await?;
        let to = to.unwrap_or(record.version);
        let from = match from {
            Some(from) => from,
            None => before(flow, to)?,
        };
        let old = self.version(flow, from).await?;
        let new = self.version(flow, to).await?;
        let secrets = self.catalog.store.secret_values().await?;
        let text = |version: &StoredVersion| hidden(&version.source, secrets.values());
        let (left, right) = (text(&old), text(&new));
        let diff = TextDiff::from_lines(&left, &right)
            .unified_diff()
            .context_radius(CONTEXT_LINES)
            .header(
                &format!("{flow} version {from}"),
                &format!("{flow} version {to}"),
            )
            .to_string();
        let mut notes = changed("the environment variable", &old.env, &new.env, |_| {
            String::new()
        });
        notes.extend(changed("the image", &old.images, &new.images, |id| {
            format!(" ({})", id.get(..19).unwrap_or(id))
        }));
        Ok(DiffView {
            flow: flow.to_owned(),
            from,
            to,
            diff,
            notes,
        })
    }

    /// Applies an earlier version again, as a new one: its file, its images and its environment.
    pub async fn rollback(
        &self,
        flow: &str,
        request: &RollbackRequest,
    ) -> Result<PlanView, ControlError> {
        let (record, _) = self.record(flow).await?;
        let number = match request.version {
            Some(number) => number,
            None => before(flow, record.version)?,
        };
        let version = self.version(flow, number).await?;
        self.apply_proposal(Proposal {
            file: version.file,
            source: String::from_utf8_lossy(&version.source).into_owned(),
            env: version.env,
            pinned: Some(version.images),
            choices: Choices {
                drain_first: request.drain_first,
                dead_letter: request.dead_letter,
                drop_messages: request.drop_messages,
                moves: request.moves.clone(),
            },
            note: Some(format!("back to version {number}")),
        })
        .await
    }

    async fn version(&self, flow: &str, number: u32) -> Result<StoredVersion, ControlError> {
        if let Some(version) = self.catalog.store.version(flow, number).await? {
            return Ok(version);
        }
        let kept = self.catalog.store.versions(flow).await?;
        let message = format!("there is no version {number} of `{flow}`");
        let error = ControlError::new(ErrorKind::NotFound, "no_such_version", message);
        Err(match (kept.last(), kept.first()) {
            (Some(oldest), Some(newest)) if oldest.version == newest.version => {
                error.hint(format!("its only version is {}", newest.version))
            }
            (Some(oldest), Some(newest)) => error.hint(format!(
                "its versions are {} to {}; `towpath versions {flow}` shows them",
                oldest.version, newest.version
            )),
            _ => error,
        })
    }
}

/// The version before another.
fn before(flow: &str, version: u32) -> Result<u32, ControlError> {
    if version > 1 {
        return Ok(version - 1);
    }
    let message = format!("there is nothing before version {version} of `{flow}`");
    Err(
        ControlError::new(ErrorKind::Conflict, "no_version_before", message)
            .hint(format!("`towpath versions {flow}` shows its versions")),
    )
}

/// A flow file without any value of a secret.
fn hidden<'a>(source: &[u8], secrets: impl Iterator<Item = &'a String>) -> String {
    let mut text = String::from_utf8_lossy(source).into_owned();
    let mut secrets: Vec<&String> = secrets.filter(|value| !value.is_empty()).collect();
    // The longest first: one may be a part of another.
    secrets.sort_by_key(|value| std::cmp::Reverse(value.len()));
    for value in secrets {
        text = text.replace(value.as_str(), HIDDEN);
    }
    text
}

/// What of some named values is different, without the values.
fn changed(
    what: &str,
    old: &BTreeMap<String, String>,
    new: &BTreeMap<String, String>,
    shown: impl Fn(&str) -> String,
) -> Vec<String> {
    let mut notes = Vec::new();
    for (name, value) in new {
        match old.get(name) {
            None => notes.push(format!("{what} `{name}` is new{}", shown(value))),
            Some(was) if was != value => {
                notes.push(format!("{what} `{name}` is another one{}", shown(value)));
            }
            Some(_) => {}
        }
    }
    let gone = old.keys().filter(|name| !new.contains_key(*name));
    notes.extend(gone.map(|name| format!("{what} `{name}` is no longer named")));
    notes
}

#[cfg(test)]
#[path = "versions_tests.rs"]
mod tests;
