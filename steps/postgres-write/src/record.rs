//! From a message to a record: which columns it has, and their values.
//!
//! # Invariants
//!
//! - A value is passed on as it is written: no number loses a digit.
//! - A record has its whole key, and no part of it is null.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use towpath_step::{Result, StepError};
use towpath_step_json::text;
use towpath_step_postgres::{Column, Table, did_you_mean};

use crate::config::{Config, Mode, Unknown};

/// What a batch is written to.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) table: Table,
    /// The places, among the table's columns, of those that say which row it is.
    pub(crate) key: Vec<usize>,
    /// The place of the column that grows with every change.
    pub(crate) newest: Option<usize>,
}

impl Target {
    /// Looks whether table and configuration fit. What does not is an error that says what to do.
    pub(crate) fn new(table: Table, config: &Config) -> Result<Self> {
        let name = format!("{}.{}", table.schema, table.name);
        let names = config.key.clone().filter(|key| !key.is_empty());
        let names = names.unwrap_or_else(|| table.primary_key.clone());
        if names.is_empty() && config.mode != Mode::Insert {
            return Err(StepError::permanent(format!(
                "the table `{name}` has no primary key: say with `key` which columns tell its rows apart"
            )));
        }
        for column in names
            .iter()
            .chain(config.columns.iter().flat_map(BTreeMap::keys))
        {
            table.column(column)?;
        }
        if config.mode == Mode::Upsert && !table.is_unique(&names) {
            return Err(StepError::permanent(format!(
                "an upsert needs a unique index over exactly `{0}`, and `{name}` has none: CREATE UNIQUE INDEX ON {name} ({0})",
                names.join(", ")
            )));
        }
        if let Some(newest) = &config.newest {
            table.column(newest)?;
            if config.mode != Mode::Upsert {
                return Err(StepError::permanent(
                    "`newest` has a meaning for an upsert only",
                ));
            }
        }
        let place = |name: &String| table.columns.iter().position(|column| column.name == *name);
        Ok(Self {
            key: names.iter().filter_map(place).collect(),
            newest: config.newest.as_ref().and_then(place),
            table,
        })
    }

    pub(crate) fn column(&self, place: usize) -> &Column {
        &self.table.columns[place]
    }
}

/// A message, as it is written.
#[derive(Debug)]
pub(crate) struct Record<'a> {
    /// Which message of the batch it is.
    pub(crate) index: usize,
    /// The places of its columns and their values, by place.
    pub(crate) values: BTreeMap<usize, &'a RawValue>,
    /// Its key as a text; the same for two messages about one row, unless they write a value of
    /// the key in different ways.
    pub(crate) key: String,
}

/// Why a message is no record.
#[derive(Debug)]
pub(crate) enum NoRecord {
    /// It has a field that is no column, as far as is known.
    Unknown(StepError),
    /// Something else.
    Unfit(StepError),
}

impl NoRecord {
    pub(crate) fn into_error(self) -> StepError {
        match self {
            Self::Unknown(error) | Self::Unfit(error) => error,
        }
    }
}

/// Reads a message.
pub(crate) fn record<'a>(
    index: usize,
    body: &'a RawValue,
    target: &Target,
    config: &Config,
) -> Result<Record<'a>, NoRecord> {
    let mut values = match &config.columns {
        Some(_) => mapped(body, target, config),
        None => by_name(body, target, config)?,
    };
    if config.mode == Mode::Delete {
        values.retain(|place, _| target.key.contains(place));
    }
    if values.is_empty() {
        return Err(unfit("the body has nothing to write"));
    }
    if let Some((place, _)) = values
        .iter()
        .find(|(place, _)| target.column(**place).generated)
    {
        let name = &target.column(*place).name;
        return Err(unfit(format!(
            "the database makes the column `{name}` itself: leave it out"
        )));
    }
    // A new row gets the key that the database makes for it.
    let key = match config.mode {
        Mode::Insert => String::new(),
        _ => key(&values, target)?,
    };
    if let Some(newest) = target.newest
        && !values.contains_key(&newest)
    {
        let name = &target.column(newest).name;
        return Err(unfit(format!(
            "the body has no `{name}`, which says how new it is"
        )));
    }
    Ok(Record { index, values, key })
}

fn unfit(reason: impl std::fmt::Display) -> NoRecord {
    NoRecord::Unfit(StepError::permanent(reason))
}

fn mapped<'a>(
    body: &'a RawValue,
    target: &Target,
    config: &Config,
) -> BTreeMap<usize, &'a RawValue> {
    let mut values = BTreeMap::new();
    for (name, path) in config.columns.iter().flatten() {
        let place = target
            .table
            .columns
            .iter()
            .position(|column| column.name == *name);
        if let (Some(place), Some(value)) = (place, path.find(body)) {
            values.insert(place, value);
        }
    }
    values
}

fn by_name<'a>(
    body: &'a RawValue,
    target: &Target,
    config: &Config,
) -> Result<BTreeMap<usize, &'a RawValue>, NoRecord> {
    let fields: BTreeMap<String, &RawValue> = serde_json::from_str(body.get())
        .map_err(|_| unfit("the body is not an object with a field for each column"))?;
    let columns = &target.table.columns;
    let mut values = BTreeMap::new();
    for (name, value) in fields {
        match columns.iter().position(|column| column.name == name) {
            Some(place) => drop(values.insert(place, value)),
            None if config.unknown == Unknown::Ignore || config.mode == Mode::Delete => {}
            None => {
                let suggestion = did_you_mean(&name, columns.iter().map(|column| &*column.name));
                let hint = if suggestion.is_empty() {
                    "; leave it out, or say `unknown: ignore`"
                } else {
                    &suggestion
                };
                return Err(NoRecord::Unknown(StepError::permanent(format!(
                    "the body has `{name}`, which is no column of `{}.{}`{hint}",
                    target.table.schema, target.table.name
                ))));
            }
        }
    }
    Ok(values)
}

