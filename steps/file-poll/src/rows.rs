//! The rows of a file, one after the other, from any place on.
//!
//! # Invariants
//!
//! - `a_row_that_is_not_whole_yet_waits`: what a writer is still at is not read, wherever it was cut,
//!   also within quotes.
//! - `a_row_that_cannot_be_read_hides_no_other`: it is given out as such, and reading goes on after it.
//! - No more of a file is held than one row.

use std::io::SeekFrom;
use std::path::Path;

use csv_core::{ReadRecordResult, Reader, ReaderBuilder};
use schemars::JsonSchema;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncSeekExt as _, BufReader, Take};
use towpath_step::{Result, ResultExt as _};
use towpath_step_json::compact;
use towpath_step_rows::Format;

/// The longest row, in bytes: a message has no more room.
pub(crate) const ROW_BYTES_MAX: usize = 1 << 20;

/// How much of a row that cannot be read is shown, in bytes.
const SHOWN_BYTES: usize = 4 << 10;

/// How much is read at a time, in bytes.
const BUFFER_BYTES: usize = 256 << 10;

/// A row.
#[derive(Debug)]
pub(crate) struct Row {
    /// Where it begins.
    pub start: u64,
    /// Its value, or why it has none.
    pub value: std::result::Result<Box<RawValue>, Unreadable>,
}

/// A row that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Unreadable {
    /// The file.
    pub file: String,
    /// Where the row begins, in bytes.
    pub position: u64,
    /// What is wrong with it.
    pub why: String,
    /// The row, or its beginning.
    pub row: String,
}

/// How a file is to be read.
#[derive(Debug, Clone)]
pub(crate) struct Manner {
    /// What is in it.
    pub format: Format,
    /// The character between two values of CSV.
    pub delimiter: u8,
    /// The names of the columns, if they are not in the file.
    pub columns: Option<Vec<String>>,
    /// Whether the last row counts without the end of its line.
    pub is_settled: bool,
}

/// A file that is being read.
#[derive(Debug)]
pub(crate) struct Rows {
    name: String,
    reader: Take<BufReader<File>>,
    /// Up to where it was read: the beginning of the next row.
    at: u64,
    is_settled: bool,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Lines,
    Csv { csv: Box<Csv>, columns: Vec<String> },
}

/// The parser of CSV, and the record that it is at.
#[derive(Debug)]
struct Csv {
    parser: Reader,
    delimiter: u8,
    output: Vec<u8>,
    ends: Vec<usize>,
}

/// A record as it is in the file.
#[derive(Debug)]
struct Record {
    start: u64,
    /// None if it is too long.
    fields: Option<Vec<Vec<u8>>>,
}

impl Rows {
    /// Opens a file to read it from `at` to `end`.
    pub(crate) async fn open(
        path: &Path,
        name: &str,
        at: u64,
        end: u64,
        manner: &Manner,
    ) -> Result<Self> {
        let place = || format!("`{name}` cannot be read");
        let file = File::open(path).await.with_context(place)?;
        let mut rows = Self {
            name: name.to_owned(),
            reader: BufReader::with_capacity(BUFFER_BYTES, file).take(end),
            at: 0,
            is_settled: manner.is_settled,
            kind: Kind::Lines,
        };
        if manner.format == Format::Csv {
            let mut csv = Box::new(Csv::new(manner.delimiter));
            let columns = match &manner.columns {
                Some(columns) => columns.clone(),
                None => rows.header(&mut csv).await.with_context(place)?,
            };
            rows.kind = Kind::Csv { csv, columns };
        }
        if at > rows.at {
            rows.jump(at, end).await.with_context(place)?;
        }
        Ok(rows)
    }

    /// Up to where rows were given out, in bytes.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// Returns the next row; none at the end, or where a row is not whole yet.
    pub(crate) async fn next(&mut self) -> Result<Option<Row>> {
        let place = format!("`{}` cannot be read", self.name);
        let mut kind = std::mem::replace(&mut self.kind, Kind::Lines);
        let row = match &mut kind {
            Kind::Lines => self.json().await,
            Kind::Csv { columns, .. } if columns.is_empty() => Ok(None),
            Kind::Csv { csv, columns } => self.values(csv, columns).await,
        };
        self.kind = kind;
        row.context(place)
    }

    async fn jump(&mut self, at: u64, end: u64) -> std::io::Result<()> {
        self.reader.get_mut().seek(SeekFrom::Start(at)).await?;
        self.reader.set_limit(end.saturating_sub(at));
        self.at = at;
        if let Kind::Csv { csv, .. } = &mut self.kind {
            csv.parser = Csv::new(csv.delimiter).parser;
        }
        Ok(())
    }

    /// The names of the columns; none if they are not there yet.
    async fn header(&mut self, csv: &mut Csv) -> std::io::Result<Vec<String>> {
        let Some(record) = self.record(csv).await? else {
            return Ok(Vec::new());
        };
        let fields = record.fields.unwrap_or_default();
        let mut columns: Vec<String> = Vec::with_capacity(fields.len());
        for (index, field) in fields.iter().enumerate() {
            let name = String::from_utf8_lossy(field).trim().to_owned();
            let is_taken = name.is_empty() || columns.contains(&name);
            columns.push(if is_taken {
                format!("column_{}", index + 1)
            } else {
                name
            });
        }
        Ok(columns)
    }

