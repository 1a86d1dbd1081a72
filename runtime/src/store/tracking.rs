//! What came of runs: which messages of each there are, at which step, and whether they are settled.
//!
//! For every run that is tracked there is a set of (step, message). What is known of each is a
//! **rank**, and the largest wins: open, then done, then dead, and all of these again for each time
//! the message was replayed. So it does not matter in which order and how often something is said.
//! The sums of a step are kept beside its messages, in the same transaction.
//!
//! A run is **finished** when its tick has ended and no message of it is open. Until a while later
//! its messages are kept, so that what is said twice is recognised; then only the dead ones are,
//! because they may be replayed, and the sums.
//!
//! # Invariants
//!
//! - `a_run_is_finished_exactly_when_everything_that_came_of_it_is_settled`, in whatever order and
//!   however often it is said.
//! - `what_is_said_after_a_run_is_forgotten_changes_no_sum`, but for replays.
//! - `a_replay_opens_its_run_again`.
//! - `a_run_that_is_too_large_is_given_up_and_says_so`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use rusqlite::{OptionalExtension, Transaction, params};
use towpath_protocol::MessageId;
use towpath_protocol::runs::{Entry, Head};

use super::records::{DeadLetterRecord, RunProgress, RunState, StepSums};
use super::{Store, StoreError, columns};

/// The most messages of one run that are kept apart: beyond, its sums would cost more than they
/// tell. A message counts once for each step it goes to.
pub const MESSAGES_MAX: u64 = 1_000_000;

/// What a run says that has more.
const TOO_LARGE: &str = "it has more than 1,000,000 messages";

/// What a run says of which a report was lost.
const REPORT_LOST: &str =
    "the queue of reports was full while it ran, and what did not fit was not counted";

/// What a run says whose messages were looked for and not found.
pub const NOWHERE: &str = "some of its messages are in no queue, with no agent and wait for no retry: they were dropped, or what became of them was not reported";

/// How many ranks there are for each time a message was sent in.
const RANKS: u32 = 4;
const OPEN: u32 = 0;
const DONE: u32 = 1;
const DEAD: u32 = 2;

/// What is known of a message.
fn rank(replays: u32, fate: u32) -> u32 {
    // Nobody replays a message a thousand million times.
    replays.min(u32::MAX / RANKS - 1) * RANKS + fate
}

/// A report: who wrote it, and its entries, each with its run.
pub type Report = (Head, Vec<(MessageId, Entry)>);

/// A flow whose requests are runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookRuns {
    /// The version of the flow.
    pub version: u32,
    /// Its trigger's step.
    pub trigger: String,
    /// The steps that take the requests.
    pub takers: Vec<String>,
}

/// The run of a request that is about to enter its flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestRun {
    /// The run.
    pub run: MessageId,
    /// The flow.
    pub flow: String,
    /// What is noted of it; its takers are the steps that the request goes to.
    pub of: WebhookRuns,
}

/// What reports changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Noted {
    /// The runs that are finished now and were not.
    pub finished: Vec<MessageId>,
    /// How many entries were read.
    pub entries: u64,
}

impl Store {
    /// Takes reports in, in one transaction. A run of a flow with a webhook begins with the first
    /// report that says something of it.
    pub async fn note_runs(
        &self,
        reports: Arc<Vec<Report>>,
        webhooks: Arc<BTreeMap<String, WebhookRuns>>,
        now: u64,
    ) -> Result<Noted, StoreError> {
        self.with("note what came of runs", move |database| {
            let transaction = database.transaction()?;
            let mut book = Book::new(&transaction, now);
            let mut entries = 0;
            for (head, said) in reports.iter() {
                entries += said.len() as u64;
                let webhook = webhooks.get(&head.identity.flow);
                for (run, entry) in said {
                    book.note(head, *run, *entry, webhook)?;
                }
            }
            let finished = book.close()?;
            transaction.commit()?;
            Ok(Noted { finished, entries })
        })
        .await
    }

