//! Where a message is, by table.

use towpath_protocol::start::Identity;

use super::*;

const NOW: u64 = 1_000_000;

fn id() -> MessageId {
    MessageId::from_bytes([1; 16])
}

fn other(number: u8) -> MessageId {
    MessageId::from_bytes([number; 16])
}

/// A flow `orders`: `shape`, then `crm` and `mail`, nothing in any queue.
fn facts() -> Facts {
    let after = |step: &str| vec![(step.to_owned(), "out".to_owned())];
    let steps = vec![
        ("shape".to_owned(), after("poll")),
        ("crm".to_owned(), after("shape")),
        ("mail".to_owned(), after("shape")),
    ];
    let ready = ["shape", "crm", "mail"]
        .map(|step| (("orders".to_owned(), step.to_owned()), 0))
        .into();
    Facts {
        now: NOW,
        flows: BTreeMap::from([(
            "orders".to_owned(),
            Wiring {
                intents: BTreeMap::new(),
                trigger: "poll".into(),
                steps,
                branches: BTreeSet::new(),
                handovers: BTreeMap::new(),
            },
        )]),
        ready,
        ..Facts::default()
    }
}

fn answer(step: &str, replica: u32, now: Option<Holding>, events: Vec<(u64, What)>) -> Found {
    Found {
        identity: Identity {
            instance: "t".into(),
            flow: "orders".into(),
            step: step.into(),
            replica,
            spec: "s".into(),
        },
        question: 1,
        now,
        events: events
            .into_iter()
            .map(|(at, what)| Happened { id: id(), at, what })
            .collect(),
        reach: 500_000,
    }
}

fn emitted() -> What {
    What::Emitted {
        parent: other(9),
        port: "out".into(),
        to: None,
    }
}

fn letter(number: u64, at: u64, state: DeadState) -> Letter {
    Letter {
        id: number,
        flow: "orders".into(),
        step: "crm".into(),
        at,
        replica: 2,
        reason: "404".into(),
        state,
        attempts: vec![PastAttempt {
            attempt: 1,
            at,
            replica: 2,
            reason: "404".into(),
            log: vec!["asked".into()],
        }],
        run: Some(other(7)),
        parent: Some(other(9)),
    }
}

fn note(due: u64) -> Note {
    Note {
        flow: "orders".into(),
        step: "crm".into(),
        run: other(7),
        attempt: 3,
        attempts: 5,
        reason: "503".into(),
        since: NOW - 9_000,
        due,
    }
}

fn entry(state: EntryState) -> Entry {
    Entry {
        flow: "orders".into(),
        step: "crm".into(),
        state,
    }
}

/// Where it is at `crm`, and how many contradictions there are.
#[track_caller]
fn check(facts: &Facts, place: Place, contradictions: usize) -> AtStep {
    let found = whereabouts(id(), facts);
    assert_eq!(found.contradictions.len(), contradictions, "{found:#?}");
    let at = found.steps.iter().find(|at| at.step == "crm");
    let at = at.unwrap_or_else(|| panic!("nothing is known: {found:#?}"));
    assert_eq!(at.place, place, "{found:#?}");
    assert!(!at.next.is_empty());
    at.clone()
}

