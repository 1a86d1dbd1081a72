//! The ledger in its database, by example and against a model.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::*;
use crate::store::flows::NewVersion;

/// What the tests know of replicas: nothing, unless they say so.
#[derive(Clone, Default)]
struct Seen {
    of: Arc<Mutex<BTreeMap<Identity, Sighting>>>,
}

impl Seen {
    fn set(&self, identity: &Identity, sighting: Sighting) {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        of.insert(identity.clone(), sighting);
    }

    fn all(&self) -> Sightings {
        let of = Arc::clone(&self.of);
        Arc::new(move |identity| {
            let of = of.lock().unwrap_or_else(PoisonError::into_inner);
            of.get(identity).cloned().unwrap_or_default()
        })
    }
}

fn at(now: u64) -> Moment {
    Moment {
        now,
        takeovers: true,
    }
}

fn identity(replica: u32) -> Identity {
    Identity {
        instance: "t".into(),
        flow: "orders".into(),
        step: "crm".into(),
        replica,
        spec: "s".into(),
    }
}

fn id(number: u64) -> MessageId {
    let hash = blake3::hash(&number.to_be_bytes());
    MessageId::from_bytes(hash.as_bytes()[..16].try_into().unwrap())
}

fn claim(replica: u32, incarnation: &str, messages: &[u64]) -> LedgerEntry {
    LedgerEntry::Claim(Claim {
        identity: identity(replica),
        incarnation: incarnation.into(),
        question: 1,
        lease_ms: 60_000,
        alone: false,
        messages: messages.iter().map(|number| (id(*number), 0)).collect(),
    })
}

fn alone(replica: u32, incarnation: &str, message: u64) -> LedgerEntry {
    let LedgerEntry::Claim(mut claim) = claim(replica, incarnation, &[message]) else {
        unreachable!("it is a claim");
    };
    claim.alone = true;
    LedgerEntry::Claim(claim)
}

fn handled(replica: u32, incarnation: &str, messages: &[u64]) -> Handled {
    Handled {
        identity: identity(replica),
        incarnation: incarnation.into(),
        at: 1,
        messages: messages.iter().map(|number| (id(*number), 0)).collect(),
    }
}

const YOURS: Grant = Grant::Yours {
    uncertain: false,
    deaths: 0,
    death: None,
};

const TAKEN_OVER: Grant = Grant::Yours {
    uncertain: true,
    deaths: 0,
    death: None,
};

const BUSY: Grant = Grant::Busy { again_ms: 1_000 };

struct World {
    store: Store,
    seen: Seen,
}

impl World {
    fn new() -> Self {
        Self {
            store: Store::in_memory().unwrap(),
            seen: Seen::default(),
        }
    }

    async fn at(&self, now: u64, entry: LedgerEntry) -> Vec<Grant> {
        let entries = Arc::new(vec![entry]);
        let moment = at(now);
        let answers = self.store.ledger(entries, self.seen.all(), moment).await;
        answers.unwrap().remove(0).unwrap_or_default()
    }

    async fn settle(&self, now: u64, replica: u32, incarnation: &str, messages: &[u64]) {
        let entry = LedgerEntry::Settled(handled(replica, incarnation, messages));
        assert!(self.at(now, entry).await.is_empty());
    }

    async fn release(&self, now: u64, replica: u32, incarnation: &str, messages: &[u64]) {
        let entry = LedgerEntry::Released(handled(replica, incarnation, messages));
        assert!(self.at(now, entry).await.is_empty());
    }
}

#[tokio::test]
async fn a_message_is_granted_to_one() {
    let world = World::new();
    assert_eq!(world.at(1, claim(1, "a", &[1, 2])).await, [YOURS, YOURS]);
    assert_eq!(world.at(2, claim(2, "b", &[2, 3])).await, [BUSY, YOURS]);
    assert_eq!(world.at(3, claim(1, "a", &[1, 2])).await, [YOURS, YOURS]);
    world.settle(4, 1, "a", &[1]).await;
    assert_eq!(
        world.at(5, claim(2, "b", &[1, 2])).await,
        [Grant::Settled, BUSY]
    );
    world.release(6, 1, "a", &[2]).await;
    assert_eq!(world.at(7, claim(2, "b", &[2])).await, [YOURS]);
    let claims = world.store.ledger_claims().await.unwrap();
    assert_eq!(claims, [("orders".to_owned(), "crm".to_owned(), 2)]);
    // The lease passes.
    assert_eq!(world.at(60_007, claim(1, "a", &[2])).await, [TAKEN_OVER]);
}

