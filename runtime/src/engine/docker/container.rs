//! What a replica's container is made with: pure, from its spec.
//!
//! # Invariants
//!
//! - `nothing_of_the_host_is_mounted_but_the_folders_it_may_use` and `no_secret_is_in_it`: what `docker inspect` shows is
//!   harmless.
//! - `what_a_step_does_not_need_is_taken_from_it`: no capabilities but the agent's three, no new
//!   privileges, a root that cannot be written, limits on memory, processors, processes and logs.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, HealthConfig, HostConfig, HostConfigLogConfig,
    Mount, MountType, MountVolumeOptions, RestartPolicy, RestartPolicyNameEnum,
};
use towpath_flow::model::Access;
use towpath_protocol::start::Identity;

use super::{Message, Named, refused};
use crate::engine::{EngineError, Folder, ReplicaSpec, labels};

/// Where the agent is in every container.
pub(super) const AGENT_FOLDER: &str = "/.towpath";

/// The agent itself.
pub(super) const AGENT_PROGRAM: &str = "/.towpath/agent";

/// Where the folders of the host are that a step may use.
const FOLDERS: &str = "/folders";

/// The most that a container's log keeps on disk: four files of this size. Older lines are gone.
const LOG_FILE_SIZE: &str = "8m";
const LOG_FILES: &str = "4";

/// The size of `/tmp`, which counts as memory.
const TMP_OPTIONS: &str = "rw,nosuid,nodev,mode=1777,size=64m";

/// What the agent may do that a process without capabilities may not: become the image's user
/// (SETUID, SETGID) and signal a process of that user (KILL).
const AGENT_CAPABILITIES: [&str; 3] = ["SETUID", "SETGID", "KILL"];

/// The label that everything of an instance has.
pub(super) fn instance_label(instance: &str) -> HashMap<String, String> {
    HashMap::from([(labels::INSTANCE.to_owned(), instance.to_owned())])
}

/// Describes the container to create.
pub(super) fn body(
    replica: &ReplicaSpec,
    volume: &str,
    processors: f64,
) -> Result<ContainerCreateBody, EngineError> {
    Ok(ContainerCreateBody {
        image: Some(replica.image.id.clone()),
        user: Some("0:0".to_owned()),
        entrypoint: Some(vec![AGENT_PROGRAM.to_owned()]),
        cmd: Some(command(replica)?),
        // The agent changes to the image's folder once it is the image's user: root without
        // capabilities may not be allowed in.
        working_dir: Some("/".to_owned()),
        labels: Some(replica_labels(&replica.start.identity)),
        attach_stdin: Some(true),
        open_stdin: Some(true),
        stdin_once: Some(true),
        tty: Some(false),
        // The image's own signal and health check are for the step, not for its agent.
        stop_signal: Some("SIGTERM".to_owned()),
        stop_timeout: Some(i64::from(replica.stop_seconds)),
        healthcheck: Some(HealthConfig {
            test: Some(vec!["NONE".to_owned()]),
            ..Default::default()
        }),
        host_config: Some(host_config(replica, volume, processors)),
        ..Default::default()
    })
}

fn host_config(replica: &ReplicaSpec, volume: &str, processors: f64) -> HostConfig {
    let limits = &replica.limits;
    let identity = &replica.start.identity;
    let memory = i64::try_from(limits.memory_bytes).unwrap_or(i64::MAX);
    let hardened = !limits.image_privileges;
    HostConfig {
        network_mode: Some(identity.instance.clone()),
        extra_hosts: Some(vec!["host.docker.internal:host-gateway".to_owned()]),
        mounts: Some(
            std::iter::once(agent_mount(volume, true))
                .chain(replica.folders.iter().map(folder_mount))
                .collect(),
        ),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        init: Some(false),
        memory: Some(memory),
        // The same as memory: no swap.
        memory_swap: Some(memory),
        nano_cpus: Some(nano_cpus(limits.cpus.min(processors))),
        pids_limit: Some(i64::from(limits.pids)),
        readonly_rootfs: Some(!limits.writable),
        tmpfs: (!limits.writable)
            .then(|| HashMap::from([("/tmp".to_owned(), TMP_OPTIONS.to_owned())])),
        privileged: Some(false),
        cap_drop: hardened.then(|| vec!["ALL".to_owned()]),
        cap_add: hardened.then(|| AGENT_CAPABILITIES.map(str::to_owned).to_vec()),
        security_opt: hardened.then(|| vec!["no-new-privileges".to_owned()]),
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(HashMap::from([
                ("max-size".to_owned(), LOG_FILE_SIZE.to_owned()),
                ("max-file".to_owned(), LOG_FILES.to_owned()),
            ])),
        }),
        ..Default::default()
    }
}

