//! The engine on a real Docker, with the real agent in the containers.
#![expect(
    clippy::unwrap_used,
    reason = "a test says no more than where it failed"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::OnceCell;
use tokio::task::JoinSet;
use towpath::engine::docker::DockerEngine;
use towpath::engine::{
    Agent, AgentBinaries, ContainerState, Engine, EngineError, Image, LogQuery, Observed,
    ReplicaSpec, Signal, chain,
};
use towpath::pack::{Pack, manifest, pack};
use towpath_flow::{Facts, Source, check};
use towpath_protocol::CONTRACT;
use towpath_protocol::handing::Handing;
use towpath_protocol::log::LogLine;
use towpath_protocol::manifest::Kind;
use towpath_protocol::start::{Identity, Mode, Retry, Routes, Settings, Start};

/// How long anything may take that should take seconds.
const SOON: Duration = Duration::from_secs(60);

const BROKER_SECRET: &str = "br0ker-s3cret";
const CONFIG_SECRET: &str = "c0nfig-s3cret";
const ENV_SECRET: &str = "env-s3cret";

/// The step that looks around, compiled and packed once.
async fn probe() -> &'static Image {
    static PROBE: OnceCell<Image> = OnceCell::const_new();
    PROBE
        .get_or_init(async || {
            let folder = tempfile::tempdir().unwrap();
            let program = compile_probe(folder.path());
            let wanted = Pack {
                program,
                tag: "towpath-test-probe:1".to_owned(),
                from: None,
                strip: true,
            };
            let engine = DockerEngine::new(host(), agent());
            pack(&engine, &wanted)
                .await
                .unwrap_or_else(|error| panic!("{}", chain(&error)))
                .image
        })
        .await
}

fn compile_probe(folder: &Path) -> PathBuf {
    let program = folder.join("probe");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/engine/probe.rs");
    let done = Command::new("rustc")
        .args([
            "--edition=2024",
            "-Ctarget-feature=+crt-static",
            "-Copt-level=1",
            "-o",
        ])
        .arg(&program)
        .arg(source)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status();
    assert!(done.expect("`rustc` is there, because cargo is").success());
    program
}

fn host() -> Option<String> {
    std::env::var("DOCKER_HOST").ok()
}

/// The real agent. It lies where cargo puts it, two folders above the test.
fn agent() -> Agent {
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().unwrap().parent().unwrap();
    let agent = folder.join("towpath-agent");
    // What translates for `mode: lines` is not run here: any file will do.
    let binaries = AgentBinaries {
        lines: agent.clone(),
        agent,
    };
    binaries.load().unwrap_or_else(|error| {
        panic!(
            "{}\nhint: build it with `cargo build -p towpath-agent`",
            chain(&error)
        )
    })
}

/// An instance of its own, removed at the end.
struct Place {
    engine: DockerEngine,
    instance: String,
    image: Image,
}

impl Place {
    async fn new(test: &str) -> Self {
        let engine = DockerEngine::new(host(), agent());
        if let Err(error) = engine.version().await {
            panic!(
                "these tests need a Docker engine ({}); start one with `sudo dockerd`, or as \
                 `deploy/engine.sh` does, or set DOCKER_HOST",
                chain(&error)
            );
        }
        let image = probe().await.clone();
        let instance = format!("towpath-test-{test}-{}", std::process::id());
        engine.prepare(&instance).await.unwrap();
        Self {
            engine,
            instance,
            image,
        }
    }

    fn replica(&self, replica: u32) -> ReplicaSpec {
        let identity = Identity {
            instance: self.instance.clone(),
            flow: "flow".into(),
            step: "probe".into(),
            replica,
            spec: "0123456789abcdef".into(),
        };
        ReplicaSpec {
            name: towpath::reconcile::spec::container_name(&identity),
            image: self.image.clone(),
            command: Vec::new(),
            limits: limits(),
            folders: Vec::new(),
            stop_seconds: 10,
            start: start(identity),
        }
    }

    async fn start(&self, replica: u32) -> String {
        let replica = self.replica(replica);
        let started = self.engine.start(&replica).await;
        started.unwrap_or_else(|error| panic!("{}", chain(&error)))
    }