#[tokio::test]
async fn a_settlement_always_counts() {
    let world = World::new();
    world.settle(1, 1, "a", &[1]).await;
    assert_eq!(world.at(2, claim(2, "b", &[1])).await, [Grant::Settled]);
    assert_eq!(world.at(3, claim(2, "b", &[2, 3])).await, [YOURS, YOURS]);
    world.settle(4, 1, "a", &[2]).await;
    world.release(4, 1, "a", &[3]).await;
    assert_eq!(
        world.at(5, claim(3, "c", &[2, 3])).await,
        [Grant::Settled, BUSY]
    );
}

#[tokio::test]
async fn a_replay_is_another_message() {
    let world = World::new();
    world.settle(1, 1, "a", &[1]).await;
    let mut replay = handled(1, "a", &[1]);
    replay.messages[0].1 = 2;
    let LedgerEntry::Claim(mut again) = claim(1, "a", &[1]) else {
        unreachable!("it is a claim");
    };
    again.messages[0].1 = 2;
    assert_eq!(world.at(2, LedgerEntry::Claim(again)).await, [YOURS]);
    world.at(3, LedgerEntry::Settled(replay)).await;
    let known = world.store.ledger_of(id(1)).await.unwrap();
    let known: Vec<_> = known.iter().map(|it| (it.replays, &it.state)).collect();
    let settled = |at| LedgerState::Settled { at };
    assert_eq!(known, [(0, &settled(1)), (2, &settled(3))]);
}

#[tokio::test]
async fn a_new_incarnation_takes_over_from_the_old_one() {
    let world = World::new();
    world.at(1_000, claim(1, "a", &[1, 2])).await;
    assert_eq!(world.at(1_001, claim(1, "b", &[1])).await, [TAKEN_OVER]);
    // Anybody may take what the old one had.
    assert_eq!(world.at(1_002, claim(2, "c", &[2])).await, [TAKEN_OVER]);
    // What the old one asked comes late, and proves nothing.
    assert_eq!(world.at(1_003, claim(1, "a", &[1, 3])).await, [BUSY, BUSY]);
    assert_eq!(world.at(1_004, claim(2, "c", &[1])).await, [BUSY]);
    assert_eq!(world.at(1_005, claim(1, "b", &[1])).await, [TAKEN_OVER]);
}

#[tokio::test]
async fn a_death_counts_if_the_message_was_alone() {
    let world = World::new();
    world.at(1_000, alone(1, "a", 1)).await;
    world.at(1_000, claim(1, "a", &[2])).await;
    let sighting = Sighting {
        looked_at: 2_000,
        failure: Some((1_500, "it was killed".into())),
        ..Sighting::default()
    };
    world.seen.set(&identity(1), sighting);
    let died = |deaths, death: Option<&str>| Grant::Yours {
        uncertain: true,
        deaths,
        death: death.map(Into::into),
    };
    assert_eq!(
        world.at(2_000, alone(2, "b", 1)).await,
        [died(1, Some("it was killed"))]
    );
    assert_eq!(world.at(2_000, claim(2, "b", &[2])).await, [TAKEN_OVER]);
    // The same one asks again: no further death.
    assert_eq!(
        world.at(2_100, alone(2, "b", 1)).await,
        [died(1, Some("it was killed"))]
    );
    assert_eq!(world.at(2_200, alone(2, "c", 1)).await, [died(2, None)]);
    // Whoever gives it back has counted them; that somebody had it remains.
    world.release(2_300, 2, "c", &[1]).await;
    assert_eq!(world.at(2_400, alone(3, "d", 1)).await, [TAKEN_OVER]);
}

