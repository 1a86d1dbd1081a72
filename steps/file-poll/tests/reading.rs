//! Rows of files: through the step's own loop, from real folders.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tempfile::TempDir;
use towpath_file_poll::{UNREADABLE, Unreadable, poll, setup};
use towpath_step::testing::{Outcome, TestRun};
use towpath_step::{Fate, Step};

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

fn write(folder: &TempDir, name: &str, text: impl AsRef<[u8]>) {
    fs::write(folder.path().join(name), text).expect("written");
}

fn append(folder: &TempDir, name: &str, text: &str) {
    let file = fs::OpenOptions::new()
        .append(true)
        .open(folder.path().join(name));
    file.expect("it is there")
        .write_all(text.as_bytes())
        .expect("written");
}

/// As if nobody had written to it for an hour.
fn settle(folder: &TempDir, name: &str) {
    let file = fs::File::options()
        .write(true)
        .open(folder.path().join(name));
    let then = SystemTime::now() - Duration::from_secs(3600);
    file.expect("it is there").set_modified(then).expect("set");
}

async fn run(folder: &TempDir, config: &Value, checkpoint: Option<&Value>) -> Outcome {
    let mut all = json!({"files": folder.path().join("*").to_str()});
    for (key, value) in config.as_object().expect("an object") {
        all[key] = value.clone();
    }
    let step = Step::poll(poll).setup(setup).port::<Unreadable>(UNREADABLE);
    let mut trial = TestRun::of(step).config(all).tick();
    if let Some(checkpoint) = checkpoint {
        trial = trial.checkpoint(checkpoint.clone());
    }
    trial.await
}

async fn read(folder: &TempDir, config: &Value, checkpoint: Option<&Value>) -> Outcome {
    let outcome = run(folder, config, checkpoint).await;
    assert!(outcome.is_done(), "{:?}", outcome.failure);
    outcome
}

fn last(outcome: &Outcome) -> &Value {
    outcome.checkpoints.last().expect("a checkpoint")
}

/// The bodies, by the ids that the source gave them.
fn by_id(outcomes: &[&Outcome]) -> BTreeMap<String, Value> {
    let outputs = outcomes.iter().flat_map(|outcome| &outcome.outputs);
    outputs
        .map(|it| (it.source_id.clone().expect("an id"), it.body.clone()))
        .collect()
}

#[tokio::test]
async fn each_line_of_json_is_a_message_and_each_comes_once() {
    let folder = folder();
    write(&folder, "b.jsonl", "{\"n\": 3}\n");
    write(&folder, "a.jsonl", "{\"n\": 1}\r\n\n{\"n\": 2}\n");
    write(&folder, ".hidden.jsonl", "{\"n\": 9}\n");
    let first = read(&folder, &json!({}), None).await;
    assert_eq!(
        first.bodies(),
        [&json!({"n": 1}), &json!({"n": 2}), &json!({"n": 3})]
    );
    assert_eq!(first.outputs[0].headers["file.name"], "a.jsonl");
    let second = read(&folder, &json!({}), Some(last(&first))).await;
    assert_eq!(second.bodies().len(), 0);
    append(&folder, "a.jsonl", "{\"n\": 4}\n");
    let third = read(&folder, &json!({}), Some(last(&first))).await;
    assert_eq!(third.bodies(), [&json!({"n": 4})]);
}

#[tokio::test]
async fn each_row_of_csv_is_an_object_in_the_order_of_its_columns() {
    let folder = folder();
    let text = "\u{feff}id,name,name,\r\n7,\"Ada; \"\"A\"\"\nLovelace\",x,y\r\n\r\n8,Björn,,\r\n";
    write(&folder, "a.csv", text);
    let outcome = read(&folder, &json!({}), None).await;
    let ada = json!({"id": "7", "name": "Ada; \"A\"\nLovelace", "column_3": "x", "column_4": "y"});
    let other = json!({"id": "8", "name": "Björn", "column_3": "", "column_4": ""});
    assert_eq!(outcome.bodies(), [&ada, &other]);

    let folder = self::folder();
    write(&folder, "a.tsv", "1\tone\n2\ttwo\n");
    let config = json!({"columns": ["n", "word"]});
    let outcome = read(&folder, &config, None).await;
    assert_eq!(outcome.bodies()[1], &json!({"n": "2", "word": "two"}));
}

