//! Durations (`30s`) and sizes (`256MiB`) as they are written in a flow file.

use std::time::Duration;

use crate::text::shown;

const DURATION_UNITS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

const SIZE_UNITS: [(&str, u64); 3] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

const RATE_UNITS: [(&str, u64); 3] = [("/s", 1_000), ("/m", 60_000), ("/h", 3_600_000)];

/// Why something cannot be read, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unreadable {
    pub(crate) why: String,
    pub(crate) help: String,
}

/// Reads a duration: a whole number and one unit.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, Unreadable> {
    let ms = parse(text, &DURATION_UNITS, "30s", |unit| {
        match unit.to_lowercase().as_str() {
            "ms" | "msec" | "msecs" | "millis" | "milliseconds" => Some("ms"),
            "s" | "sec" | "secs" | "second" | "seconds" => Some("s"),
            "m" | "min" | "mins" | "minute" | "minutes" => Some("m"),
            "h" | "hr" | "hrs" | "hour" | "hours" => Some("h"),
            "d" | "day" | "days" => Some("d"),
            _ => None,
        }
    })?;
    Ok(Duration::from_millis(ms))
}

/// Reads a size: a whole number and one unit, in bytes.
pub(crate) fn parse_size(text: &str) -> Result<u64, Unreadable> {
    parse(text, &SIZE_UNITS, "256MiB", |unit| {
        match unit.to_lowercase().as_str() {
            "k" | "kb" | "ki" | "kib" => Some("KiB"),
            "m" | "mb" | "mi" | "mib" => Some("MiB"),
            "g" | "gb" | "gi" | "gib" => Some("GiB"),
            _ => None,
        }
    })
}

/// Reads a rate: a whole number and the time it is for. Returns both, the time in milliseconds.
pub(crate) fn parse_rate(text: &str) -> Result<(u64, u64), Unreadable> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let per_ms = RATE_UNITS.iter().find(|(name, _)| *name == unit);
    let meant = |unit: &str| match unit.to_lowercase().trim_start_matches(['/', ' ']) {
        "s" | "sec" | "second" | "per second" => Some("/s"),
        "m" | "min" | "minute" | "per minute" => Some("/m"),
        "h" | "hr" | "hour" | "per hour" => Some("/h"),
        _ => None,
    };
    let ones = RATE_UNITS.map(|(name, _)| (name, 1));
    let count = parse(text, &ones, "10/s", meant)?;
    Ok((count, per_ms.map_or(1_000, |(_, per_ms)| *per_ms)))
}

fn parse(
    text: &str,
    units: &[(&'static str, u64)],
    example: &str,
    meant: impl Fn(&str) -> Option<&'static str>,
) -> Result<u64, Unreadable> {
    let unreadable = |why: String, help: String| Err(Unreadable { why, help });
    let names: Vec<&str> = units.iter().map(|(name, _)| *name).collect();
    let form = format!(
        "write a whole number and one of {}, such as `{example}`",
        names.join(", ")
    );
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return unreadable("it does not begin with a number".to_owned(), form);
    }
    if unit.is_empty() {
        let default = example.trim_start_matches(|c: char| c.is_ascii_digit());
        return unreadable(
            "it has no unit".to_owned(),
            format!("did you mean {}?", shown(&format!("{number}{default}"))),
        );
    }
    let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
        let help = meant(unit.trim()).map_or(form, |unit| {
            format!("did you mean {}?", shown(&format!("{number}{unit}")))
        });
        let why = if unit.starts_with(['.', ',']) {
            "the number is not whole".to_owned()
        } else {
            format!("{} is not a unit", shown(unit))
        };
        return unreadable(why, help);
    };
    match number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(*factor))
    {
        Some(value) => Ok(value),
        None => unreadable("the number is too large".to_owned(), form),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expect_ms: u64) {
        assert_eq!(
            parse_duration(text),
            Ok(Duration::from_millis(expect_ms)),
            "{text}"
        );
    }

    #[track_caller]
    fn check_help(text: &str, expect: &str) {
        let error = parse_duration(text).unwrap_err();
        assert!(error.help.contains(expect), "{text}: {error:?}");
    }

    #[test]
    fn durations() {
        check("250ms", 250);
        check("30s", 30_000);
        check("5m", 300_000);
        check("2h", 7_200_000);
        check("3d", 259_200_000);
        check("0s", 0);
        check_help("30", "`30s`");
        check_help("5 min", "`5m`");
        check_help("5M", "`5m`");
        check_help("1h30m", "such as `30s`");
        check_help("1.5s", "whole number");
        check_help("", "whole number");
        check_help("-5s", "whole number");
        check_help("99999999999999999999d", "whole number");
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("256MiB"), Ok(256 << 20));
        assert_eq!(
            parse_size("256MB").unwrap_err().help,
            "did you mean `256MiB`?"
        );
        assert_eq!(parse_size("1g").unwrap_err().help, "did you mean `1GiB`?");
        assert_eq!(parse_size("1").unwrap_err().help, "did you mean `1MiB`?");
    }
}
