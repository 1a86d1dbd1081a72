//! Triggers that register at their source: with a source that has an interface for that, answers
//! badly for a while, and sends events to whatever is registered.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, put};
use axum::{Json, Router};
use serde_json::{Value, json};
use towpath_tests::machine::binary;
use towpath_tests::{BrokerVersion, Instance, Source, eventually, holds, http};

use crate::SOON;

const HOOK: &str = "towpath/test-hook:test";

/// What the source knows and does.
#[derive(Default)]
struct World {
    /// The URL of each subscription, and which events it wants.
    subscriptions: BTreeMap<u64, (String, String)>,
    made: u64,
    /// Set while the source answers so, and does nothing.
    refuses: Option<StatusCode>,
    /// Makes a subscription, and then is silent about it for so long.
    dawdles: Duration,
    /// What each URL answered when it was tried as it was subscribed.
    tried: Vec<u16>,
}

type Shared = Arc<Mutex<World>>;

fn lock(world: &Shared) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn list(State(world): State<Shared>) -> Result<Json<Value>, StatusCode> {
    let world = lock(&world);
    if let Some(status) = world.refuses {
        return Err(status);
    }
    let all = world.subscriptions.iter();
    Ok(Json(
        all.map(|(id, (url, _))| json!({"id": id, "url": url}))
            .collect(),
    ))
}

async fn subscribe(
    State(world): State<Shared>,
    Json(body): Json<Value>,
) -> Result<Json<Value>, StatusCode> {
    let url = body["url"].as_str().unwrap_or_default().to_owned();
    let refuses = lock(&world).refuses;
    if let Some(status) = refuses {
        return Err(status);
    }
    // Like many: what does not answer is not taken.
    let tried = {
        let url = url.clone();
        tokio::task::spawn_blocking(move || http::send("POST", &url, None, Some("{\"try\":1}")))
    };
    let status = match tried.await {
        Ok(Ok(answer)) => answer.status,
        _ => 0,
    };
    let (id, dawdles) = {
        let mut world = lock(&world);
        world.tried.push(status);
        world.made += 1;
        let id = world.made;
        let events = body["events"].as_str().unwrap_or_default().to_owned();
        world.subscriptions.insert(id, (url, events));
        (id, world.dawdles)
    };
    tokio::time::sleep(dawdles).await;
    Ok(Json(json!({"id": id})))
}

async fn change(
    State(world): State<Shared>,
    Path(id): Path<u64>,
    Json(body): Json<Value>,
) -> StatusCode {
    let mut world = lock(&world);
    if let Some(status) = world.refuses {
        return status;
    }
    let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
    match world.subscriptions.get_mut(&id) {
        Some(subscription) => {
            *subscription = (text("url"), text("events"));
            StatusCode::OK
        }
        None => StatusCode::NOT_FOUND,
    }
}

async fn cancel(State(world): State<Shared>, Path(id): Path<u64>) -> StatusCode {
    let mut world = lock(&world);
    match (world.refuses, world.subscriptions.remove(&id)) {
        (Some(status), Some(kept)) => {
            world.subscriptions.insert(id, kept);
            status
        }
        (Some(status), None) => status,
        (None, Some(_)) => StatusCode::NO_CONTENT,
        (None, None) => StatusCode::NOT_FOUND,
    }
}

struct Hooked {
    instance: Instance,
    world: Shared,
    source: Source,
}

impl Hooked {
    fn start() -> Self {
        let instance = Instance::start(BrokerVersion::V40);
        let program = binary("test-hook");
        let program = program.to_str().expect("a path of text");
        instance.run(&["step", "pack", program, "--tag", HOOK]).ok();
        let world = Shared::default();
        let router = Router::new()
            .route("/subscriptions", get(list).post(subscribe))
            .route("/subscriptions/{id}", put(change).delete(cancel))
            .with_state(Arc::clone(&world));
        let source = Source::start(&instance, router);
        Self {
            instance,
            world,
            source,
        }
    }

    fn apply(&self, events: &str) {
        self.instance.apply(&format!(
            r#"
flow: hooked
trigger:
  id: hook
  image: {HOOK}
  webhook: true
  with: {{ source: "{}", events: "{events}" }}
actions:
  - {{ id: log, image: "towpath/log:test" }}
"#,
            self.source.url
        ));
    }

    fn refuse(&self, status: Option<StatusCode>) {
        lock(&self.world).refuses = status;
    }

    /// The URL of the one subscription, when it is the one of the flow and wants these events.
    #[track_caller]
    fn subscribed(&self, events: &str) -> String {
        eventually("the URL of the flow is registered, once", SOON, || {
            let status = self.instance.status("hooked");
            let (url, registration) = (&status["webhook_url"], &status["registration"]);
            let all: Vec<_> = lock(&self.world).subscriptions.values().cloned().collect();
            let is_it = all.len() == 1
                && Some(&*all[0].0) == url.as_str()
                && all[0].1 == events
                && registration["state"] == "registered"
                && registration["url"] == *url;
            holds(is_it, || format!("{all:?}, {status}"))?;
            Ok(all[0].0.clone())
        })
    }

