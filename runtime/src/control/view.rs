//! What the API says: the shapes that the control plane answers with and the command line reads.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use towpath_flow::Finding;
use utoipa::ToSchema;

use super::dead::view::{LeftOut, OtherDeath};
use crate::reconcile::FlowState;

/// A flow file to plan or to apply.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Draft {
    /// What messages call the file.
    #[serde(default = "unnamed")]
    pub file: String,
    /// What is in it.
    pub source: String,
    /// The environment variables it names, from whoever applies it.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Whether messages that wait for a step that goes away may be dropped.
    #[serde(default)]
    pub drop_messages: bool,
    /// Whether steps that go away finish what they have first: what leads to them holds still.
    /// Until they have, nothing is applied; ask again.
    #[serde(default)]
    pub drain_first: bool,
    /// Whether messages that wait for a step that goes away become dead letters.
    #[serde(default)]
    pub dead_letter: bool,
    /// The steps that take the messages of steps that go away.
    #[serde(default, rename = "move")]
    pub moves: BTreeMap<String, String>,
}

fn unnamed() -> String {
    "flow.yaml".to_owned()
}

/// What applying a flow does, or would do.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PlanView {
    /// The flow.
    pub flow: String,
    /// The version it has afterwards.
    pub version: u32,
    /// Whether there is nothing to do.
    pub unchanged: bool,
    /// Whether it was applied; false for a plan, and while steps that go away finish first.
    #[serde(default)]
    pub applied: bool,
    /// What changes, step by step, each with its reason.
    pub changes: Vec<Change>,
    /// The steps that go away.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<RemovedStep>,
    /// Warnings, and notes of what was not checked.
    #[schema(value_type = Vec<Object>)]
    pub warnings: Vec<Finding>,
    /// Where it takes requests, if it has a webhook and was applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook_url: Option<String>,
}

/// How a webhook gets another URL.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateRequest {
    /// How long the URL before stays good, in milliseconds; a day when left out, and with 0 no
    /// former URL is good any more.
    #[serde(default = "a_day_ms")]
    pub grace_ms: u64,
}

fn a_day_ms() -> u64 {
    24 * 3_600_000
}

/// The URLs of a webhook.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct WebhookKeys {
    /// The flow.
    pub flow: String,
    /// Where it takes requests.
    pub webhook_url: String,
    /// Until when its former URLs are good, in milliseconds since 1970.
    pub former_until: Vec<u64>,
}

/// A step that goes away, and its messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RemovedStep {
    /// The step.
    pub step: String,
    /// What it still has.
    pub left: Left,
    /// Whether it cannot go like this.
    pub refused: bool,
    /// What becomes of its messages, in words.
    pub messages: String,
}

/// The versions of a flow, newest first.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct VersionList {
    /// The versions that are kept.
    pub versions: Vec<VersionView>,
}

/// A version of a flow.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct VersionView {
    /// The version, from 1.
    pub version: u32,
    /// When it was applied, in milliseconds since 1970.
    pub applied_at: u64,
    /// Whether it is the one that should run.
    pub current: bool,
    /// How many replicas run of it: those of older versions that have not changed since count for
    /// the current one.
    pub running: u32,
    /// What changed with it, in a line.
    pub summary: String,
}

/// What is different between two versions of a flow.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DiffView {
    /// The flow.
    pub flow: String,
    /// The version on the left.
    pub from: u32,
    /// The version on the right.
    pub to: u32,
    /// The differences of the flow files, as a unified diff; empty if there are none. Values of
    /// secrets are replaced.
    pub diff: String,
    /// What else is different: environment and images, without their values.
    pub notes: Vec<String>,
}

/// Which version to go back to.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    /// The version; the one before the newest when left out.
    #[serde(default)]
    pub version: Option<u32>,
    /// As for an apply.
    #[serde(default)]
    pub drop_messages: bool,
    /// As for an apply.
    #[serde(default)]
    pub drain_first: bool,
    /// As for an apply.
    #[serde(default)]
    pub dead_letter: bool,
    /// As for an apply.
    #[serde(default, rename = "move")]
    pub moves: BTreeMap<String, String>,
}

/// One thing that changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Change {
    /// What is done.
    pub action: ChangeAction,
    /// To which step; none for the flow as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Why.
    pub reason: String,
}

