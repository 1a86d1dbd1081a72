//! Writing to a real PostgreSQL.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use serde_json::{Value, json};
use towpath_postgres_write::{BATCH_MAX, setup, write};
use towpath_step::testing::{Outcome, TestRun};
use towpath_step::{Fate, Step};

#[path = "../../lib/postgres/tests/scratch/mod.rs"]
mod scratch;

use scratch::Scratch;

async fn send(scratch: &Scratch, more: Value, bodies: Vec<Value>) -> Vec<Outcome> {
    let mut config = json!({"url": scratch.url});
    config
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let step = Step::batch(write, BATCH_MAX).setup(setup);
    TestRun::of(step)
        .config(config)
        .concurrency(1000)
        .inputs(bodies)
        .await
}

/// The same, of messages that are all written.
async fn put(scratch: &Scratch, more: Value, bodies: Vec<Value>) {
    for outcome in send(scratch, more, bodies).await {
        assert!(outcome.is_done(), "{:?}", outcome.failure);
    }
}

/// The rows of a table as JSON, in their order.
async fn rows(scratch: &Scratch, table: &str) -> Vec<Value> {
    let sql = format!("SELECT row_to_json(t)::text FROM {table} AS t ORDER BY 1");
    let rows = scratch.query(&sql).await;
    rows.iter()
        .map(|row| serde_json::from_str(row.get(0)).unwrap())
        .collect()
}

#[track_caller]
fn check_failure(outcome: &Outcome, fate: Fate, parts: &[&str]) {
    let failure = outcome.failure.as_ref().expect("it fails");
    let told = format!("{}: {}", failure.reason, failure.chain.join(": "));
    assert_eq!(failure.fate, fate, "{told}");
    for part in parts {
        assert!(told.contains(part), "`{part}` is not in: {told}");
    }
}

#[tokio::test]
async fn many_messages_are_one_transaction_and_twice_changes_nothing() {
    let scratch = Scratch::new(
        "write_bulk",
        "CREATE TABLE t (id int PRIMARY KEY, name text)",
    )
    .await;
    let bodies = || {
        (0..2000)
            .map(|n| json!({"id": n, "name": format!("n{n}")}))
            .collect::<Vec<_>>()
    };
    put(&scratch, json!({"table": "t"}), bodies()).await;
    assert_eq!(scratch.number("SELECT count(*) FROM t").await, 2000);
    let transactions = "SELECT count(DISTINCT xmin::text) FROM t";
    let first = scratch.number(transactions).await;
    assert!(first < 40, "{first} transactions for 2000 messages");

    scratch
        .run("CREATE TABLE before AS SELECT id, xmin::text AS version FROM t")
        .await;
    put(&scratch, json!({"table": "t"}), bodies()).await;
    let touched = "SELECT count(*) FROM t JOIN before USING (id) WHERE t.xmin::text <> version";
    assert_eq!(scratch.number(touched).await, 0, "no row was written anew");
}

fn uid(number: u32) -> String {
    format!("{number:032x}")
}

#[tokio::test]
async fn only_the_message_at_fault_fails() {
    let sql = "CREATE TABLE shops (id int PRIMARY KEY); INSERT INTO shops VALUES (1);
        CREATE TABLE t (id int PRIMARY KEY, name varchar(10) NOT NULL, cents int CHECK (cents >= 0), uid uuid UNIQUE,
            shop int REFERENCES shops DEFERRABLE INITIALLY DEFERRED)";
    let scratch = Scratch::new("write_faults", sql).await;
    let mut bodies: Vec<Value> = (0..600)
        .map(|n| json!({"id": n, "name": "n", "cents": n, "uid": uid(n), "shop": 1}))
        .collect();
    let faults: [(usize, &str, Value, &str); 8] = [
        (
            5,
            "cents",
            json!(-1),
            "violates check constraint \"t_cents_check\"",
        ),
        (
            100,
            "cents",
            json!("many"),
            "invalid input syntax for type integer: \"many\"",
        ),
        (101, "name", Value::Null, "null value in column \"name\""),
        (
            255,
            "name",
            json!("far too long a name"),
            "value too long for type character varying(10)",
        ),
        (256, "shop", json!(2), "violates foreign key constraint"),
        (
            300,
            "cents",
            json!(99_999_999_999_i64),
            "out of range for type integer",
        ),
        (
            400,
            "name",
            json!("\u{0}"),
            "\\u0000 cannot be converted to text",
        ),
        (
            599,
            "uid",
            json!(uid(7)),
            "duplicate key value violates unique constraint \"t_uid_key\"",
        ),
    ];
    for (index, field, value, _) in &faults {
        bodies[*index][*field] = value.clone();
    }
    let outcomes = send(&scratch, json!({"table": "t"}), bodies).await;
    for (index, outcome) in outcomes.iter().enumerate() {
        match faults.iter().find(|(fault, ..)| *fault == index) {
            Some((_, _, _, told)) => check_failure(outcome, Fate::Permanent, &[told]),
            None => assert!(outcome.is_done(), "{index}: {:?}", outcome.failure),
        }
    }
    assert_eq!(
        scratch.number("SELECT count(*) FROM t").await,
        592,
        "all others are written"
    );
}

