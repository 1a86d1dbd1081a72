//! Tests of what is declared, by routing through it as the broker does.

use std::collections::BTreeMap;

use super::super::routing::Router;
use super::*;

fn topology() -> Topology {
    let after = |step: &str| vec![(step.to_owned(), "out".to_owned())];
    Topology {
        names: Names::new("t"),
        flows: vec![FlowTopology {
            flow: "orders".into(),
            steps: vec![
                ("poll".into(), vec![]),
                ("shape".into(), after("poll")),
                ("crm".into(), after("shape")),
                ("audit".into(), after("poll")),
            ],
            aliases: vec![],
            ..FlowTopology::default()
        }],
    }
}

fn router(topology: &Topology) -> Router {
    let mut router = Router::default();
    for declaration in declarations(topology) {
        router.declare(&declaration);
    }
    router
}

fn queues(topology: &Topology) -> BTreeMap<String, Queue> {
    declarations(topology)
        .into_iter()
        .filter_map(|declaration| match declaration {
            Declaration::Queue(queue) => Some((queue.name.clone(), queue)),
            Declaration::Exchange(_) | Declaration::Binding(_) => None,
        })
        .collect()
}

/// Follows a delivery through the ladder: the queues' waits add up until a queue keeps it.
fn travel(exchange: &str, key: &str) -> (String, Duration) {
    let topology = topology();
    let (router, queues) = (router(&topology), queues(&topology));
    let (mut exchange, mut waited) = (exchange.to_owned(), Duration::ZERO);
    loop {
        let reached = router
            .route(&exchange, key)
            .expect("the exchange is declared");
        assert_eq!(reached.len(), 1, "{exchange} {key} reaches {reached:?}");
        let queue = &queues[reached.first().unwrap()];
        let Some(wait) = queue.wait else {
            return (queue.name.clone(), waited);
        };
        waited += wait;
        exchange = queue
            .dead_letter_exchange
            .clone()
            .expect("what waits goes on");
    }
}

#[test]
fn every_delay_reaches_its_step_after_exactly_that_delay() {
    let names = Names::new("t");
    let all_but_one = (0..DELAY_LEVELS).map(|level| !(1_u32 << level));
    let single = (0..DELAY_LEVELS).map(|level| 1_u32 << level);
    let some = (0..2000_u32).map(|index| index.wrapping_mul(2_654_435_761));
    for units in all_but_one
        .chain(single)
        .chain(some)
        .chain(0..300)
        .map(|units| units & 0xff_ffff)
    {
        let delay = Duration::from_millis(u64::from(units) * DELAY_UNIT_MS);
        let (exchange, key) = names.delayed(delay, "orders", "crm");
        assert_eq!(
            travel(&exchange, &key),
            ("t.flow.orders.crm".to_owned(), delay),
            "{units}"
        );
    }
}

#[test]
fn a_delay_is_rounded_up_and_cut() {
    let names = Names::new("t");
    let check = |delay: Duration, expect: Duration| {
        let (exchange, key) = names.delayed(delay, "orders", "crm");
        assert_eq!(travel(&exchange, &key).1, expect, "{delay:?}");
    };
    check(Duration::ZERO, Duration::ZERO);
    check(Duration::from_millis(1), Duration::from_millis(250));
    check(Duration::from_millis(251), Duration::from_millis(500));
    check(Duration::MAX, Duration::from_millis(250 * 0xff_ffff));
}

#[test]
fn a_port_leads_to_every_step_after_it() {
    let reached = router(&topology())
        .route(
            "t.flow.orders",
            &topology().flows[0].port_key("poll", "out"),
        )
        .unwrap();
    assert_eq!(
        reached.into_iter().collect::<Vec<_>>(),
        ["t.flow.orders.audit", "t.flow.orders.shape"]
    );
}

#[test]
fn every_exchange_leads_somewhere() {
    let router = router(&topology());
    for declaration in declarations(&topology()) {
        if let Declaration::Exchange(exchange) = declaration {
            let reached = router.route(&exchange.name, "no.such.key").unwrap();
            let end = if exchange.name == "t.dead" {
                "t.dead"
            } else {
                "t.lost"
            };
            assert_eq!(
                reached.into_iter().collect::<Vec<_>>(),
                [end],
                "{}",
                exchange.name
            );
        }
    }
    // Through the whole ladder to a step that is gone.
    let (exchange, key) = Names::new("t").delayed(Duration::from_secs(0), "orders", "gone");
    assert_eq!(travel(&exchange, &key).0, "t.lost");
    let (exchange, key) = Names::new("t").delayed(Duration::from_millis(750), "orders", "gone");
    assert_eq!(
        travel(&exchange, &key),
        ("t.lost".to_owned(), Duration::from_millis(750))
    );
}

