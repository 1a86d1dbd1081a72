//! Many dead letters: by kind, edited, replayed, and what a person gets wrong about them.

use std::process::{Child, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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

/// How many dead letters are edited and replayed: a thousand, or as many as
/// `TOWPATH_TEST_DEAD_LETTERS` says, an even number. That is for many more, by hand; a test that is
/// given more than its limits of time are made for says so.
fn many() -> u64 {
    std::env::var("TOWPATH_TEST_DEAD_LETTERS")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(1_000)
}

fn begin(count: u64) -> Instance {
    let instance = Instance::start(BrokerVersion::V40);
    instance.apply(FLOW);
    send(&instance, &json!({ "do": "flood", "count": count }));
    open(&instance, count);
    instance
}

/// Sends a message into the flow, and returns its id.
fn send(instance: &Instance, body: &Value) -> String {
    let status = instance.status("letters");
    let hook = status["webhook_url"].as_str().expect("a webhook");
    let answer = towpath_tests::http::send("POST", hook, None, Some(&body.to_string()));
    let answer = answer.expect("an answer");
    assert_eq!(answer.status, 202, "{answer:?}");
    let taken: Value = serde_json::from_str(&answer.text).expect("JSON");
    taken["id"].as_str().expect("an id").to_owned()
}

/// Sends a message that `strict` gets as it is given here.
fn send_to_strict(instance: &Instance, body: &Value) -> String {
    send(instance, &json!({ "do": "pass", "pass": body }))
}

/// What `status` says of the two steps.
fn steps(instance: &Instance) -> (Value, Value) {
    let steps = instance.status("letters")["steps"].clone();
    assert_eq!(
        (&steps[0]["step"], &steps[1]["step"]),
        (&json!("flood"), &json!("strict")),
        "{steps}"
    );
    (steps[0].clone(), steps[1].clone())
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
    // The first batch, of at most 50, goes at once.
    let fastest = Duration::from_secs_f64(count.saturating_sub(50) as f64 / 500.0);
    assert!(took >= fastest, "{took:?} is less than {fastest:?}");

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

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.expect("a clock").as_millis()).expect("a time")
}

#[test]
fn a_dead_letter_keeps_its_causes_its_attempts_with_their_logs_and_where_it_came_from() {
    let instance = Instance::start(BrokerVersion::V40);
    instance.apply(FLOW);
    let strict = "concurrency: 32, retry: { attempts: 5, initial: 500ms, max: 500ms, jitter: 0 }";
    instance.apply(&FLOW.replace("concurrency: 32", strict));
    let before = now_ms();
    let body = json!({ "do": "explain", "count": 2, "note": "kept as it is" });
    let run = send_to_strict(&instance, &body);
    open(&instance, 1);
    let after = now_ms();
    let id = exported(&instance, "open")[0]["id"].to_string();
    let shown = instance.run(&["dead", "show", &id, "--output", "json"]);
    let letter = shown.ok().json();
    assert_eq!(letter["cause"], "permanent", "{letter}");
    assert_eq!(letter["reason"], "the order cannot be handled", "{letter}");
    assert_eq!(
        letter["chain"],
        json!(["the total cannot be read", "invalid digit found in string"]),
        "every cause, the outermost first: {letter}"
    );
    assert_eq!(
        (&letter["flow"], &letter["step"], &letter["version"]),
        (&json!("letters"), &json!("strict"), &json!(2)),
        "{letter}"
    );
    assert_eq!(letter["run"], json!(run), "{letter}");
    assert_ne!(letter["message_id"], json!(run), "{letter}");
    assert_eq!(letter["message"]["parent"], json!(run), "{letter}");
    assert_eq!(letter["body"], body, "{letter}");

    let attempts = letter["attempts"].as_array().expect("attempts");
    assert_eq!(attempts.len(), 3, "{letter}");
    let mut last = before;
    for (number, attempt) in (1_u64..).zip(attempts) {
        assert_eq!(attempt["attempt"], json!(number), "{attempt}");
        assert_eq!(attempt["replica"], json!(1), "{attempt}");
        let reason = attempt["reason"].as_str().expect("a reason");
        assert!(reason.contains("the order cannot be handled"), "{attempt}");
        let at = attempt["at"].as_u64().expect("a time");
        let wait = if number == 1 { 0 } else { 500 };
        assert!(
            (last + wait..=after).contains(&at),
            "after {last}: {letter}"
        );
        last = at;
        let log = attempt["log"].as_array().expect("a log");
        let said = log.iter().map(|line| line.as_str().expect("a line"));
        let said: Vec<_> = said.collect();
        assert_eq!(said.len(), 2, "its own lines, and no other's: {attempt}");
        let own = format!("reading the total, attempt {number}");
        assert!(said[0].contains(&own), "{attempt}");
        assert!(said[1].contains("the total is a word"), "{attempt}");
    }
    assert!((last..=after).contains(&letter["at"].as_u64().expect("a time")));
    // A person reads the same.
    let text = instance.run(&["dead", "show", &id]).ok().out;
    for part in [
        "the order cannot be handled",
        "the total cannot be read",
        "invalid digit found in string",
        "reading the total, attempt 1",
        "reading the total, attempt 3",
        &run,
    ] {
        assert!(text.contains(part), "no `{part}` in\n{text}");
    }
}

