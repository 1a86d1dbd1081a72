//! Makes what is into what should be: containers.
//!
//! | Module | What |
//! |---|---|
//! | [`intent`] | pure: what each step should be doing, from what an operator said |
//! | [`spec`] | pure: from a checked flow, its images and its secrets to what a replica is made from |
//! | [`plan`] | pure: the actions between what should be and what is, each with its reason |
//! | [`memory`] | what one round must remember for the next: failures, drains, signals |
//! | [`status`] | what a person, and a metric, can know of all that |
//! | [`autoscale`] | pure: how many replicas the work of a step needs, and why |
//! | [`gauge`] | what waits for the steps, as broker and agents say |
//! | [`scaling`] | the autoscaled steps from one round to the next |
//! | [`watchdog`] | pure: who runs and does nothing, although there is something to do |
//! | [`run`] | the loop: observe, plan, act, publish |

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use towpath_flow::Autoscale;

use crate::engine::Image;

pub mod autoscale;
pub mod gauge;
pub mod intent;
pub mod memory;
pub mod plan;
pub mod run;
pub mod scaling;
#[cfg(test)]
mod simulation;
pub mod spec;
pub mod status;
#[cfg(test)]
pub(crate) mod testing;
pub mod watchdog;

/// Everything that should be, at one moment.
#[derive(Clone, Default)]
pub struct Desired {
    /// The instance: containers of another one are none of our business.
    pub instance: String,
    /// All flows that were applied and not deleted.
    pub flows: Vec<DesiredFlow>,
}

/// A flow that should be.
#[derive(Clone)]
pub struct DesiredFlow {
    /// The checked flow.
    pub flow: Arc<towpath_flow::model::Flow>,
    /// Its version, from 1.
    pub version: u32,
    /// What it should be doing.
    pub state: FlowState,
    /// Its steps that run as containers; [`spec::desired_flow`] makes them.
    pub steps: Vec<DesiredStep>,
}

/// A step that should be. It holds secrets, and so has no `Debug`.
#[derive(Clone)]
pub struct DesiredStep {
    /// The step's id.
    pub id: String,
    /// What it should be doing.
    pub state: FlowState,
    /// Because of what, if it does not simply run.
    pub because: Option<String>,
    /// How many replicas, after scaling.
    pub replicas: u32,
    /// What counts its replicas, if that is the work: then the loop fills in [`Self::replicas`].
    pub autoscale: Option<Autoscale>,
    /// Why it has the number it has, if the work counts it; the loop fills it in.
    pub scaling: Option<String>,
    /// Whether there is never more than one at work: a trigger that is fired by ticks, whose
    /// checkpoints are in one order. It is replaced by ending the old one before the new one.
    pub exclusive: bool,
    /// How long a replica may take to finish what it holds.
    pub drain: Duration,
    /// Why it cannot run now (an image is gone, a secret is missing), if it cannot: then nothing is
    /// created and nothing that runs is removed.
    pub blocked: Option<String>,
    /// The image, if it is there.
    pub image: Option<Image>,
    /// The hash of everything a replica is made from; what runs with another one is replaced.
    /// Empty if it is blocked.
    pub spec: String,
    /// What replicas are made from; none if it is blocked.
    pub blueprint: Option<Arc<spec::Blueprint>>,
}

/// What a flow, or one of its steps, should be doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FlowState {
    /// Everything runs.
    #[default]
    Running,
    /// A flow takes in nothing new, and a step gets nothing new; what is there is finished,
    /// retries included; webhooks are asked to come again later.
    Draining,
    /// Containers stay; nothing is consumed, no tick is sent; webhooks are still taken.
    Paused,
    /// No containers; messages stay in the queues; webhooks are refused.
    Stopped,
}