#[test]
fn dead_lettering_is_at_least_once() {
    let text = |text: &str| Argument::Text(text.to_owned());
    for queue in queues(&topology())
        .into_values()
        .filter(|queue| queue.dead_letter_exchange.is_some())
    {
        let arguments = queue.arguments();
        for needed in [
            ("x-queue-type", text("quorum")),
            ("x-overflow", text("reject-publish")),
            ("x-dead-letter-strategy", text("at-least-once")),
        ] {
            assert!(arguments.contains(&needed), "{} {arguments:?}", queue.name);
        }
        assert!(
            !arguments
                .iter()
                .any(|(name, _)| *name == "x-dead-letter-routing-key")
        );
    }
}

#[test]
fn every_queue_is_bounded() {
    for queue in queues(&topology()).into_values() {
        let arguments: BTreeMap<_, _> = queue.arguments().into_iter().collect();
        assert!(matches!(arguments["x-max-length"], Argument::Number(1..)));
        assert!(matches!(
            arguments["x-max-length-bytes"],
            Argument::Number(1..)
        ));
        if queue.kind == QueueKind::Durable {
            assert!(
                matches!(arguments["x-delivery-limit"], Argument::Number(1..)),
                "explicit and positive"
            );
        }
    }
}

#[test]
fn the_queue_of_a_step_has_these_arguments() {
    let arguments = queues(&topology())["t.flow.orders.crm"].arguments();
    let shown: Vec<String> = arguments
        .into_iter()
        .map(|(name, value)| match value {
            Argument::Number(number) => format!("{name} {number}"),
            Argument::Text(text) => format!("{name} {text}"),
            Argument::Flag(flag) => format!("{name} {flag}"),
        })
        .collect();
    // They are a contract: a queue that exists with other arguments cannot be declared again.
    assert_eq!(
        shown,
        [
            "x-max-length 100000",
            "x-max-length-bytes 536870912",
            "x-queue-type quorum",
            "x-overflow reject-publish",
            "x-delivery-limit 50",
            "x-dead-letter-exchange t.dead",
            "x-dead-letter-strategy at-least-once",
        ]
    );
}

#[test]
fn reports_are_forgotten_oldest_first() {
    let arguments = queues(&topology())["t.reports"].arguments();
    assert!(arguments.contains(&("x-queue-type", Argument::Text("classic".into()))));
    assert!(arguments.contains(&("x-overflow", Argument::Text("drop-head".into()))));
}

#[test]
fn what_a_flow_no_longer_has_is_stale_and_nothing_else() {
    let old = topology();
    let mut new = topology();
    // `shape` goes away: `crm` follows `poll`.
    new.flows[0].steps.retain(|(step, _)| step != "shape");
    new.flows[0].steps[1].1 = vec![("poll".into(), "out".into())];
    let stale = stale_bindings(&new, &old.flows);
    let shown: Vec<String> = stale
        .iter()
        .map(|binding| format!("{} {}", binding.source, binding.key))
        .collect();
    let key = |step: &str| format!("t.flow.orders {}", old.flows[0].port_key(step, "out"));
    // The port of `poll` leads to other steps, and so has another key.
    let expect = [key("poll"), key("poll"), key("shape")];
    assert_eq!(shown[..3], expect);
    assert_eq!(shown[3..], ["t.steps #.orders.shape"]);
    assert!(stale_bindings(&old, &old.flows).is_empty());
}

#[test]
fn the_longest_wait_is_one_that_the_broker_can_count() {
    let longest = queues(&topology())
        .into_values()
        .filter_map(|queue| queue.wait)
        .max()
        .unwrap();
    assert!(
        longest.as_millis() <= u128::from(u32::MAX),
        "the broker's timers have 32 bits"
    );
}

