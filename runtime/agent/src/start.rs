//! Reads the document that says everything: once, from standard input, with a deadline.

use std::io::Read;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use thiserror::Error;
use towpath_protocol::CONTRACT;
use towpath_protocol::start::{DELAY_LEVELS, Start};

use crate::validate::Validator;

/// How long the document may take to arrive.
const DEADLINE: Duration = Duration::from_secs(30);

/// The largest document.
const BYTES_MAX: u64 = 16 << 20;

/// Why the document is unusable. No variant holds any of it: it is full of secrets.
#[derive(Debug, Error)]
pub enum StartError {
    /// It did not come.
    #[error("no start document came on standard input within {} s", DEADLINE.as_secs())]
    Late,
    /// It cannot be read.
    #[error("standard input cannot be read")]
    Read(#[source] std::io::Error),
    /// It is too large.
    #[error("the start document is larger than {BYTES_MAX} bytes")]
    Large,
    /// It is not what it should be.
    #[error("the start document is not understood: {what} at line {line}, column {column}")]
    Parse {
        /// What kind of mistake.
        what: &'static str,
        /// Where.
        line: usize,
        /// Where.
        column: usize,
    },
    /// It is of another version.
    #[error("the start document is of contract {theirs}, this agent speaks contract {CONTRACT}")]
    Contract {
        /// The version of the control plane.
        theirs: u32,
    },
    /// It makes no sense.
    #[error("the start document makes no sense: {0}")]
    Senseless(&'static str),
}

/// Reads and checks the document.
pub fn read() -> Result<Start, StartError> {
    let (sender, receiver) = channel();
    let reader = move || {
        let mut text = Vec::new();
        let result = std::io::stdin()
            .lock()
            .take(BYTES_MAX + 1)
            .read_to_end(&mut text);
        // The receiver is gone if the deadline has passed: then there is nobody to tell.
        drop(sender.send(result.map(|_| text)));
    };
    std::thread::Builder::new()
        .name("start".into())
        .stack_size(128 << 10)
        .spawn(reader)
        .map_err(StartError::Read)?;
    let text = match receiver.recv_timeout(DEADLINE) {
        Ok(text) => text.map_err(StartError::Read)?,
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            return Err(StartError::Late);
        }
    };
    check(&text)
}

/// Checks the document.
pub fn check(text: &[u8]) -> Result<Start, StartError> {
    if text.len() as u64 > BYTES_MAX {
        return Err(StartError::Large);
    }
    let start: Start = serde_json::from_slice(text).map_err(|error| StartError::Parse {
        // The error's own text quotes the document.
        what: match error.classify() {
            serde_json::error::Category::Eof => "it ends too early",
            serde_json::error::Category::Data => "a key is missing or of the wrong kind",
            _ => "it is not JSON",
        },
        line: error.line(),
        column: error.column(),
    })?;
    if start.contract != CONTRACT {
        return Err(StartError::Contract {
            theirs: start.contract,
        });
    }
    if start.settings.concurrency == 0 {
        return Err(StartError::Senseless("concurrency is 0"));
    }
    if start.routes.delay_exchanges.len() != DELAY_LEVELS {
        return Err(StartError::Senseless("the delay ladder has not 24 levels"));
    }
    if let Some(validation) = &start.handing.validate
        && Validator::new(validation).is_err()
    {
        let what = "the schema that bodies are to be held against cannot be used";
        return Err(StartError::Senseless(what));
    }
    Ok(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_place_and_quotes_nothing() {
        let error = check(br#"{"contract": "my-password"}"#)
            .unwrap_err()
            .to_string();
        assert!(!error.contains("my-password"), "{error}");
        assert!(error.contains("line 1"), "{error}");
        assert!(matches!(check(b""), Err(StartError::Parse { .. })));
    }
}
