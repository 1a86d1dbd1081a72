//! What the hash depends on, and what a replica is given.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::*;
use crate::reconcile::testing::{self, FLOW, desired, facts, flow, ground, image};
use crate::reconcile::{Desired, FlowState};

fn specs(desired: &Desired) -> BTreeMap<String, String> {
    desired.flows[0]
        .steps
        .iter()
        .map(|step| (step.id.clone(), step.spec.clone()))
        .collect()
}

fn as_it_is() -> BTreeMap<String, String> {
    specs(&desired(FlowState::Running, |_| {}))
}

/// Which steps are replaced when something changes.
fn replaced(change: impl FnOnce(&mut BTreeMap<String, StepFacts>)) -> Vec<String> {
    let (before, after) = (as_it_is(), specs(&desired(FlowState::Running, change)));
    before
        .into_iter()
        .filter(|(id, spec)| after[id] != *spec)
        .map(|(id, _)| id)
        .collect()
}

fn filled(facts: &mut BTreeMap<String, StepFacts>, step: &str) -> FilledStep {
    let known = facts.get_mut(step).unwrap();
    known.filled.clone().unwrap_or_else(|why| panic!("{why}"))
}

fn replica(desired: &Desired, step: &str) -> ReplicaSpec {
    let step = desired.flows[0]
        .steps
        .iter()
        .find(|it| it.id == step)
        .unwrap();
    step.blueprint.as_ref().unwrap().replica(1, false)
}

#[test]
fn the_same_gives_the_same_hash() {
    let flow = flow(FLOW);
    let facts = facts(&flow);
    let one = desired_flow(
        &ground(),
        flow.clone(),
        1,
        FlowState::Running,
        &facts,
        &Entries::new(),
    );
    let other = desired_flow(
        &ground(),
        flow,
        2,
        FlowState::Paused,
        &facts,
        &Entries::new(),
    );
    for (one, other) in one.steps.iter().zip(&other.steps) {
        assert_eq!(one.spec, other.spec);
        assert_eq!(one.spec.len(), 32);
    }
    assert_eq!(
        as_it_is().values().collect::<BTreeSet<_>>().len(),
        4,
        "each step has its own"
    );
}

#[test]
fn whatever_a_replica_is_made_from_changes_the_hash() {
    assert_eq!(
        replaced(|facts| facts.get_mut("crm").unwrap().image = Ok(image("new"))),
        ["crm"]
    );
    let with = replaced(|facts| {
        let mut filled = filled(facts, "crm");
        filled.with = json!({"url": "x"});
        facts.get_mut("crm").unwrap().filled = Ok(filled);
    });
    assert_eq!(with, ["crm"]);
    let env = replaced(|facts| {
        let mut filled = filled(facts, "shape");
        filled.env.insert("A".into(), "b".into());
        facts.get_mut("shape").unwrap().filled = Ok(filled);
    });
    assert_eq!(env, ["shape"]);
    let mut other = ground();
    other.agent = "new".into();
    let flow = flow(FLOW);
    let known = facts(&flow);
    let all = desired_flow(&other, flow, 1, FlowState::Running, &known, &Entries::new());
    assert!(
        all.steps
            .iter()
            .all(|step| step.spec != as_it_is()[&step.id])
    );
}

#[test]
fn every_setting_of_a_step_changes_the_hash() {
    let before = as_it_is();
    for line in [
        "timeout: 31s",
        "retry: { attempts: 3 }",
        "command: [/other]",
        "memory: 300MiB",
        "cpus: 0.5",
        "pids: 99",
        "once: true",
        "writable: true",
        "privileges: image",
        "folders: { inbox: read }",
        "mode: lines",
        "concurrency: 5",
    ] {
        let text = FLOW.replace("  - id: audit\n", &format!("  - id: audit\n    {line}\n"));
        let flow = flow(&text);
        let known = facts(&flow);
        let after = desired_flow(
            &ground(),
            flow,
            1,
            FlowState::Running,
            &known,
            &Entries::new(),
        );
        let audit = after.steps.iter().find(|step| step.id == "audit").unwrap();
        assert_ne!(audit.spec, before["audit"], "`{line}` does not count");
    }
}

