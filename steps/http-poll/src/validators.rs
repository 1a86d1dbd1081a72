//! `ETag` and `Last-Modified`: what a source says of its answer, to be asked later whether it changed.
//!
//! # Invariants
//!
//! - `a_change_in_the_same_second_is_seen`: a `Last-Modified` that is as young as the answer itself
//!   proves nothing, because what follows in the same second has the same.

use serde::{Deserialize, Serialize};
use towpath_step_http::{HeaderMap, HeaderName, HeaderValue, header};

/// The longest `ETag` that is kept: it goes into the checkpoint.
const BYTES_MAX: usize = 1024;

/// What a source said of a list that had one page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Validators {
    /// The hash of what was asked, and of what is made of the answer: for anything else they say
    /// nothing.
    of: String,
    /// The `ETag`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    etag: Option<String>,
    /// The `Last-Modified`, if there is no `ETag`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    modified: Option<String>,
}

impl Validators {
    /// Reads them; none if the answer has none that can be relied on.
    pub(crate) fn read(of: &str, headers: &HeaderMap) -> Option<Self> {
        let text = |name: HeaderName| {
            let value = headers.get(name)?.to_str().ok()?;
            (!value.is_empty() && value.len() <= BYTES_MAX).then(|| value.to_owned())
        };
        let etag = text(header::ETAG);
        let modified = text(header::LAST_MODIFIED).filter(|modified| {
            let time = |text: &str| httpdate::parse_http_date(text).ok();
            let answered = text(header::DATE).and_then(|date| time(&date));
            time(modified) < answered && time(modified).is_some()
        });
        let modified = modified.filter(|_| etag.is_none());
        (etag.is_some() || modified.is_some()).then(|| Self {
            of: of.to_owned(),
            etag,
            modified,
        })
    }

    /// Says whether they are of this question.
    pub(crate) fn are_of(&self, of: &str) -> bool {
        self.of == of
    }

    /// Asks whether anything changed.
    pub(crate) fn ask(&self, headers: &mut HeaderMap) {
        let asked = [
            (header::IF_NONE_MATCH, &self.etag),
            (header::IF_MODIFIED_SINCE, &self.modified),
        ];
        for (name, value) in asked {
            let value = value.as_ref().map(HeaderValue::try_from);
            if let Some(Ok(value)) = value {
                headers.insert(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(answer: &[(&str, &str)]) -> Vec<(String, String)> {
        let mut headers = HeaderMap::new();
        for (name, value) in answer {
            let name: HeaderName = name.parse().unwrap();
            headers.insert(name, value.parse().unwrap());
        }
        let mut asked = HeaderMap::new();
        if let Some(validators) = Validators::read("x", &headers) {
            assert!(validators.are_of("x") && !validators.are_of("y"));
            validators.ask(&mut asked);
        }
        let text = |value: &HeaderValue| value.to_str().unwrap().to_owned();
        let asked = asked.iter();
        asked
            .map(|(name, value)| (name.to_string(), text(value)))
            .collect()
    }

    #[test]
    fn an_etag_is_asked_with_as_it_is() {
        let modified = ("last-modified", "Sat, 21 Nov 2026 12:00:00 GMT");
        assert_eq!(
            asked(&[("etag", "W/\"7\""), modified]),
            [("if-none-match".to_owned(), "W/\"7\"".to_owned())]
        );
        assert_eq!(asked(&[]), []);
        assert_eq!(asked(&[("etag", &"x".repeat(2000))]), []);
    }

    #[test]
    fn a_change_in_the_same_second_is_seen() {
        let modified = "Sat, 21 Nov 2026 12:00:00 GMT";
        let with = |date| asked(&[("last-modified", modified), ("date", date)]);
        assert_eq!(
            with("Sat, 21 Nov 2026 12:00:01 GMT"),
            [("if-modified-since".to_owned(), modified.to_owned())]
        );
        assert_eq!(with("Sat, 21 Nov 2026 12:00:00 GMT"), []);
        assert_eq!(with("Sat, 21 Nov 2026 11:59:00 GMT"), []);
        assert_eq!(with("some day"), []);
        assert_eq!(asked(&[("last-modified", modified)]), []);
    }
}
