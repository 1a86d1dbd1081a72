//! The worker process: reads messages, filters them one after the other, answers in order.
//!
//! The main thread only reads; so when the step goes away, by whatever way, the end of standard
//! input ends the worker too, even in the middle of a filter that has none.

use std::io::{self, BufReader, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, setrlimit};

use crate::program::Program;
use crate::wire::{FAILED, Hello, OUTPUTS, put, take, take_count};

/// The argument that makes the binary a worker.
pub const WORKER: &str = "--filter-worker";

/// The stack of the filter: recursion is how jq loops.
const STACK_BYTES: usize = 64 << 20;

/// What a worker needs beside the memory that its filter may use.
const OWN_BYTES: u64 = 32 << 20;

/// How many batches wait between the reader and the filter: one, while another is worked on.
const WAITING_MAX: usize = 1;

/// Answers are written when there are this many bytes of them…
const ANSWER_BYTES: usize = 64 << 10;

/// …or when the oldest has waited this long, or when the batch is done.
const ANSWER_WAIT: Duration = Duration::from_millis(2);

/// A message: what is known of it, and its body.
type Job = (Vec<u8>, Vec<u8>);

/// Serves the step that started this process, until it closes standard input.
pub fn serve() -> ExitCode {
    let mut input = BufReader::with_capacity(256 << 10, io::stdin().lock());
    let Ok(Some(hello)) = take(&mut input) else {
        return ExitCode::FAILURE;
    };
    let Ok(hello) = serde_json::from_slice::<Hello>(&hello) else {
        return ExitCode::FAILURE;
    };
    if bound(hello.memory_mib).is_err() {
        return ExitCode::FAILURE;
    }
    // A panic is an answer, not a report.
    std::panic::set_hook(Box::new(|_| {}));
    let (batches, waiting) = sync_channel(WAITING_MAX);
    let filtering = thread::Builder::new()
        .name("filter".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || filter(&hello, &waiting));
    match filtering {
        Ok(_) => read(&mut input, &batches),
        Err(_) => return ExitCode::FAILURE,
    }
    // The step is gone, and nobody waits for what is being filtered.
    ExitCode::SUCCESS
}

/// Limits what this process may take.
fn bound(memory_mib: u32) -> rustix::io::Result<()> {
    let bytes = (u64::from(memory_mib) << 20) + STACK_BYTES as u64 + OWN_BYTES;
    let limit = |bytes| Rlimit {
        current: Some(bytes),
        maximum: Some(bytes),
    };
    setrlimit(Resource::As, limit(bytes))?;
    setrlimit(Resource::Core, limit(0))
}

/// Reads batches of messages: their number, then each.
fn read(input: &mut impl io::Read, batches: &SyncSender<Vec<Job>>) {
    while let Ok(Some(count)) = take_count(input) {
        let mut jobs = Vec::with_capacity(count.min(1024) as usize);
        for _ in 0..count {
            let (Ok(Some(about)), Ok(Some(body))) = (take(input), take(input)) else {
                return;
            };
            jobs.push((about, body));
        }
        if batches.send(jobs).is_err() {
            return;
        }
    }
}

fn filter(hello: &Hello, batches: &Receiver<Vec<Job>>) {
    let mut answers = Answers {
        bytes: Vec::new(),
        since: Instant::now(),
    };
    let program = match Program::compile(&hello.filter, hello.outputs_max as usize) {
        Ok(program) => program,
        Err(reason) => {
            answers.failed(&reason);
            answers.flush();
            return;
        }
    };
    // An answer without outputs: ready.
    answers.outputs(&[], 0);
    answers.flush();
    let mut outputs = Vec::new();
    while let Ok(batch) = batches.recv() {
        for (about, body) in batch {
            answers.flush_if_old();
            outputs.clear();
            let mut count = 0;
            let run = AssertUnwindSafe(|| {
                program.run(&about, &body, |output| {
                    put(&mut outputs, output);
                    count += 1;
                })
            });
            match catch_unwind(run) {
                Ok(Ok(())) => answers.outputs(&outputs, count),
                Ok(Err(reason)) => answers.failed(&reason),
                Err(panic) => answers.failed(&panicked(panic.as_ref())),
            }
        }
        // The step sends the next batch when it has all answers to this one.
        answers.flush();
    }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("the filter panicked: {}", text.unwrap_or("no reason given"))
}

/// Answers that wait to be written together.
struct Answers {
    bytes: Vec<u8>,
    since: Instant,
}

impl Answers {
    fn outputs(&mut self, outputs: &[u8], count: u32) {
        self.begin();
        self.bytes.push(OUTPUTS);
        self.bytes.extend_from_slice(&count.to_le_bytes());
        self.bytes.extend_from_slice(outputs);
    }

    fn failed(&mut self, reason: &str) {
        self.begin();
        self.bytes.push(FAILED);
        self.bytes.extend_from_slice(&1_u32.to_le_bytes());
        put(&mut self.bytes, reason.as_bytes());
    }

    fn begin(&mut self) {
        if self.bytes.is_empty() {
            self.since = Instant::now();
        }
    }

    fn flush_if_old(&mut self) {
        if self.bytes.len() >= ANSWER_BYTES
            || (!self.bytes.is_empty() && self.since.elapsed() >= ANSWER_WAIT)
        {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let mut output = io::stdout().lock();
        if output
            .write_all(&self.bytes)
            .and_then(|()| output.flush())
            .is_err()
        {
            std::process::exit(1);
        }
        self.bytes.clear();
    }
}