#[test]
fn a_message_never_goes_by_an_old_and_a_new_way() {
    let old = topology();
    let mut new = topology();
    // `tax` is put between `shape` and `crm`.
    new.flows[0].steps[2].1 = vec![("tax".into(), "out".into())];
    let after = vec![("shape".to_owned(), "out".to_owned())];
    new.flows[0].steps.push(("tax".into(), after));
    // While the one takes over from the other both are declared.
    let mut router = router(&old);
    for declaration in declarations(&new) {
        router.declare(&declaration);
    }
    let check = |topology: &Topology, step: &str, expect: &[&str]| {
        let key = topology.flows[0].port_key(step, "out");
        let reached = router.route("t.flow.orders", &key).unwrap();
        let expect: BTreeSet<String> = expect
            .iter()
            .map(|step| format!("t.flow.orders.{step}"))
            .collect();
        assert_eq!(reached, expect, "{key}");
    };
    check(&old, "shape", &["crm"]);
    check(&new, "shape", &["tax"]);
    check(&new, "tax", &["crm"]);
    check(&old, "poll", &["audit", "shape"]);
    check(&new, "poll", &["audit", "shape"]);
    let one = old.flows[0].port_key("shape", "out");
    assert_eq!(Names::parse_port_key(&one), ("shape", "out"));
}

#[test]
fn what_still_comes_for_a_step_that_was_renamed_goes_to_the_other() {
    let mut topology = topology();
    topology.flows[0].aliases = vec![("old".into(), "crm".into())];
    let router = router(&topology);
    let key = "0.0.1.orders.old";
    let reached = router.route("t.steps", key).unwrap();
    assert_eq!(reached, BTreeSet::from(["t.flow.orders.crm".to_owned()]));
    let lost = super::super::topology::Names::new("t").lost();
    let other = router.route("t.steps", "0.0.1.orders.older").unwrap();
    assert_eq!(other, BTreeSet::from([lost]));
}

#[test]
fn a_step_that_keeps_an_order_has_an_intake_and_partitions() {
    let mut topology = topology();
    let plain = topology.flows[0].port_key("shape", "out");
    topology.flows[0].ordered.insert("crm".into(), 3);
    let key = topology.flows[0].port_key("shape", "out");
    assert_ne!(
        key, plain,
        "nothing goes both ways while the flow is changed"
    );
    let (router, queues) = (router(&topology), queues(&topology));
    let reaches = |exchange: &str, key: &str| router.route(exchange, key).expect("it is declared");
    let only = |queue: &str| BTreeSet::from([queue.to_owned()]);
    assert_eq!(reaches("t.flow.orders", &key), only("t.flow.orders.crm.in"));
    assert_eq!(
        reaches("t.steps", "orders.crm"),
        only("t.flow.orders.crm.in")
    );
    for number in 0..3 {
        let key = Names::partition_key("crm", number);
        let queue = format!("t.flow.orders.crm.{number}");
        assert_eq!(reaches("t.flow.orders", &key), only(&queue));
        assert_eq!(topology.names.parse_queue(&queue), Some(("orders", "crm")));
        assert_eq!(Names::parse_partition_key(&key), Some("crm"));
        assert!(queues[&queue].single_active);
    }
    assert!(queues["t.flow.orders.crm.in"].single_active);
    assert!(!queues.contains_key("t.flow.orders.crm"));
    assert!(!queues["t.flow.orders.audit"].single_active);
    assert_eq!(Names::parse_partition_key(&plain), None);
    let declared = topology.names.queues("orders", "crm", Some(3));
    assert!(declared.iter().all(|queue| queues.contains_key(queue)));
    assert_eq!(declared.len(), 4);
}