#[tokio::test]
async fn a_row_that_is_not_whole_yet_waits() {
    let text = "id,text\n1,\"a\nb\"\n2,\"c \"\"d\"\"\n\"\n3,e\n";
    let whole: Vec<Value> = ["a\nb", "c \"d\"\n", "e"]
        .iter()
        .enumerate()
        .map(|(at, text)| json!({"id": (at + 1).to_string(), "text": text}))
        .collect();
    // Wherever the writer is when the file is read.
    for cut in 0..text.len() {
        let folder = folder();
        write(&folder, "a.csv", &text[..cut]);
        let first = read(&folder, &json!({}), None).await;
        append(&folder, "a.csv", &text[cut..]);
        let second = read(&folder, &json!({}), first.checkpoints.last()).await;
        let both: Vec<Value> = [&first, &second]
            .iter()
            .flat_map(|outcome| outcome.bodies())
            .cloned()
            .collect();
        assert_eq!(both, whole, "cut at {cut}");
    }
    // Nobody writes any more: then the last one counts as it is.
    for (name, text) in [("a.csv", "id\n7"), ("a.jsonl", "{\"id\":\"7\"}")] {
        let folder = folder();
        write(&folder, name, text);
        let first = read(&folder, &json!({}), None).await;
        assert_eq!(first.bodies().len(), 0);
        settle(&folder, name);
        let second = read(&folder, &json!({}), first.checkpoints.last()).await;
        assert_eq!(second.bodies(), [&json!({"id": "7"})]);
        let third = read(&folder, &json!({}), second.checkpoints.last()).await;
        assert_eq!(third.bodies().len(), 0);
    }
}

#[tokio::test]
async fn a_row_that_cannot_be_read_hides_no_other() {
    let folder = folder();
    let long = "x".repeat(3 << 20);
    write(
        &folder,
        "a.jsonl",
        format!("1\n{{\"a\": \n{{\"a\":\"{long}\"}}\n2\n"),
    );
    let mut csv = format!("id,text\n1,a\n2\n3,{long}\n4,").into_bytes();
    csv.extend(b"\xff\n5,e\n");
    write(&folder, "b.csv", csv);
    let outcome = read(&folder, &json!({}), None).await;
    let rows = [
        &json!(1),
        &json!(2),
        &json!({"id": "1", "text": "a"}),
        &json!({"id": "5", "text": "e"}),
    ];
    assert_eq!(outcome.bodies_of("out"), rows);
    let said: Vec<(&Value, &str)> = outcome
        .bodies_of(UNREADABLE)
        .iter()
        .map(|it| (&it["position"], it["why"].as_str().expect("a text")))
        .collect();
    assert_eq!(said.len(), 5, "{said:?}");
    assert_eq!(said[0].0, &json!(2));
    for (said, part) in said.iter().zip([
        "not JSON",
        "longer than 1 MiB",
        "1 values, and there are 2 columns",
        "longer than 1 MiB",
        "`text` is not text in UTF-8",
    ]) {
        assert!(said.1.contains(part), "{said:?}");
    }
}

#[tokio::test]
async fn a_row_has_the_same_id_at_every_try() {
    let folder = folder();
    let rows: Vec<String> = (0..2_500).map(|n| format!("{{\"n\":{n}}}\n")).collect();
    write(&folder, "a.jsonl", rows.concat());
    let all = read(&folder, &json!({}), None).await;
    let ids = by_id(&[&all]);
    assert_eq!(ids.len(), 2_500);
    assert!(all.checkpoints.len() >= 3, "it saves in between");
    // Cut off after any of its checkpoints: what comes again has the id that it had.
    for checkpoint in &all.checkpoints {
        let rest = read(&folder, &json!({}), Some(checkpoint)).await;
        let mut both = by_id(&[&rest]);
        assert!(both.iter().all(|(id, body)| ids.get(id) == Some(body)));
        let at = checkpoint["files"]["a.jsonl"]["at"]
            .as_u64()
            .expect("a place");
        let before = ids.iter().filter(|(id, _)| {
            let start = id.rsplit(':').next().and_then(|it| it.parse().ok());
            start < Some(at)
        });
        both.extend(before.map(|(id, body)| (id.clone(), body.clone())));
        assert_eq!(both, ids, "nothing is missing");
    }
}

