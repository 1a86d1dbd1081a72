//! What a step does when it is started.

use std::io::Write;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;

use crate::handler::{Handler, Shared};
use crate::input::decode;
use crate::link::{Cancelled, Link};
use crate::outbox::Outbox;
use crate::panics::Guarded;
use crate::step::{Setup, Step};
use crate::{logs, pipes, serve, write};

/// The exit code of a step that refused its configuration, or was started without an agent.
const CANNOT: u8 = 2;

pub(crate) fn main<H: Handler, P: Setup<H::Config, H::State>>(step: Step<H, P>) -> ExitCode {
    let command = std::env::args().nth(1);
    match command.as_deref() {
        Some("manifest") => print_manifest(&step),
        _ => serve_agent(step),
    }
}

fn print_manifest<H: Handler, P>(step: &Step<H, P>) -> ExitCode {
    let text = serde_json::to_string_pretty(&step.manifest()).expect("a manifest is JSON");
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(CANNOT),
    }
}

fn serve_agent<H: Handler, P: Setup<H::Config, H::State>>(step: Step<H, P>) -> ExitCode {
    let Ok((reads, writes)) = pipes::open() else {
        drop(writeln!(std::io::stderr(), "no agent"));
        return ExitCode::from(CANNOT);
    };
    let outbox = Arc::new(Outbox::default());
    let cancelled = Arc::new(Cancelled::default());
    let (Ok(mut input), Ok(writer)) = (
        pipes::read(reads, Arc::clone(&cancelled)),
        pipes::write(writes, Arc::clone(&outbox)),
    ) else {
        return ExitCode::from(CANNOT);
    };
    logs::install(&outbox);
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(_) => return ExitCode::from(CANNOT),
    };
    let local = tokio::task::LocalSet::new();
    let code = local.block_on(&runtime, attend(step, &outbox, cancelled, &mut input));
    outbox.flush();
    outbox.close();
    drop(writer.join());
    code
}

/// Answers the agent's hello and serves it.
async fn attend<H: Handler, P: Setup<H::Config, H::State>>(
    step: Step<H, P>,
    outbox: &Arc<Outbox>,
    cancelled: Arc<Cancelled>,
    input: &mut tokio::sync::mpsc::Receiver<Vec<u8>>,
) -> ExitCode {
    let Some(chunk) = input.recv().await else {
        return ExitCode::SUCCESS;
    };
    let line = chunk
        .split(|byte| *byte == b'\n')
        .next()
        .unwrap_or_default();
    let mut frame = Vec::new();
    let made: crate::Result<_> = async {
        let (hello, config) = serve::greeting(line)?;
        let config = Arc::new(decode::<H::Config>(&config, "`with`")?);
        let state = step.setup.make(Arc::clone(&config));
        let state = Guarded::new(
            towpath_protocol::MessageId::from_bytes([0; 16]),
            Box::pin(state),
        );
        let state = Arc::new(state.await.and_then(|state| state)?);
        let has_checkpoints = step.handler.kind() == towpath_protocol::manifest::Kind::Poll;
        let link = Link::new(
            hello,
            Arc::clone(outbox),
            step.description.port_names(),
            has_checkpoints,
            cancelled,
        );
        Ok(Shared {
            config,
            state,
            link: Arc::new(link),
        })
    }
    .await;
    let shared = match made {
        Ok(shared) => shared,
        Err(error) => {
            write::refused(&mut frame, &error.to_string());
            outbox.push(&frame);
            return ExitCode::from(CANNOT);
        }
    };
    write::ready(&mut frame);
    outbox.push(&frame);
    serve::serve(Rc::clone(&step.handler), shared, input).await;
    ExitCode::SUCCESS
}
