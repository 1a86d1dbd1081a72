//! Filters of dead letters, in real worker processes of the real binary.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;

use serde_json::value::RawValue;
use towpath::filter::{Filter, FilterError};

fn raw(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned()).unwrap()
}

async fn start(code: &str) -> Result<Filter, FilterError> {
    Filter::start(Path::new(env!("CARGO_BIN_EXE_towpath")), code).await
}

#[tokio::test]
async fn a_filter_chooses_letters_by_anything_in_them() {
    let letters = || {
        vec![
            raw(r#"{"reason":"no deal","body":{"total":50}}"#),
            raw(r#"{"reason":"refused","body":{"total":500}}"#),
            raw(r#"{"reason":"refused","body":{"total":5}}"#),
        ]
    };
    for (code, expect) in [
        (".body.total > 100", [false, true, false]),
        (".reason == \"refused\"", [false, true, true]),
        ("select(.body.total == 5)", [false, false, true]),
        (".nothing", [false, false, false]),
    ] {
        let held = start(code).await.unwrap().holds(letters()).await;
        let held: Vec<bool> = held.into_iter().map(Result::unwrap).collect();
        assert_eq!(held, expect, "{code}");
    }
}

#[tokio::test]
async fn a_filter_that_does_not_compile_is_said_with_its_place() {
    for (code, expect) in [
        (
            ".body.total >",
            "the filter is wrong at line 1, column 14: expected term, found `the end` (`.body.total >`)",
        ),
        (
            "totals(.)",
            "the filter is wrong at line 1, column 1: there is no filter `totals` with 1 arguments (`totals(.)`)",
        ),
    ] {
        let Err(error) = start(code).await else {
            panic!("{code} compiles")
        };
        assert_eq!(error.to_string(), expect);
    }
}

#[tokio::test]
async fn a_filter_that_fails_on_a_letter_does_not_choose_it() {
    let filter = start(".body.total > 1").await.unwrap();
    let held = filter.holds(vec![raw(r#"{"body":7}"#), raw(r#"{"body":{"total":2}}"#)]);
    let held = held.await;
    assert_eq!(
        held[0].as_ref().unwrap_err(),
        "the filter failed: cannot index 7 with \"total\""
    );
    assert_eq!(held[1], Ok(true));
}

#[tokio::test]
async fn a_filter_without_end_ends() {
    let filter = start("if .body == 1 then (def f: f; f) else true end")
        .await
        .unwrap();
    let held = filter
        .holds(vec![raw(r#"{"body":1}"#), raw(r#"{"body":2}"#)])
        .await;
    assert_eq!(
        held[0].as_ref().unwrap_err(),
        "the filter did not end within 1s"
    );
    assert_eq!(held[1], Ok(true), "its neighbour is filtered all the same");
}

#[tokio::test]
async fn an_expression_makes_one_new_body() {
    let letter = || raw(r#"{"reason":"no deal"}"#);
    let change = |code: &'static str| async move {
        let filter = start(code).await.unwrap();
        let changed = filter.change(vec![(letter(), raw(r#"{"n":1.10}"#))]).await;
        changed.into_iter().next().unwrap()
    };
    let new = change(".m = 2 | .why = $message.reason").await.unwrap();
    assert_eq!(new.get(), r#"{"n":1.10,"m":2,"why":"no deal"}"#);
    assert_eq!(
        change("empty").await.unwrap_err(),
        "the expression gives nothing"
    );
    assert_eq!(
        change("1, 2").await.unwrap_err(),
        "the expression gives 2 values, and a body is one"
    );
}
