//! The workers, as the step sees them: a message goes in, its outputs or a reason come out.
//!
//! # Invariants
//!
//! - `a_filter_without_end_ends`: no message is in a worker's hands longer than the time limit.
//! - `neighbours_are_done`: a message that ends its worker takes no other with it: what the worker
//!   had not answered is done again, each message alone, so that the guilty one is known.
//! - `a_worker_dies_with_the_step`: nothing is left when the step is killed.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use rustix::process::Signal;
use serde_json::value::RawValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::wire::{Hello, OUTPUTS, put, put_count};
use crate::worker::WORKER;

/// How many messages are given to a worker at a time.
const TOGETHER: usize = 64;

/// How many bytes of bodies are given to a worker at a time, unless one alone has more: they are in
/// its memory beside what its filter uses.
const BYTES_TOGETHER: usize = 1 << 20;

/// How many messages wait for a worker.
const WAITING_MAX: usize = 256;

/// How long a worker may take to start and to compile the filter.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// What a pool is to do.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The binary of this step.
    pub program: PathBuf,
    /// The filter.
    pub filter: String,
    /// How long the filter may take for one message.
    pub timeout: Duration,
    /// The most outputs of one message.
    pub outputs_max: u32,
    /// How much memory the filter may use.
    pub memory_mib: u32,
    /// How many workers there are at most; each but the first is started when it has work.
    pub workers: usize,
}

/// The pool cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The filter is wrong.
    #[error("{0}")]
    Filter(String),
    /// A worker cannot be started.
    #[error("cannot start a worker")]
    Worker(#[source] std::io::Error),
}

/// Why a message has no outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The filter fails for this message, now and always.
    Message(String),
    /// The workers are in trouble; the message may have nothing to do with it.
    Worker(String),
}

struct Job {
    about: String,
    body: Box<RawValue>,
    reply: oneshot::Sender<Result<Vec<Box<RawValue>>, Failure>>,
}

/// The workers of a step. They end when it is dropped.
#[derive(Debug)]
pub struct Pool {
    jobs: mpsc::Sender<Job>,
    wants_message: bool,
    _drivers: JoinSet<()>,
}

impl Pool {
    /// Starts a worker, and with it finds out whether the filter is right.
    pub async fn start(settings: Settings) -> Result<Self, StartError> {
        let first = Worker::start(&settings).await?;
        let wants_message = settings.filter.contains("$message");
        let (jobs, waiting) = mpsc::channel(WAITING_MAX);
        let waiting = Arc::new(Mutex::new(waiting));
        let settings = Arc::new(settings);
        let mut drivers = JoinSet::new();
        let mut worker = Some(first);
        for _ in 0..settings.workers.max(1) {
            let driver = Driver {
                settings: Arc::clone(&settings),
                worker: worker.take(),
            };
            drivers.spawn(driver.run(Arc::clone(&waiting)));
        }
        Ok(Self {
            jobs,
            wants_message,
            _drivers: drivers,
        })
    }

    /// Says whether the filter uses `$message`.
    pub fn wants_message(&self) -> bool {
        self.wants_message
    }