#[tokio::test]
async fn another_file_of_the_same_name_is_read_from_its_beginning() {
    let folder = folder();
    write(&folder, "a.jsonl", "1\n2\n");
    let first = read(&folder, &json!({}), None).await;
    // As most programs do it, and as a shell does.
    write(&folder, "new", "1\n3\n4\n");
    let renamed = folder.path().join("new");
    fs::rename(renamed, folder.path().join("a.jsonl")).expect("renamed");
    let second = read(&folder, &json!({}), Some(last(&first))).await;
    assert_eq!(second.bodies(), [&json!(1), &json!(3), &json!(4)]);
    write(&folder, "a.jsonl", "5\n");
    let third = read(&folder, &json!({}), Some(last(&second))).await;
    assert_eq!(third.bodies(), [&json!(5)]);
    assert_eq!(by_id(&[&first, &second, &third]).len(), 6, "no id twice");
}

#[tokio::test]
async fn a_file_that_is_finished_is_moved_or_removed_and_not_before() {
    let (folder, archive) = (folder(), folder());
    let config = json!({"then": "move", "move_to": archive.path().to_str()});
    write(&folder, "a.jsonl", "1\n");
    let first = read(&folder, &config, None).await;
    assert!(
        folder.path().join("a.jsonl").exists(),
        "somebody may be at it"
    );
    settle(&folder, "a.jsonl");
    let second = read(&folder, &config, Some(last(&first))).await;
    assert_eq!(second.bodies().len(), 0);
    assert_eq!(names(archive.path()), ["a.jsonl"]);
    assert_eq!(last(&second)["files"], json!({}));
    // The next one of that name, and its place in the archive.
    write(&folder, "a.jsonl", "2\n");
    settle(&folder, "a.jsonl");
    let third = read(&folder, &config, Some(last(&second))).await;
    assert_eq!(third.bodies(), [&json!(2)]);
    assert_eq!(names(archive.path()).len(), 2);
    assert_eq!(by_id(&[&first, &third]).len(), 2, "no id twice");

    write(&folder, "b.jsonl", "3\n");
    settle(&folder, "b.jsonl");
    let fourth = read(&folder, &json!({"then": "delete"}), None).await;
    assert_eq!(fourth.bodies(), [&json!(3)]);
    assert_eq!(names(folder.path()), [""; 0]);
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn what_cannot_be_right_is_said() {
    for (config, part) in [
        (json!({"files": "/a/*", "then": "move"}), "`move_to`"),
        (json!({"files": "inbox/*"}), "begin with `/`"),
        (json!({"files": "/a/***"}), "`files`"),
        (json!({"files": "/a/*", "delimiter": "\""}), "`delimiter`"),
        (json!({"files": "/a/*", "columns": []}), "`columns`"),
    ] {
        let config = serde_json::from_value(config).expect("a configuration");
        let error = setup(&config).await.expect_err("it is refused");
        assert!(error.reason().contains(part), "{}", error.reason());
    }
    let folder = folder();
    write(&folder, "a.dat", "1\n");
    for (config, fate, part) in [
        (json!({}), Fate::Permanent, "`format`"),
        (
            json!({"files": "/no/such/folder/*.csv"}),
            Fate::Retry,
            "`/no/such/folder/`",
        ),
    ] {
        let outcome = run(&folder, &config, None).await;
        assert_eq!(outcome.fate(), Some(fate), "{config}");
        assert!(outcome.reason().contains(part), "{}", outcome.reason());
    }
}
