//! Reading from a real PostgreSQL.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use towpath_postgres_poll::{poll, setup};
use towpath_step::testing::{Outcome, TestRun};
use towpath_step::{Fate, Step};

#[path = "../../lib/postgres/tests/scratch/mod.rs"]
mod scratch;

use scratch::Scratch;

async fn walk(scratch: &Scratch, more: Value, checkpoint: Option<&Value>) -> Outcome {
    let mut config = json!({"url": scratch.url});
    config
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let trial = TestRun::of(Step::poll(poll).setup(setup))
        .config(config)
        .tick();
    match checkpoint {
        Some(checkpoint) => trial.checkpoint(checkpoint.clone()).await,
        None => trial.await,
    }
}

/// The same, of a walk that has to end well.
async fn read(scratch: &Scratch, more: Value, checkpoint: Option<&Value>) -> Outcome {
    let outcome = walk(scratch, more, checkpoint).await;
    assert!(outcome.is_done(), "{:?}", outcome.failure);
    outcome
}

fn ids(outcome: &Outcome) -> Vec<i64> {
    outcome
        .bodies()
        .iter()
        .map(|body| body["id"].as_i64().unwrap())
        .collect()
}

/// The position that was saved last, or the one before if nothing was saved.
fn saved<'a>(outcome: &'a Outcome, before: Option<&'a Value>) -> Option<&'a Value> {
    outcome.checkpoints.last().or(before)
}

#[tokio::test]
async fn ties_are_neither_skipped_nor_repeated_wherever_a_page_ends() {
    let sql = "CREATE TABLE orders (id int PRIMARY KEY, at timestamptz NOT NULL);
        INSERT INTO orders SELECT n, '2026-01-01T00:00:00Z'::timestamptz + (n / 7) * interval '1s'
        FROM generate_series(1, 40) AS n";
    let scratch = Scratch::new("poll_ties", sql).await;
    for page in [1, 2, 3, 7, 39, 40, 41] {
        let config = json!({"table": "orders", "cursor": "at", "page": page});
        let whole = read(&scratch, config.clone(), None).await;
        assert_eq!(ids(&whole), (1..=40).collect::<Vec<_>>(), "page {page}");
        // Cut off after each page, the next run brings exactly the rest.
        for checkpoint in &whole.checkpoints {
            let last: i64 = checkpoint["key"][0].as_str().unwrap().parse().unwrap();
            let rest = read(&scratch, config.clone(), Some(checkpoint)).await;
            assert_eq!(
                ids(&rest),
                (last + 1..=40).collect::<Vec<_>>(),
                "page {page}"
            );
        }
    }
    let outcome = read(&scratch, json!({"table": "orders", "cursor": "at"}), None).await;
    assert_eq!(
        outcome.outputs[0].source_id.as_deref(),
        Some("1@2026-01-01 00:00:00+00")
    );
    assert_eq!(outcome.outputs[0].key.as_deref(), Some("1"));
}

#[tokio::test]
async fn only_what_is_new_comes_by_every_type_of_cursor() {
    let sql = "CREATE TABLE things (id int PRIMARY KEY, small smallint, big bigint, name varchar(20),
            code text, uid uuid, at timestamp, at_z timestamptz, on_day date);
        CREATE FUNCTION more(first int, last int) RETURNS void LANGUAGE sql AS $$
            INSERT INTO things SELECT n, n / 3, 9000000000000000000 + n / 3, 'n' || lpad((n / 3)::text, 4, '0'),
                'ü' || lpad((n / 3)::text, 4, '0'), lpad(to_hex(n / 3), 32, '0')::uuid,
                '2026-01-01'::timestamp + (n / 3) * interval '1 microsecond',
                '2026-01-01 00:00+02'::timestamptz + (n / 3) * interval '1 microsecond',
                '2026-01-01'::date + n / 3
            FROM generate_series(first, last) AS n $$;
        SELECT more(1, 20)";
    for cursor in [
        "small", "big", "name", "code", "uid", "at", "at_z", "on_day",
    ] {
        let scratch = Scratch::new(&format!("poll_cursor_{cursor}"), sql).await;
        let config = json!({"table": "things", "cursor": cursor, "page": 4});
        let first = read(&scratch, config.clone(), None).await;
        assert_eq!(ids(&first), (1..=20).collect::<Vec<_>>(), "{cursor}");
        let at = saved(&first, None);
        let second = read(&scratch, config.clone(), at).await;
        assert_eq!(
            (ids(&second), second.checkpoints.len()),
            (vec![], 0),
            "{cursor}"
        );
        scratch.run("SELECT more(21, 25)").await;
        let third = read(&scratch, config, at).await;
        assert_eq!(ids(&third), (21..=25).collect::<Vec<_>>(), "{cursor}");
    }
}

