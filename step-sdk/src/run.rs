//! What a step does when it is started.

use std::io::{self, Write};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use towpath_protocol::CONTRACT;
use towpath_protocol::frame::ToStep;
use towpath_protocol::manifest::Kind;

use crate::error::{Result, ResultExt, StepError};
use crate::handler::{Handler, Shared};
use crate::input::decode;
use crate::link::{Greeting, Link};
use crate::outbox::Outbox;
use crate::panics::Guarded;
use crate::step::{Setup, Step};
use crate::{local, logs, pipes, serve, write};

/// The exit code of a step that refused its configuration, or that could not start.
const CANNOT: u8 = 2;

/// Does what the command line says. Without one it serves the agent that started it.
pub(crate) fn main<H: Handler, P: Setup<H::Config, H::State>>(step: Step<H, P>) -> ExitCode {
    let mut words = std::env::args().skip(1);
    let command = words.next();
    let result = match command.as_deref() {
        Some("manifest") => print_manifest(&step),
        Some("run-local") => {
            local::Options::parse(words).and_then(|options| local::run(step, &options))
        }
        Some("help" | "--help" | "-h") => print(&help(&step)),
        Some("--version" | "-V") => print(&format!(
            "{} {}",
            step.description.name, step.description.version
        )),
        _ => match pipes::open() {
            Ok(pipes) => serve_agent(step, pipes, std::env::var("RUST_LOG").ok().as_deref()),
            Err(error) => Err(StepError::from_dyn(&error)
                .context(format!("no agent started this program\n\n{}", help(&step)))),
        },
    };
    result.unwrap_or_else(|error| {
        let mut text = format!("error: {}\n", error.reason());
        for cause in error.chain() {
            text.push_str("  cause: ");
            text.push_str(cause);
            text.push('\n');
        }
        drop(io::stderr().write_all(text.as_bytes()));
        ExitCode::from(CANNOT)
    })
}

fn help<H: Handler, P>(step: &Step<H, P>) -> String {
    let description = &step.description;
    let input = match step.handler.kind() {
        Kind::Poll => "fires it once",
        Kind::Action | Kind::Webhook => "handles each line of standard input as a body",
    };
    format!(
        "{name} {version}: a step of a Towpath flow. {text}\n\n\
         An agent starts it in a container and speaks to it through descriptors 3 and 4.\n\
         Without one:\n\n  \
           {name} manifest    prints what the step is, takes and gives, as JSON\n  \
           {name} run-local [--config with.json] [--checkpoint file.json] [--full]\n                \
           {input}, and prints the outputs\n\n\
         `towpath_step::testing` runs its handler in a test.\n",
        name = description.name,
        version = description.version,
        text = description.text,
    )
}

fn print_manifest<H: Handler, P>(step: &Step<H, P>) -> Result<ExitCode> {
    print(&serde_json::to_string_pretty(&step.manifest())?)
}

fn print(text: &str) -> Result<ExitCode> {
    writeln!(io::stdout(), "{}", text.trim_end()).context("cannot write to standard output")?;
    Ok(ExitCode::SUCCESS)
}

fn serve_agent<H: Handler, P: Setup<H::Config, H::State>>(
    step: Step<H, P>,
    (reads, writes): (std::fs::File, std::fs::File),
    log_filter: Option<&str>,
) -> Result<ExitCode> {
    let outbox = Arc::new(Outbox::default());
    // The first subscriber stays, if the step has installed one of its own.
    drop(tracing::dispatcher::set_global_default(logs::subscriber(
        &outbox, log_filter,
    )));
    let mut input = pipes::read(reads)?;
    let writer = pipes::write(writes, Arc::clone(&outbox))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let tasks = tokio::task::LocalSet::new();
    let code = tasks.block_on(&runtime, attend(step, &outbox, &mut input));
    outbox.close();
    drop(writer.join());
    // Blocking work of a handler that was cancelled must not keep the process.
    runtime.shutdown_background();
    Ok(code)
}

/// Answers the agent's hello and serves it until the end.
pub(crate) async fn attend<H: Handler, P: Setup<H::Config, H::State>>(
    step: Step<H, P>,
    outbox: &Arc<Outbox>,
    input: &mut mpsc::Receiver<Vec<u8>>,
) -> ExitCode {
    let Some(first) = input.recv().await else {
        return ExitCode::SUCCESS;
    };
    let line = first
        .split(|byte| *byte == b'\n')
        .next()
        .unwrap_or_default();
    let rest = first.get(line.len() + 1..).unwrap_or_default();
    let handler = Rc::clone(&step.handler);
    let mut frame = Vec::new();
    match prepare(step, line, outbox).await {
        Ok(shared) => {
            write::ready(&mut frame);
            outbox.push(&frame);
            serve::serve(handler, shared, rest, input).await;
            ExitCode::SUCCESS
        }
        Err(error) => {
            write::refused(&mut frame, &error.to_string());
            outbox.push(&frame);
            ExitCode::from(CANNOT)
        }
    }
}

async fn prepare<H: Handler, P: Setup<H::Config, H::State>>(
    step: Step<H, P>,
    hello: &[u8],
    outbox: &Arc<Outbox>,
) -> Result<Shared<H::Config, H::State>> {
    let (greeting, config) = greeting(hello)?;
    let config = Arc::new(configuration::<H::Config>(&config)?);
    let state = Guarded::new(None, Box::pin(step.setup.make(Arc::clone(&config)))).await??;
    let has_checkpoints = step.handler.kind() == Kind::Poll;
    let ports = step.description.port_names();
    let link = Link::new(greeting, Arc::clone(outbox), ports, has_checkpoints);
    Ok(Shared {
        config,
        state: Arc::new(state),
        link: Arc::new(link),
    })
}

/// Reads the configuration. To say nothing is `null` for a step that takes none, and an empty object
/// for a step whose every key may be left out; an agent does not know which.
fn configuration<C: DeserializeOwned>(config: &RawValue) -> Result<C> {
    decode(config, "`with`").or_else(|error| match config.get() {
        "{}" => decode(RawValue::NULL, "`with`").map_err(|_| error),
        "null" => serde_json::from_str("{}").map_err(|_| error),
        _ => Err(error),
    })
}

/// Reads the agent's hello.
fn greeting(line: &[u8]) -> Result<(Greeting, Box<RawValue>)> {
    let frame: ToStep<'_> =
        serde_json::from_slice(line).context("the agent's first frame is not understood")?;
    let ToStep::Hello(hello) = frame else {
        return Err(StepError::permanent(
            "the agent's first frame is not `hello`",
        ));
    };
    if hello.contract != CONTRACT {
        return Err(StepError::permanent(format!(
            "the agent speaks version {} of the step protocol, and this step version {CONTRACT}",
            hello.contract
        )));
    }
    let greeting = Greeting {
        flow: hello.flow.into_owned(),
        step: hello.step.into_owned(),
        replica: hello.replica,
        timeout_ms: hello.timeout_ms,
        body_bytes_max: hello.body_bytes_max,
    };
    Ok((greeting, hello.config.to_owned()))
}
