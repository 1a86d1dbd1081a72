//! Declaring, counting and deleting, each on a channel that is thrown away.
//!
//! A refusal closes its channel, so the next thing gets a new one; what is refused does not keep
//! the rest from being done.

use std::collections::BTreeMap;

use lapin::options::{
    ExchangeBindOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, ExchangeUnbindOptions,
    QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ErrorKind};

use super::{answered, broker_error};
use crate::broker::topology::{
    Argument, Binding, Declaration, Destination, Exchange, ExchangeKind, Queue,
};
use crate::broker::{BrokerError, Depth};

/// What a person has to do about a queue or exchange that exists with other arguments.
#[derive(Debug, thiserror::Error)]
#[error(
    "it is there with other arguments than this version of Towpath gives it; stop what uses it, \
     let it run empty, delete it on the broker, and it is made anew"
)]
struct OtherArguments(#[source] lapin::Error);

pub(super) async fn declare(
    connection: &Connection,
    wanted: &[Declaration],
) -> Result<(), BrokerError> {
    let mut channel = open(connection).await?;
    let mut refused = None;
    for declaration in wanted {
        let done = match declaration {
            Declaration::Exchange(exchange) => declare_exchange(&channel, exchange).await,
            Declaration::Queue(queue) => declare_queue(&channel, queue).await,
            Declaration::Binding(binding) => bind(&channel, binding).await,
        };
        match done {
            Ok(()) => {}
            Err(error @ BrokerError::Refused { .. }) => {
                refused.get_or_insert(error);
                channel = open(connection).await?;
            }
            Err(error) => return Err(error),
        }
    }
    close(&channel).await;
    refused.map_or(Ok(()), Err)
}

pub(super) async fn unbind(connection: &Connection, stale: &[Binding]) -> Result<(), BrokerError> {
    let mut channel = open(connection).await?;
    for Binding {
        source,
        key,
        destination,
    } in stale
    {
        let what = || format!("remove the binding `{key}` of exchange `{source}`");
        let (from, key) = (source.as_str().into(), key.as_str().into());
        let done = match destination {
            Destination::Queue(queue) => {
                let unbind =
                    channel.queue_unbind(queue.as_str().into(), from, key, FieldTable::default());
                answered(what, unbind).await
            }
            Destination::Exchange(to) => {
                let options = ExchangeUnbindOptions::default();
                let unbind = channel.exchange_unbind(
                    to.as_str().into(),
                    from,
                    key,
                    options,
                    FieldTable::default(),
                );
                answered(what, unbind).await
            }
        };
        if is_not_found(&done) {
            channel = open(connection).await?;
        } else {
            done?;
        }
    }
    close(&channel).await;
    Ok(())
}

pub(super) async fn depths(
    connection: &Connection,
    queues: &[String],
) -> Result<BTreeMap<String, Depth>, BrokerError> {
    let mut channel = open(connection).await?;
    let mut depths = BTreeMap::new();
    for queue in queues {
        match depth(&channel, queue).await {
            Ok(depth) => {
                depths.insert(queue.clone(), depth);
            }
            refused @ Err(BrokerError::Refused { .. }) => {
                if !is_not_found(&refused) {
                    return Err(refused.expect_err("it was matched as an error"));
                }
                channel = open(connection).await?;
            }
            Err(error) => return Err(error),
        }
    }
    close(&channel).await;
    Ok(depths)
}

/// Quorum queues know no `if-empty`, so this looks first. What comes in between the look and the
/// deletion is lost; the caller has stopped the flow before.
pub(super) async fn delete_queue(
    connection: &Connection,
    queue: &str,
    even_if_full: bool,
) -> Result<(), BrokerError> {
    let channel = open(connection).await?;
    if !even_if_full {
        let depth = depth(&channel, queue).await;
        if is_not_found(&depth) {
            return Ok(());
        }
        let Depth { ready, consumers } = depth?;
        if ready > 0 || consumers > 0 {
            return Err(BrokerError::Refused {
                what: format!("delete queue `{queue}`"),
                source: format!("it holds {ready} deliveries and has {consumers} consumers").into(),
            });
        }
    }
    let delete = channel.queue_delete(queue.into(), QueueDeleteOptions::default());
    let done = answered(|| format!("delete queue `{queue}`"), delete).await;
    if is_not_found(&done) {
        Ok(())
    } else {
        done.map(|_| ())
    }
}

pub(super) async fn delete_exchange(
    connection: &Connection,
    exchange: &str,
) -> Result<(), BrokerError> {
    let channel = open(connection).await?;
    let delete = channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default());
    let done = answered(|| format!("delete exchange `{exchange}`"), delete).await;
    if is_not_found(&done) { Ok(()) } else { done }
}

