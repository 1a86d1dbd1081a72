//! From the body of a request to the body of a message: JSON, compact.

use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::value::RawValue;

use super::IngressError;

/// The most levels of nesting: what most JSON readers take, so that no step fails over it.
const DEPTH_MAX: usize = 128;

/// The most fields of a form.
const FIELDS_MAX: usize = 1_000;

/// Reads a body by its content type: JSON as it is, a form as an object, text as a string, nothing
/// as null.
pub(super) fn read(
    content_type: Option<&str>,
    body: &[u8],
    bytes_max: usize,
) -> Result<Box<RawValue>, IngressError> {
    if body.len() > bytes_max {
        return Err(IngressError::TooLarge { limit: bytes_max });
    }
    let text = std::str::from_utf8(body);
    let text = text.map_err(|source| not_readable("text in UTF-8", source))?;
    let kind = content_type
        .unwrap_or("application/json")
        .split(';')
        .next()
        .unwrap_or_default();
    let kind = kind.trim().to_ascii_lowercase();
    // White space is a text, and nothing of anything else.
    let is_text = kind.starts_with("text/") && kind != "text/json";
    let json = if text.is_empty() || !is_text && text.trim().is_empty() {
        "null".to_owned()
    } else if kind == "application/x-www-form-urlencoded" {
        form(text)?
    } else if kind.starts_with("application/json") || kind.ends_with("+json") || kind == "text/json"
    {
        compact(text)?
    } else if is_text {
        serde_json::to_string(text).expect("a string is JSON")
    } else {
        return Err(IngressError::UnknownType { content_type: kind });
    };
    // A form or a text can grow a little as JSON.
    if json.len() > bytes_max {
        return Err(IngressError::TooLarge { limit: bytes_max });
    }
    RawValue::from_string(json).map_err(|source| not_readable("JSON", source))
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
fn decode(text: &str) -> Result<String, IngressError> {
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
        let read = read(Some(content_type), body.as_bytes(), 1_000).unwrap();
        assert_eq!(read.get(), expect);
    }

    #[track_caller]
    fn check_status(content_type: &str, body: &[u8], expect: u16) {
        let error = read(Some(content_type), body, 1_000).unwrap_err();
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
        check("image/png", "  ", "null");
        check("application/json", "", "null");
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
        check_status("image/png", b"x", 415);
        check_status("application/json", &[b' '; 1_001], 413);
        check_status("text/plain", &[b'\n'; 800], 413);
    }
}
