//! What the program is told.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::engine::Engine;
use crate::fault::Kind;

/// Runs a flow on real Docker and real RabbitMQ, breaks everything around it on a schedule that the
/// seed gives, and counts what came out. The same seed is the same schedule. Ends with 0 if no
/// message is missing and none was done twice with `once: true`, with 1 otherwise.
#[derive(Debug, Parser)]
#[command(name = "./chaos", version)]
pub(crate) struct Options {
    /// What the schedule and the target's moods are made from
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// How many messages come in, evenly over the whole schedule
    #[arg(long, default_value_t = 10_000)]
    pub(crate) messages: u64,
    /// How many faults there are
    #[arg(long, default_value_t = 60)]
    pub(crate) faults: usize,
    /// The mean time from one fault to the next, in seconds
    #[arg(long, default_value_t = 6.0)]
    gap: f64,
    /// Only these kinds of faults, separated by commas (`--plan` shows them)
    #[arg(long, value_delimiter = ',', value_name = "KIND")]
    only: Vec<String>,
    /// Without these kinds of faults
    #[arg(long, value_delimiter = ',', value_name = "KIND")]
    without: Vec<String>,
    /// Leaves `once: true` out of the flow: both branches are at-least-once
    #[arg(long)]
    pub(crate) plain: bool,
    /// Shows the schedule, and does nothing
    #[arg(long)]
    pub(crate) plan: bool,
    /// Writes the results as JSON, too
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Where logs and answers are kept if the run fails
    #[arg(long, value_name = "FOLDER")]
    evidence: Option<PathBuf>,
    /// The tag of the images of the steps
    #[arg(long, default_value = "test")]
    pub(crate) tag: String,
    /// A command that starts the engine that everything runs on, if that engine may be ended and
    /// started again; `./chaos` sets it
    #[arg(long, value_name = "PROGRAM", env = "TOWPATH_TEST_CHAOS_ENGINE")]
    engine: Option<PathBuf>,
}

impl Options {
    /// The mean time from one fault to the next.
    pub(crate) fn gap(&self) -> Duration {
        Duration::try_from_secs_f64(self.gap).unwrap_or(Duration::from_secs(5))
    }

    /// The engine, if it may be ended and started again.
    pub(crate) fn engine(&self) -> Option<Engine> {
        self.engine.clone().map(Engine::new)
    }

    /// Where logs and answers are kept.
    pub(crate) fn evidence(&self) -> PathBuf {
        self.evidence
            .clone()
            .unwrap_or_else(|| PathBuf::from(format!(".towpath-chaos/evidence-{}", self.seed)))
    }

    /// The kinds of faults to make.
    pub(crate) fn kinds(&self) -> Result<Vec<Kind>, String> {
        for name in self.only.iter().chain(&self.without) {
            if !Kind::ALL.iter().any(|kind| kind.name() == name) {
                let known: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
                return Err(format!(
                    "`{name}` is not a kind of fault; there are {}",
                    known.join(", ")
                ));
            }
        }
        let named = |list: &[String], kind: Kind| list.iter().any(|name| kind.name() == name);
        let kinds: Vec<Kind> = Kind::ALL
            .into_iter()
            .filter(|kind| self.only.is_empty() || named(&self.only, *kind))
            .filter(|kind| !named(&self.without, *kind))
            .filter(|kind| !kind.needs_own_engine() || self.engine.is_some())
            .collect();
        if kinds.is_empty() && self.faults > 0 {
            return Err("no kind of fault is left".to_owned());
        }
        Ok(kinds)
    }
}
