//! State that is made once: here a table, usually a client or a pool.
use std::collections::BTreeMap;
use std::process::ExitCode;

use schemars::JsonSchema;
use serde::Deserialize;
use towpath_step::{Context, Result, Step, StepError};

#[derive(Deserialize, JsonSchema)]
struct Config {
    /// Pairs such as `de=Germany`.
    countries: Vec<String>,
}

struct State {
    names: BTreeMap<String, String>,
}

async fn country(code: String, ctx: &Context<Config, State>) -> Result<Option<String>> {
    Ok(ctx.state.names.get(&code).cloned()) // `None` emits nothing
}

async fn table(config: &Config) -> Result<State> {
    let pair = |text: &String| {
        let (code, name) = text
            .split_once('=')
            .ok_or_else(|| StepError::permanent(format!("`{text}` is not a pair")))?;
        Ok((code.to_owned(), name.to_owned()))
    };
    Ok(State {
        names: config.countries.iter().map(pair).collect::<Result<_>>()?,
    })
}

fn main() -> ExitCode {
    Step::action(country)
        .setup(table) // an error refuses the configuration, with its reason
        .about(
            "country",
            env!("CARGO_PKG_VERSION"),
            "Names a country by its code",
        )
        .run()
}