/// What is done to a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChangeAction {
    /// It is made.
    Create,
    /// Its replicas are replaced, new before old.
    Replace,
    /// Replicas are added or removed.
    Scale,
    /// It goes away.
    Remove,
    /// Something else about the flow changes; no replica is touched.
    Update,
}

/// All flows.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct FlowList {
    /// The flows, by name.
    pub flows: Vec<FlowSummary>,
}

/// A flow in a list.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct FlowSummary {
    /// Its name.
    pub flow: String,
    /// One sentence.
    pub description: String,
    /// What it should be doing.
    pub state: FlowState,
    /// Its version.
    pub version: u32,
    /// When that was applied, in milliseconds since 1970.
    pub applied_at: u64,
    /// What sets it off: `every 30s` or `webhook`.
    pub fires: String,
    /// How many steps it has.
    pub steps: u32,
    /// How many replicas run.
    pub running: u32,
    /// How many there should be.
    pub desired: u32,
    /// How many messages wait, about; none if the broker does not say.
    pub queued: Option<u64>,
    /// How many dead letters are open.
    pub dead_letters: u64,
    /// What is wrong, if something is.
    pub reason: Option<String>,
}

/// A flow and how it is.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct FlowStatus {
    /// Its name.
    pub flow: String,
    /// One sentence.
    pub description: String,
    /// What it should be doing.
    pub state: FlowState,
    /// What is wrong with the flow as a whole, if something is.
    pub reason: Option<String>,
    /// What is left of it, if it drains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<Left>,
    /// Its version.
    pub version: u32,
    /// When that was applied, in milliseconds since 1970.
    pub applied_at: u64,
    /// What sets it off: `every 30s` or `webhook`.
    pub fires: String,
    /// The flows that hand messages to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub handed_by: Vec<String>,
    /// Its actions that hand messages to other flows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hands: Vec<HandoverView>,
    /// Where it takes requests, if it has a webhook.
    pub webhook_url: Option<String>,
    /// Until when former URLs of its webhook are good, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub webhook_former_until: Vec<u64>,
    /// How its URL is registered at its source, if its trigger does that by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registration: Option<RegistrationView>,
    /// It is to go as soon as that is taken back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleting: bool,
    /// The last run, if it is fired by a schedule.
    pub last_run: Option<RunView>,
    /// When it fires next, in milliseconds since 1970; before now if it is as soon as the run that
    /// is under way has ended.
    pub next_run_at: Option<u64>,
    /// The time zone that its schedule goes by, if it goes by the clock of a place.
    pub timezone: Option<String>,
    /// How many dead letters are open, in all its steps.
    pub dead_letters: u64,
    /// Requests to its webhook that went nowhere, because no condition (`when`) of the first actions
    /// held, since the control plane started.
    #[serde(default)]
    pub unmatched_requests: u64,
    /// Its steps that run as containers.
    pub steps: Vec<StepStatus>,
    /// Whether all that should be is: the right replicas run, of the newest version.
    pub converged: bool,
    /// Whether the container engine answers.
    pub engine_up: bool,
    /// Whether the broker answers.
    pub broker_up: bool,
}

/// How a flow's URL is registered at its source.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RegistrationView {
    /// How it is.
    pub state: RegistrationState,
    /// The URL.
    pub url: Option<String>,
    /// Since when it is registered, in milliseconds since 1970.
    pub since: Option<u64>,
    /// How many calls of the trigger failed in a row.
    pub attempts: u32,
    /// When it is called again, in milliseconds since 1970, if the last call failed.
    pub next_at: Option<u64>,
    /// Why it is not yet as it should be.
    pub reason: Option<String>,
}

/// How a registration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RegistrationState {
    /// It is to be registered.
    Registering,
    /// It is registered.
    Registered,
    /// It is to be taken back.
    Unregistering,
}

/// An action that hands messages to another flow.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct HandoverView {
    /// Its id.
    pub step: String,
    /// The other flow.
    pub to: String,
    /// What that should be doing: while it does not run, what is handed over waits in its queues.
    pub state: FlowState,
}

