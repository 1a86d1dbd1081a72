//! `towpath serve`

use std::path::PathBuf;

use clap::Args;
use tracing_subscriber::EnvFilter;

use super::problem::Problem;
use super::{Context, ExitStatus};
use crate::settings::{LogFormat, LogSettings, Settings};

/// Runs the control plane.
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// The file with the settings; `./towpath.yaml` or `/etc/towpath/towpath.yaml` if there is one
    #[arg(long, env = "TOWPATH_CONFIG", value_name = "PATH")]
    config: Option<PathBuf>,
}

pub(super) async fn run(command: &Serve, context: &Context) -> Result<ExitStatus, Problem> {
    let env = context
        .env
        .iter()
        .map(|(name, value)| (name.clone(), value.clone()));
    let settings = Settings::load(command.config.as_deref(), env)?;
    log(&settings.log, context)?;
    let docker_host = context
        .env
        .get("DOCKER_HOST")
        .filter(|host| !host.is_empty())
        .cloned();
    crate::serve::serve(&settings, docker_host).await?;
    Ok(ExitStatus::Done)
}

/// Sends logs to standard error.
fn log(settings: &LogSettings, context: &Context) -> Result<(), Problem> {
    // What the AMQP client says of a lost connection is said by us, once and in words.
    let quiet = if settings.level.contains("lapin") {
        ""
    } else {
        ",lapin=off"
    };
    let filter = EnvFilter::try_new(format!("{}{quiet}", settings.level)).map_err(|error| {
        Problem::could_not(format!(
            "the setting `log.level` cannot be `{}`",
            settings.level
        ))
        .because(&error)
        .hint("write `info`, `debug`, or `towpath=debug,info`")
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let colored = context.printer.colors_errors();
    match settings.format {
        LogFormat::Text => builder.with_ansi(colored).with_target(false).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}
