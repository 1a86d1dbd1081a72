//! The SQL that writes records with the same columns, and what it is given.
//!
//! The records go to the database as one JSON text, which it turns into rows by the types of the
//! columns: so every value is read by PostgreSQL itself, and a statement has one parameter, however
//! many records it writes.

use towpath_step_postgres::{Column, quote};

use crate::config::{Config, Mode, OnConflict};
use crate::record::{Record, Target};

/// Types whose values cannot be compared, or for which `=` means something else than "the same".
const INCOMPARABLE: [&str; 9] = [
    "json", "xml", "point", "line", "lseg", "box", "path", "polygon", "circle",
];

/// A statement for records with these columns.
#[derive(Debug)]
pub(crate) struct Statement {
    /// What writes them; its one parameter is the text of [`rows`].
    pub(crate) write: String,
    /// What finds the numbers of those whose row is not there, if that matters.
    pub(crate) missing: Option<String>,
}

/// Writes the records as JSON: a list of objects with `n`, the number, and `c<place>`.
pub(crate) fn rows(records: &[&Record<'_>]) -> String {
    let rows = records.iter().enumerate().map(|(number, record)| {
        let values = record.values.iter();
        let values = values.map(|(place, value)| format!(",\"c{place}\":{}", value.get()));
        format!("{{\"n\":{number}{}}}", values.collect::<String>())
    });
    format!("[{}]", rows.collect::<Vec<_>>().join(","))
}

/// Makes the statement for records with these columns.
pub(crate) fn statement(places: &[usize], target: &Target, config: &Config) -> Statement {
    let sql = Sql { places, target };
    let write = match config.mode {
        Mode::Insert => sql.insert(config.on_conflict),
        Mode::Upsert => sql.upsert(),
        Mode::Update => sql.update(),
        Mode::Delete => sql.delete(),
    };
    Statement {
        write,
        missing: config.missing_fails().then(|| sql.missing()),
    }
}

struct Sql<'a> {
    places: &'a [usize],
    target: &'a Target,
}

impl Sql<'_> {
    /// The records as rows `g`.
    fn given(&self) -> String {
        let columns = self.places.iter().map(|place| {
            let column = self.target.column(*place);
            let of = match column.base_type.as_str() {
                // How money is written depends on the server's language, and base64 is a text.
                "money" => "numeric",
                "bytea" => "text",
                _ => &column.sql_type,
            };
            format!(", c{place} {of}")
        });
        format!(
            "json_to_recordset($1::text::json) AS g(n int{})",
            columns.collect::<String>()
        )
    }

    /// The last record of each key, in the order of the keys: two transactions that lock the same
    /// rows do it in the same order.
    fn last_of_each_key(&self) -> String {
        let key: Vec<String> = self
            .target
            .key
            .iter()
            .map(|place| format!("g.c{place}"))
            .collect();
        let key = key.join(", ");
        let newest = self
            .target
            .newest
            .map(|place| format!(", g.c{place} DESC NULLS LAST"));
        format!(
            "(SELECT DISTINCT ON ({key}) g.* FROM {} ORDER BY {key}{}, g.n DESC) AS g",
            self.given(),
            newest.unwrap_or_default()
        )
    }

    fn value(&self, place: usize) -> String {
        let of = self.target.column(place).base_type.as_str();
        match of {
            "money" => format!("g.c{place}::money"),
            "bytea" => format!(
                "CASE WHEN left(g.c{place}, 2) = E'\\\\x' THEN g.c{place}::bytea ELSE decode(g.c{place}, 'base64') END"
            ),
            _ => format!("g.c{place}"),
        }
    }

    fn name(&self, place: usize) -> String {
        quote(&self.target.column(place).name)
    }

    fn list(&self, write: impl Fn(usize) -> String) -> String {
        self.places
            .iter()
            .map(|place| write(*place))
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// The columns that are not part of the key.
    fn others(&self) -> Vec<usize> {
        let key = &self.target.key;
        self.places
            .iter()
            .copied()
            .filter(|place| !key.contains(place))
            .collect()
    }

    fn insert_into(&self, alias: &str) -> String {
        let numbered = self
            .places
            .iter()
            .any(|place| self.target.column(*place).identity_always);
        format!(
            "INSERT INTO {}{alias} ({}){} SELECT {} FROM ",
            self.target.table.sql(),
            self.list(|place| self.name(place)),
            if numbered {
                " OVERRIDING SYSTEM VALUE"
            } else {
                ""
            },
            self.list(|place| self.value(place)),
        )
    }

    fn insert(&self, on_conflict: OnConflict) -> String {
        let end = match on_conflict {
            OnConflict::Fail => "",
            OnConflict::Ignore => " ON CONFLICT DO NOTHING",
        };
        format!("{}{} ORDER BY g.n{end}", self.insert_into(""), self.given())
    }

    fn upsert(&self) -> String {
        let key: Vec<String> = self
            .target
            .key
            .iter()
            .map(|place| self.name(*place))
            .collect();
        format!(
            "{}{} ON CONFLICT ({}) DO {}",
            self.insert_into(" AS t"),
            self.last_of_each_key(),
            key.join(", "),
            self.on_conflict()
        )
    }

    /// What an upsert does with a row that is there.
    fn on_conflict(&self) -> String {
        let others = self.others();
        if others.is_empty() {
            return "NOTHING".to_owned();
        }
        let set = others.iter().map(|place| {
            let name = self.name(*place);
            format!("{name} = EXCLUDED.{name}")
        });
        // A message that comes twice touches nothing: no trigger fires, no row is written anew.
        let differs = others.iter().map(|place| {
            let column = self.target.column(*place);
            let cast = comparable(column);
            let name = quote(&column.name);
            format!("t.{name}{cast} IS DISTINCT FROM EXCLUDED.{name}{cast}")
        });
        let is_newer = self.target.newest.map(|place| {
            let name = self.name(place);
            format!(" AND (t.{name} IS NULL OR EXCLUDED.{name} >= t.{name})")
        });
        format!(
            "UPDATE SET {} WHERE ({}){}",
            set.collect::<Vec<_>>().join(", "),
            differs.collect::<Vec<_>>().join(" OR "),
            is_newer.unwrap_or_default()
        )
    }

    /// Which row a record is about.
    fn same_key(&self) -> String {
        let key = self.target.key.iter();
        let same = key.map(|place| format!("t.{} = {}", self.name(*place), self.value(*place)));
        same.collect::<Vec<_>>().join(" AND ")
    }

    fn update(&self) -> String {
        let others = self.others();
        if others.is_empty() {
            // There is nothing to change: the values are read, and that is all.
            return format!("SELECT g.n FROM {}", self.given());
        }
        let set = others
            .iter()
            .map(|place| format!("{} = {}", self.name(*place), self.value(*place)));
        format!(
            "UPDATE {} AS t SET {} FROM {} WHERE {}",
            self.target.table.sql(),
            set.collect::<Vec<_>>().join(", "),
            self.last_of_each_key(),
            self.same_key()
        )
    }

    fn delete(&self) -> String {
        format!(
            "DELETE FROM {} AS t USING {} WHERE {}",
            self.target.table.sql(),
            self.last_of_each_key(),
            self.same_key()
        )
    }

    fn missing(&self) -> String {
        format!(
            "SELECT g.n FROM {} WHERE NOT EXISTS (SELECT FROM {} AS t WHERE {})",
            self.given(),
            self.target.table.sql(),
            self.same_key()
        )
    }
}