#[tokio::test]
async fn a_row_that_becomes_visible_late_is_brought_in_once() {
    let sql = "CREATE TABLE orders (id int PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(), n serial)";
    let scratch = Scratch::new("poll_late", sql).await;
    for config in [
        json!({"table": "orders", "cursor": "at", "look_back": "1h"}),
        json!({"table": "orders", "cursor": "n", "look_back": 100}),
    ] {
        scratch
            .run("TRUNCATE orders; INSERT INTO orders (id) VALUES (1)")
            .await;
        let slow = scratch::connect(&scratch.url).await;
        slow.client
            .batch_execute("BEGIN; INSERT INTO orders (id) VALUES (2)")
            .await
            .unwrap();
        scratch.run("INSERT INTO orders (id) VALUES (3)").await;

        let first = read(&scratch, config.clone(), None).await;
        assert_eq!(ids(&first), [1, 3]);
        slow.client.batch_execute("COMMIT").await.unwrap();
        let at = saved(&first, None);
        let second = read(&scratch, config.clone(), at).await;
        assert_eq!(
            ids(&second),
            [2],
            "2 was there before 3, and could be seen after it"
        );
        let at = saved(&second, at);
        scratch.run("INSERT INTO orders (id) VALUES (4)").await;
        let third = read(&scratch, config.clone(), at).await;
        assert_eq!(ids(&third), [4], "nothing in the window comes twice");
        // What is read again after a crash has the same names.
        let again = read(&scratch, config.clone(), Some(&first.checkpoints[0])).await;
        let names = |outcome: &Outcome| -> BTreeSet<String> {
            outcome
                .outputs
                .iter()
                .filter_map(|output| output.source_id.clone())
                .collect()
        };
        assert!(names(&again).is_superset(&names(&second)));

        let blind = json!({"table": "orders", "cursor": config["cursor"]});
        assert_eq!(
            ids(&read(&scratch, blind, at).await),
            [4],
            "without a window"
        );
    }
}

