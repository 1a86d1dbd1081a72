//! Trouble with the broker: everybody comes back by themselves, nothing is lost, and `status` says
//! what is wrong meanwhile.

use serde_json::{Value, json};
use towpath_tests::machine::docker;
use towpath_tests::{BrokerVersion, Condition, Demo, Instance, eventually, holds, http};

use crate::{LONG, NO_429, NO_500, NO_500_AFTER, NOT_SLOW, SOON, crm_holds_exactly, orders_to_crm};

const FLOW: &str = "orders-to-crm";

/// A shop, and a CRM that takes every order at once.
fn begin(instance: &Instance, orders: u64) -> Demo {
    let orders = orders.to_string();
    let world = [
        ("DEMO_ORDERS", orders.as_str()),
        NO_429,
        NO_500,
        NO_500_AFTER,
        NOT_SLOW,
    ];
    let demo = Demo::start(instance, &world);
    instance
        .run_with(&["secret", "set", "crm_token"], "demo-token")
        .ok();
    instance.apply(&orders_to_crm(2));
    demo
}

fn order(demo: &Demo, count: u64) {
    demo.post(&format!("{}/orders?n={count}", demo.shop));
}

/// Waits until `status` says something with all of these words, in a reason of the flow or a step.
#[track_caller]
fn status_says(instance: &Instance, words: &[&str]) {
    eventually(&format!("`status` says {words:?}"), LONG, || {
        let status = instance.status(FLOW);
        let steps = status["steps"].as_array().cloned().unwrap_or_default();
        let reasons = steps.iter().map(|step| &step["reason"]);
        let reasons: Vec<&str> = std::iter::once(&status["reason"])
            .chain(reasons)
            .filter_map(Value::as_str)
            .collect();
        let said = |reason: &&str| words.iter().all(|word| reason.contains(word));
        holds(reasons.iter().any(said), || status.to_string())
    });
}

#[track_caller]
fn everything_runs(instance: &Instance) {
    eventually("everything says that it runs", LONG, || {
        let status = instance.status(FLOW);
        let steps = status["steps"].as_array().cloned().unwrap_or_default();
        let all = steps.iter().all(|step| step["state"] == "running");
        holds(all && status["broker_up"] == true, || status.to_string())
    });
}

fn rabbitmqctl(instance: &Instance, arguments: &[&str]) {
    let mut all = vec!["exec", &instance.broker.container, "rabbitmqctl", "-q"];
    all.extend(arguments);
    docker(&all);
}

/// Waits until an agent knows that it cannot reach the broker now.
#[track_caller]
fn is_cut_off(container: &str) {
    eventually("an agent notices", SOON, || {
        let log = docker(&["logs", "--tail", "20", container]);
        // The same reason again is not said again.
        let lost = log
            .rfind("the broker cannot be reached")
            .max(log.rfind("the connection to the broker is made again"));
        holds(lost > log.rfind("connected to the broker"), || log.clone())
    });
}

#[test]
fn a_network_that_swallows_everything_is_noticed_and_nothing_is_lost() {
    let version = BrokerVersion::V40;
    let instance = Instance::start_linked(version, version.share(), "?heartbeat=4");
    let demo = begin(&instance, 100);
    crm_holds_exactly(&demo, 100, LONG);
    let before = instance.containers(FLOW, None);
    let links = instance.links.as_ref().expect("it was started with links");
    links.control.set(Condition::BlackHole);
    links.agents.set(Condition::BlackHole);
    order(&demo, 200);
    status_says(&instance, &["the broker cannot be reached"]);
    // Longer than any heartbeat: every agent has given its connection up.
    for name in instance.containers(FLOW, None).keys() {
        is_cut_off(name);
    }
    links.control.set(Condition::Open);
    links.agents.set(Condition::Open);
    crm_holds_exactly(&demo, 300, LONG);
    everything_runs(&instance);
    assert_eq!(
        before,
        instance.containers(FLOW, None),
        "no container was replaced for it"
    );
}