/// A step and how it is.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct StepStatus {
    /// Its id.
    pub step: String,
    /// Its image.
    pub image: String,
    /// What it should be doing.
    pub wanted: FlowState,
    /// Because of what, if it should not simply run.
    pub because: Option<String>,
    /// What is left of it, if it drains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<Left>,
    /// How it is, in a word.
    pub state: String,
    /// Why, if it does not simply run.
    pub reason: Option<String>,
    /// When that is next looked at, if it waits for that, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_at: Option<u64>,
    /// How many replicas there should be.
    pub desired: u32,
    /// Why it has that number, if the work counts it or an operator holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<String>,
    /// How many run.
    pub running: u32,
    /// How many messages wait, about; none if the broker does not say.
    pub queued: Option<u64>,
    /// How many deliveries wait: a delivery is a batch of messages.
    pub queued_deliveries: Option<u64>,
    /// Messages in the hands of the step processes.
    pub in_hand: u64,
    /// Deliveries taken and not acknowledged.
    pub unacknowledged: u64,
    /// Messages taken, a second.
    pub in_rate: f64,
    /// Messages emitted, a second.
    pub out_rate: f64,
    /// Messages taken, since the control plane first saw these replicas.
    pub received: u64,
    /// Messages emitted.
    pub emitted: u64,
    /// Messages settled as done.
    pub done: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Messages sent back to be tried again.
    pub retried: u64,
    /// Messages sent back because it was not yet time.
    pub rebounded: u64,
    /// Messages given up.
    pub dead: u64,
    /// Messages emitted that went nowhere, because no condition (`when`) of the steps after it held.
    #[serde(default)]
    pub unmatched: u64,
    /// Dead letters that are open.
    pub dead_letters: u64,
    /// Dead letters that were replayed, in the last 30 days.
    pub replayed: u64,
    /// How often replicas or their processes were started again.
    pub restarts: u64,
    /// What half of the messages take at most, in milliseconds.
    pub p50_ms: Option<f64>,
    /// What 99 of 100 messages take at most, in milliseconds.
    pub p99_ms: Option<f64>,
    /// Its replicas.
    pub replicas: Vec<ReplicaView>,
}

/// What is left of something that drains, in messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Left {
    /// Waiting in queues, about.
    pub queued: u64,
    /// With agents, those of the steps before a step included.
    pub in_hand: u64,
    /// Waiting to be tried again.
    pub waiting: u64,
    /// Nothing is left, and that is certain.
    pub drained: bool,
}

/// A replica and how it is.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ReplicaView {
    /// Its number, from 1.
    pub replica: u32,
    /// Its container.
    pub container: Option<String>,
    /// How it is, in a word.
    pub state: String,
    /// Why, if it does not simply run.
    pub reason: Option<String>,
    /// When it is next looked at for its own sake, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_at: Option<u64>,
    /// The last lines it wrote, if it fails.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub last_lines: Vec<String>,
}

/// A run.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RunView {
    /// Its id.
    pub id: String,
    /// The flow.
    pub flow: String,
    /// Its trigger's step.
    pub trigger: String,
    /// The external account.
    pub connection: String,
    /// The version of the flow.
    pub version: u32,
    /// Why it was fired: `schedule`, `manual` or `webhook`.
    pub why: String,
    /// How it is: `queued`, `running`, `rate_limited`, `paused`, `stalled`, `done`,
    /// `done_with_dead_letters`, `failed`, `cancelled`, or `unknown` if not everything that came of
    /// it is known.
    pub state: String,
    /// What is behind that, in a sentence, if there is something to say.
    pub note: Option<String>,
    /// How far its trigger is: `recorded`, `published`, `done`, `failed`, `abandoned` or
    /// `cancelled`.
    pub tick: String,
    /// When it was due, in milliseconds since 1970.
    pub due: u64,
    /// When it was recorded, in milliseconds since 1970.
    pub started_at: u64,
    /// When its trigger began, in milliseconds since 1970.
    pub began_at: Option<u64>,
    /// When something was heard of it last, in milliseconds since 1970.
    pub progress_at: Option<u64>,
    /// When its trigger ended, in milliseconds since 1970.
    pub ended_at: Option<u64>,
    /// Since when everything that came of it is settled, in milliseconds since 1970.
    pub finished_at: Option<u64>,
    /// Where its trigger was when it began: JSON, or the beginning of it.
    pub checkpoint_before: Option<String>,
    /// Where its trigger was last.
    pub checkpoint_after: Option<String>,
    /// Whether it is noted what comes of it.
    pub tracked: bool,
    /// What came of it, if that is noted.
    pub messages: Option<RunMessages>,
    /// The same, for each step that messages of it came to.
    pub steps: Vec<RunStepView>,
    /// How many messages it brought in, as its trigger counted them in its last attempt.
    pub emitted: Option<u64>,
    /// How often it was tried again.
    pub attempts: u32,
    /// When it is tried again, in milliseconds since 1970.
    pub next_at: Option<u64>,
    /// Why it is tried again, or failed.
    pub reason: Option<String>,
    /// What the flow answered the request that it began with, if it did. Lists leave it out.
    pub answer: Option<AnswerView>,
}

