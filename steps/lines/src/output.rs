//! What a program writes: lines of bounded length.

use std::io;

use serde_json::value::RawValue;
use tokio::io::{AsyncBufRead, AsyncBufReadExt};
use towpath_step::{Result, StepError};

/// The longest line of output: no body may be larger.
pub(crate) const OUTPUT_LINE_MAX: usize = 1 << 20;

/// The longest line of a log; a longer one is several.
pub(crate) const LOG_LINE_MAX: usize = 16 << 10;

/// How much of a line that is no JSON is shown.
const SHOWN_MAX: usize = 200;

/// A line that was read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// A whole line, without its end.
    Whole,
    /// The line is longer; this is its beginning, and the rest is still to be read.
    Cut,
    /// There are no more.
    End,
}

/// Reads a line into `line`, at most `max` bytes of it.
pub(crate) async fn read_line(
    reader: &mut (impl AsyncBufRead + Unpin),
    line: &mut Vec<u8>,
    max: usize,
) -> io::Result<Line> {
    line.clear();
    loop {
        let available = reader.fill_buf().await?;
        if available.is_empty() {
            return Ok(if line.is_empty() {
                Line::End
            } else {
                Line::Whole
            });
        }
        let end = available.iter().position(|byte| *byte == b'\n');
        let piece = &available[..end.unwrap_or(available.len())];
        let room = max - line.len();
        if piece.len() > room {
            line.extend_from_slice(&piece[..room]);
            reader.consume(room);
            return Ok(Line::Cut);
        }
        line.extend_from_slice(piece);
        let used = end.map_or(piece.len(), |end| end + 1);
        reader.consume(used);
        if end.is_some() {
            return Ok(Line::Whole);
        }
    }
}

/// Reads a line of output as JSON. What is not JSON will not be JSON next time.
pub(crate) fn json(line: &[u8]) -> Result<&RawValue> {
    serde_json::from_slice(line).map_err(|error| {
        let text = String::from_utf8_lossy(line);
        let shown = &text[..text.floor_char_boundary(SHOWN_MAX)];
        let more = if shown.len() < text.len() { "…" } else { "" };
        StepError::permanent(format!(
            "the program wrote a line that is not JSON: `{shown}{more}`"
        ))
        .because([error.to_string()])
    })
}

/// Says that a line is longer than any body may be.
pub(crate) fn too_long() -> StepError {
    StepError::permanent(format!(
        "the program wrote a line of more than {OUTPUT_LINE_MAX} bytes"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::BufReader;

    async fn lines(text: &str, max: usize) -> Vec<(String, Line)> {
        let mut reader = BufReader::with_capacity(3, text.as_bytes());
        let mut read = Vec::new();
        let mut line = Vec::new();
        loop {
            let kind = read_line(&mut reader, &mut line, max).await.unwrap();
            if kind == Line::End {
                return read;
            }
            read.push((String::from_utf8(line.clone()).unwrap(), kind));
        }
    }

    #[tokio::test]
    async fn lines_are_read_and_long_ones_cut() {
        let whole = |text: &str| (text.to_owned(), Line::Whole);
        assert_eq!(lines("", 5).await, []);
        assert_eq!(
            lines("a\n\nbcdef\ng", 5).await,
            [whole("a"), whole(""), whole("bcdef"), whole("g")]
        );
        assert_eq!(
            lines("abcdefgh\nx\n", 5).await,
            [("abcde".to_owned(), Line::Cut), whole("fgh"), whole("x")]
        );
    }

    #[test]
    fn what_is_not_json_is_shown_in_part() {
        let error = json("é".repeat(300).as_bytes()).unwrap_err();
        assert_eq!(error.fate(), towpath_step::Fate::Permanent);
        assert_eq!(
            error.reason(),
            format!(
                "the program wrote a line that is not JSON: `{}…`",
                "é".repeat(100)
            )
        );
        assert_eq!(error.chain(), ["expected value at line 1 column 1"]);
    }
}