#[tokio::test]
async fn it_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let seen = Seen::default();
    let open = || World {
        store: Store::open(folder.path()).unwrap(),
        seen: seen.clone(),
    };
    let world = open();
    world.at(1, claim(1, "a", &[1, 2])).await;
    world.settle(2, 1, "a", &[1]).await;
    drop(world);
    let world = open();
    assert_eq!(
        world.at(3, claim(2, "b", &[1, 2])).await,
        [Grant::Settled, BUSY]
    );
    assert_eq!(world.at(3, claim(1, "a", &[2])).await, [YOURS]);
}

#[tokio::test]
async fn it_goes_with_its_flow() {
    let world = World::new();
    let version = NewVersion {
        flow: "orders".into(),
        ..NewVersion::default()
    };
    world.store.store_version(version.clone()).await.unwrap();
    for number in 0..10 {
        world.settle(1, 1, "a", &[number]).await;
    }
    world.at(1, claim(1, "a", &[100])).await;
    assert!(
        world
            .store
            .delete_flow("orders", vec![], true)
            .await
            .unwrap()
    );
    assert_eq!(world.store.ledger_of(id(1)).await.unwrap(), []);
    world.store.store_version(version).await.unwrap();
    assert_eq!(world.at(2, claim(1, "b", &[1])).await, [YOURS]);
    let mut forgotten = Vec::new();
    loop {
        let count = world.store.forget_ledger(0, 4).await.unwrap();
        if count == 0 {
            break;
        }
        forgotten.push(count);
    }
    assert_eq!(forgotten, [5, 4, 2], "a little at a time");
    assert_eq!(world.at(3, claim(2, "c", &[1, 100])).await, [BUSY, YOURS]);
}

#[tokio::test]
async fn old_settlements_are_forgotten() {
    let world = World::new();
    world.settle(1_000, 1, "a", &[1]).await;
    world.at(1_000, claim(1, "a", &[2])).await;
    world.settle(2_000, 1, "a", &[3]).await;
    world.at(70_000, claim(1, "a", &[4])).await;
    assert_eq!(world.store.forget_ledger(1_500, 100).await.unwrap(), 1);
    assert_eq!(
        world.at(70_001, claim(2, "b", &[1, 3, 4])).await,
        [YOURS, Grant::Settled, BUSY]
    );
    // A claim of a message that nobody heard of again goes too.
    assert_eq!(world.store.forget_ledger(65_000, 100).await.unwrap(), 2);
    assert_eq!(world.at(70_002, claim(2, "b", &[2])).await, [YOURS]);
}

/// A replica in the model: its container, and the incarnation that runs in it.
struct Replica {
    incarnation: u32,
    is_running: bool,
    /// The messages that this incarnation was granted and has not let go.
    held: BTreeSet<u64>,
}

