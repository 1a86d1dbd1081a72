//! Sweeps of a simulated ladder, cut off and hindered.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::Instant;
use towpath_protocol::office::Waiting;

use super::*;
use crate::broker::simulated::{Faults, Simulated};
use crate::broker::topology::{FlowTopology, Topology};
use crate::schedule::system_clock;
use crate::store::now_ms;
use crate::store::waiting::WaitingQuery;

const FLOWS: [(&str, &str); 3] = [("orders", "crm"), ("orders", "bill"), ("other", "crm")];

struct World {
    broker: Simulated,
    names: Names,
    sweeper: Sweeper,
}

async fn world(seed: u64) -> World {
    let broker = Simulated::new(seed);
    let names = Names::new("t");
    let flow = |name: &str, steps: &[&str]| FlowTopology {
        flow: name.to_owned(),
        steps: steps
            .iter()
            .map(|step| ((*step).to_owned(), vec![]))
            .collect(),
        aliases: vec![],
        ..FlowTopology::default()
    };
    let topology = Topology {
        names: names.clone(),
        flows: vec![flow("orders", &["crm", "bill"]), flow("other", &["crm"])],
    };
    broker.declare(&topology, &[]).await.unwrap();
    let sweeper = Sweeper::new(
        Arc::new(broker.clone()),
        Store::in_memory().unwrap(),
        names.clone(),
        system_clock(),
    );
    World {
        broker,
        names,
        sweeper,
    }
}

fn id(number: u32) -> MessageId {
    let mut bytes = [0; 16];
    bytes[12..].copy_from_slice(&number.to_be_bytes());
    MessageId::from_bytes(bytes)
}

fn line(number: u32) -> String {
    format!(
        r#"{{"id":"{}","lineage":{{"run":"{}","version":1,"at":1}},"attempt":3,"history":[{{"attempt":2,"at":7,"reason":"no"}}],"body":{number}}}"#,
        id(number),
        id(0)
    )
}

fn ids(bodies: &[bytes::Bytes]) -> Vec<MessageId> {
    let lines = bodies.iter().flat_map(|body| body.split(|it| *it == b'\n'));
    let named = lines.filter(|line| !line.is_empty());
    let ids = named.map(|line| serde_json::from_slice::<Named>(line).unwrap().id);
    let mut ids: Vec<_> = ids.collect();
    ids.sort_unstable();
    ids
}

fn order(which: Which, fate: Fate) -> Order {
    Order {
        flow: "orders".into(),
        which,
        fate,
    }
}

impl World {
    /// Sends messages into the ladder, as one batch.
    async fn delay(&self, delay: Duration, (flow, step): (&str, &str), numbers: &[u32]) {
        let (exchange, key) = self.names.delayed(delay, flow, step);
        let lines: Vec<String> = numbers.iter().map(|number| line(*number)).collect();
        let publication = Publication {
            exchange,
            key,
            kind: BATCH_TYPE,
            body: lines.join("\n").into(),
            count: 1,
        };
        while self.broker.publish(publication.clone()).await.is_err() {}
    }

    fn at_step(&self, flow: &str, step: &str) -> Vec<MessageId> {
        ids(&self.broker.ready(&self.names.queue(flow, step)))
    }

    fn in_ladder(&self) -> Vec<MessageId> {
        let queues = self.names.delays();
        let bodies: Vec<_> = queues.iter().flat_map(|it| self.broker.ready(it)).collect();
        ids(&bodies)
    }

    fn dead(&self) -> Vec<DeadLetter> {
        let bodies = self.broker.ready(&self.names.dead());
        let lines = bodies.iter().flat_map(|body| body.split(|it| *it == b'\n'));
        let lines = lines.filter(|line| !line.is_empty());
        lines
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect()
    }
}

const HOUR: Duration = Duration::from_secs(3_600);