#[tokio::test]
async fn the_last_message_about_a_row_wins() {
    let scratch = Scratch::new(
        "write_last",
        "CREATE TABLE t (id numeric PRIMARY KEY, a text, b text)",
    )
    .await;
    let mut bodies: Vec<Value> = (0..900)
        .map(|n| json!({"id": n % 3, "a": n.to_string()}))
        .collect();
    // The same key, written in another way; and messages that know only a part of the row.
    bodies.push(json!({"id": "1.0", "a": "other"}));
    bodies.push(json!({"id": 2, "b": "part"}));
    bodies.push(json!({"id": 0, "a": "then", "b": "both"}));
    bodies.push(json!({"id": 0, "b": null}));
    put(&scratch, json!({"table": "t"}), bodies).await;
    assert_eq!(
        rows(&scratch, "(SELECT id::int, a, b FROM t)").await,
        [
            json!({"id": 0, "a": "then", "b": null}),
            json!({"id": 1, "a": "other", "b": null}),
            json!({"id": 2, "a": "899", "b": "part"}),
        ]
    );
}

#[tokio::test]
async fn a_message_that_comes_late_changes_nothing_with_newest() {
    let sql = "CREATE TABLE t (id int PRIMARY KEY, name text, at timestamptz)";
    let scratch = Scratch::new("write_newest", sql).await;
    let config = json!({"table": "t", "newest": "at"});
    let body = |name: &str, at: &str| json!({"id": 1, "name": name, "at": at});
    put(
        &scratch,
        config.clone(),
        vec![body("second", "2026-01-02T00:00:00Z")],
    )
    .await;
    put(
        &scratch,
        config.clone(),
        vec![body("first", "2026-01-01T00:00:00Z")],
    )
    .await;
    let name = || async { rows(&scratch, "t").await[0]["name"].clone() };
    assert_eq!(name().await, "second");
    let both = vec![
        body("fourth", "2026-01-04T00:00:00Z"),
        body("third", "2026-01-03T00:00:00Z"),
    ];
    put(&scratch, config.clone(), both).await;
    assert_eq!(name().await, "fourth");
    let outcome = send(&scratch, config, vec![json!({"id": 1})]).await;
    check_failure(&outcome[0], Fate::Permanent, &["the body has no `at`"]);
}