    /// Waits until the flow's status has these words in its reason.
    #[track_caller]
    fn says(&self, words: &str) {
        eventually(&format!("status says `{words}`"), SOON, || {
            let status = self.instance.status("hooked");
            let reason = status["reason"].as_str().unwrap_or_default();
            holds(reason.contains(words), || status.to_string())
        });
    }

    /// Deletes the flow as soon as it has finished its messages; returns what is said.
    #[track_caller]
    fn delete(&self, further: &[&str]) -> String {
        eventually("the flow is or will be deleted", SOON, || {
            let arguments = [&["delete", "hooked", "--yes"], further].concat();
            let said = self.instance.run(&arguments);
            holds(said.code == 0, || said.err.clone())?;
            Ok(said.out)
        })
    }

    #[track_caller]
    fn is_gone(&self) {
        eventually("the flow is gone", SOON, || {
            let said = self.instance.run(&["status", "hooked"]);
            holds(said.code != 0, || said.out.clone())
        });
    }

    fn subscriptions(&self) -> usize {
        lock(&self.world).subscriptions.len()
    }
}

#[test]
fn a_trigger_registers_itself_and_the_events_of_its_source_arrive() {
    let it = Hooked::start();
    it.apply("orders");
    let url = it.subscribed("orders");
    assert_eq!(
        lock(&it.world).tried,
        [202],
        "the URL took requests before the trigger was called"
    );
    for number in 0..20 {
        let event = json!({"order": number}).to_string();
        let answer = http::send("POST", &url, None, Some(&event));
        assert_eq!(answer.expect("it answers").status, 202);
    }
    eventually("all events come through", SOON, || {
        let status = it.instance.status("hooked");
        holds(status["steps"][1]["done"] == 21, || status.to_string())
    });
    let text = it.instance.run(&["status", "hooked"]).ok().out;
    assert!(text.contains("source   registered"), "{text}");

    // Another configuration, and another URL: the one subscription follows.
    it.apply("orders, returns");
    it.subscribed("orders, returns");
    it.instance.run(&["webhook", "rotate", "hooked"]).ok();
    assert_ne!(it.subscribed("orders, returns"), url);
    assert_eq!(lock(&it.world).made, 1);

    it.instance.run(&["stop", "hooked"]).ok();
    let said = it.delete(&[]);
    assert!(said.contains("is being deleted"), "{said}");
    it.is_gone();
    assert_eq!(it.subscriptions(), 0);
}

#[test]
fn a_source_that_fails_is_asked_again_and_nothing_is_registered_twice() {
    let mut it = Hooked::start();
    it.refuse(Some(StatusCode::INTERNAL_SERVER_ERROR));
    it.apply("orders");
    it.says("cannot register at its source: the source says 500");
    // It registers, and nobody hears of it: the control plane is killed, then the container.
    lock(&it.world).dawdles = Duration::from_secs(5);
    it.refuse(None);
    eventually("the source has a subscription", SOON, || {
        holds(it.subscriptions() == 1, || "it has none".to_owned())
    });
    it.instance.kill();
    for container in it.instance.containers("hooked", Some("hook")).values() {
        towpath_tests::machine::docker(&["kill", container]);
    }
    lock(&it.world).dawdles = Duration::ZERO;
    it.instance.serve();
    eventually("it is registered", Duration::from_secs(150), || {
        let status = it.instance.status("hooked");
        let state = &status["registration"]["state"];
        holds(state == "registered", || status.to_string())
    });
    it.subscribed("orders");
    assert_eq!(lock(&it.world).made, 1, "it found what it had made before");
}

#[test]
fn a_flow_goes_only_when_its_source_is_told_unless_someone_says_otherwise() {
    let it = Hooked::start();
    it.apply("orders");
    it.subscribed("orders");
    it.refuse(Some(StatusCode::SERVICE_UNAVAILABLE));
    it.delete(&[]);
    it.says("cannot take back what it registered: the source says 503");
    let text = it.instance.run(&["status", "hooked"]).ok().out;
    assert!(text.contains("being deleted"), "{text}");
    it.refuse(None);
    it.is_gone();
    assert_eq!(it.subscriptions(), 0);

    it.apply("orders");
    it.subscribed("orders");
    it.refuse(Some(StatusCode::SERVICE_UNAVAILABLE));
    it.delete(&["--leave-registered"]);
    it.is_gone();
    assert_eq!(it.subscriptions(), 1, "the source was not told");
}
