//! JSON as text, changed in its white space only: numbers stay as they were written.
//!
//! # Invariants
//!
//! - `only_white_space_changes`: a number with more digits than a computer counts in keeps them.

use serde_json::value::RawValue;

/// The text without white space between its parts.
pub fn compact(json: &RawValue) -> Box<RawValue> {
    let mut out = String::with_capacity(json.get().len());
    for (c, is_text) in characters(json.get()) {
        if is_text || !c.is_ascii_whitespace() {
            out.push(c);
        }
    }
    RawValue::from_string(out).expect("JSON without white space between its parts is JSON")
}

/// The text with one part a line, as a person reads and edits it.
pub fn pretty(json: &RawValue) -> String {
    let compact = compact(json);
    let mut out = String::with_capacity(2 * compact.get().len());
    let mut depth = 0_usize;
    let mut characters = characters(compact.get()).peekable();
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n("  ", depth));
    };
    while let Some((c, is_text)) = characters.next() {
        match c {
            _ if is_text => out.push(c),
            '{' | '[' => {
                out.push(c);
                // Empty ones stay in their line.
                if let Some((end @ ('}' | ']'), false)) = characters.peek() {
                    out.push(*end);
                    characters.next();
                } else {
                    depth += 1;
                    line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            _ => out.push(c),
        }
    }
    out
}

/// Each character, and whether it is part of a string.
fn characters(json: &str) -> impl Iterator<Item = (char, bool)> {
    let (mut is_in, mut is_escaped) = (false, false);
    json.chars().map(move |c| {
        let was_in = is_in;
        if is_escaped {
            is_escaped = false;
        } else if is_in && c == '\\' {
            is_escaped = true;
        } else if c == '"' {
            is_in = !is_in;
        }
        (c, was_in || is_in)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_white_space_changes() {
        let text = r#" { "a" : [ 1.10, 123456789012345678901, { } , [ ] ],
            "b \" , : {" : "\\" , "c": null } "#;
        let json = RawValue::from_string(text.trim().to_owned()).unwrap();
        let compact = compact(&json);
        assert_eq!(
            compact.get(),
            r#"{"a":[1.10,123456789012345678901,{},[]],"b \" , : {":"\\","c":null}"#
        );
        let pretty = pretty(&json);
        insta::assert_snapshot!(pretty, @r#"
        {
          "a": [
            1.10,
            123456789012345678901,
            {},
            []
          ],
          "b \" , : {": "\\",
          "c": null
        }
        "#);
        let back = RawValue::from_string(pretty).unwrap();
        assert_eq!(super::compact(&back).get(), compact.get());
    }
}
