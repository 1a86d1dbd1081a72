//! What people type wrong: every mistake at once, with its place and a hint, and nothing changed.

use towpath_tests::{BrokerVersion, Instance};

#[test]
fn a_wrong_flow_file_gives_every_mistake_with_its_place_and_changes_nothing() {
    let instance = Instance::start(BrokerVersion::V40);
    let path = instance.write(
        "wrong.yaml",
        r#"flow: wrong
trigger:
  id: orders
  image: towpath/http-poll:test
  every: 30x
  with: { url: "http://shop:8080/orders", curser: updated_at }
actions:
  - id: shape
    imagee: towpath/jq:test
    after: [ordrs]
  - id: crm
    image: towpath/nosuch:1
    replicas: 1000000
    with: { token: "${secrets.nosuch}" }
"#,
    );
    for verb in ["plan", "apply"] {
        let said = instance.run(&[verb, &path]);
        assert_eq!(said.code, 1, "{said:?}");
        for mistake in ["30x", "imagee", "ordrs", "1000000"] {
            assert!(
                said.err.contains(mistake) || said.out.contains(mistake),
                "`{mistake}` is named: {}",
                said.err
            );
        }
        for place in [
            "wrong.yaml:5:",
            "wrong.yaml:9:",
            "wrong.yaml:10:",
            "wrong.yaml:13:",
        ] {
            assert!(said.err.contains(place), "{place} is in: {}", said.err);
        }
        assert!(said.err.contains("did you mean"), "{}", said.err);
    }
    // What needs the engine and the store is said once the file can be read as a flow.
    let path = instance.write(
        "wrong2.yaml",
        r#"flow: wrong
trigger:
  id: orders
  image: towpath/http-poll:test
  every: 30s
  with: { url: "http://shop:8080/orders", curser: updated_at }
actions:
  - id: crm
    image: towpath/nosuch:1
    with: { token: "${secrets.nosuch}" }
"#,
    );
    let said = instance.run(&["apply", &path]);
    assert_eq!(said.code, 1, "{said:?}");
    for mistake in ["curser", "towpath/nosuch:1", "nosuch"] {
        assert!(
            said.err.contains(mistake),
            "`{mistake}` is named: {}",
            said.err
        );
    }
    let list = instance.run(&["list", "--output", "json"]).ok().json();
    assert_eq!(
        list["flows"].as_array().or(list.as_array()).map(Vec::len),
        Some(0),
        "nothing was applied: {list}"
    );
}

#[test]
fn a_file_that_cannot_be_read_is_a_clear_error_and_never_a_panic() {
    let instance = Instance::start(BrokerVersion::V310);
    let nested = "[".repeat(100_000);
    let large = format!("flow: x\ndescription: \"{}\"\n", "x".repeat(10 << 20));
    let cases: [(&str, &[u8]); 7] = [
        ("unreadable.yaml", b"flow: [unclosed"),
        ("large.yaml", large.as_bytes()),
        ("nested.yaml", nested.as_bytes()),
        ("duplicate.yaml", b"flow: a\nflow: b\n"),
        ("bytes.yaml", b"flow: \xff\xfe\n"),
        ("empty.yaml", b""),
        ("tabs.yaml", b"flow: a\n\ttrigger: b\n"),
    ];
    for (name, bytes) in cases {
        let path = instance.write(name, "");
        std::fs::write(&path, bytes).expect("a file can be written");
        for verb in ["check", "apply"] {
            let said = instance.run(&[verb, &path]);
            assert_eq!(said.code, 1, "{verb} {name}: {} {}", said.out, said.err);
            assert!(said.err.contains("error"), "{verb} {name}: {}", said.err);
            assert!(
                !said.err.contains("panicked"),
                "{verb} {name}: {}",
                said.err
            );
            assert!(
                said.err.len() < 20_000,
                "{verb} {name}: the answer is short"
            );
        }
    }
    let said = instance.run(&["check", "no-such-file.yaml"]);
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.err.contains("no-such-file.yaml"), "{said:?}");
}
