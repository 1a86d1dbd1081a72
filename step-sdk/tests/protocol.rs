//! The step protocol through real pipes: a step process, and this test in the place of its agent.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use serde_json::{Value, json};
use towpath_protocol::frame::{FromStep, ToStep};

/// How long anything may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// A step process, and the other ends of its pipes.
struct Played {
    child: Child,
    /// Dropped with it: ends the watch.
    _watch: Sender<()>,
    to_step: Option<std::io::PipeWriter>,
    from_step: BufReader<std::io::PipeReader>,
}

fn example(name: &str) -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.push("examples");
    path.push(name);
    assert!(
        path.exists(),
        "{} is missing: run `cargo test -p towpath-step`",
        path.display()
    );
    path
}

impl Played {
    fn start(name: &str, config: &Value) -> Self {
        Self::start_with(name, config, 1)
    }

    fn start_with(name: &str, config: &Value, contract: u32) -> Self {
        let (step_reads, to_step) = std::io::pipe().unwrap();
        let (from_step, step_writes) = std::io::pipe().unwrap();
        let child = Command::new(example(name))
            .stdin(Stdio::null())
            .env_remove("RUST_BACKTRACE")
            .env_remove("RUST_LOG")
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
        let from_step = BufReader::new(from_step);
        let watch = watch(child.id());
        let mut played = Self {
            child,
            _watch: watch,
            to_step: Some(to_step),
            from_step,
        };
        played.send(&json!({"hello": {
            "contract": contract, "flow": "f", "step": "s", "replica": 1, "concurrency": 16,
            "timeout_ms": 0, "body_bytes_max": 1 << 20, "config": config,
        }}));
        played
    }

    /// Starts a step and reads that it is ready.
    fn ready(name: &str, config: &Value) -> Self {
        let mut played = Self::start(name, config);
        assert_eq!(played.frame()["ready"]["contract"], 1);
        played
    }

    fn send(&mut self, frame: &Value) {
        writeln!(self.to_step.as_ref().unwrap(), "{frame}").unwrap();
    }

    fn message(&mut self, number: u32, body: &Value) {
        self.send(&json!({"message": {"id": id(number), "lineage": {}, "body": body}}));
    }

