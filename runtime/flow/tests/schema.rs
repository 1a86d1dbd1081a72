//! The JSON Schema for editors: kept in `docs/flow.schema.json`, no stricter than the check, and
//! strict enough to be of use.
//!
//! `BLESS=1 cargo test -p towpath-flow --test schema` writes it anew.

#![expect(clippy::unwrap_used, reason = "what a test needs must be there")]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use towpath_flow::{Facts, Severity, Source, check, schema};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Every flow there is to copy.
fn flows() -> Vec<(PathBuf, String)> {
    let mut paths = Vec::new();
    for folder in ["flows", "flows/demo"] {
        let entries = fs::read_dir(repository().join(folder)).unwrap();
        paths.extend(entries.map(|entry| entry.unwrap().path()));
    }
    paths.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "yaml")
    });
    paths.sort();
    paths
        .into_iter()
        .map(|path| (path.clone(), fs::read_to_string(path).unwrap()))
        .collect()
}

fn json_of(yaml: &str) -> Value {
    serde_saphyr::from_str(yaml).unwrap()
}

#[test]
fn the_schema_is_the_one_that_is_published() {
    let path = repository().join("docs/flow.schema.json");
    let made = format!("{}\n", serde_json::to_string_pretty(&schema()).unwrap());
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, &made).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == made,
        "docs/flow.schema.json is not what the code says: run `BLESS=1 cargo test -p towpath-flow --test schema`"
    );
}

#[test]
fn flows_to_copy_are_right() {
    let flows = flows();
    assert!(flows.len() >= 5, "{flows:?}");
    let validator = jsonschema::validator_for(&schema()).unwrap();
    for (path, text) in flows {
        let name = path.display().to_string();
        match check(
            &Source::new(name.as_str(), text.as_str()),
            &Facts::default(),
        ) {
            Ok(checked) => assert_eq!(
                checked.warnings.count(Severity::Warning),
                0,
                "{}",
                checked.warnings
            ),
            Err(diagnostics) => panic!("{diagnostics}"),
        }
        let errors: Vec<String> = validator
            .iter_errors(&json_of(&text))
            .map(|error| error.to_string())
            .collect();
        assert!(errors.is_empty(), "{name}: {errors:?}");
    }
}

#[test]
fn the_schema_accepts_every_key() {
    let good = include_str!("flows/good.yaml");
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let errors: Vec<String> = validator
        .iter_errors(&json_of(good))
        .map(|error| error.to_string())
        .collect();
    assert!(errors.is_empty(), "{errors:?}");
}

#[test]
fn the_schema_rejects_what_is_wrong() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let good = json!({
        "flow": "a",
        "trigger": { "id": "t", "image": "i", "every": "30s" },
        "actions": [{ "id": "log", "image": "towpath/log:1", "after": "t" }],
    });
    assert!(validator.is_valid(&good));
    let wrong: [(&str, Value); 14] = [
        ("/flow", json!("Not A Name")),
        ("/trigger", json!({ "id": "t" })),
        ("/trigger", json!({ "id": "t", "every": "30s" })),
        (
            "/trigger",
            json!({ "id": "t", "image": "i", "every": "30s", "webhook": true }),
        ),
        (
            "/trigger",
            json!({ "id": "t", "image": "i", "every": "30 sec" }),
        ),
        ("/trigger", json!({ "id": "t", "webhook": false })),
        ("/actions", json!([])),
        ("/actions/0", json!({ "id": "log" })),
        (
            "/actions/0",
            json!({ "id": "log", "image": "i", "when": "" }),
        ),
        (
            "/actions/0",
            json!({ "id": "log", "image": "i", "replicas": 65 }),
        ),
        (
            "/actions/0",
            json!({ "id": "log", "image": "i", "memory": "256MB" }),
        ),
        (
            "/actions/0",
            json!({ "id": "log", "image": "i", "retry": { "attempt": 3 } }),
        ),
        (
            "/actions/0",
            json!({ "id": "log", "image": "i", "mode": "line" }),
        ),
        (
            "/actions/0",
            json!({ "id": "log", "image": "i", "after": [] }),
        ),
    ];
    for (place, value) in wrong {
        let mut flow = good.clone();
        *flow.pointer_mut(place).unwrap() = value.clone();
        assert!(!validator.is_valid(&flow), "{place} {value}");
    }
}

#[test]
fn whatever_the_check_takes_the_schema_takes() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/flows");
    let mut taken = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let source = Source::new(path.display().to_string(), fs::read(&path).unwrap());
        if check(&source, &Facts::default()).is_ok() {
            let text = String::from_utf8(source.bytes).unwrap();
            assert!(validator.is_valid(&json_of(&text)), "{}", path.display());
            taken += 1;
        }
    }
    assert!(taken > 5, "{taken}");
}
