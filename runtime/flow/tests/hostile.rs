//! Whatever the bytes are: an answer, and never a panic.

mod facts;

use proptest::prelude::*;
use towpath_flow::{
    Facts, ImageFact, Paint, Source, Values, check, references, references_in, substitute_step,
};

/// Everything that can be done with a file is done.
fn survive(bytes: &[u8]) -> Vec<String> {
    let source = Source::new("hostile.yaml", bytes);
    references_in(&source);
    let mut codes = Vec::new();
    for facts in [Facts::default(), facts::facts()] {
        let diagnostics = match check(&source, &facts) {
            Ok(checked) => {
                references(&checked.flow);
                for step in &checked.flow.steps {
                    drop(substitute_step(step, &Values::default()));
                }
                checked.warnings
            }
            Err(diagnostics) => diagnostics,
        };
        assert!(diagnostics.findings().len() <= towpath_flow::limits::DIAGNOSTICS_MAX);
        diagnostics.render(Paint::Plain);
        diagnostics.render(Paint::Coloured);
        codes = diagnostics
            .findings()
            .iter()
            .map(|finding| finding.code.clone())
            .collect();
    }
    codes
}

#[track_caller]
fn check_code(bytes: impl AsRef<[u8]>, expect: &str) {
    let codes = survive(bytes.as_ref());
    assert!(codes.iter().any(|code| code == expect), "{codes:?}");
}

#[test]
fn hostile_files_get_a_code_of_their_own() {
    check_code("", "F004");
    check_code("---\n", "F012");
    check_code("\u{feff}", "F004");
    check_code("\u{feff}flow: 1", "F012");
    check_code("\0", "F003");
    check_code([0xff, 0xfe, b'a', 0], "F002");
    check_code("\t", "F004");
    check_code("flow: a\r\ntriger: b\r\n", "F010");
    check_code(vec![b'a'; 10 << 20], "F001");
    check_code("[".repeat(500_000), "F007");
    check_code("{a: ".repeat(200_000), "F007");
    check_code("- ".repeat(200_000), "F007");
    check_code("? ".repeat(200_000), "F007");
    check_code("&a ".repeat(1000), "F003");
    check_code("%YAML 9.9\n---\na", "F003");
    check_code("flow: 'never closed", "F003");
    check_code(format!("flow: {}", "a".repeat(1_000_000)), "F013");
    check_code(format!("\"{}\": 1", "a".repeat(1000)), "F010");
    check_code("a: 1\n".repeat(100_000), "F009");
    check_code(numbered(100_000, "k", ": 1\n"), "F010");
}

#[test]
fn an_alias_bomb_does_not_grow() {
    let lines = ('a'..='y').zip('b'..='z').map(|(from, to)| {
        let aliases = vec![format!("*{from}"); 9].join(", ");
        format!("{to}: &{to} [{aliases}]\n")
    });
    let first = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
    let bomb: Vec<String> = std::iter::once(first).chain(lines).collect();
    check_code(bomb.concat(), "F006");
}

/// Many pieces of text, each with its number.
fn numbered(count: usize, before: &str, after: &str) -> String {
    let pieces: Vec<String> = (0..count).map(|n| format!("{before}{n}{after}")).collect();
    pieces.concat()
}

#[test]
fn as_many_of_anything_as_fit_into_a_file_take_a_moment() {
    const HEAD: &str = "flow: a\ntrigger: {id: t, webhook: true}\n";
    let one = |rest: &str| format!("{HEAD}actions: [{{id: j, image: 'towpath/jq:1', {rest}}}]");
    let actions = numbered(20_000, "- {id: a", ", image: a, after: [t]}\n");
    check_code(format!("{HEAD}actions:\n{actions}"), "F016");
    check_code(
        one(&format!("after: [{}]", numbered(100_000, "b", ", "))),
        "F031",
    );
    check_code(
        one(&format!("after: [{}]", numbered(100_000, "t.p", ", "))),
        "F035",
    );
    check_code(
        one(&format!("with: {{{}}}", numbered(80_000, "k", ": 1, "))),
        "F046",
    );
    check_code(
        one(&format!("env: {{{}}}", numbered(80_000, "k", ": 1, "))),
        "F012",
    );
    check_code(
        one(&format!("command: ['{}']", "${a}".repeat(200_000))),
        "F050",
    );
    check_code(
        one(&format!("command: ['{}']", "${".repeat(400_000))),
        "F050",
    );
    check_code(
        one(&format!("command: ['{}']", "$${".repeat(300_000))),
        "F047",
    );
    check_code(
        one(&format!(
            "command: ['{}']",
            numbered(40_000, "${secrets.s", "}")
        )),
        "F051",
    );
}

