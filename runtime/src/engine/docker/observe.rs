//! What replicas there are.

use std::collections::HashMap;

use bollard::Docker;
use bollard::models::{ContainerSummary, ContainerSummaryStateEnum};
use bollard::query_parameters::ListContainersOptionsBuilder;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::{ANSWER, call, container};
use crate::engine::{ContainerState, EngineError, Observed, labels};

/// How many containers that have exited are asked at a time why they did.
const INSPECTIONS: usize = 8;

/// Lists the replicas of an instance.
pub(super) async fn observe(docker: &Docker, instance: &str) -> Result<Vec<Observed>, EngineError> {
    // Those with a step's label: what fills a volume is ours, but not a replica.
    let wanted = vec![
        format!("{}={instance}", labels::INSTANCE),
        labels::STEP.to_owned(),
    ];
    let filters = HashMap::from([("label", wanted)]);
    let options = ListContainersOptionsBuilder::default()
        .all(true)
        .filters(&filters)
        .build();
    let listed = call(
        "list containers",
        ANSWER,
        docker.list_containers(Some(options)),
    )
    .await?;
    let asked = stream::iter(listed).map(|summary| describe(docker, summary));
    let described: Vec<_> = asked.buffered(INSPECTIONS).try_collect().await?;
    Ok(described
        .into_iter()
        .flatten()
        .filter(|one| one.identity.instance == instance)
        .collect())
}

/// Describes one container; `None` if it is no replica, or is being removed.
async fn describe(
    docker: &Docker,
    summary: ContainerSummary,
) -> Result<Option<Observed>, EngineError> {
    let Some(id) = summary.id else {
        return Ok(None);
    };
    let Some(identity) = container::identity(&summary.labels.unwrap_or_default()) else {
        return Ok(None);
    };
    let state = match summary.state {
        Some(ContainerSummaryStateEnum::CREATED) => ContainerState::Created,
        Some(ContainerSummaryStateEnum::REMOVING) => return Ok(None),
        Some(ContainerSummaryStateEnum::EXITED | ContainerSummaryStateEnum::DEAD) => {
            match exited(docker, &id).await? {
                Some(state) => state,
                None => return Ok(None),
            }
        }
        _ => ContainerState::Running,
    };
    let name = summary
        .names
        .unwrap_or_default()
        .into_iter()
        .next()
        .unwrap_or_default();
    let created = u64::try_from(summary.created.unwrap_or_default()).unwrap_or_default() * 1000;
    let name = name.trim_start_matches('/').to_owned();
    Ok(Some(Observed {
        container: id,
        name,
        identity,
        state,
        created,
    }))
}

async fn exited(docker: &Docker, id: &str) -> Result<Option<ContainerState>, EngineError> {
    let what = format!("inspect the container `{id}`");
    let found = match call(what, ANSWER, docker.inspect_container(id, None)).await {
        Err(EngineError::NotFound { .. }) => return Ok(None),
        found => found?,
    };
    let state = found.state.unwrap_or_default();
    let at = state
        .finished_at
        .and_then(|at| at.parse::<jiff::Timestamp>().ok());
    let at = at.map(jiff::Timestamp::as_millisecond).unwrap_or_default();
    Ok(Some(ContainerState::Exited {
        code: state.exit_code.unwrap_or(-1),
        out_of_memory: state.oom_killed.unwrap_or_default(),
        memory_bytes: found
            .host_config
            .and_then(|host| u64::try_from(host.memory?).ok())
            .unwrap_or_default(),
        at: u64::try_from(at).unwrap_or_default(),
    }))
}
