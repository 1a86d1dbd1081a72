//! What the two servers share: settings from the environment, listening, leaving.

use std::env;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use axum::Router;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::mischief::{Mischief, Rates};

/// Reads a setting from the environment, or takes the default.
pub fn setting<T: FromStr>(name: &str, default: T) -> Result<T> {
    match env::var(name) {
        Ok(text) => text
            .parse()
            .map_err(|_| anyhow!("`{name}` cannot be `{text}`")),
        Err(env::VarError::NotPresent) => Ok(default),
        Err(error) => Err(error).with_context(|| format!("`{name}`")),
    }
}

/// Reads what goes wrong from the environment: `DEMO_SEED`, and in parts of 1,000 requests
/// `DEMO_429`, `DEMO_500`, `DEMO_500_AFTER`, `DEMO_SLOW`; `DEMO_SLOW_MS` is how long a slow answer
/// takes, `DEMO_DELAY_MS` how long every answer does.
pub fn mischief() -> Result<Mischief> {
    let real = Rates::REAL;
    let milliseconds = |name: &str, default: Duration| -> Result<Duration> {
        let default = u64::try_from(default.as_millis())?;
        Ok(Duration::from_millis(setting(name, default)?))
    };
    let rates = Rates {
        too_many: setting("DEMO_429", real.too_many)?,
        error: setting("DEMO_500", real.error)?,
        error_after: setting("DEMO_500_AFTER", real.error_after)?,
        slow: setting("DEMO_SLOW", real.slow)?,
        slow_for: milliseconds("DEMO_SLOW_MS", real.slow_for)?,
        delay: milliseconds("DEMO_DELAY_MS", real.delay)?,
    };
    Ok(Mischief::new(rates, setting("DEMO_SEED", 1)?))
}

/// Serves until told to leave. Listens on `HOST` (everywhere, as a container must) and `PORT`.
pub fn run(name: &str, router: Router) -> Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let host: IpAddr = setting("HOST", IpAddr::V4(Ipv4Addr::UNSPECIFIED))?;
    let port: u16 = setting("PORT", 8080)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind((host, port))
            .await
            .with_context(|| format!("cannot listen on {host}:{port}"))?;
        tracing::info!("{name} listens on {}", listener.local_addr()?);
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        // Dropping the server cuts off what is in hand, as a real outage does.
        tokio::select! {
            // Cancel-safe: the program ends.
            served = axum::serve(listener, router) => served.context("cannot serve"),
            // Cancel-safe: a signal is only waited for.
            _ = terminate.recv() => Ok(()),
            // Cancel-safe: a signal is only waited for.
            _ = interrupt.recv() => Ok(()),
        }
    })
}
