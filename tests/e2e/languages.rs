//! A step in Python that was written against the protocol's page, and programs that know nothing.

use serde_json::json;
use towpath_tests::{BrokerVersion, Demo, Instance, http};

use crate::{LONG, NO_429, NO_500, NO_500_AFTER, NOT_SLOW, crm_holds_exactly};

fn run(step: &str) {
    let instance = Instance::start(BrokerVersion::V310);
    let demo = Demo::start(&instance, &[NO_429, NO_500, NO_500_AFTER, NOT_SLOW]);
    instance
        .run_with(&["secret", "set", "crm_token"], "demo-token")
        .ok();
    instance.apply(&format!(
        r#"
flow: languages
trigger: {{ id: hook, webhook: true }}
actions:
{step}
  - id: crm
    image: towpath/http-request:test
    with:
      method: PUT
      url: "http://crm:8080/deals/{{{{ .id }}}}"
      headers: {{ authorization: "Bearer ${{secrets.crm_token}}" }}
"#
    ));
    let hook = instance.status("languages")["webhook_url"]
        .as_str()
        .expect("a URL")
        .to_owned();
    for id in 0..100 {
        let body =
            json!({ "id": format!("o-{id}"), "number": id, "total_cents": id * 1000 }).to_string();
        let answer = http::send("POST", &hook, None, Some(&body)).expect("an answer");
        assert_eq!(answer.status, 202, "{answer:?}");
    }
    crm_holds_exactly(&demo, 100, LONG);
}

#[test]
fn a_python_step_without_an_sdk() {
    run("  - { id: enrich, image: \"towpath/demo-enrich:test\" }");
}

#[test]
fn a_program_that_knows_nothing_of_towpath_once_for_each_message() {
    run(r#"  - id: sed
    image: towpath/demo-enrich:test
    mode: lines
    command: ["sed", "-e", "s/number/position/"]"#);
}
