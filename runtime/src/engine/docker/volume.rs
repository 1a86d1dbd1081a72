//! The volume that brings the agent into every container.
//!
//! It is filled by creating, never starting, a container from the image that is to be run: that
//! needs no image of our own, and works when the control plane is itself in a container.
//!
//! # Invariants
//!
//! - A volume without the marker file is filled again: it may have been cut off half-way.
//! - No replica is created before its volume has the marker, so none runs from a half-filled one.

use bollard::Docker;
use bollard::models::{ContainerCreateBody, HostConfig, VolumeCreateRequest};
use bollard::query_parameters::{
    ContainerArchiveInfoOptionsBuilder, CreateContainerOptionsBuilder,
    RemoveContainerOptionsBuilder, UploadToContainerOptionsBuilder,
};

use super::container::{AGENT_FOLDER, AGENT_PROGRAM, agent_mount, instance_label};
use super::{ANSWER, DockerEngine, WORK, call, is_conflict};
use crate::engine::{Agent, EngineError};

impl DockerEngine {
    /// Makes the volume, if it is not there; it is filled before the first replica is created.
    pub(super) async fn make_volume(&self, instance: &str) -> Result<(), EngineError> {
        let docker = self.docker().await?;
        let name = self.inner.agent.volume(instance);
        let request = VolumeCreateRequest {
            name: Some(name.clone()),
            labels: Some(instance_label(instance)),
            ..Default::default()
        };
        let what = format!("create the volume `{name}`");
        call(what, ANSWER, docker.create_volume(request))
            .await
            .map(drop)
    }

    /// Fills the volume, unless it is known to be filled.
    pub(super) async fn fill_volume(&self, instance: &str, image: &str) -> Result<(), EngineError> {
        let name = self.inner.agent.volume(instance);
        let mut filled = self.inner.filled.lock().await;
        if filled.contains(&name) {
            return Ok(());
        }
        self.make_volume(instance).await?;
        let docker = self.docker().await?;
        let filler = format!("{name}.filler");
        create_filler(docker, &filler, &name, instance, image).await?;
        let done = fill(docker, &filler, &self.inner.agent).await;
        let removed = remove_filler(docker, &filler).await;
        done?;
        filled.insert(name);
        removed
    }
}

async fn create_filler(
    docker: &Docker,
    filler: &str,
    volume: &str,
    instance: &str,
    image: &str,
) -> Result<(), EngineError> {
    let body = ContainerCreateBody {
        image: Some(image.to_owned()),
        // Never run, but an image may have none, and then the engine refuses.
        entrypoint: Some(vec![AGENT_PROGRAM.to_owned()]),
        labels: Some(instance_label(instance)),
        host_config: Some(HostConfig {
            mounts: Some(vec![agent_mount(volume, false)]),
            network_mode: Some("none".to_owned()),
            ..Default::default()
        }),
        ..Default::default()
    };
    let create = || {
        let options = CreateContainerOptionsBuilder::default()
            .name(filler)
            .build();
        let what = format!("create the container `{filler}`");
        call(
            what,
            WORK,
            docker.create_container(Some(options), body.clone()),
        )
    };
    match create().await {
        // Left over by someone who was cut off.
        Err(error) if is_conflict(&error) => {
            remove_filler(docker, filler).await?;
            create().await.map(drop)
        }
        created => created.map(drop),
    }
}

async fn fill(docker: &Docker, filler: &str, agent: &Agent) -> Result<(), EngineError> {
    let marker = format!("{AGENT_FOLDER}/{}", Agent::MARKER);
    let options = ContainerArchiveInfoOptionsBuilder::default()
        .path(&marker)
        .build();
    let looked = docker.get_container_archive_info(filler, Some(options));
    match call("look into a volume", ANSWER, looked).await {
        Err(EngineError::NotFound { .. }) => {}
        found => return found.map(drop),
    }
    let options = UploadToContainerOptionsBuilder::default()
        .path(AGENT_FOLDER)
        .build();
    let archive = bollard::body_full(agent.archive());
    let uploaded = docker.upload_to_container(filler, Some(options), archive);
    call("fill a volume with the agent", WORK, uploaded).await?;
    tracing::info!(
        agent = &agent.hash()[..16],
        "filled the volume that brings the agent"
    );
    Ok(())
}

async fn remove_filler(docker: &Docker, filler: &str) -> Result<(), EngineError> {
    // Without `v`: the volume is to stay.
    let options = RemoveContainerOptionsBuilder::default().force(true).build();
    let what = format!("remove the container `{filler}`");
    match call(what, WORK, docker.remove_container(filler, Some(options))).await {
        Err(EngineError::NotFound { .. }) => Ok(()),
        removed => removed,
    }
}