    fn frame(&mut self) -> Value {
        let mut line = String::new();
        self.from_step.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("not a frame: `{line}`"))
    }

    /// Reads frames until one says what became of a message.
    fn settled(&mut self) -> Value {
        loop {
            let frame = self.frame();
            if frame.get("done").or(frame.get("failed")).is_some() {
                return frame;
            }
        }
    }

    fn exited(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < DEADLINE, "the step does not leave");
            std::thread::yield_now();
        }
    }

    fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    fn drain(mut self) -> String {
        self.send(&json!({"drain": {}}));
        let mut rest = String::new();
        self.from_step.read_to_string(&mut rest).unwrap();
        assert_eq!(self.exited().code(), Some(0));
        rest
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

#[test]
fn an_output_comes_before_its_done() {
    let mut step = Played::ready("action", &json!({"percent": 19}));
    step.message(1, &json!({"id": 7, "cents": 100}));
    assert_eq!(
        step.frame(),
        json!({"emit": {"id": id(1), "body": {"id": 7, "cents": 119}}})
    );
    assert_eq!(step.frame(), json!({"done": {"id": id(1)}}));
    assert_eq!(step.drain(), "");
}

#[test]
fn each_failure_has_its_fate() {
    let mut step = Played::ready("action", &json!({"percent": 19}));
    step.message(1, &json!({"id": 7, "cents": 0}));
    let failed = &step.frame()["failed"];
    assert_eq!(failed["fate"], "rebound");
    assert_eq!(failed["delay_ms"], 30_000);
    step.message(2, &json!({"id": 7}));
    let failed = &step.frame()["failed"];
    assert_eq!(failed["fate"], "permanent");
    assert_eq!(
        failed["reason"],
        "cannot read the body: missing field `cents`"
    );
}

#[test]
fn a_configuration_that_cannot_work_is_refused() {
    for (config, reason) in [
        (
            json!({"refuse": "x"}),
            "cannot read `refuse` of `with`: invalid type: string \"x\", expected a boolean",
        ),
        (json!({"refuse": true}), "told to refuse"),
        (
            json!(7),
            "cannot read `with`: invalid type: integer `7`, expected struct Config",
        ),
    ] {
        let mut step = Played::start("misbehaving", &config);
        assert_eq!(step.frame(), json!({"refused": {"reason": reason}}));
        assert_eq!(step.exited().code(), Some(2));
    }
}

#[test]
fn another_version_is_refused_naming_both() {
    let mut step = Played::start_with("misbehaving", &json!({}), 9);
    assert_eq!(
        step.frame()["refused"]["reason"],
        "the agent speaks version 9 of the step protocol, and this step version 1"
    );
    assert_eq!(step.exited().code(), Some(2));
}

#[test]
fn a_panic_fails_its_message_and_the_process_stays() {
    let mut step = Played::ready("misbehaving", &json!({}));
    step.message(1, &json!({"panic": "a hole"}));
    let frame = step.frame();
    let failed = &frame["failed"];
    assert_eq!(failed["fate"], "retry");
    let reason = failed["reason"].as_str().unwrap();
    assert!(reason.starts_with("the handler panicked at "), "{reason}");
    assert!(
        reason.contains("misbehaving/main.rs:") && reason.ends_with(": a hole"),
        "{reason}"
    );
    step.message(2, &json!({"count": 1}));
    assert_eq!(step.settled(), json!({"done": {"id": id(2)}}));
}

#[test]
fn handlers_run_side_by_side_and_answer_out_of_order() {
    let mut step = Played::ready("misbehaving", &json!({}));
    step.message(1, &json!({"wait": 600_000}));
    step.message(2, &json!({"wait": 1}));
    assert_eq!(step.settled(), json!({"done": {"id": id(2)}}));
}

#[test]
fn what_is_cancelled_is_stopped_and_answered_once() {
    let mut step = Played::ready("misbehaving", &json!({}));
    step.message(1, &json!({"wait": 600_000}));
    step.message(2, &json!({"wait": 1}));
    step.settled();
    step.send(&json!({"cancel": {"id": id(1), "reason": "timeout"}}));
    assert_eq!(
        step.settled(),
        json!({"failed": {"id": id(1), "fate": "retry", "reason": "cancelled"}})
    );
    // It may come again at once.
    step.message(1, &json!({"count": 1}));
    assert_eq!(step.settled(), json!({"done": {"id": id(1)}}));
    // A cancel that crosses with the answer asks for no other.
    step.send(&json!({"cancel": {"id": id(1), "reason": "timeout"}}));
    assert_eq!(
        step.drain(),
        "",
        "the cancelled one must not keep the process"
    );
}

#[test]
fn a_handler_that_blocks_past_its_time_limit_is_answered_once() {
    let mut step = Played::ready("misbehaving", &json!({}));
    step.message(1, &json!({"block": 300}));
    step.send(&json!({"cancel": {"id": id(1), "reason": "timeout"}}));
    assert_eq!(step.settled(), json!({"done": {"id": id(1)}}));
    assert_eq!(step.drain(), "");
}

#[test]
fn what_is_done_leaves_while_another_blocks() {
    let mut step = Played::ready("misbehaving", &json!({}));
    let frame = |number, body| json!({"message": {"id": id(number), "lineage": {}, "body": body}});
    let both = format!(
        "{}\n{}\n",
        frame(1, json!({"count": 0})),
        frame(2, json!({"block": 600_000}))
    );
    step.to_step
        .as_ref()
        .unwrap()
        .write_all(both.as_bytes())
        .unwrap();
    assert_eq!(step.settled(), json!({"done": {"id": id(1)}}));
}

#[test]
fn a_drain_lets_finish_what_is_in_hand() {
    let mut step = Played::ready("misbehaving", &json!({}));
    step.message(1, &json!({"wait": 300}));
    let rest = step.drain();
    assert!(
        rest.contains("\"body\":\"waited\"") && rest.contains("\"done\""),
        "{rest}"
    );
}

#[test]
fn a_step_whose_agent_died_leaves() {
    let mut step = Played::ready("misbehaving", &json!({}));
    step.message(1, &json!({"wait": 600_000}));
    step.to_step = None;
    assert_eq!(step.exited().code(), Some(0));
}

#[test]
fn a_step_that_cannot_be_heard_leaves() {
    let mut step = Played::ready("misbehaving", &json!({}));
    let (nobody, _) = std::io::pipe().unwrap();
    step.from_step = BufReader::new(nobody);
    step.message(1, &json!({"count": 1_000_000_000_u64}));
    assert_eq!(step.exited().code(), Some(0));
}

#[test]
fn a_hundred_thousand_outputs_with_a_slow_reader_need_little_memory() {
    let mut step = Played::ready("misbehaving", &json!({}));
    step.message(1, &json!({"count": 100_000}));
    step.message(2, &json!({"text": 1000}));
    let mut outputs = 0;
    loop {
        if outputs == 1000 {
            // The reader is away for a while; the step fills its buffer and then waits.
            std::thread::sleep(Duration::from_millis(300));
        }
        let frame = step.frame();
        if let Some(emit) = frame.get("emit") {
            if emit["id"] == id(1) {
                assert_eq!(emit["body"], outputs, "in order, none missing");
                outputs += 1;
            }
        } else if frame["done"]["id"] == id(1) {
            break;
        }
    }
    assert_eq!(outputs, 100_000);
    assert!(
        step.resident_kib() < 16 << 10,
        "{} KiB",
        step.resident_kib()
    );
}

#[test]
fn a_handler_that_emits_without_end_can_be_cancelled() {
    let mut step = Played::ready("misbehaving", &json!({}));
    step.message(1, &json!({"count": u64::MAX}));
    for _ in 0..1000 {
        assert_eq!(step.frame()["emit"]["id"], id(1));
    }
    step.message(2, &json!({"text": 1}));
    assert_eq!(
        step.settled(),
        json!({"done": {"id": id(2)}}),
        "others have their turn"
    );
    step.send(&json!({"cancel": {"id": id(1), "reason": "timeout"}}));
    assert_eq!(step.settled()["failed"]["reason"], "cancelled");
    assert_eq!(step.drain(), "");
}

#[test]
fn the_frames_of_the_manual_are_frames() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/step-protocol.md");
    let page = std::fs::read_to_string(page).unwrap();
    let mut count = 0;
    for line in page.lines() {
        let line = line
            .trim()
            .trim_start_matches(['→', '←', '\'', ' '])
            .trim_end_matches(['\'', '\\', ' ', '|']);
        if !line.starts_with("{\"") || line.starts_with("{\"contract") {
            continue;
        }
        // Ids are shortened where only their place matters.
        let words = line.split('"').map(|word| {
            if word.ends_with('…') {
                "0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f"
            } else {
                word
            }
        });
        let line = words.collect::<Vec<_>>().join("\"");
        let to_step = serde_json::from_str::<ToStep<'_>>(&line);
        let from_step = serde_json::from_str::<FromStep<'_>>(&line);
        assert!(
            to_step.is_ok() || from_step.is_ok(),
            "{line}\n{to_step:?}\n{from_step:?}"
        );
        count += 1;
    }
    assert!(count > 30, "only {count} frames were found");
}

