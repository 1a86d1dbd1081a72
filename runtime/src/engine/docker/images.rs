//! Images: described, pulled, built.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::models::ImageInspect;
use bollard::query_parameters::{BuildImageOptionsBuilder, CreateImageOptionsBuilder};
use bytes::Bytes;
use futures_util::StreamExt;
use towpath_protocol::manifest::{MANIFEST_LABEL, Manifest};

use super::{ANSWER, DockerEngine, call, explain};
use crate::engine::{EngineError, Image};

/// How long a registry may take to say its first word. Whoever waits for it is a person, and where
/// there is no registry to be reached nothing else tells.
const FIRST_WORD: Duration = Duration::from_secs(5);

/// How long a pull or a build may stand still.
const STALL: Duration = Duration::from_secs(120);

/// For how long an image that could not be pulled is not tried again.
const UNAVAILABLE: Duration = Duration::from_secs(60);

/// An image to build.
pub struct Build {
    /// What it is called.
    pub tag: String,
    /// A tar archive with a `Dockerfile` in it.
    pub context: Bytes,
    /// Its labels.
    pub labels: HashMap<String, String>,
}

impl DockerEngine {
    pub(super) async fn find_image(&self, reference: &str) -> Result<Option<Image>, EngineError> {
        let docker = self.docker().await?;
        let here = inspect(docker, reference).await?;
        if here.is_some() || reference.starts_with("sha256:") || self.was_unavailable(reference) {
            return Ok(here);
        }
        if let Err(error) = pull(docker, reference).await {
            let reason = crate::engine::chain(&error);
            tracing::info!(
                image = reference,
                reason,
                "the image is not here and cannot be pulled"
            );
            self.unavailable()
                .insert(reference.to_owned(), Instant::now());
            return Ok(None);
        }
        inspect(docker, reference).await
    }

    /// Builds an image with the engine's own builder and returns it. The same context gives the
    /// same image, so that what runs from it is not replaced.
    pub async fn build(&self, build: Build) -> Result<Image, EngineError> {
        let docker = self.docker().await?;
        let options = BuildImageOptionsBuilder::default()
            .t(&build.tag)
            .labels(&build.labels)
            .rm(true)
            .forcerm(true)
            .build();
        let what = format!("build the image `{}`", build.tag);
        let mut said = std::pin::pin!(docker.build_image(
            options,
            None,
            Some(bollard::body_full(build.context))
        ));
        loop {
            match tokio::time::timeout(STALL, said.next()).await {
                Err(_) => return Err(EngineError::TimedOut { what }),
                Ok(Some(Err(error))) => return Err(explain(what, error)),
                Ok(Some(Ok(_))) => {}
                Ok(None) => break,
            }
        }
        self.unavailable().remove(&build.tag);
        let image = inspect(docker, &build.tag).await?;
        image.ok_or_else(|| EngineError::NotFound {
            what: format!("image `{}`", build.tag),
        })
    }

    fn was_unavailable(&self, reference: &str) -> bool {
        let at = self.unavailable().get(reference).copied();
        at.is_some_and(|at| at.elapsed() < UNAVAILABLE)
    }

    fn unavailable(&self) -> std::sync::MutexGuard<'_, HashMap<String, Instant>> {
        self.inner
            .unavailable
            .lock()
            .expect("nothing panics while it holds this")
    }
}

async fn inspect(docker: &Docker, reference: &str) -> Result<Option<Image>, EngineError> {
    let what = format!("inspect the image `{reference}`");
    match call(what, ANSWER, docker.inspect_image(reference)).await {
        Err(EngineError::NotFound { .. }) => Ok(None),
        found => found.map(|found| Some(describe(found))),
    }
}

async fn pull(docker: &Docker, reference: &str) -> Result<(), EngineError> {
    // Without a tag the engine would pull all of them.
    let name = reference.rsplit('/').next().unwrap_or(reference);
    let tagged = name.contains([':', '@']);
    let whole = if tagged {
        reference.to_owned()
    } else {
        format!("{reference}:latest")
    };
    let options = CreateImageOptionsBuilder::default()
        .from_image(&whole)
        .build();
    let what = format!("pull the image `{reference}`");
    let mut said = std::pin::pin!(docker.create_image(Some(options), None, None));
    let mut patience = FIRST_WORD;
    loop {
        match tokio::time::timeout(patience, said.next()).await {
            Err(_) => return Err(EngineError::TimedOut { what }),
            Ok(None) => return Ok(()),
            Ok(Some(Err(error))) => return Err(explain(what, error)),
            Ok(Some(Ok(_))) => patience = STALL,
        }
    }
}

fn describe(found: ImageInspect) -> Image {
    let config = found.config.unwrap_or_default();
    let label = config.labels.unwrap_or_default().remove(MANIFEST_LABEL);
    let (manifest, unreadable) = match label.as_deref().map(serde_json::from_str::<Manifest>) {
        None => (None, None),
        Some(Ok(manifest)) => (Some(manifest), None),
        Some(Err(error)) => (None, Some(error.to_string())),
    };
    let mut command = config.entrypoint.unwrap_or_default();
    command.extend(config.cmd.unwrap_or_default());
    Image {
        id: found.id.unwrap_or_default(),
        manifest,
        unreadable,
        user: config.user.unwrap_or_default(),
        workdir: config.working_dir.unwrap_or_default(),
        command,
        size: found
            .size
            .and_then(|size| u64::try_from(size).ok())
            .unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bollard::models::ImageConfig;

    fn labelled(manifest: &str) -> Image {
        let labels = HashMap::from([(MANIFEST_LABEL.to_owned(), manifest.to_owned())]);
        let config = ImageConfig {
            labels: Some(labels),
            entrypoint: Some(vec!["/step".into()]),
            cmd: Some(vec!["now".into()]),
            ..Default::default()
        };
        describe(ImageInspect {
            config: Some(config),
            ..Default::default()
        })
    }

    #[test]
    fn a_manifest_is_read_from_the_label() {
        let image = labelled(r#"{"contract":1,"name":"jq","kind":"action"}"#);
        assert_eq!(image.manifest.expect("it has one").name, "jq");
        assert_eq!(image.unreadable, None);
        assert_eq!(image.command, ["/step", "now"]);
    }

    #[test]
    fn a_manifest_that_cannot_be_read_says_why() {
        let image = labelled(r#"{"contract":1}"#);
        assert_eq!(image.manifest, None);
        assert!(
            image
                .unreadable
                .expect("there is a reason")
                .contains("name")
        );
    }
}
