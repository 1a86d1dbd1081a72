//! What a step can reach: neither the broker's credentials, nor another step's secrets, nor Docker.

use serde_json::{Value, json};
use towpath_tests::machine::docker;
use towpath_tests::{BrokerVersion, Instance, eventually, http};

use crate::LONG;

#[test]
fn a_step_can_read_neither_credentials_nor_other_secrets_and_has_no_power() {
    let instance = Instance::start(BrokerVersion::V40);
    instance
        .run_with(&["secret", "set", "own"], "own-secret-value")
        .ok();
    instance
        .run_with(&["secret", "set", "other"], "other-secret-value")
        .ok();
    instance.apply(
        r#"
flow: spying
trigger: { id: hook, webhook: true }
actions:
  - id: spy
    image: towpath/test-step:test
    retry: { attempts: 1 }
    with: { note: "${secrets.own}" }
  - id: keeper
    image: towpath/log:test
    env: { NOTE: "${secrets.other}" }
"#,
    );
    let hook = instance.status("spying")["webhook_url"]
        .as_str()
        .expect("a URL")
        .to_owned();
    let body = json!({ "do": "spy" }).to_string();
    assert_eq!(
        http::send("POST", &hook, None, Some(&body))
            .expect("an answer")
            .status,
        202
    );
    // What the spy could read comes back as the reason of a dead letter.
    let seen: Value = eventually("the spy reports", LONG, || {
        let letters = instance
            .run(&["dead", "list", "--output", "json"])
            .ok()
            .json();
        let letters = letters["dead"]
            .as_array()
            .cloned()
            .or_else(|| letters.as_array().cloned())
            .unwrap_or_default();
        let id = letters
            .first()
            .and_then(|letter| letter["id"].as_str())
            .ok_or("no report yet")?;
        let letter = instance
            .run(&["dead", "show", id, "--output", "json"])
            .ok()
            .json();
        serde_json::from_str(letter["reason"].as_str().unwrap_or_default())
            .map_err(|_| letter.to_string())
    });
    assert_eq!(
        seen["broker_found"],
        json!([]),
        "no file that the step can read names the broker"
    );
    assert_eq!(
        seen["other_secret_found"],
        json!([]),
        "no file that the step can read holds another's secret"
    );
    assert_eq!(seen["docker_socket"], json!(false));
    assert_eq!(seen["effective_capabilities"], json!("0000000000000000"));
    assert_eq!(seen["permitted_capabilities"], json!("0000000000000000"));
    assert_eq!(seen["no_new_privs"], json!("1"));
    assert_eq!(seen["root_writable"], json!(false));
    assert_ne!(seen["uid"], json!("0"));

    let id = instance
        .containers("spying", Some("spy"))
        .into_values()
        .next()
        .expect("a container");
    let inspect: Value = serde_json::from_str(&docker(&["inspect", &id])).expect("JSON");
    let host = &inspect[0]["HostConfig"];
    assert_eq!(host["ReadonlyRootfs"], json!(true));
    assert_eq!(host["CapDrop"], json!(["ALL"]));
    assert_eq!(host["Privileged"], json!(false));
    assert!(
        !inspect.to_string().contains("own-secret-value"),
        "docker inspect shows the step's secret"
    );
}
