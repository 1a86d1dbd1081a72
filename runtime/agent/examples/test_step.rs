//! A step for the agent's tests: each message says in its body how it is to be handled.
//!
//! `{"do":"echo"}` (the default) · `retry_until` (`at`: the attempt that succeeds) · `permanent` ·
//! `rebound` (`delay_ms`) · `sleep` (`ms`) · `hang` · `exit` (`code`) · `kill` (itself) ·
//! `exit_if_alone`/`exit` · `garbage` · `flood` (`count`) · `big` (`bytes`) · `unconnected` ·
//! `log` (`text`). Ticks emit `items` numbered from the checkpoint on.
//!
//! The configuration may say `{"refuse":"why"}`, `{"contract":2}`, `{"mute":true}` or
//! `{"no_answer_after_emit":true}`.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

type Out = Arc<Mutex<BufWriter<File>>>;

fn say(out: &Out, frame: &Value) {
    let mut out = out.lock().expect("no thread panics with the lock");
    if writeln!(out, "{frame}").is_err() {
        // The agent is gone.
        std::process::exit(0);
    }
}

fn flush(out: &Out) {
    if out
        .lock()
        .expect("no thread panics with the lock")
        .flush()
        .is_err()
    {
        std::process::exit(0);
    }
}

fn main() {
    let mut input = BufReader::with_capacity(
        1 << 16,
        File::open("/proc/self/fd/3").expect("descriptor 3"),
    );
    let output = File::options()
        .write(true)
        .open("/proc/self/fd/4")
        .expect("descriptor 4");
    let out: Out = Arc::new(Mutex::new(BufWriter::with_capacity(1 << 16, output)));
    let mut line = String::new();
    loop {
        if input.buffer().is_empty() {
            flush(&out);
        }
        line.clear();
        if input.read_line(&mut line).unwrap_or(0) == 0 {
            flush(&out);
            return;
        }
        let frame: Value = serde_json::from_str(&line).expect("the agent writes frames");
        let (kind, value) = frame
            .as_object()
            .and_then(|frame| frame.iter().next())
            .expect("a frame has one key");
        match kind.as_str() {
            "hello" => hello(&out, &value["config"]),
            "message" => message(&out, value),
            "tick" => tick(&out, value),
            "drain" => {
                flush(&out);
                return;
            }
            _ => {}
        }
    }
}

fn hello(out: &Out, config: &Value) {
    if let Some(reason) = config["refuse"].as_str() {
        say(out, &json!({"refused": {"reason": reason}}));
        flush(out);
        std::process::exit(1);
    }
    if config["mute"] == true {
        loop {
            std::thread::sleep(Duration::from_secs(60));
        }
    }
    let contract = config["contract"].as_u64().unwrap_or(1);
    say(
        out,
        &json!({"ready": {"contract": contract, "sdk": "test"}}),
    );
}

fn done(out: &Out, id: &Value) {
    say(out, &json!({"done": {"id": id}}));
}

fn failed(out: &Out, id: &Value, fate: &str, reason: &str) {
    say(
        out,
        &json!({"failed": {"id": id, "fate": fate, "reason": reason, "chain": ["because", "of that"]}}),
    );
}

fn message(out: &Out, message: &Value) {
    let (id, body) = (&message["id"], &message["body"]);
    let attempt = message["attempt"].as_u64().unwrap_or(1);
    match body["do"].as_str().unwrap_or("echo") {
        "echo" => {
            say(out, &json!({"emit": {"id": id, "body": body}}));
            done(out, id);
        }
        "retry_until" if attempt < body["at"].as_u64().unwrap_or(2) => {
            say(
                out,
                &json!({"emit": {"id": id, "body": "must not be seen"}}),
            );
            failed(out, id, "retry", "not this time, secret-in-reason");
        }
        "permanent" => failed(out, id, "permanent", "it can never work"),
        "rebound" if message["rebounds"].as_u64().unwrap_or(0) == 0 => {
            let delay = body["delay_ms"].as_u64().unwrap_or(250);
            say(
                out,
                &json!({"failed": {"id": id, "fate": "rebound", "delay_ms": delay, "reason": "not yet"}}),
            );
        }
        "retry_until" | "rebound" => {
            say(out, &json!({"emit": {"id": id, "body": message}}));
            done(out, id);
        }
        "sleep" => {
            let (out, id, body) = (out.clone(), id.clone(), body.clone());
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(body["ms"].as_u64().unwrap_or(100)));
                say(&out, &json!({"emit": {"id": id, "body": body}}));
                done(&out, &id);
                flush(&out);
            });
        }
        "hang" => loop {
            std::thread::sleep(Duration::from_secs(60));
        },
        "exit" => {
            flush(out);
            writeln!(std::io::stderr(), "last words, secret-in-log").expect("the agent reads");
            std::process::exit(i32::try_from(body["code"].as_i64().unwrap_or(3)).unwrap_or(3));
        }
        "garbage" => {
            let mut out = out.lock().expect("no thread panics with the lock");
            writeln!(out, "this is not a frame")
                .and_then(|()| out.flush())
                .expect("the agent reads");
        }
        "flood" => {
            for number in 0..body["count"].as_u64().unwrap_or(0) {
                say(
                    out,
                    &json!({"emit": {"id": id, "body": {"number": number}}}),
                );
            }
            done(out, id);
        }
        "big" => {
            let bytes = usize::try_from(body["bytes"].as_u64().unwrap_or(0)).expect("a size");
            let text = "x".repeat(bytes);
            let mut out_now = out.lock().expect("no thread panics with the lock");
            writeln!(out_now, r#"{{"emit":{{"id":{id},"body":"{text}"}}}}"#)
                .expect("the agent reads");
            drop(out_now);
            done(out, id);
        }
        // The same, with the keys in another order.
        "big_odd" => {
            let bytes = usize::try_from(body["bytes"].as_u64().unwrap_or(0)).expect("a size");
            say(out, &json!({"emit": {"id": id, "body": "x".repeat(bytes)}}));
            done(out, id);
        }
        "unconnected" => {
            say(
                out,
                &json!({"emit": {"id": id, "port": "nowhere", "body": 1}}),
            );
            done(out, id);
        }
        "log" => {
            writeln!(std::io::stdout(), "a line on standard output").expect("the agent reads");
            say(
                out,
                &json!({"log": {"id": id, "level": "info", "text": body["text"]}}),
            );
            done(out, id);
        }
        other => failed(
            out,
            id,
            "permanent",
            &format!("the test asks for `{other}`"),
        ),
    }
}

/// Emits `items` (from the payload) messages from the checkpoint on, with a checkpoint after every
/// tenth and at the end.
fn tick(out: &Out, tick: &Value) {
    let id = &tick["id"];
    let from = tick["checkpoint"].as_u64().unwrap_or(0);
    let until = from + tick["payload"]["items"].as_u64().unwrap_or(3);
    for number in from..until {
        say(
            out,
            &json!({"emit": {"id": id, "source_id": number.to_string(), "body": {"number": number}}}),
        );
        if number % 10 == 9 {
            say(
                out,
                &json!({"checkpoint": {"id": id, "number": number + 1, "value": number + 1}}),
            );
        }
    }
    say(
        out,
        &json!({"checkpoint": {"id": id, "number": until, "value": until}}),
    );
    done(out, id);
}