#[test]
fn a_hostile_manifest_is_no_danger() {
    for schema in [
        serde_json::json!({ "$ref": "#" }),
        serde_json::json!({ "$ref": "http://127.0.0.1:1/schema" }),
        serde_json::json!({ "$ref": "file:///etc/passwd" }),
        serde_json::json!({ "properties": { "a": { "pattern": "^(a+)+$" } } }),
        serde_json::json!({ "properties": { "a": { "pattern": "(" } } }),
        serde_json::json!(false),
        serde_json::json!(3),
        serde_json::json!({ "anyOf": [{ "$ref": "#" }, { "$ref": "#" }] }),
    ] {
        let mut facts = facts::facts();
        let Some(ImageFact::Known(Some(manifest))) = facts.images.get_mut("towpath/jq:1") else {
            panic!("the test's own facts");
        };
        manifest.config = Some(schema);
        let text = "flow: f\ntrigger: {id: t, webhook: true}\n\
                    actions: [{id: j, image: 'towpath/jq:1', with: {a: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!}}]";
        match check(&Source::new("f", text), &facts) {
            Ok(checked) => drop(checked.warnings.render(Paint::Plain)),
            Err(diagnostics) => drop(diagnostics.render(Paint::Plain)),
        }
    }
}

/// Words of flow files and of YAML, in any order.
fn soup() -> impl Strategy<Value = String> {
    let words = vec![
        "flow",
        "trigger",
        "actions",
        "id",
        "image",
        "after",
        "with",
        "every",
        "webhook",
        "retry",
        "timeout",
        "env",
        "command",
        "a",
        "b",
        "a.b",
        "towpath/jq:1",
        "towpath/http-poll:1",
        "30s",
        "5",
        "0",
        "-1",
        "1e9",
        "true",
        "null",
        "~",
        ": ",
        ":",
        " ",
        "\n",
        "\n  ",
        "\n- ",
        "\n  - ",
        "- ",
        "{",
        "}",
        "[",
        "]",
        ", ",
        "'",
        "\"",
        "|\n",
        ">-\n",
        "# ",
        "&a ",
        "*a",
        "!t ",
        "<<",
        "${",
        "}",
        "${secrets.a}",
        "${env.B}",
        "$${",
        "\t",
        "\r\n",
        "é",
        "\u{2028}",
        "---\n",
        "...\n",
        "? ",
        "%",
        "@",
        "`",
        "\\",
        "\u{feff}",
        "\0",
    ];
    proptest::collection::vec(proptest::sample::select(words), 0..60)
        .prop_map(|words| words.concat())
}

/// A right flow with some of it cut out, doubled or overwritten.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let good = include_bytes!("flows/good.yaml");
    let edit = (
        0..good.len(),
        0..8_usize,
        proptest::collection::vec(any::<u8>(), 0..4),
    );
    proptest::collection::vec(edit, 1..6).prop_map(|edits| {
        let mut bytes = good.to_vec();
        for (at, length, new) in edits {
            let at = at.min(bytes.len());
            let end = (at + length).min(bytes.len());
            bytes.splice(at..end, new);
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        survive(&bytes);
    }

    #[test]
    fn any_text(text in ".{0,200}") {
        survive(text.as_bytes());
    }

    #[test]
    fn any_soup(text in soup()) {
        survive(text.as_bytes());
    }

    #[test]
    fn any_mutation(bytes in mutated()) {
        survive(&bytes);
    }
}
