//! Filters in real worker processes: what they may not do, and what becomes of their neighbours.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use towpath_jq::pool::{Failure, Pool, Settings, StartError};

fn settings(filter: &str) -> Settings {
    Settings {
        program: PathBuf::from(env!("CARGO_BIN_EXE_jq")),
        filter: filter.to_owned(),
        timeout: Duration::from_millis(500),
        outputs_max: 1000,
        memory_mib: 32,
        workers: 2,
    }
}

fn body(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.to_owned()).unwrap()
}

async fn run(pool: &Pool, json: &str) -> Result<Vec<String>, Failure> {
    let outputs = pool.run(String::new(), body(json)).await?;
    Ok(outputs
        .iter()
        .map(|output| output.get().to_owned())
        .collect())
}

/// Runs a filter that must be given up, and then one that must not.
#[track_caller]
fn check_given_up(filter: &str, timeout_ms: u64, reason: &str) {
    let filter = format!("if . == 7 then . else ({filter}) end");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let pool = Pool::start(Settings {
            timeout: Duration::from_millis(timeout_ms),
            ..settings(&filter)
        })
        .await
        .unwrap();
        let began = Instant::now();
        let failure = run(&pool, "1").await.unwrap_err();
        assert_eq!(failure, Failure::Message(reason.to_owned()), "{filter}");
        assert!(began.elapsed() < Duration::from_secs(60));
        assert_eq!(run(&pool, "7").await.unwrap(), ["7"], "{filter}");
    });
}

const TOO_LONG: &str = "the filter did not end within 500ms (`timeout`)";
const TOO_LARGE: &str = "the filter ran out of memory (`memory_mib` is 32) or of stack (it, or the body, is nested too deeply)";

#[test]
fn a_filter_without_end_ends() {
    check_given_up("def f: f; f", 500, TOO_LONG);
    check_given_up("[limit(1; repeat(.) | select(false))]", 500, TOO_LONG);
    check_given_up("last(range(1e15))", 500, TOO_LONG);
}

#[test]
fn a_filter_without_measure_ends() {
    check_given_up("[range(1e12)] | length", 30_000, TOO_LARGE);
    check_given_up("\"x\" * 1000000000 | length", 30_000, TOO_LARGE);
    check_given_up(
        "reduce range(100) as $i (\"x\"; . + .) | length",
        30_000,
        TOO_LARGE,
    );
}

#[test]
fn a_filter_without_floor_ends() {
    check_given_up("def f: 1 + f; f", 30_000, TOO_LARGE);
    check_given_up("reduce range(3e6) as $i (1; [.])", 30_000, TOO_LARGE);
}

#[test]
fn too_many_outputs_are_refused() {
    check_given_up(
        "repeat(1)",
        30_000,
        "the filter gives more than 1000 outputs (`outputs_max`)",
    );
    check_given_up(
        "range(1001)",
        30_000,
        "the filter gives more than 1000 outputs (`outputs_max`)",
    );
    check_given_up(
        "range(100) | \"x\" * 1000000",
        30_000,
        "the outputs of the filter have more than 16777216 bytes",
    );
}

#[test]
fn a_deeply_nested_body_ends_nothing_else() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let settings = Settings {
            timeout: Duration::from_secs(30),
            ..settings(".")
        };
        let pool = Pool::start(settings).await.unwrap();
        let deep = format!("{}{}", "[".repeat(500_000), "]".repeat(500_000));
        let failure = run(&pool, &deep).await.unwrap_err();
        assert_eq!(failure, Failure::Message(TOO_LARGE.into()));
        assert_eq!(run(&pool, "[1]").await.unwrap(), ["[1]"]);
    });
}

#[tokio::test]
async fn neighbours_are_done() {
    let filter = "if .n % 50 == 13 then (def f: f; f) elif .n % 50 == 29 then ([range(1e12)] | length) else .n end";
    let settings = Settings {
        timeout: Duration::from_secs(2),
        ..settings(filter)
    };
    let pool = Pool::start(settings).await.unwrap();
    let bodies: Vec<String> = (0..200).map(|n| format!("{{\"n\":{n}}}")).collect();
    let runs = bodies.iter().map(|body| run(&pool, body));
    let results = join_all(runs).await;
    for (n, result) in results.into_iter().enumerate() {
        match n % 50 {
            13 | 29 => assert!(
                matches!(result, Err(Failure::Message(_))),
                "{n}: {result:?}"
            ),
            _ => assert_eq!(result.unwrap(), [n.to_string()], "{n}"),
        }
    }
}

