//! How many messages a webhook takes in a time.
//!
//! # Invariants
//!
//! - `there_are_never_more_than_the_rate_says`, in whatever stretch of that time.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use towpath_flow::webhook::Rate;

/// Remembers when it let the last ones pass. The flow file bounds how many it has to remember.
#[derive(Debug)]
pub(super) struct Limiter {
    pub(super) rate: Rate,
    passed: Mutex<VecDeque<u64>>,
}

impl Limiter {
    pub(super) fn new(rate: Rate) -> Self {
        Self {
            rate,
            passed: Mutex::default(),
        }
    }

    /// Lets one pass, or says in how many seconds one may.
    pub(super) fn pass(&self, now_ms: u64) -> Result<(), u32> {
        let per_ms = u64::try_from(self.rate.per.as_millis()).unwrap_or(u64::MAX);
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        while passed.front().is_some_and(|at| at + per_ms <= now_ms) {
            passed.pop_front();
        }
        match passed.front() {
            Some(first) if passed.len() >= self.rate.count as usize => {
                let wait_ms = (first + per_ms).saturating_sub(now_ms);
                Err(u32::try_from(wait_ms.div_ceil(1_000))
                    .unwrap_or(u32::MAX)
                    .max(1))
            }
            _ => {
                passed.push_back(now_ms);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn there_are_never_more_than_the_rate_says() {
        let limiter = Limiter::new(Rate {
            count: 3,
            per: Duration::from_secs(60),
        });
        let passed: Vec<u64> = (0..400_u64)
            .map(|step| step * 777)
            .filter(|now| limiter.pass(*now).is_ok())
            .collect();
        assert!(passed.len() >= 15, "{passed:?}");
        for window in passed.windows(4) {
            assert!(window[3] - window[0] >= 60_000, "{window:?}");
        }
    }

    #[test]
    fn it_says_when_to_come_again() {
        let limiter = Limiter::new(Rate {
            count: 1,
            per: Duration::from_secs(60),
        });
        assert_eq!(limiter.pass(1_000), Ok(()));
        assert_eq!(limiter.pass(1_500), Err(60));
        assert_eq!(limiter.pass(60_999), Err(1));
        assert_eq!(limiter.pass(61_000), Ok(()));
    }
}
