//! What the step and its workers say to each other: frames with a length in front, through the
//! worker's standard input and output. No JSON is read or written on the way.

use std::io::{self, Read};

use serde::{Deserialize, Serialize};

/// The first frame a worker is given, as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// The filter.
    pub(crate) filter: String,
    /// The most outputs of one message.
    pub(crate) outputs_max: u32,
    /// How much memory it may use.
    pub(crate) memory_mib: u32,
}

/// An answer's first byte: outputs follow.
pub(crate) const OUTPUTS: u8 = 0;

/// An answer's first byte: a reason follows, as the only part.
pub(crate) const FAILED: u8 = 1;

/// Appends a part: its length, then its bytes.
pub(crate) fn put(out: &mut Vec<u8>, part: &[u8]) {
    let length = u32::try_from(part.len()).expect("no part is near four gigabytes");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(part);
}

/// Appends how many messages follow.
pub(crate) fn put_count(out: &mut Vec<u8>, count: usize) {
    let count = u32::try_from(count).expect("a batch is small");
    out.extend_from_slice(&count.to_le_bytes());
}

/// Reads how many messages follow, or how long a part is; none at the end.
pub(crate) fn take_count(reader: &mut impl Read) -> io::Result<Option<u32>> {
    let mut count = [0; 4];
    match reader.read_exact(&mut count) {
        Ok(()) => Ok(Some(u32::from_le_bytes(count))),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads a part; none at the end.
pub(crate) fn take(reader: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let Some(length) = take_count(reader)? else {
        return Ok(None);
    };
    let mut part = vec![0; length as usize];
    reader.read_exact(&mut part)?;
    Ok(Some(part))
}
