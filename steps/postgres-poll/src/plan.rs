//! What is read, and the SQL that reads it.

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Column};
use towpath_step::{Result, StepError};
use towpath_step_postgres::{Table, TableName, did_you_mean, explain, find_table, quote};

use crate::config::{Config, LookBack, Numbers};
use crate::progress::{Start, Window};

/// What the rows of a query are called in its conditions.
const QUERY_ALIAS: &str = "q";

/// What is read.
#[derive(Debug)]
pub(crate) struct Plan {
    /// What the rows come from, as SQL after `FROM`.
    source: String,
    /// What the source is called in checkpoints.
    name: String,
    alias: String,
    cursor: Named,
    kind: Kind,
    key: Vec<Named>,
    /// The catalog does not say that the key is never null.
    may_lack_key: bool,
    /// The body: a name and an expression each.
    fields: Vec<(String, String)>,
    filter: Option<String>,
    since: Option<String>,
    pub(crate) window: Option<Window>,
}

/// A column and its type.
#[derive(Debug)]
struct Named {
    name: String,
    /// The type, as SQL writes it.
    sql_type: String,
}

/// What a cursor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Integer,
    /// A time with its offset, which compares with the clock.
    Instant,
    /// A time without an offset.
    Civil,
    Date,
    /// A text or a UUID.
    Word,
}

impl Kind {
    fn of(of: &Type) -> Option<Self> {
        Some(match *of {
            Type::INT2 | Type::INT4 | Type::INT8 => Self::Integer,
            Type::TIMESTAMPTZ => Self::Instant,
            Type::TIMESTAMP => Self::Civil,
            Type::DATE => Self::Date,
            Type::TEXT | Type::VARCHAR | Type::UUID => Self::Word,
            _ => return None,
        })
    }

    /// The cursor as a number: itself, or microseconds since 1970.
    fn ordinal(self, column: &str) -> String {
        match self {
            Self::Integer => format!("{column}::bigint"),
            Self::Instant | Self::Civil => {
                format!("(extract(epoch FROM {column}) * 1000000)::bigint")
            }
            Self::Date => format!("({column} - date '1970-01-01')::bigint * 86400000000"),
            Self::Word => "NULL::bigint".to_owned(),
        }
    }

    /// The way back: the smallest cursor with at least that number.
    fn of_ordinal(self, parameter: &str) -> String {
        let since = |epoch: &str| {
            format!(
                "{epoch} '1970-01-01 00:00:00' + {parameter}::bigint * interval '1 microsecond'"
            )
        };
        match self {
            Self::Integer | Self::Word => format!("{parameter}::bigint"),
            Self::Instant => since("timestamptz"),
            Self::Civil | Self::Date => since("timestamp"),
        }
    }

    fn window(self, look_back: Option<LookBack>) -> Result<Option<Window>> {
        let Some(look_back) = look_back else {
            return Ok(None);
        };
        let length = match (self, look_back) {
            (Self::Instant | Self::Civil | Self::Date, LookBack::Span(span)) => {
                i64::try_from(span.duration().as_micros()).unwrap_or(i64::MAX)
            }
            (Self::Integer, LookBack::Number(number)) => number.into(),
            (Self::Word, _) => {
                return Err(StepError::permanent(
                    "`look_back` needs a cursor that is a time or an integer",
                ));
            }
            (Self::Integer, LookBack::Span(_)) => {
                return Err(StepError::permanent(
                    "the cursor is an integer, so `look_back` has to be a number, such as `1000`",
                ));
            }
            (_, LookBack::Number(_)) => {
                return Err(StepError::permanent(
                    "the cursor is a time, so `look_back` has to be a length of time, such as `30s`",
                ));
            }
        };
        Ok(Some(Window {
            length,
            by_clock: self == Self::Instant,
        }))
    }
}

