//! What a configuration says of requests, or why it cannot be used.

use std::collections::BTreeMap;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

/// Reads a URL that begins with `http:` or `https:`.
pub fn read_url(text: &str) -> Result<Url, String> {
    let url: Url = text
        .parse()
        .map_err(|error| format!("`url` is not a URL: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!(
            "`url` begins with `{}:`, not with `http:` or `https:`",
            url.scheme()
        ));
    }
    Ok(url)
}

/// Puts what `headers` says over the headers that a step sends anyway.
pub fn add_headers(
    headers: &mut HeaderMap,
    given: &BTreeMap<String, String>,
) -> Result<(), String> {
    for (name, value) in given {
        let header = HeaderName::try_from(name.as_str())
            .map_err(|_| format!("`headers.{name}` is not the name of a header"))?;
        let value = HeaderValue::try_from(value.as_str())
            .map_err(|_| format!("`headers.{name}` has a character that no header can have"))?;
        headers.insert(header, value);
    }
    Ok(())
}
