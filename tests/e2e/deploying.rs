//! Applying a flow, again and changed.

use std::fs::File;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use towpath_tests::{BrokerVersion, Demo, Instance, eventually, holds};

use crate::{LONG, NO_429, NO_500, NO_500_AFTER, NOT_SLOW, SOON, crm_holds_exactly, orders_to_crm};

/// What the engine says of an instance's containers, from now on.
struct Events {
    process: Child,
    path: std::path::PathBuf,
}

impl Events {
    fn listen(instance: &Instance) -> Self {
        let path = instance.data().join("events.log");
        let file = File::create(&path).expect("a file can be made");
        let ours = format!("label=io.towpath.instance={}", instance.name);
        let mut command = Command::new("docker");
        // Also what was just before: so that nothing is missed while it connects.
        command.args(["events", "--since", "5s", "--format", "{{json .}}"]);
        command.args(["--filter", &ours]);
        let process = command.stdin(Stdio::null()).stdout(file).spawn();
        Self {
            process: process.expect("`docker` can be started"),
            path,
        }
    }

    /// When something happened to a container, in nanoseconds since 1970.
    fn when(&self, action: &str, container: &str) -> Result<u64, String> {
        let text = std::fs::read_to_string(&self.path).map_err(|error| error.to_string())?;
        let events = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut ours = events.filter(|it| it["Action"] == action && it["Actor"]["ID"] == container);
        let at = ours.next().and_then(|event| event["timeNano"].as_u64());
        at.ok_or_else(|| format!("no `{action}` of {container} in\n{text}"))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

#[test]
fn new_replicas_take_over_before_old_ones_leave_and_a_polling_trigger_ends_before_its_successor() {
    let instance = Instance::start(BrokerVersion::V310);
    let demo = Demo::start(
        &instance,
        &[
            ("DEMO_ORDERS", "2000"),
            ("DEMO_DELAY_MS", "20"),
            NO_429,
            NO_500,
            NO_500_AFTER,
            NOT_SLOW,
        ],
    );
    instance
        .run_with(&["secret", "set", "crm_token"], "demo-token")
        .ok();
    let flow = orders_to_crm(2);
    instance.apply(&flow);
    let ids = |step: &str| -> Vec<String> {
        let containers = instance.containers("orders-to-crm", Some(step));
        containers.into_values().collect()
    };
    let before = (ids("orders"), ids("crm"));
    assert_eq!((before.0.len(), before.1.len()), (1, 2), "{before:?}");
    let events = Events::listen(&instance);
    let changed = flow
        .replace("timeout: 30s", "timeout: 31s")
        .replace("size: 100", "size: 50");
    instance.apply(&changed);
    let after = (ids("orders"), ids("crm"));
    assert_eq!((after.0.len(), after.1.len()), (1, 2), "{after:?}");
    let when = |action: &str, container: &String| {
        eventually("the engine says so", SOON, || {
            events.when(action, container)
        })
    };
    let started: Vec<u64> = after.1.iter().map(|id| when("start", id)).collect();
    let ended: Vec<u64> = before.1.iter().map(|id| when("die", id)).collect();
    // One is enough for the first to leave, both are there before the second does.
    assert!(
        started.iter().min() < ended.iter().min() && started.iter().max() < ended.iter().max(),
        "started at {started:?}, ended at {ended:?}"
    );
    let (ended, started) = (when("die", &before.0[0]), when("start", &after.0[0]));
    assert!(
        ended < started,
        "two would read the same source: ended at {ended}, started at {started}"
    );
    crm_holds_exactly(&demo, 2000, LONG);
}

#[test]
fn an_unchanged_flow_changes_nothing_and_a_changed_one_replaces_only_what_must_change() {
    let instance = Instance::start(BrokerVersion::V40);
    let demo = Demo::start(
        &instance,
        &[
            ("DEMO_ORDERS", "50"),
            NO_429,
            NO_500,
            NO_500_AFTER,
            NOT_SLOW,
        ],
    );
    instance
        .run_with(&["secret", "set", "crm_token"], "demo-token")
        .ok();
    let flow = orders_to_crm(2);
    instance.apply(&flow);
    crm_holds_exactly(&demo, 50, SOON);
    let first = instance.containers("orders-to-crm", None);
    assert_eq!(first.len(), 4, "{first:?}");

    let said = instance.apply(&flow);
    assert!(
        said.out.contains("nothing to do") || said.err.contains("nothing to do"),
        "{said:?}"
    );
    assert_eq!(instance.containers("orders-to-crm", None), first);

    let changed = flow.replace("deal: .number", "deal: .number, currency");
    let path = instance.write("changed.yaml", &changed);
    let plan = instance.run(&["plan", &path]).ok();
    assert!(
        plan.out.contains("shape"),
        "plan names what changes and why: {plan:?}"
    );
    assert_eq!(
        instance.containers("orders-to-crm", None),
        first,
        "a plan changes nothing"
    );

    instance.apply(&changed);
    eventually("only `shape` was replaced", SOON, || {
        let now = instance.containers("orders-to-crm", None);
        let kept = now
            .iter()
            .filter(|(name, id)| first.get(*name) == Some(*id))
            .count();
        holds(now.len() == 4 && kept == 3, || {
            format!("before {first:?}, now {now:?}")
        })
    });
    demo.post(&format!("{}/orders?n=10", demo.shop));
    crm_holds_exactly(&demo, 60, SOON);
}

#[test]
fn a_secret_is_in_no_inspect_no_log_and_no_file_and_a_new_one_replaces_what_uses_it() {
    let instance = Instance::start(BrokerVersion::V40);
    let demo = Demo::start(
        &instance,
        &[
            ("DEMO_ORDERS", "20"),
            NO_429,
            NO_500,
            NO_500_AFTER,
            NOT_SLOW,
        ],
    );
    let secret = "demo-token";
    instance
        .run_with(&["secret", "set", "crm_token"], secret)
        .ok();
    instance.apply(&orders_to_crm(1));
    crm_holds_exactly(&demo, 20, SOON);
    let before = instance.containers("orders-to-crm", None);
    for id in before.values() {
        let inspect = towpath_tests::machine::docker(&["inspect", id]);
        assert!(!inspect.contains(secret), "docker inspect shows the secret");
        assert!(
            !inspect.contains(&instance.broker.login),
            "docker inspect shows the broker's password"
        );
        assert!(
            !towpath_tests::machine::docker(&["logs", id]).contains(secret),
            "a log shows the secret"
        );
    }
    assert!(
        !instance.log().contains(secret),
        "the control plane's log shows the secret"
    );
    for entry in std::fs::read_dir(instance.data()).expect("the data folder") {
        let path = entry.expect("an entry").path();
        if let Ok(bytes) = std::fs::read(&path) {
            let found = bytes
                .windows(secret.len())
                .any(|window| window == secret.as_bytes());
            assert!(!found, "{} holds the secret in clear", path.display());
        }
    }
    instance
        .run_with(&["secret", "set", "crm_token"], "another-token")
        .ok();
    eventually(
        "what uses the secret is replaced, and nothing else",
        SOON,
        || {
            let now = instance.containers("orders-to-crm", None);
            let kept = now
                .iter()
                .filter(|(name, id)| before.get(*name) == Some(*id))
                .count();
            holds(now.len() == 3 && kept == 2, || {
                format!("before {before:?}, now {now:?}")
            })
        },
    );
}