/// Finds out what there is to read. What does not fit is an error that says what to do.
pub(crate) async fn plan(client: &Client, config: &Config) -> Result<Plan> {
    let (source, name, alias, table) = match (&config.table, &config.query) {
        (Some(name), None) => {
            let name = name.parse::<TableName>().map_err(StepError::permanent)?;
            let table = find_table(client, &name).await?;
            (table.sql(), table.sql(), table.name.clone(), Some(table))
        }
        (None, Some(query)) => {
            let query = query.trim().trim_end_matches(';');
            let source = format!("({query}\n) AS {QUERY_ALIAS}");
            (source, "query".to_owned(), QUERY_ALIAS.to_owned(), None)
        }
        _ => {
            return Err(StepError::permanent(
                "either `table` or `query` has to be set, not both",
            ));
        }
    };
    let described = client.prepare(&format!("SELECT * FROM {source}")).await;
    let described = described.map_err(|error| {
        let what = if table.is_some() { "table" } else { "query" };
        explain(&error).context(format!("the {what} cannot be read"))
    })?;
    let columns = Columns(described.columns());
    let cursor = columns.find("cursor", &config.cursor)?;
    let kind = Kind::of(cursor.type_()).ok_or_else(|| {
        StepError::permanent(format!(
            "`{}` cannot be the cursor: its type `{}` is not a timestamp, a date, an integer, a text or a uuid",
            cursor.name(),
            cursor.type_().name()
        ))
    })?;
    let key = key_of(config, table.as_ref())?;
    let may_lack_key = !table.as_ref().is_some_and(|table| has_every(table, &key));
    Ok(Plan {
        source,
        name,
        alias,
        cursor: named(cursor),
        kind,
        key: key
            .iter()
            .map(|name| columns.find("key", name).map(named))
            .collect::<Result<_>>()?,
        may_lack_key,
        fields: columns.fields(config)?,
        filter: config.filter.clone(),
        since: config.since.as_ref().map(crate::Since::text),
        window: kind.window(config.look_back)?,
    })
}

/// The columns of a source.
struct Columns<'a>(&'a [Column]);

impl<'a> Columns<'a> {
    fn find(&self, setting: &str, name: &str) -> Result<&'a Column> {
        let mut found = self.0.iter().filter(|column| column.name() == name);
        let column = found.next().ok_or_else(|| {
            let suggestion = did_you_mean(name, self.0.iter().map(Column::name));
            StepError::permanent(format!(
                "`{setting}`: there is no column `{name}`{suggestion}"
            ))
        })?;
        if found.next().is_some() {
            return Err(StepError::permanent(format!(
                "the query has two columns `{name}`: give one of them another name with `AS`"
            )));
        }
        Ok(column)
    }

    /// The body's names and expressions.
    fn fields(&self, config: &Config) -> Result<Vec<(String, String)>> {
        let names: Vec<&str> = match &config.columns {
            Some(names) => names.iter().map(String::as_str).collect(),
            None => self.0.iter().map(Column::name).collect(),
        };
        if names.is_empty() {
            return Err(StepError::permanent(
                "there are no columns to make a body of",
            ));
        }
        let fields = names.into_iter().map(|name| {
            let column = self.find("columns", name)?;
            let value = value(&quote(name), column.type_(), config.numeric);
            Ok((name.to_owned(), value))
        });
        fields.collect()
    }
}

fn named(column: &Column) -> Named {
    let of = column.type_();
    Named {
        name: column.name().to_owned(),
        sql_type: format!("{}.{}", quote(of.schema()), quote(of.name())),
    }
}

/// The columns that tell apart the rows of one cursor value.
fn key_of(config: &Config, table: Option<&Table>) -> Result<Vec<String>> {
    let Some(table) = table.filter(|table| table.is_table) else {
        return config.key.clone().filter(|key| !key.is_empty()).ok_or_else(|| {
            StepError::permanent(
                "a query or a view has no key of its own: name the columns that tell its rows apart with `key`",
            )
        });
    };
    let Some(key) = config.key.clone().filter(|key| !key.is_empty()) else {
        if !table.primary_key.is_empty() {
            return Ok(table.primary_key.clone());
        }
        let unique = table
            .unique
            .iter()
            .find(|index| table.tells_apart(&index.iter().map(String::as_str).collect::<Vec<_>>()));
        return unique.cloned().ok_or_else(|| nothing_unique(table));
    };
    for name in &key {
        table.column(name)?;
    }
    let with_cursor: Vec<&str> = key
        .iter()
        .chain([&config.cursor])
        .map(String::as_str)
        .collect();
    if !table.tells_apart(&with_cursor) {
        let names = key.join("`, `");
        return Err(StepError::permanent(format!(
            "`key`: there is no unique index that says that `{names}` (together with the cursor) tells the rows of `{}.{}` apart and is never null",
            table.schema, table.name
        )));
    }
    Ok(key)
}

