//! The handler.

use serde_json::value::RawValue;
use tokio::sync::Mutex;
use towpath_step::{Context, Result, ResultExt, StepError, Tick, tracing};
use towpath_step_json::compact;
use towpath_step_postgres::{Server, Session, Settings};

use crate::config::Config;
use crate::page::{now, page};
use crate::plan::{Plan, plan};
use crate::progress::{Checkpoint, Progress, Row};

/// The most rows of a page.
const PAGE_ROWS_MAX: u32 = 10_000;

/// What is kept between runs.
#[derive(Debug)]
pub struct State {
    server: Server,
    /// The connection of the last run, if it ended well.
    session: Mutex<Option<Session>>,
}

/// Reads the configuration. Nothing is connected yet: a database that is away is no mistake in it.
pub async fn setup(config: &Config) -> Result<State> {
    if config.table.is_some() == config.query.is_some() {
        return Err(StepError::permanent(
            "either `table` or `query` has to be set, not both",
        ));
    }
    let server = Server::new(&Settings {
        url: &config.url,
        password: config.password.as_deref(),
        certificates: config.certificates.as_deref(),
        application: "towpath postgres-poll",
    })
    .permanent()?;
    Ok(State {
        server,
        session: Mutex::new(None),
    })
}

/// Brings in what is new.
pub async fn poll(tick: Tick<Checkpoint>, ctx: &Context<Config, State>) -> Result<()> {
    let mut kept = ctx.state.session.lock().await;
    let (session, plan) = begin(kept.take(), ctx).await?;
    walk(tick.checkpoint, &session, &plan, ctx).await?;
    *kept = Some(session);
    Ok(())
}

/// Connects, unless the connection of the last run still works, and looks at what there is.
async fn begin(kept: Option<Session>, ctx: &Context<Config, State>) -> Result<(Session, Plan)> {
    if let Some(session) = kept {
        match plan(&session.client, &ctx.config).await {
            Ok(plan) => return Ok((session, plan)),
            Err(_) if session.client.is_closed() => {}
            Err(error) => return Err(error),
        }
    }
    let connected = ctx.state.server.connect().await;
    let session = connected.map_err(towpath_step_postgres::Unreachable::into_step_error)?;
    let plan = plan(&session.client, &ctx.config).await?;
    Ok((session, plan))
}

async fn walk(
    checkpoint: Option<Checkpoint>,
    session: &Session,
    plan: &Plan,
    ctx: &Context<Config, State>,
) -> Result<()> {
    let client = &session.client;
    let timeout = ctx.config.statement_timeout.duration();
    let rows_max = ctx.config.page.get().min(PAGE_ROWS_MAX);
    if let Some(checkpoint) = &checkpoint
        && checkpoint.of != plan.of()
    {
        tracing::warn!(
            "the position that was saved is one of {}, and {} is read now: it is read from its beginning",
            checkpoint.of,
            plan.of()
        );
    }
    let mut progress = Progress::new(checkpoint, plan.of(), plan.window, now(client).await?);
    let mut start = progress.start();
    let mut limit = rows_max;
    let mut emitted = 0_u64;
    loop {
        let page = page(client, plan, &start, limit, timeout).await?;
        for row in &page.rows {
            emitted += u64::from(bring_in(row, &mut progress, ctx).await?);
        }
        let Some(last) = page.rows.last().filter(|_| page.has_more) else {
            break;
        };
        start = last.after();
        limit = next_limit(limit, rows_max, page.was_cut.then_some(page.rows.len()));
        if let Some(checkpoint) = progress.midway() {
            ctx.checkpoint(&checkpoint).await?;
            if ctx.is_draining() {
                tracing::info!("brought in {emitted} new rows, and leaves the rest");
                return Ok(());
            }
        }
    }
    if progress.forgot() {
        tracing::warn!(
            "more rows were written within `look_back` than are remembered: some come again, under the same ids"
        );
    }
    if let Some(checkpoint) = progress.end() {
        ctx.checkpoint(&checkpoint).await?;
    }
    tracing::info!("brought in {emitted} new rows");
    Ok(())
}

/// A page that was cut because of its size makes the next ones as small; then they grow again.
fn next_limit(limit: u32, max: u32, cut_at: Option<usize>) -> u32 {
    match cut_at {
        Some(rows) => u32::try_from(rows).unwrap_or(max).clamp(1, max),
        None => limit.saturating_mul(2).min(max),
    }
}

/// Emits a row if it is new, and says whether it was.
async fn bring_in(
    row: &Row,
    progress: &mut Progress,
    ctx: &Context<Config, State>,
) -> Result<bool> {
    let Some(source_id) = progress.take(row) else {
        return Ok(false);
    };
    let place = || format!("the row `{source_id}` cannot be brought in");
    let body: &RawValue = serde_json::from_str(&row.body)
        .permanent()
        .with_context(place)?;
    // Values of type `json` are as they were written, with their lines.
    let body = compact(body);
    let key = row.key_text();
    ctx.output(&body)
        .source_id(&source_id)
        .key(&key)
        .send()
        .await
        .with_context(place)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_shrink_to_what_fits_and_grow_again() {
        assert_eq!(next_limit(1000, 1000, None), 1000);
        assert_eq!(next_limit(1000, 1000, Some(8)), 8);
        assert_eq!(next_limit(8, 1000, None), 16);
        assert_eq!(next_limit(8, 1000, Some(0)), 1);
    }
}
