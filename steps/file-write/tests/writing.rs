//! Messages become files: through the step's own loop, in real folders.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;
use towpath_file_write::{BATCH_MAX, setup, write};
use towpath_step::testing::{Outcome, TestRun};
use towpath_step::{Fate, Step};

async fn send(folder: &TempDir, config: &Value, body: Value) -> Outcome {
    let mut all = json!({"folder": folder.path().to_str()});
    for (key, value) in config.as_object().expect("an object") {
        all[key] = value.clone();
    }
    let step = Step::batch(write, BATCH_MAX).setup(setup);
    TestRun::of(step).config(all).input(body).await
}

fn text(folder: &TempDir, name: &str) -> String {
    fs::read_to_string(folder.path().join(name)).expect("a file")
}

#[tokio::test]
async fn messages_are_rows_of_the_file_that_their_body_names() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = json!({"file": "orders-{{ .day }}.csv", "columns": ["id", "total"]});
    for (id, day) in [(1, "mon"), (2, "tue"), (3, "mon")] {
        let body = json!({"id": id, "day": day, "total": 2.5});
        let outcome = send(&folder, &config, body).await;
        assert!(outcome.is_done(), "{:?}", outcome.failure);
    }
    assert_eq!(text(&folder, "orders-mon.csv"), "id,total\n1,2.5\n3,2.5\n");
    assert_eq!(text(&folder, "orders-tue.csv"), "id,total\n2,2.5\n");
    let config = json!({"file": "all.jsonl"});
    send(&folder, &config, json!({"id": 1})).await;
    send(&folder, &config, json!([2])).await;
    assert_eq!(text(&folder, "all.jsonl"), "{\"id\":1}\n[2]\n");
}

#[tokio::test]
async fn a_message_that_comes_again_replaces_its_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = json!({"file": "{{ .id }}.json", "mode": "replace"});
    for total in [1, 2] {
        let outcome = send(&folder, &config, json!({"id": 7, "total": total})).await;
        assert!(outcome.is_done(), "{:?}", outcome.failure);
    }
    assert_eq!(text(&folder, "7.json"), "{\"id\":7,\"total\":2}");
}

#[tokio::test]
async fn no_value_leads_out_of_the_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = json!({"file": "{{ .id }}", "format": "jsonl"});
    for id in ["../a", "a/b", "..", ".a", "", "a\0b"] {
        let outcome = send(&folder, &config, json!({ "id": id })).await;
        assert_eq!(outcome.fate(), Some(Fate::Permanent), "{id:?}");
    }
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);
}

#[tokio::test]
async fn what_cannot_be_right_is_said() {
    for (mut config, part) in [
        (json!({"file": "a.dat"}), "`format`"),
        (json!({"file": "a.csv"}), "`columns`"),
        (json!({"file": "a.jsonl", "columns": ["a"]}), "CSV"),
        (json!({"file": "{{ .day }.jsonl"}), "file"),
        (json!({"file": "a.jsonl", "folder": "out"}), "`folder`"),
    ] {
        if config["folder"].is_null() {
            config["folder"] = json!("/out");
        }
        let config = serde_json::from_value(config).expect("a configuration");
        let error = setup(&config).await.expect_err("it is refused");
        assert!(error.reason().contains(part), "{}", error.reason());
    }
    let folder = tempfile::tempdir().expect("a folder");
    for (config, fate, part) in [
        (json!({"file": "{{ .day }}.jsonl"}), Fate::Permanent, "day"),
        (
            json!({"file": "a.jsonl", "folder": "/no/such"}),
            Fate::Retry,
            "`/no/such/a.jsonl`",
        ),
    ] {
        let outcome = send(&folder, &config, json!({"id": 1})).await;
        assert_eq!(outcome.fate(), Some(fate), "{config}: {}", outcome.reason());
        assert!(outcome.reason().contains(part), "{}", outcome.reason());
    }
}
