//! What goes wrong, and when: a pure function of a seed and the number of a request.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

/// How often what goes wrong: parts of 1,000 requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// 429 with `Retry-After: 1`.
    pub too_many: u64,
    /// 500, and nothing was done.
    pub error: u64,
    /// 500, although it was done. Only the CRM: a shop's lists are only read.
    pub error_after: u64,
    /// An answer that takes [`Rates::slow_for`].
    pub slow: u64,
    /// How long a slow answer takes.
    pub slow_for: Duration,
    /// How long every answer takes.
    pub delay: Duration,
}

impl Rates {
    /// Nothing goes wrong.
    pub const NONE: Self = Self {
        too_many: 0,
        error: 0,
        error_after: 0,
        slow: 0,
        slow_for: Duration::ZERO,
        delay: Duration::ZERO,
    };

    /// About one request in twelve goes wrong.
    pub const REAL: Self = Self {
        too_many: 20,
        error: 20,
        error_after: 10,
        slow: 30,
        slow_for: Duration::from_millis(1500),
        delay: Duration::ZERO,
    };
}

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is answered.
    Fine,
    /// 429 with `Retry-After: 1`.
    TooMany,
    /// 500, and nothing was done.
    Error,
    /// 500, although it was done.
    ErrorAfter,
    /// It is answered, slowly.
    Slow,
}

/// Decides what happens to each request, and counts it.
#[derive(Debug)]
pub struct Mischief {
    rates: Rates,
    seed: u64,
    requests: AtomicU64,
    too_many: AtomicU64,
    error: AtomicU64,
    error_after: AtomicU64,
    slow: AtomicU64,
}

/// What went wrong so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Misbehaved {
    /// Answers 429.
    pub too_many: u64,
    /// Answers 500 with nothing done.
    pub error: u64,
    /// Answers 500 although it was done.
    pub error_after: u64,
    /// Slow answers.
    pub slow: u64,
}

impl Mischief {
    /// Makes the decisions for a seed.
    pub fn new(rates: Rates, seed: u64) -> Self {
        Self {
            rates,
            seed,
            requests: AtomicU64::new(0),
            too_many: AtomicU64::new(0),
            error: AtomicU64::new(0),
            error_after: AtomicU64::new(0),
            slow: AtomicU64::new(0),
        }
    }

    /// Decides about the next request, and waits if it is to be slow.
    pub async fn next(&self) -> Fate {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let fate = decide(&self.rates, self.seed, number);
        let counter = match fate {
            Fate::Fine => None,
            Fate::TooMany => Some(&self.too_many),
            Fate::Error => Some(&self.error),
            Fate::ErrorAfter => Some(&self.error_after),
            Fate::Slow => Some(&self.slow),
        };
        if let Some(counter) = counter {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        let slow_for = if fate == Fate::Slow {
            self.rates.slow_for
        } else {
            Duration::ZERO
        };
        let wait = self.rates.delay + slow_for;
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        fate
    }

    /// Returns how many requests there were.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Returns what went wrong so far.
    pub fn misbehaved(&self) -> Misbehaved {
        Misbehaved {
            too_many: self.too_many.load(Ordering::Relaxed),
            error: self.error.load(Ordering::Relaxed),
            error_after: self.error_after.load(Ordering::Relaxed),
            slow: self.slow.load(Ordering::Relaxed),
        }
    }
}

/// Decides what happens to the request of a number.
pub fn decide(rates: &Rates, seed: u64, number: u64) -> Fate {
    let mut draw = mix(seed ^ mix(number)) % 1000;
    let fates = [
        (rates.too_many, Fate::TooMany),
        (rates.error, Fate::Error),
        (rates.error_after, Fate::ErrorAfter),
        (rates.slow, Fate::Slow),
    ];
    for (rate, fate) in fates {
        if draw < rate {
            return fate;
        }
        draw -= rate;
    }
    Fate::Fine
}

/// The last step of SplitMix64: spreads a number over all 64 bits.
pub fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rates_are_kept_and_repeat() {
        let draw = || -> Vec<Fate> { (0..10_000).map(|n| decide(&Rates::REAL, 7, n)).collect() };
        let fates = draw();
        let count = |fate| fates.iter().filter(|drawn| **drawn == fate).count();
        assert!(
            (150..250).contains(&count(Fate::TooMany)),
            "{}",
            count(Fate::TooMany)
        );
        assert!(
            (150..250).contains(&count(Fate::Error)),
            "{}",
            count(Fate::Error)
        );
        assert!(
            (60..140).contains(&count(Fate::ErrorAfter)),
            "{}",
            count(Fate::ErrorAfter)
        );
        assert!(
            (240..360).contains(&count(Fate::Slow)),
            "{}",
            count(Fate::Slow)
        );
        assert_eq!(fates, draw());
        assert!((0..10_000).all(|n| decide(&Rates::NONE, 7, n) == Fate::Fine));
    }
}
