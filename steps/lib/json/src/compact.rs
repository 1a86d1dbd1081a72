//! Takes the white space out of JSON, which a line of frames must not have.

use serde_json::value::RawValue;

/// Returns the same JSON without white space between its tokens. Nothing else changes: numbers and
/// strings stay as they were written.
pub fn compact(raw: &RawValue) -> Box<RawValue> {
    let text = raw.get();
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut in_string = false;
    while let Some(at) = rest.find(|c: char| match c {
        '"' => true,
        '\\' => in_string,
        ' ' | '\n' | '\r' | '\t' => !in_string,
        _ => false,
    }) {
        out.push_str(&rest[..at]);
        // What is escaped in a string is ASCII: the backslash and one more byte.
        let taken = match rest.as_bytes()[at] {
            b'\\' => 2,
            _ => 1,
        };
        match rest.as_bytes()[at] {
            b'"' => {
                in_string = !in_string;
                out.push('"');
            }
            b'\\' => out.push_str(&rest[at..at + taken]),
            _ => {}
        }
        rest = &rest[at + taken..];
    }
    out.push_str(rest);
    RawValue::from_string(out).expect("JSON without its white space is JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(input: &str, expect: &str) {
        let raw: &RawValue = serde_json::from_str(input).unwrap();
        assert_eq!(compact(raw).get(), expect);
    }

    #[test]
    fn white_space_goes_and_the_rest_stays() {
        check("{ \"a\" :\n\t[ 1 ,\r\n 2.50 ] }", r#"{"a":[1,2.50]}"#);
        check(
            r#"{"a b": " c\" \\", "d":"\\\" x" }"#,
            r#"{"a b":" c\" \\","d":"\\\" x"}"#,
        );
        check(
            r#"[ 123456789012345678901234567890, "ü \u00fc" ]"#,
            r#"[123456789012345678901234567890,"ü \u00fc"]"#,
        );
        check(" null ", "null");
    }
}
