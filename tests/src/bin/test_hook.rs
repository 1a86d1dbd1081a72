//! A webhook trigger that registers at a source: by an interface as many have it.

use std::process::ExitCode;

use reqwest::{Client, RequestBuilder, Response, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use towpath_step::{Context, Registration, Result, ResultExt as _, Step, StepError};

/// `with:` of the step.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Where the source is.
    source: String,
    /// Which events are wanted.
    #[serde(default)]
    events: String,
}

/// What is known of a subscription at the source.
#[derive(Serialize, Deserialize)]
struct Subscription {
    id: u64,
    url: String,
}

async fn ask(request: RequestBuilder) -> Result<Response> {
    let answer = request.send().await.context("the source does not answer")?;
    let status = answer.status();
    if status == StatusCode::UNAUTHORIZED {
        return Err(StepError::permanent("the source does not let us in"));
    }
    if !status.is_success() && status != StatusCode::NOT_FOUND {
        return Err(StepError::retry(format!("the source says {status}")));
    }
    Ok(answer)
}

/// The subscription to a URL, if the source has one.
async fn find(url: &str, ctx: &Context<Config, Client>) -> Result<Option<u64>> {
    let all = ctx
        .state
        .get(format!("{}/subscriptions", ctx.config.source));
    let all: Vec<Subscription> = ask(all).await?.json().await?;
    let found = all.into_iter().find(|it| it.url == url);
    Ok(found.map(|it| it.id))
}

async fn activate(it: Registration<u64>, ctx: &Context<Config, Client>) -> Result<u64> {
    let base = format!("{}/subscriptions", ctx.config.source);
    let body = json!({"url": it.url, "events": ctx.config.events});
    let known = find(&it.url, ctx).await?.or(it.kept);
    if let Some(id) = known {
        let changed = ask(ctx.state.put(format!("{base}/{id}")).json(&body)).await?;
        if changed.status().is_success() {
            return Ok(id);
        }
    }
    let made = ask(ctx.state.post(base).json(&body)).await?;
    let made: Value = made.json().await?;
    let no_id = || StepError::permanent("the source gave no id");
    made["id"].as_u64().ok_or_else(no_id)
}

async fn deactivate(it: Registration<u64>, ctx: &Context<Config, Client>) -> Result<()> {
    let known = match it.kept {
        Some(id) => Some(id),
        None => find(&it.url, ctx).await?,
    };
    if let Some(id) = known {
        let url = format!("{}/subscriptions/{id}", ctx.config.source);
        ask(ctx.state.delete(url)).await?;
    }
    Ok(())
}

async fn event(event: Value, _: &Context<Config, Client>) -> Result<Value> {
    Ok(event)
}

async fn client(_: &Config) -> Result<Client> {
    drop(rustls::crypto::ring::default_provider().install_default());
    let client = Client::builder().tls_certs_only([]).build();
    client.context("a client cannot be made").permanent()
}

fn main() -> ExitCode {
    Step::webhook(event)
        .registration(activate, deactivate)
        .setup(client)
        .about("test-hook", "1.0.0", "Passes on the events of a source")
        .run()
}