    /// The next line that is not empty, as JSON.
    async fn json(&mut self) -> std::io::Result<Option<Row>> {
        loop {
            let start = self.at;
            let Some(line) = self.line().await? else {
                return Ok(None);
            };
            let line = if start == 0 {
                line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&line)
            } else {
                &line
            };
            let line = line.trim_ascii();
            if line.is_empty() {
                continue;
            }
            let value = if line.len() > ROW_BYTES_MAX {
                Err("it is longer than 1 MiB".to_owned())
            } else {
                serde_json::from_slice::<&RawValue>(line)
                    .map(compact)
                    .map_err(|error| format!("it is not JSON: {error}"))
            };
            let value = value.map_err(|why| self.unreadable(start, why, line));
            return Ok(Some(Row { start, value }));
        }
    }

    /// The next line, or so much of it that it is seen to be too long.
    async fn line(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        let (start, mut line, mut is_whole) = (self.at, Vec::new(), false);
        while !is_whole {
            let chunk = self.reader.fill_buf().await?;
            if chunk.is_empty() {
                break;
            }
            let end = memchr::memchr(b'\n', chunk);
            is_whole = end.is_some();
            let taken = end.map_or(chunk.len(), |end| end + 1);
            let room = (2 * ROW_BYTES_MAX).saturating_sub(line.len()).min(taken);
            line.extend_from_slice(&chunk[..room]);
            self.reader.consume(taken);
            self.at += taken as u64;
        }
        if is_whole || (self.is_settled && !line.is_empty()) {
            return Ok(Some(line));
        }
        self.at = start;
        Ok(None)
    }

    /// The next record, as an object.
    async fn values(&mut self, csv: &mut Csv, columns: &[String]) -> std::io::Result<Option<Row>> {
        let Some(record) = self.record(csv).await? else {
            return Ok(None);
        };
        let start = record.start;
        let Some(fields) = record.fields else {
            let why = "it is longer than 1 MiB".to_owned();
            let value = Err(self.unreadable(start, why, b""));
            return Ok(Some(Row { start, value }));
        };
        let value = object(columns, &fields);
        let value = value.map_err(|why| {
            let row = fields.join(&[csv.delimiter][..]);
            self.unreadable(start, why, &row)
        });
        Ok(Some(Row { start, value }))
    }

    /// The next record.
    async fn record(&mut self, csv: &mut Csv) -> std::io::Result<Option<Record>> {
        let start = self.at;
        let (mut written, mut count) = (0, 0);
        let (mut is_begun, mut is_too_long) = (false, false);
        loop {
            let chunk = self.reader.fill_buf().await?;
            if chunk.is_empty() && !(is_begun && self.is_settled) {
                // Empty lines at the end are read; a record that was begun is not.
                if is_begun {
                    self.at = start;
                }
                return Ok(None);
            }
            let (result, taken, out, ends) =
                csv.parser
                    .read_record(chunk, &mut csv.output[written..], &mut csv.ends[count..]);
            is_begun |= chunk[..taken].iter().any(|byte| !b"\r\n".contains(byte));
            self.reader.consume(taken);
            self.at += taken as u64;
            written += out;
            count += ends;
            match result {
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull if csv.output.len() <= ROW_BYTES_MAX => {
                    csv.output.resize(csv.output.len() * 2, 0);
                }
                ReadRecordResult::OutputFull => (written, is_too_long) = (0, true),
                ReadRecordResult::OutputEndsFull => csv.ends.resize(csv.ends.len() * 2, 0),
                ReadRecordResult::End => return Ok(None),
                ReadRecordResult::Record => break,
            }
        }
        let fields = (!is_too_long && written <= ROW_BYTES_MAX).then(|| {
            let mut begin = 0;
            let field = |end: &usize| {
                let field = csv.output[begin..*end].to_vec();
                begin = *end;
                field
            };
            csv.ends[..count].iter().map(field).collect()
        });
        Ok(Some(Record { start, fields }))
    }

    fn unreadable(&self, position: u64, why: String, row: &[u8]) -> Unreadable {
        let row = &row[..row.len().min(SHOWN_BYTES)];
        Unreadable {
            file: self.name.clone(),
            position,
            why,
            row: String::from_utf8_lossy(row).into_owned(),
        }
    }
}

impl Csv {
    fn new(delimiter: u8) -> Self {
        Self {
            parser: ReaderBuilder::new().delimiter(delimiter).build(),
            delimiter,
            output: vec![0; 4 << 10],
            ends: vec![0; 64],
        }
    }
}

/// The object of a record's values, in the order of the columns.
fn object(columns: &[String], fields: &[Vec<u8>]) -> std::result::Result<Box<RawValue>, String> {
    struct Object<'a>(Vec<(&'a str, &'a str)>);
    impl Serialize for Object<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
            serializer.collect_map(self.0.iter().copied())
        }
    }
    if fields.len() != columns.len() {
        return Err(format!(
            "it has {} values, and there are {} columns",
            fields.len(),
            columns.len()
        ));
    }
    let mut object = Vec::with_capacity(columns.len());
    for (column, field) in columns.iter().zip(fields) {
        let value = std::str::from_utf8(field)
            .map_err(|_| format!("the value of `{column}` is not text in UTF-8"))?;
        object.push((column.as_str(), value));
    }
    let text = serde_json::to_string(&Object(object)).map_err(|error| error.to_string())?;
    if text.len() > ROW_BYTES_MAX {
        return Err("it is longer than 1 MiB".to_owned());
    }
    RawValue::from_string(text).map_err(|error| error.to_string())
}
