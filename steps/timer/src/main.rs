//! The step `timer`: emits one message whenever it is fired.

use std::process::ExitCode;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use towpath_step::{Context, Result, ResultExt, Step, Tick, Why};

/// `with:` of the step.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// What each message carries, unless a person gives something else with `towpath run`.
    payload: Option<Value>,
}

/// How often it fired, and for which run that was counted last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Checkpoint {
    count: u64,
    run: String,
}

/// What it emits.
#[derive(Debug, Serialize, JsonSchema)]
struct Fired {
    /// When it fired.
    at: String,
    /// When it was due.
    due: String,
    /// Why it fired: `schedule`, or `manual` if a person asked for it.
    why: &'static str,
    /// How often it has fired, this time included.
    count: u64,
    /// What was given with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<Value>,
}

async fn fire(tick: Tick<Checkpoint>, ctx: &Context<Config>) -> Result<()> {
    let run = ctx.message_id().to_string();
    // Another try at the same tick is not another time.
    let count = match tick.checkpoint {
        Some(last) if last.run == run => last.count,
        Some(last) => last.count + 1,
        None => 1,
    };
    let due = i64::try_from(tick.due).permanent()?;
    let fired = Fired {
        at: Timestamp::now().to_string(),
        due: Timestamp::from_millisecond(due).permanent()?.to_string(),
        why: match tick.why {
            Why::Schedule => "schedule",
            Why::Manual => "manual",
            Why::Webhook => "webhook",
        },
        count,
        payload: tick.payload.or_else(|| ctx.config.payload.clone()),
    };
    ctx.output(&fired).source_id(&run).send().await?;
    ctx.checkpoint(&Checkpoint { count, run }).await
}

fn main() -> ExitCode {
    Step::poll(fire)
        .about(
            "timer",
            env!("CARGO_PKG_VERSION"),
            env!("CARGO_PKG_DESCRIPTION"),
        )
        .port::<Fired>("out")
        .run()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use towpath_step::testing::TestRun;

    #[tokio::test]
    async fn a_tick_becomes_a_message() {
        let outcome = TestRun::poll(fire).tick().await;
        assert!(outcome.is_done(), "{outcome:?}");
        let body = outcome.bodies()[0];
        assert_eq!(
            (&body["why"], &body["count"]),
            (&json!("schedule"), &json!(1))
        );
        assert!(
            body["at"]
                .as_str()
                .is_some_and(|at| at.parse::<Timestamp>().is_ok())
        );
        assert!(
            body["due"]
                .as_str()
                .is_some_and(|due| due.parse::<Timestamp>().is_ok())
        );
        assert!(body.get("payload").is_none());
        assert!(outcome.outputs[0].source_id.is_some());
        assert_eq!(outcome.checkpoints[0]["count"], 1);
    }

    #[tokio::test]
    async fn ticks_are_counted_and_tries_are_not() {
        let first = TestRun::poll(fire).tick().await;
        let saved = first.checkpoints[0].clone();
        // The test kit gives every first tick the same id, so this is another try.
        let again = TestRun::poll(fire)
            .tick()
            .checkpoint(saved.clone())
            .attempt(2)
            .await;
        assert_eq!(again.bodies()[0]["count"], 1);
        assert_eq!(again.outputs[0].source_id, first.outputs[0].source_id);
        let other = json!({"count": 41, "run": "another"});
        let next = TestRun::poll(fire).tick().checkpoint(other).await;
        assert_eq!(next.bodies()[0]["count"], 42);
    }

    #[tokio::test]
    async fn a_payload_is_carried() {
        let config = json!({"payload": {"a": 1}});
        let outcome = TestRun::poll(fire).config(config.clone()).tick().await;
        assert_eq!(outcome.bodies()[0]["payload"], json!({"a": 1}));
        let outcome = TestRun::poll(fire)
            .config(config)
            .tick()
            .payload(json!("mine"))
            .await;
        assert_eq!(outcome.bodies()[0]["payload"], json!("mine"));
        assert_eq!(outcome.bodies()[0]["why"], "manual");
    }
}