fn nothing_unique(table: &Table) -> StepError {
    let name = format!("{}.{}", table.schema, table.name);
    StepError::permanent(format!(
        "the table `{name}` has neither a primary key nor a unique index without nulls, so rows of one cursor value cannot be told apart: add one (`ALTER TABLE {name} ADD COLUMN id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY`), or read it with `query` and `key` if you know columns that are unique"
    ))
}

fn has_every(table: &Table, key: &[String]) -> bool {
    table.is_table
        && key
            .iter()
            .all(|name| table.column(name).is_ok_and(|column| !column.nullable))
}

/// The expression of a column's value whose JSON is exact.
fn value(column: &str, of: &Type, numbers: Numbers) -> String {
    let base64 = |bytes: &str| format!("translate(encode({bytes}, 'base64'), E'\\n', '')");
    let as_text = numbers == Numbers::Text;
    match *of {
        Type::NUMERIC if as_text => format!("{column}::text"),
        Type::NUMERIC_ARRAY if as_text => format!("{column}::text[]"),
        Type::MONEY if as_text => format!("{column}::numeric::text"),
        Type::MONEY => format!("{column}::numeric"),
        Type::MONEY_ARRAY if as_text => format!("{column}::numeric[]::text[]"),
        Type::MONEY_ARRAY => format!("{column}::numeric[]"),
        Type::BYTEA => base64(column),
        Type::BYTEA_ARRAY => format!(
            "CASE WHEN {column} IS NULL THEN NULL ELSE ARRAY(SELECT {} FROM unnest({column}) WITH ORDINALITY AS u(b, o) ORDER BY o) END",
            base64("b")
        ),
        _ => column.to_owned(),
    }
}

impl Plan {
    /// What a position is one of.
    pub(crate) fn of(&self) -> String {
        let key: Vec<_> = self.key.iter().map(|key| key.name.as_str()).collect();
        format!("{} by {}, {}", self.name, self.cursor.name, key.join(", "))
    }

    /// How many columns the key has.
    pub(crate) fn key_length(&self) -> usize {
        self.key.len()
    }

    /// Returns the SQL of a page and its parameters, all of them texts. Each row has its body, its
    /// cursor, its key, and its cursor as a number.
    pub(crate) fn page(&self, start: &Start, limit: u32) -> (String, Vec<String>) {
        let cursor = quote(&self.cursor.name);
        let keys: Vec<String> = self.key.iter().map(|key| quote(&key.name)).collect();
        let order = format!("{cursor}, {}", keys.join(", "));
        let mut parameters = Vec::new();
        let mut conditions = vec![format!("{cursor} IS NOT NULL")];
        if matches!(self.kind, Kind::Instant | Kind::Civil | Kind::Date) {
            // The next row would have to come after infinity.
            conditions.push(format!("isfinite({cursor})"));
        }
        conditions.extend(self.bound(start, &mut parameters));
        conditions.extend(self.filter.as_ref().map(|filter| format!("({filter}\n)")));
        let fields: Vec<String> = self
            .fields
            .iter()
            .map(|(name, value)| format!("{value} AS {}", quote(name)))
            .collect();
        let key_texts: Vec<String> = keys.iter().map(|key| format!("{key}::text")).collect();
        let alias = quote(&self.alias);
        // Not by the name alone: that would be the text of it, which is in the result.
        let outer_order: Vec<String> = [&cursor]
            .into_iter()
            .chain(&keys)
            .map(|name| format!("{alias}.{name}"))
            .collect();
        let outer_order = outer_order.join(", ");
        let sql = format!(
            "SELECT (SELECT row_to_json(towpath_body)::text FROM (SELECT {fields}) AS towpath_body), \
             {cursor}::text, {key_texts}, {ordinal} \
             FROM (SELECT * FROM {source} WHERE {conditions} ORDER BY {order} LIMIT {limit}) AS {alias} \
             ORDER BY {outer_order}",
            fields = fields.join(", "),
            key_texts = key_texts.join(", "),
            ordinal = self.kind.ordinal(&cursor),
            source = self.source,
            conditions = conditions.join(" AND "),
        );
        (sql, parameters)
    }

