//! How many deliveries may be unacknowledged at a time.

use towpath_protocol::manifest::Kind;
use towpath_protocol::start::Start;

use crate::pace::is_slow;

/// The most: each may be half a megabyte.
const PREFETCH_MAX: u32 = 256;

/// Returns how many deliveries may be unacknowledged: enough to keep the step busy while earlier
/// ones are confirmed, and few where messages are slow, so that replicas share the work.
pub fn prefetch(start: &Start) -> u16 {
    let (settings, handing) = (&start.settings, &start.handing);
    if start.kind == Kind::Poll {
        return 2;
    }
    if handing.rate.is_some_and(is_slow) {
        return 1;
    }
    let concurrency = settings.concurrency;
    let deliveries = (2 * concurrency)
        .clamp(2, 16)
        .max((concurrency + 2).min(64));
    // Messages that have to be claimed are under way for longer before they are handed over.
    let deliveries = if settings.once && handing.rate.is_none() {
        4 * deliveries
    } else {
        deliveries
    };
    // The messages of a batch may come one by one, and while it is worked on, those of the next.
    let together = handing.batch.map_or(0, |batch| 2 * batch.max);
    let deliveries = deliveries.max(together).min(PREFETCH_MAX);
    u16::try_from(deliveries).expect("it is bounded")
}
