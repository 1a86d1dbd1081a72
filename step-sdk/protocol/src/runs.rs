//! What agents report of runs: which messages were emitted, for which steps, and which are done.
//!
//! A **report** is the body of a delivery of type [`RUNS_TYPE`], published with the key
//! [`RUNS_KEY`]. Its first line is a [`Head`] as JSON; what follows the line end is binary, because
//! an id as text would be twice as long, and there is an entry for every message:
//!
//! | Bytes | Mean |
//! |---|---|
//! | `r`, 16 bytes | what follows is of the run with this id |
//! | `e`, 2 bytes, 16 bytes | the message with this id was emitted, and the broker has it; the two bytes are the place in [`Head::ways`] of the way it went, most significant first |
//! | `f`, 2 bytes, 16 bytes | the same, and the message it was made from had been replayed |
//! | `d`, 4 bytes, 16 bytes | the message with this id is done at the reporter's step; the four bytes are how often it had been replayed, most significant first |
//! | `l` | a report that said something of this run was lost |
//!
//! A report says sets of ids, never counts: said twice, or late, it is the same. What was emitted is
//! reported after the broker confirmed it, and what is done after everything that was emitted for it
//! is; both before the delivery of the message is acknowledged. Dead letters are not reported: each
//! of them says it itself.
//!
//! With the same key go the answers of flows ([`crate::answer`]), as batches of messages like any
//! other output: so an answer is read before the report that its message is done.
//!
//! # Invariants
//!
//! - `what_is_written_is_read`, and what cannot be read is an error, never a panic.

use serde::{Deserialize, Serialize};

use crate::MessageId;
use crate::start::Identity;

/// The routing key of reports, in the exchange of the office.
pub const RUNS_KEY: &str = "runs";

/// The AMQP `type` property of a delivery that is one report.
pub const RUNS_TYPE: &str = "towpath.runs.1";

/// Who reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Who.
    pub identity: Identity,
    /// The steps that take what goes each way: those of each port that take everything, then those
    /// of each branch.
    pub ways: Vec<Vec<String>>,
}

impl Head {
    /// Writes the first line.
    pub fn write(&self, report: &mut Vec<u8>) {
        serde_json::to_writer(&mut *report, self).expect("a head is JSON, and a buffer takes it");
        report.push(b'\n');
    }
}

/// The most bytes that one entry takes, the run included.
pub const ENTRY_BYTES_MAX: usize = 17 + 21;

/// What is said of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// A message was emitted.
    Emitted {
        /// The message.
        id: MessageId,
        /// The place in [`Head::ways`] of the way it went.
        way: u16,
        /// The message it was made from had been replayed.
        of_replayed: bool,
    },
    /// A message is done at the reporter's step.
    Done {
        /// The message.
        id: MessageId,
        /// How often it had been replayed.
        replays: u32,
    },
    /// A report was lost.
    Lost,
}

impl Entry {
    /// Writes the entry.
    pub fn write(&self, report: &mut Vec<u8>) {
        match self {
            Self::Emitted {
                id,
                way,
                of_replayed,
            } => {
                report.push(if *of_replayed { b'f' } else { b'e' });
                report.extend_from_slice(&way.to_be_bytes());
                report.extend_from_slice(id.as_bytes());
            }
            Self::Done { id, replays } => {
                report.push(b'd');
                report.extend_from_slice(&replays.to_be_bytes());
                report.extend_from_slice(id.as_bytes());
            }
            Self::Lost => report.push(b'l'),
        }
    }
}

/// Writes of which run the entries are that follow.
pub fn write_run(run: MessageId, report: &mut Vec<u8>) {
    report.push(b'r');
    report.extend_from_slice(run.as_bytes());
}

/// Why a report cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable(&'static str);

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a report of runs cannot be read: {}", self.0)
    }
}

impl std::error::Error for Unreadable {}

/// Reads a report: who wrote it, and its entries, each with its run.
pub fn read(report: &[u8]) -> Result<(Head, Vec<(MessageId, Entry)>), Unreadable> {
    let line = report.iter().position(|byte| *byte == b'\n');
    let (line, mut rest) = report.split_at(line.ok_or(Unreadable("it has no first line"))?);
    let head = serde_json::from_slice(line)
        .map_err(|_| Unreadable("its first line does not say who wrote it"))?;
    rest = &rest[1..];
    let mut run = None;
    let mut entries = Vec::with_capacity(rest.len() / 20);
    while let Some((tag, after)) = rest.split_first() {
        rest = after;
        if *tag == b'r' {
            run = Some(id(&mut rest)?);
            continue;
        }
        let run = run.ok_or(Unreadable("an entry is of no run"))?;
        let entry = match tag {
            b'e' | b'f' => {
                let way = u16::from_be_bytes(take(&mut rest)?);
                Entry::Emitted {
                    id: id(&mut rest)?,
                    way,
                    of_replayed: *tag == b'f',
                }
            }
            b'd' => {
                let replays = u32::from_be_bytes(take(&mut rest)?);
                Entry::Done {
                    id: id(&mut rest)?,
                    replays,
                }
            }
            b'l' => Entry::Lost,
            _ => return Err(Unreadable("an entry is of no known kind")),
        };
        entries.push((run, entry));
    }
    Ok((head, entries))
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], Unreadable> {
    let (bytes, after) = rest
        .split_first_chunk::<N>()
        .ok_or(Unreadable("it ends in the middle of an entry"))?;
    *rest = after;
    Ok(*bytes)
}

fn id(rest: &mut &[u8]) -> Result<MessageId, Unreadable> {
    take(rest).map(MessageId::from_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(number: u8) -> MessageId {
        MessageId::from_bytes([number; 16])
    }

    fn head() -> Head {
        Head {
            identity: Identity {
                instance: "t".into(),
                flow: "orders".into(),
                step: "crm".into(),
                replica: 2,
                spec: "s".into(),
            },
            ways: vec![vec!["bill".into(), "log".into()], vec![]],
        }
    }

    fn written() -> (Vec<u8>, Vec<(MessageId, Entry)>) {
        let emitted = |id, of_replayed| Entry::Emitted {
            id: number(id),
            way: 258,
            of_replayed,
        };
        let done = Entry::Done {
            id: number(10),
            replays: 70_000,
        };
        let entries = vec![
            (number(1), emitted(7, false)),
            (number(1), emitted(8, true)),
            (number(2), done),
            (number(2), Entry::Lost),
        ];
        let mut report = Vec::new();
        head().write(&mut report);
        let mut last = None;
        for (run, entry) in &entries {
            if last != Some(*run) {
                write_run(*run, &mut report);
                last = Some(*run);
            }
            let before = report.len();
            entry.write(&mut report);
            assert!(report.len() - before + 17 <= ENTRY_BYTES_MAX);
        }
        (report, entries)
    }

    #[test]
    fn what_is_written_is_read() {
        let (report, entries) = written();
        assert_eq!(read(&report), Ok((head(), entries)));
        let mut empty = Vec::new();
        head().write(&mut empty);
        assert_eq!(read(&empty), Ok((head(), vec![])));
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let (report, _) = written();
        let first = report.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for end in 0..report.len() {
            // Cut anywhere, it is read up to there or refused.
            assert!(read(&report[..end]).is_ok() || end != first, "{end}");
        }
        assert!(read(b"").is_err());
        assert!(read(b"{}\n").is_err());
        for tail in [&b"x"[..], b"l", b"e\0"] {
            let broken = [&report[..first], tail].concat();
            assert!(read(&broken).is_err(), "{tail:?}");
        }
    }
}
