//! What the database says of a table: its columns, and what tells its rows apart.

use std::collections::BTreeSet;

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error, Row};
use towpath_step::StepError;

use crate::failure::explain;
use crate::names::{TableName, did_you_mean, quote};

/// A table, a view, or what else has rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Whether it has rows of its own, so that the catalog knows what is unique in it.
    pub is_table: bool,
    /// Its columns, in their order.
    pub columns: Vec<Column>,
    /// The columns of its primary key; empty if it has none.
    pub primary_key: Vec<String>,
    /// The columns of each unique index over whole rows, the primary key included.
    pub unique: Vec<Vec<String>>,
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type, as SQL writes it: `numeric(10,2)`.
    pub sql_type: String,
    /// The type's name in the catalog, that of its base if it is a domain: `numeric`, `_text`.
    pub base_type: String,
    /// Whether it may be null.
    pub nullable: bool,
    /// Whether it is made from other columns, so that it cannot be written.
    pub generated: bool,
    /// Whether the database numbers it and wants to be told if somebody else does.
    pub identity_always: bool,
}

const TABLE: &str = "\
SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text IN ('r', 'p', 'm')
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relname = $1 AND c.relkind::text IN ('r', 'p', 'v', 'm', 'f')
  AND CASE WHEN $2 IS NULL THEN pg_catalog.pg_table_is_visible(c.oid) ELSE n.nspname = $2 END";

const TABLES: &str = "\
SELECT CASE WHEN pg_catalog.pg_table_is_visible(c.oid) THEN c.relname ELSE n.nspname || '.' || c.relname END
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind::text IN ('r', 'p', 'v', 'm', 'f')
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
ORDER BY 1 LIMIT 5000";

const COLUMNS: &str = "\
WITH RECURSIVE base AS (
  SELECT a.attnum, a.atttypid AS type FROM pg_catalog.pg_attribute AS a
  WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
  UNION ALL
  SELECT base.attnum, t.typbasetype FROM base JOIN pg_catalog.pg_type AS t ON t.oid = base.type
  WHERE t.typtype::text = 'd'
)
SELECT a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod), t.typname::text,
  NOT a.attnotnull, a.attgenerated::text <> '', a.attidentity::text = 'a'
FROM pg_catalog.pg_attribute AS a JOIN base ON base.attnum = a.attnum
JOIN pg_catalog.pg_type AS t ON t.oid = base.type
WHERE a.attrelid = $1 AND t.typtype::text <> 'd'
ORDER BY a.attnum";

const UNIQUE: &str = "\
SELECT i.indisprimary, ARRAY(
  SELECT a.attname::text FROM unnest(i.indkey) WITH ORDINALITY AS k(number, place)
  JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.number
  WHERE k.place <= i.indnkeyatts ORDER BY k.place)
FROM pg_catalog.pg_index AS i
WHERE i.indrelid = $1 AND i.indisunique AND i.indisvalid AND i.indimmediate
  AND i.indpred IS NULL AND i.indexprs IS NULL
ORDER BY i.indisprimary DESC, i.indnkeyatts, i.indexrelid";

/// Looks a table up. One that is not there is an error that says what was probably meant.
pub async fn find_table(client: &Client, wanted: &TableName) -> Result<Table, StepError> {
    let found = read_table(client, wanted)
        .await
        .map_err(|error| explain(&error))?;
    if let Some(table) = found {
        return Ok(table);
    }
    let tables = client
        .query_typed(TABLES, &[])
        .await
        .map_err(|error| explain(&error))?;
    let names: Vec<String> = tables.iter().map(|row| row.get(0)).collect();
    let suggestion = did_you_mean(&wanted.to_string(), names.iter().map(String::as_str));
    Err(StepError::permanent(format!(
        "there is no table `{wanted}` that this user can see{suggestion}"
    )))
}

