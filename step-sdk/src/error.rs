//! What a handler says when it could not do its work: an error with a fate.
//!
//! # Invariants
//!
//! - `unknown_errors_retry`: `?` on any error means *try again*; only a named error gives up.
//! - `the_chain_is_kept`: every cause of an error reaches the dead letter, outermost first.

use std::error::Error;
use std::fmt;
use std::time::{Duration, SystemTime};

pub use towpath_protocol::frame::Fate;

/// What a handler returns.
pub type Result<T, E = StepError> = core::result::Result<T, E>;

/// Why a message was not handled, and what is to become of it.
///
/// Like `anyhow::Error`, it is made from every error by `?` and is therefore not an
/// [`std::error::Error`] itself.
#[derive(Clone)]
pub struct StepError {
    fate: Fate,
    delay: Option<Duration>,
    reason: String,
    chain: Vec<String>,
}

impl StepError {
    /// It failed; try it again after the flow's back-off.
    pub fn retry(reason: impl fmt::Display) -> Self {
        Self::new(Fate::Retry, reason)
    }

    /// It can never succeed: a dead letter, at once.
    pub fn permanent(reason: impl fmt::Display) -> Self {
        Self::new(Fate::Permanent, reason)
    }

    /// It is not yet time: try it again after `delay`. Not a failure, and not counted as one.
    pub fn rebound(delay: Duration, reason: impl fmt::Display) -> Self {
        Self::new(Fate::Rebound, reason).after(delay)
    }

    /// It is not yet time: try it again at `time`, days ahead if need be (48 at the most), or at once
    /// if that is past. Not a failure, and not counted as one.
    pub fn rebound_until(time: SystemTime, reason: impl fmt::Display) -> Self {
        let delay = time.duration_since(SystemTime::now());
        Self::rebound(delay.unwrap_or(Duration::ZERO), reason)
    }

    /// Makes a retry from an error behind a reference, such as a `&dyn Error` or what
    /// `anyhow::Error::as_ref` gives.
    pub fn from_dyn(error: &(dyn Error + '_)) -> Self {
        let mut chain = Vec::new();
        let mut source = error.source();
        while let Some(cause) = source {
            chain.push(cause.to_string());
            source = cause.source();
        }
        Self {
            fate: Fate::Retry,
            delay: None,
            reason: error.to_string(),
            chain,
        }
    }

    /// Sets when to try again, instead of the flow's back-off.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }

    /// Makes it a dead letter, at once.
    #[must_use]
    pub fn into_permanent(mut self) -> Self {
        self.fate = Fate::Permanent;
        self.delay = None;
        self
    }

    /// Makes it "not yet": tried again after `delay` and not counted as a failure.
    #[must_use]
    pub fn into_rebound(mut self, delay: Duration) -> Self {
        self.fate = Fate::Rebound;
        self.delay = Some(delay);
        self
    }

    /// Says what was being done; what it said before becomes the first cause.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        let cause = std::mem::replace(&mut self.reason, doing.to_string());
        self.chain.insert(0, cause);
        self
    }

    /// Adds causes at the end of the chain, such as the last lines that a program wrote.
    #[must_use]
    pub fn because(mut self, causes: impl IntoIterator<Item = String>) -> Self {
        self.chain.extend(causes);
        self
    }

    /// Returns what is to become of the message.
    pub fn fate(&self) -> Fate {
        self.fate
    }

    /// Returns when to try again, if it says so.
    pub fn delay(&self) -> Option<Duration> {
        self.delay
    }

    /// Returns why, in a sentence.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Returns the causes, outermost first.
    pub fn chain(&self) -> &[String] {
        &self.chain
    }

    fn new(fate: Fate, reason: impl fmt::Display) -> Self {
        Self {
            fate,
            delay: None,
            reason: reason.to_string(),
            chain: Vec::new(),
        }
    }
}

impl<E: Error> From<E> for StepError {
    fn from(error: E) -> Self {
        Self::from_dyn(&error)
    }
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)?;
        for cause in &self.chain {
            write!(f, ": {cause}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.fate)?;
        if let Some(delay) = self.delay {
            write!(f, " after {delay:?}")?;
        }
        write!(f, ": {self}")
    }
}

/// Says the fate of an error where it happens.
///
/// ```
/// use towpath_step::{Fate, Result, ResultExt, secs};
///
/// fn number(text: &str) -> Result<u64> {
///     text.parse().permanent() // no retry makes it a number
/// }
///
/// assert_eq!(number("x").unwrap_err().fate(), Fate::Permanent);
///
/// let busy: Result<(), _> = Err(std::io::Error::other("busy"));
/// assert_eq!(busy.rebound(secs(30)).unwrap_err().delay(), Some(secs(30)));
/// ```
pub trait ResultExt<T> {
    /// An error makes the message a dead letter, at once.
    fn permanent(self) -> Result<T>;

    /// An error means "not yet": the message comes again after `delay`.
    fn rebound(self, delay: Duration) -> Result<T>;

    /// An error means a retry, after `delay` instead of the flow's back-off.
    fn retry_after(self, delay: Duration) -> Result<T>;

    /// Says what was being done.
    fn context(self, doing: impl fmt::Display) -> Result<T>;

    /// Says what was being done, made only when there is an error.
    fn with_context<D: fmt::Display>(self, doing: impl FnOnce() -> D) -> Result<T>;
}

impl<T, E: Into<StepError>> ResultExt<T> for core::result::Result<T, E> {
    fn permanent(self) -> Result<T> {
        self.map_err(|error| error.into().into_permanent())
    }

    fn rebound(self, delay: Duration) -> Result<T> {
        self.map_err(|error| error.into().into_rebound(delay))
    }

    fn retry_after(self, delay: Duration) -> Result<T> {
        self.map_err(|error| error.into().after(delay))
    }

    fn context(self, doing: impl fmt::Display) -> Result<T> {
        self.map_err(|error| error.into().context(doing))
    }

    fn with_context<D: fmt::Display>(self, doing: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|error| error.into().context(doing()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read the order")]
    struct Outer(#[source] std::num::ParseIntError);

    fn parse(text: &str) -> Result<u64, Outer> {
        text.parse().map_err(Outer)
    }

    #[test]
    fn unknown_errors_retry() {
        fn handle() -> Result<u64> {
            Ok(parse("x")?)
        }
        assert_eq!(handle().unwrap_err().fate(), Fate::Retry);
    }

    #[test]
    fn not_before_a_time_is_a_delay_until_then() {
        let day = Duration::from_hours(24);
        let until = |time| StepError::rebound_until(time, "the shop opens").delay();
        let ahead = until(SystemTime::now() + 3 * day).unwrap();
        assert!(ahead <= 3 * day && ahead > 2 * day);
        assert_eq!(until(SystemTime::now() - day), Some(Duration::ZERO));
    }

    #[test]
    fn the_chain_is_kept() {
        let error = parse("x").context("cannot handle").permanent().unwrap_err();
        assert_eq!(error.fate(), Fate::Permanent);
        assert_eq!(error.reason(), "cannot handle");
        assert_eq!(
            error.chain(),
            ["cannot read the order", "invalid digit found in string"]
        );
        assert_eq!(
            error.to_string(),
            "cannot handle: cannot read the order: invalid digit found in string"
        );
    }
}
