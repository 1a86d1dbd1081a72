//! Waits for children: one thread owns all waiting, because PID 1 inherits every orphan, and a
//! child may leave its process group.

use std::sync::mpsc;

use rustix::process::{WaitOptions, WaitStatus, wait};
use tokio::sync::mpsc as async_mpsc;

/// The end of a child.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// Its process id.
    pub pid: i32,
    /// How it ended.
    pub status: WaitStatus,
}

/// Tells the thread that there is a child to wait for.
pub struct Reaper {
    started: mpsc::Sender<()>,
}

impl Reaper {
    /// Starts the thread.
    pub fn start() -> std::io::Result<(Self, async_mpsc::Receiver<Ended>)> {
        let (started, starts) = mpsc::channel();
        let (ends, ended) = async_mpsc::channel(16);
        std::thread::Builder::new()
            .name("reaper".into())
            .stack_size(128 << 10)
            .spawn(move || reap(&starts, &ends))?;
        Ok((Self { started }, ended))
    }

    /// There is a new child.
    pub fn child_started(&self) {
        // The thread ends only with the process.
        self.started.send(()).ok();
    }
}

fn reap(starts: &mpsc::Receiver<()>, ends: &async_mpsc::Sender<Ended>) {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) => {
                let ended = Ended {
                    pid: pid.as_raw_nonzero().get(),
                    status,
                };
                if ends.blocking_send(ended).is_err() {
                    return;
                }
            }
            // There is no child at all: sleep until one is started.
            Err(rustix::io::Errno::CHILD) => {
                if starts.recv().is_err() {
                    return;
                }
            }
            Ok(None) | Err(_) => {}
        }
    }
}