/// What a flow answered a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AnswerView {
    /// When it answered, in milliseconds since 1970.
    pub at: u64,
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: BTreeMap<String, String>,
    /// The body; null if there is none.
    pub body: Value,
}

/// The messages of a run: each counts once for every step it goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct RunMessages {
    /// How many were emitted.
    pub emitted: u64,
    /// How many of them are not settled.
    pub open: u64,
    /// How many of those wait to be tried again, as far as is noted.
    pub retrying: u64,
    /// How many are done.
    pub done: u64,
    /// How many are dead letters.
    pub dead: u64,
}

/// The messages of a run at one step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RunStepView {
    /// The step.
    pub step: String,
    /// How many came to it.
    pub emitted: u64,
    /// How many of them are not settled.
    pub open: u64,
    /// How many are done.
    pub done: u64,
    /// How many are dead letters.
    pub dead: u64,
}

/// Runs, newest first.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RunList {
    /// The runs.
    pub runs: Vec<RunView>,
}

/// Where a trigger is in its source.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CheckpointView {
    /// The flow.
    pub flow: String,
    /// The trigger.
    pub step: String,
    /// The external account.
    pub connection: String,
    /// Raised by one each time it is written; 0 if it never was.
    pub version: u64,
    /// The position; none if the trigger begins from the beginning.
    #[schema(value_type = Option<Object>)]
    pub value: Option<Value>,
    /// When it was written, in milliseconds since 1970; none if it never was.
    pub saved_at: Option<u64>,
    /// The run that saved it; none if a person wrote it.
    pub run: Option<String>,
}

/// Where a trigger is to go on from.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckpointValue {
    /// The position: any JSON.
    #[schema(value_type = Object)]
    pub value: Value,
}

/// When a checkpoint is written.
#[derive(Debug, Clone, Default, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CheckpointChoice {
    /// Only if this is its version.
    pub version: Option<u64>,
    /// Also while a run is under way.
    #[serde(default)]
    pub force: bool,
}

/// What to run.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RunRequest {
    /// What the trigger is handed: any JSON.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub payload: Option<Value>,
}

/// How many replicas.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScaleRequest {
    /// From 1 to 64, or `auto`: as many as the flow file says.
    pub replicas: ScaleTo,
}

/// How many replicas, or who says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum ScaleTo {
    /// So many, whatever the flow file says.
    Number(u32),
    /// As the flow file says.
    File(ScaleWord),
}

/// The word for: as the flow file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScaleWord {
    /// As the flow file says.
    Auto,
}

impl FromStr for ScaleTo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::File(ScaleWord::Auto));
        }
        text.parse()
            .map(Self::Number)
            .map_err(|_| "it is a number from 1 to 64, or `auto`".to_owned())
    }
}

/// What a verb did.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Done {
    /// Whether anything changed.
    pub changed: bool,
    /// What was done, in a sentence.
    pub message: String,
}

/// Dead letters, newest first.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DeadList {
    /// The dead letters.
    pub dead: Vec<DeadView>,
    /// What to give as `before` for the next page, if there may be more.
    pub next: Option<String>,
    /// What is left out because the filter failed on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<LeftOut>,
}