#[tokio::test]
async fn every_type_is_json_without_losing_anything() {
    let sql = r#"CREATE TYPE mood AS ENUM ('fine', 'so so'); CREATE DOMAIN cents AS numeric(12,2);
        CREATE TABLE t (id bigint PRIMARY KEY, yes bool, small smallint, num numeric, nan numeric, price cents,
            f8 float8, f4 float4, inf float8, txt text, vc varchar(9), ch char(4), tz timestamptz, never timestamptz,
            ts timestamp, d date, tm time, tmz timetz, iv interval, u uuid, j json, jb jsonb, b bytea, m money,
            ints int[], nums numeric[], texts text[], bytes bytea[], grid int[][], none int, feeling mood,
            net inet, r int4range, bits bit(3));
        INSERT INTO t VALUES (9223372036854775807, true, -3, 12345678901234567890.123456789012345678901234567890, 'NaN', 1.50,
            0.1, 0.1, 'Infinity', E'a"\n\\ü😀', 'v', 'ab', '2026-03-29 03:30:00.123456+02', 'infinity',
            '2026-03-29 03:30', '2026-03-29', '23:59:60', '12:00+02', '1 year 2 days 03:04:05.006', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11',
            E'{"b": 1.10,\n "a": [1, 2]}', '{"b": 1.10, "a": null}', '\x00ff10', 1234.56,
            '{1,NULL,3}', '{1.10,2}', '{a,"b c",NULL}', '{"\\x00ff",NULL}', '{{1,2},{3,4}}', NULL, 'so so',
            '10.0.0.1/8', '[1,5)', B'101')"#;
    let scratch = Scratch::new("poll_types", sql).await;
    let config = json!({"table": "t", "cursor": "id"});
    let outcome = read(&scratch, config.clone(), None).await;
    let expect = json!({
        "id": 9_223_372_036_854_775_807_i64, "yes": true, "small": -3,
        "num": "12345678901234567890.123456789012345678901234567890", "nan": "NaN", "price": "1.50",
        "f8": 0.1, "f4": 0.1, "inf": "Infinity", "txt": "a\"\n\\ü😀", "vc": "v", "ch": "ab  ",
        "tz": "2026-03-29T01:30:00.123456+00:00", "never": "infinity", "ts": "2026-03-29T03:30:00",
        "d": "2026-03-29", "tm": "24:00:00", "tmz": "12:00:00+02", "iv": "P1Y2DT3H4M5.006S",
        "u": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "j": {"b": 1.10, "a": [1, 2]}, "jb": {"b": 1.10, "a": null},
        "b": "AP8Q", "m": "1234.56", "ints": [1, null, 3], "nums": ["1.10", "2"],
        "texts": ["a", "b c", null], "bytes": ["AP8=", null], "grid": [[1, 2], [3, 4]], "none": null,
        "feeling": "so so", "net": "10.0.0.1/8", "r": "[1,5)", "bits": "101",
    });
    let body = outcome.bodies()[0];
    for (name, value) in expect.as_object().unwrap() {
        assert_eq!(&body[name], value, "{name}");
    }
    assert_eq!(
        body.as_object().unwrap().len(),
        expect.as_object().unwrap().len()
    );

    let numbers = json!({"table": "t", "cursor": "id", "numeric": "number", "columns": ["price", "m", "nan"]});
    let outcome = read(&scratch, numbers, None).await;
    assert_eq!(
        outcome.bodies()[0].to_string(),
        json!({"price": 1.5, "m": 1234.56, "nan": "NaN"}).to_string()
    );
}