#[tokio::test(flavor = "multi_thread")]
async fn it_moves_exactly_what_was_asked_for() {
    let world = world(1).await;
    world.delay(HOUR, FLOWS[0], &[1, 2, 3]).await;
    world.delay(HOUR * 7, FLOWS[0], &[4]).await;
    world.delay(HOUR * 2, FLOWS[1], &[5]).await;
    world.delay(HOUR, FLOWS[2], &[6]).await;
    let wanted = Which::Ids([2, 4, 6, 9].map(id).into());
    let swept = world.sweeper.sweep(order(wanted, Fate::Now)).await.unwrap();
    let expect = Swept {
        moved: 2,
        held_back: 0,
        not_found: vec![id(6), id(9)],
    };
    assert_eq!(swept, expect);
    assert_eq!(world.at_step("orders", "crm"), [2, 4].map(id));
    assert_eq!(world.in_ladder(), [1, 3, 5, 6].map(id));
    let step = Which::Step("bill".into());
    let swept = world.sweeper.sweep(order(step, Fate::Now)).await.unwrap();
    assert_eq!(swept.moved, 1);
    assert_eq!(world.at_step("orders", "bill"), [id(5)]);
    let swept = world.sweeper.sweep(order(Which::All, Fate::Cancel)).await;
    assert_eq!(swept.unwrap().moved, 2);
    assert_eq!(world.in_ladder(), [id(6)], "that of the other flow");
    let dead = world.dead();
    assert_eq!(dead.len(), 2);
    let letter = &dead[0];
    assert_eq!(letter.cause, DeadCause::Cancelled);
    assert_eq!(
        letter.reason,
        "cancelled by an operator while it waited for attempt 3"
    );
    assert_eq!(letter.attempts.len(), 1);
    assert_eq!(letter.identity.step, "crm");
    assert!(letter.message.get().contains(&id(1).to_string()));
}