#[test]
fn a_branch_has_a_way_of_its_own() {
    let tag = |when: &str| branch_tag(Some(when), false).unwrap();
    let mut topology = topology();
    let branches = BTreeMap::from([("audit".to_owned(), tag(".a"))]);
    topology.flows[0].branches = branches;
    let old = topology.clone();
    topology.flows[0].branches.insert("audit".into(), tag(".b"));
    let mut router = router(&old);
    for declaration in declarations(&topology) {
        router.declare(&declaration);
    }
    let check = |key: &str, expect: &str| {
        let reached = router.route("t.flow.orders", key).unwrap();
        assert_eq!(reached, BTreeSet::from([expect.to_owned()]), "{key}");
    };
    let flow = &topology.flows[0];
    check(&flow.port_key("poll", "out"), "t.flow.orders.shape");
    check(&flow.key_to("poll", "out", "shape"), "t.flow.orders.shape");
    // A replica that knows the old condition goes on by the old way; both lead there alone.
    let (now, before) = (flow, &old.flows[0]);
    let keys = [now, before].map(|flow| flow.key_to("poll", "out", "audit"));
    assert_ne!(keys[0], keys[1], "the key names the condition");
    for key in &keys {
        check(key, "t.flow.orders.audit");
        assert_eq!(Names::parse_port_key(key), ("poll", "out"));
        assert_eq!(Names::parse_branch_key(key), Some("audit"));
    }
    assert_eq!(Names::parse_branch_key(&flow.port_key("poll", "out")), None);
    let stale = stale_bindings(&topology, &old.flows);
    let stale: Vec<&str> = stale.iter().map(|binding| binding.key.as_str()).collect();
    assert_eq!(stale, [keys[1].as_str()]);
    assert_eq!(branch_tag(None, true), None, "it takes everything");
}

/// `orders` with an action that hands what `shape` emits to `invoices`, which begins with `first`.
fn handing(first: &[&str]) -> Topology {
    let mut topology = topology();
    topology.flows[0].handovers = vec![Handover {
        step: "over".into(),
        after: vec![("shape".into(), "out".into())],
        when: None,
        to: "invoices".into(),
        entry: Vec::new(),
    }];
    let after = vec![("orders".to_owned(), "out".to_owned())];
    let steps = first.iter().map(|step| ((*step).to_owned(), after.clone()));
    topology.flows.push(FlowTopology {
        flow: "invoices".into(),
        steps: steps.collect(),
        entry: first.iter().map(|step| (*step).into()).collect(),
        ..FlowTopology::default()
    });
    topology.join();
    topology
}

#[test]
fn what_is_handed_over_goes_to_the_first_steps_of_the_other_flow_alone() {
    let (old, new) = (handing(&["bill"]), handing(&["bill", "log"]));
    let mut router = router(&old);
    for declaration in declarations(&new) {
        router.declare(&declaration);
    }
    let key = |topology: &Topology| {
        let handover = &topology.flows[0].handovers[0];
        let keys: Vec<String> = handover.keys().collect();
        assert_eq!(keys, [handover.key_after("shape", "out")]);
        keys[0].clone()
    };
    let check = |key: &str, expect: &[&str]| {
        let reached = router.route("t.flow.orders", key).unwrap();
        let queue = |step: &&str| format!("t.flow.invoices.{step}");
        assert_eq!(reached, expect.iter().map(queue).collect(), "{key}");
    };
    // While the other flow changes, a replica goes on by the way of the version it knows.
    check(&key(&old), &["bill"]);
    check(&key(&new), &["bill", "log"]);
    assert_eq!(Names::parse_branch_key(&key(&new)), Some("over"));
    let own = router.route("t.flow.orders", &old.flows[0].port_key("shape", "out"));
    assert_eq!(
        own.unwrap(),
        BTreeSet::from(["t.flow.orders.crm".to_owned()])
    );
    let stale = stale_bindings(&new, &old.flows);
    let of_orders = stale.iter().filter(|it| it.source == "t.flow.orders");
    let stale: Vec<&str> = of_orders.map(|it| it.key.as_str()).collect();
    assert_eq!(stale, [key(&old)]);
    assert_eq!(
        new.flows[0].handovers[0].leads_to(),
        ["invoices/bill", "invoices/log"]
    );
}

#[test]
fn the_way_of_what_is_handed_over_names_all_that_makes_it() {
    let handover = |to: &str, entry: &[&str], when: Option<&str>| Handover {
        step: "over".into(),
        after: Vec::new(),
        when: when.map(str::to_owned),
        to: to.into(),
        entry: entry.iter().map(|step| (*step).into()).collect(),
    };
    let tags = BTreeSet::from([
        handover("a", &["x", "y"], None).tag(),
        handover("a", &["x"], None).tag(),
        handover("b", &["x"], None).tag(),
        handover("b", &["x"], Some(".a")).tag(),
        handover("b", &["x"], Some(".b")).tag(),
    ]);
    assert_eq!(tags.len(), 5);
}
