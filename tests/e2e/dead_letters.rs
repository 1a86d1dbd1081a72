//! Many dead letters: by kind, edited, replayed, and what a person gets wrong about them.

use serde_json::{Value, json};
use towpath_tests::{BrokerVersion, Demo, Instance, eventually, holds};

use crate::{LONG, NO_429, NO_500, NO_500_AFTER, NOT_SLOW, SOON};

/// One message to `flood` becomes many that `strict` cannot read.
const FLOW: &str = r#"
flow: letters
trigger: { id: hook, webhook: true }
actions:
  - { id: flood, image: "towpath/test-step:test" }
  - { id: strict, image: "towpath/test-step:test", concurrency: 32 }
"#;

/// How many dead letters there are in a test; many more by hand.
fn many() -> u64 {
    std::env::var("TOWPATH_TEST_DEAD_LETTERS")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(1_000)
}

fn begin(count: u64) -> Instance {
    let instance = Instance::start(BrokerVersion::V40);
    instance.apply(FLOW);
    let hook = instance.status("letters")["webhook_url"]
        .as_str()
        .expect("a webhook")
        .to_owned();
    let body = json!({ "do": "flood", "count": count });
    let answer = towpath_tests::http::send("POST", &hook, None, Some(&body.to_string()));
    let answer = answer.expect("an answer");
    assert_eq!(answer.status, 202, "{answer:?}");
    open(&instance, count);
    instance
}

/// Waits until so many are open, and all of them in groups.
fn open(instance: &Instance, count: u64) -> Vec<Value> {
    eventually("dead letters", LONG, || {
        let groups = groups(instance);
        let open: u64 = groups.iter().filter_map(|it| it["count"].as_u64()).sum();
        holds(open == count, || format!("{open} of {count}"))?;
        Ok(groups)
    })
}

fn groups(instance: &Instance) -> Vec<Value> {
    let list = instance.run(&["dead", "groups", "--output", "json"]).ok();
    list.json()["groups"].as_array().expect("groups").clone()
}

fn exported(instance: &Instance, state: &str) -> Vec<Value> {
    let lines = instance.run(&["dead", "export", "--state", state]).ok();
    lines
        .out
        .lines()
        .map(|line| serde_json::from_str(line).expect("a letter a line"))
        .collect()
}

#[test]
fn a_group_is_edited_and_replayed_and_each_is_settled_or_dead_again_with_its_history() {
    let count = many();
    let instance = begin(count);
    let groups = groups(&instance);
    assert_eq!(
        groups.len(),
        1,
        "they all failed in the same way: {groups:?}"
    );
    let group = groups[0]["group"].as_str().expect("an id");
    // Every second one is mended.
    let mended = count / 2;
    let even = [
        "dead",
        "edit",
        "--group",
        group,
        "--filter",
        ".body.number % 2 == 0",
        "--jq",
        "{do: \"ok\", number}",
    ];
    let shown = instance.run(&[&even[..], &["--dry-run"]].concat()).ok();
    assert!(shown.out.contains("+  \"do\": \"ok\""), "{shown:?}");
    let said = instance.run(&even).ok();
    assert!(
        said.out.contains(&format!("{mended} dead letters")),
        "{said:?}"
    );

    let replay = ["dead", "replay", "--group", group, "--rate", "500/s"];
    let dry = instance.run(&[&replay[..], &["--dry-run"]].concat()).ok();
    assert!(
        dry.out.contains(&format!("{count} from `strict`")),
        "{dry:?}"
    );
    let began = std::time::Instant::now();
    let said = instance.run(&replay).ok();
    let took = began.elapsed();
    assert!(
        said.out.contains(&format!("{count} of {count} sent")),
        "{said:?}"
    );
    eprintln!("{count} dead letters replayed at 500/s in {took:?}");

    open(&instance, count - mended);
    eventually("the mended ones are done", LONG, || {
        let status = instance.status("letters");
        let steps = status["steps"].as_array().cloned().unwrap_or_default();
        let strict = steps.iter().find(|step| step["step"] == "strict").cloned();
        let done = strict.as_ref().and_then(|step| step["done"].as_u64());
        holds(done == Some(mended), || format!("{strict:?}"))
    });
    // Each that is dead again says so, and has the same id as before.
    let again = exported(&instance, "open");
    assert!(again.iter().all(|letter| letter["replays"] == 1));
    let before = exported(&instance, "replayed");
    assert_eq!(before.len() as u64, count);
    let ids = |letters: &[Value]| -> std::collections::BTreeSet<String> {
        letters
            .iter()
            .map(|it| it["message_id"].to_string())
            .collect()
    };
    assert_eq!(ids(&before).len() as u64, count);
    assert_eq!(
        ids(&again).len() as u64,
        count - mended,
        "each of them once"
    );
    assert!(ids(&again).is_subset(&ids(&before)));
    let one = again[0]["id"].to_string();
    let shown = instance.run(&["dead", "show", &one]).ok();
    assert!(
        shown.out.contains("(replayed), undecodable")
            || shown.out.contains("(replayed), permanent"),
        "{}",
        shown.out
    );
    let metrics =
        towpath_tests::http::send("GET", &format!("{}/metrics", instance.url), None, None);
    let metrics = metrics.expect("metrics").text;
    let line = format!("step=\"strict\"}} {count}");
    assert!(
        metrics
            .lines()
            .any(|it| it.starts_with("towpath_dead_letters_replayed_total") && it.ends_with(&line)),
        "{metrics}"
    );
}

