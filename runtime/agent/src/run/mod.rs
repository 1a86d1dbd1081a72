//! The loop: the only place where broker, step process, signals and time meet.
//!
//! One thread, one task; what to do is decided in [`crate::core`].

mod judging;
mod keying;
mod process;
mod reporter;

use std::process::ExitCode;
use std::time::Duration;

use rand::Rng;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::JoinSet;
use towpath_protocol::log::LogSource;
use towpath_protocol::start::Start;

use crate::args::Args;
use crate::broker::rabbit::{self, Rabbit};
use crate::broker::{Addressed, Event};
use crate::child::Spawner;
use crate::clock::Now;
use crate::core::{self, Core, KeyQuestion, Question};
use crate::limits::Limits;
use crate::log::Logger;
use crate::prefetch::prefetch;
use crate::reaper::{Ended, Reaper};
use crate::redact::Redact;
use judging::Judged;
use keying::Keyed;
use process::{Process, Source};
use reporter::Reporter;

/// The start document is unusable, or this machine is.
const UNUSABLE: u8 = 2;

/// The drain deadline passed.
const LATE: u8 = 3;

/// How many events or commands may wait.
const CHANNEL: usize = 256;

/// How long the last acknowledgements and the last report may take.
const FAREWELL: Duration = Duration::from_secs(6);

/// How many events of one kind are handled before the others get their turn.
const TURN: usize = 64;

/// Runs the agent until it is told to leave.
pub fn run(mut start: Start, args: &Args) -> ExitCode {
    start.redact.extend(password(&start.broker_url));
    let Ok((logger, writer)) = Logger::start(&start.identity, Redact::new(&start.redact)) else {
        return ExitCode::from(UNUSABLE);
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(serve(start, args, logger.clone())),
        Err(error) => Err(error),
    };
    let code = result.unwrap_or_else(|error| {
        logger.agent("error", None, &format!("the agent cannot run: {error}"));
        ExitCode::from(UNUSABLE)
    });
    drop(logger);
    writer.join();
    code
}

/// Returns the password in a URL.
fn password(url: &str) -> Option<String> {
    let (_, rest) = url.split_once("://")?;
    let (user, _) = rest.rsplit_once('@')?;
    let (_, password) = user.split_once(':')?;
    (!password.is_empty()).then(|| password.to_owned())
}

/// The queues of the step's partitions, if it keeps an order.
fn partitions(start: &Start) -> Vec<String> {
    let order = start.routes.order.iter();
    let partitions = order.flat_map(|order| &order.partitions);
    partitions
        .map(|partition| partition.queue.clone())
        .collect()
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    pause: Signal,
    resume: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            pause: signal(SignalKind::user_defined1())?,
            resume: signal(SignalKind::user_defined2())?,
        })
    }
}

async fn serve(start: Start, args: &Args, logger: Logger) -> std::io::Result<ExitCode> {
    // First, so that no signal is lost.
    let signals = Signals::listen()?;
    let (reaper, ended) = Reaper::start()?;
    let agent = std::env::current_exe()?;
    let identity = &start.identity;
    let rabbit = Rabbit {
        url: start.broker_url.clone(),
        name: format!(
            "{}.{}.{}.{}",
            identity.instance, identity.flow, identity.step, identity.replica
        ),
        queue: start.routes.queue.clone(),
        partitions: partitions(&start),
        replica: identity.replica,
        prefetch: prefetch(&start),
    };
    let (command_sender, command_receiver) = mpsc::channel(CHANNEL);
    let (event_sender, event_receiver) = mpsc::channel(CHANNEL);
    let mut tasks = JoinSet::new();
    tasks.spawn(rabbit::serve(rabbit, command_receiver, event_sender));
    let (key_questions, keys_asked) = mpsc::channel(CHANNEL);
    let (keyed, keys) = mpsc::channel(CHANNEL);
    if let Some(order) = &start.routes.order {
        let by = order.by.as_str().into();
        tasks.spawn(keying::serve(agent.clone(), by, keys_asked, keyed));
    }
    // One batch of questions is under way at a time.
    let (questions, asked) = mpsc::channel(1);
    let (judged, verdicts) = mpsc::channel(CHANNEL);
    let conditions = core::conditions(&start.routes);
    tasks.spawn(judging::serve(agent.clone(), conditions, asked, judged));
    let spawner = Spawner::new(agent, args, start.settings.mode, start.env.clone());
    let memory_bytes = start.settings.memory_bytes;
    let limits = Limits::default();
    let core = Core::new(
        start,
        limits,
        logger.clone(),
        rand::rng().random(),
        Now::read(),
    );
    let agent = Agent {
        core,
        logger,
        commands: command_sender,
        events: event_receiver,
        key_questions,
        keys,
        questions,
        verdicts,
        ended,
        signals,
        reaper,
        spawner,
        process: Process::default(),
        reporter: Reporter::default(),
        memory_bytes,
    };
    // On the heap: the agent is large, and lives as long as the process.
    Ok(Box::pin(agent.run()).await)
}

