//! Schedules, streams and checkpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, put};
use serde_json::Value;
use towpath_tests::machine::{binary, docker};
use towpath_tests::{BrokerVersion, Instance, eventually, holds};

use crate::{LONG, SOON};

const SOURCE: &str = "towpath/test-source:test";

/// Packs the trigger that counts.
fn pack(instance: &Instance) {
    let program = binary("test-source");
    let program = program.to_str().expect("a path of text");
    instance
        .run(&["step", "pack", program, "--tag", SOURCE])
        .ok();
}

#[track_caller]
fn run_is(instance: &Instance, flow: &str, what: &str, look: impl Fn(&Value) -> bool) -> Value {
    eventually(what, SOON, || {
        let status = instance.status(flow);
        holds(look(&status), || status.to_string())?;
        Ok(status)
    })
}

/// What the trigger asks, and where its numbers go.
#[derive(Default)]
struct World {
    /// The points at which the trigger is killed, each once.
    kill_at: Vec<(&'static str, u64)>,
    killed: BTreeSet<(String, u64)>,
    /// Which container that is.
    find: Option<Box<dyn Fn() -> Vec<String> + Send>>,
    size: u64,
    /// How often each number came, and by which keys.
    numbers: BTreeMap<u64, (u64, BTreeSet<String>)>,
}

type Shared = Arc<Mutex<World>>;

fn lock(world: &Shared) -> std::sync::MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn gate(State(world): State<Shared>, Path((point, page)): Path<(String, u64)>) -> StatusCode {
    // What was confirmed is with the target, or on its way to it.
    let waits = point == "confirmed";
    loop {
        if !waits {
            break;
        }
        let is_there = {
            let world = lock(&world);
            let first = page * world.size;
            world.numbers.range(first..first + world.size).count() as u64 > world.size / 2
        };
        if is_there {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let victims = {
        let mut world = lock(&world);
        let is_due = world
            .kill_at
            .iter()
            .any(|(at, of)| *at == point && *of == page);
        if is_due && !world.killed.contains(&(point.clone(), page)) {
            let found = world.find.as_ref().map(|find| find()).unwrap_or_default();
            assert_eq!(found.len(), 1, "one container asks: {found:?}");
            world.killed.insert((point, page));
            found
        } else {
            Vec::new()
        }
    };
    for container in &victims {
        docker(&["kill", container]);
    }
    if victims.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

async fn number(State(world): State<Shared>, Path(n): Path<u64>, headers: HeaderMap) {
    let key = headers
        .get("idempotency-key")
        .and_then(|key| key.to_str().ok())
        .unwrap_or_default()
        .to_owned();
    let mut world = lock(&world);
    let (count, keys) = world.numbers.entry(n).or_default();
    *count += 1;
    keys.insert(key);
}

/// Serves until the test ends; returns the port.
fn serve(world: Shared, runtime: &tokio::runtime::Runtime) -> u16 {
    let listener = TcpListener::bind("0.0.0.0:0").expect("a port is free");
    listener.set_nonblocking(true).expect("a socket");
    let port = listener.local_addr().expect("it has an address").port();
    let router = Router::new()
        .route("/gate/{point}/{page}", get(gate))
        .route("/numbers/{n}", put(number))
        .with_state(world);
    runtime.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
        axum::serve(listener, router).await.expect("it serves");
    });
    port
}

#[test]
fn a_trigger_killed_at_each_of_its_points_neither_loses_nor_repeats() {
    const PAGES: u64 = 5;
    // More than what is held of one message, so that outputs leave before the checkpoint.
    const SIZE: u64 = 400;
    let instance = Instance::start(BrokerVersion::V40);
    pack(&instance);
    let world = Shared::default();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let port = serve(Arc::clone(&world), &runtime);
    let address = format!("{}:{port}", instance.gateway());
    {
        let mut world = lock(&world);
        world.size = SIZE;
        world.kill_at = vec![
            ("fetched", 1),
            ("emitted", 2),
            ("confirmed", 3),
            ("saved", 4),
        ];
        let name = format!("{}.numbers.source.", instance.name);
        world.find = Some(Box::new(move || {
            let filter = format!("name={name}");
            docker(&["ps", "-q", "--filter", &filter])
                .lines()
                .map(str::to_owned)
                .collect()
        }));
    }
    instance.apply(&format!(
        r#"
flow: numbers
trigger:
  id: source
  image: {SOURCE}
  every: 365d
  with: {{ gate: "{address}", pages: {PAGES}, size: {SIZE} }}
actions:
  - id: target
    image: towpath/http-request:test
    concurrency: 64
    with: {{ method: PUT, url: "http://{address}/numbers/{{{{ .n }}}}" }}
"#
    ));
    let status = eventually("the run is done", LONG, || {
        let status = instance.status("numbers");
        let is_done = status["last_run"]["state"] == "done"
            && status["steps"][1]["queued"] == 0
            && status["steps"][1]["in_hand"] == 0;
        holds(is_done, || status.to_string())?;
        Ok(status)
    });
    eventually("every number is there", SOON, || {
        let count = lock(&world).numbers.len() as u64;
        holds(count == PAGES * SIZE, || format!("{count} numbers"))
    });
    let world = lock(&world);
    let expected: Vec<u64> = (0..PAGES * SIZE).collect();
    assert_eq!(world.numbers.keys().copied().collect::<Vec<_>>(), expected);
    for (number, (count, keys)) in &world.numbers {
        assert_eq!(keys.len(), 1, "{number} came {count} times by {keys:?}");
    }
    assert_eq!(world.killed.len(), 4, "{:?}", world.killed);
    assert_eq!(
        status["last_run"]["attempts"], 0,
        "a death of its container is no failure of the trigger: {status}"
    );
    let checkpoint = instance.run(&["checkpoint", "show", "numbers", "--output", "json"]);
    let checkpoint = checkpoint.ok().json();
    assert_eq!(checkpoint["value"], PAGES, "{checkpoint}");
    assert_eq!(checkpoint["version"], PAGES, "{checkpoint}");
}

#[test]
fn a_stream_goes_on_from_its_checkpoint_whatever_it_is_told() {
    let mut instance = Instance::start(BrokerVersion::V40);
    pack(&instance);
    let flow = |note: &str| {
        format!(
            r#"
flow: feed
trigger:
  id: source
  image: {SOURCE}
  stream: true
  with: {{ size: 5, note: "{note}" }}
actions:
  - id: log
    image: towpath/log:test
"#
        )
    };
    instance.apply(&flow("one"));
    let is_under_way = |status: &Value| status["last_run"]["tick"] == "published";
    let first = run_is(&instance, "feed", "the stream runs", |status| {
        is_under_way(status) && status["steps"][1]["done"].as_u64() >= Some(10)
    });
    let checkpoint = |instance: &Instance| {
        let shown = instance.run(&["checkpoint", "show", "feed", "--output", "json"]);
        shown.ok().json()
    };
    let said = instance.run(&["checkpoint", "reset", "feed"]);
    assert_eq!(said.code, 1, "a run is under way: {said:?}");
    assert!(said.err.contains("towpath pause feed"), "{said:?}");

    // A crash of the control plane, and one of the container, do not end the run.
    instance.kill();
    instance.serve();
    let container = docker(&[
        "ps",
        "-q",
        "--filter",
        &format!("name={}.feed.source.", instance.name),
    ]);
    docker(&["kill", &container]);
    let before = checkpoint(&instance)["value"].as_u64();
    eventually("the stream goes on", SOON, || {
        let now = checkpoint(&instance);
        holds(now["value"].as_u64() > before, || now.to_string())
    });
    let status = instance.status("feed");
    assert_eq!(
        status["last_run"]["id"], first["last_run"]["id"],
        "{status}"
    );

    // A pause ends it well, and soon.
    let began = Instant::now();
    instance.run(&["pause", "feed"]).ok();
    run_is(&instance, "feed", "the run is done", |status| {
        status["last_run"]["state"] == "done" && status["steps"][0]["state"] == "paused"
    });
    assert!(began.elapsed() < Duration::from_secs(30), "it did not wait");
    let paused = checkpoint(&instance);
    instance.run(&["checkpoint", "set", "feed", "1000"]).ok();
    let stale = paused["version"].to_string();
    let said = instance.run(&["checkpoint", "set", "feed", "5", "--if-version", &stale]);
    assert_eq!(said.code, 1, "somebody has written since: {said:?}");
    instance.run(&["resume", "feed"]).ok();
    run_is(&instance, "feed", "another run goes on", |status| {
        is_under_way(status) && status["last_run"]["id"] != first["last_run"]["id"]
    });
    eventually("it goes on from what was set", SOON, || {
        let now = checkpoint(&instance);
        holds(now["value"].as_u64() > Some(1000), || now.to_string())
    });

    // Another version replaces the container without waiting for a run that never ends.
    let began = Instant::now();
    instance.apply(&flow("two"));
    run_is(&instance, "feed", "the new version streams", |status| {
        status["converged"] == true && is_under_way(status) && status["last_run"]["version"] == 2
    });
    assert!(began.elapsed() < Duration::from_secs(50), "it did not wait");
    let status = instance.status("feed");
    assert_eq!(status["dead_letters"], 0, "{status}");
    assert_eq!(status["steps"][0]["failed"], 0, "{status}");
}

#[test]
fn a_cron_trigger_fires_by_the_clock_and_remembers_one_run_more() {
    let mut instance = Instance::start(BrokerVersion::V40);
    pack(&instance);
    instance.apply(
        r#"
flow: clock
trigger:
  id: tick
  image: towpath/timer:test
  cron: "*/2 * * * * *"
  timezone: Europe/Berlin
actions:
  - id: log
    image: towpath/log:test
"#,
    );
    let status = run_is(&instance, "clock", "it fired twice", |status| {
        status["steps"][1]["done"].as_u64() >= Some(2)
    });
    assert_eq!(status["fires"], "cron */2 * * * * * (Europe/Berlin)");
    assert_eq!(status["timezone"], "Europe/Berlin");
    let due = status["last_run"]["due"].as_u64().expect("it was due");
    assert_eq!(due % 2_000, 0, "on the second: {status}");

    // A run that takes long, by a trigger that waits for somebody who is not there.
    instance.apply(
        r#"
flow: slow
trigger:
  id: source
  image: towpath/test-source:test
  cron: "0 0 1 1 *"
  overlap: queue-one
  retry: { attempts: 100, initial: 2s, factor: 1, max: 2s }
  with: { gate: "127.0.0.1:9", pages: 1, size: 1 }
actions:
  - id: log
    image: towpath/log:test
"#,
    );
    let first = instance
        .run(&["run", "slow", "--output", "json"])
        .ok()
        .json();
    let second = instance
        .run(&["run", "slow", "--output", "json"])
        .ok()
        .json();
    assert_eq!(second["state"], "queued", "{second}");
    let third = instance.run(&["run", "slow"]);
    assert_eq!(third.code, 1, "{third:?}");
    assert!(third.err.contains("remembered"), "{third:?}");
    // It is remembered across a crash of the control plane, and begins when the first one ends:
    // it has nothing to do any more once its position is the last page.
    instance.kill();
    instance.serve();
    instance
        .run(&["checkpoint", "set", "slow", "1", "--force"])
        .ok();
    let status = run_is(&instance, "slow", "the second run is done", |status| {
        status["last_run"]["state"] == "done" && status["last_run"]["id"] == second["id"]
    });
    assert_ne!(first["id"], second["id"], "{status}");
}
