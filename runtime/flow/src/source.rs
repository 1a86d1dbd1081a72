//! A flow file as it was read: a name for messages, and bytes that may be anything.

use std::ops::Range;

use crate::diagnostic::{Code, Diagnostic};
use crate::limits::FILE_BYTES_MAX;

/// A flow file: where it is from, and what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// What messages call it: usually its path.
    pub name: String,
    /// What is in it. Nothing is assumed of it.
    pub bytes: Vec<u8>,
}

impl Source {
    /// A file.
    pub fn new(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            name: name.into(),
            bytes: bytes.into(),
        }
    }

    /// The text, or why there is none. The text is never larger than [`FILE_BYTES_MAX`].
    pub(crate) fn text(&self) -> Result<&str, Box<Diagnostic>> {
        if self.bytes.len() > FILE_BYTES_MAX {
            return Err(Box::new(Diagnostic::new(
                Code::TooLarge,
                format!(
                    "the file is {} bytes long, and a flow file may have at most {FILE_BYTES_MAX} (1 MiB)",
                    self.bytes.len()
                ),
            )
            .help("a flow file holds no data; is this the right file?")));
        }
        std::str::from_utf8(&self.bytes).map_err(|error| {
            let at = error.valid_up_to();
            Box::new(
                Diagnostic::new(Code::NotUtf8, "the file is not text in UTF-8")
                    .at(at..at + char::REPLACEMENT_CHARACTER.len_utf8())
                    .label(format!(
                        "the byte {:#04x} is no part of a character",
                        self.bytes[at]
                    ))
                    .help("save it as UTF-8"),
            )
        })
    }

    /// Something to show lines of: the text, with what cannot be read replaced.
    pub(crate) fn shown(&self) -> String {
        let length = if self.bytes.len() > FILE_BYTES_MAX {
            0
        } else {
            self.bytes.len()
        };
        String::from_utf8_lossy(&self.bytes[..length]).into_owned()
    }
}

/// Where lines begin, to turn offsets into lines and columns and back.
#[derive(Debug)]
pub(crate) struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        let starts = std::iter::once(0)
            .chain(
                text.bytes()
                    .enumerate()
                    .filter(|(_, byte)| *byte == b'\n')
                    .map(|(at, _)| at + 1),
            )
            .collect();
        Self { text, starts }
    }

    /// The line and the column (in characters) of an offset, both from 1.
    pub(crate) fn position(&self, offset: usize) -> (u32, u32) {
        let offset = self.text.floor_char_boundary(offset.min(self.text.len()));
        let line = self
            .starts
            .partition_point(|start| *start <= offset)
            .saturating_sub(1);
        let column = self.text[self.starts[line]..offset].chars().count();
        (small(line + 1), small(column + 1))
    }

    /// The offset of a line and a column, both from 1.
    pub(crate) fn offset(&self, line: u32, column: u32) -> usize {
        let line = (line.max(1) as usize - 1).min(self.starts.len() - 1);
        let rest = &self.text[self.starts[line]..];
        let in_line = rest
            .char_indices()
            .map(|(at, _)| at)
            .chain([rest.len()])
            .nth(column.max(1) as usize - 1)
            .unwrap_or(rest.len());
        self.starts[line] + in_line
    }

    /// The whole lines that a span touches: the number of the first, from 1, and their range.
    pub(crate) fn around(&self, span: &Range<usize>) -> (usize, Range<usize>) {
        let first = self.position(span.start).0 as usize;
        let last = self.position(span.end).0 as usize;
        let end = self.starts.get(last).copied().unwrap_or(self.text.len());
        (first, self.starts[first - 1]..end)
    }
}

fn small(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_counts_characters_and_leads_back_to_its_offset() {
        let text = "ä: 1\nbé: 2\n";
        let lines = Lines::new(text);
        assert_eq!(lines.position(0), (1, 1));
        assert_eq!(lines.position(text.find('2').unwrap()), (2, 5));
        assert_eq!(lines.position(text.len() + 9), (3, 1));
        for (offset, _) in text.char_indices() {
            let (line, column) = lines.position(offset);
            assert_eq!(lines.offset(line, column), offset);
        }
        assert_eq!(lines.around(&(6..7)), (2, 6..13));
    }
}
