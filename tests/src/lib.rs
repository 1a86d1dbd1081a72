//! What the end-to-end tests stand on: a real control plane, a real engine, a real broker.
//!
//! Every test has an instance of its own: its own virtual host on the broker, its own network and
//! containers on the engine, its own folder. What it made is removed when it is dropped.
//!
//! Nothing here sleeps for luck: [`eventually`] waits for a condition, and says what it saw last.

pub mod demo;
pub mod http;
pub mod instance;
pub mod load;
pub mod machine;
pub mod postgres;
pub mod proxy;
pub mod source;

use std::cell::RefCell;
use std::time::{Duration, Instant};

pub use demo::Demo;
pub use instance::Instance;
pub use machine::BrokerVersion;
pub use postgres::Postgres;
pub use proxy::{Condition, Proxy};
pub use source::Source;

/// Waits until `look` returns something, and returns that; `look` says what it saw instead.
///
/// # Panics
///
/// Panics with what was seen last if it takes longer than `limit`.
#[track_caller]
pub fn eventually<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<T, String>,
) -> T {
    let began = Instant::now();
    loop {
        match look() {
            Ok(seen) => return seen,
            Err(seen) if began.elapsed() > limit => {
                let failure = format!("{what}: not within {limit:?}; last seen: {seen}");
                AWAITED.set(failure.clone());
                panic!("{failure}")
            }
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

thread_local! {
    /// What this thread awaited in vain. An instance says it again after its log, because the
    /// ends of long outputs are what is kept of them.
    static AWAITED: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Turns a condition into what [`eventually`] wants.
pub fn holds(condition: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(otherwise()) }
}
