//! Runs: what came of each is known exactly, whatever is killed meanwhile; replays, stalls, cancels.

use std::time::Duration;

use serde_json::{Value, json};
use towpath_tests::machine::docker;
use towpath_tests::{BrokerVersion, Demo, Instance, eventually, holds};

use crate::{LONG, NO_429, NO_500, NO_500_AFTER, NOT_SLOW, SOON};

/// How many messages the first action makes of the one that the trigger brings in. Above what an
/// agent holds back until a message is done, so that some are published before that.
const COUNT: u64 = 400;

/// Every tenth of them fails for good.
const DEAD: u64 = COUNT / 10;

/// A trigger, and three steps before the CRM. It is fired once.
fn flow() -> String {
    format!(
        r#"
flow: sums
trigger:
  id: start
  image: towpath/timer:test
  every: 365d
  with: {{ payload: {{ do: flood, count: {COUNT} }} }}
actions:
  - {{ id: open, image: "towpath/jq:test", with: {{ filter: .payload }} }}
  - {{ id: many, image: "towpath/test-step:test" }}
  - id: shape
    image: towpath/jq:test
    with:
      filter: |
        {{
          do: (if .number % 10 == 0 then "permanent" else "pass" end),
          pass: {{ id: "n\(.number)" }}
        }}
  - {{ id: gate, image: "towpath/test-step:test", replicas: 2 }}
  - id: crm
    image: towpath/http-request:test
    concurrency: 4
    retry: {{ attempts: 20, initial: 500ms, factor: 1.5, max: 2s }}
    with:
      method: PUT
      url: "http://crm:8080/deals/{{{{ .id }}}}"
      headers: {{ authorization: "Bearer ${{secrets.crm_token}}" }}
"#
    )
}

fn begin(settings: &[(&str, &str)]) -> (Instance, Demo) {
    let instance = Instance::start(BrokerVersion::V40);
    instance
        .run_with(&["secret", "set", "crm_token"], "demo-token")
        .ok();
    let quiet = [NO_429, NO_500, NO_500_AFTER, NOT_SLOW];
    let demo = Demo::start(&instance, &[&quiet[..], settings].concat());
    instance.apply(&flow());
    (instance, demo)
}

/// The newest run of a flow.
fn newest(instance: &Instance, flow: &str) -> Result<Value, String> {
    let said = instance.run(&["runs", "list", flow, "--output", "json"]);
    if said.code != 0 {
        return Err(said.err);
    }
    let list = said.json();
    list["runs"]
        .get(0)
        .cloned()
        .ok_or_else(|| "there is no run".to_owned())
}

fn in_state(instance: &Instance, flow: &str, state: &str, limit: Duration) -> Value {
    eventually(&format!("the run is {state}"), limit, || {
        let run = newest(instance, flow)?;
        holds(run["state"] == state, || run.to_string())?;
        Ok(run)
    })
}

/// What came to each step, and what became of it: step, emitted, done, dead.
fn sums(run: &Value) -> Vec<(String, u64, u64, u64)> {
    let steps = run["steps"].as_array().cloned().unwrap_or_default();
    let number = |step: &Value, key: &str| step[key].as_u64().unwrap_or(u64::MAX);
    let sums = steps.iter().map(|step| {
        assert_eq!(step["open"], 0, "{run:#}");
        (
            step["step"].as_str().unwrap_or_default().to_owned(),
            number(step, "emitted"),
            number(step, "done"),
            number(step, "dead"),
        )
    });
    let mut sums: Vec<_> = sums.collect();
    sums.sort();
    sums
}

fn expected() -> Vec<(String, u64, u64, u64)> {
    let live = COUNT - DEAD;
    let sums = [
        ("crm", live, live, 0),
        ("gate", COUNT, live, DEAD),
        ("many", 1, 1, 0),
        ("open", 1, 1, 0),
        ("shape", COUNT, COUNT, 0),
    ];
    sums.map(|(step, emitted, done, dead)| (step.to_owned(), emitted, done, dead))
        .to_vec()
}

fn deals(demo: &Demo) -> u64 {
    let stats = demo.crm_stats().expect("the CRM answers");
    stats["deals"].as_u64().expect("a number")
}

#[test]
fn a_run_with_messages_that_fail_for_good_ends_with_exact_sums_and_a_replay_turns_it_to_done() {
    let (instance, demo) = begin(&[]);
    let run = in_state(&instance, "sums", "done_with_dead_letters", LONG);
    assert_eq!(sums(&run), expected());
    assert_eq!(deals(&demo), COUNT - DEAD);
    assert_eq!(
        (&run["why"], &run["tick"]),
        (&json!("schedule"), &json!("done"))
    );
    assert!(run["checkpoint_before"].is_null(), "{run:#}");
    let after = run["checkpoint_after"].as_str().expect("a checkpoint");
    assert!(after.contains("\"count\":1"), "{after}");
    let id = run["id"].as_str().expect("an id");
    let shown = instance.run(&["runs", "show", id]).ok();
    for part in ["done with dead letters", "checkpoint after", "gate"] {
        assert!(shown.out.contains(part), "{}", shown.out);
    }
    let status = instance.run(&["status", "sums"]).ok();
    assert!(
        status.out.contains("done with dead letters"),
        "{}",
        status.out
    );
    let other = ["runs", "list", "sums", "--state", "running"];
    assert!(instance.run(&other).ok().out.contains("no such runs"));

    let edit = ["dead", "edit", "--flow", "sums", "--jq", ".do = \"pass\""];
    instance.run(&edit).ok();
    instance.run(&["dead", "replay", "--flow", "sums"]).ok();
    let run = in_state(&instance, "sums", "done", LONG);
    assert_eq!(run["messages"]["dead"], 0);
    assert_eq!(run["messages"]["emitted"], 2 + 3 * COUNT);
    assert_eq!(deals(&demo), COUNT);
    let refused = instance.run(&["runs", "cancel", id]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.err.contains("is over: done"), "{refused:?}");
}

