//! From the body of a request to the body of a message: JSON, compact.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use serde_json::value::RawValue;
use towpath_flow::webhook::BodyType;

use super::IngressError;

/// The most levels of nesting: what most JSON readers take, so that no step fails over it.
const DEPTH_MAX: usize = 128;

/// The most fields of a form.
const FIELDS_MAX: usize = 1_000;

/// A body that was read.
#[derive(Debug)]
pub(super) struct Body {
    /// As JSON, without line breaks.
    pub(super) json: Box<RawValue>,
    /// Whether that is a text in base64.
    pub(super) is_base64: bool,
}

/// Reads a body by its content type: JSON as it is, a form as an object, text and XML as a string,
/// anything else as a string in base64, nothing as null. `types` are those that are taken, if not
/// all are.
pub(super) fn read(
    content_type: Option<&str>,
    body: &[u8],
    types: Option<&BTreeSet<BodyType>>,
    bytes_max: usize,
) -> Result<Body, IngressError> {
    if body.len() > bytes_max {
        return Err(IngressError::TooLarge { limit: bytes_max });
    }
    let media = media(content_type.unwrap_or("application/json"));
    let kind = kind_of(&media);
    // White space is a text, and nothing of what has a syntax.
    let has_syntax = matches!(kind, BodyType::Json | BodyType::Form | BodyType::Xml);
    let is_nothing = body.is_empty() || has_syntax && body.trim_ascii().is_empty();
    if !is_nothing && types.is_some_and(|types| !types.contains(&kind)) {
        return Err(IngressError::UnknownType {
            content_type: media,
        });
    }
    let text = || std::str::from_utf8(body).map_err(|source| not_readable("text in UTF-8", source));
    let json = match kind {
        _ if is_nothing => "null".to_owned(),
        BodyType::Json => compact(text()?)?,
        BodyType::Form => form(text()?)?,
        BodyType::Text | BodyType::Xml => serde_json::to_string(text()?).expect("a string is JSON"),
        BodyType::Bytes => format!("\"{}\"", STANDARD.encode(body)),
    };
    // All but JSON grows a little as JSON.
    if json.len() > bytes_max {
        return Err(IngressError::TooLarge { limit: bytes_max });
    }
    let json = RawValue::from_string(json).map_err(|source| not_readable("JSON", source))?;
    Ok(Body {
        json,
        is_base64: kind == BodyType::Bytes && !is_nothing,
    })
}

/// A content type without its parameters.
fn media(content_type: &str) -> String {
    let media = content_type.split(';').next().unwrap_or_default();
    media.trim().to_ascii_lowercase()
}

fn kind_of(media: &str) -> BodyType {
    match media {
        "application/x-www-form-urlencoded" => BodyType::Form,
        "text/json" => BodyType::Json,
        "text/xml" | "application/xml" => BodyType::Xml,
        _ if media.starts_with("application/json") || media.ends_with("+json") => BodyType::Json,
        _ if media.ends_with("+xml") => BodyType::Xml,
        _ if media.starts_with("text/") => BodyType::Text,
        _ => BodyType::Bytes,
    }
}

fn not_readable(
    what: &'static str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> IngressError {
    IngressError::NotReadable {
        what,
        source: source.into(),
    }
}

/// Takes the white space between tokens out, and nothing else: numbers, keys and their order stay
/// as they were sent. A line break in a body would end its line of the batch.
fn compact(text: &str) -> Result<String, IngressError> {
    serde_json::from_str::<&RawValue>(text).map_err(|source| not_readable("JSON", source))?;
    let mut out = String::with_capacity(text.len());
    let (mut in_string, mut escaped, mut depth) = (false, false, 0_usize);
    for character in text.chars() {
        if in_string {
            out.push(character);
            in_string = escaped || character != '"';
            escaped = !escaped && character == '\\';
            continue;
        }
        match character {
            ' ' | '\t' | '\r' | '\n' => continue,
            '"' => in_string = true,
            '{' | '[' => {
                depth += 1;
                if depth > DEPTH_MAX {
                    return Err(not_readable(
                        "JSON of less than 128 levels",
                        "it is nested deeper",
                    ));
                }
            }
            '}' | ']' => depth -= 1,
            _ => {}
        }
        out.push(character);
    }
    Ok(out)
}

