//! One run of the trigger: a walk over the list.
//!
//! # Invariants
//!
//! - `a_run_that_changed_nothing_saves_nothing`.
//! - Validators are saved of a list that had one page, and asked with only for the same question: a
//!   first page that did not change says nothing of the second.

use std::hash::{DefaultHasher, Hash, Hasher};

use jiff::Timestamp;
use serde_json::value::RawValue;
use towpath_step::{Context, Result, StepError, Tick, tracing};
use towpath_step_http::{HeaderMap, StatusCode, Url};
use towpath_step_jq::pool::{Failure, Pool};
use towpath_step_json::{Rest, compact, text};
use towpath_step_span::Span;

use crate::config::Config;
use crate::fetch::Patience;
use crate::page::{Next, Page, Pages};
use crate::progress::{Checkpoint, Item, Progress, Scope};
use crate::read::{Lot, read};
use crate::setup::{State, beginning};
use crate::validators::Validators;
use crate::value::Position;

/// After so many items a sorted list saves its place, even in the middle of a page.
const ITEMS_BETWEEN_SAVES: u64 = 5_000;

/// Brings in what is new.
pub async fn poll(tick: Tick<Checkpoint>, ctx: &Context<Config, State>) -> Result<()> {
    let (config, state) = (&ctx.config, &ctx.state);
    // A checkpoint from when the flow had no `cursor`, or from when it had one, says nothing now.
    let checkpoint = tick
        .checkpoint
        .filter(|checkpoint| checkpoint.cursor.is_some() == config.cursor.is_some());
    let validators = checkpoint.as_ref().and_then(|it| it.validators.clone());
    let scope = Scope {
        sorted: config.sorted,
        look_back: config.look_back.map(Span::duration).unwrap_or_default(),
        since: beginning(config, Timestamp::now()),
    };
    let progress = Progress::new(checkpoint, scope)
        .map_err(|error| StepError::from(error).into_permanent())?;
    let since = progress
        .since()
        .map(|since| (config.since_param.as_str(), since));
    let mut pages = Pages::new(&config.page, &state.url, since);
    let mut url = pages.first();
    let question = question(state, &url);
    let mut validators = validators.filter(|validators| validators.are_of(&question));
    let mut walk = Walk {
        ctx,
        progress,
        emitted: 0,
        unsaved: 0,
    };
    for number in 1..=config.max_pages.get() {
        let read = match walk.page(&url, number, validators.take()).await? {
            PageEnd::Read(read) => read,
            PageEnd::Unchanged => {
                tracing::debug!("nothing changed since the last run");
                return Ok(());
            }
            PageEnd::Left => {
                tracing::info!(
                    "brought in {} new items, and leaves the rest of page {number}",
                    walk.emitted
                );
                return Ok(());
            }
        };
        let next = pages
            .next(read.page())
            .map_err(|error| StepError::from(error).into_permanent())?;
        match next {
            Next::Page(next) => url = next,
            end => {
                if end == Next::Circle {
                    tracing::warn!(
                        "page {number} leads to a page that was read already, or repeats the one before it: the list ends here"
                    );
                }
                let validators = Validators::read(&question, &read.headers);
                return walk.end(number, validators.filter(|_| number == 1)).await;
            }
        }
        if walk.save().await? && ctx.is_draining() {
            tracing::info!(
                "brought in {} new items from {number} pages, and leaves the rest",
                walk.emitted
            );
            return Ok(());
        }
    }
    let max = config.max_pages;
    if walk.has_saved() {
        tracing::warn!("stopped after {max} pages (`max_pages`): the next run goes on from here");
        return Ok(());
    }
    // Nothing may be saved before the end of a list that is not sorted.
    Err(StepError::permanent(format!(
        "the list has more than {max} pages (`max_pages`)"
    )))
}

/// The hash of everything that says what is asked for, and what is made of the answer.
fn question(state: &State, url: &Url) -> String {
    let mut hasher = DefaultHasher::new();
    (state.question, url).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// How the reading of a page ended.
enum PageEnd {
    /// At its end.
    Read(Box<ReadPage>),
    /// Nothing changed since it was read before.
    Unchanged,
    /// In the middle: the replica is to leave, and the place is saved.
    Left,
}

struct ReadPage {
    url: Url,
    headers: HeaderMap,
    rest: Rest,
    content: u64,
}

impl ReadPage {
    fn page(&self) -> Page<'_> {
        Page {
            url: &self.url,
            headers: &self.headers,
            document: &self.rest.document,
            count: self.rest.count,
            content: self.content,
        }
    }
}

/// A walk under way.
struct Walk<'a> {
    ctx: &'a Context<Config, State>,
    progress: Progress,
    emitted: u64,
    /// How many items were looked at since the place was saved.
    unsaved: u64,
}

