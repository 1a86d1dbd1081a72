//! The kinds of faults: what they are called, what they hold, and for how long.

use std::time::Duration;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// kill -9 of an agent.
    AgentKilled,
    /// kill -9 of a step process.
    StepProcessKilled,
    /// `docker kill` of a container.
    ContainerKilled,
    /// `docker rm -f` of a container.
    ContainerRemoved,
    /// `docker pause` of a container, and `unpause`.
    ContainerPaused,
    /// kill -9 of the control plane, and started again.
    ControlPlaneKilled,
    /// kill -9 of the broker, and started again.
    BrokerKilled,
    /// `docker pause` of the broker, and `unpause`.
    BrokerPaused,
    /// A memory alarm of the broker: it takes nothing.
    BrokerAlarm,
    /// All connections between agents and broker are closed, and new ones for a while.
    AgentsCut,
    /// The network between agents and broker swallows everything.
    AgentsBlackHole,
    /// The network between agents and broker is slow.
    AgentsSlow,
    /// All connections between control plane and broker are closed, and new ones for a while.
    ControlPlaneCut,
    /// The network between control plane and broker swallows everything.
    ControlPlaneBlackHole,
    /// The engine is stopped as a package update does it, and started again.
    EngineRestarted,
    /// kill -9 of the engine, and started again.
    EngineKilled,
    /// A changed flow is applied.
    FlowApplied,
    /// The flow goes back to the version before.
    FlowRolledBack,
    /// A step gets more or fewer replicas.
    StepScaled,
    /// The flow is paused, and resumed.
    FlowPaused,
}

/// What a fault holds: two faults that hold the same never overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Resource {
    /// The broker.
    Broker,
    /// The network of the agents.
    AgentsLink,
    /// The network of the control plane.
    ControlLink,
    /// The process of the control plane.
    ControlPlane,
    /// The engine.
    Engine,
    /// The flow, by an operator.
    Flow,
}

impl Kind {
    /// All of them.
    pub(crate) const ALL: [Self; 20] = [
        Self::AgentKilled,
        Self::StepProcessKilled,
        Self::ContainerKilled,
        Self::ContainerRemoved,
        Self::ContainerPaused,
        Self::ControlPlaneKilled,
        Self::BrokerKilled,
        Self::BrokerPaused,
        Self::BrokerAlarm,
        Self::AgentsCut,
        Self::AgentsBlackHole,
        Self::AgentsSlow,
        Self::ControlPlaneCut,
        Self::ControlPlaneBlackHole,
        Self::EngineRestarted,
        Self::EngineKilled,
        Self::FlowApplied,
        Self::FlowRolledBack,
        Self::StepScaled,
        Self::FlowPaused,
    ];

    /// What it is called.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::AgentKilled => "agent-killed",
            Self::StepProcessKilled => "step-process-killed",
            Self::ContainerKilled => "container-killed",
            Self::ContainerRemoved => "container-removed",
            Self::ContainerPaused => "container-paused",
            Self::ControlPlaneKilled => "control-plane-killed",
            Self::BrokerKilled => "broker-killed",
            Self::BrokerPaused => "broker-paused",
            Self::BrokerAlarm => "broker-alarm",
            Self::AgentsCut => "agents-cut",
            Self::AgentsBlackHole => "agents-black-hole",
            Self::AgentsSlow => "agents-slow",
            Self::ControlPlaneCut => "control-plane-cut",
            Self::ControlPlaneBlackHole => "control-plane-black-hole",
            Self::EngineRestarted => "engine-restarted",
            Self::EngineKilled => "engine-killed",
            Self::FlowApplied => "flow-applied",
            Self::FlowRolledBack => "flow-rolled-back",
            Self::StepScaled => "step-scaled",
            Self::FlowPaused => "flow-paused",
        }
    }

    /// Whether it ends the engine, so that this must be nobody else's.
    pub(crate) fn needs_own_engine(self) -> bool {
        matches!(self, Self::EngineRestarted | Self::EngineKilled)
    }

    /// How many of it are in one round.
    pub(crate) fn weight(self) -> usize {
        match self {
            Self::AgentKilled
            | Self::StepProcessKilled
            | Self::ContainerKilled
            | Self::ContainerRemoved
            | Self::ContainerPaused
            | Self::ControlPlaneKilled
            | Self::AgentsCut
            | Self::StepScaled => 2,
            _ => 1,
        }
    }

    /// What it holds while it lasts.
    pub(crate) fn holds(self) -> Option<Resource> {
        match self {
            Self::AgentKilled
            | Self::StepProcessKilled
            | Self::ContainerKilled
            | Self::ContainerRemoved
            | Self::ContainerPaused => None,
            Self::ControlPlaneKilled => Some(Resource::ControlPlane),
            Self::BrokerKilled | Self::BrokerPaused | Self::BrokerAlarm => Some(Resource::Broker),
            Self::AgentsCut | Self::AgentsBlackHole | Self::AgentsSlow => {
                Some(Resource::AgentsLink)
            }
            Self::ControlPlaneCut | Self::ControlPlaneBlackHole => Some(Resource::ControlLink),
            Self::EngineRestarted | Self::EngineKilled => Some(Resource::Engine),
            Self::FlowApplied | Self::FlowRolledBack | Self::StepScaled | Self::FlowPaused => {
                Some(Resource::Flow)
            }
        }
    }

    /// The shortest and the longest time that it lasts. Black holes and pauses are both shorter and
    /// longer than what notices them: a heartbeat is missed after 15 to 45 seconds.
    pub(crate) fn lasts(self) -> (Duration, Duration) {
        let (least, most) = match self {
            Self::AgentKilled
            | Self::StepProcessKilled
            | Self::ContainerKilled
            | Self::ContainerRemoved
            | Self::FlowApplied
            | Self::FlowRolledBack
            | Self::StepScaled => (0, 0),
            Self::ContainerPaused | Self::AgentsBlackHole => (1, 60),
            Self::ControlPlaneKilled => (0, 15),
            Self::BrokerKilled | Self::EngineRestarted | Self::EngineKilled => (0, 8),
            Self::BrokerPaused => (1, 20),
            Self::BrokerAlarm => (2, 15),
            Self::AgentsCut | Self::ControlPlaneCut => (0, 12),
            Self::AgentsSlow => (3, 15),
            Self::ControlPlaneBlackHole => (1, 50),
            Self::FlowPaused => (1, 10),
        };
        (Duration::from_secs(least), Duration::from_secs(most))
    }
}