#[test]
fn every_source_alone_says_where_it_is() {
    let with = |answer: Found| Facts {
        answers: vec![answer],
        ..facts()
    };
    let in_hand = Holding::InHand {
        since: NOW - 5,
        attempt: 2,
    };
    let at = check(
        &with(answer("crm", 2, Some(in_hand), vec![])),
        Place::InHand,
        0,
    );
    assert_eq!(
        (at.replica, at.since, at.attempt),
        (Some(2), Some(NOW - 5), Some(2))
    );
    check(
        &with(answer("crm", 2, Some(Holding::Waiting), vec![])),
        Place::Taken,
        0,
    );
    check(
        &with(answer("crm", 2, Some(Holding::Settling), vec![])),
        Place::Settling,
        0,
    );
    let done = What::Done { attempt: 1 };
    check(
        &with(answer("crm", 1, None, vec![(NOW - 9, done)])),
        Place::Settled,
        0,
    );
    check(
        &with(answer("crm", 1, None, vec![(NOW - 9, What::Repeated)])),
        Place::Settled,
        0,
    );
    let dead = What::Dead { attempt: 3 };
    check(
        &with(answer("crm", 1, None, vec![(NOW - 9, dead)])),
        Place::Dead,
        0,
    );
    let delayed = |due| vec![(NOW - 9, What::Delayed { attempt: 1, due })];
    let at = check(
        &with(answer("crm", 1, None, delayed(NOW + 500))),
        Place::Waiting,
        0,
    );
    assert_eq!((at.until, at.attempt), (Some(NOW + 500), Some(2)));
    check(
        &with(answer("crm", 1, None, delayed(NOW - 5))),
        Place::Queued,
        0,
    );
    check(
        &with(answer("shape", 1, None, vec![(NOW - 9, emitted())])),
        Place::Queued,
        0,
    );
    for (state, place) in [
        (DeadState::Open, Place::Dead),
        (DeadState::Discarded, Place::Discarded),
        (DeadState::Replayed, Place::Queued),
    ] {
        let facts = Facts {
            letters: vec![letter(12, NOW - 9, state)],
            ..facts()
        };
        check(&facts, place, 0);
    }
    let waits = |due| Facts {
        notes: vec![note(due)],
        ..facts()
    };
    let at = check(&waits(NOW + 60_000), Place::Waiting, 0);
    assert_eq!((at.attempt, at.attempts), (Some(3), Some(5)));
    check(&waits(NOW - 1_000), Place::Queued, 0);
    let ledger = |state| Facts {
        ledger: vec![entry(state)],
        ..facts()
    };
    check(&ledger(EntryState::Settled { at: 5 }), Place::Settled, 0);
    let claimed = EntryState::Claimed {
        replica: 4,
        since: NOW - 70,
        until: NOW + 70,
    };
    check(&ledger(claimed), Place::Claimed, 0);
}

#[test]
fn what_was_seen_last_is_believed() {
    let mut facts = facts();
    facts.answers = vec![answer("shape", 1, None, vec![(NOW - 900, emitted())])];
    check(&facts, Place::Queued, 0);
    facts.notes = vec![note(NOW - 800)];
    check(&facts, Place::Queued, 0);
    facts.letters = vec![letter(12, NOW - 700, DeadState::Open)];
    let at = check(&facts, Place::Dead, 0);
    assert!(at.next.contains("towpath dead replay 12"), "{}", at.next);
    facts.letters[0].state = DeadState::Replayed;
    check(&facts, Place::Queued, 0);
    let in_hand = Holding::InHand {
        since: NOW - 5,
        attempt: 1,
    };
    facts.answers.push(answer("crm", 1, Some(in_hand), vec![]));
    check(&facts, Place::InHand, 0);
    let done = vec![(NOW - 1, What::Done { attempt: 1 })];
    facts.answers[1] = answer("crm", 1, None, done);
    check(&facts, Place::Settled, 0);
}

#[test]
fn a_letter_says_what_became_of_a_death_that_an_agent_remembers() {
    for (state, place) in [
        (DeadState::Open, Place::Dead),
        (DeadState::Discarded, Place::Discarded),
        (DeadState::Replayed, Place::Queued),
    ] {
        let mut facts = facts();
        facts.letters = vec![letter(12, NOW - 700, state)];
        let dead = vec![(NOW - 690, What::Dead { attempt: 1 })];
        facts.answers = vec![answer("crm", 2, None, dead)];
        check(&facts, place, 0);
    }
}

#[test]
fn what_an_operator_brought_back_early_does_not_wait() {
    let mut facts = facts();
    let delayed = What::Delayed {
        attempt: 1,
        due: NOW + 60_000,
    };
    let done = What::Done { attempt: 2 };
    facts.answers = vec![answer(
        "crm",
        2,
        None,
        vec![(NOW - 700, delayed), (NOW - 10, done)],
    )];
    check(&facts, Place::Settled, 0);
}

