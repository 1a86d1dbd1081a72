//! The engine that everything runs on, if it is this run's own: it is ended and started again.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::command::{docker, run};

/// How long an engine may take to answer, after its start.
const ANSWERS_WITHIN: Duration = Duration::from_secs(90);

/// An engine of this run's own. Its program takes `start`, `stop` or `kill`, and returns when it is
/// done.
pub(crate) struct Engine {
    program: PathBuf,
}

impl Engine {
    pub(crate) fn new(program: PathBuf) -> Self {
        Self { program }
    }

    /// Starts it, unless it runs, and waits until it answers.
    pub(crate) fn start(&self) -> Result<(), String> {
        self.say("start")?;
        let began = Instant::now();
        loop {
            match docker(&["version", "--format", "{{.Server.Version}}"]) {
                Ok(_) => return Ok(()),
                Err(error) if began.elapsed() > ANSWERS_WITHIN => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(300)),
            }
        }
    }

    /// Stops it as a service manager does.
    pub(crate) fn stop(&self) -> Result<(), String> {
        self.say("stop")
    }

    /// Kills it with signal 9.
    pub(crate) fn kill(&self) -> Result<(), String> {
        self.say("kill")
    }

    fn say(&self, what: &str) -> Result<(), String> {
        run(&self.program.to_string_lossy(), &[what]).map(drop)
    }
}