#[test]
fn whether_runs_are_tracked_changes_the_hash_of_every_step() {
    let flow = flow(&FLOW.replace("trigger:", "track: false\ntrigger:"));
    let known = facts(&flow);
    let all = desired_flow(
        &ground(),
        flow,
        1,
        FlowState::Running,
        &known,
        &Entries::new(),
    );
    let before = as_it_is();
    assert!(all.steps.iter().all(|it| it.spec != before[&it.id]));
}

#[test]
fn a_change_elsewhere_does_not_change_the_hash() {
    let scaled = replaced(|facts| facts.get_mut("crm").unwrap().replicas = Some(9));
    assert_eq!(scaled, Vec::<String>::new());
}

#[test]
fn the_hash_says_nothing_without_the_key() {
    let flow = flow(FLOW);
    let known = facts(&flow);
    let mut other = ground();
    other.key = [8; 32];
    let with_other_key = desired_flow(&other, flow, 1, FlowState::Running, &known, &Entries::new());
    assert!(
        with_other_key
            .steps
            .iter()
            .all(|step| step.spec != as_it_is()[&step.id])
    );
}

#[test]
fn a_replica_is_told_where_everything_is() {
    let start = replica(&desired(FlowState::Running, |_| {}), "orders").start;
    assert_eq!(start.kind, Kind::Poll);
    assert_eq!(
        start.settings.concurrency, 1,
        "a trigger takes one tick at a time"
    );
    assert_eq!(start.routes.queue, "i.flow.f.orders");
    assert_eq!(start.routes.outputs_exchange, "i.flow.f");
    assert_eq!(start.routes.own_key, "f.orders");
    assert_eq!(start.routes.delay_exchanges.len(), 24);
    let out = &start.routes.outputs["out"];
    let key = Names::port_key("orders", "out", ["audit", "shape"]);
    assert_eq!(
        (out.key.as_deref().unwrap(), out.batch_max),
        (key.as_str(), 16)
    );
    let shape = replica(&desired(FlowState::Running, |_| {}), "shape").start;
    assert_eq!(
        shape.routes.outputs["out"].batch_max, 4,
        "as many as `crm` takes"
    );
    let audit = replica(&desired(FlowState::Running, |_| {}), "audit").start;
    assert_eq!(audit.routes.outputs, BTreeMap::new());
}

#[test]
fn a_flow_that_answers_has_a_way_for_answers_at_every_step() {
    let made = |reply: &str| {
        let every = "  image: towpath/poll:1\n  every: 30s";
        let flow = flow(&FLOW.replace(every, &format!("  webhook: {reply}")));
        let known = facts(&flow);
        desired_flow(
            &ground(),
            flow,
            1,
            FlowState::Running,
            &known,
            &Entries::default(),
        )
    };
    let (silent, answers) = (made("true"), made("{ reply: 30s }"));
    assert_eq!(answers.steps.len(), 3);
    for step in &answers.steps {
        let start = step.blueprint.as_ref().unwrap().replica(1, false).start;
        let way = &start.routes.outputs["reply"];
        assert_eq!(way.exchange.as_deref(), Some("i.office"));
        assert_eq!((way.key.as_deref(), way.steps.len()), (Some("runs"), 0));
        assert!(start.settings.track, "the answer is kept with the run");
        assert!(silent.steps.iter().all(|it| it.spec != step.spec));
    }
    // How long they wait is nothing to the steps.
    let longer = made("{ reply: 1m }");
    for (one, other) in answers.steps.iter().zip(&longer.steps) {
        assert_eq!(one.spec, other.spec);
    }
}

#[test]
fn the_slowest_successor_says_how_large_a_batch_is() {
    let text = FLOW.replace(
        "    after: [orders]\n",
        "    after: [orders]\n    concurrency: 2\n",
    );
    let flow = flow(&text);
    let known = facts(&flow);
    let all = desired_flow(
        &ground(),
        flow,
        1,
        FlowState::Running,
        &known,
        &Entries::new(),
    );
    let orders = all.steps[0].blueprint.as_ref().unwrap().replica(1, false);
    assert_eq!(orders.start.routes.outputs["out"].batch_max, 2);
}

