//! The real step process against a real server: what only shows in a process of its own, its memory
//! and its filter.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::routing::get;
use command_fds::{CommandFdExt, FdMapping};
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;

const MILLION: u64 = 1_000_000;

/// How much the resident memory may grow from the first part of the source to its end.
const GROWTH_KIB_MAX: u64 = 8 << 10;

#[derive(Deserialize)]
struct Asked {
    #[serde(default)]
    offset: u64,
    limit: u64,
    /// How many rows there are in all.
    rows: u64,
    /// Break off once, after so many rows.
    breaks: Option<u64>,
}

/// Rows that are made as they are sent; what was sent is counted.
fn serve(runtime: &tokio::runtime::Runtime) -> (String, Arc<AtomicU64>) {
    let broken = Arc::new(AtomicU64::new(0));
    let rows = |State(broken): State<Arc<AtomicU64>>, Query(asked): Query<Asked>| async move {
        let end = asked.rows.min(asked.offset + asked.limit);
        let breaks = asked
            .breaks
            .filter(|_| broken.fetch_add(1, Ordering::Relaxed) == 0);
        let lines = stream::unfold((asked.offset, false), move |(at, is_over)| async move {
            if is_over {
                return None;
            }
            if breaks.is_some_and(|breaks| at >= breaks) {
                return Some((Err(std::io::Error::other("broken off")), (at, true)));
            }
            let mut text = if at == asked.offset {
                "{\"data\":[".to_owned()
            } else {
                String::new()
            };
            let to = end.min(at + 500);
            for n in at..to {
                let comma = if n == asked.offset { "" } else { "," };
                // Ten rows have one time, and pages end between them.
                write!(
                    text,
                    "{comma}{{\"id\":{n},\"at\":{},\"name\":\"row number {n}\",\"paid\":{}}}",
                    n / 10,
                    n % 4 == 0
                )
                .unwrap();
            }
            if to == end {
                text += "]}";
            }
            Some((Ok(text), (to, to == end)))
        });
        Body::from_stream(lines)
    };
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("http://{}/rows", listener.local_addr().unwrap());
    let router = Router::new()
        .route("/rows", get(rows))
        .with_state(Arc::clone(&broken));
    runtime.spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, broken)
}

/// The step process, and this test in the place of its agent.
struct Played {
    child: Child,
    to_step: std::io::PipeWriter,
    from_step: BufReader<std::io::PipeReader>,
}

/// What a run brought in.
#[derive(Default)]
struct Brought {
    rows: u64,
    /// The sum of all ids: each row once has one sum.
    sum: u64,
    checkpoint: Value,
    checkpoint_bytes_max: usize,
    /// Resident memory after the first tenth, and the most after that.
    early_kib: u64,
    most_kib: u64,
}

impl Played {
    fn start(config: &Value) -> Self {
        let (step_reads, to_step) = std::io::pipe().unwrap();
        let (from_step, step_writes) = std::io::pipe().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_http-poll"))
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
        let mut played = Self {
            child,
            to_step,
            from_step: BufReader::with_capacity(256 << 10, from_step),
        };
        played.send(&json!({"hello": {
            "contract": 1, "flow": "f", "step": "s", "replica": 1, "concurrency": 1,
            "timeout_ms": 0, "body_bytes_max": 1 << 20, "config": config,
        }}));
        let ready = played.line();
        assert!(ready.starts_with("{\"ready\""), "{ready}");
        played
    }

    fn send(&mut self, frame: &Value) {
        writeln!(self.to_step, "{frame}").unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(
            self.from_step.read_line(&mut line).unwrap() > 0,
            "the step left"
        );
        line
    }

    fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.unwrap()
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap()
    }

    /// Fires it and takes what it brings in, saving its checkpoints, to the end of the run.
    fn run(&mut self, checkpoint: Option<&Value>, rows: u64) -> Brought {
        let id = "00000000000000000000000000000001";
        let mut tick = json!({"id": id, "attempt": 1, "why": "schedule", "due": 0});
        if let Some(checkpoint) = checkpoint {
            tick["checkpoint"] = checkpoint.clone();
        }
        self.send(&json!({"tick": tick}));
        let mut brought = Brought::default();
        loop {
            let line = self.line();
            if line.starts_with("{\"emit\"") {
                brought.rows += 1;
                let (_, body) = line.split_once("\"body\":{\"id\":").unwrap();
                let (id, _) = body.split_once(',').unwrap();
                brought.sum += id.parse::<u64>().unwrap();
                if brought.rows % 10_000 == 0 {
                    let resident = self.resident_kib();
                    if brought.rows * 10 <= rows {
                        brought.early_kib = resident;
                    }
                    brought.most_kib = brought.most_kib.max(resident);
                }
                continue;
            }
            let frame: Value = serde_json::from_str(&line).unwrap();
            if let Some(checkpoint) = frame.get("checkpoint") {
                let saved = json!({"id": id, "number": checkpoint["number"]});
                self.send(&json!({"saved": saved}));
                brought.checkpoint = checkpoint["value"].clone();
                let bytes = brought.checkpoint.to_string().len();
                brought.checkpoint_bytes_max = brought.checkpoint_bytes_max.max(bytes);
            }
            assert!(frame.get("failed").is_none(), "{frame}");
            if frame.get("done").is_some() {
                return brought;
            }
        }
    }
}

impl Drop for Played {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[expect(clippy::print_stderr, reason = "what was measured is shown")]
fn memory_is_flat(name: &str, brought: &Brought) {
    let growth = brought.most_kib.saturating_sub(brought.early_kib);
    eprintln!(
        "{name}: {} rows; resident {} KiB after the first tenth, {} KiB at the most after it (+{growth} KiB); checkpoints up to {} bytes",
        brought.rows, brought.early_kib, brought.most_kib, brought.checkpoint_bytes_max
    );
    assert!(brought.early_kib > 0, "it was measured");
    assert!(growth < GROWTH_KIB_MAX, "{growth} KiB more");
    assert!(brought.checkpoint_bytes_max < 64 << 10);
}

#[test]
fn a_source_of_a_million_rows_is_read_with_flat_memory() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (url, _) = serve(&runtime);
    let config = json!({
        "url": format!("{url}?rows={MILLION}"), "items": "data", "cursor": "at", "sorted": true,
        "look_back": "30s", "page": {"style": "offset", "size": 997},
    });
    let mut step = Played::start(&config);
    let brought = step.run(None, MILLION);
    assert_eq!(
        (brought.rows, brought.sum),
        (MILLION, MILLION * (MILLION - 1) / 2)
    );
    memory_is_flat("a thousand pages", &brought);
}

#[test]
fn one_page_of_many_rows_is_read_with_flat_memory_and_a_break_repeats_no_name() {
    const ROWS: u64 = 300_000;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (url, asked) = serve(&runtime);
    let config = json!({
        "url": format!("{url}?rows={ROWS}&limit={ROWS}&breaks=20000"), "items": "data",
        "cursor": "at", "sorted": true, "page": {"style": "none"},
    });
    let mut step = Played::start(&config);
    let brought = step.run(None, ROWS);
    assert_eq!(asked.load(Ordering::Relaxed), 2, "it broke off once");
    assert_eq!((brought.rows, brought.sum), (ROWS, ROWS * (ROWS - 1) / 2));
    memory_is_flat("one page", &brought);
    let again = step.run(Some(&brought.checkpoint), ROWS);
    assert_eq!(again.rows, 0, "the next run brings in nothing");
}

#[test]
fn a_filter_leaves_out_what_it_does_not_want() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (url, _) = serve(&runtime);
    let config = json!({
        "url": format!("{url}?rows=1000"), "items": "data", "cursor": "at",
        "page": {"style": "offset", "size": 300}, "filter": ".paid and .id < 500",
    });
    let mut step = Played::start(&config);
    let brought = step.run(None, 1000);
    assert_eq!((brought.rows, brought.sum), (125, 4 * (124 * 125 / 2)));
    // What was left out is behind us as well.
    assert_eq!(brought.checkpoint["cursor"], 99);
    assert_eq!(step.run(Some(&brought.checkpoint), 1000).rows, 0);
}
