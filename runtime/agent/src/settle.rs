//! What becomes of a message: one pure function.
//!
//! # Invariants
//!
//! - `an_unknown_failure_is_tried_again`: only a named end gives a message up.
//! - `a_rebound_is_not_a_failure`: it has a limit of its own, and uses up no attempt.
//! - `what_failed_beside_others_is_not_given_up`.

use towpath_protocol::frame::Fate;
use towpath_protocol::office::DeadCause;
use towpath_protocol::start::{DELAY_LEVELS, DELAY_UNIT_MS, Retry, Settings};

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The step handled it.
    Done,
    /// The step said that it failed.
    Failed {
        /// What the step wants to become of it.
        fate: Fate,
        /// When it wants to see it again.
        delay_ms: Option<u64>,
    },
    /// It took too long.
    TimedOut,
    /// The process died with it in hand.
    Crashed,
    /// It cannot be read.
    Undecodable,
    /// No key to order it by can be computed.
    NoKey,
    /// The step emitted something for it that cannot be sent on.
    BadOutput,
    /// Its body is not what the step takes.
    Invalid,
}

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Its outputs are published, then it is acknowledged.
    Done,
    /// Tried again after a delay, one attempt more.
    Retry {
        /// The delay.
        delay_ms: u64,
    },
    /// Seen again after a delay, one rebound more.
    Rebound {
        /// The delay.
        delay_ms: u64,
    },
    /// Given up.
    Dead {
        /// Why.
        cause: DeadCause,
    },
}

/// Decides what becomes of a message whose attempt number `attempt` (from 1) ended with `outcome`,
/// and that was rebounded `rebounds` times before. `chance` is in 0..1.
pub fn settle(
    outcome: Outcome,
    attempt: u32,
    rebounds: u32,
    settings: &Settings,
    chance: f64,
) -> Decision {
    let retry = |asked: Option<u64>| {
        if attempt >= settings.retry.attempts {
            return Decision::Dead {
                cause: DeadCause::Attempts,
            };
        }
        Decision::Retry {
            delay_ms: asked.map_or_else(|| back_off(&settings.retry, attempt, chance), longest),
        }
    };
    match outcome {
        Outcome::Done => Decision::Done,
        Outcome::Failed {
            fate: Fate::Retry,
            delay_ms,
        } => retry(delay_ms),
        Outcome::Failed {
            fate: Fate::Permanent,
            ..
        } => Decision::Dead {
            cause: DeadCause::Permanent,
        },
        Outcome::Failed {
            fate: Fate::Rebound,
            delay_ms,
        } => {
            if rebounds >= settings.rebounds_max {
                return Decision::Dead {
                    cause: DeadCause::Rebounds,
                };
            }
            let delay_ms = delay_ms.map_or_else(|| back_off(&settings.retry, 1, chance), longest);
            Decision::Rebound { delay_ms }
        }
        Outcome::TimedOut | Outcome::Crashed => retry(None),
        Outcome::Undecodable => Decision::Dead {
            cause: DeadCause::Undecodable,
        },
        Outcome::NoKey => Decision::Dead {
            cause: DeadCause::Key,
        },
        Outcome::BadOutput => Decision::Dead {
            cause: DeadCause::Output,
        },
        Outcome::Invalid => Decision::Dead {
            cause: DeadCause::Invalid,
        },
    }
}

/// What becomes of a message that was handed over together with others: nobody knows which of them
/// is to blame, so none is given up before it was tried alone.
pub fn not_yet_dead(decision: Decision, settings: &Settings, chance: f64) -> Decision {
    match decision {
        Decision::Dead { .. } => Decision::Retry {
            delay_ms: back_off(&settings.retry, 1, chance),
        },
        other => other,
    }
}

/// Returns how long to wait after attempt number `attempt` (from 1) failed, in milliseconds.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "delays are far below 2^52 ms, and are clamped"
)]
fn back_off(retry: &Retry, attempt: u32, chance: f64) -> u64 {
    let exponent = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
    let wait = retry.initial_ms as f64 * retry.factor.max(1.0).powi(exponent);
    let wait = if wait.is_finite() {
        wait.min(retry.max_ms as f64)
    } else {
        retry.max_ms as f64
    };
    let jitter = retry.jitter.clamp(0.0, 1.0);
    longest((wait * (1.0 + jitter * (2.0 * chance - 1.0))).max(0.0) as u64)
}