#[tokio::test]
async fn rows_are_inserted_updated_and_deleted() {
    let sql = "CREATE TABLE t (id int PRIMARY KEY GENERATED ALWAYS AS IDENTITY, name text DEFAULT 'none', n int)";
    let scratch = Scratch::new("write_modes", sql).await;
    let insert = json!({"table": "t", "mode": "insert", "emit": "input"});
    let outcomes = send(
        &scratch,
        insert.clone(),
        vec![json!({"n": 1}), json!({"n": 2, "name": "b"})],
    )
    .await;
    assert_eq!(outcomes[1].bodies(), [&json!({"n": 2, "name": "b"})]);
    assert_eq!(
        scratch
            .number("SELECT count(*) FROM t WHERE id IN (1, 2)")
            .await,
        2,
        "the database numbers them"
    );

    let again = send(
        &scratch,
        insert,
        vec![json!({"id": 1, "n": 9}), json!({"id": 7, "n": 7})],
    )
    .await;
    check_failure(
        &again[0],
        Fate::Permanent,
        &["duplicate key value", "Key (id)=(1) already exists"],
    );
    assert!(again[1].is_done());
    let ignore = json!({"table": "t", "mode": "insert", "on_conflict": "ignore"});
    put(&scratch, ignore, vec![json!({"id": 1, "n": 9})]).await;

    let update = json!({"table": "t", "mode": "update"});
    let outcomes = send(
        &scratch,
        update,
        vec![
            json!({"id": 1, "n": 11}),
            json!({"id": 99, "n": 0}),
            json!({"id": 7}),
        ],
    )
    .await;
    assert!(outcomes[0].is_done() && outcomes[2].is_done());
    check_failure(
        &outcomes[1],
        Fate::Permanent,
        &["there is no row with `id` 99"],
    );
    let quiet = json!({"table": "t", "mode": "update", "on_missing": "ignore"});
    put(&scratch, quiet, vec![json!({"id": 99, "n": 0})]).await;
    assert_eq!(
        scratch.number("SELECT n::bigint FROM t WHERE id = 1").await,
        11
    );

    let delete = json!({"table": "t", "mode": "delete"});
    put(
        &scratch,
        delete,
        vec![
            json!({"id": 1, "whatever": true}),
            json!({"id": 99}),
            json!({"id": 7}),
        ],
    )
    .await;
    assert_eq!(scratch.number("SELECT count(*) FROM t").await, 1);
}

#[tokio::test]
async fn every_type_is_written_without_losing_anything() {
    let sql = r#"CREATE TYPE mood AS ENUM ('fine', 'so so'); CREATE DOMAIN cents AS numeric(12,2) CHECK (VALUE > 0);
        CREATE TABLE t (id bigint PRIMARY KEY, yes bool, num numeric, nan numeric, price cents, f8 float8, inf float8,
            txt text, tz timestamptz, never timestamptz, ts timestamp, d date, tm time, iv interval, u uuid, j json,
            jb jsonb, b bytea, hex bytea, m money, ints int[], nums numeric[], texts text[], none int, feeling mood, p point)"#;
    let scratch = Scratch::new("write_types", sql).await;
    // `json!` would round this number.
    let body: Value = json!({
        "id": i64::MAX, "yes": true, "num": "12345678901234567890.123456789012345678901234567890", "nan": "NaN",
        "price": 1.5, "f8": 0.1, "inf": "Infinity", "txt": "a\"\n\\ü😀", "tz": "2026-03-29T03:30:00.123456+02:00",
        "never": "infinity", "ts": "2026-03-29T03:30:00", "d": "2026-03-29", "tm": "23:59:59", "iv": "P1Y2DT3H4M5.006S",
        "u": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "j": {"b": 1, "a": [1, 2]}, "jb": [{"a": null}], "b": "AP8Q",
        "hex": "\\x00ff", "m": "1234.56", "ints": [1, null, 3], "nums": ["1.10", 2], "texts": ["a", "b c", null],
        "none": null, "feeling": "so so", "p": "(1,2)",
    });
    for _ in 0..2 {
        put(&scratch, json!({"table": "t"}), vec![body.clone()]).await;
    }
    scratch
        .run("SET TimeZone = 'UTC'; SET IntervalStyle = 'iso_8601'")
        .await;
    let texts = "SELECT ARRAY[id::text, num::text, nan::text, price::text, f8::text, inf::text, txt, tz::text, never::text,
        ts::text, iv::text, u::text, j::text, jb::text, b::text, hex::text, m::numeric::text, ints::text, nums::text,
        texts::text, none::text, feeling::text, p::text] FROM t";
    let row = &scratch.query(texts).await[0];
    let told: Vec<Option<String>> = row.get(0);
    let told: Vec<&str> = told
        .iter()
        .map(|text| text.as_deref().unwrap_or("NULL"))
        .collect();
    assert_eq!(
        told,
        [
            "9223372036854775807",
            "12345678901234567890.123456789012345678901234567890",
            "NaN",
            "1.50",
            "0.1",
            "Infinity",
            "a\"\n\\ü😀",
            "2026-03-29 01:30:00.123456+00",
            "infinity",
            "2026-03-29 03:30:00",
            "P1Y2DT3H4M5.006S",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "{\"a\":[1,2],\"b\":1}",
            "[{\"a\": null}]",
            "\\x00ff10",
            "\\x00ff",
            "1234.56",
            "{1,NULL,3}",
            "{1.10,2}",
            "{a,\"b c\",NULL}",
            "NULL",
            "so so",
            "(1,2)",
        ]
    );
}