#[test]
fn an_output_above_the_limit_is_permanent() {
    let mut step = Played::ready("misbehaving", &json!({}));
    step.message(1, &json!({"text": 2 << 20}));
    let frame = step.settled();
    assert_eq!(frame["failed"]["fate"], "permanent");
    assert_eq!(
        frame["failed"]["reason"],
        "an output has 2097154 bytes, and at most 1048576 are allowed"
    );
    step.message(2, &json!({"text": (1 << 20) - 2}));
    assert_eq!(step.settled(), json!({"done": {"id": id(2)}}));
}

#[test]
fn an_unknown_port_is_permanent() {
    let mut step = Played::ready("misbehaving", &json!({}));
    step.message(1, &json!({"port": "nowhere"}));
    let frame = step.settled();
    assert_eq!(frame["failed"]["fate"], "permanent");
    assert!(
        frame["failed"]["reason"]
            .as_str()
            .unwrap()
            .starts_with("the step has no port `nowhere`")
    );
}

#[test]
fn events_of_tracing_know_their_message() {
    let mut step = Played::ready("misbehaving", &json!({}));
    step.message(1, &json!({"log": "hello"}));
    assert_eq!(
        step.frame(),
        json!({"log": {"id": id(1), "level": "info", "text": "hello attempt=1"}})
    );
}

