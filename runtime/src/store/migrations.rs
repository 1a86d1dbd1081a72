//! The shape of the database, as the steps that made it: `user_version` is how many were taken.

use rusqlite::Connection;

use super::StoreError;

/// Each is run once, in a transaction of its own. One that was released is never changed.
const MIGRATIONS: &[&str] = &["
CREATE TABLE flows (
    name        TEXT PRIMARY KEY,
    state       TEXT NOT NULL,
    version     INTEGER NOT NULL,
    webhook_key TEXT,
    created_at  INTEGER NOT NULL
) STRICT;

CREATE TABLE versions (
    flow       TEXT NOT NULL REFERENCES flows (name) ON DELETE CASCADE,
    version    INTEGER NOT NULL,
    file       TEXT NOT NULL,
    source     BLOB NOT NULL,
    env        TEXT NOT NULL,
    images     TEXT NOT NULL,
    hash       TEXT NOT NULL,
    applied_at INTEGER NOT NULL,
    PRIMARY KEY (flow, version)
) STRICT;

CREATE TABLE scales (
    flow     TEXT NOT NULL REFERENCES flows (name) ON DELETE CASCADE,
    step     TEXT NOT NULL,
    replicas INTEGER NOT NULL,
    PRIMARY KEY (flow, step)
) STRICT;

CREATE TABLE checkpoints (
    flow       TEXT NOT NULL REFERENCES flows (name) ON DELETE CASCADE,
    step       TEXT NOT NULL,
    connection TEXT NOT NULL,
    run        TEXT NOT NULL,
    number     INTEGER NOT NULL,
    value      TEXT NOT NULL,
    saved_at   INTEGER NOT NULL,
    PRIMARY KEY (flow, step, connection)
) STRICT;

CREATE TABLE runs (
    id         TEXT PRIMARY KEY,
    flow       TEXT NOT NULL REFERENCES flows (name) ON DELETE CASCADE,
    step       TEXT NOT NULL,
    connection TEXT NOT NULL,
    version    INTEGER NOT NULL,
    why        TEXT NOT NULL,
    state      TEXT NOT NULL,
    due        INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    ended_at   INTEGER,
    emitted    INTEGER,
    attempts   INTEGER NOT NULL,
    next_at    INTEGER,
    reason     TEXT,
    payload    TEXT
) STRICT;
CREATE INDEX runs_by_flow ON runs (flow, due DESC);
-- Two runs of one trigger at a time would share one checkpoint.
CREATE UNIQUE INDEX one_active_run ON runs (flow, connection) WHERE state IN ('recorded', 'published');

-- No reference to flows: a dead letter outlives its flow, until someone decides.
CREATE TABLE dead_letters (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    digest     TEXT NOT NULL UNIQUE,
    flow       TEXT NOT NULL,
    step       TEXT NOT NULL,
    port       TEXT,
    version    INTEGER NOT NULL,
    connection TEXT NOT NULL,
    run        TEXT,
    message_id TEXT NOT NULL,
    cause      TEXT NOT NULL,
    reason     TEXT NOT NULL,
    chain      TEXT NOT NULL,
    attempts   TEXT NOT NULL,
    replica    INTEGER NOT NULL,
    at         INTEGER NOT NULL,
    replays    INTEGER NOT NULL,
    state      TEXT NOT NULL,
    changed_at INTEGER NOT NULL,
    message    TEXT NOT NULL
) STRICT;
CREATE INDEX dead_letters_by_step ON dead_letters (state, flow, step, connection);

-- Queues whose step or flow is gone, until the broker has removed them.
CREATE TABLE removals (
    flow          TEXT NOT NULL,
    step          TEXT NOT NULL,
    drop_messages INTEGER NOT NULL,
    PRIMARY KEY (flow, step)
) STRICT;

CREATE TABLE secrets (
    name       TEXT PRIMARY KEY,
    nonce      BLOB NOT NULL,
    value      BLOB NOT NULL,
    changed_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
", "
-- The steps that the ledger has messages of. Those of flows that are gone wait to be forgotten.
CREATE TABLE ledger_steps (
    id   INTEGER PRIMARY KEY AUTOINCREMENT,
    flow TEXT NOT NULL,
    step TEXT NOT NULL,
    gone INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE UNIQUE INDEX one_ledger_step ON ledger_steps (flow, step) WHERE gone = 0;

-- Each start of an agent that claimed something; a later one of the same replica has a larger id.
CREATE TABLE ledger_holders (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    step        INTEGER NOT NULL,
    replica     INTEGER NOT NULL,
    spec        TEXT NOT NULL,
    incarnation TEXT NOT NULL,
    since       INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX one_ledger_holder ON ledger_holders (step, replica, spec, incarnation);

-- Messages in somebody's hands: few. `message` is the id, and how often it was replayed if it was.
CREATE TABLE ledger_claims (
    step      INTEGER NOT NULL,
    message   BLOB NOT NULL,
    holder    INTEGER,
    since     INTEGER NOT NULL,
    until     INTEGER NOT NULL,
    alone     INTEGER NOT NULL,
    uncertain INTEGER NOT NULL,
    deaths    INTEGER NOT NULL,
    death     TEXT,
    PRIMARY KEY (step, message)
) STRICT, WITHOUT ROWID;

-- Messages that are settled: as many as were handled in the days they are kept.
CREATE TABLE ledger_settled (
    step    INTEGER NOT NULL,
    message BLOB NOT NULL,
    at      INTEGER NOT NULL,
    PRIMARY KEY (step, message)
) STRICT, WITHOUT ROWID;
CREATE INDEX ledger_settled_by_age ON ledger_settled (at);

-- What an operator said that single steps should be doing.
CREATE TABLE holds (
    flow  TEXT NOT NULL REFERENCES flows (name) ON DELETE CASCADE,
    step  TEXT NOT NULL,
    state TEXT NOT NULL,
    PRIMARY KEY (flow, step)
) STRICT;

-- Dead letters: what kind they are, what became of them, and the jobs that send them again.
CREATE TABLE dead_groups (
    id      TEXT PRIMARY KEY,
    flow    TEXT NOT NULL,
    step    TEXT NOT NULL,
    cause   TEXT NOT NULL,
    pattern TEXT NOT NULL
) STRICT, WITHOUT ROWID;
ALTER TABLE dead_letters ADD COLUMN fingerprint TEXT NOT NULL DEFAULT '';
ALTER TABLE dead_letters ADD COLUMN entered_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE dead_letters ADD COLUMN repeats INTEGER NOT NULL DEFAULT 0;
ALTER TABLE dead_letters ADD COLUMN last_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE dead_letters ADD COLUMN edited TEXT;
ALTER TABLE dead_letters ADD COLUMN job INTEGER;
-- Holds all that groups are made of, so that counting them reads no dead letter.
CREATE INDEX dead_letters_by_group ON dead_letters (state, fingerprint, at, last_at, repeats);
CREATE INDEX dead_letters_by_message ON dead_letters (message_id);
CREATE INDEX dead_letters_by_job ON dead_letters (job, state, entered_at) WHERE job IS NOT NULL;

CREATE TABLE replay_jobs (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    what       TEXT NOT NULL,
    from_step  TEXT,
    rate       REAL,
    state      TEXT NOT NULL,
    total      INTEGER NOT NULL,
    sent       INTEGER NOT NULL,
    skipped    INTEGER NOT NULL,
    reason     TEXT,
    waits      TEXT,
    created_at INTEGER NOT NULL,
    changed_at INTEGER NOT NULL
) STRICT;

-- Notes about messages that wait in the delay ladder, for people.
CREATE TABLE waiting (
    id         BLOB NOT NULL,
    flow       TEXT NOT NULL,
    step       TEXT NOT NULL,
    replays    INTEGER NOT NULL,
    run        BLOB NOT NULL,
    connection TEXT NOT NULL,
    attempt    INTEGER NOT NULL,
    attempts   INTEGER NOT NULL,
    rebounds   INTEGER NOT NULL,
    is_rebound INTEGER NOT NULL,
    reason     TEXT NOT NULL,
    pattern    TEXT NOT NULL,
    since      INTEGER NOT NULL,
    due        INTEGER NOT NULL,
    noted      INTEGER NOT NULL,
    PRIMARY KEY (id, flow, step, replays)
) STRICT, WITHOUT ROWID;
CREATE INDEX waiting_by_flow ON waiting (flow, due);
CREATE INDEX waiting_by_age ON waiting (due);

-- Steps that flows had once, until nothing can come for them any more.
CREATE TABLE former_steps (
    flow      TEXT NOT NULL REFERENCES flows (name) ON DELETE CASCADE,
    step      TEXT NOT NULL,
    version   INTEGER NOT NULL,
    successor TEXT,
    until     INTEGER NOT NULL,
    PRIMARY KEY (flow, step)
) STRICT;

-- What changed with a version, in a line.
ALTER TABLE versions ADD COLUMN summary TEXT NOT NULL DEFAULT '';
", "
-- Keys that webhook URLs had before, while they are still good.
CREATE TABLE former_webhook_keys (
    flow  TEXT NOT NULL REFERENCES flows (name) ON DELETE CASCADE,
    key   TEXT NOT NULL,
    until INTEGER NOT NULL
) STRICT;
CREATE INDEX former_webhook_keys_by_flow ON former_webhook_keys (flow);

-- Requests to webhooks that were answered, by the ids of their messages, in the order of answers.
CREATE TABLE answered_requests (
    number  INTEGER PRIMARY KEY AUTOINCREMENT,
    message BLOB NOT NULL UNIQUE,
    flow    TEXT NOT NULL,
    at      INTEGER NOT NULL
) STRICT;
", "
-- A run that begins when the active one has ended.
CREATE UNIQUE INDEX one_queued_run ON runs (flow, connection) WHERE state = 'queued';

-- A checkpoint has a version, and may be none although it was one: what says so keeps its version.
ALTER TABLE checkpoints RENAME TO checkpoints_before;
CREATE TABLE checkpoints (
    flow       TEXT NOT NULL REFERENCES flows (name) ON DELETE CASCADE,
    step       TEXT NOT NULL,
    connection TEXT NOT NULL,
    version    INTEGER NOT NULL,
    run        TEXT,
    number     INTEGER NOT NULL,
    value      TEXT,
    saved_at   INTEGER NOT NULL,
    PRIMARY KEY (flow, step, connection)
) STRICT;
INSERT INTO checkpoints SELECT flow, step, connection, 1, run, number, value, saved_at FROM checkpoints_before;
DROP TABLE checkpoints_before;
", "
-- What came of runs. `tracked` is 0 for no, 1 for yes, 2 for given up; `forgotten` is 0 for no, 1 while
-- messages are being forgotten, 2 for yes.
ALTER TABLE runs ADD COLUMN tracked INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN began_at INTEGER;
ALTER TABLE runs ADD COLUMN progress_at INTEGER;
ALTER TABLE runs ADD COLUMN finished_at INTEGER;
ALTER TABLE runs ADD COLUMN forgotten INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN lost TEXT;
ALTER TABLE runs ADD COLUMN cancel_at INTEGER;
ALTER TABLE runs ADD COLUMN is_rebound INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN checkpoint_before TEXT;
ALTER TABLE runs ADD COLUMN checkpoint_after TEXT;
CREATE INDEX runs_to_forget ON runs (finished_at) WHERE forgotten < 2 AND tracked <> 0;

-- The sums of each step of a run. No reference to runs: what is of a run that is gone goes a little
-- at a time.
CREATE TABLE run_steps (
    id   INTEGER PRIMARY KEY AUTOINCREMENT,
    run  TEXT NOT NULL,
    step TEXT NOT NULL,
    open INTEGER NOT NULL,
    done INTEGER NOT NULL,
    dead INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX one_run_step ON run_steps (run, step);

-- The messages of a step of a run; `rank` is how often it was replayed, times 4, and 0 for open, 1
-- for done, 2 for dead.
CREATE TABLE run_messages (
    step    INTEGER NOT NULL,
    message BLOB NOT NULL,
    rank    INTEGER NOT NULL,
    PRIMARY KEY (step, message)
) STRICT, WITHOUT ROWID;
CREATE INDEX waiting_by_run ON waiting (run);
", "
-- What flows answered, with the runs of the requests.
CREATE TABLE answers (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    run    TEXT NOT NULL UNIQUE REFERENCES runs (id) ON DELETE CASCADE,
    at     INTEGER NOT NULL,
    bytes  INTEGER NOT NULL,
    answer TEXT NOT NULL
) STRICT;
-- For their sum.
CREATE INDEX answers_by_size ON answers (bytes);
", "
-- The last call to each trigger that registers at its source. `kept` is encrypted.
CREATE TABLE registrations (
    flow      TEXT PRIMARY KEY REFERENCES flows (name) ON DELETE CASCADE,
    call      TEXT NOT NULL UNIQUE,
    act       TEXT NOT NULL,
    url       TEXT NOT NULL,
    made_with TEXT NOT NULL,
    state     TEXT NOT NULL,
    at        INTEGER NOT NULL,
    nonce     BLOB,
    kept      BLOB,
    attempts  INTEGER NOT NULL,
    next_at   INTEGER NOT NULL,
    reason    TEXT
) STRICT;
-- Set while a flow is to go and its trigger takes back what it registered: `when_empty` or
-- `with_messages`.
ALTER TABLE flows ADD COLUMN deleting TEXT;
"];

/// Brings a database to the newest shape.
pub(super) fn run(connection: &mut Connection) -> Result<(), StoreError> {
    let broken = |source| StoreError::Statement {
        what: "bring its database up to date",
        source,
    };
    let known = u32::try_from(MIGRATIONS.len()).expect("there are a handful of migrations");
    let found: u32 = connection
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .map_err(broken)?;
    if found > known {
        return Err(StoreError::TooNew { found, known });
    }
    for version in found..known {
        let transaction = connection.transaction().map_err(broken)?;
        transaction
            .execute_batch(MIGRATIONS[version as usize])
            .map_err(broken)?;
        transaction
            .pragma_update(None, "user_version", version + 1)
            .map_err(broken)?;
        transaction.commit().map_err(broken)?;
    }
    Ok(())
}