#[test]
fn a_network_that_is_cut_again_and_again_loses_nothing() {
    let version = BrokerVersion::V310;
    let instance = Instance::start_linked(version, version.share(), "");
    let demo = begin(&instance, 6000);
    let links = instance.links.as_ref().expect("it was started with links");
    for round in 1..=5 {
        eventually("orders arrive", LONG, || {
            let stats = demo.crm_stats()?;
            holds(stats["deals"].as_u64() >= Some(round * 400), || {
                stats.to_string()
            })
        });
        links.agents.set(Condition::Cut);
        for name in instance.containers(FLOW, None).keys() {
            is_cut_off(name);
        }
        if round % 2 == 0 {
            links.control.set(Condition::Cut);
            status_says(&instance, &["the broker cannot be reached"]);
        }
        let stats = demo.crm_stats().expect("stats");
        assert_ne!(stats["deals"], 6000, "it is cut in the middle: {stats}");
        links.agents.set(Condition::Open);
        links.control.set(Condition::Open);
    }
    crm_holds_exactly(&demo, 6000, LONG);
    everything_runs(&instance);
}

#[test]
fn a_memory_or_disk_alarm_holds_everything_back_and_status_says_so() {
    let instance = Instance::start_alone(BrokerVersion::V40);
    let demo = begin(&instance, 50);
    crm_holds_exactly(&demo, 50, LONG);
    let alarms = [
        (
            ["set_vm_memory_high_watermark", "0.000001"].as_slice(),
            ["set_vm_memory_high_watermark", "absolute", "1GiB"].as_slice(),
        ),
        (
            ["set_disk_free_limit", "900000000000000"].as_slice(),
            ["set_disk_free_limit", "50MB"].as_slice(),
        ),
    ];
    for (round, (raise, end)) in (1..).zip(alarms) {
        rabbitmqctl(&instance, raise);
        order(&demo, 100);
        status_says(&instance, &["alarm"]);
        let stats = demo.crm_stats().expect("stats");
        assert_eq!(
            stats["deals"].as_u64(),
            Some(100 * round - 50),
            "nothing gets through: {stats}"
        );
        rabbitmqctl(&instance, end);
        crm_holds_exactly(&demo, 100 * round + 50, LONG);
        everything_runs(&instance);
    }
}

#[test]
fn a_broker_that_is_stopped_and_started_by_its_own_tool_loses_nothing() {
    let instance = Instance::start_alone(BrokerVersion::V310);
    let demo = begin(&instance, 2000);
    eventually("orders arrive", LONG, || {
        let stats = demo.crm_stats()?;
        holds(stats["deals"].as_u64() >= Some(200), || stats.to_string())
    });
    rabbitmqctl(&instance, &["stop_app"]);
    status_says(&instance, &["the broker cannot be reached"]);
    rabbitmqctl(&instance, &["start_app"]);
    crm_holds_exactly(&demo, 2000, LONG);
    everything_runs(&instance);
}

#[test]
fn a_queue_deleted_by_hand_comes_back_and_status_says_what_that_cost() {
    let instance = Instance::start(BrokerVersion::V40);
    let demo = begin(&instance, 20);
    crm_holds_exactly(&demo, 20, LONG);
    let queue = format!("{}.flow.{FLOW}.crm", instance.name);
    // Its consumers are cancelled by this.
    rabbitmqctl(&instance, &["delete_queue", "-p", &instance.name, &queue]);
    status_says(&instance, &["made again", "lost"]);
    assert!(
        instance.log().contains(&queue),
        "the log names it: {}",
        instance.log()
    );
    // Bound as it was: what comes from the step before and what comes back from a delay arrive.
    demo.post(&format!("{}/hold?how=refuse", demo.crm));
    order(&demo, 30);
    eventually("they are tried, and come back later", LONG, || {
        let stats = demo.crm_stats()?;
        holds(stats["held"].as_u64() >= Some(60), || stats.to_string())
    });
    demo.post(&format!("{}/release", demo.crm));
    crm_holds_exactly(&demo, 50, LONG);
    everything_runs(&instance);
}

#[test]
fn credentials_that_are_revoked_and_restored_lose_nothing() {
    let instance = Instance::start_alone(BrokerVersion::V310);
    let demo = begin(&instance, 1000);
    let (user, password) = instance.broker.login.split_once(':').expect("a login");
    rabbitmqctl(&instance, &["change_password", user, "another"]);
    rabbitmqctl(
        &instance,
        &[
            "close_all_connections",
            "-p",
            &instance.name,
            "the password was changed",
        ],
    );
    status_says(
        &instance,
        &["the broker cannot be reached", "ACCESS_REFUSED"],
    );
    rabbitmqctl(&instance, &["change_password", user, password]);
    crm_holds_exactly(&demo, 1000, LONG);
    everything_runs(&instance);
}

