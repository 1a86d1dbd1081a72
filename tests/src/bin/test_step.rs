//! A step that does what each message tells it to: well-behaved, or any way of going wrong.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use towpath_step::{Context, MessageId, Result, ResultExt as _, Step, StepError};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Anything; it may hold a secret.
    #[serde(default)]
    #[expect(dead_code, reason = "it is there to be looked for")]
    note: String,
}

#[derive(Deserialize, JsonSchema)]
struct Order {
    /// What to do.
    #[serde(rename = "do")]
    what: String,
    /// How often.
    #[serde(default)]
    count: u64,
    /// How long to be put off, or to take.
    #[serde(default)]
    delay_ms: u64,
    /// How long others are to be put off, in turn.
    #[serde(default)]
    delays: Vec<u64>,
    /// What to hand on.
    #[serde(default)]
    pass: Option<Value>,
}

async fn obey(order: Order, ctx: &Context<Config>) -> Result<Option<Value>> {
    match order.what.as_str() {
        "ok" => Ok(Some(json!({ "ok": true }))),
        "panic" => panic!("told to panic"),
        "exit" => std::process::exit(17),
        "signal" => std::process::abort(),
        "hang" => {
            // Not by the runtime, which hangs as well.
            std::io::stderr().write_all(b"hang: handed over\n")?;
            std::thread::sleep(Duration::from_secs(3600));
            Ok(None)
        }
        "garbage" => {
            let mut pipe = std::fs::File::options()
                .write(true)
                .open("/proc/self/fd/4")?;
            pipe.write_all(b"this is not a frame\n")?;
            tokio::time::sleep(Duration::from_secs(3600)).await;
            Ok(None)
        }
        "memory" => {
            let mut hoard = Vec::new();
            loop {
                hoard.push(vec![1_u8; 1 << 20]);
            }
        }
        "flood" => {
            for number in 0..order.count {
                ctx.emit(json!({ "number": number })).await?;
            }
            Ok(None)
        }
        "big" => Ok(Some(json!("x".repeat(2 << 20)))),
        "fail" if u64::from(ctx.attempt()) <= order.count => Err(StepError::retry(format!(
            "told to fail {} times",
            order.count
        ))),
        "pass" => Ok(order.pass),
        "spread" => {
            for (number, delay_ms) in (0..order.count).zip(order.delays.iter().cycle()) {
                ctx.emit(json!({ "do": "wait", "delay_ms": delay_ms, "count": number }))
                    .await?;
            }
            Ok(None)
        }
        "wait" => wait(Duration::from_millis(order.delay_ms), ctx),
        "slow" => {
            ctx.log_info("slow: handed over");
            tokio::time::sleep(Duration::from_millis(order.delay_ms)).await;
            Ok(Some(json!({ "ok": true })))
        }
        "figures" => Err(StepError::permanent(figures())),
        "permanent" => Err(StepError::permanent("told to give up")),
        "explain" => explain(order.count, ctx),
        "later" => later(Duration::from_millis(order.delay_ms), ctx),
        "rebound" if ctx.rebounds() == 0 => Err(StepError::rebound(
            Duration::from_secs(1),
            "told to come back",
        )),
        // Told to fail or to come back, and it has.
        "fail" | "rebound" => Ok(None),
        "spy" => Err(StepError::permanent(spy().to_string())),
        other => Err(StepError::permanent(format!("`{other}` is nothing to do"))),
    }
}

/// Says what it is at, and fails with causes: for good after `retries` attempts that may be tried
/// again.
fn explain(retries: u64, ctx: &Context<Config>) -> Result<Option<Value>> {
    ctx.log_info(format!("reading the total, attempt {}", ctx.attempt()));
    ctx.log_warn("the total is a word");
    let read = "twelve"
        .parse::<u64>()
        .context("the total cannot be read")
        .context("the order cannot be handled");
    let read = if u64::from(ctx.attempt()) <= retries {
        read
    } else {
        read.permanent()
    };
    Ok(Some(json!(read?)))
}

/// Puts a message off once, and is not content if that counted as an attempt.
fn later(delay: Duration, ctx: &Context<Config>) -> Result<Option<Value>> {
    match (ctx.rebounds(), ctx.attempt()) {
        (0, _) => Err(StepError::rebound(delay, "told to come later")),
        (1, 1) => Ok(None),
        (rebounds, attempt) => Err(StepError::permanent(format!(
            "this is attempt {attempt} after {rebounds} rebounds"
        ))),
    }
}

/// When messages were to come back, and by how much they missed it, in milliseconds: below zero is
/// early.
static TIMES: Mutex<(BTreeMap<MessageId, Instant>, Vec<f64>)> =
    Mutex::new((BTreeMap::new(), Vec::new()));

/// Fails the first attempt with a delay of its own, and notes when the second one comes.
fn wait(delay: Duration, ctx: &Context<Config>) -> Result<Option<Value>> {
    let now = Instant::now();
    let mut times = TIMES.lock().unwrap_or_else(PoisonError::into_inner);
    if ctx.attempt() == 1 {
        times.0.insert(ctx.message_id(), now + delay);
        return Err(StepError::retry("told to wait").after(delay));
    }
    if let Some(due) = times.0.remove(&ctx.message_id()) {
        let late = now.saturating_duration_since(due).as_secs_f64();
        let early = due.saturating_duration_since(now).as_secs_f64();
        times.1.push((late - early) * 1e3);
    }
    Ok(None)
}

/// What was noted since it was asked for last.
fn figures() -> String {
    let mut times = TIMES.lock().unwrap_or_else(PoisonError::into_inner);
    let mut late = std::mem::take(&mut times.1);
    late.sort_by(f64::total_cmp);
    let part = |percent: usize| late.get((late.len() * percent / 100).min(late.len().max(1) - 1));
    json!({
        "count": late.len(),
        "early": late.iter().filter(|late| **late < 0.0).count(),
        "late_ms_median": part(50),
        "late_ms_p99": part(99),
        "late_ms_max": late.last(),
    })
    .to_string()
}

/// Reads whatever a step process can reach, and says what it found.
fn spy() -> Value {
    let own = std::process::id().to_string();
    let mut broker_found = Vec::new();
    let mut other_secret_found = Vec::new();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in
        processes.filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok())
    {
        for file in ["environ", "cmdline", "mem", "fd/0", "maps"] {
            if process.file_name().to_string_lossy() == own && file == "mem" {
                continue;
            }
            let path = process.path().join(file);
            let readable = std::fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&readable);
            if text.contains("amqp://") || (file == "mem" && std::fs::File::open(&path).is_ok()) {
                broker_found.push(path.display().to_string());
            }
            if text.contains("other-secret-value") {
                other_secret_found.push(path.display().to_string());
            }
        }
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next())
            .unwrap_or("?")
            .to_owned()
    };
    json!({
        "broker_found": broker_found,
        "other_secret_found": other_secret_found,
        "docker_socket": std::path::Path::new("/var/run/docker.sock").exists(),
        "effective_capabilities": field("CapEff:"),
        "permitted_capabilities": field("CapPrm:"),
        "no_new_privs": field("NoNewPrivs:"),
        "uid": field("Uid:"),
        "root_writable": std::fs::write("/written", "x").is_ok(),
    })
}

fn main() -> ExitCode {
    Step::action(obey)
        .about("test-step", "1.0.0", "Does what each message tells it to")
        .run()
}
