//! How a handler is tested: no broker, no container. `cargo test --example testing` runs the tests.
use std::process::ExitCode;

use schemars::JsonSchema;
use serde::Deserialize;
use towpath_step::{Context, Result, StepError};

#[derive(Deserialize, JsonSchema)]
struct Config {
    limit: u64,
}

async fn check(cents: u64, ctx: &Context<Config>) -> Result<u64> {
    if cents > ctx.config.limit {
        return Err(StepError::permanent(format!(
            "{cents} is above {}",
            ctx.config.limit
        )));
    }
    Ok(cents)
}

fn main() -> ExitCode {
    towpath_step::action(check)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use towpath_step::Fate;
    use towpath_step::testing::TestRun;

    use super::*;

    #[tokio::test]
    async fn what_is_within_the_limit_goes_on() {
        let outcome = TestRun::action(check)
            .config(json!({"limit": 10}))
            .input(json!(7))
            .await;
        assert_eq!(outcome.bodies(), [&json!(7)]);
    }

    #[tokio::test]
    async fn what_is_above_the_limit_is_a_dead_letter() {
        let outcome = TestRun::action(check)
            .config(json!({"limit": 10}))
            .input(json!(11))
            .await;
        assert_eq!(outcome.fate(), Some(Fate::Permanent));
        assert_eq!(outcome.reason(), "11 is above 10");
    }

    #[tokio::test]
    async fn a_configuration_without_a_limit_is_refused() {
        let refusal = TestRun::action(check)
            .config(json!({}))
            .refusal()
            .await
            .unwrap();
        assert!(refusal.contains("missing field `limit`"), "{refusal}");
    }
}