#[test]
fn a_replay_goes_on_after_the_control_plane_was_killed() {
    let count = 200;
    let mut instance = begin(count);
    let said = instance
        .run(&["dead", "replay", "--all", "--rate", "40/s", "--no-wait"])
        .ok();
    assert!(said.out.contains("job 1 sends 200"), "{said:?}");
    let job = |instance: &Instance| -> Value {
        let jobs = instance
            .run(&["dead", "jobs", "--output", "json"])
            .ok()
            .json();
        jobs["jobs"][0].clone()
    };
    eventually("some are sent", SOON, || {
        let job = job(&instance);
        holds(job["sent"].as_u64() > Some(10), || job.to_string())
    });
    instance.kill();
    instance.serve();
    instance.run(&["dead", "jobs", "watch", "1"]).ok();
    let job = job(&instance);
    assert_eq!((&job["state"], &job["sent"]), (&json!("done"), &json!(200)));
    open(&instance, count);
    let ids: std::collections::BTreeSet<String> = exported(&instance, "open")
        .iter()
        .filter(|letter| letter["replays"] == 1)
        .map(|letter| letter["message_id"].to_string())
        .collect();
    assert_eq!(
        ids.len() as u64,
        count,
        "each died again, and is there once"
    );
}

#[test]
fn what_a_person_gets_wrong_about_dead_letters_is_said_and_nothing_is_sent() {
    let instance = begin(5);
    // The first is sent at once and dies again; the rest waits for an hour.
    let slow = ["dead", "replay", "--all", "--rate", "1/h", "--no-wait"];
    let job = instance.run(&slow).ok();
    assert!(job.out.contains("job 1 sends 5"), "{job:?}");
    eventually("the first is dead again", SOON, || {
        let letters = exported(&instance, "open");
        holds(letters.len() == 1, || format!("{letters:?}"))
    });
    instance.run(&["dead", "discard", "6"]).ok();
    let mut said = Vec::new();
    let mut wrong = |arguments: &[&str]| {
        let answer = instance.run(&[&["dead"], arguments].concat());
        assert_eq!(answer.code, 1, "{arguments:?}: {answer:?}");
        let error = answer.err.trim_end();
        said.push(format!("$ towpath dead {}\n{error}", arguments.join(" ")));
    };
    for arguments in [
        &["replay"][..],
        &["replay", "99"],
        &["replay", "1"],
        &["replay", "5"],
        &["replay", "6"],
        &["replay", "--all"],
        &["show", "no-such-id"],
        &["list", "--filter", ".body.number >"],
        &["list", "--cause", "bored"],
        &["discard", "--group", "0123456789ab"],
        &["edit", "5", "--undo"],
        &["edit", "--all", "--jq", ".a |"],
        &["jobs", "cancel", "9"],
    ] {
        wrong(arguments);
    }
    instance.run(&["dead", "jobs", "cancel", "1"]).ok();
    eventually("the rest is open again", SOON, || {
        let letters = exported(&instance, "open");
        holds(letters.len() == 4, || format!("{letters:?}"))
    });
    wrong(&["replay", "5", "--from", "hook"]);
    wrong(&["replay", "--all", "--from", "nosuch"]);
    assert_eq!(exported(&instance, "open").len(), 4, "nothing was sent");
    insta::assert_snapshot!(said.join("\n\n"));
    instance
        .run(&["dead", "replay", "5", "--from", "flood"])
        .ok();
}