    async fn observed(&self) -> Vec<Observed> {
        self.engine.observe(&self.instance).await.unwrap()
    }

    async fn state(&self, container: &str) -> Option<ContainerState> {
        self.observed()
            .await
            .into_iter()
            .find(|one| one.container == container)
            .map(|one| one.state)
    }

    /// What the step in a container has found, once it is ready.
    async fn findings(&self, container: &str) -> BTreeMap<String, String> {
        eventually("the step is ready", async || {
            let log = self.log(container).await;
            let findings: BTreeMap<_, _> = log
                .lines()
                .filter_map(|line| serde_json::from_str::<LogLine<'_>>(line).ok())
                .filter_map(|line| {
                    let (what, answer) = line.text.strip_prefix("probe ")?.split_once('=')?;
                    Some((what.to_owned(), answer.to_owned()))
                })
                .collect();
            findings
                .contains_key("ready")
                .then_some(findings)
                .ok_or(log)
        })
        .await
    }

    async fn log(&self, container: &str) -> String {
        let query = LogQuery {
            tail: None,
            follow: false,
        };
        let parts: Vec<_> = self.engine.logs(container, query).await.collect().await;
        let bytes: Vec<u8> = parts
            .into_iter()
            .flat_map(|part| part.unwrap().to_vec())
            .collect();
        String::from_utf8(bytes).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let label = format!("label=io.towpath.instance={}", self.instance);
        for (list, remove) in [
            (vec!["ps", "-aq"], vec!["rm", "-fv"]),
            (vec!["volume", "ls", "-q"], vec!["volume", "rm"]),
            (vec!["network", "ls", "-q"], vec!["network", "rm"]),
        ] {
            let found = docker(&[&list[..], &["--filter", &label]].concat());
            for id in found.lines() {
                docker(&[&remove[..], &[id]].concat());
            }
        }
    }
}

/// What a person would see with Docker's own command line. Empty if it fails.
fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker")
        .args(arguments)
        .output()
        .expect("`docker` is installed");
    String::from_utf8(output.stdout).unwrap()
}

fn inspect(container: &str) -> (String, Value) {
    let text = docker(&["inspect", container]);
    let parsed: Value = serde_json::from_str(&text).unwrap();
    (text, parsed[0].clone())
}