/// Agents come, claim, settle, release, die and come back; the reports and looks that tell of it
/// come late or not at all.
#[expect(clippy::too_many_lines, reason = "one story, told in order")]
async fn against_the_model(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let world = World::new();
    let mut replicas: Vec<Replica> = (0..4)
        .map(|_| Replica {
            incarnation: 0,
            is_running: true,
            held: BTreeSet::new(),
        })
        .collect();
    let mut settled = BTreeSet::new();
    let mut touched_by_the_dead = BTreeSet::new();
    let mut now = 1_000;
    let name = |replica: usize, incarnation: u32| format!("{replica}/{incarnation}");
    for _ in 0..1_500 {
        now += random.random_range(1..50);
        let at = random.random_range(0..replicas.len());
        let number = u32::try_from(at).unwrap() + 1;
        let incarnation = name(at, replicas[at].incarnation);
        match random.random_range(0..10) {
            0..=4 if replicas[at].is_running => {
                let wanted: Vec<u64> = (0..5).map(|_| random.random_range(0..60)).collect();
                let grants = world.at(now, claim(number, &incarnation, &wanted)).await;
                for (message, grant) in wanted.iter().zip(grants) {
                    let holder = (0..replicas.len())
                        .find(|other| *other != at && replicas[*other].held.contains(message));
                    match grant {
                        Grant::Yours { uncertain, .. } => {
                            assert!(!settled.contains(message), "seed {seed}: settled, granted");
                            assert_eq!(holder, None, "seed {seed}: two have {message}");
                            if touched_by_the_dead.contains(message)
                                && !replicas[at].held.contains(message)
                            {
                                assert!(uncertain, "seed {seed}: a takeover that says nothing");
                            }
                            replicas[at].held.insert(*message);
                        }
                        Grant::Settled => {
                            assert!(settled.contains(message), "seed {seed}: never settled");
                        }
                        Grant::Busy { .. } => {
                            assert!(!settled.contains(message), "seed {seed}: settled, busy");
                            assert!(!replicas[at].held.contains(message), "seed {seed}: its own");
                        }
                    }
                }
            }
            5 | 6 if replicas[at].is_running => {
                if let Some(message) = replicas[at].held.pop_first() {
                    world.settle(now, number, &incarnation, &[message]).await;
                    settled.insert(message);
                }
            }
            7 if replicas[at].is_running => {
                if let Some(message) = replicas[at].held.pop_last() {
                    world.release(now, number, &incarnation, &[message]).await;
                }
            }
            8 => {
                // It dies, or is started again.
                let replica = &mut replicas[at];
                if replica.is_running {
                    touched_by_the_dead.append(&mut replica.held);
                    if random.random_bool(0.3) {
                        // Its last words were on their way.
                        let late = [random.random_range(0..60)];
                        world.at(now, claim(number, &incarnation, &late)).await;
                        replica.is_running = false;
                    }
                } else {
                    replica.incarnation += 1;
                }
                replica.is_running = !replica.is_running && random.random_bool(0.9);
                if replica.is_running {
                    replica.incarnation += 1;
                }
            }
            _ => {
                let replica = &replicas[at];
                let spoke = name(at, replica.incarnation);
                let sighting = Sighting {
                    reported: random.random_bool(0.5).then_some((spoke, now)),
                    looked_at: if random.random_bool(0.5) { now } else { 0 },
                    is_there: replica.is_running,
                    failure: None,
                };
                world.seen.set(&identity(number), sighting);
            }
        }
    }
    // All die; once that is seen, one that is left gets everything that is not settled.
    now += 1;
    for number in 1..=4 {
        let gone = Sighting {
            looked_at: now + 1,
            ..Sighting::default()
        };
        world.seen.set(&identity(number), gone);
    }
    now += 2;
    let all: Vec<u64> = (0..60).collect();
    let grants = world.at(now, claim(9, "last", &all)).await;
    for (message, grant) in all.iter().zip(grants) {
        let is_settled = settled.contains(message);
        match grant {
            Grant::Settled => assert!(is_settled, "seed {seed}: {message}"),
            Grant::Yours { .. } => assert!(!is_settled, "seed {seed}: {message}"),
            Grant::Busy { .. } => panic!("seed {seed}: nobody has {message}"),
        }
    }
}

#[tokio::test]
async fn it_does_what_the_model_does() {
    for seed in 0..12 {
        against_the_model(seed).await;
    }
}

#[tokio::test]
async fn how_many_ids_a_second() {
    const QUESTIONS: u64 = 200;
    const EACH: u64 = 250;
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let seen = Seen::default().all();
    let began = Instant::now();
    // As the office does it: what has come in meanwhile is one transaction.
    for turn in 0..QUESTIONS / 20 {
        let (mut claims, mut settlements) = (Vec::new(), Vec::new());
        for question in turn * 20..(turn + 1) * 20 {
            let messages: Vec<u64> = (question * EACH..(question + 1) * EACH).collect();
            claims.push(claim(1, "a", &messages));
            settlements.push(LedgerEntry::Settled(handled(1, "a", &messages)));
        }
        let answers = store.ledger(Arc::new(claims), Arc::clone(&seen), at(turn));
        let granted = answers.await.unwrap().into_iter().flatten().flatten();
        assert_eq!(
            granted.filter(|grant| *grant == YOURS).count() as u64,
            20 * EACH
        );
        let settled = store.ledger(Arc::new(settlements), Arc::clone(&seen), at(turn));
        settled.await.unwrap();
    }
    let rate = (QUESTIONS * EACH) as f64 / began.elapsed().as_secs_f64();
    println!("{rate:.0} messages claimed and settled a second");
}
