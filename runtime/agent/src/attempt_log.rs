//! The newest lines that were logged during an attempt at a message: if it fails, they go with it.
//!
//! # Invariants
//!
//! - `the_newest_lines_are_kept`, each cut to its limit.

use std::collections::VecDeque;

use towpath_protocol::message::{ATTEMPT_LINE_BYTES_MAX, ATTEMPT_LINES_MAX};

use crate::redact::cut;

/// The lines of one attempt. Empty, it holds no memory.
#[derive(Debug, Default)]
pub struct AttemptLog {
    lines: VecDeque<String>,
    bytes: usize,
}

impl AttemptLog {
    /// Adds a line, without secrets already.
    pub fn push(&mut self, line: &str) {
        let line = cut(line, ATTEMPT_LINE_BYTES_MAX);
        if self.lines.len() == ATTEMPT_LINES_MAX {
            self.pop_oldest();
        }
        self.bytes += line.len();
        self.lines.push_back(line);
    }

    /// Puts lines that are not there yet before the others, as long as there is room: what a process
    /// wrote before it was clear whose lines they were.
    pub fn precede<'a>(&mut self, lines: impl DoubleEndedIterator<Item = &'a String>) {
        for line in lines.rev() {
            let line = cut(line, ATTEMPT_LINE_BYTES_MAX);
            if self.lines.len() < ATTEMPT_LINES_MAX && !self.lines.contains(&line) {
                self.bytes += line.len();
                self.lines.push_front(line);
            }
        }
    }

    /// Forgets the oldest lines until the rest has at most so many bytes.
    pub fn shrink_to(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max && !self.lines.is_empty() {
            self.pop_oldest();
        }
    }

    /// Returns how many bytes the lines have.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the lines, oldest first.
    pub fn lines(&self) -> Vec<String> {
        self.lines.iter().cloned().collect()
    }

    fn pop_oldest(&mut self) {
        let oldest = self.lines.pop_front();
        self.bytes -= oldest.map_or(0, |line| line.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_lines_are_kept() {
        let mut log = AttemptLog::default();
        for number in 0..ATTEMPT_LINES_MAX + 2 {
            log.push(&format!("line {number}"));
        }
        log.push(&"x".repeat(ATTEMPT_LINE_BYTES_MAX * 2));
        let lines = log.lines();
        assert_eq!(lines.len(), ATTEMPT_LINES_MAX);
        assert_eq!(lines[0], "line 3");
        assert_eq!(lines[9].len(), ATTEMPT_LINE_BYTES_MAX);
        assert_eq!(log.bytes(), lines.iter().map(String::len).sum::<usize>());
        log.shrink_to(lines[9].len());
        assert_eq!(log.lines(), [lines[9].clone()]);
        log.shrink_to(0);
        assert_eq!((log.lines(), log.bytes()), (Vec::new(), 0));
    }

    #[test]
    fn what_came_before_is_put_before_and_only_once() {
        let mut log = AttemptLog::default();
        log.push("c");
        let before = ["a", "b", "c"].map(str::to_owned);
        log.precede(before.iter());
        assert_eq!(log.lines(), before);
        assert_eq!(log.bytes(), 3);
    }
}
