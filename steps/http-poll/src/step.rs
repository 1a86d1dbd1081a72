//! One run of the trigger: a walk over the list.

use serde_json::value::RawValue;
use towpath_step::{Context, Result, StepError, Tick, tracing};
use towpath_step_http::{
    Answer, Client, HeaderMap, HeaderName, HeaderValue, Settings, Url, header,
};
use towpath_step_json::{compact, items, text};

use crate::config::Config;
use crate::fetch::Fetch;
use crate::page::{Next, Pages};
use crate::progress::{Checkpoint, Item, Progress};
use crate::value::CursorValue;

/// What is made once.
#[derive(Debug)]
pub struct State {
    fetch: Fetch,
    url: Url,
}

/// Checks the URL and the headers and makes the client.
pub async fn setup(config: &Config) -> Result<State> {
    let url: Url = config
        .url
        .parse()
        .map_err(|error| StepError::permanent(format!("`url` is not a URL: {error}")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(StepError::permanent(format!(
            "`url` begins with `{}:`, not with `http:` or `https:`",
            url.scheme()
        )));
    }
    let client = Client::new(&Settings {
        timeout: config.timeout.duration(),
        user_agent: config.user_agent.clone(),
        answer_bytes_max: (config.page_mib_max.clamp(1, 256) as usize) << 20,
        certificates: std::env::var_os("SSL_CERT_FILE").map(Into::into),
    })?;
    let headers = read_headers(config)?;
    let patience = config.patience.duration();
    Ok(State {
        fetch: Fetch {
            client,
            headers,
            patience,
        },
        url,
    })
}

fn read_headers(config: &Config) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    for (name, value) in &config.headers {
        let wrong = |what| StepError::permanent(format!("`headers.{name}` {what}"));
        let header = HeaderName::try_from(name.as_str());
        let header = header.map_err(|_| wrong("is not the name of a header"))?;
        let value = HeaderValue::try_from(value.as_str());
        let value = value.map_err(|_| wrong("has a character that no header can have"))?;
        headers.insert(header, value);
    }
    Ok(headers)
}

/// Brings in what is new.
pub async fn poll(tick: Tick<Checkpoint>, ctx: &Context<Config, State>) -> Result<()> {
    let (config, state) = (&ctx.config, &ctx.state);
    // A checkpoint from when the flow had no `cursor`, or from when it had one, says nothing now.
    let checkpoint = tick
        .checkpoint
        .filter(|checkpoint| checkpoint.cursor.is_some() == config.cursor.is_some());
    let mut progress = Progress::new(checkpoint, config.sorted);
    let since = progress
        .since()
        .map(|since| (config.since_param.as_str(), since));
    let mut pages = Pages::new(&config.page, &state.url, since);
    let mut url = pages.first();
    let mut emitted = 0_u64;
    for number in 1..=config.max_pages.get() {
        let answer = state.fetch.page(&url).await?;
        let document = read(&answer)?;
        let items = items(document, config.items.as_ref()).map_err(|error| {
            StepError::permanent(format!("page {number} cannot be used: {error}"))
        })?;
        for (index, item) in items.iter().enumerate() {
            emitted += u64::from(bring_in(item, number, index, &mut progress, ctx).await?);
        }
        let next = pages
            .next(&answer, document, items.len())
            .map_err(|error| StepError::from(error).into_permanent())?;
        match next {
            Next::Page(next) => url = next,
            end => {
                if end == Next::Circle {
                    tracing::warn!(
                        "page {number} leads to a page that was read already: the list ends here"
                    );
                }
                if progress.is_disordered() {
                    tracing::warn!("the list is not sorted by `cursor`, although `sorted` says so");
                }
                if let Some(checkpoint) = progress.end() {
                    ctx.checkpoint(checkpoint).await?;
                }
                tracing::info!("brought in {emitted} new items from {number} pages");
                return Ok(());
            }
        }
        if let Some(checkpoint) = progress.midway() {
            ctx.checkpoint(checkpoint).await?;
            if ctx.is_draining() {
                tracing::info!(
                    "brought in {emitted} new items from {number} pages, and leaves the rest"
                );
                return Ok(());
            }
        }
    }
    let max = config.max_pages;
    if progress.midway().is_some() {
        tracing::warn!("stopped after {max} pages (`max_pages`): the next run goes on from here");
        return Ok(());
    }
    // Nothing may be saved before the end of a list that is not sorted.
    Err(StepError::permanent(format!(
        "the list has more than {max} pages (`max_pages`)"
    )))
}

fn read(answer: &Answer) -> Result<&RawValue> {
    serde_json::from_slice(&answer.body).map_err(|error| {
        // Cut off on the way, or a page of HTML from something in between: another try may do.
        StepError::retry(format!("the answer is not JSON: {error}"))
    })
}

/// Emits an item if it is new, and says whether it was.
async fn bring_in(
    item: &RawValue,
    page: u32,
    index: usize,
    progress: &mut Progress,
    ctx: &Context<Config, State>,
) -> Result<bool> {
    let config = &ctx.config;
    let place = || format!("item {} of page {page}", index + 1);
    let id = config.id.find_some(item).and_then(text);
    let id = id.ok_or_else(|| {
        StepError::permanent(format!("{} has no `{}` to tell it by", place(), config.id))
    })?;
    let cursor = match &config.cursor {
        Some(path) => {
            let cursor = path.find_some(item).and_then(CursorValue::read);
            Some(cursor.ok_or_else(|| {
                let place = place();
                StepError::permanent(format!(
                    "{place}, `{id}`, has no `{path}` to say when it changed"
                ))
            })?)
        }
        None => None,
    };
    // A source may answer compactly today and not tomorrow: that is no change.
    let body = compact(item);
    let item = Item {
        id: &id,
        cursor: cursor.as_ref(),
        body: &body,
    };
    let Some(source_id) = progress.take(item) else {
        return Ok(false);
    };
    ctx.output(&body)
        .source_id(&source_id)
        .key(&id)
        .send()
        .await?;
    Ok(true)
}