/// Tries until it works, and says what it last got if it never does.
async fn eventually<T, E: std::fmt::Debug>(
    what: &str,
    attempt: impl AsyncFn() -> Result<T, E>,
) -> T {
    let begun = Instant::now();
    loop {
        match attempt().await {
            Ok(done) => return done,
            Err(last) if begun.elapsed() > SOON => panic!("it never comes that {what}: {last:?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

fn limits() -> towpath_flow::model::Limits {
    let text = "flow: f\ntrigger: { id: t, every: 1m, image: a, memory: 64MiB, pids: 64, cpus: 0.5 }\n\
                actions:\n  - { id: a, image: a }\n";
    let checked = check(&Source::new("flow.yaml", text), &Facts::default());
    let checked =
        checked.unwrap_or_else(|found| panic!("{}", found.render(towpath_flow::Paint::Plain)));
    checked.flow.steps[0].limits.clone()
}

fn start(identity: Identity) -> Start {
    let config = format!(r#"{{"token":"{CONFIG_SECRET}"}}"#);
    Start {
        contract: CONTRACT,
        broker_url: format!("amqp://user:{BROKER_SECRET}@broker.invalid:5672/%2f"),
        routes: Routes {
            queue: "queue".into(),
            order: None,
            outputs_exchange: "flow".into(),
            outputs: BTreeMap::new(),
            own_key: "flow.probe".into(),
            steps_exchange: "steps".into(),
            delay_exchanges: (0..24).map(|level| format!("delay.{level}")).collect(),
            dead_exchange: "dead".into(),
            office_exchange: "office".into(),
        },
        identity,
        kind: Kind::Action,
        config: RawValue::from_string(config).unwrap(),
        env: BTreeMap::from([("GREETING".to_owned(), format!("hello {ENV_SECRET}"))]),
        redact: vec![CONFIG_SECRET.into(), ENV_SECRET.into()],
        settings: Settings {
            mode: Mode::Frames,
            concurrency: 1,
            timeout_ms: 1_000,
            retry: Retry {
                attempts: 1,
                initial_ms: 1,
                factor: 1.0,
                max_ms: 1,
                jitter: 0.0,
            },
            rebounds_max: 1,
            once: false,
            stream: false,
            track: false,
            from_flows: false,
            body_bytes_max: 1 << 20,
            drain_ms: 5_000,
            memory_bytes: 64 << 20,
        },
        handing: Handing::default(),
        paused: false,
    }
}

#[tokio::test]
async fn a_step_can_neither_see_a_secret_nor_do_harm() {
    let place = Place::new("harm").await;
    let container = place.start(1).await;
    let found = place.findings(&container).await;
    let is = |what: &str| found.get(what).map_or("", String::as_str);
    for path in [
        "/proc/1/environ",
        "/proc/1/mem",
        "/proc/1/maps",
        "/proc/1/fd/0",
    ] {
        assert_eq!(is(path), "denied", "{path}");
    }
    for path in ["/var/run/docker.sock", "/run/docker.sock"] {
        assert_eq!(is(path), "absent", "{path}");
    }
    assert_eq!(is("write /"), "denied");
    assert_eq!(is("write /.towpath/"), "denied");
    assert_eq!(is("write /tmp/"), "allowed");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(is(set), "0000000000000000", "{set}");
    }
    assert_eq!(is("NoNewPrivs"), "1");
    assert_eq!(is("Uid"), "65534 65534 65534 65534");
    assert_eq!(is("Gid"), "65534 65534 65534 65534");
    assert_eq!(
        is("GREETING"),
        "hello ***",
        "the step has it, and the log does not"
    );
    let log = place.log(&container).await;
    let (inspected, _) = inspect(&container);
    for secret in [BROKER_SECRET, CONFIG_SECRET, ENV_SECRET] {
        assert!(!log.contains(secret), "the log says {secret}");
        assert!(!inspected.contains(secret), "docker inspect says {secret}");
    }
}

#[tokio::test]
async fn a_container_has_limits() {
    let place = Place::new("limits").await;
    let container = place.start(1).await;
    let (_, inspected) = inspect(&container);
    let host = &inspected["HostConfig"];
    assert_eq!(host["Memory"], 64 << 20);
    assert_eq!(host["PidsLimit"], 64);
    assert_eq!(host["NanoCpus"], 500_000_000);
    assert_eq!(host["ReadonlyRootfs"], true);
    assert_eq!(host["Privileged"], false);
    assert_eq!(host["CapDrop"], serde_json::json!(["ALL"]));
    assert_eq!(host["RestartPolicy"]["Name"], "no");
    assert_eq!(host["LogConfig"]["Config"]["max-size"], "8m");
    assert_eq!(host["Binds"], Value::Null);
    assert_eq!(inspected["Config"]["StopSignal"], "SIGTERM");
    assert_eq!(inspected["Config"]["StopTimeout"], 10);
    let mounts = inspected["Mounts"].as_array().unwrap();
    let mounts: Vec<_> = mounts
        .iter()
        .map(|it| (&it["Type"], &it["Destination"], &it["RW"]))
        .collect();
    assert_eq!(
        mounts,
        [(&"volume".into(), &"/.towpath".into(), &false.into())]
    );
}

#[tokio::test]
async fn what_runs_is_adopted() {
    let place = Place::new("adopted").await;
    let container = place.start(1).await;
    let after = DockerEngine::new(host(), agent());
    let observed = after.observe(&place.instance).await.unwrap();
    assert_eq!(observed.len(), 1);
    assert_eq!(observed[0].container, container);
    assert_eq!(observed[0].identity, place.replica(1).start.identity);
    assert_eq!(observed[0].name, place.replica(1).name);
    let again = after.start(&place.replica(1)).await.unwrap();
    assert_eq!(again, container, "what is there already is not made again");
    assert_eq!(after.observe("towpath-test-nobody").await.unwrap(), []);
}

#[tokio::test]
async fn a_drain_ends_a_replica_and_a_second_removal_is_no_error() {
    let place = Place::new("drain").await;
    let container = place.start(1).await;
    place.findings(&container).await;
    place
        .engine
        .signal(&container, Signal::Drain)
        .await
        .unwrap();
    let code = eventually("it has ended", async || {
        match place.state(&container).await {
            Some(ContainerState::Exited { code, .. }) => Ok(code),
            other => Err(other),
        }
    })
    .await;
    assert_eq!(code, 0, "{}", place.log(&container).await);
    assert!(place.log(&container).await.contains("probe drained=yes"));
    place
        .engine
        .signal(&container, Signal::Pause)
        .await
        .unwrap();
    place.engine.remove(&container).await.unwrap();
    place.engine.remove(&container).await.unwrap();
    assert_eq!(place.observed().await, []);
    let gone = place.engine.signal(&container, Signal::Pause).await;
    assert!(
        matches!(gone, Err(EngineError::NotFound { .. })),
        "{gone:?}"
    );
}

#[tokio::test]
async fn a_name_that_is_taken_is_refused_and_left_alone() {
    let place = Place::new("taken").await;
    let name = place.replica(1).name;
    let label = format!("io.towpath.instance={}", place.instance);
    let stranger = docker(&[
        "create",
        "--name",
        &name,
        "--label",
        &label,
        &place.image.id,
    ]);
    let refused = place.engine.start(&place.replica(1)).await;
    let error = refused.expect_err("the name is taken");
    assert!(
        chain(&error).contains("which is not this replica; rename or remove it"),
        "{error:?}"
    );
    assert!(!docker(&["inspect", stranger.trim()]).is_empty());
    assert_eq!(place.observed().await, [], "and it is nobody we know");
}

#[tokio::test]
async fn what_was_created_and_not_started_is_started() {
    let place = Place::new("created").await;
    let container = place.start(1).await;
    place.findings(&container).await;
    docker(&["kill", &container]);
    let labels = inspect(&container).1["Config"]["Labels"].clone();
    place.engine.remove(&container).await.unwrap();
    // As it is when a control plane is cut off between the two calls.
    let mut arguments = vec!["create", "-i", "--user=0:0", "--entrypoint=/.towpath/agent"];
    let name = place.replica(1).name;
    let labels: Vec<String> = labels
        .as_object()
        .unwrap()
        .iter()
        .map(|(key, value)| format!("--label={key}={}", value.as_str().unwrap()))
        .collect();
    arguments.extend(labels.iter().map(String::as_str));
    let volume = format!("{}:/.towpath:ro", agent().volume(&place.instance));
    arguments.extend([
        "--name",
        &name,
        "--volume",
        &volume,
        &place.image.id,
        "--",
        "/step",
    ]);
    let created = docker(&arguments);
    assert_eq!(
        place.state(created.trim()).await,
        Some(ContainerState::Created)
    );
    assert_eq!(place.start(1).await, created.trim());
    place.findings(created.trim()).await;
}

#[tokio::test]
async fn a_half_filled_volume_is_filled_again() {
    let place = Place::new("half").await;
    put_into_volume(&place, "agent");
    let container = place.start(1).await;
    place.findings(&container).await;
}

#[tokio::test]
async fn a_filled_volume_is_not_filled_again() {
    let place = Place::new("filled").await;
    put_into_volume(&place, "agent");
    put_into_volume(&place, Agent::MARKER);
    let error = place
        .engine
        .start(&place.replica(1))
        .await
        .expect_err("that is no program");
    assert!(
        chain(&error).contains("/.towpath/agent"),
        "{}",
        chain(&error)
    );
    assert_eq!(
        place.observed().await,
        [],
        "what could not be started is not left behind"
    );
}

/// Puts a file that is no program into the volume, as one that was cut off might have.
fn put_into_volume(place: &Place, file: &str) {
    let volume = format!("{}:/.towpath", agent().volume(&place.instance));
    let label = format!("io.towpath.instance={}", place.instance);
    let folder = tempfile::tempdir().unwrap();
    let rubbish = folder.path().join(file);
    std::fs::write(&rubbish, "rubbish").unwrap();
    let filler = docker(&[
        "create",
        "--label",
        &label,
        "--volume",
        &volume,
        &place.image.id,
    ]);
    let to = format!("{}:/.towpath/{file}", filler.trim());
    docker(&["cp", rubbish.to_str().unwrap(), &to]);
    docker(&["rm", filler.trim()]);
}

#[tokio::test]
async fn a_change_is_heard() {
    let place = Place::new("change").await;
    let mut changes = place.engine.changes(&place.instance).await;
    let heard = async {
        // The first poll is what begins to listen.
        tokio::time::timeout(SOON, changes.next()).await
    };
    let (heard, _) = tokio::join!(heard, place.start(1));
    assert_eq!(heard, Ok(Some(())));
}

#[tokio::test]
async fn the_log_can_be_followed_and_cut() {
    let place = Place::new("log").await;
    let container = place.start(1).await;
    place.findings(&container).await;
    let tail = LogQuery {
        tail: Some(2),
        follow: false,
    };
    let parts: Vec<_> = place.engine.logs(&container, tail).await.collect().await;
    let text: Vec<u8> = parts
        .into_iter()
        .flat_map(|part| part.unwrap().to_vec())
        .collect();
    assert_eq!(String::from_utf8(text).unwrap().lines().count(), 2);
    let follow = LogQuery {
        tail: None,
        follow: true,
    };
    let mut followed = place.engine.logs(&container, follow).await;
    let mut text = String::new();
    let until = async |followed: &mut BoxStream<'static, _>, text: &mut String, what: &str| {
        while !text.contains(what) {
            let part: Result<Bytes, EngineError> = followed.next().await?;
            text.push_str(&String::from_utf8_lossy(&part.unwrap()));
        }
        Some(())
    };
    let ready = tokio::time::timeout(SOON, until(&mut followed, &mut text, "ready=yes")).await;
    assert_eq!(ready, Ok(Some(())), "{text}");
    place
        .engine
        .signal(&container, Signal::Drain)
        .await
        .unwrap();
    let drained = tokio::time::timeout(SOON, until(&mut followed, &mut text, "drained=yes")).await;
    assert_eq!(drained, Ok(Some(())), "{text}");
    let ended = tokio::time::timeout(SOON, until(&mut followed, &mut text, "never said")).await;
    assert_eq!(ended, Ok(None), "a log ends with its container");
    let nobody = place
        .engine
        .logs("towpath-test-nobody", tail)
        .await
        .next()
        .await;
    assert!(
        matches!(nobody, Some(Err(EngineError::NotFound { .. }))),
        "{nobody:?}"
    );
}

#[tokio::test]
async fn packing_the_same_again_gives_the_same_image() {
    let first = probe().await;
    let folder = tempfile::tempdir().unwrap();
    let program = compile_probe(folder.path());
    let engine = DockerEngine::new(host(), agent());
    let wanted = Pack {
        program: program.clone(),
        tag: "towpath-test-probe:1".to_owned(),
        from: None,
        strip: true,
    };
    let packed = pack(&engine, &wanted).await.unwrap();
    assert_eq!(packed.image.id, first.id);
    assert_eq!(packed.manifest.name, "probe");
    assert_eq!(packed.image.manifest, Some(packed.manifest.clone()));
    assert_eq!(
        (packed.image.user.as_str(), &packed.image.command[..]),
        ("65534:65534", &["/step".to_owned()][..])
    );
    assert!(packed.image.size < 15 << 20, "{} bytes", packed.image.size);
    let of_image = manifest(&engine, "towpath-test-probe:1").await.unwrap();
    let of_program = manifest(&engine, program.to_str().unwrap()).await.unwrap();
    assert_eq!(
        (&of_image, &of_program),
        (&packed.manifest, &packed.manifest)
    );
}

#[tokio::test]
async fn an_image_that_cannot_be_had_is_none_and_soon() {
    let engine = DockerEngine::new(host(), agent());
    // A registry that nobody can reach: the address is set aside for documentation.
    let name = "192.0.2.1:5000/towpath-test/nothing:1";
    let begun = Instant::now();
    assert_eq!(engine.image(name).await.unwrap(), None);
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );
    let begun = Instant::now();
    assert_eq!(engine.image(name).await.unwrap(), None);
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "it is not tried again at once"
    );
}

#[tokio::test]
async fn an_engine_that_is_away_is_said_to_be() {
    let engine = DockerEngine::new(Some("unix:///nowhere/docker.sock".into()), agent());
    let error = engine.version().await.expect_err("there is nobody");
    assert!(matches!(error, EngineError::Unreachable(_)), "{error:?}");
    assert!(matches!(
        engine.observe("i").await,
        Err(EngineError::Unreachable(_))
    ));
}

/// A socket that passes everything on to the engine, and loses the answer to the first request
/// that creates a container: the engine has done it, and nobody was told.
fn forgetful_socket(folder: &Path) -> (String, JoinSet<()>) {
    let real = host().unwrap_or_else(|| "unix:///var/run/docker.sock".to_owned());
    let real = real
        .strip_prefix("unix://")
        .expect("this test needs an engine at a socket")
        .to_owned();
    let path = folder.join("engine.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let has_lost = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut lines = JoinSet::new();
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let engine = UnixStream::connect(&real).await.unwrap();
            lines.spawn(pass_on(client, engine, has_lost.clone()));
        }
    });
    (format!("unix://{}", path.display()), tasks)
}