#[test]
fn killing_agents_and_the_control_plane_in_the_middle_changes_no_sum() {
    // So that it takes some seconds.
    let (mut instance, demo) = begin(&[("DEMO_DELAY_MS", "60")]);
    eventually("it is in the middle", LONG, || {
        let deals = deals(&demo);
        holds(deals > 0, || format!("{deals} deals"))
    });
    for step in ["crm", "gate", "shape", "many", "start"] {
        let containers = instance.containers("sums", Some(step));
        for container in containers.values() {
            docker(&["kill", container]);
        }
        if step == "gate" {
            instance.kill();
        }
        if step == "many" {
            instance.serve();
        }
    }
    let containers = instance.containers("sums", Some("crm"));
    for container in containers.values() {
        docker(&["kill", container]);
    }
    let run = in_state(&instance, "sums", "done_with_dead_letters", LONG);
    assert_eq!(sums(&run), expected());
    assert_eq!(deals(&demo), COUNT - DEAD, "as many as the target got");
    let dead = instance
        .run(&["dead", "groups", "--output", "json"])
        .ok()
        .json();
    assert_eq!(dead["groups"][0]["count"], DEAD, "{dead}");
}

#[test]
fn a_run_whose_trigger_does_not_move_is_stalled_and_can_be_cancelled() {
    let instance = Instance::start_set(
        BrokerVersion::V40,
        &[("TOWPATH_STALLED_AFTER_SECONDS", "4")],
    );
    // The shop takes so long to answer that nothing moves.
    let demo = Demo::start(&instance, &[("DEMO_DELAY_MS", "20000")]);
    let flow = r#"
flow: slow
trigger:
  id: orders
  image: towpath/http-poll:test
  every: 365d
  with: { url: "http://shop:8080/orders", cursor: updated_at }
actions:
  - { id: log, image: "towpath/log:test" }
"#;
    instance.apply(flow);
    let run = in_state(&instance, "slow", "stalled", SOON);
    let note = run["note"].as_str().expect("a note");
    assert!(note.contains("`orders` has it"), "{note}");
    let id = run["id"].as_str().expect("an id").to_owned();
    let said = instance.run(&["runs", "cancel", &id]).ok();
    assert!(
        said.out.contains("as soon as `orders` leaves it"),
        "{said:?}"
    );
    let run = in_state(&instance, "slow", "cancelled", SOON);
    assert_eq!(run["id"], json!(id));
    let dead = instance.run(&["dead", "list", "--output", "json"]).ok();
    assert_eq!(dead.json()["dead"].as_array().map(Vec::len), Some(0));
    // The next one can begin.
    instance.run(&["run", "slow"]).ok();
    let next = newest(&instance, "slow").expect("a run");
    assert_ne!(next["id"], json!(id));
    drop(demo);
}

#[test]
fn a_paused_flow_has_a_paused_run_and_without_track_only_its_trigger_is_followed() {
    let instance = Instance::start(BrokerVersion::V40);
    let flow = |track: &str| {
        format!(
            r#"
flow: still
{track}
trigger: {{ id: start, image: "towpath/timer:test", every: 365d, with: {{ payload: {{ do: ok }} }} }}
actions:
  - {{ id: open, image: "towpath/jq:test", with: {{ filter: .payload }} }}
  - {{ id: work, image: "towpath/test-step:test" }}
"#
        )
    };
    instance.apply(&flow(""));
    in_state(&instance, "still", "done", LONG);
    instance.run(&["pause", "still", "work"]).ok();
    eventually("`work` is paused", SOON, || {
        let status = instance.status("still");
        holds(status["steps"][2]["state"] == "paused", || {
            status.to_string()
        })
    });
    instance.run(&["run", "still"]).ok();
    let run = in_state(&instance, "still", "paused", SOON);
    assert_eq!(run["messages"]["open"], 1);
    instance.run(&["resume", "still", "work"]).ok();
    in_state(&instance, "still", "done", SOON);
    instance.apply(&flow("track: false"));
    instance.run(&["run", "still", "--wait"]).ok();
    let run = newest(&instance, "still").expect("a run");
    assert_eq!(
        (&run["tracked"], &run["state"]),
        (&json!(false), &json!("done"))
    );
    assert!(run["messages"].is_null());
}
