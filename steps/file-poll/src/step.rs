//! The handler.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use towpath_step::{Context, Result, ResultExt as _, StepError, Tick, tracing};
use towpath_step_rows::{Format, read_delimiter};

use crate::config::{Config, Then};
use crate::find::{Files, Found, Look, ending, look};
use crate::finish;
use crate::progress::{FILES_MAX, Known, NAME_BYTES_MAX, Progress};
use crate::rows::{Manner, Rows, Unreadable};

/// The port of rows that cannot be read.
pub const UNREADABLE: &str = "unreadable";

/// How many rows there are between two checkpoints.
const ROWS_A_CHECKPOINT: u32 = 1_000;

/// How many rows that cannot be read are logged in one run.
const LOGGED_MAX: u64 = 10;

/// What is made of the configuration once.
#[derive(Debug)]
pub struct Setup {
    files: Files,
    move_to: Option<PathBuf>,
    delimiter: Option<u8>,
}

/// Reads the configuration.
pub async fn setup(config: &Config) -> Result<Setup> {
    if (config.then == Then::Move) != config.move_to.is_some() {
        return Err(StepError::permanent(
            "`then: move` and `move_to` belong together",
        ));
    }
    if config.columns.as_ref().is_some_and(Vec::is_empty) {
        return Err(StepError::permanent("`columns` has no names"));
    }
    let delimiter = config.delimiter.map(read_delimiter).transpose();
    let delimiter = delimiter.map_err(StepError::permanent)?;
    Ok(Setup {
        files: Files::new(&config.files)?,
        move_to: config.move_to.clone(),
        delimiter,
    })
}

/// What a run does, and has done.
struct Run<'a> {
    ctx: &'a Context<Config, Setup>,
    progress: Progress,
    emitted: u64,
    unreadable: u64,
}

/// Brings in the rows that are new.
pub async fn poll(tick: Tick<Progress>, ctx: &Context<Config, Setup>) -> Result<()> {
    let files = ctx.state.files.clone();
    let found = tokio::task::spawn_blocking(move || files.list());
    let found = found.await.permanent()??;
    let mut run = Run {
        ctx,
        progress: tick.checkpoint.unwrap_or_default(),
        emitted: 0,
        unreadable: 0,
    };
    let before = run.progress.clone();
    run.progress.keep(&found);
    for file in &found {
        run.file(file).await?;
        if ctx.is_draining() {
            break;
        }
    }
    if run.progress != before {
        ctx.checkpoint(&run.progress).await?;
    }
    if run.unreadable > 0 {
        tracing::warn!("{} rows could not be read", run.unreadable);
    }
    tracing::info!("brought in {} rows", run.emitted);
    Ok(())
}

impl Run<'_> {
    async fn file(&mut self, file: &Found) -> Result<()> {
        if file.name.len() > NAME_BYTES_MAX {
            let why = format!(
                "the name `{}` is longer than {NAME_BYTES_MAX} bytes",
                file.name
            );
            return Err(StepError::permanent(why));
        }
        let now = SystemTime::now();
        let metadata = match tokio::fs::metadata(&file.path).await {
            // Somebody took it away since the folder was listed.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            metadata => metadata.with_context(|| format!("`{}` cannot be read", file.name))?,
        };
        let look = look(&metadata, now);
        let is_settled = look.unchanged >= self.ctx.config.settled.duration();
        let known = match self.progress.of(&file.name, &look) {
            Some(known) => known,
            None if look.length == 0 && !is_settled => return Ok(()),
            None => self.begin(file, &look, now).await?,
        };
        let at = if known.at < look.length {
            self.rows(file, known, &look, is_settled).await?
        } else {
            known.at
        };
        if at == look.length && is_settled {
            self.finish(file, known).await?;
        }
        Ok(())
    }

    /// Gives a file its number, for good, before anything of it is emitted.
    async fn begin(&mut self, file: &Found, look: &Look, now: SystemTime) -> Result<Known> {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        if !self.progress.begin(&file.name, look, now) {
            let why = format!(
                "more than {FILES_MAX} files are there: have those that are finished moved away (`then: move`) or removed (`then: delete`)"
            );
            return Err(StepError::permanent(why));
        }
        self.ctx.checkpoint(&self.progress).await?;
        let known = self.progress.of(&file.name, look);
        known.ok_or_else(|| StepError::retry("the file changed"))
    }

    /// Emits the rows of a file from where it was read to, and returns up to where it is read now.
    async fn rows(
        &mut self,
        file: &Found,
        known: Known,
        look: &Look,
        is_settled: bool,
    ) -> Result<u64> {
        let manner = self.manner(file, is_settled)?;
        let mut rows = Rows::open(&file.path, &file.name, known.at, look.length, &manner).await?;
        let mut since = 0;
        while let Some(row) = rows.next().await? {
            let id = known.row_id(&file.name, row.start);
            let sent = match row.value {
                Ok(value) => {
                    self.emitted += 1;
                    let output = self.ctx.output(&value).source_id(&id);
                    output.header("file.name", &file.name).send().await
                }
                Err(unreadable) => self.unreadable(&id, &unreadable).await,
            };
            sent.with_context(|| format!("the row `{id}` cannot be brought in"))?;
            since += 1;
            if since == ROWS_A_CHECKPOINT {
                since = 0;
                self.progress.advance(&file.name, rows.at());
                self.ctx.checkpoint(&self.progress).await?;
                if self.ctx.is_draining() {
                    return Ok(rows.at());
                }
            }
        }
        self.progress.advance(&file.name, rows.at());
        Ok(rows.at())
    }

    async fn unreadable(&mut self, id: &str, unreadable: &Unreadable) -> Result<()> {
        self.unreadable += 1;
        if self.unreadable <= LOGGED_MAX {
            let Unreadable {
                file,
                position,
                why,
                ..
            } = unreadable;
            tracing::warn!("the row at byte {position} of `{file}` cannot be read: {why}");
        }
        let output = self.ctx.output(unreadable).port(UNREADABLE);
        output.source_id(id).send().await
    }

    fn manner(&self, file: &Found, is_settled: bool) -> Result<Manner> {
        let config = &self.ctx.config;
        let ending = ending(&file.path);
        let format = match (config.format, ending.as_str()) {
            (Some(format), _) => format,
            (None, "csv" | "tsv") => Format::Csv,
            (None, "jsonl" | "ndjson") => Format::Jsonl,
            (None, _) => {
                let why = format!(
                    "what is in `{}` does not follow from its name: say it (`format`)",
                    file.name
                );
                return Err(StepError::permanent(why));
            }
        };
        let usual = if ending == "tsv" { b'\t' } else { b',' };
        Ok(Manner {
            format,
            delimiter: self.ctx.state.delimiter.unwrap_or(usual),
            columns: config.columns.clone(),
            is_settled,
        })
    }

    /// Does what is to be done with a file that was read to its end: after the checkpoint that says
    /// so, never before.
    async fn finish(&mut self, file: &Found, known: Known) -> Result<()> {
        let config = &self.ctx.config;
        if config.then == Then::Keep {
            return Ok(());
        }
        self.ctx.checkpoint(&self.progress).await?;
        match &self.ctx.state.move_to {
            Some(folder) => finish::move_to(folder, file, known.begun)?,
            None => finish::delete(file)?,
        }
        self.progress.forget(&file.name);
        Ok(())
    }
}