#[tokio::test]
async fn what_does_not_fit_the_table_says_what_to_do() {
    let sql = "CREATE TABLE deals (id int PRIMARY KEY, name text, loud text GENERATED ALWAYS AS (upper(name)) STORED);
        CREATE TABLE loose (id int, name text)";
    let scratch = Scratch::new("write_mistakes", sql).await;
    let body = || vec![json!({"id": 1, "name": "a"})];
    for (config, bodies, parts) in [
        (
            json!({"table": "deal"}),
            body(),
            &["there is no table `deal`", "did you mean `deals`?"][..],
        ),
        (
            json!({"table": "loose"}),
            body(),
            &["no primary key: say with `key`"],
        ),
        (
            json!({"table": "loose", "key": ["id"]}),
            body(),
            &[
                "an upsert needs a unique index over exactly `id`",
                "CREATE UNIQUE INDEX",
            ],
        ),
        (
            json!({"table": "deals", "columns": {"id": "id", "nam": "name"}}),
            body(),
            &["no column `nam`; did you mean `name`?"],
        ),
        (
            json!({"table": "deals"}),
            vec![json!({"id": 1, "nme": "a"})],
            &["the body has `nme`", "did you mean `name`?"],
        ),
        (
            json!({"table": "deals"}),
            vec![json!({"id": 1, "loud": "A"})],
            &["the database makes the column `loud` itself"],
        ),
        (
            json!({"table": "deals"}),
            vec![json!({"name": "a"})],
            &["the body has no `id`"],
        ),
        (
            json!({"table": "deals"}),
            vec![json!(7)],
            &["the body is not an object"],
        ),
    ] {
        let outcomes = send(&scratch, config, bodies).await;
        check_failure(&outcomes[0], Fate::Permanent, parts);
    }
    let mapped =
        json!({"table": "deals", "columns": {"id": "deal.number", "name": "deal.who.name"}});
    put(
        &scratch,
        mapped,
        vec![json!({"deal": {"number": 3, "who": {"name": "Ada"}}, "more": 1})],
    )
    .await;
    put(
        &scratch,
        json!({"table": "deals", "unknown": "ignore"}),
        vec![json!({"id": 4, "more": 1})],
    )
    .await;
    assert_eq!(
        rows(&scratch, "(SELECT id, loud FROM deals)").await,
        [
            json!({"id": 3, "loud": "ADA"}),
            json!({"id": 4, "loud": null})
        ]
    );
}

#[tokio::test]
async fn a_column_that_is_new_is_found_without_a_restart() {
    let sql = "CREATE TABLE t (id int PRIMARY KEY);
        CREATE FUNCTION grow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$";
    let scratch = Scratch::new("write_grows", sql).await;
    let mut config = json!({"url": scratch.url, "table": "t"});
    config["statement_timeout"] = json!("5s");
    // One replica: its first batch, then a new column, then its second.
    let state = setup(&serde_json::from_value(config.clone()).unwrap())
        .await
        .unwrap();
    let step = Step::batch(
        async |bodies: Vec<Box<serde_json::value::RawValue>>, ctx: &towpath_step::Context<_, _>| {
            let fates = write(bodies, ctx).await;
            let grow = scratch::connect(&scratch::url()).await;
            let sql = "ALTER TABLE write_grows.t ADD COLUMN IF NOT EXISTS name text";
            grow.client.batch_execute(sql).await.unwrap();
            fates
        },
        1,
    );
    let bodies = [json!({"id": 1}), json!({"id": 2, "name": "new"})];
    let outcomes = TestRun::of(step)
        .state(state)
        .config(config)
        .inputs(bodies)
        .await;
    assert!(outcomes.iter().all(Outcome::is_done), "{outcomes:?}");
    assert_eq!(
        scratch
            .number("SELECT count(*) FROM t WHERE name = 'new'")
            .await,
        1
    );
}

