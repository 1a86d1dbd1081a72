//! The two pipes to the agent, each with a thread of its own, so that a handler that blocks stops
//! neither.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use tokio::sync::mpsc;
use towpath_protocol::frame::{STEP_READS_FD, STEP_WRITES_FD};

use crate::outbox::Outbox;

/// How much is read at a time: the capacity of a pipe.
const READ_BYTES: usize = 64 << 10;

/// How many chunks wait for the main loop; the agent sends no more than `concurrency` messages.
const CHUNKS_WAITING: usize = 4;

/// A line longer than this cannot come from an agent.
const LINE_BYTES_MAX: usize = 64 << 20;

/// The stack of each thread: they copy bytes.
const STACK_BYTES: usize = 128 << 10;

/// Opens the pipes, if an agent made them.
///
/// By path: taking over an inherited descriptor would need `unsafe`.
pub(crate) fn open() -> io::Result<(File, File)> {
    let reads = pipe(STEP_READS_FD, OpenOptions::new().read(true))?;
    let writes = pipe(STEP_WRITES_FD, OpenOptions::new().write(true))?;
    Ok((reads, writes))
}

fn pipe(descriptor: i32, options: &OpenOptions) -> io::Result<File> {
    let path = PathBuf::from(format!("/proc/self/fd/{descriptor}"));
    if !std::fs::metadata(&path)?.file_type().is_fifo() {
        return Err(io::Error::other(format!(
            "descriptor {descriptor} is not a pipe"
        )));
    }
    options.open(path)
}

/// Reads whole lines until the agent is gone.
pub(crate) fn read(mut pipe: File) -> io::Result<mpsc::Receiver<Vec<u8>>> {
    let (chunks, receiver) = mpsc::channel(CHUNKS_WAITING);
    thread::Builder::new()
        .name("frames-in".into())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            let mut buffer = vec![0; READ_BYTES];
            let mut filled = 0;
            loop {
                if filled == buffer.len() {
                    buffer.resize(buffer.len() * 2, 0);
                }
                let read = match pipe.read(&mut buffer[filled..]) {
                    Ok(0) => return,
                    Ok(read) => read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) => return,
                };
                let end = buffer[filled..filled + read]
                    .iter()
                    .rposition(|byte| *byte == b'\n');
                let start = filled;
                filled += read;
                let Some(end) = end.map(|end| start + end + 1) else {
                    if filled > LINE_BYTES_MAX {
                        return;
                    }
                    continue;
                };
                let chunk = buffer[..end].to_vec();
                buffer.copy_within(end..filled, 0);
                filled -= end;
                if buffer.len() > READ_BYTES && filled < READ_BYTES {
                    buffer.truncate(READ_BYTES);
                    buffer.shrink_to_fit();
                }
                if chunks.blocking_send(chunk).is_err() {
                    return;
                }
            }
        })?;
    Ok(receiver)
}

/// Writes what is in the outbox until it is closed or nobody reads.
pub(crate) fn write(mut pipe: File, outbox: Arc<Outbox>) -> io::Result<JoinHandle<()>> {
    thread::Builder::new()
        .name("frames-out".into())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            let mut frames = Vec::new();
            while outbox.take(&mut frames) {
                if pipe.write_all(&frames).is_err() {
                    outbox.abandon();
                    return;
                }
            }
        })
}