#[test]
fn a_replay_from_an_earlier_step_arrives_there_and_goes_through_the_later_one_again() {
    let instance = begin(3);
    let letters = exported(&instance, "open");
    let id = letters[0]["id"].to_string();
    let is_counted = |flood: u64, strict: u64| {
        eventually("both steps have done so many", SOON, || {
            let seen = steps(&instance);
            let counts = (&seen.0["done"], &seen.1["done"]);
            holds(counts == (&json!(flood), &json!(strict)), || {
                format!("{seen:?}")
            })
        });
    };
    is_counted(1, 0);
    let body = json!({ "do": "pass", "pass": { "do": "ok" } }).to_string();
    let editor = format!("printf '%s' '{body}' >");
    let mut edit = instance.cli(&["dead", "edit", &id]);
    let edited = edit.env("EDITOR", editor).output().expect("it runs");
    assert!(edited.status.success(), "{edited:?}");
    let replay = ["dead", "replay", &id, "--from", "flood"];
    let said = instance.run(&replay).ok();
    assert!(said.out.contains("is with `flood`"), "{said:?}");
    // Had it gone to `strict`, `flood` would have done one only.
    is_counted(2, 1);
    let (_, strict) = steps(&instance);
    assert_eq!(
        (&strict["received"], &strict["dead"]),
        (&json!(4), &json!(3)),
        "three that died, and one that came by `flood`: {strict}"
    );
    let replayed = exported(&instance, "replayed");
    assert_eq!(replayed.len(), 1, "{replayed:?}");
    assert_eq!(replayed[0]["message_id"], letters[0]["message_id"]);
    let others = exported(&instance, "open");
    assert_eq!(
        others.len(),
        2,
        "the others are where they were: {others:?}"
    );
    assert!(others.iter().all(|other| other["replays"] == 0));
}

