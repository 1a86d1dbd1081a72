//! The steps `file-poll` and `file-write` in their containers, with folders of this host.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;
use towpath_tests::machine::docker;
use towpath_tests::{BrokerVersion, Instance, eventually, holds};

use crate::{LONG, SOON, flow_of_readme};

const ROWS_A_FILE: u64 = 8_000;

/// Three folders that everybody may use, and a control plane that knows them.
fn begin() -> (Instance, TempDir) {
    let folders = tempfile::tempdir().expect("a folder");
    let everybody = |path: &Path| {
        let mode = fs::Permissions::from_mode(0o777);
        fs::set_permissions(path, mode).expect("a mode");
    };
    everybody(folders.path());
    let settings = ["inbox", "outbox", "archive"].map(|name| {
        let path = folders.path().join(name);
        fs::create_dir(&path).expect("a folder");
        everybody(&path);
        let variable = format!("TOWPATH_FOLDERS__{}", name.to_uppercase());
        (variable, path.to_str().expect("a text").to_owned())
    });
    let settings: Vec<(&str, &str)> = settings
        .iter()
        .map(|(variable, path)| (&**variable, &**path))
        .collect();
    (Instance::start_set(BrokerVersion::V40, &settings), folders)
}

/// The rows that arrived: how many there are, and which.
fn arrived(folders: &TempDir) -> (u64, BTreeSet<String>) {
    let (mut count, mut ids) = (0, BTreeSet::new());
    for day in ["mon", "tue"] {
        let path = folders.path().join(format!("outbox/orders-{day}.jsonl"));
        for line in fs::read_to_string(path).unwrap_or_default().lines() {
            // A line may be cut off: its step was killed while it wrote.
            if let Ok(row) = serde_json::from_str::<Value>(line) {
                assert_eq!(row["day"], day, "{row}");
                ids.insert(row["id"].as_str().expect("an id").to_owned());
                count += 1;
            }
        }
    }
    (count, ids)
}

/// Puts a file into the inbox as programs should do it: hidden until it is whole.
fn drop_file(folders: &TempDir, file: usize) {
    let mut text = "id,day,text\n".to_owned();
    for row in 0..ROWS_A_FILE {
        let day = ["mon", "tue"][usize::from(row % 2 == 0)];
        writeln!(text, "{file}-{row},{day},\"a \"\"{row}\"\"\nand b\"").expect("a text");
    }
    text.push_str("one value\n");
    let hidden = folders.path().join(format!("inbox/.{file}.csv"));
    fs::write(&hidden, text).expect("written");
    fs::rename(&hidden, folders.path().join(format!("inbox/{file}.csv"))).expect("renamed");
}

#[test]
fn the_flow_of_the_readme_of_file_poll_loses_no_row_while_its_steps_are_killed() {
    let (instance, folders) = begin();
    let flow = flow_of_readme(include_str!("../../steps/file-poll/README.md"));
    instance.apply(&flow);
    for (file, step) in ["rows", "lines", "rows"].iter().enumerate() {
        let before = arrived(&folders).1.len();
        drop_file(&folders, file);
        eventually("rows arrive", LONG, || {
            let now = arrived(&folders).1.len();
            holds(now > before, || format!("{now} rows"))
        });
        for (id, _) in instance.containers("file-drop", Some(step)) {
            docker(&["kill", "--signal", "KILL", &id]);
        }
    }
    let rows = usize::try_from(3 * ROWS_A_FILE).expect("a number");
    eventually("every row arrives", LONG, || {
        let (_, ids) = arrived(&folders);
        holds(ids.len() == rows, || format!("{} rows", ids.len()))
    });
    eventually("the files are in the archive", SOON, || {
        let names = |folder: &str| {
            let entries = fs::read_dir(folders.path().join(folder)).expect("a folder");
            entries.count()
        };
        let counts = (names("inbox"), names("archive"));
        holds(counts == (0, 3), || format!("{counts:?}"))
    });
    let said = fs::read_to_string(folders.path().join("outbox/unreadable.jsonl"));
    let said = said.expect("what cannot be read goes there");
    let files: BTreeSet<String> = said
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .map(|row| row["file"].to_string())
        .collect();
    assert_eq!(files.len(), 3, "{said}");
    assert_eq!(instance.status("file-drop")["dead_letters"], 0);
}

#[test]
fn a_folder_that_the_operator_did_not_name_is_refused_and_one_to_read_cannot_be_written() {
    let (instance, folders) = begin();
    let flow = |folder: &str, access: &str| {
        format!(
            "flow: files\ntrigger: {{ id: hook, webhook: true }}\nactions:\n  - id: write\n    image: towpath/file-write:test\n    folders: {{ {folder}: {access} }}\n    retry: {{ attempts: 1 }}\n    with: {{ folder: /folders/{folder}, file: a.jsonl }}\n"
        )
    };
    let path = instance.write("wrong.yaml", &flow("outbx", "write"));
    let said = instance.run(&["apply", &path]);
    for words in ["F130", "`outbx`", "did you mean `outbox`?"] {
        assert!(said.err.contains(words), "{said:?}");
    }
    instance.apply(&flow("outbox", "read"));
    let hook = instance.status("files")["webhook_url"].clone();
    let hook = hook.as_str().expect("a URL");
    towpath_tests::http::send("POST", hook, None, Some("{}")).expect("an answer");
    eventually("it cannot be written", SOON, || {
        let status = instance.status("files");
        holds(status["dead_letters"] == 1, || status.to_string())
    });
    let dead = instance
        .run(&["dead", "list", "--flow", "files", "--output", "json"])
        .ok();
    assert!(dead.out.contains("Read-only file system"), "{}", dead.out);
    assert!(!folders.path().join("outbox/a.jsonl").exists());
}