/// A form as an object: a field is a string, a field given several times a list of strings.
fn form(text: &str) -> Result<String, IngressError> {
    let mut fields: BTreeMap<String, Value> = BTreeMap::new();
    for (index, pair) in text
        .trim()
        .split('&')
        .filter(|pair| !pair.is_empty())
        .enumerate()
    {
        if index >= FIELDS_MAX {
            return Err(not_readable(
                "a form of less than 1000 fields",
                "it has more",
            ));
        }
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = Value::String(decode(value)?);
        match fields.entry(decode(name)?) {
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(value);
            }
            std::collections::btree_map::Entry::Occupied(mut entry) => match entry.get_mut() {
                Value::Array(values) => values.push(value),
                first => *first = Value::Array(vec![first.take(), value]),
            },
        }
    }
    Ok(serde_json::to_string(&fields).expect("a map of strings is JSON"))
}

/// Undoes the encoding of a form: `+` is a space, `%41` a byte.
pub(super) fn decode(text: &str) -> Result<String, IngressError> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [
                    bytes.next().unwrap_or_default(),
                    bytes.next().unwrap_or_default(),
                ];
                std::str::from_utf8(&digits)
                    .ok()
                    .and_then(|digits| u8::from_str_radix(digits, 16).ok())
                    .ok_or_else(|| {
                        not_readable("a form", "a `%` is not followed by two hexadecimal digits")
                    })?
            }
            byte => byte,
        });
    }
    String::from_utf8(out).map_err(|source| not_readable("a form in UTF-8", source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(content_type: &str, body: &str, expect: &str) {
        let read = read(Some(content_type), body.as_bytes(), None, 1_000).unwrap();
        assert_eq!(read.json.get(), expect);
        assert!(!read.is_base64);
    }

    #[track_caller]
    fn check_status(content_type: &str, body: &[u8], expect: u16) {
        let error = read(Some(content_type), body, None, 1_000).unwrap_err();
        assert_eq!(error.status(), expect, "{error}");
    }

    #[test]
    fn json_loses_its_white_space_and_nothing_else() {
        check(
            "application/json; charset=utf-8",
            "{\r\n \"b c\": [1, 1.50, 12345678901234567890],\t\"a\" : \"x \\\" y\\\\\" }\n",
            r#"{"b c":[1,1.50,12345678901234567890],"a":"x \" y\\"}"#,
        );
        check("application/vnd.shop+json", " true ", "true");
    }

    #[test]
    fn forms_and_text_become_json() {
        let form = "application/x-www-form-urlencoded";
        check(
            form,
            "a=1&b=x+y%21&a=2&c&d=%C3%A9",
            r#"{"a":["1","2"],"b":"x y!","c":"","d":"é"}"#,
        );
        check("text/plain", "two\nlines", r#""two\nlines""#);
        check("application/xml", "<a>\n</a>", r#""<a>\n</a>""#);
        check("application/atom+xml", "<a/>", r#""<a/>""#);
        check("image/png", "", "null");
        check("application/json", "", "null");
    }

    #[test]
    fn anything_else_becomes_base64() {
        let png = read(Some("image/png"), b"\x89PNG\r\n", None, 1_000).unwrap();
        assert_eq!((png.json.get(), png.is_base64), (r#""iVBORw0K""#, true));
        let form = read(Some("multipart/form-data; boundary=x"), b"--x", None, 1_000);
        assert!(form.unwrap().is_base64);
        let large = read(Some("image/png"), &[0; 800], None, 1_000);
        assert_eq!(large.unwrap_err().status(), 413, "it grows by a third");
    }

    #[test]
    fn a_flow_can_say_which_kinds_it_takes() {
        let types = BTreeSet::from([BodyType::Json, BodyType::Form]);
        let status = |kind: &str, body: &[u8]| {
            let read = read(Some(kind), body, Some(&types), 1_000);
            read.map_or_else(|error| error.status(), |_| 202)
        };
        assert_eq!(status("application/problem+json", b"{}"), 202);
        assert_eq!(status("application/x-www-form-urlencoded", b"a=1"), 202);
        for kind in ["text/plain", "text/xml", "image/png", "nonsense", ""] {
            assert_eq!(status(kind, b"<a/>"), 415, "{kind}");
        }
        assert_eq!(status("image/png", b""), 202, "nothing is of no kind");
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        check_status("application/json", b"{\"a\":", 400);
        check_status("application/json", b"{} {}", 400);
        check_status("application/json", b"\xff", 400);
        check_status("application/json", "[".repeat(200).as_bytes(), 400);
        check_status(
            "application/json",
            format!("{}{}", "[".repeat(200), "]".repeat(200)).as_bytes(),
            400,
        );
        check_status("application/x-www-form-urlencoded", b"a=%4", 400);
        check_status("application/x-www-form-urlencoded", b"a=%FF", 400);
        check_status("application/xml", b"<\xff/>", 400);
        check_status("application/json", &[b' '; 1_001], 413);
        check_status("text/plain", &[b'\n'; 800], 413);
    }
}
