//! Numbers and times as a person reads them in a table.

use std::time::Duration;

/// A count: `950`, `12.3k`, `4.1M`.
pub(super) fn count(number: u64) -> String {
    let number = number as f64;
    match number {
        n if n < 10_000.0 => format!("{n:.0}"),
        n if n < 999_950.0 => format!("{:.1}k", n / 1e3),
        n if n < 999_950_000.0 => format!("{:.1}M", n / 1e6),
        n => format!("{:.1}G", n / 1e9),
    }
}

/// A count that may not be known.
pub(super) fn maybe_count(number: Option<u64>) -> String {
    number.map_or_else(|| "?".to_owned(), count)
}

/// A rate: `0`, `0.4`, `12`, `4.1k`.
pub(super) fn rate(rate: f64) -> String {
    match rate {
        r if r <= 0.0 => "0".to_owned(),
        r if r < 9.95 => format!("{r:.1}"),
        r if r < 9_999.5 => format!("{r:.0}"),
        r => format!("{:.1}k", r / 1e3),
    }
}

/// A time that something took: `0.4ms`, `12ms`, `1.5s`.
pub(super) fn millis(ms: Option<f64>) -> String {
    match ms {
        None => "-".to_owned(),
        Some(ms) if ms < 9.95 => format!("{ms:.1}ms"),
        Some(ms) if ms < 999.5 => format!("{ms:.0}ms"),
        Some(ms) => format!("{:.1}s", ms / 1e3),
    }
}

/// How far two times are apart, in the unit that matters: `12s`, `5m`, `3h`, `2d`.
pub(super) fn apart(one: u64, other: u64) -> String {
    let seconds = one.abs_diff(other).div_ceil(1_000);
    match seconds {
        s if s < 120 => format!("{s}s"),
        s if s < 7_200 => format!("{}m", s / 60),
        s if s < 172_800 => format!("{}h", s / 3_600),
        s => format!("{}d", s / 86_400),
    }
}

/// How long it is until a moment, in the two units that matter: `in 45s`, `in 3m 20s`, `in 2d 4h`.
pub(super) fn until(now: u64, at: u64) -> String {
    let seconds = at.saturating_sub(now).div_ceil(1_000);
    match seconds {
        0 => "now".to_owned(),
        s if s < 60 => format!("in {s}s"),
        s if s < 3_600 => format!("in {}m {}s", s / 60, s % 60),
        s if s < 86_400 => format!("in {}h {}m", s / 3_600, s % 3_600 / 60),
        s => format!("in {}d {}h", s / 86_400, s % 86_400 / 3_600),
    }
}

/// A moment in UTC: `2026-11-21 03:14:15`.
pub(super) fn moment(ms: u64) -> String {
    i64::try_from(ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or_else(
            || "?".to_owned(),
            |at| at.strftime("%Y-%m-%d %H:%M:%S").to_string(),
        )
}

/// A moment by the clock of a place: `2026-11-23 06:00:00 in Europe/Berlin`.
pub(super) fn moment_at(ms: u64, zone: &str) -> String {
    let place = jiff::tz::TimeZone::get(zone).ok();
    let at = i64::try_from(ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    match (place, at) {
        (Some(place), Some(at)) => {
            let wall = at.to_zoned(place).strftime("%Y-%m-%d %H:%M:%S").to_string();
            format!("{wall} in {zone}")
        }
        _ => format!("{} in UTC", moment(ms)),
    }
}

/// A time of day in UTC, to the millisecond: `03:14:15.926`.
pub(super) fn time_of_day(ms: u64) -> String {
    i64::try_from(ms)
        .ok()
        .filter(|ms| *ms > 0)
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or_else(
            || "-".to_owned(),
            |at| at.strftime("%H:%M:%S%.3f").to_string(),
        )
}

/// Reads a duration as it is written on the command line: `90s`, `2m`, `1h`, `500ms`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| "write it like `90s`, `2m` or `1h`".to_owned())?;
    let ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("its unit is one of `ms`, `s`, `m`, `h`".to_owned()),
    };
    Ok(Duration::from_millis(number.saturating_mul(ms)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (number, expect) in [
            (0, "0"),
            (9_999, "9999"),
            (12_345, "12.3k"),
            (4_100_000, "4.1M"),
        ] {
            assert_eq!(count(number), expect);
        }
        assert_eq!(maybe_count(None), "?");
        for (number, expect) in [(0.0, "0"), (0.44, "0.4"), (12.4, "12"), (41_000.0, "41.0k")] {
            assert_eq!(rate(number), expect);
        }
        for (ms, expect) in [(0.42, "0.4ms"), (12.3, "12ms"), (1_500.0, "1.5s")] {
            assert_eq!(millis(Some(ms)), expect);
        }
    }

    #[test]
    fn times_are_near() {
        for (ms, expect) in [
            (0, "0s"),
            (11_001, "12s"),
            (600_000, "10m"),
            (90_000_000, "25h"),
        ] {
            assert_eq!(apart(ms, 0), expect);
            assert_eq!(apart(0, ms), expect);
        }
        for (ms, expect) in [
            (0, "now"),
            (44_100, "in 45s"),
            (200_000, "in 3m 20s"),
            (9_999_000, "in 2h 46m"),
            (180_000_000, "in 2d 2h"),
        ] {
            assert_eq!(until(5, ms + 5), expect);
        }
        assert_eq!(moment(1_795_222_861_000), "2026-11-21 01:01:01");
        assert_eq!(time_of_day(1_795_222_861_005), "01:01:01.005");
    }

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("120s"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        for wrong in ["", "5", "s", "1d", "-1s", "1 s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