#[test]
fn a_group_is_discarded_and_no_other_and_what_is_discarded_cannot_be_replayed() {
    let instance = begin(3);
    for _ in 0..2 {
        send_to_strict(&instance, &json!({ "do": "permanent" }));
    }
    let groups_now = open(&instance, 5);
    let counts: Vec<_> = groups_now.iter().map(|group| &group["count"]).collect();
    assert_eq!(counts, [3, 2], "the larger one first: {groups_now:?}");
    let [doomed, spared] = [0, 1].map(|at| groups_now[at]["group"].as_str().expect("an id"));
    let discard = ["dead", "discard", "--group", doomed];
    instance.run(&[&discard[..], &["--dry-run"]].concat()).ok();
    assert_eq!(groups(&instance).len(), 2, "a dry run does nothing");
    let said = instance.run(&discard).ok();
    assert!(said.out.contains("3 dead letters"), "{said:?}");

    let discarded = exported(&instance, "discarded");
    assert_eq!(discarded.len(), 3, "{discarded:?}");
    assert!(discarded.iter().all(|letter| letter["group"] == doomed));
    let left = exported(&instance, "open");
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(left.iter().all(|letter| letter["group"] == spared));

    let id = discarded[0]["id"].to_string();
    let said = instance.run(&["dead", "replay", &id]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("was discarded already"), "{said:?}");
    let said = instance.run(&["dead", "replay", "--group", doomed]);
    assert_eq!(said.code, 1, "{said:?}");
    // All that there are, are those that were spared.
    let said = instance.run(&["dead", "replay", "--all"]).ok();
    assert!(said.out.contains("2 of 2 sent"), "{said:?}");
    eventually("those are dead again", SOON, || {
        let letters = exported(&instance, "open");
        let again = letters.iter().filter(|it| it["replays"] == 1);
        holds(again.count() == 2 && letters.len() == 2, || {
            format!("{letters:?}")
        })
    });
    assert_eq!(exported(&instance, "discarded").len(), 3);
    eventually("nothing else came to `strict`", SOON, || {
        let (_, strict) = steps(&instance);
        holds(strict["received"] == 7, || strict.to_string())
    });
}

#[test]
fn of_two_replays_of_a_letter_at_the_same_moment_one_is_taken_and_the_other_says_so() {
    const LETTERS: u64 = 5;
    let instance = begin(LETTERS);
    let letters = exported(&instance, "open");
    let ids: Vec<String> = letters.iter().map(|it| it["id"].to_string()).collect();
    let start = |id: &str| -> Child {
        let mut replay = instance.cli(&["dead", "replay", id]);
        let replay = replay.stdin(Stdio::null());
        let replay = replay.stdout(Stdio::piped()).stderr(Stdio::piped());
        replay.spawn().expect("the CLI can be started")
    };
    let pairs: Vec<[Child; 2]> = ids.iter().map(|id| [start(id), start(id)]).collect();
    for (id, pair) in ids.iter().zip(pairs) {
        let ended = pair.map(|child| child.wait_with_output().expect("the CLI ends"));
        let (taken, refused): (Vec<_>, Vec<_>) =
            ended.iter().partition(|output| output.status.success());
        assert_eq!(taken.len(), 1, "one of them, and not both: {ended:?}");
        assert_eq!(refused[0].status.code(), Some(1), "{ended:?}");
        let error = String::from_utf8_lossy(&refused[0].stderr);
        let late = format!("dead letter {id} was replayed already");
        let amid = format!("dead letter {id} is being sent just now");
        assert!(error.contains(&late) || error.contains(&amid), "{error}");
    }
    // What is sent last is done last: whatever was sent twice has come by then. The letters alone
    // would not tell, because the same death is stored once.
    send_to_strict(&instance, &json!({ "do": "ok" }));
    let strict = eventually("what was sent last is done", SOON, || {
        let (_, strict) = steps(&instance);
        let are_dead = strict["dead"].as_u64() >= Some(2 * LETTERS);
        holds(are_dead && strict["done"] == 1, || strict.to_string())?;
        Ok(strict)
    });
    assert_eq!(
        (&strict["received"], &strict["dead"]),
        (&json!(2 * LETTERS + 1), &json!(2 * LETTERS)),
        "each died twice: {strict}"
    );
    open(&instance, LETTERS);
    let again = exported(&instance, "open");
    assert!(again.iter().all(|it| it["replays"] == 1), "{again:?}");
    assert_eq!(exported(&instance, "replayed").len() as u64, LETTERS);
}
