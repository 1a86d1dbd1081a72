//! What a flow answers the request that began it: the body of an output by the port [`REPLY_PORT`].
//!
//! ```json
//! {"status":201,"headers":{"location":"/orders/7"},"body":{"id":7}}
//! ```

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

/// The port whose outputs answer the request that a run began with, in a flow whose webhook waits for
/// it (`reply`). The first of a run counts.
pub const REPLY_PORT: &str = "reply";

/// The most headers of an answer.
const HEADERS_MAX: usize = 64;

/// The most bytes of all headers of an answer: what servers and proxies take.
const HEADERS_BYTES_MAX: usize = 16 << 10;

/// The headers that say how an answer is carried: whoever carries it sets them.
const CARRIED: [&str; 9] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What a request is answered with.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// The HTTP status, from 200 to 599; 200 when left out.
    #[serde(default = "ok")]
    #[schemars(default = "ok", range(min = 200, max = 599))]
    pub status: u16,
    /// Headers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// The body: any JSON. With a `content-type` that is not JSON a text is sent as it is; null and
    /// nothing are no body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Value")]
    pub body: Option<Box<RawValue>>,
}

fn ok() -> u16 {
    200
}

impl Answer {
    /// Says what of it cannot be sent.
    pub fn check(&self) -> Result<(), String> {
        if !(200..=599).contains(&self.status) {
            return Err(format!(
                "the status {} is not one from 200 to 599",
                self.status
            ));
        }
        if self.body.is_some() && matches!(self.status, 204 | 205 | 304) {
            return Err(format!("an answer {} has no body", self.status));
        }
        let bytes: usize = self
            .headers
            .iter()
            .map(|(name, it)| name.len() + it.len())
            .sum();
        if self.headers.len() > HEADERS_MAX || bytes > HEADERS_BYTES_MAX {
            return Err(format!(
                "it has {} headers of {bytes} bytes; {HEADERS_MAX} of {HEADERS_BYTES_MAX} bytes are the most",
                self.headers.len()
            ));
        }
        self.headers
            .iter()
            .try_for_each(|(name, value)| check_header(name, value))
    }

    /// Returns the bytes of the body, and whether they are JSON.
    pub fn content(&self) -> Option<(Vec<u8>, bool)> {
        let body = self.body.as_ref()?.get();
        if !self.is_json()
            && let Ok(text) = serde_json::from_str::<String>(body)
        {
            return Some((text.into_bytes(), false));
        }
        Some((body.as_bytes().to_vec(), true))
    }

    fn is_json(&self) -> bool {
        let mut headers = self.headers.iter();
        let kind = headers.find(|(name, _)| name.eq_ignore_ascii_case("content-type"));
        kind.is_none_or(|(_, kind)| {
            let kind = kind.split(';').next().unwrap_or_default();
            let kind = kind.trim().to_ascii_lowercase();
            kind == "application/json" || kind.ends_with("+json")
        })
    }
}

fn check_header(name: &str, value: &str) -> Result<(), String> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err(format!("`{name}` is not the name of a header"));
    }
    if CARRIED.iter().any(|it| name.eq_ignore_ascii_case(it)) {
        return Err(format!(
            "the header `{name}` is set by whoever carries the answer"
        ));
    }
    if !value
        .bytes()
        .all(|byte| matches!(byte, b'\t' | b' '..=b'~'))
    {
        return Err(format!(
            "the header `{name}` has a character that no header can have"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str) -> Answer {
        serde_json::from_str(text).unwrap()
    }

    #[track_caller]
    fn refused(text: &str, why: &str) {
        assert_eq!(answer(text).check(), Err(why.to_owned()), "{text}");
    }

    #[test]
    fn what_is_left_out_is_200_and_empty() {
        for text in ["{}", r#"{"body":null}"#] {
            let answer = answer(text);
            assert_eq!(answer.check(), Ok(()));
            assert_eq!((answer.status, answer.content()), (200, None));
        }
    }

    #[test]
    fn a_text_of_another_type_is_sent_as_it_is() {
        let content = |text: &str| {
            let (bytes, is_json) = answer(text).content().unwrap();
            (String::from_utf8(bytes).unwrap(), is_json)
        };
        assert_eq!(content(r#"{"body":"a\nb"}"#), (r#""a\nb""#.into(), true));
        let plain = r#"{"headers":{"Content-Type":"text/plain"},"body":"a\nb"}"#;
        assert_eq!(content(plain), ("a\nb".into(), false));
        let list = r#"{"headers":{"content-type":"text/csv"},"body":[1, 2]}"#;
        assert_eq!(content(list), ("[1, 2]".into(), true));
        let json = r#"{"headers":{"content-type":"application/problem+json; v=1"},"body":"x"}"#;
        assert_eq!(content(json), (r#""x""#.into(), true));
    }

    #[test]
    fn what_cannot_be_sent_says_why() {
        refused(
            r#"{"status":100}"#,
            "the status 100 is not one from 200 to 599",
        );
        refused(r#"{"status":204,"body":1}"#, "an answer 204 has no body");
        refused(
            r#"{"headers":{"a b":""}}"#,
            "`a b` is not the name of a header",
        );
        refused(
            r#"{"headers":{"Content-Length":"1"}}"#,
            "the header `Content-Length` is set by whoever carries the answer",
        );
        refused(
            r#"{"headers":{"x":"a\r\nset-cookie: b"}}"#,
            "the header `x` has a character that no header can have",
        );
        let long = format!(r#"{{"headers":{{"x":"{}"}}}}"#, "a".repeat(20_000));
        assert!(answer(&long).check().unwrap_err().contains("20001 bytes"));
        assert!(serde_json::from_str::<Answer>(r#"{"id":7}"#).is_err());
    }
}
