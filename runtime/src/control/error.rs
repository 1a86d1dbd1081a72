//! Why the control plane does not do what it was asked.

use towpath_flow::Finding;

use crate::broker::BrokerError;
use crate::engine::{EngineError, chain};
use crate::store::StoreError;

/// An answer that is not what was asked for.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct ControlError {
    /// What kind of answer it is.
    pub kind: ErrorKind,
    /// A stable word for programs.
    pub code: &'static str,
    /// Why, for people.
    pub message: String,
    /// What to do next, if it is known.
    pub hint: Option<String>,
    /// What is wrong with a flow file, if that is it.
    pub diagnostics: Vec<Finding>,
}

/// What kind of answer it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// What was asked for cannot be asked.
    Bad,
    /// There is no such thing.
    NotFound,
    /// Not as things are now.
    Conflict,
    /// The flow file has mistakes.
    Invalid,
    /// Something that is needed does not answer now.
    Unavailable,
    /// A mistake of ours.
    Internal,
}

impl ControlError {
    /// Makes one.
    pub fn new(kind: ErrorKind, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            kind,
            code,
            message: message.into(),
            hint: None,
            diagnostics: Vec::new(),
        }
    }

    /// With what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// There is no such flow.
    pub fn no_flow(flow: &str) -> Self {
        Self::new(
            ErrorKind::NotFound,
            "no_such_flow",
            format!("there is no flow `{flow}`"),
        )
        .hint("`towpath list` shows all flows")
    }

    /// The flow has no such step.
    pub fn no_step(flow: &str, step: &str, steps: &[&str]) -> Self {
        let message = format!("the flow `{flow}` has no step `{step}`");
        Self::new(ErrorKind::NotFound, "no_such_step", message).hint(
            match towpath_flow::nearest(step, steps.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("its steps are {}", steps.join(", ")),
            },
        )
    }

    /// The flow file has mistakes.
    pub fn invalid(diagnostics: Vec<Finding>) -> Self {
        let count = diagnostics
            .iter()
            .filter(|finding| finding.severity == towpath_flow::Severity::Error)
            .count();
        let message = match count {
            1 => "the flow file has a mistake".to_owned(),
            count => format!("the flow file has {count} mistakes"),
        };
        Self {
            diagnostics,
            ..Self::new(ErrorKind::Invalid, "invalid_flow", message)
        }
    }

    /// The container engine does not say what is needed.
    pub fn engine(error: &anyhow::Error) -> Self {
        Self::new(
            ErrorKind::Unavailable,
            "engine_unavailable",
            format!("{error:#}"),
        )
    }

    /// Something that should never happen.
    pub fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error = chain(error), "a request failed");
        Self::new(
            ErrorKind::Internal,
            "internal",
            "the control plane failed; its log says why",
        )
    }
}

impl From<StoreError> for ControlError {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Undecryptable { .. } => Self::new(
                ErrorKind::Unavailable,
                "secret_unreadable",
                error.to_string(),
            )
            .hint("set it again with `towpath secret set`"),
            _ => Self::internal(&error),
        }
    }
}

impl From<BrokerError> for ControlError {
    fn from(error: BrokerError) -> Self {
        Self::new(ErrorKind::Unavailable, "broker_unavailable", chain(&error))
            .hint("what the broker holds is safe; try again when `/ready` says it is up")
    }
}

impl From<EngineError> for ControlError {
    fn from(error: EngineError) -> Self {
        match &error {
            EngineError::NotFound { .. } => {
                Self::new(ErrorKind::NotFound, "not_found", chain(&error))
            }
            _ => Self::new(ErrorKind::Unavailable, "engine_unavailable", chain(&error)),
        }
    }
}
