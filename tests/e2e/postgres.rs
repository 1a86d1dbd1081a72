//! From a table of PostgreSQL to another one: nothing is missing and nothing is different, whatever
//! is killed on the way.

use towpath_tests::machine::docker;
use towpath_tests::{BrokerVersion, Instance, Postgres, eventually, holds, http};

use crate::{LONG, SOON};

/// So many that the first thousand are there long before the last.
const ROWS: u64 = 120_000;

/// Rows of few times, as bulk loads make them, with what JSON and databases write in different ways.
const SOURCE: &str = r#"
CREATE TABLE orders (
  id bigint PRIMARY KEY, updated_at timestamptz NOT NULL, customer text, total numeric(20,4),
  lines jsonb, scan bytea, tags text[], paid bool);
CREATE INDEX ON orders (updated_at, id);
CREATE FUNCTION more(first int, last int, at timestamptz) RETURNS void LANGUAGE sql AS $$
  INSERT INTO orders
  SELECT n, at + (n / 700) * interval '1 microsecond', E'Ada "' || n || E'"\n\\ü', n + 0.0001 * (n % 10000),
    jsonb_build_object('n', n, 'deep', jsonb_build_array(n, NULL, 'x')), decode(md5(n::text), 'hex'),
    ARRAY['a', NULL, n::text], CASE n % 3 WHEN 0 THEN NULL ELSE n % 3 = 1 END
  FROM generate_series(first, last) AS n $$;
CREATE TABLE copies (LIKE orders INCLUDING ALL)"#;

/// How many rows are in one of the tables and not, exactly so, in the other.
const DIFFERENT: &str = "
SELECT count(*) FROM (
  (SELECT * FROM orders EXCEPT SELECT * FROM copies) UNION ALL
  (SELECT * FROM copies EXCEPT SELECT * FROM orders)) AS d";

fn flow(postgres: &Postgres) -> String {
    format!(
        r#"
flow: postgres-to-postgres
trigger:
  id: orders
  image: towpath/postgres-poll:test
  every: 1s
  with:
    url: "{url}"
    password: "${{secrets.postgres_password}}"
    table: orders
    cursor: updated_at
    look_back: 5s
    page: 500
actions:
  - id: copies
    image: towpath/postgres-write:test
    replicas: 2
    retry: {{ attempts: 20, initial: 250ms, factor: 1.5, max: 2s }}
    with:
      url: "{url}"
      password: "${{secrets.postgres_password}}"
      table: copies
      newest: updated_at
"#,
        url = postgres.url
    )
}

fn kill(instance: &Instance, step: &str) {
    let containers = instance.containers("postgres-to-postgres", Some(step));
    assert!(!containers.is_empty(), "`{step}` runs");
    for container in containers.values() {
        docker(&["kill", container]);
    }
}

#[track_caller]
fn copies_are_the_orders(postgres: &Postgres, rows: u64) {
    eventually("the tables are equal", LONG, || {
        let copies = postgres.number("SELECT count(*) FROM copies");
        holds(copies == rows, || format!("{copies} of {rows} rows"))?;
        let different = postgres.number(DIFFERENT);
        holds(different == 0, || format!("{different} rows are different"))
    });
}

#[test]
fn a_table_is_copied_exactly_though_trigger_and_writers_are_killed_in_the_middle() {
    let instance = Instance::start(BrokerVersion::V40);
    let postgres = Postgres::start(&instance);
    postgres.run(SOURCE);
    postgres.run(&format!("SELECT more(1, {ROWS}, '2026-01-01Z')"));
    instance
        .run_with(&["secret", "set", "postgres_password"], &postgres.password)
        .ok();
    instance.apply(&flow(&postgres));
    let some = |rows: u64| {
        eventually("rows arrive", LONG, || {
            let copies = postgres.number("SELECT count(*) FROM copies");
            holds(copies >= rows, || format!("{copies} rows"))?;
            Ok(copies)
        })
    };
    let copied = some(1_000);
    kill(&instance, "orders");
    assert!(copied < ROWS, "it was killed in the middle: {copied} rows");
    some(copied + 1_000);
    kill(&instance, "copies");
    copies_are_the_orders(&postgres, ROWS);

    // What changes and what is new comes after; what is late in its transaction as well.
    postgres.run(&format!(
        "BEGIN; SELECT more({}, {}, now()); SELECT pg_sleep(2); COMMIT",
        ROWS + 1,
        ROWS + 50
    ));
    postgres.run("UPDATE orders SET paid = NOT paid, updated_at = now() WHERE id <= 60");
    copies_are_the_orders(&postgres, ROWS + 50);
}

