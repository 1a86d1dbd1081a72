//! Time, as it is passed in.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A moment on both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// For waiting.
    pub instant: Instant,
    /// For records: milliseconds since 1970.
    pub wall_ms: u64,
}

impl Now {
    /// Reads both clocks.
    pub fn read() -> Self {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            instant: Instant::now(),
            wall_ms: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// A clock that can be stopped: the time limits of messages stand still while the broker holds the
/// agent back.
#[derive(Debug, Clone)]
pub struct Stopwatch {
    started: Instant,
    stood_still: Duration,
    stopped_at: Option<Instant>,
}

impl Stopwatch {
    /// Starts a clock at zero.
    pub fn start(now: Instant) -> Self {
        Self {
            started: now,
            stood_still: Duration::ZERO,
            stopped_at: None,
        }
    }

    /// Stops the clock, or lets it go on.
    pub fn set_running(&mut self, running: bool, now: Instant) {
        match (running, self.stopped_at) {
            (true, Some(since)) => {
                self.stood_still += now.saturating_duration_since(since);
                self.stopped_at = None;
            }
            (false, None) => self.stopped_at = Some(now),
            _ => {}
        }
    }

    /// Returns how long it has run.
    pub fn elapsed(&self, now: Instant) -> Duration {
        let until = self.stopped_at.unwrap_or(now);
        until
            .saturating_duration_since(self.started)
            .saturating_sub(self.stood_still)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_clock_stands_still() {
        let zero = Instant::now();
        let at = |seconds| zero + Duration::from_secs(seconds);
        let mut watch = Stopwatch::start(zero);
        watch.set_running(false, at(2));
        assert_eq!(watch.elapsed(at(9)), Duration::from_secs(2));
        watch.set_running(true, at(10));
        assert_eq!(watch.elapsed(at(11)), Duration::from_secs(3));
    }
}
