//! Makes what is into what should be: containers.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use towpath_protocol::manifest::Manifest;

use crate::engine::Image;

/// Everything that should be, at one moment.
#[derive(Clone, Default)]
pub struct Desired {
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
    /// Its steps that run as containers.
    pub steps: Vec<DesiredStep>,
}

/// A step that should be.
#[derive(Clone)]
pub struct DesiredStep {
    /// The step's id.
    pub id: String,
    /// How many replicas, after scaling.
    pub replicas: u32,
    /// Why it cannot run now (an image is gone, a secret is missing), if it cannot: then nothing is
    /// created and nothing that runs is removed.
    pub blocked: Option<String>,
    /// The image, if it is there.
    pub image: Option<Image>,
    /// What the image says of itself.
    pub manifest: Option<Manifest>,
    /// The hash of everything a replica is made from; what runs with another one is replaced.
    pub spec: String,
}

/// What a flow, or one of its steps, should be doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FlowState {
    /// Everything runs.
    Running,
    /// Containers stay; nothing is consumed, no tick is sent; webhooks are still taken.
    Paused,
    /// No containers; messages stay in the queues; webhooks are refused.
    Stopped,
}