/// Cuts a delay to what the ladder can do.
fn longest(delay_ms: u64) -> u64 {
    delay_ms.min(((1 << DELAY_LEVELS) - 1) * DELAY_UNIT_MS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use towpath_protocol::start::Mode;

    fn settings() -> Settings {
        Settings {
            mode: Mode::Frames,
            concurrency: 1,
            timeout_ms: 0,
            retry: Retry {
                attempts: 3,
                initial_ms: 1000,
                factor: 2.0,
                max_ms: 3000,
                jitter: 0.0,
            },
            rebounds_max: 2,
            once: false,
            stream: false,
            track: false,
            from_flows: false,
            body_bytes_max: 100,
            drain_ms: 0,
            memory_bytes: 0,
        }
    }

    #[track_caller]
    fn check(outcome: Outcome, attempt: u32, rebounds: u32, expect: Decision) {
        assert_eq!(settle(outcome, attempt, rebounds, &settings(), 0.5), expect);
    }

    const fn failed(fate: Fate, delay_ms: Option<u64>) -> Outcome {
        Outcome::Failed { fate, delay_ms }
    }

    #[test]
    fn every_outcome_has_its_fate() {
        check(Outcome::Done, 1, 0, Decision::Done);
        check(Outcome::Done, 99, 99, Decision::Done);
        check(
            failed(Fate::Retry, None),
            1,
            0,
            Decision::Retry { delay_ms: 1000 },
        );
        check(
            failed(Fate::Retry, None),
            2,
            0,
            Decision::Retry { delay_ms: 2000 },
        );
        check(
            failed(Fate::Retry, Some(7)),
            2,
            0,
            Decision::Retry { delay_ms: 7 },
        );
        check(
            failed(Fate::Retry, None),
            3,
            0,
            Decision::Dead {
                cause: DeadCause::Attempts,
            },
        );
        check(
            failed(Fate::Retry, Some(7)),
            3,
            0,
            Decision::Dead {
                cause: DeadCause::Attempts,
            },
        );
        check(
            failed(Fate::Permanent, None),
            1,
            0,
            Decision::Dead {
                cause: DeadCause::Permanent,
            },
        );
        check(Outcome::TimedOut, 1, 0, Decision::Retry { delay_ms: 1000 });
        check(
            Outcome::TimedOut,
            3,
            0,
            Decision::Dead {
                cause: DeadCause::Attempts,
            },
        );
        check(Outcome::Crashed, 1, 0, Decision::Retry { delay_ms: 1000 });
        check(
            Outcome::Crashed,
            3,
            0,
            Decision::Dead {
                cause: DeadCause::Attempts,
            },
        );
        check(
            Outcome::Undecodable,
            1,
            0,
            Decision::Dead {
                cause: DeadCause::Undecodable,
            },
        );
        check(
            Outcome::NoKey,
            1,
            0,
            Decision::Dead {
                cause: DeadCause::Key,
            },
        );
        check(
            Outcome::BadOutput,
            1,
            0,
            Decision::Dead {
                cause: DeadCause::Output,
            },
        );
        check(
            Outcome::Invalid,
            1,
            0,
            Decision::Dead {
                cause: DeadCause::Invalid,
            },
        );
    }

    #[test]
    fn an_unknown_failure_is_tried_again() {
        for outcome in [
            Outcome::TimedOut,
            Outcome::Crashed,
            failed(Fate::Retry, None),
        ] {
            assert!(matches!(
                settle(outcome, 1, 0, &settings(), 0.5),
                Decision::Retry { .. }
            ));
        }
    }

    #[test]
    fn a_rebound_is_not_a_failure() {
        check(
            failed(Fate::Rebound, None),
            3,
            0,
            Decision::Rebound { delay_ms: 1000 },
        );
        check(
            failed(Fate::Rebound, Some(60_000)),
            3,
            1,
            Decision::Rebound { delay_ms: 60_000 },
        );
        check(
            failed(Fate::Rebound, None),
            1,
            2,
            Decision::Dead {
                cause: DeadCause::Rebounds,
            },
        );
    }

    #[test]
    fn what_failed_beside_others_is_not_given_up() {
        let dead = Decision::Dead {
            cause: DeadCause::Permanent,
        };
        let again = Decision::Retry { delay_ms: 1000 };
        assert_eq!(not_yet_dead(dead, &settings(), 0.5), again);
        let rebound = Decision::Rebound { delay_ms: 7 };
        assert_eq!(not_yet_dead(rebound, &settings(), 0.5), rebound);
        assert_eq!(
            not_yet_dead(Decision::Done, &settings(), 0.5),
            Decision::Done
        );
    }

    #[test]
    fn a_back_off_grows_to_its_limit_and_leaves_its_jitter_to_chance() {
        let retry = Retry {
            attempts: 99,
            initial_ms: 1000,
            factor: 2.0,
            max_ms: 3000,
            jitter: 0.5,
        };
        assert_eq!(back_off(&retry, 1, 0.0), 500);
        assert_eq!(back_off(&retry, 1, 0.5), 1000);
        assert_eq!(back_off(&retry, 40, 0.5), 3000);
        assert_eq!(back_off(&retry, u32::MAX, 0.5), 3000);
    }

    #[test]
    fn no_delay_is_longer_than_the_ladder() {
        let Decision::Retry { delay_ms } =
            settle(failed(Fate::Retry, Some(u64::MAX)), 1, 0, &settings(), 0.5)
        else {
            panic!("it is retried");
        };
        assert_eq!(delay_ms, ((1 << 24) - 1) * 250);
    }
}