fn key(values: &BTreeMap<usize, &RawValue>, target: &Target) -> Result<String, NoRecord> {
    let mut key = String::new();
    for place in &target.key {
        let name = &target.column(*place).name;
        let value = values.get(place);
        let value =
            value.ok_or_else(|| unfit(format!("the body has no `{name}` to tell its row by")))?;
        if value.get() == "null" {
            return Err(unfit(format!("`{name}`, which tells the row, is null")));
        }
        key.push_str(&text(value).unwrap_or_else(|| value.get().into()));
        key.push('\0');
    }
    Ok(key)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn column(name: &str, of: &str) -> Column {
        Column {
            name: name.to_owned(),
            sql_type: of.to_owned(),
            base_type: of.to_owned(),
            nullable: name != "id",
            generated: name == "made",
            identity_always: false,
        }
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "it is written as `json!({..})`"
    )]
    pub(crate) fn config(more: serde_json::Value) -> Config {
        let mut config = serde_json::json!({"url": "postgres://h/d", "table": "t"});
        config
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        serde_json::from_value(config).unwrap()
    }

    pub(crate) fn table() -> Table {
        Table {
            schema: "public".to_owned(),
            name: "t".to_owned(),
            is_table: true,
            columns: vec![
                column("id", "int8"),
                column("name", "text"),
                column("photo", "bytea"),
                column("made", "text"),
            ],
            primary_key: vec!["id".to_owned()],
            unique: vec![vec!["id".to_owned()]],
        }
    }

    #[track_caller]
    fn check(body: &str, more: serde_json::Value, expect: Result<&str, &str>) {
        let config = config(more);
        let target = Target::new(table(), &config).unwrap();
        let body = RawValue::from_string(body.to_owned()).unwrap();
        let record = record(0, &body, &target, &config);
        let told = record.map(|record| {
            let values = record.values.iter();
            let told =
                values.map(|(place, value)| format!("{}={value}", target.column(*place).name));
            told.collect::<Vec<_>>().join(" ")
        });
        let told = told.map_err(|error| error.into_error().reason().to_owned());
        assert_eq!(told.as_deref().map_err(String::as_str), expect, "{body}");
    }

    #[test]
    fn fields_are_columns_by_their_names() {
        let none = || serde_json::json!({});
        check(
            r#"{"name":"a","id":12345678901234567890.10}"#,
            none(),
            Ok("id=12345678901234567890.10 name=\"a\""),
        );
        check(r#"{"id":1,"name":null}"#, none(), Ok("id=1 name=null"));
        check(
            "[1]",
            none(),
            Err("the body is not an object with a field for each column"),
        );
        check(
            r#"{"name":"a"}"#,
            none(),
            Err("the body has no `id` to tell its row by"),
        );
        check(
            r#"{"id":null}"#,
            none(),
            Err("`id`, which tells the row, is null"),
        );
        check(
            r#"{"id":1,"nmae":"a"}"#,
            none(),
            Err("the body has `nmae`, which is no column of `public.t`; did you mean `name`?"),
        );
        check(
            r#"{"id":1,"zzz":"a"}"#,
            none(),
            Err(
                "the body has `zzz`, which is no column of `public.t`; leave it out, or say `unknown: ignore`",
            ),
        );
        check(
            r#"{"id":1,"zzz":"a"}"#,
            serde_json::json!({"unknown": "ignore"}),
            Ok("id=1"),
        );
        check(
            r#"{"id":1,"made":"a"}"#,
            none(),
            Err("the database makes the column `made` itself: leave it out"),
        );
        check(
            r#"{"id":1,"zzz":"a","name":"b"}"#,
            serde_json::json!({"mode": "delete"}),
            Ok("id=1"),
        );
        check(
            "{}",
            serde_json::json!({"mode": "insert"}),
            Err("the body has nothing to write"),
        );
    }

    #[test]
    fn columns_are_found_where_the_flow_says() {
        let columns = serde_json::json!({"columns": {"id": "deal.number", "name": "deal.who"}});
        check(
            r#"{"deal":{"number":7,"who":"Ada","more":1}}"#,
            columns.clone(),
            Ok("id=7 name=\"Ada\""),
        );
        check(r#"{"deal":{"number":7}}"#, columns, Ok("id=7"));
    }

    #[test]
    fn what_does_not_fit_the_table_says_what_to_do() {
        #[track_caller]
        fn check(more: serde_json::Value, expect: &str) {
            let error = Target::new(table(), &config(more)).unwrap_err();
            assert_eq!(error.reason(), expect);
        }
        check(
            serde_json::json!({"key": ["name"]}),
            "an upsert needs a unique index over exactly `name`, and `public.t` has none: CREATE UNIQUE INDEX ON public.t (name)",
        );
        check(
            serde_json::json!({"key": ["idd"]}),
            "the table `public.t` has no column `idd`; did you mean `id`?",
        );
        check(
            serde_json::json!({"mode": "update", "newest": "name"}),
            "`newest` has a meaning for an upsert only",
        );
    }
}
