//! Cuts a stream of bytes into lines, with a bound on how long a line may get.

use std::ops::Range;

/// A buffer that is read into, and from which lines are taken.
pub struct LineReader {
    buffer: Vec<u8>,
    /// Where the first line begins that was not taken.
    start: usize,
    /// Up to where there is no line end.
    scanned: usize,
    line_max: usize,
    is_skipping: bool,
}

/// What is next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// A line, in [`LineReader::bytes`].
    Line(Range<usize>),
    /// The beginning of a line that is too long; the rest of it is skipped.
    TooLong(Range<usize>),
    /// More has to be read.
    More,
}

/// How much is read at a time.
const READ_BYTES: usize = 64 << 10;

impl LineReader {
    /// Makes a reader of lines of at most so many bytes.
    pub fn new(line_max: usize) -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            scanned: 0,
            line_max,
            is_skipping: false,
        }
    }

    /// Returns the buffer to append to; there is room in it.
    pub fn room(&mut self) -> &mut Vec<u8> {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.scanned -= self.start;
            self.start = 0;
        }
        if self.buffer.capacity() - self.buffer.len() < READ_BYTES / 2 {
            self.buffer.reserve(READ_BYTES);
        }
        &mut self.buffer
    }

    /// Takes the next line.
    pub fn take_next(&mut self) -> Next {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.buffer[self.scanned..]) {
                let line = self.start..self.scanned + end;
                self.start = line.end + 1;
                self.scanned = self.start;
                if std::mem::take(&mut self.is_skipping) {
                    continue;
                }
                if line.len() > self.line_max {
                    // It is whole already: nothing of it is left to skip.
                    return Next::TooLong(line);
                }
                return Next::Line(line);
            }
            self.scanned = self.buffer.len();
            if self.is_skipping {
                self.buffer.clear();
                self.start = 0;
                self.scanned = 0;
            } else if self.buffer.len() - self.start > self.line_max {
                let begin = self.start..self.buffer.len();
                self.is_skipping = true;
                self.start = begin.end;
                return Next::TooLong(begin);
            }
            return Next::More;
        }
    }

    /// Takes what is left without a line end.
    pub fn take_rest(&mut self) -> Option<Range<usize>> {
        let rest = self.start..self.buffer.len();
        self.start = rest.end;
        self.scanned = rest.end;
        (!rest.is_empty() && !self.is_skipping).then_some(rest)
    }

    /// Returns bytes that were taken; they are valid until there is more room made.
    pub fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.buffer[range]
    }

    /// Gives memory back after something large.
    pub fn shrink(&mut self) {
        if self.start == self.buffer.len() && self.buffer.capacity() > 4 * READ_BYTES {
            self.buffer = Vec::new();
            self.start = 0;
            self.scanned = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(reader: &mut LineReader) -> Vec<String> {
        let mut all = Vec::new();
        loop {
            match reader.take_next() {
                Next::Line(line) => {
                    all.push(String::from_utf8_lossy(reader.bytes(line)).into_owned());
                }
                Next::TooLong(_) => all.push("!".to_owned()),
                Next::More => return all,
            }
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_said_once_and_skipped() {
        let mut reader = LineReader::new(4);
        reader.room().extend_from_slice(b"ab\nabcdef");
        assert_eq!(lines(&mut reader), ["ab", "!"]);
        reader.room().extend_from_slice(b"ghi");
        assert_eq!(lines(&mut reader), [""; 0]);
        reader.room().extend_from_slice(b"jkl\nxy\n");
        assert_eq!(lines(&mut reader), ["xy"]);
        reader.room().extend_from_slice(b"abcdefgh\nz\nr");
        assert_eq!(lines(&mut reader), ["!", "z"]);
        let rest = reader.take_rest().unwrap();
        assert_eq!(reader.bytes(rest), b"r");
    }

    proptest! {
        #[test]
        fn lines_are_the_same_however_they_arrive(
            text in proptest::collection::vec("[a-z]{0,6}", 0..20),
            step in 1..10_usize,
        ) {
            let joined = text.iter().fold(String::new(), |all, line| all + line + "\n");
            let mut reader = LineReader::new(100);
            let mut seen = Vec::new();
            for chunk in joined.as_bytes().chunks(step) {
                reader.room().extend_from_slice(chunk);
                seen.extend(lines(&mut reader));
            }
            prop_assert_eq!(seen, text);
        }
    }
}
