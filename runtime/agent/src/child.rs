//! The step process: started through the shim, with frames at descriptors 3 and 4.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use command_fds::{CommandFdExt, FdMapping};
use rustix::fs::{Mode as FileMode, fchmod};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::net::unix::pipe;
use towpath_protocol::frame::{STEP_READS_FD, STEP_WRITES_FD};
use towpath_protocol::start::Mode;

use crate::args::Args;

/// How to start the step.
pub struct Spawner {
    agent: PathBuf,
    arguments: Vec<OsString>,
    env: BTreeMap<String, String>,
}

/// A step process, and our ends of its pipes.
pub struct Child {
    /// Its process id.
    pub pid: i32,
    /// Frames to it.
    pub input: pipe::Sender,
    /// Frames from it.
    pub output: pipe::Receiver,
    /// Its standard output.
    pub stdout: pipe::Receiver,
    /// Its standard error.
    pub stderr: pipe::Receiver,
}

impl Spawner {
    /// Prepares; `agent` is the agent's own file. In lines mode the program is run by the
    /// translator that lies beside it.
    ///
    /// The process gets the container's environment and `env` on top; the agent has nothing in its
    /// own that the container has not.
    pub fn new(agent: PathBuf, args: &Args, mode: Mode, env: BTreeMap<String, String>) -> Self {
        let mut args = args.clone();
        if mode == Mode::Lines {
            let lines = agent.with_file_name("lines");
            args.program
                .splice(0..0, [lines.into_os_string(), "--".into()]);
        }
        let mut arguments = vec!["shim".into()];
        arguments.extend(args.to_vec());
        Self {
            agent,
            arguments,
            env,
        }
    }

    /// Starts a process.
    pub fn spawn(&self) -> io::Result<Child> {
        let (step_reads, input) = io::pipe()?;
        let (output, step_writes) = io::pipe()?;
        let (stdout, step_stdout) = io::pipe()?;
        let (stderr, step_stderr) = io::pipe()?;
        // A step of another user may open them by path: /proc/self/fd/3, /dev/stdout.
        fchmod(step_reads.as_fd(), FileMode::from_raw_mode(0o444))?;
        for pipe in [&step_writes, &step_stdout, &step_stderr] {
            fchmod(pipe.as_fd(), FileMode::from_raw_mode(0o222))?;
        }
        let mut command = Command::new(&self.agent);
        command
            .args(&self.arguments)
            .envs(&self.env)
            .stdin(Stdio::null())
            .stdout(step_stdout)
            .stderr(step_stderr)
            .process_group(0)
            .fd_mappings(vec![
                FdMapping {
                    parent_fd: step_reads.into(),
                    child_fd: STEP_READS_FD,
                },
                FdMapping {
                    parent_fd: step_writes.into(),
                    child_fd: STEP_WRITES_FD,
                },
            ])
            .map_err(io::Error::other)?;
        let child = command.spawn()?;
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        // The reaper waits for it; the handle has nothing to clean up.
        drop(child);
        Ok(Child {
            pid,
            input: writer(input)?,
            output: reader(output)?,
            stdout: reader(stdout)?,
            stderr: reader(stderr)?,
        })
    }
}

fn reader(pipe: PipeReader) -> io::Result<pipe::Receiver> {
    pipe::Receiver::from_owned_fd(OwnedFd::from(pipe))
}

fn writer(pipe: PipeWriter) -> io::Result<pipe::Sender> {
    pipe::Sender::from_owned_fd(OwnedFd::from(pipe))
}

/// Kills a process and what it started in its group.
pub fn kill(pid: i32) {
    kill_group(pid);
    if let Some(pid) = Pid::from_raw(pid) {
        // Gone already is as good.
        kill_process(pid, Signal::KILL).ok();
    }
}

/// Kills what a process started in its group.
pub fn kill_group(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        kill_process_group(pid, Signal::KILL).ok();
    }
}
