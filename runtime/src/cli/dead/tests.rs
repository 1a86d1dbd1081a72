//! Dead letters as a person sees them.

use std::collections::BTreeMap;

use serde_json::json;
use serde_json::value::RawValue;

use super::edit::in_editor;
use super::replay::rate;
use super::select::moment;
use super::show::page;
use crate::cli::printer::{Color, Output, Printer};
use crate::control::view::DeadView;

fn letter(state: &str) -> DeadView {
    let text = json!({
        "id": "7", "flow": "orders", "step": "crm", "version": 3, "connection": "default",
        "run": "018f3b7caaaabbbbcccc0123456789ab", "message_id": "0123456789abcdef0123456789abcdef",
        "group": "0a1b2c3d4e5f", "cause": "attempts", "reason": "the CRM answered 500", "chain": ["answered 500", "disk full"],
        "attempts": [
            { "attempt": 1, "at": 1_795_222_801_000_u64, "replica": 2, "reason": "answered 500" },
            { "attempt": 2, "at": 1_795_222_861_000_u64, "replica": 1, "reason": "answered 500", "log": ["PUT /deals/1", "500 in 12 ms"] },
        ],
        "replica": 1, "at": 1_795_222_861_000_u64, "repeats": 0, "last_at": 1_795_222_861_000_u64,
        "replays": 1, "state": state, "edited": state == "open",
        "message": { "headers": { "shop": "a" }, "key": "k1" },
        "body": { "total": 2 },
        "others": [{ "id": "3", "at": 1_795_222_001_000_u64, "cause": "permanent", "reason": "no deal", "replays": 0, "state": "replayed" }],
    });
    let mut letter: DeadView = serde_json::from_value(text).unwrap();
    // Digits that a number of this machine does not hold.
    letter.original_body = Some(
        RawValue::from_string(r#"{"total":1.10,"id":12345678901234567890123}"#.into()).unwrap(),
    );
    letter
}

#[test]
fn a_dead_letter_says_what_why_when_and_what_next() {
    let printer = Printer::new(Output::Table, Color::Never, true);
    let now = 1_795_222_861_000 + 300_000;
    let open = page(&letter("open"), now, printer);
    let replayed = page(&letter("replayed"), now, printer);
    let last = replayed.lines().last().unwrap();
    insta::assert_snapshot!(format!("{open}\n\n… and when it was replayed:\n{last}"));
}

fn edit(script: &str) -> Result<String, (String, String)> {
    let body = RawValue::from_string(r#"{"total":1.10}"#.into()).unwrap();
    let env = BTreeMap::from([("EDITOR".to_owned(), script.to_owned())]);
    match in_editor("7", &body, &env) {
        Ok(edited) => Ok(edited.body.get().to_owned()),
        Err(problem) => Err((problem.message, problem.hint.unwrap_or_default())),
    }
}

#[test]
fn what_was_typed_is_never_lost() {
    assert_eq!(edit("true").unwrap(), "{\n  \"total\": 1.10\n}");
    assert_eq!(edit("sed -i s/1.10/2/").unwrap(), "{\n  \"total\": 2\n}");
    let (message, hint) = edit("sed -i s/1.10/2,/").unwrap_err();
    assert_eq!(message, "the body is not JSON: line 3, column 1");
    let path = hint.split('`').nth(1).unwrap();
    assert!(
        hint.starts_with("nothing was changed; what was typed is in"),
        "{hint}"
    );
    assert_eq!(
        std::fs::read_to_string(path).unwrap(),
        "{\n  \"total\": 2,\n}\n"
    );
    std::fs::remove_file(path).unwrap();
    let (message, hint) = edit("false").unwrap_err();
    assert_eq!(message, "the editor `false` ended with exit status: 1");
    assert!(hint.contains("what was typed is in"), "{hint}");
}

#[test]
fn rates_and_times_are_read() {
    for (text, expect) in [
        ("500/s", Some(500.0)),
        ("30/m", Some(0.5)),
        ("1800/h", Some(0.5)),
        ("5", None),
        ("0/s", None),
        ("-1/s", None),
        ("x/s", None),
        ("5/d", None),
    ] {
        assert_eq!(rate(text).ok(), expect, "{text}");
    }
    assert_eq!(moment("2026-11-21T01:01:01Z"), Ok(1_795_222_861_000));
    assert_eq!(moment("2026-11-21 01:01:01"), Ok(1_795_222_861_000));
    assert!(moment("2h").unwrap() > moment("3d").unwrap());
    for wrong in ["", "yesterday", "2"] {
        assert!(moment(wrong).is_err(), "{wrong}");
    }
}