/// The agent's volume.
pub(super) fn agent_mount(volume: &str, read_only: bool) -> Mount {
    Mount {
        target: Some(AGENT_FOLDER.to_owned()),
        source: Some(volume.to_owned()),
        typ: Some(MountType::VOLUME),
        read_only: Some(read_only),
        volume_options: Some(MountVolumeOptions {
            no_copy: Some(true),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A folder of the host. One that is not there is not made: the engine refuses, and says so.
fn folder_mount(folder: &Folder) -> Mount {
    Mount {
        target: Some(format!("{FOLDERS}/{}", folder.name)),
        source: Some(folder.path.to_string_lossy().into_owned()),
        typ: Some(MountType::BIND),
        read_only: Some(folder.access == Access::Read),
        ..Default::default()
    }
}

/// The agent's command line: whom to become, where, and what to run.
fn command(replica: &ReplicaSpec) -> Result<Vec<String>, EngineError> {
    let image = &replica.image;
    let program = if replica.command.is_empty() {
        &image.command
    } else {
        &replica.command
    };
    if program.is_empty() {
        let why = "its image has neither entrypoint nor command, and the flow gives no `command`";
        let what = format!("create the container `{}`", replica.name);
        return Err(refused(what, Message(why.to_owned())));
    }
    let mut command = Vec::with_capacity(program.len() + 5);
    for (option, value) in [("--user", &image.user), ("--workdir", &image.workdir)] {
        if !value.is_empty() {
            command.extend([option.to_owned(), value.clone()]);
        }
    }
    if replica.limits.image_privileges {
        command.push("--keep-privileges".to_owned());
    }
    command.push("--".to_owned());
    command.extend(program.iter().cloned());
    Ok(command)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a limit is at most 256 processors"
)]
fn nano_cpus(cpus: f64) -> i64 {
    (cpus * 1e9).round() as i64
}

fn replica_labels(identity: &Identity) -> HashMap<String, String> {
    [
        (labels::INSTANCE, identity.instance.clone()),
        (labels::FLOW, identity.flow.clone()),
        (labels::STEP, identity.step.clone()),
        (labels::REPLICA, identity.replica.to_string()),
        (labels::SPEC, identity.spec.clone()),
    ]
    .map(|(label, value)| (label.to_owned(), value))
    .into()
}

/// Reads who a container is from its labels; `None` if it is not a replica.
pub(super) fn identity(labels: &HashMap<String, String>) -> Option<Identity> {
    let label = |name: &str| labels.get(name).cloned();
    Some(Identity {
        instance: label(labels::INSTANCE)?,
        flow: label(labels::FLOW)?,
        step: label(labels::STEP)?,
        replica: label(labels::REPLICA)?.parse().ok()?,
        spec: label(labels::SPEC)?,
    })
}

/// Says what the container is that has a replica's name.
pub(super) fn named(found: ContainerInspectResponse, replica: &ReplicaSpec) -> Named {
    let labels = found
        .config
        .and_then(|config| config.labels)
        .unwrap_or_default();
    let id = found.id.unwrap_or_else(|| replica.name.clone());
    if identity(&labels).as_ref() != Some(&replica.start.identity) {
        let id = id.get(..12).unwrap_or(&id);
        return Named::Taken(format!(
            "the name belongs to the container {id}, which is not this replica; rename or remove it"
        ));
    }
    let state = found.state.unwrap_or_default();
    let status = state
        .status
        .map(|status| status.to_string())
        .unwrap_or_default();
    match status.as_str() {
        "running" | "paused" => Named::Running(id),
        "created" => Named::Created(id),
        "exited" | "dead" => Named::Ended(id),
        other => Named::Taken(format!(
            "the replica is there and `{other}`: it is removed first"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Image;
    use crate::reconcile::testing;

    fn replica(line: &str) -> ReplicaSpec {
        let text =
            testing::FLOW.replace("  - id: audit\n", &format!("  - id: audit\n    {line}\n"));
        let mut replica = testing::replica(&text, "audit");
        replica.start.redact = vec!["s3cret".to_owned()];
        replica
            .start
            .env
            .insert("TOKEN".to_owned(), "s3cret".to_owned());
        replica.image = Image {
            user: "app".into(),
            workdir: "/app".into(),
            ..replica.image
        };
        replica
    }

    fn body_of(line: &str) -> ContainerCreateBody {
        body(&replica(line), "i.agent.0", 2.0).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn no_secret_is_in_it() {
        let text = serde_json::to_string(&body_of("pids: 64")).expect("it is sent as JSON");
        assert!(!text.contains("s3cret"), "{text}");
        assert!(!text.contains("amqp://"), "{text}");
    }

    #[test]
    fn nothing_of_the_host_is_mounted_but_the_folders_it_may_use() {
        let host = body_of("pids: 64").host_config.expect("there is one");
        assert_eq!(host.binds, None);
        let mounts = host.mounts.expect("the agent");
        assert_eq!(mounts.len(), 1);
        assert_eq!(mounts[0].typ, Some(MountType::VOLUME));
        assert_eq!(mounts[0].read_only, Some(true));
        let body = body_of("folders: { inbox: read, outbox: write }");
        let mounts = body.host_config.and_then(|host| host.mounts);
        let mounts = mounts.expect("there are some");
        let folders = mounts[1..].iter().map(|mount| {
            (
                mount.source.as_deref(),
                mount.target.as_deref(),
                mount.read_only,
            )
        });
        let expected = [
            (Some("/srv/inbox"), Some("/folders/inbox"), Some(true)),
            (Some("/srv/outbox"), Some("/folders/outbox"), Some(false)),
        ];
        assert_eq!(folders.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_a_step_does_not_need_is_taken_from_it() {
        let body = body_of("pids: 64");
        let command = ["--user", "app", "--workdir", "/app", "--", "/step"].map(str::to_owned);
        assert_eq!(body.cmd, Some(command.to_vec()));
        let host = body.host_config.expect("there is one");
        assert_eq!(host.cap_drop, Some(vec!["ALL".to_owned()]));
        assert_eq!(
            host.cap_add,
            Some(AGENT_CAPABILITIES.map(str::to_owned).to_vec())
        );
        assert_eq!(
            host.security_opt,
            Some(vec!["no-new-privileges".to_owned()])
        );
        assert_eq!(host.readonly_rootfs, Some(true));
        assert_eq!(host.memory, host.memory_swap);
        assert_eq!(host.pids_limit, Some(64));
        assert_eq!(host.nano_cpus, Some(1_000_000_000));
    }

    #[test]
    fn a_limit_above_what_the_engine_has_is_what_it_has() {
        let host = body_of("cpus: 64").host_config.expect("there is one");
        assert_eq!(host.nano_cpus, Some(2_000_000_000));
    }

    #[test]
    fn privileges_of_the_image_are_kept_where_the_flow_says_so() {
        let body = body_of("privileges: image");
        assert!(
            body.cmd
                .expect("there is one")
                .contains(&"--keep-privileges".to_owned())
        );
        let host = body.host_config.expect("there is one");
        assert_eq!((host.cap_drop, host.security_opt), (None, None));
        assert_eq!(host.privileged, Some(false));
    }

    #[test]
    fn an_image_with_nothing_to_run_is_refused() {
        let mut replica = replica("pids: 64");
        replica.image.command.clear();
        let error = body(&replica, "i.agent.0", 2.0).expect_err("there is nothing to run");
        assert!(crate::engine::chain(&error).contains("neither entrypoint nor command"));
    }

    #[test]
    fn an_identity_survives_its_labels() {
        let identity = replica("pids: 64").start.identity;
        assert_eq!(super::identity(&replica_labels(&identity)), Some(identity));
        assert_eq!(super::identity(&instance_label("i")), None);
    }
}