    /// Begins the runs of requests before anybody reports of them. Returns those that were not there.
    pub async fn begin_requests(
        &self,
        requests: Vec<Arc<RequestRun>>,
        now: u64,
    ) -> Result<Vec<MessageId>, StoreError> {
        self.with("begin the runs of requests", move |database| {
            let transaction = database.transaction()?;
            let mut book = Book::new(&transaction, now);
            let mut begun = Vec::new();
            for request in &requests {
                if book.begin_webhook(request.run, &request.flow, &request.of)? {
                    begun.push(request.run);
                }
            }
            book.close()?;
            transaction.commit()?;
            Ok(begun)
        })
        .await
    }

    /// Takes back that the runs of requests began. If they entered their flow all the same, they begin
    /// with the first report.
    pub async fn take_back_requests(&self, runs: Vec<MessageId>) -> Result<(), StoreError> {
        self.with("take back the runs of requests", move |database| {
            let transaction = database.transaction()?;
            for run in runs {
                transaction
                    .prepare_cached("DELETE FROM runs WHERE id = ?1 AND why = 'webhook'")?
                    .execute([run.to_string()])?;
            }
            transaction.commit()
        })
        .await
    }

    /// Says that a message went to another step than the one that is noted: the step is gone.
    pub async fn run_message_moved(
        &self,
        letter: &DeadLetterRecord,
        to: &str,
        now: u64,
    ) -> Result<(), StoreError> {
        let Some(run) = letter.run else { return Ok(()) };
        let (id, from, to) = (letter.message_id, letter.step.clone(), to.to_owned());
        let replays = letter.replays;
        self.with("note that a message moved", move |database| {
            let transaction = database.transaction()?;
            let mut book = Book::new(&transaction, now);
            if from != to && book.counts(run, true)? {
                book.raise(run, &to, id, rank(replays, OPEN))?;
                book.raise(run, &from, id, rank(replays, DONE))?;
            }
            book.close()?;
            transaction.commit()
        })
        .await
    }

    /// Says that not all is known of the unfinished runs in `runs`, and why.
    pub async fn runs_lost(
        &self,
        runs: Vec<MessageId>,
        reason: &'static str,
    ) -> Result<(), StoreError> {
        self.with("note that runs are not known", move |database| {
            let transaction = database.transaction()?;
            for run in runs {
                transaction
                    .prepare_cached(
                        "UPDATE runs SET lost = ?2 WHERE id = ?1 AND lost IS NULL
                             AND finished_at IS NULL",
                    )?
                    .execute(params![run.to_string(), reason])?;
            }
            transaction.commit()
        })
        .await
    }

    /// What is known of runs, in their order.
    pub async fn runs_progress(
        &self,
        runs: Vec<MessageId>,
    ) -> Result<Vec<RunProgress>, StoreError> {
        self.with("read what came of runs", move |database| {
            runs.iter().map(|run| progress(database, *run)).collect()
        })
        .await
    }

    /// The runs of a flow that have ended and are not finished, and of which nothing was heard since
    /// `before`: oldest first.
    pub async fn quiet_runs(
        &self,
        flow: &str,
        before: u64,
        limit: u32,
    ) -> Result<Vec<MessageId>, StoreError> {
        let flow = flow.to_owned();
        self.with("find runs that do not move", move |database| {
            database
                .prepare_cached(
                    "SELECT id FROM runs WHERE flow = ?1 AND tracked = 1 AND finished_at IS NULL
                         AND lost IS NULL AND state NOT IN ('recorded', 'published')
                         AND coalesce(progress_at, started_at) < ?2
                     ORDER BY due LIMIT ?3",
                )?
                .query_map(params![flow, before, limit], |row| columns::id(row, "id"))?
                .collect()
        })
        .await
    }