#[test]
fn headers_and_attempt_reach_the_handler() {
    let mut step = Played::ready("misbehaving", &json!({}));
    step.send(
        &json!({"message": {"id": id(1), "lineage": {}, "attempt": 3,
        "headers": {"http.method": "POST"}, "body": "headers"}}),
    );
    assert_eq!(
        step.frame()["emit"]["body"],
        "{\"http.method\": \"POST\"} 3"
    );
}

#[test]
fn what_may_have_been_handled_before_says_so() {
    for (is_uncertain, expect) in [(false, "certain"), (true, "uncertain")] {
        let mut step = Played::ready("misbehaving", &json!({}));
        let mut message = json!({"id": id(1), "lineage": {}, "body": "is_uncertain"});
        if is_uncertain {
            message["uncertain"] = true.into();
        }
        step.send(&json!({"message": message}));
        assert_eq!(step.frame()["emit"]["body"], expect);
    }
}

#[test]
fn garbage_from_the_agent_is_logged_and_ignored() {
    let mut step = Played::ready("misbehaving", &json!({}));
    writeln!(step.to_step.as_ref().unwrap(), "garbage").unwrap();
    step.send(&json!({"unheard_of": {}}));
    step.message(1, &json!({"count": 0}));
    let texts: Vec<_> = (0..2)
        .map(|_| step.frame()["log"]["text"].to_string())
        .collect();
    assert!(
        texts
            .iter()
            .all(|text| text.contains("not understood and ignored")),
        "{texts:?}"
    );
    assert_eq!(step.settled(), json!({"done": {"id": id(1)}}));
}

#[test]
fn a_trigger_emits_then_saves_then_goes_on() {
    let mut step = Played::ready("poll", &json!({"count": 150}));
    step.send(&json!({"tick": {"id": id(9), "attempt": 1, "why": "schedule", "due": 0, "checkpoint": 50}}));
    for number in 50..100 {
        assert_eq!(
            step.frame(),
            json!({"emit": {"id": id(9), "source_id": number.to_string(), "body": number}})
        );
    }
    assert_eq!(
        step.frame(),
        json!({"checkpoint": {"id": id(9), "number": 1, "value": 100}})
    );
    step.send(&json!({"saved": {"id": id(9), "number": 1}}));
    for number in 100..200 {
        assert_eq!(step.frame()["emit"]["body"], number);
    }
    assert_eq!(step.frame()["checkpoint"]["value"], 200);
    step.send(&json!({"saved": {"id": id(9), "number": 2}}));
    assert_eq!(
        step.frame(),
        json!({"checkpoint": {"id": id(9), "number": 3, "value": 200}})
    );
    step.send(&json!({"saved": {"id": id(9), "number": 3}}));
    assert_eq!(step.frame(), json!({"done": {"id": id(9)}}));
}