#[test]
fn only_the_row_at_fault_becomes_a_dead_letter_and_is_replayed_when_the_table_is_right() {
    let instance = Instance::start(BrokerVersion::V310);
    let postgres = Postgres::start(&instance);
    postgres.run(SOURCE);
    postgres.run("ALTER TABLE copies ADD CONSTRAINT few CHECK (id <> 77)");
    postgres.run("SELECT more(1, 500, '2026-01-01Z')");
    instance
        .run_with(&["secret", "set", "postgres_password"], &postgres.password)
        .ok();
    instance.apply(&flow(&postgres));
    eventually("all others are written", LONG, || {
        let copies = postgres.number("SELECT count(*) FROM copies");
        holds(copies == 499, || format!("{copies} rows"))
    });
    let list = ["dead", "export", "--state", "open"];
    eventually("there is one dead letter", SOON, || {
        let text = instance.run(&list).ok().out;
        let letters: Vec<_> = text.lines().collect();
        let is_it = letters.len() == 1 && letters[0].contains("violates check constraint");
        holds(is_it, || text.clone())
    });
    postgres.run("ALTER TABLE copies DROP CONSTRAINT few");
    instance.run(&["dead", "replay", "--all"]).ok();
    copies_are_the_orders(&postgres, 500);
}

/// Writes a row for each message; `n` is not to be 13.
fn in_batches(postgres: &Postgres) -> String {
    format!(
        r#"
flow: in-batches
trigger: {{ id: hook, webhook: true }}
actions:
  - id: rows
    image: towpath/postgres-write:test
    batch: {{ max: 50, wait: 5s }}
    retry: {{ attempts: 8, initial: 250ms, max: 2s }}
    with:
      url: "{url}"
      password: "${{secrets.postgres_password}}"
      table: rows
      mode: insert
"#,
        url = postgres.url
    )
}

#[test]
fn of_a_batch_the_message_that_is_refused_is_tried_alone_and_all_others_are_written_once() {
    let instance = Instance::start(BrokerVersion::V40);
    let postgres = Postgres::start(&instance);
    // `now()` is when the transaction began; a row that is written twice would be a dead letter.
    postgres
        .run("CREATE TABLE rows (n int PRIMARY KEY CHECK (n <> 13), at timestamptz DEFAULT now())");
    instance
        .run_with(&["secret", "set", "postgres_password"], &postgres.password)
        .ok();
    instance.apply(&in_batches(&postgres));
    let status = instance.status("in-batches");
    let hook = status["webhook_url"].as_str().expect("a URL").to_owned();
    for n in 1..=30 {
        let body = format!("{{\"n\":{n}}}");
        let answer = http::send("POST", &hook, None, Some(&body)).expect("an answer");
        assert_eq!(answer.status, 202, "{answer:?}");
    }
    eventually("all others are written", SOON, || {
        let rows = postgres.number("SELECT count(*) FROM rows");
        holds(rows == 29, || format!("{rows} rows"))
    });
    let transactions = postgres.number("SELECT count(DISTINCT at) FROM rows");
    assert_eq!(transactions, 1, "they waited for each other");
    let list = ["dead", "export", "--state", "open"];
    let letter = eventually("there is one dead letter", SOON, || {
        let text = instance.run(&list).ok().out;
        holds(text.lines().count() == 1, || text.clone())?;
        Ok(text)
    });
    let letter: serde_json::Value = serde_json::from_str(&letter).expect("JSON");
    let text = letter.to_string();
    assert!(text.contains("violates check constraint"), "{text}");
    assert!(text.contains("\"n\":13"), "{text}");
    eventually("it was tried once more, and no other", SOON, || {
        let step = &instance.status("in-batches")["steps"][0];
        let counts = ["done", "retried", "dead"].map(|key| step[key].as_u64());
        holds(counts == [Some(29), Some(1), Some(1)], || step.to_string())
    });

    // Mended and replayed, it is a batch of its own.
    postgres.run("ALTER TABLE rows DROP CONSTRAINT rows_n_check");
    instance.run(&["dead", "replay", "--all"]).ok();
    eventually("the last one is written", SOON, || {
        let rows = postgres.number("SELECT count(*) FROM rows");
        holds(rows == 30, || format!("{rows} rows"))
    });
}

#[test]
fn what_is_gathered_for_a_batch_is_written_before_its_replica_leaves() {
    let instance = Instance::start(BrokerVersion::V310);
    let postgres = Postgres::start(&instance);
    postgres.run("CREATE TABLE rows (n int PRIMARY KEY)");
    instance
        .run_with(&["secret", "set", "postgres_password"], &postgres.password)
        .ok();
    instance.apply(&in_batches(&postgres).replace("wait: 5s", "wait: 10m"));
    let status = instance.status("in-batches");
    let hook = status["webhook_url"].as_str().expect("a URL").to_owned();
    for n in 1..=7 {
        let body = format!("{{\"n\":{n}}}");
        let answer = http::send("POST", &hook, None, Some(&body)).expect("an answer");
        assert_eq!(answer.status, 202, "{answer:?}");
    }
    eventually("they wait for others, and status says so", SOON, || {
        let status = instance.status("in-batches").to_string();
        holds(status.contains("it has 7 of 50 messages"), || status)
    });
    assert_eq!(postgres.number("SELECT count(*) FROM rows"), 0);
    instance.run(&["stop", "in-batches"]).ok();
    eventually("they are written", SOON, || {
        let rows = postgres.number("SELECT count(*) FROM rows");
        holds(rows == 7, || format!("{rows} rows"))
    });
}