    /// Forgets the messages of runs that were finished before `before`, but for dead letters; those of
    /// runs that are gone or given up; and the finished runs of webhooks that left neither a dead letter
    /// nor an answer: at most about `limit` messages and as many runs. Returns how many, so that whoever asks can come
    /// again while there are more.
    pub async fn forget_run_messages(&self, before: u64, limit: u32) -> Result<usize, StoreError> {
        self.with("forget what came of runs", move |database| {
            let transaction = database.transaction()?;
            let mut count = transaction.execute(
                "DELETE FROM runs WHERE id IN (
                     SELECT id FROM runs WHERE why = 'webhook' AND finished_at < ?1 AND forgotten < 2
                         AND NOT EXISTS (
                             SELECT 1 FROM run_steps WHERE run_steps.run = runs.id AND dead > 0)
                         AND NOT EXISTS (SELECT 1 FROM answers WHERE answers.run = runs.id)
                     LIMIT ?2)",
                params![before, limit],
            )?;
            let mut left = usize::try_from(limit).unwrap_or(usize::MAX);
            for (run, steps) in forgettable(&transaction, before)? {
                // From the first message that is forgotten, what is said twice is not recognised.
                transaction
                    .prepare_cached("UPDATE runs SET forgotten = 1 WHERE id = ?1")?
                    .execute([&run])?;
                for (step, all) in &steps {
                    let deleted = transaction
                        .prepare_cached(
                            "DELETE FROM run_messages WHERE step = ?1 AND message IN (
                                 SELECT message FROM run_messages
                                 WHERE step = ?1 AND (?2 OR rank % 4 <> 2) LIMIT ?3)",
                        )?
                        .execute(params![step, all, left])?;
                    left -= deleted;
                    count += deleted;
                }
                if left == 0 {
                    break;
                }
                // All of them are gone: it was not cut off by the limit.
                if let Some(run) = run { transaction
                .prepare_cached("UPDATE runs SET forgotten = 2 WHERE id = ?1")?
                .execute([run])? } else {
                    let mut gone =
                        transaction.prepare_cached("DELETE FROM run_steps WHERE id = ?1")?;
                    for (step, _) in &steps {
                        gone.execute([step])?;
                    }
                    steps.len()
                };
            }
            transaction.commit()?;
            Ok(count)
        })
        .await
    }
}

/// The steps whose messages may go, with their run, or without if it is gone; each with whether dead
/// letters go as well.
#[expect(clippy::type_complexity, reason = "it is read where it is made")]
fn forgettable(
    transaction: &Transaction<'_>,
    before: u64,
) -> rusqlite::Result<Vec<(Option<String>, Vec<(i64, bool)>)>> {
    /// As many as are looked at in one transaction.
    const TOGETHER: u32 = 1_000;
    let gone = transaction
        .prepare_cached(
            "SELECT id FROM run_steps WHERE NOT EXISTS (
                 SELECT 1 FROM runs WHERE runs.id = run_steps.run) LIMIT ?1",
        )?
        .query_map([TOGETHER], |row| row.get(0))?
        .collect::<rusqlite::Result<Vec<i64>>>()?;
    let mut all: Vec<_> = gone
        .into_iter()
        .map(|step| (None, vec![(step, true)]))
        .collect();
    let runs = transaction
        .prepare_cached(
            "SELECT id, tracked FROM runs
             WHERE forgotten < 2 AND (tracked = 2 OR finished_at < ?1) AND tracked <> 0 LIMIT ?2",
        )?
        .query_map(params![before, TOGETHER], |row| {
            Ok((row.get(0)?, row.get::<_, u8>(1)? == 2))
        })?
        .collect::<rusqlite::Result<Vec<(String, bool)>>>()?;
    for (run, is_given_up) in runs {
        let steps = transaction
            .prepare_cached("SELECT id FROM run_steps WHERE run = ?1")?
            .query_map([&run], |row| Ok((row.get(0)?, is_given_up)))?
            .collect::<rusqlite::Result<_>>()?;
        all.push((Some(run), steps));
    }
    Ok(all)
}

/// Begins to keep what comes of a run whose tick goes to `step`.
pub(super) fn begin(
    transaction: &Transaction<'_>,
    run: MessageId,
    step: &str,
    now: u64,
) -> rusqlite::Result<()> {
    let mut book = Book::new(transaction, now);
    if book.counts(run, false)? {
        book.raise(run, step, run, rank(0, OPEN))?;
    }
    book.close()?;
    Ok(())
}

/// Says that a tick will not be heard of any more, or only says that its run has ended.
pub(super) fn end(
    transaction: &Transaction<'_>,
    run: MessageId,
    tick_is_settled: Option<&str>,
    now: u64,
) -> rusqlite::Result<()> {
    let mut book = Book::new(transaction, now);
    if book.counts(run, false)?
        && let Some(step) = tick_is_settled
    {
        book.raise(run, step, run, rank(0, DONE))?;
    }
    book.close()?;
    Ok(())
}