async fn read_table(client: &Client, wanted: &TableName) -> Result<Option<Table>, Error> {
    let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
        [(&wanted.name, Type::TEXT), (&wanted.schema, Type::TEXT)];
    let Some(row) = client.query_typed_opt(TABLE, &parameters).await? else {
        return Ok(None);
    };
    let id: u32 = row.get(0);
    let columns = client.query_typed(COLUMNS, &[(&id, Type::OID)]).await?;
    let unique = client.query_typed(UNIQUE, &[(&id, Type::OID)]).await?;
    let primary = unique.iter().find(|row| row.get(0));
    Ok(Some(Table {
        schema: row.get(1),
        name: row.get(2),
        is_table: row.get(3),
        columns: columns.iter().map(read_column).collect(),
        primary_key: primary.map(|row| row.get(1)).unwrap_or_default(),
        unique: unique.iter().map(|row| row.get(1)).collect(),
    }))
}

fn read_column(row: &Row) -> Column {
    Column {
        name: row.get(0),
        sql_type: row.get(1),
        base_type: row.get(2),
        nullable: row.get(3),
        generated: row.get(4),
        identity_always: row.get(5),
    }
}

impl Table {
    /// Writes its name as SQL.
    pub fn sql(&self) -> String {
        format!("{}.{}", quote(&self.schema), quote(&self.name))
    }

    /// Finds a column. One that is not there is an error that says what was probably meant.
    pub fn column(&self, name: &str) -> Result<&Column, StepError> {
        let found = self.columns.iter().find(|column| column.name == name);
        found.ok_or_else(|| {
            let suggestion = did_you_mean(name, self.columns.iter().map(|column| &*column.name));
            StepError::permanent(format!(
                "the table `{}.{}` has no column `{name}`{suggestion}",
                self.schema, self.name
            ))
        })
    }

    /// Says whether a set of columns, none of them null, tells every row from every other.
    pub fn tells_apart(&self, columns: &[&str]) -> bool {
        let set: BTreeSet<&str> = columns.iter().copied().collect();
        self.unique.iter().any(|index| {
            index.iter().all(|name| {
                let column = self.columns.iter().find(|column| column.name == *name);
                set.contains(name.as_str()) && column.is_some_and(|column| !column.nullable)
            })
        })
    }

    /// Says whether there is a unique index over exactly these columns, in any order.
    pub fn is_unique(&self, columns: &[String]) -> bool {
        let set: BTreeSet<&String> = columns.iter().collect();
        self.unique
            .iter()
            .any(|index| index.iter().collect::<BTreeSet<_>>() == set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let column = |name: &str, nullable| Column {
            name: name.to_owned(),
            sql_type: "text".to_owned(),
            base_type: "text".to_owned(),
            nullable,
            generated: false,
            identity_always: false,
        };
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Table {
            schema: "public".to_owned(),
            name: "orders".to_owned(),
            is_table: true,
            columns: vec![
                column("id", false),
                column("shop", false),
                column("number", true),
            ],
            primary_key: names(&["id"]),
            unique: vec![names(&["id"]), names(&["shop", "number"])],
        }
    }

    #[test]
    fn only_what_is_unique_and_never_null_tells_rows_apart() {
        let table = table();
        assert!(table.tells_apart(&["id"]));
        assert!(table.tells_apart(&["shop", "id"]));
        assert!(!table.tells_apart(&["shop"]));
        assert!(
            !table.tells_apart(&["shop", "number"]),
            "two rows may have no number"
        );
    }

    #[test]
    fn a_conflict_needs_an_index_over_exactly_its_columns() {
        let table = table();
        let names = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        assert!(table.is_unique(&names(&["number", "shop"])));
        assert!(!table.is_unique(&names(&["id", "shop"])));
    }

    #[test]
    fn a_column_that_is_not_there_says_what_was_meant() {
        let error = table().column("nmber").unwrap_err();
        assert_eq!(
            error.reason(),
            "the table `public.orders` has no column `nmber`; did you mean `number`?"
        );
    }
}