async fn pass_on(mut client: UnixStream, mut engine: UnixStream, has_lost: Arc<AtomicBool>) {
    let (mut asked, mut answered) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut is_creating = false;
    loop {
        // Both reads are cancel-safe: what was not read is read the next time.
        tokio::select! {
            length = client.read(&mut asked) => match length {
                Ok(length @ 1..) => {
                    let text = String::from_utf8_lossy(&asked[..length]);
                    let creates = text.starts_with("POST") && text.contains("/containers/create");
                    if creates && !text.contains(".filler") {
                        is_creating = !has_lost.swap(true, Ordering::SeqCst);
                    }
                    engine.write_all(&asked[..length]).await.unwrap();
                }
                _ => return,
            },
            length = engine.read(&mut answered) => match length {
                // The engine answers once it has done it. Then the line is cut.
                Ok(1..) if is_creating => return,
                Ok(length @ 1..) => if client.write_all(&answered[..length]).await.is_err() { return },
                _ => return,
            },
        }
    }
}

#[tokio::test]
async fn a_replica_whose_creation_was_not_answered_is_there_once() {
    let place = Place::new("unanswered").await;
    let folder = tempfile::tempdir().unwrap();
    let (socket, _tasks) = forgetful_socket(folder.path());
    let engine = DockerEngine::new(Some(socket), agent());
    let replica = place.replica(1);
    let error = engine.start(&replica).await.unwrap_err();
    let there = place.observed().await;
    assert_eq!(
        there.len(),
        1,
        "it was made all the same: {}",
        chain(&error)
    );
    assert_eq!(there[0].state, ContainerState::Created);
    let container = engine.start(&replica).await.unwrap();
    assert_eq!(container, there[0].container, "it is the same one");
    assert_eq!(place.state(&container).await, Some(ContainerState::Running));
    assert_eq!(place.observed().await.len(), 1);
}