#[test]
fn what_does_not_agree_is_said() {
    let mut facts = facts();
    let in_hand = Holding::InHand {
        since: NOW - 5,
        attempt: 1,
    };
    let done = vec![(NOW - 50, What::Done { attempt: 1 })];
    facts.answers = vec![
        answer("crm", 1, Some(in_hand.clone()), vec![]),
        answer("crm", 2, None, done),
    ];
    check(&facts, Place::InHand, 1);
    let said = whereabouts(id(), &facts).contradictions;
    assert!(
        said[0].contains("settled at orders/crm by replica 2"),
        "{said:?}"
    );
    // Replayed after it was settled, it is handled again on purpose.
    facts.letters = vec![letter(3, NOW - 20, DeadState::Replayed)];
    check(&facts, Place::InHand, 0);
    facts.letters.clear();
    facts.answers[1] = answer("crm", 2, Some(in_hand), vec![]);
    check(&facts, Place::InHand, 1);
    facts.answers.clear();
    facts.notes = vec![note(NOW + 1_000)];
    facts.letters = vec![letter(3, NOW - 20, DeadState::Open)];
    check(&facts, Place::Waiting, 1);
}

#[test]
fn it_is_at_every_step_after_the_one_that_emitted_it() {
    let mut facts = facts();
    facts.answers = vec![
        answer("shape", 1, None, vec![(NOW - 900, emitted())]),
        answer("crm", 1, None, vec![(NOW - 50, What::Done { attempt: 1 })]),
    ];
    let found = whereabouts(id(), &facts);
    let places: Vec<_> = found
        .steps
        .iter()
        .map(|at| (at.step.as_str(), at.place))
        .collect();
    assert_eq!(places, [("crm", Place::Settled), ("mail", Place::Queued)]);
    assert_eq!(found.state, Place::Queued, "it is not done everywhere");
    let parent = found.parent.unwrap();
    assert_eq!(
        (parent.id, parent.step.as_deref(), parent.port.as_deref()),
        (other(9).to_string(), Some("shape"), Some("out"))
    );
}

#[test]
fn what_left_no_trace_is_not_called_queued() {
    let mut facts = facts();
    let long_ago = NOW - UNDER_WAY_MS - 1;
    facts.answers = vec![answer("shape", 1, None, vec![(long_ago, emitted())])];
    check(&facts, Place::Untraced, 0);
    facts.silent = vec!["replica 2 of orders/crm".into()];
    check(&facts, Place::Queued, 0);
    facts.silent.clear();
    facts
        .ready
        .insert(("orders".to_owned(), "crm".to_owned()), 5);
    let at = check(&facts, Place::Queued, 0);
    assert_eq!(at.ready, Some(5));
}

#[test]
fn unknown_says_how_far_the_memory_reaches() {
    let mut facts = facts();
    let found = whereabouts(id(), &facts);
    assert_eq!(
        (found.state, found.remembered_since),
        (Place::Unknown, None)
    );
    let mut early = answer("crm", 1, None, vec![]);
    early.reach = 100;
    facts.answers = vec![early, answer("shape", 1, None, vec![])];
    facts
        .ready
        .insert(("orders".to_owned(), "crm".to_owned()), 5);
    let found = whereabouts(id(), &facts);
    assert_eq!(found.state, Place::Unknown);
    assert_eq!(found.remembered_since, Some(500_000), "all of them do");
    assert_eq!((found.answered, found.queued_deliveries), (2, 5));
}

#[test]
fn what_happens_next_depends_on_the_flow() {
    for (state, says) in [
        (FlowState::Running, "a replica of `crm` takes it"),
        (FlowState::Draining, "a replica of `crm` takes it"),
        (FlowState::Paused, "as long as the flow is held"),
        (FlowState::Stopped, "as long as the flow is held"),
    ] {
        let mut facts = facts();
        facts.notes = vec![note(NOW - 1)];
        let intent = Intent {
            state,
            because: Some("the flow is held".into()),
        };
        let wiring = facts.flows.get_mut("orders").unwrap();
        wiring.intents.insert("crm".into(), intent);
        let at = check(&facts, Place::Queued, 0);
        assert!(at.next.contains(says), "{}", at.next);
    }
    let mut facts = facts();
    facts.notes = vec![note(NOW - 1)];
    facts.flows.clear();
    let at = check(&facts, Place::Queued, 0);
    assert!(at.next.contains("no flow `orders`"), "{}", at.next);
}