#[test]
fn a_stream_that_is_told_to_finish_saves_its_position_and_says_done() {
    let path = std::env::temp_dir().join(format!("towpath-stream-{}", std::process::id()));
    std::fs::write(&path, "one\ntwo\n").unwrap();
    let mut step = Played::ready("stream", &json!({"path": path}));
    step.send(&json!({"tick": {"id": id(9), "attempt": 1, "why": "schedule", "due": 0}}));
    let emit = |at: &str, body: &str| json!({"emit": {"id": id(9), "source_id": at, "body": body}});
    let checkpoint = |number: u32, value: u32| json!({"checkpoint": {"id": id(9), "number": number, "value": value}});
    let saved = |number: u32| json!({"saved": {"id": id(9), "number": number}});
    assert_eq!(step.frame(), emit("0", "one"));
    assert_eq!(step.frame(), emit("4", "two"));
    assert_eq!(step.frame(), checkpoint(1, 8));
    step.send(&saved(1));
    // It stays, and reads what is appended.
    let mut file = std::fs::File::options().append(true).open(&path).unwrap();
    file.write_all(b"three\n").unwrap();
    assert_eq!(step.frame(), emit("8", "three"));
    assert_eq!(step.frame(), checkpoint(2, 14));
    step.send(&saved(2));
    step.send(&json!({"finish": {"id": id(9)}}));
    assert_eq!(step.frame(), checkpoint(3, 14));
    step.send(&saved(3));
    assert_eq!(step.frame(), json!({"done": {"id": id(9)}}));
    // The process stays, and the next tick is not told to finish.
    step.send(&json!({"tick": {"id": id(10), "attempt": 1, "why": "schedule", "due": 0, "checkpoint": 8}}));
    assert_eq!(
        step.frame(),
        json!({"emit": {"id": id(10), "source_id": "8", "body": "three"}})
    );
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_batch_gathers_what_is_there_and_each_message_has_its_fate() {
    let mut step = Played::ready("batch", &json!({}));
    let mut lines = String::new();
    for number in 1..=40 {
        let body = json!({"id": number, "cents": u32::from(number % 10 != 0)});
        let frame = json!({"message": {"id": id(number), "lineage": {}, "body": body}});
        lines.push_str(&frame.to_string());
        lines.push('\n');
    }
    step.to_step
        .as_ref()
        .unwrap()
        .write_all(lines.as_bytes())
        .unwrap();
    let (mut calls, mut done, mut failed) = (0, 0, 0);
    while done + failed < 40 {
        let frame = step.frame();
        calls += u32::from(frame.get("log").is_some());
        done += u32::from(frame.get("done").is_some());
        failed += u32::from(frame["failed"]["fate"] == "permanent");
    }
    assert_eq!((done, failed), (36, 4));
    assert!(calls < 40, "{calls} calls for 40 messages written at once");
}

#[test]
fn an_announced_batch_is_handled_together_however_slowly_it_arrives() {
    let mut step = Played::ready("batch", &json!({}));
    for first in [1, 11] {
        step.send(&json!({"batch": {"count": 10}}));
        for number in first..first + 10 {
            step.message(number, &json!({"id": number, "cents": 1}));
            std::thread::sleep(Duration::from_millis(5));
        }
        let log = step.frame();
        assert_eq!(log["log"]["text"], "10 orders in one call");
        for _ in 0..10 {
            assert!(step.frame().get("done").is_some());
        }
    }
    step.message(21, &json!({"id": 21, "cents": 1}));
    assert_eq!(step.frame()["log"]["text"], "1 orders in one call");
    assert!(step.settled().get("done").is_some());
}

#[test]
fn an_output_of_several_messages_names_them() {
    let mut step = Played::ready("join", &json!({}));
    step.send(&json!({"batch": {"count": 3}}));
    for (number, customer, cents) in [(1, "ada", 5), (2, "bob", 7), (3, "ada", 8)] {
        step.message(number, &json!({"customer": customer, "cents": cents}));
    }
    assert_eq!(
        step.frame(),
        json!({"emit": {"id": id(1), "with": [id(3)], "body": {"customer": "ada", "cents": 13}}})
    );
    assert_eq!(
        step.frame(),
        json!({"emit": {"id": id(2), "body": {"customer": "bob", "cents": 7}}})
    );
    for number in 1..=3 {
        assert_eq!(step.settled(), json!({"done": {"id": id(number)}}));
    }
}

#[test]
fn a_batch_is_stopped_when_all_of_it_is_cancelled() {
    let mut step = Played::ready("misbehaving_batch", &json!({}));
    step.send(&json!({"batch": {"count": 2}}));
    step.message(1, &json!(600_000));
    step.message(2, &json!(1));
    for number in [1, 2] {
        step.send(&json!({"cancel": {"id": id(number), "reason": "timeout"}}));
    }
    for number in [1, 2] {
        assert_eq!(
            step.settled(),
            json!({"failed": {"id": id(number), "fate": "retry", "reason": "cancelled"}})
        );
    }
    // A message of a batch that others still want is answered with its batch.
    step.send(&json!({"batch": {"count": 2}}));
    step.message(1, &json!(300));
    step.message(3, &json!(1));
    step.send(&json!({"cancel": {"id": id(1), "reason": "claim"}}));
    for number in [1, 3] {
        assert_eq!(step.settled(), json!({"done": {"id": id(number)}}));
    }
    assert_eq!(step.drain(), "");
}

#[test]
fn a_message_of_a_batch_that_cannot_be_read_holds_up_no_other() {
    let mut step = Played::ready("batch", &json!({}));
    step.send(&json!({"batch": {"count": 3}}));
    step.message(1, &json!({"id": 1, "cents": 1}));
    step.message(2, &json!({"id": 2, "cents": 1}));
    step.message(3, &json!({"id": "none"}));
    assert_eq!(step.frame()["failed"]["fate"], "permanent");
    assert_eq!(step.frame()["log"]["text"], "2 orders in one call");
    assert!(step.settled().get("done").is_some());
    assert!(step.settled().get("done").is_some());
}

fn output(name: &str, arguments: &[&str], input: &str) -> (Option<i32>, String, String) {
    let mut child = Command::new(example(name))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn without_an_agent_it_says_what_it_is() {
    let (code, stdout, stderr) = output("misbehaving", &[], "");
    assert_eq!((code, stdout.as_str()), (Some(2), ""));
    assert!(
        stderr.starts_with("error: no agent started this program"),
        "{stderr}"
    );
    assert!(stderr.contains("misbehaving run-local"), "{stderr}");
    let (code, stdout, _) = output("misbehaving", &["--help"], "");
    assert_eq!(code, Some(0));
    assert!(
        stdout.contains("misbehaving 1.2.3: a step of a Towpath flow"),
        "{stdout}"
    );
}

#[test]
fn the_manifest_is_made_from_the_types() {
    let (code, stdout, _) = output("ports", &["manifest"], "");
    assert_eq!(code, Some(0));
    let manifest: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(manifest["kind"], "action");
    assert_eq!(manifest["config"]["type"], "object");
    assert_eq!(manifest["input"]["required"], json!(["id", "cents"]));
    assert_eq!(
        manifest["ports"]["rejected"]["required"],
        json!(["order", "why"])
    );
    assert_eq!(manifest["ports"]["out"]["title"], "Order");
}

#[test]
fn run_local_tries_a_step_on_lines() {
    let folder = std::env::temp_dir().join(format!("towpath-step-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let config = folder.join("with.json");
    std::fs::write(&config, "{\"percent\": 50}").unwrap();
    let arguments = ["run-local", "--config", config.to_str().unwrap()];
    let lines = "{\"id\": 1, \"cents\": 2}\n\nnot json\n{\"id\": 2, \"cents\": 0}\n";
    let (code, stdout, stderr) = output("action", &arguments, lines);
    assert_eq!(stdout, "{\"id\":1,\"cents\":3}\n");
    assert_eq!(code, Some(1));
    assert!(stderr.contains("line 3 is not JSON"), "{stderr}");
    assert!(
        stderr.contains("line 4: would come again later after 30000 ms: the order"),
        "{stderr}"
    );

    std::fs::write(&config, "{\"count\": 3}").unwrap();
    let checkpoint = folder.join("checkpoint.json");
    let arguments = [
        &arguments[..],
        &["--checkpoint", checkpoint.to_str().unwrap()],
    ]
    .concat();
    assert_eq!(output("poll", &arguments, "").1, "0\n1\n2\n");
    assert_eq!(output("poll", &arguments, "").1, "3\n4\n5\n");
    std::fs::remove_dir_all(&folder).unwrap();
}