    fn bound(&self, start: &Start, parameters: &mut Vec<String>) -> Option<String> {
        let mut parameter = |value: &str, of: &str| {
            parameters.push(value.to_owned());
            format!("${}::text::{of}", parameters.len())
        };
        let cursor = quote(&self.cursor.name);
        match start {
            Start::First => {
                let since = self.since.as_ref()?;
                Some(format!(
                    "{cursor} >= {}",
                    parameter(since, &self.cursor.sql_type)
                ))
            }
            Start::From(ordinal) => {
                let number = parameter(&ordinal.to_string(), "bigint");
                Some(format!("{cursor} >= {}", self.kind.of_ordinal(&number)))
            }
            Start::After { cursor: at, key } => {
                let mut names = vec![cursor.clone()];
                let mut values = vec![parameter(at, &self.cursor.sql_type)];
                for (column, value) in self.key.iter().zip(key) {
                    names.push(quote(&column.name));
                    values.push(parameter(value, &column.sql_type));
                }
                let after = format!("({}) > ({})", names.join(", "), values.join(", "));
                if !self.may_lack_key {
                    return Some(after);
                }
                // A row without a key compares with nothing, and must be seen to be refused.
                let lacks: Vec<_> = names[1..]
                    .iter()
                    .map(|name| format!("{name} IS NULL"))
                    .collect();
                Some(format!(
                    "({after} OR ({cursor} >= {} AND ({})))",
                    values[0],
                    lacks.join(" OR ")
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        let named = |name: &str, of: &str| Named {
            name: name.to_owned(),
            sql_type: of.to_owned(),
        };
        Plan {
            source: "\"s\".\"t\"".to_owned(),
            name: "\"s\".\"t\"".to_owned(),
            alias: "t".to_owned(),
            cursor: named("at", "timestamptz"),
            kind: Kind::Instant,
            key: vec![named("id", "int8")],
            may_lack_key: false,
            fields: vec![("id".to_owned(), "\"id\"".to_owned())],
            filter: Some("paid -- really".to_owned()),
            since: Some("2026-01-01".to_owned()),
            window: None,
        }
    }

    #[test]
    fn a_page_goes_on_after_cursor_and_key() {
        let start = Start::After {
            cursor: "2026".to_owned(),
            key: vec!["7".to_owned()],
        };
        let (sql, parameters) = plan().page(&start, 11);
        assert!(
            sql.contains("(\"at\", \"id\") > ($1::text::timestamptz, $2::text::int8)"),
            "{sql}"
        );
        assert!(sql.contains("ORDER BY \"at\", \"id\" LIMIT 11"), "{sql}");
        assert!(
            sql.ends_with("ORDER BY \"t\".\"at\", \"t\".\"id\""),
            "{sql}"
        );
        assert!(
            sql.contains("(paid -- really\n)"),
            "a comment hides nothing: {sql}"
        );
        assert_eq!(parameters, ["2026", "7"]);
    }

    #[test]
    fn rows_that_may_lack_a_key_are_never_hidden() {
        let start = Start::After {
            cursor: "2026".to_owned(),
            key: vec!["7".to_owned()],
        };
        let (sql, _) = Plan {
            may_lack_key: true,
            ..plan()
        }
        .page(&start, 11);
        assert!(
            sql.contains("OR (\"at\" >= $1::text::timestamptz AND (\"id\" IS NULL))"),
            "{sql}"
        );
    }

    #[test]
    fn a_first_page_begins_where_the_flow_says() {
        let (sql, parameters) = plan().page(&Start::First, 2);
        assert!(sql.contains("\"at\" >= $1::text::timestamptz"), "{sql}");
        assert_eq!(parameters, ["2026-01-01"]);
    }

    #[test]
    fn a_look_back_fits_its_cursor() {
        let span = Some(LookBack::Span(towpath_step_span::Span::seconds(30)));
        let number = Some(LookBack::Number(1000));
        let length = |window: Result<Option<Window>>| window.unwrap().unwrap().length;
        assert_eq!(length(Kind::Instant.window(span)), 30_000_000);
        assert_eq!(length(Kind::Integer.window(number)), 1000);
        assert!(Kind::Word.window(span).is_err());
        assert!(Kind::Integer.window(span).is_err());
        assert!(Kind::Instant.window(number).is_err());
    }
}