struct Agent {
    core: Core,
    logger: Logger,
    commands: mpsc::Sender<Addressed>,
    events: mpsc::Receiver<Event>,
    key_questions: mpsc::Sender<KeyQuestion>,
    keys: mpsc::Receiver<Keyed>,
    questions: mpsc::Sender<Vec<Question>>,
    verdicts: mpsc::Receiver<Judged>,
    ended: mpsc::Receiver<Ended>,
    signals: Signals,
    reaper: Reaper,
    spawner: Spawner,
    process: Process,
    reporter: Reporter,
    memory_bytes: u64,
}

/// What happened.
enum Happened {
    Broker(Option<Event>),
    Frames(std::io::Result<usize>),
    Written(std::io::Result<usize>),
    Stdout(std::io::Result<usize>),
    Stderr(std::io::Result<usize>),
    Ended(Ended),
    Keyed(Keyed),
    Judged(Judged),
    Drain,
    Pause,
    Resume,
    Time,
}

impl Agent {
    async fn run(mut self) -> ExitCode {
        loop {
            let now = Now::read();
            self.core.advance(now);
            self.send_commands();
            self.ask_for_keys();
            self.ask_questions();
            self.tend_process(now);
            self.reporter.look(&mut self.core, self.process.pid(), now);
            if self.core.has_drained() {
                return self.leave(ExitCode::SUCCESS).await;
            }
            if self.core.drain_is_late(now) {
                self.logger.agent("error", None, "the drain deadline passed: the step is killed; what it had goes back to the queue");
                self.process.kill();
                return self.leave(ExitCode::from(LATE)).await;
            }
            let happened = self.wait(now).await;
            self.note(happened);
        }
    }

