//! A step that does what its input says, however wrong.

use std::process::ExitCode;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use towpath_step::{Context, Result, Step, StepError, secs, tokio, tracing};

#[derive(Deserialize, JsonSchema)]
struct Config {
    #[serde(default)]
    refuse: bool,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Input {
    /// Emits numbers from 0.
    Count(u64),
    /// Panics.
    Panic(String),
    /// Waits, without stopping others.
    Wait(u64),
    /// Waits, and stops the whole process meanwhile.
    Block(u64),
    /// Emits a text of so many characters.
    Text(usize),
    /// Logs a line in a task of its own.
    Log(String),
    /// Ends the process.
    Exit(i32),
    /// Returns the message's headers and attempt.
    Headers,
    /// Returns whether the message may have been handled before.
    IsUncertain,
    /// Emits by a port that is not in the manifest.
    Port(String),
}

async fn obey(input: Input, ctx: &Context<Config>) -> Result<Option<String>> {
    match input {
        Input::Count(count) => {
            for number in 0..count {
                ctx.emit(number).await?;
            }
            Ok(None)
        }
        Input::Panic(text) => panic!("{text}"),
        Input::Wait(ms) => {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            Ok(Some("waited".to_owned()))
        }
        Input::Block(ms) => {
            std::thread::sleep(Duration::from_millis(ms));
            Ok(Some("blocked".to_owned()))
        }
        Input::Text(length) => Ok(Some("x".repeat(length))),
        Input::Log(text) => {
            tracing::info!(attempt = ctx.attempt(), "{text}");
            Ok(None)
        }
        Input::Exit(code) => std::process::exit(code),
        Input::Headers => Ok(Some(format!("{:?} {}", ctx.headers(), ctx.attempt()))),
        Input::IsUncertain if ctx.is_uncertain() => Ok(Some("uncertain".to_owned())),
        Input::IsUncertain => Ok(Some("certain".to_owned())),
        Input::Port(port) => ctx.emit_to(&port, 1).await.map(|()| None),
    }
}

async fn setup(config: &Config) -> Result<()> {
    if config.refuse {
        return Err(StepError::permanent("told to refuse").after(secs(1)));
    }
    Ok(())
}

fn main() -> ExitCode {
    Step::action(obey)
        .setup(setup)
        .about("misbehaving", "1.2.3", "Does what it is told")
        .run()
}