#[test]
fn attempts_and_children_are_told_once() {
    let mut facts = facts();
    facts.letters = vec![letter(3, NOW - 20, DeadState::Open)];
    facts.notes = vec![note(NOW - 500)];
    let mut crm = answer(
        "crm",
        2,
        None,
        vec![
            (NOW - 20, What::Dead { attempt: 1 }),
            (
                NOW - 90_000,
                What::Delayed {
                    attempt: 7,
                    due: NOW - 500,
                },
            ),
        ],
    );
    for at in [NOW - 30, NOW - 25] {
        crm.events.push(Happened {
            id: other(5),
            at,
            what: What::Emitted {
                parent: id(),
                port: "out".into(),
                to: None,
            },
        });
    }
    crm.events.push(Happened {
        id: id(),
        at: NOW - 20,
        what: What::Joined {
            output: other(6),
            port: "sums".into(),
        },
    });
    facts.answers = vec![crm];
    let found = whereabouts(id(), &facts);
    let attempts: Vec<_> = found
        .attempts
        .iter()
        .map(|it| (it.attempt, it.outcome.as_str(), it.log.len()))
        .collect();
    assert_eq!(attempts, [(7, "503", 0), (1, "404", 1)]);
    let children: Vec<_> = found
        .children
        .iter()
        .map(|child| (child.id.clone(), child.port.as_str()))
        .collect();
    assert_eq!(
        children,
        [
            (other(5).to_string(), "out"),
            (other(6).to_string(), "sums")
        ]
    );
    assert_eq!(found.run, Some(other(7).to_string()));
}

#[test]
fn a_run_is_known_by_its_record() {
    let run = |state, next_at| RunRecord {
        id: id(),
        flow: "orders".into(),
        step: "poll".into(),
        connection: "default".into(),
        version: 1,
        why: towpath_protocol::frame::Why::Schedule,
        state,
        due: NOW - 90,
        started_at: NOW - 90,
        ended_at: Some(NOW - 10).filter(|_| state == RunState::Done),
        emitted: None,
        attempts: 0,
        next_at,
        reason: None,
        payload: None,
        tracked: false,
        cancel_at: None,
    };
    for (record, place) in [
        (run(RunState::Done, None), Place::Settled),
        (run(RunState::Published, None), Place::Queued),
        (run(RunState::Published, Some(NOW + 5)), Place::Waiting),
    ] {
        let facts = Facts {
            run: Some(record),
            ..facts()
        };
        let found = whereabouts(id(), &facts);
        assert_eq!(found.state, place);
        assert_eq!(found.run, Some(id().to_string()));
    }
}

#[test]
fn a_step_that_was_faster_than_the_confirm_has_the_last_word() {
    let mut entered = facts();
    entered.entered = Some(took_in(&["shape"]));
    entered.letters = vec![Letter {
        step: "shape".into(),
        ..letter(7, NOW - 6, DeadState::Open)
    }];
    assert_eq!(whereabouts(id(), &entered).state, Place::Dead);
    let mut sent = facts();
    sent.answers = vec![
        answer("shape", 1, None, vec![(NOW - 5, emitted())]),
        answer("crm", 1, None, vec![(NOW - 6, What::Done { attempt: 1 })]),
    ];
    let found = whereabouts(id(), &sent);
    let crm = found.steps.iter().find(|at| at.step == "crm").unwrap();
    assert_eq!(crm.place, Place::Settled);
}