#[tokio::test]
async fn who_was_in_the_way_is_waited_for_and_who_stays_makes_a_retry() {
    // The first statements find another transaction in the way, as the server tells it.
    let sql = "CREATE TABLE t (id int PRIMARY KEY, name text); CREATE SEQUENCE tries;
        CREATE FUNCTION busy() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('tries') <= 2 THEN RAISE EXCEPTION 'could not serialize' USING ERRCODE = '40001'; END IF;
            RETURN NULL; END $$;
        CREATE TRIGGER busy AFTER INSERT ON t FOR EACH STATEMENT EXECUTE FUNCTION busy()";
    let scratch = Scratch::new("write_busy", sql).await;
    put(
        &scratch,
        json!({"table": "t"}),
        vec![json!({"id": 1, "name": "a"})],
    )
    .await;
    assert_eq!(
        scratch.number("SELECT last_value FROM tries").await,
        3,
        "the third try is written"
    );

    scratch
        .run("ALTER SEQUENCE tries INCREMENT BY -1 MINVALUE -1000")
        .await;
    let outcomes = send(&scratch, json!({"table": "t"}), vec![json!({"id": 2})]).await;
    check_failure(
        &outcomes[0],
        Fate::Retry,
        &["the batch was not written", "could not serialize", "40001"],
    );

    // A row that somebody else holds, for longer than a statement may take.
    scratch.run("DROP TRIGGER busy ON t").await;
    let holder = scratch::connect(&scratch.url).await;
    holder
        .client
        .batch_execute("BEGIN; UPDATE t SET name = 'held' WHERE id = 1")
        .await
        .unwrap();
    let config = json!({"table": "t", "statement_timeout": "200ms"});
    let outcomes = send(&scratch, config, vec![json!({"id": 1, "name": "b"})]).await;
    check_failure(
        &outcomes[0],
        Fate::Retry,
        &["the batch was not written", "statement timeout"],
    );
}

#[tokio::test]
async fn a_connection_that_is_lost_in_the_middle_makes_a_retry_and_writes_nothing() {
    let sql = "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE seen (pid int);
        CREATE FUNCTION cut() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$;
        CREATE TRIGGER cut AFTER INSERT ON t FOR EACH STATEMENT EXECUTE FUNCTION cut()";
    let scratch = Scratch::new("write_cut", sql).await;
    let outcomes = send(
        &scratch,
        json!({"table": "t"}),
        vec![json!({"id": 1}), json!({"id": 2})],
    )
    .await;
    for outcome in &outcomes {
        check_failure(
            outcome,
            Fate::Retry,
            &["the batch was not written", "terminating connection"],
        );
    }
    assert_eq!(scratch.number("SELECT count(*) FROM t").await, 0);
    scratch.run("DROP TRIGGER cut ON t").await;
    put(&scratch, json!({"table": "t"}), vec![json!({"id": 1})]).await;
}

#[tokio::test]
async fn replicas_that_write_the_same_rows_do_not_stop_each_other() {
    let scratch = Scratch::new(
        "write_crowd",
        "CREATE TABLE t (id int PRIMARY KEY, name text)",
    )
    .await;
    let bodies = |name: &'static str, forward: bool| -> Vec<Value> {
        let body =
            |n| json!({"id": if forward { n } else { 499 - n }, "name": format!("{name}{n}")});
        (0..500).map(body).collect()
    };
    let config = || json!({"table": "t"});
    let (one, two, three) = tokio::join!(
        send(&scratch, config(), bodies("a", true)),
        send(&scratch, config(), bodies("b", false)),
        send(&scratch, config(), bodies("c", true)),
    );
    for outcome in one.iter().chain(&two).chain(&three) {
        assert!(outcome.is_done(), "{:?}", outcome.failure);
    }
    assert_eq!(scratch.number("SELECT count(*) FROM t").await, 500);
}
