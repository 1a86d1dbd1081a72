//! Reads one page.

use std::pin::pin;
use std::time::Duration;

use futures_util::TryStreamExt;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use towpath_step::{Result, StepError};
use towpath_step_postgres::explain;

use crate::plan::Plan;
use crate::progress::{Row, Start};

/// About the most memory that a page may take: beyond it the page ends, and the next ones are
/// smaller. Bodies are at most 1 MiB each, so it is exceeded by little.
const PAGE_BYTES_MAX: usize = 8 << 20;

/// A page.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) rows: Vec<Row>,
    /// More rows follow.
    pub(crate) has_more: bool,
    /// It ended because of its size.
    pub(crate) was_cut: bool,
}

/// Returns the database's clock, in microseconds since 1970.
pub(crate) async fn now(client: &Client) -> Result<i64> {
    const NOW: &str = "SELECT (extract(epoch FROM statement_timestamp()) * 1000000)::bigint";
    let row = client
        .query_typed_one(NOW, &[])
        .await
        .map_err(|error| explain(&error))?;
    Ok(row.get(0))
}

/// Reads a page of at most `limit` rows.
pub(crate) async fn page(
    client: &Client,
    plan: &Plan,
    start: &Start,
    limit: u32,
    timeout: Duration,
) -> Result<Page> {
    client
        .batch_execute(&begin(timeout))
        .await
        .map_err(|error| explain(&error))?;
    let read = read(client, plan, start, limit).await;
    // After an error this ends the transaction as well.
    let ended = client.batch_execute("COMMIT").await;
    let page = read?;
    ended.map_err(|error| explain(&error))?;
    Ok(page)
}

/// The settings hold for the transaction only, so that a pool in between may hand the connection
/// to somebody else. They decide how values are written.
fn begin(timeout: Duration) -> String {
    format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; \
         SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO, YMD'; \
         SET LOCAL IntervalStyle = 'iso_8601'; SET LOCAL extra_float_digits = 3; \
         SET LOCAL bytea_output = 'hex'; SET LOCAL statement_timeout = {}",
        timeout.as_millis().clamp(1, i32::MAX as u128)
    )
}

async fn read(client: &Client, plan: &Plan, start: &Start, limit: u32) -> Result<Page> {
    // One row more than is wanted says whether there are more, and whether it is another one.
    let (sql, parameters) = plan.page(start, limit.saturating_add(1));
    let parameters = parameters.into_iter().map(|text| (text, Type::TEXT));
    let failed = |error: tokio_postgres::Error| {
        let told = explain(&error).context("the next page cannot be read");
        // Nobody can write in this transaction, on whatever server it is.
        let writes = error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION);
        if writes { told.into_permanent() } else { told }
    };
    let rows = client
        .query_typed_raw(&sql, parameters)
        .await
        .map_err(failed)?;
    let mut rows = pin!(rows);
    let mut page = Page {
        rows: Vec::new(),
        has_more: false,
        was_cut: false,
    };
    let mut bytes = 0;
    while let Some(row) = rows.try_next().await.map_err(failed)? {
        let row = take(&row, plan)?;
        bytes += row.body.len();
        if let Some(last) = page.rows.last()
            && last.cursor == row.cursor
            && last.key == row.key
        {
            return Err(StepError::permanent(format!(
                "two rows have the key `{}` and the cursor `{}`: `key` has to name columns that tell all rows apart",
                row.key_text(),
                row.cursor
            )));
        }
        page.rows.push(row);
        if bytes > PAGE_BYTES_MAX && page.rows.len() > 1 {
            page.was_cut = true;
            break;
        }
    }
    if page.was_cut || page.rows.len() > limit as usize {
        page.has_more = true;
        page.rows.pop();
    }
    Ok(page)
}

fn take(row: &tokio_postgres::Row, plan: &Plan) -> Result<Row> {
    let unreadable = |error: tokio_postgres::Error| explain(&error).into_permanent();
    let cursor: String = row.try_get(1).map_err(unreadable)?;
    let mut key = Vec::with_capacity(plan.key_length());
    for index in 0..plan.key_length() {
        let part: Option<String> = row.try_get(2 + index).map_err(unreadable)?;
        key.push(part.ok_or_else(|| {
            StepError::permanent(format!(
                "a row with the cursor `{cursor}` has a key that is null: `key` has to name columns that are never null"
            ))
        })?);
    }
    Ok(Row {
        cursor,
        key,
        ordinal: row.try_get(2 + plan.key_length()).map_err(unreadable)?,
        body: row.try_get(0).map_err(unreadable)?,
    })
}