#[test]
fn permissions_that_are_taken_away_and_restored_lose_nothing() {
    let instance = Instance::start(BrokerVersion::V40);
    let demo = begin(&instance, 100);
    crm_holds_exactly(&demo, 100, LONG);
    let user = instance.broker.login.split(':').next().expect("a user");
    let before = instance.containers(FLOW, None);
    let of_user = |verb, rest: &[&str]| {
        let arguments = [verb, "-p", &instance.name, user];
        rabbitmqctl(&instance, &[arguments.as_slice(), rest].concat());
    };
    // First nobody may connect; then everybody may, and nobody may do anything.
    let cases: [(&str, &[&str]); 2] = [
        ("clear_permissions", &[]),
        ("set_permissions", &["", "", ""]),
    ];
    for (round, (verb, rest)) in (0..).zip(cases) {
        let orders = 100 + round * 2000;
        order(&demo, 1500);
        eventually("orders arrive", LONG, || {
            let stats = demo.crm_stats()?;
            holds(stats["deals"].as_u64() >= Some(orders + 100), || {
                stats.to_string()
            })
        });
        of_user(verb, rest);
        // What is open remembers what it was permitted.
        let reason = "the permissions were changed";
        let close = ["close_all_connections", "-p", &instance.name, reason];
        rabbitmqctl(&instance, &close);
        let words: &[&str] = if round == 0 {
            &["the broker cannot be reached", "NOT_ALLOWED"]
        } else {
            &["ACCESS_REFUSED"]
        };
        status_says(&instance, words);
        order(&demo, 500);
        of_user("set_permissions", &[".*", ".*", ".*"]);
        crm_holds_exactly(&demo, orders + 2000, LONG);
        everything_runs(&instance);
    }
    assert_eq!(
        before,
        instance.containers(FLOW, None),
        "no container was replaced for it"
    );
}

/// A broker that waits for acknowledgements for so short a time, until it is dropped.
struct Impatient<'a>(&'a Instance);

impl<'a> Impatient<'a> {
    fn new(instance: &'a Instance, consumer_timeout_ms: u64) -> Self {
        Self::set(instance, consumer_timeout_ms, 500);
        Self(instance)
    }

    /// Channels read both when they are opened; the tick is how often they look.
    fn set(instance: &Instance, consumer_timeout_ms: u64, channel_tick_ms: u64) {
        let expression = format!(
            "application:set_env(rabbit, consumer_timeout, {consumer_timeout_ms}), \
             application:set_env(rabbit, channel_tick_interval, {channel_tick_ms})."
        );
        rabbitmqctl(instance, &["eval", &expression]);
    }
}

impl Drop for Impatient<'_> {
    fn drop(&mut self) {
        Self::set(self.0, 1_800_000, 60_000);
    }
}

fn a_consumer_timeout(version: BrokerVersion) {
    let instance = Instance::start_alone(version);
    let _impatient = Impatient::new(&instance, 4_000);
    instance.apply(
        r#"
flow: slow
trigger: { id: hook, webhook: true }
actions:
  - id: step
    image: towpath/test-step:test
    timeout: 1m
  - id: log
    image: towpath/log:test
"#,
    );
    let hook = instance.status("slow")["webhook_url"]
        .as_str()
        .expect("a URL")
        .to_owned();
    let body = json!({ "do": "slow", "delay_ms": 12_000 }).to_string();
    let answer = http::send("POST", &hook, None, Some(&body)).expect("an answer");
    assert_eq!(answer.status, 202, "{answer:?}");
    let logs = || instance.run(&["logs", "slow", "step"]).ok().out;
    eventually("the log says which limit it was", LONG, || {
        let logs = logs();
        holds(logs.contains("consumer timeout of 4"), || logs)
    });
    eventually("the message is done", LONG, || {
        let status = instance.status("slow");
        let done = |step: usize| status["steps"][step]["done"] == 1;
        holds(done(0) && done(1), || status.to_string())
    });
    let logs = logs();
    let handed_over = logs.matches("slow: handed over").count();
    assert_eq!(
        handed_over, 1,
        "while the step works at it, it is not handed to it again:\n{logs}"
    );
}

#[test]
fn a_message_that_outlasts_the_consumer_timeout_is_handled_once_on_rabbitmq_3_10() {
    a_consumer_timeout(BrokerVersion::V310);
}

#[test]
fn a_message_that_outlasts_the_consumer_timeout_is_handled_once_on_rabbitmq_4_0() {
    a_consumer_timeout(BrokerVersion::V40);
}
