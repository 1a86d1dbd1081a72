//! Reads one page while it arrives: in bounded memory, however large it is.
//!
//! # Invariants
//!
//! - `a_page_that_never_ends_is_noticed`: by its size, and by how long its source was waited for. The
//!   time in which this step is held back does not count.
//! - Whatever ends first (the source, the parser, or whoever takes the items) ends the others.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use tokio::sync::mpsc;
use towpath_step::{Result, StepError};
use towpath_step_http::{Failure, Opened};
use towpath_step_json::{Path, Rest, StreamError, stream_items};

/// The most bytes of a page that are held: an item, what is beside the items, or the whole page if
/// its list is to be found by itself.
const HELD_BYTES_MAX: usize = 32 << 20;

/// How many items are handed over together…
const ITEMS_TOGETHER: usize = 64;

/// …and how many bytes of them, unless one alone has more.
const BYTES_TOGETHER: usize = 256 << 10;

/// How many pieces of the body wait for the parser.
const CHUNKS_WAITING: usize = 4;

/// How many lots of items wait to be taken.
const LOTS_WAITING: usize = 1;

/// What one page may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// How long its source may be waited for, in all.
    pub(crate) timeout: Duration,
    /// The most bytes.
    pub(crate) bytes_max: u64,
}

/// Items that are handed over together.
pub(crate) type Lot = Vec<Box<RawValue>>;

/// Reads a page and gives its items to `take`, in order. Returns the rest of it; none if `take` said
/// that it wants no more.
pub(crate) async fn read(
    opened: &mut Opened,
    items: Option<&Path>,
    bounds: Bounds,
    mut take: impl AsyncFnMut(Lot) -> Result<bool>,
) -> Result<Option<Rest>> {
    let (chunks, source) = mpsc::channel(CHUNKS_WAITING);
    let (lots, mut taken) = mpsc::channel(LOTS_WAITING);
    let items = items.cloned();
    let hint = if items.is_none() {
        "; of a large page, set `items` to the path of its list"
    } else {
        ""
    };
    let parsing = tokio::task::spawn_blocking(move || parse(source, items.as_ref(), &lots));
    let taking = async move {
        while let Some(lot) = taken.recv().await {
            if !take(lot).await? {
                return Ok(false);
            }
        }
        Ok::<_, StepError>(true)
    };
    let (fed, took) = tokio::join!(feed(opened, bounds, chunks), taking);
    if !took? {
        return Ok(None);
    }
    match fed {
        Ok(()) => {}
        Err(failure) if failure.may_pass() => return Err(failure.into()),
        Err(failure) => return Err(StepError::from(failure).into_permanent()),
    }
    let parsed = parsing.await.map_err(StepError::retry)?;
    parsed.map(Some).map_err(|error| match error {
        // Cut off on the way, or a page of HTML from something in between: another try may do.
        StreamError::NotJson(error) => StepError::retry(format!("the answer is not JSON: {error}")),
        error @ (StreamError::Source(_) | StreamError::Stopped) => StepError::from(error),
        error @ StreamError::NotAList(_) => {
            StepError::permanent(format!("the page cannot be used: {error}"))
        }
        error @ StreamError::TooLarge(..) => {
            StepError::permanent(format!("the page cannot be used: {error}{hint}"))
        }
    })
}

/// Gives the body to the parser, piece by piece.
async fn feed(
    opened: &mut Opened,
    bounds: Bounds,
    chunks: mpsc::Sender<bytes::Bytes>,
) -> Result<(), Failure> {
    let mut left = bounds.timeout;
    let mut bytes = 0;
    loop {
        let asked = Instant::now();
        let chunk = tokio::select! {
            // The parser is done with it; nothing is lost, because nobody wants the rest.
            () = chunks.closed() => return Ok(()),
            chunk = tokio::time::timeout(left, opened.chunk()) => chunk,
        };
        let Ok(chunk) = chunk else {
            return Err(Failure::TooSlow {
                host: opened.url.host_str().unwrap_or_default().to_owned(),
                limit: bounds.timeout,
            });
        };
        left = left.saturating_sub(asked.elapsed());
        let Some(chunk) = chunk? else { return Ok(()) };
        bytes += chunk.len() as u64;
        if bytes > bounds.bytes_max {
            return Err(Failure::TooLarge {
                max: usize::try_from(bounds.bytes_max).unwrap_or(usize::MAX),
            });
        }
        // A parser that is done takes no more, which the next turn sees.
        drop(chunks.send(chunk).await);
    }
}

/// Parses a page, on a thread of its own: it waits for the source and for whoever takes the items.
fn parse(
    source: mpsc::Receiver<bytes::Bytes>,
    items: Option<&Path>,
    lots: &mpsc::Sender<Lot>,
) -> Result<Rest, StreamError> {
    let source = Chunks {
        source,
        current: bytes::Bytes::new(),
    };
    let mut lot = Lot::new();
    let mut bytes = 0;
    let rest = stream_items(source, items, HELD_BYTES_MAX, |item| {
        bytes += item.get().len();
        lot.push(item);
        if lot.len() < ITEMS_TOGETHER && bytes < BYTES_TOGETHER {
            return true;
        }
        bytes = 0;
        lots.blocking_send(std::mem::take(&mut lot)).is_ok()
    })?;
    if !lot.is_empty() && lots.blocking_send(lot).is_err() {
        return Err(StreamError::Stopped);
    }
    Ok(rest)
}

/// The body as something to read from, on a thread that may wait.
struct Chunks {
    source: mpsc::Receiver<bytes::Bytes>,
    current: bytes::Bytes,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.source.blocking_recv() {
                Some(chunk) => self.current = chunk,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.current.len());
        buffer[..count].copy_from_slice(&self.current.split_to(count));
        Ok(count)
    }
}
