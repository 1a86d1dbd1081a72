//! The time of the schedule: it stands still while a fault is being made, so that messages keep
//! coming for as long as there are faults, however slow the machine is.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The time of the schedule.
pub(crate) struct Clock {
    length: Duration,
    state: Mutex<State>,
}

struct State {
    began: Instant,
    stood_still: Duration,
    /// Where the schedule holds it.
    until: Duration,
}

impl Clock {
    pub(crate) fn new(length: Duration) -> Self {
        Self {
            length,
            state: Mutex::new(State {
                began: Instant::now(),
                stood_still: Duration::ZERO,
                until: Duration::ZERO,
            }),
        }
    }

    /// How long the schedule is.
    pub(crate) fn length(&self) -> Duration {
        self.length
    }

    /// Lets it go on to `until`; says whether it is there.
    pub(crate) fn advance_to(&self, until: Duration) -> bool {
        let mut state = self.state();
        if state.until == Duration::ZERO && until > Duration::ZERO {
            state.began = Instant::now();
            state.stood_still = Duration::ZERO;
        }
        state.until = state.until.max(until);
        state.now() >= until
    }

    /// Takes out of it what a fault took to be made.
    pub(crate) fn stand_still(&self, took: Duration) {
        self.state().stood_still += took;
    }

    /// What time it is: never later than what comes next.
    pub(crate) fn now(&self) -> Duration {
        self.state().now()
    }

    /// Ends it, whatever it had come to.
    pub(crate) fn finish(&self) {
        let mut state = self.state();
        state.until = self.length;
        state.stood_still = Duration::ZERO;
        if let Some(began) = Instant::now().checked_sub(self.length) {
            state.began = began;
        }
    }

    /// How many of `count` are there by now, evenly over the whole schedule.
    pub(crate) fn share_of(&self, count: u64) -> u64 {
        if self.length.is_zero() {
            return count;
        }
        let part = self.now().as_secs_f64() / self.length.as_secs_f64();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is between 0 and a count"
        )]
        let share = (part.min(1.0) * count as f64).round() as u64;
        share
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn now(&self) -> Duration {
        self.began
            .elapsed()
            .saturating_sub(self.stood_still)
            .min(self.until)
    }
}