/// What makes values of a column comparable.
fn comparable(column: &Column) -> &'static str {
    let of = column.base_type.trim_start_matches('_');
    if INCOMPARABLE.contains(&of) {
        "::text"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use serde_json::value::RawValue;

    use super::*;
    use crate::record::tests::{config, table};

    fn written(places: &[usize], more: serde_json::Value) -> Statement {
        let config = config(more);
        let target = Target::new(table(), &config).unwrap();
        statement(places, &target, &config)
    }

    #[test]
    fn an_upsert_keeps_the_last_of_each_key_and_touches_only_what_differs() {
        assert_eq!(
            written(&[0, 1], json!({})).write,
            "INSERT INTO \"public\".\"t\" AS t (\"id\", \"name\") SELECT g.c0, g.c1 FROM \
             (SELECT DISTINCT ON (g.c0) g.* FROM json_to_recordset($1::text::json) AS g(n int, c0 int8, c1 text) \
             ORDER BY g.c0, g.n DESC) AS g \
             ON CONFLICT (\"id\") DO UPDATE SET \"name\" = EXCLUDED.\"name\" \
             WHERE (t.\"name\" IS DISTINCT FROM EXCLUDED.\"name\")"
        );
        assert!(
            written(&[0], json!({}))
                .write
                .ends_with("ON CONFLICT (\"id\") DO NOTHING")
        );
    }

    #[test]
    fn an_older_message_changes_nothing() {
        let sql = written(&[0, 1], json!({"newest": "name"})).write;
        assert!(
            sql.contains("ORDER BY g.c0, g.c1 DESC NULLS LAST, g.n DESC"),
            "{sql}"
        );
        assert!(
            sql.ends_with("AND (t.\"name\" IS NULL OR EXCLUDED.\"name\" >= t.\"name\")"),
            "{sql}"
        );
    }

    #[test]
    fn only_an_update_asks_what_is_missing_unless_told_otherwise() {
        assert!(
            written(&[0, 1], json!({"mode": "update"}))
                .missing
                .is_some()
        );
        assert!(
            written(&[0, 1], json!({"mode": "update", "on_missing": "ignore"}))
                .missing
                .is_none()
        );
        assert!(written(&[0], json!({"mode": "delete"})).missing.is_none());
        assert!(
            written(&[0], json!({"mode": "delete", "on_missing": "fail"}))
                .missing
                .is_some()
        );
        assert!(
            written(&[0], json!({"mode": "insert", "on_missing": "fail"}))
                .missing
                .is_none()
        );
    }

    #[test]
    fn records_are_written_as_they_are() {
        let number = RawValue::from_string("1.50".to_owned()).unwrap();
        let record = |index| Record {
            index,
            values: [(0, &*number), (2, RawValue::NULL)].into(),
            key: String::new(),
        };
        let (one, two) = (record(0), record(1));
        assert_eq!(
            rows(&[&one, &two]),
            r#"[{"n":0,"c0":1.50,"c2":null},{"n":1,"c0":1.50,"c2":null}]"#
        );
    }
}
