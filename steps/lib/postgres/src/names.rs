//! Names in the database: how they are written in a flow, and in SQL.

use std::fmt;
use std::str::FromStr;

/// How alike two names are at least for one to be taken for the other, from 0 to 1.
const ALIKE_MIN: f64 = 0.75;

/// Writes a name as SQL: in quotes, so that it is exactly that name.
pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Returns the name that was probably meant, as the end of a sentence: `; did you mean `id`?`.
/// Nothing if none is alike.
pub fn did_you_mean<'a>(name: &str, others: impl IntoIterator<Item = &'a str>) -> String {
    let lower = name.to_lowercase();
    let alike = others
        .into_iter()
        .map(|other| (strsim::jaro_winkler(&lower, &other.to_lowercase()), other))
        .filter(|(likeness, _)| *likeness >= ALIKE_MIN)
        .max_by(|one, two| one.0.total_cmp(&two.0));
    alike.map_or_else(String::new, |(_, other)| {
        format!("; did you mean `{other}`?")
    })
}

/// The name of a table, with its schema or without: `orders`, `shop.orders`. Small and large
/// letters are different.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableName {
    /// The schema; where it is not named, the first of the search path that has the table.
    pub schema: Option<String>,
    /// The table.
    pub name: String,
}

/// The text is not the name of a table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the name of a table: write it like `orders` or `shop.orders`")]
pub struct NotAName(String);

impl FromStr for TableName {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, NotAName> {
        let (schema, name) = match text.split_once('.') {
            Some((schema, name)) => (Some(schema), name),
            None => (None, text),
        };
        let is_empty = name.is_empty() || schema.is_some_and(str::is_empty);
        if is_empty || name.contains('.') || text.contains(['\0', '"']) {
            return Err(NotAName(text.to_owned()));
        }
        Ok(Self {
            schema: schema.map(str::to_owned),
            name: name.to_owned(),
        })
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(schema) = &self.schema {
            write!(f, "{schema}.")?;
        }
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expect: Option<(Option<&str>, &str)>) {
        let read = text.parse::<TableName>().ok();
        let expect = expect.map(|(schema, name)| TableName {
            schema: schema.map(str::to_owned),
            name: name.to_owned(),
        });
        assert_eq!(read, expect, "{text}");
    }

    #[test]
    fn a_table_is_named_with_its_schema_or_without() {
        check("orders", Some((None, "orders")));
        check("shop.Orders", Some((Some("shop"), "Orders")));
        check("my orders", Some((None, "my orders")));
        for wrong in ["", ".", "a.", ".a", "a.b.c", "\"a\"", "a\0"] {
            check(wrong, None);
        }
    }

    #[test]
    fn a_quoted_name_ends_where_it_ends() {
        assert_eq!(quote("id"), "\"id\"");
        assert_eq!(quote("a\"; DROP x"), "\"a\"\"; DROP x\"");
    }

    #[test]
    fn what_was_probably_meant_is_told() {
        let columns = ["id", "updated_at", "customer"];
        assert_eq!(
            did_you_mean("updatd_at", columns),
            "; did you mean `updated_at`?"
        );
        assert_eq!(did_you_mean("ID", columns), "; did you mean `id`?");
        assert_eq!(did_you_mean("zzz", columns), "");
    }
}
