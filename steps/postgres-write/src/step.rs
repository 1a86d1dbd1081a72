//! The handler.

use std::time::Duration;

use rand::Rng;
use serde_json::value::RawValue;
use tokio::sync::Mutex;
use towpath_step::{Context, Result, ResultExt, StepError, tracing};
use towpath_step_postgres::{
    Meaning, Server, Session, Settings, TableName, Unreachable, explain, find_table, meaning,
};

use crate::config::{Config, Emit};
use crate::record::{NoRecord, Record, Target, record};
use crate::transaction::{Failed, Transaction};

/// The most messages of a batch: enough for the round trips not to matter, and few enough for one
/// that fails to be found soon.
pub const BATCH_MAX: usize = 500;

/// How often a batch is tried here that was in another transaction's way, before its messages are
/// given back: each that is given back loses one of its attempts.
const TRIES: u32 = 4;

/// The wait after the first such try; each one after is twice as long, and up to twice of that by
/// chance, so that two replicas do not meet again.
const FIRST_WAIT: Duration = Duration::from_millis(25);

/// What is kept between batches.
#[derive(Debug)]
pub struct State {
    server: Server,
    table: TableName,
    /// The connection of the last batch, if it ended well.
    kept: Mutex<Option<Kept>>,
}

#[derive(Debug)]
struct Kept {
    session: Session,
    target: Target,
}

/// Reads the configuration. Nothing is connected yet: a database that is away is no mistake in it.
pub async fn setup(config: &Config) -> Result<State> {
    let server = Server::new(&Settings {
        url: &config.url,
        password: config.password.as_deref(),
        certificates: config.certificates.as_deref(),
        application: "towpath postgres-write",
    })
    .permanent()?;
    Ok(State {
        server,
        table: config.table.parse().permanent()?,
        kept: Mutex::new(None),
    })
}

/// Writes a batch, and says what became of each message.
pub async fn write(
    bodies: Vec<Box<RawValue>>,
    ctx: &Context<Config, State>,
) -> Result<Vec<Result<Option<Box<RawValue>>>>> {
    let mut place = ctx.state.kept.lock().await;
    let mut kept = match place.take().filter(|kept| !kept.session.client.is_closed()) {
        Some(kept) => kept,
        None => connect(ctx).await?,
    };
    let (mut records, mut failed) = read(&bodies, &kept.target, &ctx.config);
    if failed
        .iter()
        .any(|(_, why)| matches!(why, NoRecord::Unknown(_)))
    {
        // Perhaps it has become one since the table was looked at.
        kept.target = look(&kept.session, ctx).await?;
        (records, failed) = read(&bodies, &kept.target, &ctx.config);
    }
    let mut failed: Failed = failed
        .into_iter()
        .map(|(index, why)| (index, why.into_error()))
        .collect();
    if !records.is_empty() {
        failed.extend(transact(&kept, &records, &ctx.config).await?);
    }
    *place = Some(kept);
    Ok(fates(bodies, failed, ctx.config.emit))
}

async fn connect(ctx: &Context<Config, State>) -> Result<Kept> {
    let session = ctx
        .state
        .server
        .connect()
        .await
        .map_err(Unreachable::into_step_error)?;
    let target = look(&session, ctx).await?;
    Ok(Kept { session, target })
}

async fn look(session: &Session, ctx: &Context<Config, State>) -> Result<Target> {
    let table = find_table(&session.client, &ctx.state.table).await?;
    Target::new(table, &ctx.config)
}

fn read<'a>(
    bodies: &'a [Box<RawValue>],
    target: &Target,
    config: &Config,
) -> (Vec<Record<'a>>, Vec<(usize, NoRecord)>) {
    let mut records = Vec::with_capacity(bodies.len());
    let mut failed = Vec::new();
    for (index, body) in bodies.iter().enumerate() {
        match record(index, body, target, config) {
            Ok(record) => records.push(record),
            Err(why) => failed.push((index, why)),
        }
    }
    (records, failed)
}

/// Writes records, again and again while another transaction is in the way.
async fn transact(kept: &Kept, records: &[Record<'_>], config: &Config) -> Result<Failed> {
    let client = &kept.session.client;
    let mut wait = FIRST_WAIT;
    for number in 1.. {
        let transaction = Transaction {
            client,
            target: &kept.target,
            config,
        };
        let error = match transaction.write(records).await {
            Ok(failed) => return Ok(failed),
            Err(error) => error,
        };
        let is_in_the_way = error
            .code()
            .is_some_and(|code| ["40001", "40P01"].contains(&code.code()));
        if !is_in_the_way || number == TRIES || client.batch_execute("ROLLBACK").await.is_err() {
            let doing = match meaning(&error) {
                Meaning::Passing => "the batch was not written",
                Meaning::Data | Meaning::Setup => "the table cannot be written",
            };
            return Err(explain(&error).context(doing));
        }
        tracing::debug!("writing again, because another transaction was in the way: {error}");
        tokio::time::sleep(wait + rand::rng().random_range(Duration::ZERO..wait)).await;
        wait *= 2;
    }
    unreachable!("the last try returns");
}

fn fates(
    bodies: Vec<Box<RawValue>>,
    failed: Failed,
    emit: Emit,
) -> Vec<Result<Option<Box<RawValue>>>> {
    let mut fates: Vec<Result<Option<Box<RawValue>>, StepError>> = bodies
        .into_iter()
        .map(|body| Ok((emit == Emit::Input).then_some(body)))
        .collect();
    for (index, error) in failed {
        fates[index] = Err(error);
    }
    fates
}
