//! `Retry-After`: when a server wants to be asked again.

use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};

/// The longest wait that is believed, a week: quotas begin anew each day or week. A server that says
/// more is asked again after this.
pub const WAIT_MAX: Duration = Duration::from_hours(7 * 24);

/// Reads `Retry-After`, in seconds or as a date, at most [`WAIT_MAX`]. A date in the past is no
/// wait; what cannot be read is ignored.
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if text.starts_with(|c: char| c.is_ascii_digit()) {
        // Fractions are not in the standard, but they are sent.
        let seconds: f64 = text.parse().ok()?;
        Duration::try_from_secs_f64(seconds).unwrap_or(WAIT_MAX)
    } else {
        let date = httpdate::parse_http_date(text).ok()?;
        date.duration_since(now).unwrap_or(Duration::ZERO)
    };
    Some(wait.min(WAIT_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expect: Option<u64>) {
        let now = httpdate::parse_http_date("Sat, 21 Nov 2026 12:00:00 GMT").unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, text.parse().unwrap());
        assert_eq!(
            retry_after(&headers, now).map(|wait| wait.as_millis()),
            expect.map(u128::from),
            "{text}"
        );
    }

    #[test]
    fn seconds_and_dates_are_read_and_capped() {
        check("7", Some(7_000));
        check("0", Some(0));
        check(" 1.5 ", Some(1_500));
        check("999999999", Some(604_800_000));
        check("99999999999999999999999999", Some(604_800_000));
        check("Sat, 21 Nov 2026 12:00:30 GMT", Some(30_000));
        check("Sat, 21 Nov 2026 11:00:00 GMT", Some(0));
        check("Sun, 21 Nov 2027 12:00:00 GMT", Some(604_800_000));
        check("soon", None);
        check("-5", None);
        check("1e", None);
    }

    #[test]
    fn no_header_is_no_wait() {
        assert_eq!(retry_after(&HeaderMap::new(), SystemTime::UNIX_EPOCH), None);
    }
}
