//! The handler.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::PathBuf;

use serde_json::value::RawValue;
use towpath_step::{Context, Result, ResultExt as _, StepError};
use towpath_step_json::compact;
use towpath_step_rows::{Format, read_delimiter};
use towpath_step_template::{Template, Templates, values};

use crate::config::{Config, Mode};
use crate::file;
use crate::row::Manner;

/// The most messages of a batch: they are on the disk together.
pub const BATCH_MAX: usize = 500;

/// The longest name of a file, in bytes: what file systems have room for.
const NAME_BYTES_MAX: usize = 200;

/// What is made of the configuration once.
#[derive(Debug)]
pub struct Setup {
    templates: Templates,
    file: Template,
    manner: Manner,
}

/// Reads the configuration.
pub async fn setup(config: &Config) -> Result<Setup> {
    if !config.folder.is_absolute() {
        return Err(StepError::permanent(
            "`folder` has to begin with `/`: `/folders/outbox`",
        ));
    }
    let mut templates = Templates::new();
    let file = templates.add("file", &config.file);
    let file = file.map_err(StepError::permanent)?;
    let manner = manner(config).map_err(StepError::permanent)?;
    Ok(Setup {
        templates,
        file,
        manner,
    })
}

fn manner(config: &Config) -> std::result::Result<Manner, String> {
    let ending = config.file.rsplit_once('.').map(|(_, ending)| ending);
    let format = match (config.format, ending) {
        (_, _) if config.mode == Mode::Replace => Format::Jsonl,
        (Some(format), _) => format,
        (None, Some("csv" | "tsv")) => Format::Csv,
        (None, Some("jsonl" | "ndjson" | "json")) => Format::Jsonl,
        (None, _) => {
            let why = "what is in the file does not follow from its name: say it (`format`)";
            return Err(why.to_owned());
        }
    };
    if format == Format::Jsonl {
        let unused = config.columns.is_some() || config.delimiter.is_some();
        return if unused {
            Err("`columns` and `delimiter` are for rows of CSV".to_owned())
        } else {
            Ok(Manner::Lines)
        };
    }
    let columns = config.columns.clone().filter(|columns| !columns.is_empty());
    let columns = columns.ok_or("CSV needs `columns`: the fields of the body, in their order")?;
    let usual = if ending == Some("tsv") { '\t' } else { ',' };
    Ok(Manner::Csv {
        columns,
        delimiter: read_delimiter(config.delimiter.unwrap_or(usual))?,
    })
}

/// Rows for one file, and whose they are.
#[derive(Debug, Default)]
struct Rows {
    text: Vec<u8>,
    messages: Vec<usize>,
}

/// Writes a batch, and says what became of each message.
pub async fn write(
    bodies: Vec<Box<RawValue>>,
    ctx: &Context<Config, Setup>,
) -> Result<Vec<Result<()>>> {
    let setup = &ctx.state;
    let head = setup.manner.head().map_err(StepError::permanent)?;
    let mut fates: Vec<Result<()>> = Vec::with_capacity(bodies.len());
    let mut files: BTreeMap<PathBuf, Rows> = BTreeMap::new();
    for (index, body) in bodies.iter().enumerate() {
        let row = path(setup, &ctx.config, body).and_then(|path| {
            let row = match ctx.config.mode {
                Mode::Append => setup.manner.row(body)?,
                Mode::Replace => compact(body).get().as_bytes().to_vec(),
            };
            Ok((path, row))
        });
        let (path, row) = match row {
            Ok(row) => row,
            Err(why) => {
                let why = format!("the message cannot be written: {why}");
                fates.push(Err(StepError::permanent(why)));
                continue;
            }
        };
        fates.push(Ok(()));
        let rows = files.entry(path).or_default();
        if ctx.config.mode == Mode::Replace {
            // The last one stays.
            rows.text.clear();
        }
        rows.text.extend(row);
        rows.messages.push(index);
    }
    let number = format!("{}.{}", ctx.replica(), ctx.message_id());
    let mode = ctx.config.mode;
    let written = tokio::task::spawn_blocking(move || {
        let write = |(path, rows): (PathBuf, Rows)| {
            let written = match mode {
                Mode::Append => file::append(&path, &head, &rows.text),
                Mode::Replace => file::replace(&path, &rows.text, &number),
            };
            (path, rows.messages, written)
        };
        files.into_iter().map(write).collect::<Vec<_>>()
    });
    for (path, messages, written) in written.await.context("writing was cut off")? {
        let Err(error) = written else { continue };
        let place = format!("`{}` cannot be written", path.display());
        for index in messages {
            fates[index] = Err(fate(&error).context(&place));
        }
    }
    Ok(fates)
}

/// Whether another attempt may go better: not where the flow or the settings have to change.
fn fate(error: &std::io::Error) -> StepError {
    match error.kind() {
        ErrorKind::InvalidFilename | ErrorKind::IsADirectory | ErrorKind::NotADirectory => {
            StepError::permanent(error)
        }
        _ => StepError::retry(error),
    }
}

/// The file of a message.
fn path(setup: &Setup, config: &Config, body: &RawValue) -> std::result::Result<PathBuf, String> {
    let values = values(body, "", 1, &BTreeMap::new()).map_err(|error| error.to_string())?;
    let name = setup.templates.text(&setup.file, &values)?;
    // A value must not lead to another folder.
    let is_name = !name.starts_with('.') && !name.contains(['/', '\0']) && !name.is_empty();
    if !is_name || name.len() > NAME_BYTES_MAX {
        return Err(format!("{name:?} cannot be the name of its file"));
    }
    Ok(config.folder.join(name))
}