#[tokio::test]
async fn rows_columns_and_the_beginning_are_chosen() {
    let sql = "CREATE TABLE \"Odd Orders\" (id int PRIMARY KEY, at timestamptz, \"Paid?\" bool, note text);
        INSERT INTO \"Odd Orders\" SELECT n, '2026-01-01Z'::timestamptz + n * interval '1 day', n % 2 = 0, 'x'
        FROM generate_series(1, 10) AS n;
        INSERT INTO \"Odd Orders\" VALUES (11, NULL, true, 'never'), (12, 'infinity', true, 'at the end')";
    let scratch = Scratch::new("poll_choice", sql).await;
    let config = json!({
        "table": "poll_choice.Odd Orders", "cursor": "at", "since": "2026-01-06T00:00:00Z",
        "where": "\"Paid?\" AND note = 'x' -- only those", "columns": ["id", "Paid?"], "page": 2,
    });
    let outcome = read(&scratch, config, None).await;
    assert_eq!(
        outcome.bodies(),
        [
            &json!({"id": 6, "Paid?": true}),
            &json!({"id": 8, "Paid?": true}),
            &json!({"id": 10, "Paid?": true})
        ]
    );

    let query = json!({
        "query": "SELECT o.id, o.at, count(*) AS n FROM \"Odd Orders\" AS o JOIN \"Odd Orders\" AS p ON p.id <= o.id GROUP BY o.id;",
        "cursor": "at", "key": ["id"], "where": "q.n > 8", "page": 1,
    });
    let outcome = read(&scratch, query, None).await;
    assert_eq!(ids(&outcome), [9, 10]);
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
async fn what_cannot_be_read_says_what_to_do() {
    let sql = "CREATE TABLE orders (id int PRIMARY KEY, at timestamptz, price float8);
        CREATE TABLE loose (id int, at timestamptz); CREATE TABLE maybe (id int UNIQUE, at timestamptz);
        CREATE VIEW seen AS SELECT * FROM orders;
        INSERT INTO orders VALUES (1, now(), 1), (2, now(), 2);
        INSERT INTO loose VALUES (1, '2026-01-01Z'), (1, '2026-01-01Z'), (NULL, '2026-01-02Z')";
    let scratch = Scratch::new("poll_mistakes", sql).await;
    for (config, parts) in [
        (
            json!({"table": "ordres", "cursor": "at"}),
            &["there is no table `ordres`", "did you mean `orders`?"][..],
        ),
        (
            json!({"table": "orders", "cursor": "att"}),
            &["`cursor`: there is no column `att`; did you mean `at`?"],
        ),
        (
            json!({"table": "orders", "cursor": "at", "columns": ["ID"]}),
            &["no column `ID`; did you mean `id`?"],
        ),
        (
            json!({"table": "orders", "cursor": "price"}),
            &["`price` cannot be the cursor", "`float8`"],
        ),
        (
            json!({"table": "loose", "cursor": "at"}),
            &["neither a primary key nor a unique index", "ALTER TABLE"],
        ),
        (
            json!({"table": "maybe", "cursor": "at"}),
            &["neither a primary key nor a unique index without nulls"],
        ),
        (
            json!({"table": "loose", "cursor": "at", "key": ["id"]}),
            &["there is no unique index"],
        ),
        (
            json!({"table": "seen", "cursor": "at"}),
            &["a query or a view has no key of its own", "`key`"],
        ),
        (
            json!({"table": "orders", "cursor": "at", "where": "pric > 1"}),
            &[
                "column \"pric\" does not exist",
                "Perhaps you meant",
                "price",
            ],
        ),
        (
            json!({"table": "orders", "cursor": "at", "where": "true; DROP TABLE orders"}),
            &["syntax error"],
        ),
        (
            json!({"table": "orders", "cursor": "at", "since": "soon"}),
            &["invalid input syntax"],
        ),
        (
            json!({"query": "SELEC 1", "cursor": "at", "key": ["id"]}),
            &["the query cannot be read", "syntax error"],
        ),
        (
            json!({"query": "SELECT *, 1 AS id FROM orders", "cursor": "at", "key": ["id"]}),
            &["two columns `id`"],
        ),
        (
            json!({"query": "SELECT * FROM loose", "cursor": "at", "key": ["id"]}),
            &["two rows have the key `1`"],
        ),
        (
            json!({"query": "SELECT * FROM loose", "cursor": "at", "key": ["id"], "page": 1}),
            &["two rows have the key `1`"],
        ),
        (
            json!({"query": "SELECT DISTINCT * FROM loose", "cursor": "at", "key": ["id"], "page": 1}),
            &["key that is null"],
        ),
        (
            json!({"table": "orders", "cursor": "at", "look_back": 5}),
            &["`look_back` has to be a length of time"],
        ),
    ] {
        let outcome = walk(&scratch, config, None).await;
        check_failure(&outcome, Fate::Permanent, parts);
    }
    assert_eq!(
        scratch.number("SELECT count(*) FROM orders").await,
        2,
        "nothing can be written"
    );
    let writes = json!({"query": "SELECT id, at FROM orders WHERE nextval('s') > 0", "cursor": "at", "key": ["id"]});
    scratch.run("CREATE SEQUENCE s").await;
    check_failure(
        &walk(&scratch, writes, None).await,
        Fate::Permanent,
        &["read-only transaction"],
    );
}

#[tokio::test]
async fn a_page_that_takes_too_long_is_tried_again() {
    let sql = "CREATE TABLE orders (id int PRIMARY KEY); INSERT INTO orders VALUES (1)";
    let scratch = Scratch::new("poll_slow", sql).await;
    let config = json!({"table": "orders", "cursor": "id", "where": "pg_sleep(5) IS NOT NULL", "statement_timeout": "100ms"});
    let outcome = walk(&scratch, config, None).await;
    check_failure(
        &outcome,
        Fate::Retry,
        &["canceling statement due to statement timeout"],
    );
}

#[tokio::test]
async fn large_rows_make_small_pages_and_all_of_them_come() {
    let sql = "CREATE TABLE large (id int PRIMARY KEY, text text);
        INSERT INTO large SELECT n, repeat('x', 900000) FROM generate_series(1, 40) AS n;
        INSERT INTO large SELECT n, 'small' FROM generate_series(41, 2000) AS n";
    let scratch = Scratch::new("poll_large", sql).await;
    let outcome = read(&scratch, json!({"table": "large", "cursor": "id"}), None).await;
    assert_eq!(ids(&outcome), (1..=2000).collect::<Vec<_>>());
    assert!(
        outcome.checkpoints.len() > 5,
        "pages were cut: {}",
        outcome.checkpoints.len()
    );
}

/// The resident memory of a process, in KiB.
fn resident(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse().ok())
        .unwrap_or(0)
}