    /// Waits for whatever comes first. Every branch is cancel-safe: channels, signals, timers, and
    /// single reads and writes of pipes lose nothing when dropped.
    async fn wait(&mut self, now: Now) -> Happened {
        let deadline = [
            self.core.next_deadline(now),
            self.reporter.next(),
            self.process.next_deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(now.instant + Duration::from_secs(60));
        let has_command = self.core.has_command();
        let reads_step = self.core.reads_step();
        let to_step = self.core.to_step();
        tokio::select! {
            event = self.events.recv() => Happened::Broker(event),
            _ = self.commands.reserve(), if has_command => Happened::Time,
            read = process::fill(&mut self.process.frames), if reads_step => Happened::Frames(read),
            written = process::write(&mut self.process.input, to_step), if !to_step.is_empty() => Happened::Written(written),
            read = process::fill(&mut self.process.stdout) => Happened::Stdout(read),
            read = process::fill(&mut self.process.stderr) => Happened::Stderr(read),
            Some(ended) = self.ended.recv() => Happened::Ended(ended),
            Some(keyed) = self.keys.recv() => Happened::Keyed(keyed),
            Some(judged) = self.verdicts.recv() => Happened::Judged(judged),
            _ = self.signals.terminate.recv() => Happened::Drain,
            _ = self.signals.interrupt.recv() => Happened::Drain,
            _ = self.signals.pause.recv() => Happened::Pause,
            _ = self.signals.resume.recv() => Happened::Resume,
            () = tokio::time::sleep_until(deadline.into()) => Happened::Time,
        }
    }

    fn note(&mut self, happened: Happened) {
        let now = Now::read();
        match happened {
            Happened::Broker(Some(event)) => {
                self.core.on_broker(event, now);
                for _ in 0..TURN {
                    let Ok(event) = self.events.try_recv() else {
                        break;
                    };
                    self.core.on_broker(event, now);
                }
            }
            // The task that serves the broker ends only when this one does.
            Happened::Broker(None) | Happened::Time => {}
            Happened::Frames(Ok(read)) if read > 0 => self.process.note_frames(&mut self.core, now),
            Happened::Frames(_) => {
                self.process.frames = None;
                self.process.pipe_closed(now);
            }
            Happened::Written(Ok(written)) => drop(self.core.to_step().drain(..written)),
            Happened::Written(Err(_)) => {
                self.core.to_step().clear();
                self.process.input = None;
                self.process.pipe_closed(now);
            }
            Happened::Stdout(read) => note_log(
                &mut self.process.stdout,
                LogSource::Stdout,
                &read,
                &mut self.core,
            ),
            Happened::Stderr(read) => note_log(
                &mut self.process.stderr,
                LogSource::Stderr,
                &read,
                &mut self.core,
            ),
            Happened::Ended(ended) => {
                self.process
                    .note_end(ended, &mut self.core, self.memory_bytes, now);
            }
            Happened::Keyed(keyed) => {
                self.note_key(keyed);
                for _ in 0..TURN {
                    let Ok(keyed) = self.keys.try_recv() else {
                        break;
                    };
                    self.note_key(keyed);
                }
            }
            Happened::Judged(Judged::Verdicts(verdicts)) => self.core.on_verdicts(verdicts, now),
            Happened::Judged(Judged::Trouble(why)) => self.core.on_no_verdicts(&why),
            Happened::Drain => self.core.drain(now),
            Happened::Pause => self.core.pause(),
            Happened::Resume => self.core.resume(),
        }
    }

    fn send_commands(&mut self) {
        while self.core.has_command() {
            match self.commands.try_reserve() {
                Ok(permit) => {
                    let command = self.core.take_command().expect("there is one");
                    permit.send(command);
                }
                Err(TrySendError::Full(()) | TrySendError::Closed(())) => return,
            }
        }
    }

    /// Has the keys of messages computed. What does not fit now is asked after the next answer.
    fn ask_for_keys(&mut self) {
        while let Ok(permit) = self.key_questions.try_reserve()
            && let Some(question) = self.core.take_key_question()
        {
            permit.send(question);
        }
    }

    fn note_key(&mut self, keyed: Keyed) {
        match keyed {
            Keyed::Key(question, key) => self.core.on_key(question, key),
            Keyed::Trouble(why) => self.core.on_no_keys(&why),
        }
    }

    /// Has conditions evaluated.
    fn ask_questions(&mut self) {
        if let Ok(permit) = self.questions.try_reserve()
            && let Some(questions) = self.core.take_questions()
        {
            permit.send(questions);
        }
    }

    /// Starts or kills the step process, as is wanted.
    fn tend_process(&mut self, now: Now) {
        if self.process.is_closed_too_long(now) {
            self.core.on_step_closed_its_pipe();
        }
        if self.core.wants_kill() {
            self.process.kill();
        }
        if self.core.wants_start(now) {
            match self.spawner.spawn() {
                Ok(child) => {
                    self.reaper.child_started();
                    self.process = Process::new(child);
                    self.core.on_step_start(now);
                }
                Err(error) => self
                    .core
                    .on_step_start_failed(&format!("cannot be started: {error}"), now),
            }
        }
    }

    /// Sends the last report and the last acknowledgements, and waits until they are gone.
    async fn leave(mut self, code: ExitCode) -> ExitCode {
        let now = Now::read();
        self.reporter.last(&mut self.core, self.process.pid(), now);
        let is_up = self.core.is_up();
        self.core.close();
        let farewell = async {
            while let Some(command) = self.core.take_command() {
                if self.commands.send(command).await.is_err() {
                    return;
                }
            }
            while let Some(event) = self.events.recv().await {
                if matches!(event, Event::Down { .. }) {
                    return;
                }
            }
        };
        if is_up && tokio::time::timeout(FAREWELL, farewell).await.is_err() {
            self.logger.agent(
                "warn",
                None,
                "the broker did not take the last acknowledgements in time",
            );
        }
        self.logger.agent("info", None, "left");
        code
    }
}

fn note_log(
    source: &mut Option<Source>,
    from: LogSource,
    read: &std::io::Result<usize>,
    core: &mut Core,
) {
    let is_open = matches!(read, Ok(read) if *read > 0);
    if let Some(source) = source {
        process::log_lines(source, from, !is_open, core);
    }
    if !is_open {
        *source = None;
    }
}