#[test]
fn a_trigger_that_fails_for_good_is_one_dead_letter_that_counts() {
    let instance = Instance::start(BrokerVersion::V40);
    let _demo = Demo::start(&instance, &[NO_429, NO_500, NO_500_AFTER, NOT_SLOW]);
    instance.apply(
        r#"
flow: wrong
trigger:
  id: orders
  image: towpath/http-poll:test
  every: 1s
  with: { url: "http://shop:8080/no-such-path", cursor: updated_at }
actions: [{ id: log, image: "towpath/log:test" }]
"#,
    );
    let letters = eventually("it has failed again and again", LONG, || {
        let letters = exported(&instance, "open");
        let repeats = letters
            .first()
            .and_then(|letter| letter["repeats"].as_u64());
        holds(repeats >= Some(2), || format!("{letters:?}"))?;
        Ok(letters)
    });
    assert_eq!(letters.len(), 1, "{letters:?}");
}

#[test]
fn a_body_is_edited_in_an_editor_and_what_is_not_json_is_refused_and_kept() {
    let instance = begin(1);
    let id = exported(&instance, "open")[0]["id"].to_string();
    let edit = |editor: &str| {
        let mut command = instance.cli(&["dead", "edit", &id]);
        let output = command.env("EDITOR", editor).output().expect("it runs");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (code, error) = edit("printf '{\"do\": ok}' >");
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("the body is not JSON: line 1"), "{error}");
    let kept = error.split('`').nth(1).expect("the file is named");
    assert_eq!(
        std::fs::read_to_string(kept).expect("it is there"),
        "{\"do\": ok}"
    );
    std::fs::remove_file(kept).expect("it can go");
    assert_eq!(exported(&instance, "open")[0]["body"]["do"], Value::Null);
    let (code, error) = edit("printf '{\"do\": \"ok\"}' >");
    assert_eq!(code, Some(0), "{error}");
    instance.run(&["dead", "replay", &id]).ok();
    eventually("the edited one is done", SOON, || {
        let status = instance.status("letters");
        holds(status["steps"][1]["done"] == 1, || status.to_string())
    });
    assert!(exported(&instance, "open").is_empty());
}

#[test]
fn what_failed_at_a_step_that_is_gone_is_replayed_from_one_there_is() {
    let instance = begin(2);
    let path = instance.write("renamed.yaml", &FLOW.replace("id: strict", "id: lenient"));
    instance.run(&["apply", &path]).ok();
    let id = exported(&instance, "open")[0]["id"].to_string();
    let said = instance.run(&["dead", "replay", &id]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("there is no step `strict`"), "{said:?}");
    assert!(said.err.contains("`flood`, `lenient`"), "{said:?}");
    assert_eq!(exported(&instance, "open").len(), 2, "nothing was sent");
    instance
        .run(&["dead", "replay", "--all", "--from", "lenient"])
        .ok();
    eventually("they failed there as well", SOON, || {
        let letters = exported(&instance, "open");
        let there = letters.iter().filter(|it| it["step"] == "lenient");
        holds(there.count() == 2 && letters.len() == 2, || {
            format!("{letters:?}")
        })
    });
}