async fn open(connection: &Connection) -> Result<Channel, BrokerError> {
    answered(|| "open a channel".into(), connection.create_channel()).await
}

async fn close(channel: &Channel) {
    if let Err(error) = channel.close(200, "done".into()).await {
        tracing::debug!(%error, "a channel was closed already");
    }
}

async fn declare_exchange(channel: &Channel, exchange: &Exchange) -> Result<(), BrokerError> {
    let kind = match exchange.kind {
        ExchangeKind::Fanout => lapin::ExchangeKind::Fanout,
        ExchangeKind::Direct => lapin::ExchangeKind::Direct,
        ExchangeKind::Topic => lapin::ExchangeKind::Topic,
    };
    let mut arguments = FieldTable::default();
    if let Some(alternate) = &exchange.alternate {
        arguments.insert("alternate-exchange".into(), text(alternate));
    }
    let options = ExchangeDeclareOptions {
        durable: true,
        ..ExchangeDeclareOptions::default()
    };
    let declare = channel.exchange_declare(exchange.name.as_str().into(), kind, options, arguments);
    answered(|| format!("declare exchange `{}`", exchange.name), declare)
        .await
        .map_err(explain)
}

async fn declare_queue(channel: &Channel, queue: &Queue) -> Result<(), BrokerError> {
    let mut arguments = FieldTable::default();
    for (name, value) in queue.arguments() {
        let value = match value {
            Argument::Number(number) => {
                AMQPValue::LongLongInt(i64::try_from(number).unwrap_or(i64::MAX))
            }
            Argument::Text(value) => text(&value),
            Argument::Flag(flag) => AMQPValue::Boolean(flag),
        };
        arguments.insert(name.into(), value);
    }
    let options = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    let declare = channel.queue_declare(queue.name.as_str().into(), options, arguments);
    let declared = answered(|| format!("declare queue `{}`", queue.name), declare).await;
    declared.map(|_| ()).map_err(explain)
}

async fn bind(channel: &Channel, binding: &Binding) -> Result<(), BrokerError> {
    let Binding {
        source,
        key,
        destination,
    } = binding;
    let (from, pattern) = (source.as_str().into(), key.as_str().into());
    let what = || format!("bind `{key}` of exchange `{source}`");
    match destination {
        Destination::Queue(queue) => {
            let options = QueueBindOptions::default();
            let to = queue.as_str().into();
            answered(
                what,
                channel.queue_bind(to, from, pattern, options, FieldTable::default()),
            )
            .await
        }
        Destination::Exchange(exchange) => {
            let options = ExchangeBindOptions::default();
            let to = exchange.as_str().into();
            answered(
                what,
                channel.exchange_bind(to, from, pattern, options, FieldTable::default()),
            )
            .await
        }
    }
}

async fn depth(channel: &Channel, queue: &str) -> Result<Depth, BrokerError> {
    let options = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let declare = channel.queue_declare(queue.into(), options, FieldTable::default());
    let found = answered(|| format!("count queue `{queue}`"), declare).await?;
    Ok(Depth {
        ready: u64::from(found.message_count()),
        consumers: u64::from(found.consumer_count()),
    })
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

/// Says what to do about arguments that differ.
fn explain(error: BrokerError) -> BrokerError {
    match error {
        BrokerError::Refused { what, source } => match source.downcast::<lapin::Error>() {
            Ok(source) if soft_error(&source) == Some(&AMQPSoftError::PRECONDITIONFAILED) => {
                BrokerError::Refused {
                    what,
                    source: Box::new(OtherArguments(*source)),
                }
            }
            Ok(source) => broker_error(|| what, *source),
            Err(source) => BrokerError::Refused { what, source },
        },
        other => other,
    }
}

fn soft_error(error: &lapin::Error) -> Option<&AMQPSoftError> {
    let ErrorKind::ProtocolError(error) = error.kind() else {
        return None;
    };
    match error.kind() {
        AMQPErrorKind::Soft(soft) => Some(soft),
        AMQPErrorKind::Hard(_) => None,
    }
}

fn is_not_found<T>(done: &Result<T, BrokerError>) -> bool {
    let Err(BrokerError::Refused { source, .. }) = done else {
        return false;
    };
    source.downcast_ref::<lapin::Error>().and_then(soft_error) == Some(&AMQPSoftError::NOTFOUND)
}