impl Walk<'_> {
    /// Reads a page and brings in what is new of it, asking again if it breaks off: what was brought
    /// in before it did is recognised.
    async fn page(
        &mut self,
        url: &Url,
        number: u32,
        validators: Option<Validators>,
    ) -> Result<PageEnd> {
        let mut patience = Patience::new(self.ctx.config.patience.duration());
        loop {
            match self.try_page(url, number, validators.as_ref()).await {
                Ok(end) => return Ok(end),
                Err(error) => patience.wait_after(error).await?,
            }
            self.progress.again();
        }
    }

    async fn try_page(
        &mut self,
        url: &Url,
        number: u32,
        validators: Option<&Validators>,
    ) -> Result<PageEnd> {
        let state = &self.ctx.state;
        let mut opened = state.fetch.open(url, validators).await?;
        if opened.status == StatusCode::NOT_MODIFIED {
            return Ok(PageEnd::Unchanged);
        }
        let items = self.ctx.config.items.as_ref();
        let mut hasher = DefaultHasher::new();
        let mut index = 0;
        let rest = read(&mut opened, items, state.bounds, async |lot: Lot| {
            self.bring_in(lot, number, &mut index, &mut hasher).await
        });
        let Some(rest) = rest.await? else {
            return Ok(PageEnd::Left);
        };
        Ok(PageEnd::Read(Box::new(ReadPage {
            url: opened.url.clone(),
            headers: opened.headers.clone(),
            rest,
            content: hasher.finish(),
        })))
    }

    /// Emits what is new, and says whether to go on.
    async fn bring_in(
        &mut self,
        lot: Lot,
        page: u32,
        index: &mut u64,
        hasher: &mut DefaultHasher,
    ) -> Result<bool> {
        self.unsaved += lot.len() as u64;
        let mut news = Vec::new();
        for item in lot {
            *index += 1;
            // A source may answer compactly today and not tomorrow: that is no change.
            let body = compact(&item);
            body.get().hash(hasher);
            let place = format_args!("item {index} of page {page}");
            news.extend(take(&mut self.progress, &self.ctx.config, body, place)?);
        }
        if let Some(filter) = &self.ctx.state.filter {
            news = keep(filter, news).await?;
        }
        for new in &news {
            let output = self.ctx.output(&new.body);
            output.source_id(&new.source_id).key(&new.id).send().await?;
        }
        self.emitted += news.len() as u64;
        let may_leave = self.unsaved >= ITEMS_BETWEEN_SAVES && self.save().await?;
        Ok(!(may_leave && self.ctx.is_draining()))
    }

    /// Saves the place, and says whether it could.
    async fn save(&mut self) -> Result<bool> {
        self.unsaved = 0;
        let Some(checkpoint) = self.progress.midway() else {
            return Ok(false);
        };
        self.ctx.checkpoint(&checkpoint).await?;
        Ok(true)
    }

    fn has_saved(&mut self) -> bool {
        self.progress.midway().is_some()
    }

    /// Ends the walk.
    async fn end(mut self, pages: u32, validators: Option<Validators>) -> Result<()> {
        if self.progress.is_disordered() {
            tracing::warn!("the list is not sorted by `cursor`, although `sorted` says so");
        }
        if let Some(checkpoint) = self.progress.end(validators) {
            self.ctx.checkpoint(&checkpoint).await?;
        }
        if self.progress.has_overflowed() {
            tracing::warn!(
                "more items than can be remembered are to be recognised by the next run; the others come again, by the same ids: shorten `look_back`, or give a `cursor` that tells items apart"
            );
        }
        tracing::info!("brought in {} new items from {pages} pages", self.emitted);
        Ok(())
    }
}

/// An item that is to be emitted.
struct New {
    id: String,
    source_id: String,
    body: Box<RawValue>,
}

/// Takes an item in, and returns it if it is new.
fn take(
    progress: &mut Progress,
    config: &Config,
    body: Box<RawValue>,
    place: std::fmt::Arguments<'_>,
) -> Result<Option<New>> {
    let id = config.id.find_some(&body).and_then(text);
    let id = id.ok_or_else(|| {
        StepError::permanent(format!("{place} has no `{}` to tell it by", config.id))
    })?;
    let cursor = match &config.cursor {
        Some(path) => {
            let cursor = path.find_some(&body).and_then(Position::read);
            Some(cursor.ok_or_else(|| {
                StepError::permanent(format!(
                    "{place}, `{id}`, has no `{path}` to say when it changed"
                ))
            })?)
        }
        None => None,
    };
    if let Some(cursor) = &cursor
        && !progress.is_comparable(cursor)
    {
        return Err(StepError::permanent(format!(
            "{place}, `{id}`, changed at `{cursor}`, which cannot be compared with where `since` begins: set `since_format` to how the source writes times"
        )));
    }
    let source_id = progress.take(Item {
        id: &id,
        cursor: cursor.as_ref(),
        body: &body,
    });
    let id = id.into_owned();
    Ok(source_id.map(|source_id| New {
        id,
        source_id,
        body,
    }))
}

/// Keeps the items for which the filter gives something that is neither `false` nor `null`.
async fn keep(filter: &Pool, news: Vec<New>) -> Result<Vec<New>> {
    let asked = news
        .iter()
        .map(|new| filter.run(String::new(), new.body.clone()));
    let answers = futures_util::future::join_all(asked).await;
    let mut kept = Vec::with_capacity(news.len());
    for (new, answer) in news.into_iter().zip(answers) {
        match answer {
            Ok(values) => {
                let is_true = |value: &RawValue| !matches!(value.get(), "false" | "null");
                if values.iter().any(|value| is_true(value)) {
                    kept.push(new);
                }
            }
            Err(Failure::Message(reason)) => {
                return Err(StepError::permanent(format!(
                    "`filter` fails for the item `{}`: {reason}",
                    new.id
                )));
            }
            Err(Failure::Worker(reason)) => return Err(StepError::retry(reason)),
        }
    }
    Ok(kept)
}