/// A webhook of `orders` took it in.
fn took_in(to: &[&str]) -> Entered {
    let to: Vec<String> = to.iter().map(|step| (*step).to_owned()).collect();
    Entered {
        id: id(),
        flow: "orders".into(),
        to: to.into(),
        at: NOW - 5,
    }
}

#[test]
fn what_a_webhook_took_in_is_queued_at_the_first_steps() {
    let mut facts = facts();
    facts.entered = Some(took_in(&["shape"]));
    let steps = whereabouts(id(), &facts).steps;
    assert_eq!(steps.len(), 1);
    assert_eq!((&*steps[0].step, steps[0].place), ("shape", Place::Queued));
    facts.entered = Some(took_in(&[]));
    let found = whereabouts(id(), &facts);
    assert_eq!(found.state, Place::Unmatched);
    assert_eq!(found.steps[0].step, "poll", "its trigger");
}

#[test]
fn a_message_is_where_its_conditions_sent_it() {
    let mut facts = facts();
    let wiring = facts.flows.get_mut("orders").unwrap();
    wiring.branches = BTreeSet::from(["crm".to_owned()]);
    let place = |what: What| {
        let facts = Facts {
            answers: vec![answer("shape", 1, None, vec![(NOW - 5, what)])],
            ..facts.clone()
        };
        let steps = whereabouts(id(), &facts).steps;
        let steps = steps.into_iter().map(|at| (at.step, at.place));
        steps.collect::<Vec<_>>()
    };
    let to = |branch: Option<&str>| What::Emitted {
        parent: other(9),
        port: "out".into(),
        to: branch.map(Into::into),
    };
    assert_eq!(place(to(None)), [("mail".to_owned(), Place::Queued)]);
    assert_eq!(place(to(Some("crm"))), [("crm".to_owned(), Place::Queued)]);
    let unmatched = What::Unmatched {
        parent: other(9),
        port: "out".into(),
    };
    assert_eq!(place(unmatched), [("shape".to_owned(), Place::Unmatched)]);
}

#[test]
fn an_answer_of_the_flow_is_nowhere_else() {
    let what = What::Emitted {
        parent: other(9),
        port: "reply".into(),
        to: None,
    };
    let facts = Facts {
        answers: vec![answer("crm", 1, None, vec![(NOW - 5, what)])],
        ..facts()
    };
    let found = whereabouts(id(), &facts);
    let reason = found.steps[0].reason.as_deref();
    assert_eq!(found.steps[0].place, Place::Settled);
    assert_eq!(reason, Some("it is an answer of the flow"));
}

#[test]
fn what_was_handed_over_is_at_the_first_steps_of_the_other_flow() {
    let mut facts = facts();
    let wiring = facts.flows.get_mut("orders").unwrap();
    let to = ("invoices".to_owned(), vec!["bill".to_owned()]);
    wiring.handovers.insert("over".into(), to);
    let emitted = What::Emitted {
        parent: other(9),
        port: "out".into(),
        to: Some("over".into()),
    };
    let mut handed = facts.clone();
    handed.answers = vec![answer("shape", 1, None, vec![(NOW - 100, emitted)])];
    let mut replayed = facts.clone();
    replayed.letters = vec![Letter {
        id: 7,
        flow: "orders".into(),
        step: "over".into(),
        at: NOW - 100,
        replica: 1,
        reason: "its condition failed".into(),
        state: DeadState::Replayed,
        attempts: Vec::new(),
        run: None,
        parent: None,
    }];
    let mut entered = facts;
    entered.entered = Some(Entered {
        id: id(),
        flow: "orders".into(),
        to: vec!["over".to_owned()].into(),
        at: NOW - 100,
    });
    for facts in [handed, replayed, entered] {
        let found = whereabouts(id(), &facts);
        let [at_step] = &found.steps[..] else {
            panic!("{found:?}")
        };
        assert_eq!((&*at_step.flow, &*at_step.step), ("invoices", "bill"));
        assert_eq!(at_step.place, Place::Queued);
        let reason = at_step.reason.as_deref().unwrap();
        assert_eq!(reason, "the flow `orders` handed it over");
    }
}
