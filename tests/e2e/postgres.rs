//! From a table of PostgreSQL to another one: nothing is missing and nothing is different, whatever
//! is killed on the way.

use towpath_tests::machine::docker;
use towpath_tests::{BrokerVersion, Instance, Postgres, eventually, holds};

use crate::{LONG, SOON};

const ROWS: u64 = 30_000;

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
