//! Why a command did not do what it was asked, as a person reads it.

use std::fmt;

use towpath_flow::Finding;

use crate::engine::chain;

/// How a command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// Done.
    Done,
    /// The answer is no: a mistake in what was asked for.
    No,
    /// It could not be found out or done.
    CouldNot,
}

impl ExitStatus {
    /// The exit code.
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::No => 1,
            Self::CouldNot => 2,
        }
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(super) struct Problem {
    /// How it ends.
    pub(super) status: ExitStatus,
    /// What, in lower case and without a final period.
    pub(super) message: String,
    /// Why, outermost first.
    pub(super) causes: Vec<String>,
    /// What to do next, if it is known.
    pub(super) hint: Option<String>,
    /// What is wrong with a flow file, if that is it.
    pub(super) findings: Vec<Finding>,
}

impl Problem {
    /// The answer is no.
    pub(super) fn no(message: impl Into<String>) -> Self {
        Self {
            status: ExitStatus::No,
            message: message.into(),
            causes: Vec::new(),
            hint: None,
            findings: Vec::new(),
        }
    }

    /// It could not be done.
    pub(super) fn could_not(message: impl Into<String>) -> Self {
        Self {
            status: ExitStatus::CouldNot,
            ..Self::no(message)
        }
    }

    /// With an error and all its causes.
    pub(super) fn because(mut self, error: &dyn std::error::Error) -> Self {
        let mut cause = Some(error);
        while let Some(error) = cause {
            let text = error.to_string();
            // Some errors repeat their source.
            if self.causes.last() != Some(&text) {
                self.causes.push(text);
            }
            cause = error.source();
        }
        self
    }

    /// With what to do next.
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl From<crate::settings::SettingsError> for Problem {
    fn from(error: crate::settings::SettingsError) -> Self {
        let problem = Self::could_not(error.to_string());
        match std::error::Error::source(&error) {
            Some(source) => problem.because(source),
            None => problem,
        }
    }
}

impl From<crate::serve::ServeError> for Problem {
    fn from(error: crate::serve::ServeError) -> Self {
        use crate::serve::ServeError;
        let problem = Self::could_not(error.to_string());
        let problem = match std::error::Error::source(&error) {
            Some(source) => problem.because(source),
            None => problem,
        };
        match &error {
            ServeError::Listen { .. } => problem
                .hint("another `towpath serve` may run; `TOWPATH_LISTEN` sets another address"),
            ServeError::Agent(_) => problem.hint(
                "build it with `cargo build`, or say where it is with the setting `agent.binaries`",
            ),
            ServeError::Store(crate::store::StoreError::InUse { .. }) => {
                problem.hint("end it first, or set another `data` directory")
            }
            _ => problem,
        }
    }
}

impl From<crate::pack::PackError> for Problem {
    fn from(error: crate::pack::PackError) -> Self {
        let problem = match &error {
            crate::pack::PackError::Engine(_) => Self::could_not(error.to_string()),
            _ => Self::no(error.to_string()),
        };
        let problem = match std::error::Error::source(&error) {
            Some(source) => Self {
                causes: vec![chain(source)],
                ..problem
            },
            None => problem,
        };
        match error.hint() {
            Some(hint) => problem.hint(hint),
            None => problem,
        }
    }
}
