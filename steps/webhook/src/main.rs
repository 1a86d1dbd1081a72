//! The step `webhook`: takes requests to a webhook URL apart into messages.

use std::process::ExitCode;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::value::RawValue;
use towpath_step::{Context, Result, ResultExt, Step, StepError};
use towpath_step_json::{Path, items, text};

/// `with:` of the step.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// The path to a list in the request's body, such as `data.items`: each item is a message.
    /// The body is one message if left out.
    items: Option<Path>,
    /// The path to the ordering key in each message.
    key: Option<Path>,
}

async fn receive(body: Box<RawValue>, ctx: &Context<Config>) -> Result<()> {
    let config = &ctx.config;
    let messages = match &config.items {
        Some(path) => items(&body, Some(path))
            .context("the request cannot be taken apart")
            .permanent()?,
        None => vec![&*body],
    };
    for message in messages {
        let key = config.key.as_ref().map(|path| {
            let key = path.find_some(message).and_then(text);
            key.ok_or_else(|| StepError::permanent(format!("a message has no `{path}`, its `key`")))
        });
        let key = key.transpose()?;
        let mut output = ctx.output(message);
        if let Some(key) = &key {
            output = output.key(key);
        }
        for (name, value) in ctx.headers() {
            output = output.header(name, value);
        }
        output.send().await?;
    }
    Ok(())
}

fn main() -> ExitCode {
    Step::webhook(receive)
        .about(
            "webhook",
            env!("CARGO_PKG_VERSION"),
            env!("CARGO_PKG_DESCRIPTION"),
        )
        .concurrency(64)
        .run()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use towpath_step::Fate;
    use towpath_step::testing::{Outcome, TestRun};

    async fn receives(config: Value, body: Value) -> Outcome {
        let run = TestRun::action(receive).config(config).input(body);
        run.header("http.method", "POST")
            .header("http.path", "/orders")
            .await
    }

    #[tokio::test]
    async fn a_request_is_a_message_with_what_came_beside_it() {
        for config in [json!(null), json!({})] {
            let outcome = receives(config, json!([{"id": 1}, {"id": 2}])).await;
            assert_eq!(outcome.bodies(), [&json!([{"id": 1}, {"id": 2}])]);
            let headers = &outcome.outputs[0].headers;
            assert_eq!(headers["http.method"], "POST");
            assert_eq!(headers["http.path"], "/orders");
        }
    }

    #[tokio::test]
    async fn a_list_is_taken_apart() {
        let config = json!({"items": "data.items", "key": "customer.id"});
        let body = json!({"data": {"items": [{"customer": {"id": 7}}, {"customer": {"id": "b"}}]}});
        let outcome = receives(config, body).await;
        assert_eq!(outcome.bodies().len(), 2);
        let keys: Vec<_> = outcome
            .outputs
            .iter()
            .map(|output| output.key.as_deref())
            .collect();
        assert_eq!(keys, [Some("7"), Some("b")]);
        assert_eq!(outcome.outputs[1].headers["http.path"], "/orders");
        let whole = receives(json!({"items": ""}), json!([1, 2, 3])).await;
        assert_eq!(whole.bodies().len(), 3);
    }

    #[tokio::test]
    async fn what_cannot_be_taken_apart_is_given_up() {
        let outcome = receives(json!({"items": "data"}), json!({"date": []})).await;
        assert_eq!(outcome.fate(), Some(Fate::Permanent));
        assert_eq!(outcome.reason(), "the request cannot be taken apart");
        let outcome = receives(json!({"key": "id"}), json!({"name": "Ada"})).await;
        assert_eq!(outcome.fate(), Some(Fate::Permanent));
        assert_eq!(outcome.reason(), "a message has no `id`, its `key`");
    }
}