#[tokio::test]
async fn large_bodies_and_outputs_pass_in_both_directions() {
    let pool = Pool::start(settings("., .")).await.unwrap();
    let text = format!("\"{}\"", "ü".repeat(250_000));
    let results = join_all((0..100).map(|_| run(&pool, &text))).await;
    for result in results {
        assert_eq!(result.unwrap(), [text.clone(), text.clone()]);
    }
}

#[tokio::test]
async fn a_wrong_filter_is_refused_with_its_place() {
    let error = Pool::start(settings(".a |\n  mop")).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the filter is wrong at line 2, column 3: there is no filter `mop` (`mop`)"
    );
    let deep = "(".repeat(1_000_000);
    assert!(matches!(
        Pool::start(settings(&deep)).await,
        Err(StartError::Filter(_))
    ));
}

#[tokio::test]
async fn a_worker_killed_from_outside_is_replaced() {
    let one = Settings {
        workers: 1,
        timeout: Duration::from_secs(30),
        ..settings("def f: f; if . == 0 then f else . end")
    };
    let pool = Pool::start(one).await.unwrap();
    let killed = async {
        let worker = worker_at_work().await;
        rustix::process::kill_process(worker, rustix::process::Signal::KILL).unwrap();
    };
    let (result, ()) = tokio::join!(run(&pool, "0"), killed);
    assert!(matches!(result, Err(Failure::Worker(_))), "{result:?}");
    assert_eq!(run(&pool, "1").await.unwrap(), ["1"]);
}

#[tokio::test]
async fn a_worker_dies_with_the_step() {
    let pool = Pool::start(Settings {
        workers: 1,
        timeout: Duration::from_secs(60),
        ..settings("def f: f; f")
    })
    .await
    .unwrap();
    let run = pool.run(String::new(), body("0"));
    let seen = async { worker_at_work().await };
    let worker = tokio::select! {
        _ = run => panic!("a filter without end cannot end first"),
        worker = seen => worker,
    };
    drop(pool);
    let stat = format!("/proc/{}/stat", worker.as_raw_nonzero());
    eventually(|| fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "))).await;
}

/// Finds a worker of this test process that is using the processor.
async fn worker_at_work() -> rustix::process::Pid {
    let own = std::process::id();
    let thread = fs::read_link("/proc/thread-self").unwrap();
    let children = format!(
        "/proc/{own}/task/{}/children",
        thread.file_name().unwrap().to_str().unwrap()
    );
    let mut found = None;
    eventually(|| {
        let children = fs::read_to_string(&children).unwrap_or_default();
        found = children.split_whitespace().find_map(|child| {
            let stat = fs::read_to_string(format!("/proc/{child}/stat")).ok()?;
            let fields: Vec<&str> = stat.rsplit(") ").next()?.split(' ').collect();
            let ticks: u64 = fields.get(11)?.parse().ok()?;
            (ticks >= 5).then(|| child.parse().ok()).flatten()
        });
        found.is_some()
    })
    .await;
    rustix::process::Pid::from_raw(found.unwrap()).unwrap()
}

async fn eventually(mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "it did not happen"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Runs futures at once on this task, as the step does with its messages.
async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut waiting: Vec<_> = futures
        .into_iter()
        .map(|future| (Box::pin(future), None))
        .collect();
    std::future::poll_fn(|task| {
        let mut pending = false;
        for (future, output) in &mut waiting {
            if output.is_none() {
                match future.as_mut().poll(task) {
                    std::task::Poll::Ready(ready) => *output = Some(ready),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        if pending {
            std::task::Poll::Pending
        } else {
            std::task::Poll::Ready(())
        }
    })
    .await;
    waiting
        .into_iter()
        .filter_map(|(_, output)| output)
        .collect()
}