#[tokio::test]
async fn a_million_rows_are_read_in_the_memory_of_a_few_pages() {
    const ROWS: usize = 1_000_000;
    /// As much as a page and what is on its way may add to the first pages.
    const GROWTH_KIB_MAX: u64 = 24 << 10;
    // Many rows of one time, as bulk loads make them.
    let sql = "CREATE UNLOGGED TABLE million (id bigint PRIMARY KEY, at timestamptz NOT NULL, name text, price numeric);
        INSERT INTO million SELECT n, '2026-01-01Z'::timestamptz + (n / 5000) * interval '1s', 'customer ' || n, n / 100.0
        FROM generate_series(1, 1000000) AS n;
        CREATE INDEX ON million (at, id); ANALYZE million";
    let scratch = Scratch::new("poll_million", sql).await;
    let folder = tempfile::tempdir().unwrap();
    let with = folder.path().join("with.json");
    let config =
        json!({"url": scratch.url, "table": "million", "cursor": "at", "look_back": "30s"});
    std::fs::write(&with, config.to_string()).unwrap();
    let began = std::time::Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_postgres-poll"))
        .args(["run-local", "--config", with.to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut rows, mut early, mut peak, mut sum) = (0_usize, 0, 0, 0_u64);
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        rows += 1;
        let id = line
            .strip_prefix("{\"id\":")
            .unwrap()
            .split(',')
            .next()
            .unwrap();
        sum += id.parse::<u64>().unwrap();
        if rows % 20_000 == 0 {
            let now = resident(child.id());
            early = if rows <= 40_000 {
                now.max(early)
            } else {
                early
            };
            peak = now.max(peak);
        }
    }
    assert!(child.wait().unwrap().success());
    println!(
        "{rows} rows in {:.1?}; resident after 40,000: {early} KiB, at most: {peak} KiB",
        began.elapsed()
    );
    assert_eq!(
        (rows, sum),
        (ROWS, (1..=ROWS as u64).sum()),
        "each row once"
    );
    assert!(
        early > 0 && peak < early + GROWTH_KIB_MAX,
        "{early} KiB, later {peak} KiB"
    );
    scratch.run("DROP TABLE million").await;
}

#[tokio::test]
async fn a_bulk_load_does_not_come_again_when_the_window_is_over() {
    let sql = "CREATE TABLE loaded (id int PRIMARY KEY, at timestamptz NOT NULL DEFAULT now());
        INSERT INTO loaded SELECT n FROM generate_series(1, 9000) AS n";
    let scratch = Scratch::new("poll_bulk", sql).await;
    let config = json!({"table": "loaded", "cursor": "at", "look_back": "1s"});
    let first = read(&scratch, config.clone(), None).await;
    assert_eq!(first.outputs.len(), 9000);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let second = read(&scratch, config.clone(), saved(&first, None)).await;
    let at = saved(&second, saved(&first, None));
    let third = read(&scratch, config, at).await;
    assert_eq!(third.outputs.len(), 0, "the window is over");
}