    /// Filters a body; `about` is what `$message` is, as JSON, or empty.
    pub async fn run(
        &self,
        about: String,
        body: Box<RawValue>,
    ) -> Result<Vec<Box<RawValue>>, Failure> {
        let (reply, answer) = oneshot::channel();
        let gone = || Failure::Worker("the workers are gone".to_owned());
        self.jobs
            .send(Job { about, body, reply })
            .await
            .map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// Keeps one worker busy, and replaces it when it ends.
struct Driver {
    settings: Arc<Settings>,
    worker: Option<Worker>,
}

/// Why a worker answered no more.
enum Stop {
    /// A worker could not be started.
    NotStarted(StartError),
    /// It took too long, and was killed.
    TooLong,
    /// It ended by itself.
    Ended(Option<ExitStatus>),
}

impl Driver {
    async fn run(mut self, waiting: Arc<Mutex<mpsc::Receiver<Job>>>) {
        loop {
            let mut jobs = Vec::with_capacity(TOGETHER);
            if waiting.lock().await.recv_many(&mut jobs, TOGETHER).await == 0 {
                return;
            }
            let mut rest = jobs.into_iter().peekable();
            while rest.peek().is_some() {
                let mut bytes = 0;
                let batch = std::iter::from_fn(|| {
                    let job = rest.next_if(|job| {
                        bytes == 0 || bytes + job.body.get().len() <= BYTES_TOGETHER
                    })?;
                    bytes += job.body.get().len();
                    Some(job)
                });
                self.work(batch.collect()).await;
            }
        }
    }

    /// Has jobs done together; those that a stop leaves undone, each alone.
    async fn work(&mut self, jobs: Vec<Job>) {
        let together = jobs.len() > 1;
        let Err((left, stop)) = self.attempt(jobs).await else {
            return;
        };
        let hopeless = !together || matches!(stop, Stop::NotStarted(_));
        for job in left {
            if hopeless {
                fail(job, self.explain(&stop));
            } else if let Err((alone, stop)) = self.attempt(vec![job]).await {
                for job in alone {
                    fail(job, self.explain(&stop));
                }
            }
        }
    }

    /// Gives jobs to the worker and passes its answers on. An error says which have none, and why;
    /// the worker is gone then.
    async fn attempt(&mut self, mut jobs: Vec<Job>) -> Result<(), (Vec<Job>, Stop)> {
        // Nobody waits for a message whose time is over.
        jobs.retain(|job| !job.reply.is_closed());
        if jobs.is_empty() {
            return Ok(());
        }
        let worker = match self.worker.take() {
            Some(worker) => Ok(worker),
            None => Worker::start(&self.settings).await,
        };
        let mut worker = match worker {
            Ok(worker) => worker,
            Err(error) => return Err((jobs, Stop::NotStarted(error))),
        };
        let mut frames = Vec::new();
        put_count(&mut frames, jobs.len());
        for job in &jobs {
            put(&mut frames, job.about.as_bytes());
            put(&mut frames, job.body.get().as_bytes());
        }
        let mut left = jobs.into_iter();
        let mut current = left.next();
        let write = async {
            // A worker that is gone is noticed by who reads.
            drop(worker.input.write_all(&frames).await);
            Ok(())
        };
        let read = async {
            while current.is_some() {
                let answer = timeout(self.settings.timeout, answer(&mut worker.output)).await;
                let answer = match answer {
                    Ok(Ok(answer)) => answer,
                    Ok(Err(_)) => return Err(Stop::Ended(None)),
                    Err(_) => return Err(Stop::TooLong),
                };
                if let Some(job) = current.take() {
                    // Whoever waited may have gone away.
                    drop(job.reply.send(answer));
                }
                current = left.next();
            }
            Ok(())
        };
        // Both at once, or two full pipes would wait for each other.
        match tokio::try_join!(write, read) {
            Ok(_) => {
                self.worker = Some(worker);
                Ok(())
            }
            Err(Stop::Ended(_)) => {
                let status = timeout(START_TIMEOUT, worker.process.wait()).await;
                let status = status.ok().and_then(Result::ok);
                Err((
                    current.into_iter().chain(left).collect(),
                    Stop::Ended(status),
                ))
            }
            Err(stop) => {
                // Killed by being dropped, but waited for, so that the next has its memory.
                drop(worker.process.kill().await);
                Err((current.into_iter().chain(left).collect(), stop))
            }
        }
    }

    /// Says what a stop means for the message that was alone with the worker.
    fn explain(&self, stop: &Stop) -> Failure {
        match stop {
            Stop::NotStarted(StartError::Filter(reason)) => Failure::Worker(reason.clone()),
            Stop::NotStarted(StartError::Worker(error)) => {
                Failure::Worker(format!("cannot start a worker: {error}"))
            }
            Stop::TooLong => Failure::Message(format!(
                "the filter did not end within {:?} (`timeout`)",
                self.settings.timeout
            )),
            Stop::Ended(Some(status)) => self.explain_end(*status),
            Stop::Ended(None) => Failure::Worker("a worker closed its output".to_owned()),
        }
    }

    fn explain_end(&self, status: ExitStatus) -> Failure {
        let signal = status.signal();
        let is = |of: Signal| signal == Some(of.as_raw());
        if is(Signal::ABORT) || is(Signal::SEGV) || is(Signal::BUS) {
            Failure::Message(format!(
                "the filter ran out of memory (`memory_mib` is {}) or of stack (it, or the body, is nested too deeply)",
                self.settings.memory_mib
            ))
        } else {
            // Killed from outside, perhaps for the container's memory: another try may do.
            Failure::Worker(format!("a worker ended: {status}"))
        }
    }
}

fn fail(job: Job, failure: Failure) {
    // Whoever waited may have gone away.
    drop(job.reply.send(Err(failure)));
}

/// A worker process that has compiled the filter.
#[derive(Debug)]
struct Worker {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Worker {
    async fn start(settings: &Settings) -> Result<Self, StartError> {
        let mut worker = Self::spawn(settings).map_err(StartError::Worker)?;
        let hello = Hello {
            filter: settings.filter.clone(),
            outputs_max: settings.outputs_max,
            memory_mib: settings.memory_mib,
        };
        let hello = serde_json::to_vec(&hello).expect("text and numbers are JSON");
        let mut frame = Vec::new();
        put(&mut frame, &hello);
        let greeted = async {
            worker.input.write_all(&frame).await?;
            answer(&mut worker.output).await
        };
        match timeout(START_TIMEOUT, greeted).await {
            Ok(Ok(Ok(_))) => Ok(worker),
            Ok(Ok(Err(Failure::Message(reason) | Failure::Worker(reason)))) => {
                Err(StartError::Filter(reason))
            }
            Ok(Err(error)) => {
                let ended = timeout(START_TIMEOUT, worker.process.wait()).await;
                let signalled = matches!(ended, Ok(Ok(status)) if status.signal().is_some());
                Err(if signalled {
                    StartError::Filter("the filter is too large or nested too deeply".to_owned())
                } else {
                    StartError::Worker(error)
                })
            }
            Err(_) => Err(StartError::Filter(format!(
                "the filter cannot be compiled within {START_TIMEOUT:?}"
            ))),
        }
    }

    fn spawn(settings: &Settings) -> std::io::Result<Self> {
        let mut command = std::process::Command::new(&settings.program);
        command.arg(WORKER);
        // The step's own pipes to its agent are none of a worker's business: nothing in their place.
        let nothing = || -> std::io::Result<OwnedFd> { Ok(File::open("/dev/null")?.into()) };
        command
            .fd_mappings(vec![
                FdMapping {
                    parent_fd: nothing()?,
                    child_fd: 3,
                },
                FdMapping {
                    parent_fd: nothing()?,
                    child_fd: 4,
                },
            ])
            .map_err(|error| std::io::Error::other(error.to_string()))?;
        let mut process = Command::from(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .env_clear()
            .kill_on_drop(true)
            .spawn()?;
        let (Some(input), Some(output)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(std::io::Error::other("the worker has no pipes"));
        };
        let output = BufReader::with_capacity(256 << 10, output);
        Ok(Self {
            process,
            input,
            output,
        })
    }
}

/// Reads one answer.
async fn answer(
    output: &mut BufReader<ChildStdout>,
) -> std::io::Result<Result<Vec<Box<RawValue>>, Failure>> {
    let kind = output.read_u8().await?;
    let count = output.read_u32_le().await?;
    let mut parts = Vec::with_capacity(count.min(1024) as usize);
    for _ in 0..count {
        let length = output.read_u32_le().await?;
        let mut part = vec![0; length as usize];
        output.read_exact(&mut part).await?;
        parts.push(String::from_utf8(part).map_err(std::io::Error::other)?);
    }
    if kind == OUTPUTS {
        let outputs = parts
            .into_iter()
            .map(RawValue::from_string)
            .collect::<Result<_, _>>();
        return Ok(outputs.map_err(|error| {
            Failure::Message(format!(
                "the filter gives something that is not JSON: {error}"
            ))
        }));
    }
    Ok(Err(Failure::Message(parts.pop().unwrap_or_default())))
}
