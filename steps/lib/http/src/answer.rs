//! What came back, and what it means.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::header::HeaderMap;
use reqwest::{StatusCode, Url};

use crate::wait::retry_after;

/// The number of characters of an answer that a reason quotes.
const EXCERPT_CHARS_MAX: usize = 300;

/// An answer, whole.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body; of an answer that is no success, the beginning.
    pub body: Bytes,
    /// Where it came from, after redirects.
    pub url: Url,
}

/// What a status means for the one who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It was done.
    Done,
    /// It was not done, but may be done later.
    Retry {
        /// When the server wants to be asked again.
        after: Option<Duration>,
    },
    /// It will never be done.
    Permanent,
}

impl Answer {
    /// Judges the status: 2xx and `success` are done; 408, 425, 429 and 5xx may succeed later;
    /// everything else never will.
    pub fn verdict(&self, success: &[u16], now: SystemTime) -> Verdict {
        let code = self.status.as_u16();
        match code {
            _ if self.status.is_success() || success.contains(&code) => Verdict::Done,
            // 501 and 505 say that the server will not learn it.
            501 | 505 => Verdict::Permanent,
            408 | 425 | 429 | 500.. => Verdict::Retry {
                after: retry_after(&self.headers, now),
            },
            _ => Verdict::Permanent,
        }
    }

    /// Describes an answer that is no success, for a reason: its status and what it says, cut and
    /// on one line.
    pub fn complaint(&self) -> String {
        let excerpt = self.excerpt();
        if excerpt.is_empty() {
            format!("the server answered {}", self.status)
        } else {
            format!("the server answered {}: {excerpt}", self.status)
        }
    }

    fn excerpt(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        let mut words = text.split(|c: char| c.is_whitespace() || c.is_control());
        let mut excerpt = String::new();
        let mut count = 0;
        for word in words.by_ref().filter(|word| !word.is_empty()) {
            if !excerpt.is_empty() {
                excerpt.push(' ');
                count += 1;
            }
            for character in word.chars() {
                if count == EXCERPT_CHARS_MAX {
                    excerpt.push('…');
                    return excerpt;
                }
                excerpt.push(character);
                count += 1;
            }
        }
        excerpt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: Bytes::copy_from_slice(body.as_bytes()),
            url: "http://shop/".parse().unwrap(),
        }
    }

    #[track_caller]
    fn check(status: u16, expect: Verdict) {
        let verdict = answer(status, "").verdict(&[409], SystemTime::UNIX_EPOCH);
        assert_eq!(verdict, expect, "{status}");
    }

    #[test]
    fn every_status_has_one_meaning() {
        for status in [200, 201, 202, 204, 299, 409] {
            check(status, Verdict::Done);
        }
        for status in [408, 425, 429, 500, 502, 503, 504, 507, 520, 599] {
            check(status, Verdict::Retry { after: None });
        }
        for status in [
            300, 304, 400, 401, 403, 404, 405, 410, 413, 422, 451, 501, 505,
        ] {
            check(status, Verdict::Permanent);
        }
    }

    #[test]
    fn a_complaint_is_one_short_line() {
        assert_eq!(
            answer(404, "").complaint(),
            "the server answered 404 Not Found"
        );
        assert_eq!(
            answer(422, "{\n  \"error\": \"no\u{0}\tname\"\n}").complaint(),
            "the server answered 422 Unprocessable Entity: { \"error\": \"no name\" }"
        );
        let long = answer(400, &"ü".repeat(10_000)).complaint();
        assert!(long.ends_with("ü…"));
        assert!(long.chars().count() < 400);
    }
}
