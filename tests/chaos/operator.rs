//! An operator who gives one command after the other, and each again until it works.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use towpath_tests::Instance;

/// How long a command is given again before the operator gives it up.
const PATIENCE: Duration = Duration::from_secs(180);

/// How many commands may wait.
const WAITING_MAX: usize = 10_000;

/// An operator, on a thread of their own.
pub(crate) struct Operator {
    commands: SyncSender<Vec<String>>,
    thread: JoinHandle<Operations>,
}

/// What came of the commands.
#[derive(Debug, Default)]
pub(crate) struct Operations {
    /// How many were done.
    pub(crate) done: usize,
    /// How many answers were a refusal or no answer, before it worked.
    pub(crate) repeated: usize,
    /// What never worked, with the last answer.
    pub(crate) given_up: Vec<String>,
}

impl Operator {
    /// Begins.
    pub(crate) fn start(instance: Arc<Instance>) -> Self {
        let (commands, waiting) = sync_channel::<Vec<String>>(WAITING_MAX);
        let thread = std::thread::spawn(move || {
            let mut operations = Operations::default();
            for arguments in waiting {
                carry_out(&instance, &arguments, &mut operations);
            }
            operations
        });
        Self { commands, thread }
    }

    /// Gives a command, after those before it.
    pub(crate) fn give(&self, arguments: &[&str]) -> Result<(), String> {
        let arguments = arguments.iter().map(|&text| text.to_owned()).collect();
        self.commands
            .try_send(arguments)
            .map_err(|_| "too many commands wait".to_owned())
    }

    /// Waits until everything is done.
    pub(crate) fn finish(self) -> Operations {
        drop(self.commands);
        self.thread.join().unwrap_or_default()
    }
}

fn carry_out(instance: &Instance, arguments: &[String], operations: &mut Operations) {
    let began = Instant::now();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    loop {
        let said = instance.run(&arguments);
        if said.code == 0 {
            operations.done += 1;
            return;
        }
        operations.repeated += 1;
        if began.elapsed() > PATIENCE {
            operations.given_up.push(format!(
                "towpath {}: {} {}",
                arguments.join(" "),
                said.code,
                said.err.trim()
            ));
            return;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}
