//! The command line: one file a command; only `printer` prints.
//!
//! # Invariants
//!
//! - Everything but `check`, `serve`, `step` and `completions` goes over HTTP.
//! - No value of a secret is an argument: it would be in the list of processes.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};

mod apply;
mod check;
mod checkpoint;
mod choices;
mod client;
mod completions;
mod dead;
mod delete;
mod drain;
mod file;
mod list;
mod logs;
mod plan;
mod printer;
mod problem;
mod retries;
mod run;
mod runs;
mod scale;
mod secret;
mod serve;
mod status;
mod step;
mod verbs;
mod versions;
mod webhook;
mod why;
mod words;

#[cfg(test)]
mod tests;

pub use problem::ExitStatus;

use client::{Client, TokenSource};
use printer::{Color, Output, Printer};
use problem::Problem;

/// Runs integration flows: one trigger and its actions, each step a container, joined by durable
/// queues.
#[derive(Debug, Parser)]
#[command(
    name = "towpath",
    version,
    propagate_version = true,
    max_term_width = 100
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// The control plane
    #[arg(
        long,
        global = true,
        env = "TOWPATH_SERVER",
        value_name = "URL",
        default_value = "http://127.0.0.1:7700"
    )]
    server: String,
    /// The token of the control plane
    #[arg(
        long,
        global = true,
        env = "TOWPATH_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    token: Option<String>,
    /// A file that holds the token
    #[arg(long, global = true, env = "TOWPATH_TOKEN_FILE", value_name = "PATH")]
    token_file: Option<PathBuf>,
    /// The data directory of a control plane on this machine, which holds its token
    #[arg(
        long,
        global = true,
        env = "TOWPATH_DATA",
        value_name = "PATH",
        default_value = ".towpath"
    )]
    data: PathBuf,
    /// How answers are printed
    #[arg(long, global = true, env = "TOWPATH_OUTPUT", value_enum, default_value_t = Output::Table)]
    output: Output,
    /// When there are colours
    #[arg(long, global = true, env = "TOWPATH_COLOR", value_enum, default_value_t = Color::Auto)]
    color: Color,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the control plane
    Serve(serve::Serve),
    /// Checks a flow file
    Check(check::Check),
    /// Shows what applying a flow file would do, and why
    Plan(plan::Plan),
    /// Makes a flow file the newest version of its flow
    Apply(apply::Apply),
    /// Lists the versions of a flow
    Versions(versions::Versions),
    /// Shows what is different between two versions of a flow
    Diff(versions::Diff),
    /// Goes back to an earlier version of a flow
    Rollback(versions::Rollback),
    /// Lists all flows
    List,
    /// Shows how flows are
    Status(status::Status),
    /// Shows the logs of a flow's steps
    Logs(logs::Logs),
    /// Says how many replicas a step should have
    Scale(scale::Scale),
    /// Fires a flow's trigger now
    Run(run::Run),
    /// Shows and changes where a flow's trigger is in its source
    #[command(subcommand)]
    Checkpoint(checkpoint::Checkpoint),
    /// Lists a flow's runs, says what came of one, or cancels it
    #[command(subcommand)]
    Runs(runs::Runs),
    /// A flow or a step stops consuming; containers and messages stay
    Pause(verbs::Target),
    /// Undoes pause, drain and stop
    Resume(verbs::Target),
    /// A flow or a step finishes what it has, and gets nothing new
    Drain(drain::Drain),
    /// Removes the containers of a flow or a step; messages stay
    Stop(verbs::Target),
    /// Forgets a flow and removes all it made
    Delete(delete::Delete),
    /// Shows, edits, replays and discards messages that a step gave up on
    #[command(subcommand)]
    Dead(dead::Dead),
    /// Says where a message is, what was tried, and what happens next
    Why(why::Why),
    /// Lists messages that wait to be tried again, brings them back, or gives them up
    #[command(subcommand)]
    Retries(retries::Retries),
    /// Sets, lists and deletes secrets
    #[command(subcommand)]
    Secret(secret::Secret),
    /// Gives webhooks new URLs
    #[command(subcommand)]
    Webhook(webhook::Webhook),
    /// Packs steps into images, and shows what they say of themselves
    #[command(subcommand)]
    Step(step::Step),
    /// Prints a shell's completions
    Completions(completions::Completions),
}

/// What a command has.
struct Context {
    printer: Printer,
    client: Result<Client, Problem>,
    /// The environment of whoever runs it.
    env: BTreeMap<String, String>,
}

impl Context {
    fn client(&self) -> Result<&Client, Problem> {
        self.client.as_ref().map_err(|problem| {
            let again = Problem::could_not(&*problem.message);
            Problem {
                hint: problem.hint.clone(),
                causes: problem.causes.clone(),
                ..again
            }
        })
    }
}

/// The definition of the command line, for its tests.
pub fn definition() -> clap::Command {
    Cli::command()
}

/// Runs a command with the environment of whoever runs it.
pub fn main(
    arguments: impl IntoIterator<Item = OsString>,
    env: BTreeMap<String, String>,
) -> ExitStatus {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers; the rest is a mistake that says what to do.
            drop(error.print());
            return if error.use_stderr() {
                ExitStatus::CouldNot
            } else {
                ExitStatus::Done
            };
        }
    };
    let no_color = env.get("NO_COLOR").is_some_and(|value| !value.is_empty());
    let printer = Printer::new(cli.global.output, cli.global.color, no_color);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            return printer.problem(&Problem::could_not("cannot start").because(&error));
        }
    };
    let token = TokenSource {
        token: cli.global.token,
        file: cli.global.token_file,
        data: cli.global.data,
    };
    let client = Client::new(&cli.global.server, &token);
    let context = Context {
        printer,
        client,
        env,
    };
    match runtime.block_on(dispatch(cli.command, &context)) {
        Ok(status) => status,
        Err(problem) => printer.problem(&problem),
    }
}

async fn dispatch(command: Command, context: &Context) -> Result<ExitStatus, Problem> {
    match command {
        Command::Serve(command) => serve::run(&command, context).await,
        Command::Check(command) => check::run(&command, context).await,
        Command::Plan(command) => plan::run(&command, context).await,
        Command::Apply(command) => apply::run(&command, context).await,
        Command::Versions(command) => versions::list(&command, context).await,
        Command::Diff(command) => versions::diff(&command, context).await,
        Command::Rollback(command) => versions::rollback(&command, context).await,
        Command::List => list::run(context).await,
        Command::Status(command) => status::run(&command, context).await,
        Command::Logs(command) => logs::run(&command, context).await,
        Command::Scale(command) => scale::run(&command, context).await,
        Command::Run(command) => run::run(&command, context).await,
        Command::Checkpoint(command) => checkpoint::run(command, context).await,
        Command::Runs(command) => runs::run(&command, context).await,
        Command::Pause(target) => verbs::run("pause", &target, context).await,
        Command::Resume(target) => verbs::run("resume", &target, context).await,
        Command::Drain(command) => drain::run(&command, context).await,
        Command::Stop(target) => verbs::run("stop", &target, context).await,
        Command::Delete(command) => delete::run(&command, context).await,
        Command::Dead(command) => dead::run(&command, context).await,
        Command::Why(command) => why::run(&command, context).await,
        Command::Retries(command) => retries::run(&command, context).await,
        Command::Secret(command) => secret::run(&command, context).await,
        Command::Webhook(command) => webhook::run(&command, context).await,
        Command::Step(command) => step::run(&command, context).await,
        Command::Completions(command) => Ok(completions::run(&command, context)),
    }
}
