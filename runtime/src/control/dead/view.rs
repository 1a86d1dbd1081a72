//! What the API says about dead letters, beside the letter itself.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::store::replay_jobs::JobState;

/// Which dead letters: all that every part which is given says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeadSelection {
    /// These only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<String>,
    /// Of this group only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Of this flow only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow: Option<String>,
    /// Of this step only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// That came to this kind of end only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// That died at this time or later only, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// That died before this time only, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
    /// For which this jq filter gives anything but `false` and `null`. It sees a letter as it is
    /// exported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// All there are: must be said if nothing else is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
}

/// Dead letters of one kind.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct GroupView {
    /// What it is named by: 12 hexadecimal digits.
    pub group: String,
    /// The flow.
    pub flow: String,
    /// The step.
    pub step: String,
    /// What kind of end it was.
    pub cause: String,
    /// The reasons, without what differs from message to message.
    pub pattern: String,
    /// How many are open.
    pub count: u64,
    /// How often a trigger failed again in the way of one of them.
    pub repeats: u64,
    /// When the first died, in milliseconds since 1970.
    pub first_at: u64,
    /// When it happened last, in milliseconds since 1970.
    pub last_at: u64,
    /// The newest of them.
    pub example: String,
}

/// Open dead letters by kind, the largest group first.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct GroupList {
    /// The groups.
    pub groups: Vec<GroupView>,
}

/// An earlier or later death of the same message at the same step.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct OtherDeath {
    /// The dead letter.
    pub id: String,
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// What kind of end it was.
    pub cause: String,
    /// Why, in a sentence.
    pub reason: String,
    /// How often it had been replayed before.
    pub replays: u32,
    /// What was done about it.
    pub state: String,
}

/// Which dead letters to replay, and how.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplayManyRequest {
    /// Which.
    pub select: DeadSelection,
    /// The step that gets them: the one that failed, which is the default, or one before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// At most this many a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// Only say what would be sent where.
    #[serde(default)]
    pub dry_run: bool,
}

/// What is replayed, or would be.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ReplayAnswer {
    /// The job that does it; none for a dry run.
    pub job: Option<JobView>,
    /// How many can go.
    pub selected: u64,
    /// Where they go.
    pub routes: Vec<RouteView>,
    /// What is left out.
    pub left_out: Vec<LeftOut>,
}

/// Where some dead letters go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RouteView {
    /// The flow.
    pub flow: String,
    /// The step that failed.
    pub step: String,
    /// Where they go.
    pub to: String,
    /// How many.
    pub count: u64,
}

/// Dead letters that are left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeftOut {
    /// How many.
    pub count: u64,
    /// Why.
    pub why: String,
}

/// A replay of many dead letters.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct JobView {
    /// Its number.
    pub id: String,
    /// Which letters it was asked for.
    pub what: String,
    /// The step that gets them, if it is not the one that failed.
    pub from: Option<String>,
    /// At most this many a second.
    pub rate: Option<f64>,
    /// How far it is.
    pub state: JobState,
    /// How many letters it took.
    pub total: u64,
    /// How many it sent.
    pub sent: u64,
    /// How many could not be sent: they are open again.
    pub skipped: u64,
    /// Why the last of them could not.
    pub reason: Option<String>,
    /// Why it waits, if it does.
    pub waits: Option<String>,
    /// When it began, in milliseconds since 1970.
    pub created_at: u64,
    /// When anything about it changed last, in milliseconds since 1970.
    pub changed_at: u64,
}

/// Replays, newest first.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct JobList {
    /// The jobs.
    pub jobs: Vec<JobView>,
}

/// Which dead letters to discard.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiscardRequest {
    /// Which.
    pub select: DeadSelection,
    /// Only say how many.
    #[serde(default)]
    pub dry_run: bool,
}

/// What to do to the bodies of dead letters.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EditManyRequest {
    /// Which.
    pub select: DeadSelection,
    /// A jq expression from the body, as it is now, to the new body; `$message` is the letter as it
    /// is exported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jq: Option<String>,
    /// Bring the original bodies back.
    #[serde(default)]
    pub undo: bool,
    /// Only say what would change.
    #[serde(default)]
    pub dry_run: bool,
}

/// A new body.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EditRequest {
    /// The body: any JSON.
    #[schema(value_type = Object)]
    pub body: Box<RawValue>,
}

/// What became of many dead letters.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct ManyAnswer {
    /// How many were chosen.
    pub selected: u64,
    /// How many of them changed, or would.
    pub changed: u64,
    /// What is left out.
    pub left_out: Vec<LeftOut>,
    /// The first changes of bodies, of a dry run.
    pub diffs: Vec<BodyDiff>,
}

/// How a body changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BodyDiff {
    /// The dead letter.
    pub id: String,
    /// The difference, line by line, as `diff -u` writes it.
    pub diff: String,
}