/// Says that a message is a dead letter.
pub(super) fn died(
    transaction: &Transaction<'_>,
    letter: &DeadLetterRecord,
    now: u64,
) -> rusqlite::Result<()> {
    let Some(run) = letter.run else { return Ok(()) };
    let mut book = Book::new(transaction, now);
    if book.counts(run, letter.replays > 0)? {
        let dead = rank(letter.replays, DEAD);
        if letter.port.is_none() {
            book.settle(run, &letter.flow, &letter.step, letter.message_id, dead)?;
        } else {
            // It was lost on its way to whoever takes it.
            for step in book.steps_with(run, letter.message_id)? {
                book.raise(run, &step, letter.message_id, dead)?;
            }
        }
    }
    book.close()?;
    Ok(())
}

/// Says that a dead letter was sent again: to its step, or to an earlier one.
pub(super) fn replayed(
    transaction: &Transaction<'_>,
    letter: &DeadLetterRecord,
    to: Option<&str>,
    now: u64,
) -> rusqlite::Result<()> {
    let Some(run) = letter.run else { return Ok(()) };
    let mut book = Book::new(transaction, now);
    let failed: Option<RunState> = book.runs_state(run)?;
    // A dead tick is not sent again: a new run begins in its place.
    let is_tick = letter.message_id == run && failed == Some(RunState::Failed);
    if !is_tick && book.counts(run, true)? {
        let (id, open) = (
            letter.message_id,
            rank(letter.replays.saturating_add(1), OPEN),
        );
        let died_at = if letter.port.is_some() {
            book.steps_with(run, id)?
        } else {
            vec![letter.step.clone()]
        };
        match to.filter(|to| !died_at.iter().any(|step| step == to)) {
            Some(to) => {
                book.raise(run, to, id, open)?;
                // There it is nobody's any more.
                for step in died_at {
                    book.raise(run, &step, id, open + DONE)?;
                }
            }
            None => {
                for step in died_at {
                    book.raise(run, &step, id, open)?;
                }
            }
        }
    }
    book.close()?;
    Ok(())
}

fn progress(database: &rusqlite::Connection, run: MessageId) -> rusqlite::Result<RunProgress> {
    let steps = database
        .prepare_cached("SELECT step, open, done, dead FROM run_steps WHERE run = ?1 ORDER BY id")?
        .query_map([run.to_string()], |row| {
            Ok(StepSums {
                step: row.get(0)?,
                open: row.get(1)?,
                done: row.get(2)?,
                dead: row.get(3)?,
            })
        })?
        .collect::<rusqlite::Result<_>>()?;
    let found = database
        .prepare_cached(
            "SELECT tracked, began_at, progress_at, finished_at, lost, cancel_at, is_rebound,
                    checkpoint_before, checkpoint_after,
                    (SELECT count(*) FROM waiting WHERE waiting.run = ?2 AND waiting.due > ?3)
             FROM runs WHERE id = ?1",
        )?
        .query_row(
            params![run.to_string(), run.as_bytes(), super::now_ms()],
            |row| {
                Ok(RunProgress {
                    tracked: row.get::<_, u8>(0)? != 0,
                    began_at: row.get(1)?,
                    progress_at: row.get(2)?,
                    finished_at: row.get(3)?,
                    lost: row.get(4)?,
                    cancel_at: row.get(5)?,
                    is_rebound: row.get(6)?,
                    checkpoint_before: row.get(7)?,
                    checkpoint_after: row.get(8)?,
                    retrying: row.get(9)?,
                    steps: Vec::new(),
                })
            },
        )
        .optional()?;
    Ok(RunProgress {
        steps,
        ..found.unwrap_or_default()
    })
}

/// What one transaction knows.
struct Book<'a> {
    transaction: &'a Transaction<'a>,
    now: u64,
    /// The runs that were asked about; none if it does not count.
    runs: HashMap<MessageId, Option<Run>>,
    /// Their steps.
    sums: HashMap<MessageId, BTreeMap<String, Sums>>,
    /// Runs of which something changed.
    changed: BTreeSet<MessageId>,
    /// The steps whose messages a step (flow, step) took over.
    former: HashMap<(String, String), Vec<String>>,
}

#[derive(Clone, Copy)]
struct Run {
    is_forgotten: bool,
    is_finished: bool,
    /// Something of it is open again.
    is_reopened: bool,
    messages: u64,
}

