//! A program that was started: its pipes, its end, its process group.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ExitStatus, Stdio};

use command_fds::{CommandFdExt, FdMapping};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::BufReader;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use towpath_step::{Context, Result, ResultExt, StepError};

use crate::State;
use crate::output::{LOG_LINE_MAX, Line, read_line};
use crate::settings::Config;

/// `EX_DATAERR` of sysexits.h: the input can never be handled.
const EXIT_PERMANENT: i32 = 65;

/// `EX_TEMPFAIL` of sysexits.h: try again later.
const EXIT_RETRY: i32 = 75;

/// How many of its last lines on standard error explain a failure.
const LAST_LINES_MAX: usize = 5;

/// A program and our ends of its pipes.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) child: Child,
    pub(crate) stdin: Option<ChildStdin>,
    pub(crate) stdout: BufReader<ChildStdout>,
    pub(crate) stderr: BufReader<ChildStderr>,
    /// What it said last.
    pub(crate) last_lines: VecDeque<String>,
    group: Group,
}

/// Kills what a program started, when it is no longer wanted.
#[derive(Debug)]
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It is gone already, most of the time.
            kill_process_group(group, Signal::KILL).ok();
        }
    }
}

impl Program {
    /// Starts it, in a process group of its own.
    pub(crate) fn start(command: &[String], variables: &[(&str, String)]) -> Result<Self> {
        let cannot = || format!("cannot start `{}`", command[0]);
        let mut starting = std::process::Command::new(&command[0]);
        starting
            .args(&command[1..])
            .envs(variables.iter().map(|(name, value)| (*name, value)))
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // The agent's pipes are none of its business.
        let nothing = |child_fd| {
            Ok(FdMapping {
                parent_fd: File::open("/dev/null")?.into(),
                child_fd,
            })
        };
        let mappings = [3, 4]
            .into_iter()
            .map(nothing)
            .collect::<std::io::Result<_>>();
        starting
            .fd_mappings(mappings.with_context(cannot)?)
            .map_err(|error| StepError::retry(error).context(cannot()))?;
        let mut child = Command::from(starting)
            .kill_on_drop(true)
            .spawn()
            .with_context(cannot)?;
        let group = Group(
            child
                .id()
                .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)),
        );
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
            return Err(StepError::retry("its pipes are missing").context(cannot()));
        };
        Ok(Self {
            child,
            stdin: Some(stdin),
            stdout: BufReader::new(stdout),
            stderr: BufReader::new(stderr),
            last_lines: VecDeque::new(),
            group,
        })
    }

    /// Kills it and all that it started.
    pub(crate) fn kill(self) {
        drop(self.group);
    }
}

/// Logs each line of a program's standard error with the message, until there are no more.
pub(crate) async fn log_errors(
    stderr: &mut BufReader<ChildStderr>,
    last_lines: &mut VecDeque<String>,
    ctx: &Context<Config, State>,
) -> Result<()> {
    let mut line = Vec::new();
    while read_line(stderr, &mut line, LOG_LINE_MAX).await? != Line::End {
        let text = String::from_utf8_lossy(&line).into_owned();
        ctx.log_warn(&text);
        if last_lines.len() == LAST_LINES_MAX {
            last_lines.pop_front();
        }
        last_lines.push_back(text);
    }
    Ok(())
}

/// What the end of a program means for its message.
pub(crate) fn fate(status: ExitStatus, last_lines: &VecDeque<String>) -> Result<()> {
    let error = match (status.code(), status.signal()) {
        (Some(0), _) => return Ok(()),
        (Some(EXIT_PERMANENT), _) => {
            StepError::permanent("the program said that it can never succeed (exit code 65)")
        }
        (Some(EXIT_RETRY), _) => {
            StepError::retry("the program asked to be tried again (exit code 75)")
        }
        (Some(code), _) => StepError::retry(format!("the program exited with code {code}")),
        (None, Some(signal)) => {
            StepError::retry(format!("the program was killed by signal {signal}"))
        }
        (None, None) => StepError::retry("the program ended, and nobody knows how"),
    };
    Err(error.because(last_lines.iter().cloned()))
}
