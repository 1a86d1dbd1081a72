//! `lines` through real pipes: what only shows when there is an agent that cancels and leaves.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use serde_json::{Value, json};

/// How long anything may take.
const DEADLINE: Duration = Duration::from_secs(30);

struct Played {
    child: Child,
    /// Dropped with it: ends the watch.
    _watch: Sender<()>,
    to_step: PipeWriter,
    from_step: BufReader<PipeReader>,
}

impl Played {
    fn start(arguments: &[&str], config: &Value) -> Self {
        let (step_reads, to_step) = std::io::pipe().unwrap();
        let (from_step, step_writes) = std::io::pipe().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_towpath-lines"))
            .args(arguments)
            .stdin(Stdio::null())
            .fd_mappings(vec![
                FdMapping {
                    parent_fd: step_reads.into(),
                    child_fd: 3,
                },
                FdMapping {
                    parent_fd: step_writes.into(),
                    child_fd: 4,
                },
            ])
            .unwrap()
            .spawn()
            .unwrap();
        let watch = watch(child.id());
        let mut played = Self {
            child,
            _watch: watch,
            to_step,
            from_step: BufReader::new(from_step),
        };
        played.send(&json!({"hello": {
            "contract": 1, "flow": "f", "step": "s", "replica": 1, "concurrency": 4,
            "timeout_ms": 0, "body_bytes_max": 1 << 20, "config": config,
        }}));
        played
    }

    fn send(&mut self, frame: &Value) {
        writeln!(self.to_step, "{frame}").unwrap();
    }

    fn message(&mut self, number: u32, body: &Value) {
        self.send(&json!({"message": {"id": id(number), "lineage": {}, "body": body}}));
    }

    fn frame(&mut self) -> Value {
        let mut line = String::new();
        self.from_step.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("not a frame: `{line}`"))
    }
}

impl Drop for Played {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Kills a process that is still watched after the deadline, so that a test that waits for it fails.
fn watch(pid: u32) -> Sender<()> {
    let (watch, watched) = mpsc::channel();
    std::thread::spawn(move || {
        if watched.recv_timeout(DEADLINE) == Err(RecvTimeoutError::Timeout) {
            drop(Command::new("kill").args(["-9", &pid.to_string()]).status());
        }
    });
    watch
}

fn id(number: u32) -> String {
    format!("{number:032x}")
}

/// Waits until a process is gone, or only waits for its parent.
fn gone(pid: u64) {
    let start = Instant::now();
    loop {
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
            return;
        };
        if stat
            .rsplit(')')
            .next()
            .unwrap()
            .trim_start()
            .starts_with('Z')
        {
            return;
        }
        assert!(start.elapsed() < DEADLINE, "process {pid} is still there");
        std::thread::yield_now();
    }
}

#[test]
fn a_program_that_is_cancelled_goes_with_all_it_started() {
    let script = "sleep 600 & echo $!; echo $$; wait";
    let mut step = Played::start(&["--", "sh", "-c", script], &json!({}));
    assert_eq!(step.frame()["ready"]["contract"], 1);
    step.message(1, &json!(1));
    let started: Vec<_> = (0..2)
        .map(|_| step.frame()["emit"]["body"].as_u64().unwrap())
        .collect();
    for pid in &started {
        assert!(Path::new(&format!("/proc/{pid}")).exists());
    }
    step.send(&json!({"cancel": {"id": id(1), "reason": "timeout"}}));
    assert_eq!(step.frame()["failed"]["id"], id(1));
    started.into_iter().for_each(gone);
}

#[test]
fn a_program_that_stays_is_started_again_after_a_cancel() {
    let script = "while read line; do [ $line = 1 ] && sleep 600; echo \"[$$, $line]\"; done";
    let mut step = Played::start(&["--", "sh", "-c", script], &json!({"per": "process"}));
    step.frame();
    step.message(0, &json!(0));
    let first = step.frame()["emit"]["body"][0].as_u64().unwrap();
    step.frame();
    step.message(1, &json!(1));
    step.send(&json!({"cancel": {"id": id(1), "reason": "timeout"}}));
    assert_eq!(step.frame()["failed"]["id"], id(1));
    gone(first);
    step.message(2, &json!(2));
    let answer = step.frame()["emit"]["body"].clone();
    assert_eq!(
        answer[1], 2,
        "its own answer, not that of the cancelled one"
    );
    assert_ne!(answer[0], first);
}

#[test]
fn it_leaves_with_its_program_when_told_to() {
    let script = "while read line; do echo $$; done";
    let mut step = Played::start(&["--per", "process", "--", "sh", "-c", script], &json!({}));
    step.frame();
    step.message(1, &json!(1));
    let pid = step.frame()["emit"]["body"].as_u64().unwrap();
    step.send(&json!({"drain": {}}));
    let mut rest = String::new();
    step.from_step.read_to_string(&mut rest).unwrap();
    assert_eq!(step.child.wait().unwrap().code(), Some(0));
    gone(pid);
}

#[test]
fn a_program_that_is_not_there_is_refused() {
    let mut step = Played::start(&["--", "no-such-program"], &json!({}));
    assert_eq!(
        step.frame()["refused"]["reason"],
        "there is no program `no-such-program` in the image"
    );
    let mut step = Played::start(&["--", "cat"], &json!({"pre": 1}));
    let frame = step.frame();
    assert!(
        frame["refused"]["reason"]
            .as_str()
            .unwrap()
            .contains("unknown field `pre`")
    );
}