#[derive(Clone, Copy, Default)]
struct Sums {
    id: i64,
    counts: [u64; 3],
    is_changed: bool,
}

impl<'a> Book<'a> {
    fn new(transaction: &'a Transaction<'a>, now: u64) -> Self {
        Self {
            transaction,
            now,
            runs: HashMap::new(),
            sums: HashMap::new(),
            changed: BTreeSet::new(),
            former: HashMap::new(),
        }
    }

    fn note(
        &mut self,
        head: &Head,
        run: MessageId,
        entry: Entry,
        webhook: Option<&WebhookRuns>,
    ) -> rusqlite::Result<()> {
        if let Some(webhook) = webhook {
            self.begin_webhook(run, &head.identity.flow, webhook)?;
        }
        match entry {
            Entry::Emitted {
                id,
                way,
                of_replayed,
            } => {
                if self.counts(run, of_replayed)? {
                    for step in head.ways.get(usize::from(way)).into_iter().flatten() {
                        self.raise(run, step, id, rank(0, OPEN))?;
                    }
                }
            }
            Entry::Done { id, replays } => {
                if self.counts(run, replays > 0)? {
                    let (flow, step) = (&head.identity.flow, &head.identity.step);
                    self.settle(run, flow, step, id, rank(replays, DONE))?;
                }
            }
            Entry::Lost => {
                self.transaction
                    .prepare_cached(
                        "UPDATE runs SET lost = ?2 WHERE id = ?1 AND tracked = 1 AND lost IS NULL",
                    )?
                    .execute(params![run.to_string(), REPORT_LOST])?;
            }
        }
        Ok(())
    }

    /// Whether something that is said of a run counts. Of one that is finished and forgotten, only
    /// what comes of a replay does: everything else was said before.
    fn counts(&mut self, run: MessageId, of_replayed: bool) -> rusqlite::Result<bool> {
        let run = self.run(run)?;
        Ok(run.is_some_and(|run| {
            let is_over = run.is_forgotten && run.is_finished && !run.is_reopened;
            run.messages < MESSAGES_MAX && (!is_over || of_replayed)
        }))
    }

    fn run(&mut self, run: MessageId) -> rusqlite::Result<Option<Run>> {
        if let Some(known) = self.runs.get(&run) {
            return Ok(*known);
        }
        let known = self
            .transaction
            .prepare_cached(
                "SELECT forgotten > 0, finished_at IS NOT NULL FROM runs
                 WHERE id = ?1 AND tracked = 1",
            )?
            .query_row([run.to_string()], |row| {
                Ok(Run {
                    is_forgotten: row.get(0)?,
                    is_finished: row.get(1)?,
                    is_reopened: false,
                    messages: 0,
                })
            })
            .optional()?;
        let known = match known {
            Some(mut known) => {
                let sums = self.load(run)?;
                known.messages = sums.values().flat_map(|it| it.counts).sum();
                self.sums.insert(run, sums);
                Some(known)
            }
            None => None,
        };
        self.runs.insert(run, known);
        Ok(known)
    }

    fn load(&self, run: MessageId) -> rusqlite::Result<BTreeMap<String, Sums>> {
        self.transaction
            .prepare_cached("SELECT step, id, open, done, dead FROM run_steps WHERE run = ?1")?
            .query_map([run.to_string()], |row| {
                let sums = Sums {
                    id: row.get(1)?,
                    counts: [row.get(2)?, row.get(3)?, row.get(4)?],
                    is_changed: false,
                };
                Ok((row.get(0)?, sums))
            })?
            .collect()
    }

    fn runs_state(&self, run: MessageId) -> rusqlite::Result<Option<RunState>> {
        self.transaction
            .prepare_cached("SELECT state FROM runs WHERE id = ?1")?
            .query_row([run.to_string()], |row| columns::unword(row, "state"))
            .optional()
    }

