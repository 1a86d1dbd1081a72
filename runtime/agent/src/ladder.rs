//! How a delayed message is routed: the ladder of ARCHITECTURE.md.

use towpath_protocol::start::{DELAY_LEVELS, DELAY_UNIT_MS};

/// Returns a delay as a number of units, rounded up: never early.
pub fn units(delay_ms: u64) -> u32 {
    let longest = (1 << DELAY_LEVELS) - 1;
    u32::try_from(delay_ms.div_ceil(DELAY_UNIT_MS))
        .unwrap_or(longest)
        .min(longest)
}

/// Returns the level whose exchange a delay is published to; none if there is nothing to wait for.
pub fn level(units: u32) -> Option<usize> {
    units.checked_ilog2().map(|level| level as usize)
}

/// Returns the routing key: the bits, most significant first, then the step's own key.
pub fn routing_key(units: u32, own_key: &str) -> String {
    let mut key = String::with_capacity(2 * DELAY_LEVELS + own_key.len());
    for level in (0..DELAY_LEVELS).rev() {
        key.push(if units >> level & 1 == 1 { '1' } else { '0' });
        key.push('.');
    }
    key.push_str(own_key);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(delay_ms: u64, expect_units: u32, expect_level: Option<usize>) {
        assert_eq!(units(delay_ms), expect_units);
        assert_eq!(level(units(delay_ms)), expect_level);
    }

    #[test]
    fn a_delay_starts_at_its_highest_bit() {
        check(0, 0, None);
        check(1, 1, Some(0));
        check(250, 1, Some(0));
        check(251, 2, Some(1));
        check(1000, 4, Some(2));
        check(1250, 5, Some(2));
        check(u64::MAX, (1 << 24) - 1, Some(23));
    }

    #[test]
    fn a_routing_key_spells_the_bits() {
        assert_eq!(
            routing_key(5, "orders.crm"),
            format!("{}1.0.1.orders.crm", "0.".repeat(21))
        );
        assert_eq!(
            routing_key((1 << 24) - 1, "f.s"),
            format!("{}f.s", "1.".repeat(24))
        );
    }

    #[test]
    fn the_levels_of_the_key_wait_as_long_as_the_delay() {
        for wanted in [1, 2, 3, 7, 100, 4095, (1 << 24) - 1] {
            let key = routing_key(wanted, "f.s");
            let waited: u32 = key
                .split('.')
                .take(DELAY_LEVELS)
                .enumerate()
                .filter(|(_, bit)| *bit == "1")
                .map(|(index, _)| 1 << (DELAY_LEVELS - 1 - index))
                .sum();
            assert_eq!(waited, wanted);
        }
    }
}
