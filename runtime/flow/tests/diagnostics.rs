//! Every diagnostic, as it is shown: a file `tests/flows/<code>-<case>.yaml` each.
//!
//! `INSTA_UPDATE=always cargo test -p towpath-flow` accepts new texts.

#![expect(clippy::unwrap_used, reason = "what a test needs must be there")]

mod facts;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use towpath_flow::{Code, Diagnostics, Facts, Paint, Severity, Source, check};

fn diagnose(source: &Source, facts: &Facts) -> Diagnostics {
    match check(source, facts) {
        Ok(checked) => {
            assert_eq!(checked.warnings.count(Severity::Error), 0);
            checked.warnings
        }
        Err(diagnostics) => {
            assert_ne!(diagnostics.count(Severity::Error), 0);
            diagnostics
        }
    }
}

fn fixtures() -> Vec<Source> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/flows");
    let mut paths: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths
        .iter()
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap();
            Source::new(name, fs::read(path).unwrap())
        })
        .collect()
}

/// Those that are better made than kept.
fn made() -> Vec<Source> {
    let deep =
        |open: &str, close: &str| format!("flow: {}x{}\n", open.repeat(500), close.repeat(500));
    let actions: Vec<String> = (0..150)
        .map(|n| format!("  - {{ id: a{n}, image: a }}\n"))
        .collect();
    vec![
        Source::new("F001-too-large", vec![b'#'; 10 << 20]),
        Source::new(
            "F002-not-utf8",
            b"flow: a\ndescription: caf\xe9 au lait\n".to_vec(),
        ),
        Source::new("F007-too-deep", deep("[", "]")),
        Source::new(
            "F007-too-deep-blocks",
            (0..100)
                .map(|n| format!("{}a:\n", " ".repeat(n)))
                .collect::<Vec<_>>()
                .concat(),
        ),
        Source::new(
            "F016-too-many-actions",
            format!(
                "flow: a\ntrigger: {{ id: t, webhook: true }}\nactions:\n{}",
                actions.concat()
            ),
        ),
    ]
}

#[test]
fn every_diagnostic_reads_as_it_was_accepted() {
    let mut codes = BTreeSet::new();
    for source in fixtures().into_iter().chain(made()) {
        let facts = if source.name.starts_with("F061") {
            Facts::default()
        } else {
            facts::facts()
        };
        let diagnostics = diagnose(&source, &facts);
        codes.extend(
            diagnostics
                .findings()
                .iter()
                .map(|finding| finding.code.clone()),
        );
        if let Some(code) = source.name.strip_prefix('F') {
            let code = format!("F{}", &code[..3]);
            assert!(
                diagnostics
                    .findings()
                    .iter()
                    .any(|finding| finding.code == code),
                "{} has no {code}:\n{diagnostics}",
                source.name
            );
        }
        insta::with_settings!({ snapshot_path => "snapshots", prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(source.name.as_str(), diagnostics.render(Paint::Plain));
        });
    }
    for code in Code::ALL {
        assert!(
            codes.contains(code.as_str()),
            "{code} ({}) has no case",
            code.about()
        );
    }
}

#[test]
fn codes_are_unique_and_in_order() {
    assert!(
        Code::ALL
            .windows(2)
            .all(|pair| pair[0].as_str() < pair[1].as_str())
    );
}

#[test]
fn findings_survive_the_api_and_render_the_same_there() {
    for source in fixtures() {
        let diagnostics = diagnose(&source, &facts::facts());
        let json = serde_json::to_string(diagnostics.findings()).unwrap();
        let back = Diagnostics::from_findings(&source, serde_json::from_str(&json).unwrap());
        assert_eq!(back.findings(), diagnostics.findings());
        assert_eq!(back.render(Paint::Plain), diagnostics.render(Paint::Plain));
    }
}

#[test]
fn colours_are_there_only_when_asked_for() {
    let source = Source::new("f", "a: 1");
    let diagnostics = diagnose(&source, &Facts::default());
    assert!(!diagnostics.render(Paint::Plain).contains('\u{1b}'));
    assert!(diagnostics.render(Paint::Coloured).contains('\u{1b}'));
}

#[test]
fn a_finding_as_json() {
    let source = Source::new(
        "orders.yaml",
        "flow: a\ntrigger: {id: fetch, webhook: true}\nactions:\n- id: tax\n  image: a\n  after: [fech]\n",
    );
    let diagnostics = diagnose(&source, &Facts::default());
    insta::assert_json_snapshot!(diagnostics.findings());
}