    /// A request begins a run: it is at the steps that take it. Returns whether it was not there.
    fn begin_webhook(
        &mut self,
        run: MessageId,
        flow: &str,
        webhook: &WebhookRuns,
    ) -> rusqlite::Result<bool> {
        if self.run(run)?.is_some() {
            return Ok(false);
        }
        let begun = self
            .transaction
            .prepare_cached(
                "INSERT INTO runs (id, flow, step, connection, version, why, state, due, started_at,
                     ended_at, attempts, tracked)
                 SELECT ?1, ?2, ?3, 'default', ?4, 'webhook', 'done', ?5, ?5, ?5, 0, 1
                 WHERE EXISTS (SELECT 1 FROM flows WHERE name = ?2) ON CONFLICT DO NOTHING",
            )?
            .execute(params![
                run.to_string(),
                flow,
                webhook.trigger,
                webhook.version,
                entered_at(run, self.now),
            ])?;
        self.runs.remove(&run);
        let begun = begun == 1 && self.run(run)?.is_some();
        if begun {
            for step in &webhook.takers {
                self.raise(run, step, run, rank(0, OPEN))?;
            }
        }
        Ok(begun)
    }

    /// The steps of a run that a message is at.
    fn steps_with(&mut self, run: MessageId, id: MessageId) -> rusqlite::Result<Vec<String>> {
        self.transaction
            .prepare_cached(
                "SELECT run_steps.step FROM run_steps JOIN run_messages
                     ON run_messages.step = run_steps.id AND run_messages.message = ?2
                 WHERE run_steps.run = ?1",
            )?
            .query_map(params![run.to_string(), id.as_bytes()], |row| row.get(0))?
            .collect()
    }

    /// Notes that a message is settled at a step. If nobody said that it was emitted to that step, it
    /// may have been on its way to one whose messages the step took over.
    fn settle(
        &mut self,
        run: MessageId,
        flow: &str,
        step: &str,
        id: MessageId,
        rank: u32,
    ) -> rusqlite::Result<()> {
        if !self.raise(run, step, id, rank)? {
            return Ok(());
        }
        let key = (flow.to_owned(), step.to_owned());
        if !self.former.contains_key(&key) {
            let steps = self
                .transaction
                .prepare_cached("SELECT step FROM former_steps WHERE flow = ?1 AND successor = ?2")?
                .query_map(params![flow, step], |row| row.get(0))?
                .collect::<rusqlite::Result<Vec<String>>>()?;
            self.former.insert(key.clone(), steps);
        }
        if self.former[&key].is_empty() {
            return Ok(());
        }
        for other in self.steps_with(run, id)? {
            if self.former[&key].contains(&other) {
                self.raise(run, &other, id, rank - rank % RANKS + DONE)?;
            }
        }
        Ok(())
    }

    /// Notes what is known of a message at a step, if it is more than what was. Returns whether
    /// nothing was known.
    fn raise(
        &mut self,
        run: MessageId,
        step: &str,
        id: MessageId,
        rank: u32,
    ) -> rusqlite::Result<bool> {
        let sums = self.sums.entry(run).or_default();
        let sums = if let Some(sums) = sums.get_mut(step) {
            sums
        } else {
            self.transaction
                .prepare_cached(
                    "INSERT INTO run_steps (run, step, open, done, dead) VALUES (?1, ?2, 0, 0, 0)",
                )?
                .execute(params![run.to_string(), step])?;
            sums.entry(step.to_owned()).or_insert(Sums {
                id: self.transaction.last_insert_rowid(),
                ..Sums::default()
            })
        };
        let was = change(self.transaction, sums.id, id, rank)?;
        let Some(was) = was else { return Ok(false) };
        if let Some(fate) = was {
            sums.counts[fate as usize] -= 1;
        }
        if let Some(Some(run)) = self.runs.get_mut(&run) {
            run.messages += u64::from(was.is_none());
            run.is_reopened |= rank % RANKS == OPEN;
        }
        sums.counts[(rank % RANKS) as usize] += 1;
        sums.is_changed = true;
        self.changed.insert(run);
        Ok(was.is_none())
    }

    /// Writes the sums, and which runs are finished: returns those that were not before.
    fn close(self) -> rusqlite::Result<Vec<MessageId>> {
        let mut write = self
            .transaction
            .prepare_cached("UPDATE run_steps SET open = ?2, done = ?3, dead = ?4 WHERE id = ?1")?;
        for sums in self.sums.values().flat_map(BTreeMap::values) {
            if sums.is_changed {
                let [open, done, dead] = sums.counts;
                write.execute(params![sums.id, open, done, dead])?;
            }
        }
        let mut finished = Vec::new();
        for (run, known) in &self.runs {
            let Some(known) = known else { continue };
            let key = run.to_string();
            if known.messages >= MESSAGES_MAX {
                self.transaction
                    .prepare_cached("UPDATE runs SET tracked = 2, lost = ?2 WHERE id = ?1")?
                    .execute(params![key, TOO_LARGE])?;
                continue;
            }
            let is_changed = self.changed.contains(run);
            let open: u64 = self
                .sums
                .get(run)
                .into_iter()
                .flat_map(BTreeMap::values)
                .map(|sums| sums.counts[OPEN as usize])
                .sum();
            let is_finished = open == 0;
            if !is_changed && is_finished == known.is_finished {
                continue;
            }
            let changed = self
                .transaction
                .prepare_cached(
                    "UPDATE runs SET progress_at = CASE WHEN ?3 THEN ?4 ELSE progress_at END,
                         finished_at = CASE
                             WHEN NOT ?2 OR state IN ('recorded', 'published') THEN NULL
                             ELSE coalesce(finished_at, ?4) END,
                         forgotten = CASE WHEN ?2 THEN forgotten ELSE 0 END,
                         lost = CASE WHEN ?2 AND lost = ?5 THEN NULL ELSE lost END
                     WHERE id = ?1 RETURNING finished_at IS NOT NULL",
                )?
                .query_row(
                    params![key, is_finished, is_changed, self.now, NOWHERE],
                    |row| row.get::<_, bool>(0),
                )
                .optional()?;
            if changed == Some(true) && !known.is_finished {
                finished.push(*run);
            }
        }
        Ok(finished)
    }
}