#[tokio::test(flavor = "multi_thread")]
async fn notes_of_what_was_moved_are_forgotten() {
    let world = world(2).await;
    let note = |number| Waiting {
        identity: Identity {
            instance: "t".into(),
            flow: "orders".into(),
            step: "crm".into(),
            replica: 1,
            spec: String::new(),
        },
        id: id(number),
        run: id(0),
        connection: "default".into(),
        attempt: 2,
        attempts: 5,
        rebounds: 0,
        replays: 0,
        is_rebound: false,
        reason: "no".into(),
        since: 1,
        due: now_ms() + 3_600_000,
    };
    let store = &world.sweeper.store;
    store.note_waiting(vec![note(1), note(2)]).await.unwrap();
    world.delay(HOUR, FLOWS[0], &[1, 2]).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    let one = Which::Ids([id(2)].into());
    world.sweeper.sweep(order(one, Fate::Now)).await.unwrap();
    let query = WaitingQuery {
        flow: "orders".into(),
        limit: 10,
        ..WaitingQuery::default()
    };
    let left = store.waiting(query).await.unwrap();
    assert_eq!(left.iter().map(|it| it.id).collect::<Vec<_>>(), [id(1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_finds_no_room_waits_on() {
    let world = world(3).await;
    world.delay(HOUR, FLOWS[0], &[1, 2]).await;
    let queue = world.names.queue("orders", "crm");
    world.broker.set_full(&queue, true);
    let swept = world.sweeper.sweep(order(Which::All, Fate::Now)).await;
    let swept = swept.unwrap();
    assert_eq!((swept.moved, swept.held_back), (0, 2));
    assert_eq!(world.in_ladder(), [1, 2].map(id));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_sweep_at_a_time() {
    let world = world(4).await;
    let turn = world.sweeper.turn.lock().await;
    let second = world.sweeper.sweep(order(Which::All, Fate::Now)).await;
    assert!(matches!(second, Err(SweepError::UnderWay)), "{second:?}");
    drop(turn);
    world
        .sweeper
        .sweep(order(Which::All, Fate::Now))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_comes_back_early() {
    let world = world(5).await;
    let began = Instant::now();
    let delays = [500, 1_000, 1_250, 2_250, 3_000];
    for (number, delay) in (0..).zip(delays) {
        let delay = Duration::from_millis(delay);
        world.delay(delay, FLOWS[1], &[number]).await;
    }
    let queue = world.names.queue("orders", "bill");
    let mut back = world.broker.consume(&queue, 10).await;
    let mut came = BTreeMap::new();
    while came.len() < delays.len() {
        // Of another step: it puts back all that it finds, again and again.
        let step = Which::Step("crm".into());
        let swept = world.sweeper.sweep(order(step, Fate::Now)).await.unwrap();
        assert_eq!(swept.moved, 0);
        while let Ok(Some(delivery)) = timeout(Duration::from_millis(50), back.recv()).await {
            let at = began.elapsed();
            for id in ids(std::slice::from_ref(&delivery.body)) {
                came.entry(id).or_insert(at);
            }
            delivery.settle.send(true).unwrap();
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{came:?}");
    }
    for (number, delay) in (0..).zip(delays) {
        let at = came[&id(number)];
        assert!(at >= Duration::from_millis(delay), "{number} after {at:?}");
    }
}

/// Sweeps with faults, cut off at a moment that the seed chooses; then without, to the end.
async fn cut_off(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let world = world(seed).await;
    for number in 0..60 {
        let delay = Duration::from_secs(random.random_range(600..100_000));
        let place = FLOWS[random.random_range(0..FLOWS.len())];
        world
            .delay(delay, place, &[number * 2, number * 2 + 1])
            .await;
    }
    let total = 120;
    world.broker.set_faults(Faults {
        refused: 0.05,
        confirm_lost: 0.05,
        acknowledgement_lost: 0.2,
    });
    for _ in 0..3 {
        let fate = if random.random_bool(0.5) {
            Fate::Now
        } else {
            Fate::Cancel
        };
        let some = (0..total).filter(|_| random.random_bool(0.3)).map(id);
        let order = order(Which::Ids(some.collect()), fate);
        let cut = Duration::from_micros(random.random_range(0..60_000));
        // Dropped where it is.
        drop(timeout(cut, world.sweeper.sweep_in_turn(&order)).await);
    }
    // What was in hand goes back when the consumer notices.
    let all: BTreeSet<MessageId> = (0..total).map(id).collect();
    let mut found = BTreeSet::new();
    for _ in 0..200 {
        found = world.in_ladder().into_iter().collect();
        for (flow, step) in FLOWS {
            found.extend(world.at_step(flow, step));
        }
        for letter in world.dead() {
            let named: Named = serde_json::from_str(letter.message.get()).unwrap();
            found.insert(named.id);
        }
        if found == all {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let lost: Vec<_> = all.difference(&found).collect();
    assert!(lost.is_empty(), "seed {seed} lost {lost:?}");
    assert!(
        world.at_step("other", "crm").is_empty(),
        "of another flow, with all its time ahead"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_that_is_cut_off_anywhere_loses_nothing() {
    for seed in 0..10 {
        cut_off(seed).await;
    }
}

#[test]
fn without_a_header_what_is_put_back_is_late_rather_than_early() {
    let names = Names::new("t");
    // Levels 2 and 0: a second and a quarter.
    let (_, key) = names.delayed(Duration::from_millis(1_250), "orders", "crm");
    let (settle, _settled) = tokio::sync::oneshot::channel();
    let mut delivery = Delivery {
        is_redelivered: false,
        kind: BATCH_TYPE.into(),
        body: bytes::Bytes::new(),
        key,
        exchange: String::new(),
        reply: None,
        due: Some(5),
        given_up_by: None,
        settle,
    };
    assert_eq!(due(&delivery, 2, 1_000), 5);
    delivery.due = None;
    assert_eq!(due(&delivery, 2, 1_000), 2_250);
    assert_eq!(due(&delivery, 1, 1_000), 1_250);
    assert_eq!(addressee(&delivery.key), ("orders", "crm"));
}