#[test]
fn a_replica_has_its_number_its_name_and_its_state() {
    let desired = desired(FlowState::Running, |_| {});
    let step = &desired.flows[0].steps[2];
    let spec = step.blueprint.as_ref().unwrap().replica(2, true);
    assert_eq!(spec.start.identity.replica, 2);
    assert_eq!(spec.start.identity.spec, step.spec);
    assert_eq!(spec.name, format!("i.f.crm.2.{}", &step.spec[..8]));
    assert!(spec.start.paused);
    assert!(u64::from(spec.stop_seconds) * 1000 > spec.start.settings.drain_ms);
}

#[test]
fn a_step_that_cannot_be_made_says_why() {
    let desired = testing::desired(FlowState::Running, |facts| {
        facts.get_mut("crm").unwrap().image = Err("the image `x` is not here".into());
    });
    let crm = &desired.flows[0].steps[2];
    assert_eq!(crm.blocked.as_deref(), Some("the image `x` is not here"));
    assert!(crm.blueprint.is_none());
    assert_eq!(desired.flows[0].steps[1].blocked, None);
}

#[test]
fn a_secret_never_gets_onto_a_command_line() {
    let desired = testing::desired(FlowState::Running, |facts| {
        let mut filled = filled(facts, "crm");
        filled.command = vec!["/step".into(), "--token=s3cret".into()];
        filled.secrets = BTreeSet::from(["s3cret".to_owned()]);
        facts.get_mut("crm").unwrap().filled = Ok(filled);
    });
    let blocked = desired.flows[0].steps[2].blocked.as_deref();
    assert_eq!(
        blocked,
        Some("its `command` has a secret in part 2; use `env`")
    );
}

#[test]
fn the_secrets_of_a_step_are_redacted_in_what_it_says() {
    let desired = testing::desired(FlowState::Running, |facts| {
        let mut filled = filled(facts, "crm");
        filled.with = json!({"token": "s3cret"});
        filled.secrets = BTreeSet::from(["s3cret".to_owned()]);
        facts.get_mut("crm").unwrap().filled = Ok(filled);
    });
    assert_eq!(replica(&desired, "crm").start.redact, ["s3cret"]);
    assert_eq!(
        replica(&desired, "shape").start.redact,
        Vec::<String>::new()
    );
}

const HANDS: &str = "
flow: hands
trigger: { id: hook, webhook: true }
actions:
  - { id: shape, image: \"towpath/jq:1\" }
  - { id: over, to: flow/invoices, when: .total > 0 }
  - { id: log, after: hook, image: \"towpath/log:1\" }
";

#[test]
fn a_step_before_one_that_hands_over_knows_where_that_leads() {
    let flow = flow(HANDS);
    let known = facts(&flow);
    let desired = |entry: &[&str]| {
        let entry = entry.iter().map(|step| (*step).into()).collect();
        let entries = Entries::from([("invoices".to_owned(), entry)]);
        desired_flow(
            &ground(),
            flow.clone(),
            1,
            FlowState::Running,
            &known,
            &entries,
        )
    };
    let (old, new) = (desired(&["bill"]), desired(&["bill", "mail"]));
    let ids: Vec<&str> = old.steps.iter().map(|step| &*step.id).collect();
    assert_eq!(ids, ["shape", "log"], "what hands over runs nowhere");
    let replica = old.steps[0].blueprint.as_ref().unwrap().replica(1, false);
    let output = &replica.start.routes.outputs["out"];
    assert_eq!((&output.key, output.steps.len()), (&None, 0));
    let [branch] = &output.branches[..] else {
        panic!("{output:?}")
    };
    assert_eq!(branch.step, "over");
    assert_eq!(branch.when.as_deref(), Some(".total > 0"));
    assert_eq!(branch.handed_to, ["invoices/bill"]);
    // When other steps are first there, those that send to them are replaced, and no others.
    assert_ne!(old.steps[0].spec, new.steps[0].spec);
    assert_eq!(old.steps[1].spec, new.steps[1].spec);
}
