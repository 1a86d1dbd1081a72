//! Which parts of a request travel beside the body of its message.

use std::collections::BTreeMap;

use super::auth::Auth;
use super::{Request, query};

/// The most bytes of all headers of a message: they are copied from step to step by hand.
const BYTES_MAX: usize = 16 << 10;

/// Headers that travel on beside those that begin with `x-`.
const TAKEN: [&str; 8] = [
    "content-language",
    "date",
    "idempotency-key",
    "referer",
    "user-agent",
    "origin",
    "webhook-id",
    "webhook-timestamp",
];

/// A header with one of these in its name may hold a credential, and stays behind.
const CREDENTIALS: [&str; 8] = [
    "auth", "token", "secret", "password", "apikey", "api-key", "cookie", "session",
];

/// The headers of the message that a request becomes: `http.method` and so on. What shows who sent
/// it stays behind.
pub(super) fn of(
    request: &Request,
    auth: Option<&Auth>,
    is_base64: bool,
) -> BTreeMap<String, String> {
    let mut headers = BTreeMap::new();
    let mut left = BYTES_MAX;
    let mut add = |name: &str, value: &str| {
        let size = name.len() + value.len();
        if !value.is_empty() && size <= left {
            left -= size;
            headers.insert(format!("http.{name}"), value.to_owned());
        }
    };
    add("method", &request.method);
    add("path", &request.path);
    match auth.and_then(Auth::parameter) {
        Some(parameter) => add("query", &query::without(&request.query, parameter)),
        None => add("query", &request.query),
    }
    if is_base64 {
        add("body", "base64");
    }
    for (name, value) in &request.headers {
        let name = name.to_ascii_lowercase();
        let is_taken = name.starts_with("x-") || TAKEN.contains(&name.as_str());
        let may_hold_a_credential = CREDENTIALS.iter().any(|part| name.contains(part));
        let shows_who = auth.and_then(Auth::header) == Some(name.as_str());
        if name == "content-type" || is_taken && !may_hold_a_credential && !shows_who {
            add(&name, value);
        }
    }
    headers
}

/// Says whether a text is a W3C `traceparent` that can be passed on.
pub(super) fn is_traceparent(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let is_hex = |part: &str, length: usize| {
        part.len() == length
            && part
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_nothing = |part: &str| part.bytes().all(|byte| byte == b'0');
    matches!(parts.as_slice(), [version, trace, span, flags]
        if *version == "00" && is_hex(trace, 32) && is_hex(span, 16) && is_hex(flags, 2)
            && !is_nothing(trace) && !is_nothing(span))
}

#[cfg(test)]
mod tests {
    use towpath_flow::webhook::{KeyPlace, Scheme};

    use super::*;

    #[test]
    fn credentials_stay_behind() {
        let header = |name: &str| (name.to_owned(), "v".to_owned());
        let request = Request {
            method: "POST".into(),
            headers: [
                "Authorization",
                "Cookie",
                "X-Api-Key",
                "X-Auth-Token",
                "X-Shop-Topic",
                "User-Agent",
                "Accept",
                "Content-Type",
            ]
            .map(header)
            .to_vec(),
            ..Request::default()
        };
        let names: Vec<String> = of(&request, None, false).into_keys().collect();
        assert_eq!(
            names,
            [
                "http.content-type",
                "http.method",
                "http.user-agent",
                "http.x-shop-topic"
            ]
        );
    }

    #[test]
    fn what_shows_who_sent_it_stays_behind() {
        let scheme = |place| Scheme::ApiKey {
            place,
            prefix: String::new(),
        };
        let request = Request {
            query: "a=1&k=s3cret".into(),
            headers: vec![("X-Shop".into(), "s3cret".into())],
            ..Request::default()
        };
        for (place, expect) in [
            (
                KeyPlace::Header("x-shop".into()),
                [("http.query", "a=1&k=s3cret")],
            ),
            (KeyPlace::Query("k".into()), [("http.query", "a=1")]),
        ] {
            let auth = Auth::new(&scheme(place), "", &["s3cret".into()]).unwrap();
            let found = of(&request, Some(&auth), false);
            for (name, value) in expect {
                assert_eq!(found[name], value);
            }
            assert_eq!(found.contains_key("http.x-shop"), auth.header().is_none());
        }
    }

    #[test]
    fn headers_are_bounded() {
        let many = (0..1_000)
            .map(|index| (format!("x-{index}"), "v".repeat(100)))
            .collect();
        let request = Request {
            headers: many,
            ..Request::default()
        };
        let size: usize = of(&request, None, false)
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        assert!(size < BYTES_MAX + 1_000 * 5, "{size}");
    }

    #[test]
    fn only_a_traceparent_is_one() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert!(is_traceparent(good));
        assert!(!is_traceparent(""));
        assert!(!is_traceparent(&good.to_uppercase()));
        assert!(!is_traceparent(
            &good.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32))
        ));
        assert!(!is_traceparent(&format!("{good}-x")));
    }
}