/// A dead letter.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DeadView {
    /// Its number.
    pub id: String,
    /// The flow.
    pub flow: String,
    /// The step that gave up.
    pub step: String,
    /// The port by which it left the step, if it was lost on the way to the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// The flow that it entered, if that handed it over to this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entered: Option<String>,
    /// The version of the flow that it entered.
    pub version: u32,
    /// The external account.
    pub connection: String,
    /// The run it belongs to.
    pub run: Option<String>,
    /// The message's id.
    pub message_id: String,
    /// Its group: all that failed in the same way have the same.
    pub group: String,
    /// What kind of end it was.
    pub cause: String,
    /// Why, in a sentence.
    pub reason: String,
    /// The causes, outermost first.
    pub chain: Vec<String>,
    /// The failed attempts, oldest first.
    #[schema(value_type = Vec<Object>)]
    pub attempts: Vec<Value>,
    /// Which replica gave up; 0 if it was the broker.
    pub replica: u32,
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// How often a trigger failed again in the same way since, without a letter of its own.
    pub repeats: u64,
    /// When it happened last, in milliseconds since 1970.
    pub last_at: u64,
    /// How often it had been replayed before.
    pub replays: u32,
    /// What was done about it: `open`, `replaying`, `replayed` or `discarded`.
    pub state: String,
    /// The job that has it, or sent it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// Whether someone put another body in place of its own.
    pub edited: bool,
    /// The message as it was taken; left out of lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub message: Option<Value>,
    /// The body as it would be replayed; left out of lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub body: Option<Box<RawValue>>,
    /// The body as it was taken, if it was edited; left out of lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub original_body: Option<Box<RawValue>>,
    /// The other deaths of the same message at the same step, oldest first; left out of lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<OtherDeath>,
}

/// A body to replay a dead letter with, in place of its own.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplayRequest {
    /// The new body: any JSON. Its own when left out.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub body: Option<Box<RawValue>>,
    /// The step that gets it: the one that failed, which is the default, or one before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

/// What waits in the delay ladder for the steps of a flow.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RetryList {
    /// How many messages are known to wait.
    pub total: u64,
    /// Why they wait: the largest groups first.
    pub groups: Vec<RetryGroupView>,
    /// The messages that come back next.
    pub waiting: Vec<RetryView>,
    /// How many deliveries the ladder of this Towpath, all flows together, holds beyond all that is
    /// known, if that is clearly more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unnoted: Option<u64>,
}

/// Messages that wait for the same kind of reason.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RetryGroupView {
    /// The step that they wait for.
    pub step: String,
    /// What their reasons have in common.
    pub pattern: String,
    /// It is not yet time, rather than that they failed.
    pub is_rebound: bool,
    /// How many.
    pub count: u64,
    /// When the next one comes back, in milliseconds since 1970.
    pub next: u64,
    /// When the last one does, in milliseconds since 1970.
    pub last: u64,
}

/// A message that waits.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RetryView {
    /// The message's id.
    pub id: String,
    /// The step that it waits for.
    pub step: String,
    /// The run it belongs to.
    pub run: String,
    /// The external account.
    pub connection: String,
    /// The attempt that comes next, from 1.
    pub attempt: u32,
    /// How many attempts there are in all.
    pub attempts: u32,
    /// How often the step asked to see it later.
    pub rebounds: u32,
    /// How often it was replayed.
    pub replays: u32,
    /// It is not yet time, rather than that it failed.
    pub is_rebound: bool,
    /// Why it waits.
    pub reason: String,
    /// Since when the step has not been done with it, in milliseconds since 1970.
    pub since: u64,
    /// When it comes back, in milliseconds since 1970.
    pub due: u64,
}

/// Which messages to take out of the delay ladder: some ids, or a step, or all.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RetrySelection {
    /// These.
    #[serde(default)]
    pub ids: Vec<String>,
    /// All that wait for this step.
    #[serde(default)]
    pub step: Option<String>,
    /// All that wait in the flow.
    #[serde(default)]
    pub all: bool,
    /// Only say how many that are.
    #[serde(default)]
    pub dry_run: bool,
}

/// What became of messages that were to be taken out of the delay ladder.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RetriesMoved {
    /// Whether anything changed.
    pub changed: bool,
    /// How many were taken out, or would be.
    pub moved: u64,
    /// How many wait on, because there is no room in the queue that they go to.
    pub held_back: u64,
    /// Those that were asked for by id and were not there any more: they came back meanwhile.
    pub not_found: Vec<String>,
    /// What was done, in a sentence.
    pub message: String,
}

/// The names of all secrets.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SecretList {
    /// The secrets, without their values.
    pub secrets: Vec<crate::store::secrets::SecretRecord>,
}

/// The value of a secret.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretValue {
    /// The value. It is never given back.
    pub value: String,
}

/// Whether a part answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Readiness {
    /// Whether all of them do.
    pub ready: bool,
    /// `up`, or why not: `store`, `broker`, `engine`.
    pub parts: BTreeMap<String, String>,
}

/// A line of a log.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    /// The step.
    pub step: String,
    /// The replica.
    pub replica: u32,
    /// What the agent wrote: an object, or text as it was.
    #[schema(value_type = Object)]
    pub line: Value,
}