/// Raises the rank of a message. Returns nothing if it is not more than what was, else what was
/// known of it: open, done or dead, or nothing.
#[expect(
    clippy::option_option,
    reason = "no change, and no rank before, are two things"
)]
fn change(
    transaction: &Transaction<'_>,
    step: i64,
    id: MessageId,
    rank: u32,
) -> rusqlite::Result<Option<Option<u32>>> {
    let key = id.as_bytes();
    // The two that are usual, at the cost of one statement each.
    if rank == OPEN {
        let new = transaction
            .prepare_cached(
                "INSERT OR IGNORE INTO run_messages (step, message, rank) VALUES (?1, ?2, 0)",
            )?
            .execute(params![step, key])?;
        return Ok((new == 1).then_some(None));
    }
    let was_open = transaction
        .prepare_cached(
            "UPDATE run_messages SET rank = ?3 WHERE step = ?1 AND message = ?2 AND rank = 0",
        )?
        .execute(params![step, key, rank])?;
    if was_open == 1 {
        return Ok(Some(Some(OPEN)));
    }
    let was: Option<u32> = transaction
        .prepare_cached("SELECT rank FROM run_messages WHERE step = ?1 AND message = ?2")?
        .query_row(params![step, key], |row| row.get(0))
        .optional()?;
    if was.is_some_and(|was| was >= rank) {
        return Ok(None);
    }
    transaction
        .prepare_cached(
            "INSERT INTO run_messages (step, message, rank) VALUES (?1, ?2, ?3)
             ON CONFLICT (step, message) DO UPDATE SET rank = ?3",
        )?
        .execute(params![step, key, rank])?;
    Ok(Some(was.map(|was| was % RANKS)))
}

/// When a message entered its flow, in milliseconds since 1970: its id says so, unless it was made
/// from what the source calls the message; then it is taken to be `now`.
fn entered_at(id: MessageId, now: u64) -> u64 {
    /// What waited longer in the queue of its first step is told to be younger than it is.
    const DAY_MS: u64 = 24 * 3_600_000;
    let id = uuid::Uuid::from_bytes(*id.as_bytes());
    let stamp = id
        .get_timestamp()
        .filter(|_| id.get_version_num() == 7)
        .map(|stamp| stamp.to_unix())
        .map(|(seconds, nanoseconds)| seconds * 1_000 + u64::from(nanoseconds / 1_000_000));
    // One id in sixteen that is a hash looks like a time, of any century.
    stamp.filter(|at| at.abs_diff(now) < DAY_MS).unwrap_or(now)
}

#[cfg(test)]
#[path = "tracking_tests.rs"]
mod tests;