#[tokio::test]
async fn a_container_is_there_until_it_is_gone_whatever_a_list_says() {
    let place = Place::new("there").await;
    let container = place.start(1).await;
    assert!(place.engine.is_there(&container).await.unwrap());
    docker(&["rm", "-f", &container]);
    assert!(!place.engine.is_there(&container).await.unwrap());
}

#[tokio::test]
async fn a_replica_that_has_ended_makes_room_for_its_successor() {
    let place = Place::new("ended").await;
    let first = place.start(1).await;
    docker(&["kill", &first]);
    let second = place.start(1).await;
    assert_ne!(first, second);
    let there: Vec<_> = place.observed().await;
    assert_eq!(there.len(), 1, "{there:?}");
    assert_eq!(there[0].container, second);
}

#[tokio::test]
async fn an_image_that_was_removed_is_named() {
    let place = Place::new("gone").await;
    let mut replica = place.replica(1);
    replica.image.id = format!("sha256:{}", "0".repeat(64));
    match place.engine.start(&replica).await {
        Err(EngineError::ImageGone { image }) => assert_eq!(image, replica.image.id),
        Err(error) => panic!("{}", chain(&error)),
        Ok(container) => panic!("it was made: {container}"),
    }
    assert_eq!(place.observed().await, []);
}
