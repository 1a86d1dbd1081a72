//! What many dead letters have in common: the pattern of their reasons, and a short id for it.
//!
//! A reason says what went wrong with one message; its pattern is what is left when everything that
//! differs from message to message is taken out.
//!
//! # Invariants
//!
//! - `what_differs_from_message_to_message_is_taken_out`: numbers, hexadecimal and other ids, quoted
//!   values, times, and what varies in a URL.
//! - `what_says_what_kind_it_is_stays`: a status, a code, a signal.
//! - `any_text_has_a_short_pattern`.

use towpath_protocol::office::DeadCause;

/// What stands for what was taken out.
const HOLE: char = '…';

/// The number of characters a pattern is cut to: one line of a list, and some more.
pub const PATTERN_CHARS_MAX: usize = 300;

/// A quoted value that is longer than this many characters is no value but text with an apostrophe.
const QUOTED_CHARS_MAX: usize = 400;

/// Words after which a small number is kept: it says what kind of failure it is.
const KINDS: [&str; 8] = [
    "http", "status", "answered", "code", "exit", "signal", "error", "errno",
];

/// What dead letters of one kind have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    /// 12 hexadecimal digits.
    pub id: String,
    /// The reason without what differs from message to message.
    pub pattern: String,
}

/// Tells what kind of dead letter this is.
pub fn of(flow: &str, step: &str, cause: DeadCause, reason: &str) -> Fingerprint {
    let pattern = pattern(reason);
    let cause = format!("{cause:?}");
    let mut hasher = blake3::Hasher::new();
    for part in [flow, step, &cause, &pattern] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    Fingerprint {
        id: hasher.finalize().to_hex()[..12].to_owned(),
        pattern,
    }
}

/// Takes out of a reason what differs from message to message.
pub fn pattern(reason: &str) -> String {
    let chars: Vec<char> = reason.chars().take(PATTERN_CHARS_MAX * 8).collect();
    let mut out = String::new();
    let mut at = 0;
    let mut before = String::new();
    while at < chars.len() {
        let here = chars[at];
        if here.is_whitespace() || here.is_control() {
            if !out.is_empty() && !out.ends_with(' ') {
                out.push(' ');
            }
            at += 1;
        } else if let Some(end) = quoted(&chars, at) {
            out.extend([here, HOLE, here]);
            before.clear();
            at = end;
        } else if is_part(here) {
            let end = (at..chars.len())
                .find(|index| !is_part(chars[*index]) && !is_in_url(&chars[at..=*index]))
                .unwrap_or(chars.len());
            let token: String = chars[at..end].iter().collect();
            out.push_str(&without_values(&token, &before));
            before = token
                .trim_end_matches(|c: char| !c.is_alphanumeric())
                .to_lowercase();
            at = end;
        } else {
            out.push(here);
            at += 1;
        }
    }
    out.trim_end().chars().take(PATTERN_CHARS_MAX).collect()
}

/// Where a quoted value that begins here ends, if one begins here.
fn quoted(chars: &[char], at: usize) -> Option<usize> {
    let quote = chars[at];
    if !matches!(quote, '"' | '\'' | '`') {
        return None;
    }
    let is_word = |index: usize| chars.get(index).is_some_and(|c| c.is_alphanumeric());
    // An apostrophe within a word is none.
    if quote == '\'' && at > 0 && is_word(at - 1) {
        return None;
    }
    let mut index = at + 1;
    while index < chars.len() && index - at <= QUOTED_CHARS_MAX {
        if chars[index] == '\\' {
            index += 2;
            continue;
        }
        if chars[index] == quote && !(quote == '\'' && is_word(index + 1)) {
            return Some(index + 1);
        }
        index += 1;
    }
    None
}

fn is_part(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '+' | '@' | '%' | '#')
}

/// Whether this is a URL so far: it goes on where a word would end.
fn is_in_url(chars: &[char]) -> bool {
    let Some((last, before)) = chars.split_last() else {
        return false;
    };
    let begins = before.windows(2).any(|pair| pair == [':', '/']) || before.ends_with(&[':']);
    begins && matches!(last, '/' | '?' | '&' | '=' | '~' | ';' | '$' | '!' | '*')
}

fn without_values(token: &str, before: &str) -> String {
    let core = token.trim_end_matches(['.', ':', '-', '+', '#', '%']);
    let tail = &token[core.len()..];
    if !core.bytes().any(|byte| byte.is_ascii_digit()) && !core.contains("://") {
        return token.to_owned();
    }
    if core.len() <= 3 && core.bytes().all(|byte| byte.is_ascii_digit()) && KINDS.contains(&before)
    {
        return token.to_owned();
    }
    let core = match core.split_once("://") {
        Some((scheme, rest)) => format!("{scheme}://{}", url(rest)),
        None => collapse(&parts(core)),
    };
    format!("{core}{tail}")
}

/// A URL without its port, its query, and the parts of its path that hold a digit.
fn url(rest: &str) -> String {
    let path = rest.split(['?', '#']).next().unwrap_or_default();
    let query = if path.len() < rest.len() { "?…" } else { "" };
    let mut segments = path.split('/');
    let host = segments.next().unwrap_or_default();
    // What is before an `@` is a login.
    let host = host.rsplit('@').next().unwrap_or_default();
    let host = host.split(':').next().unwrap_or_default();
    let mut out = collapse(&parts(host));
    for segment in segments {
        out.push('/');
        if segment.bytes().any(|byte| byte.is_ascii_digit()) {
            out.push(HOLE);
        } else {
            out.push_str(segment);
        }
    }
    out.push_str(query);
    out
}

/// Takes values out of the parts of a word: `SO-1234` is `SO-…`.
fn parts(word: &str) -> String {
    let mut out = String::new();
    let mut part = String::new();
    for c in word.chars().chain(std::iter::once('\0')) {
        if c.is_alphanumeric() {
            part.push(c);
            continue;
        }
        out.push_str(&part_without_values(&part));
        part.clear();
        if c != '\0' {
            out.push(c);
        }
    }
    out
}

fn part_without_values(part: &str) -> String {
    if !part.bytes().any(|byte| byte.is_ascii_digit()) {
        return part.to_owned();
    }
    let is_hex = part.len() >= 6 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_prefixed = part
        .strip_prefix("0x")
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let mut out = String::new();
    let mut runs = 0;
    for c in part.chars() {
        if !c.is_ascii_digit() {
            out.push(c);
        } else if !out.ends_with(HOLE) {
            out.push(HOLE);
            runs += 1;
        }
    }
    // Letters and digits mixed at length are an id.
    let is_id = part.len() >= 8 && runs >= 2;
    if is_hex || is_prefixed || is_id {
        return HOLE.to_string();
    }
    out
}

/// Makes one hole of many that only signs are between: dates, times, ids with hyphens.
fn collapse(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::new();
    let mut at = 0;
    while at < chars.len() {
        out.push(chars[at]);
        at += 1;
        if chars[at - 1] != HOLE {
            continue;
        }
        // `…-…`, `…T…` and `…-abcd-…` are one value.
        while let Some(skip) = (1..=20).find(|skip| {
            chars.get(at + skip) == Some(&HOLE)
                && chars[at..at + skip]
                    .iter()
                    .all(|c| !c.is_alphanumeric() || c.is_ascii_hexdigit() || *c == 'T')
        }) {
            at += skip + 1;
        }
        if chars.get(at) == Some(&HOLE) {
            at += 1;
        }
        // The zone of a time.
        if chars.get(at) == Some(&'Z') && !chars.get(at + 1).is_some_and(|c| c.is_alphanumeric()) {
            at += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(reason: &str, expect: &str) {
        assert_eq!(pattern(reason), expect, "{reason}");
    }

    #[test]
    fn what_differs_from_message_to_message_is_taken_out() {
        check("no deal 4711 for SO-1234", "no deal … for SO-…");
        check("took 1.5s, 30 s allowed", "took …s, … s allowed");
        check("no such id 0af1c2d3e4f50617 or 0x1F", "no such id … or …");
        check(
            "message 018f3b7c-aaaa-bbbb-cccc-0123456789ab is lost",
            "message … is lost",
        );
        check(
            "not before 2026-11-21T03:14:15.926Z, or 03:14:15",
            "not before …, or …",
        );
        check(
            r#"`abc` is not "x\"y" nor 'z' of it's kind"#,
            "`…` is not \"…\" nor '…' of it's kind",
        );
        check(
            "POST http://crm:8080/deals/77/lines?x=1&y=2: refused",
            "POST http://crm/deals/…/lines?…: refused",
        );
        check(
            "cannot reach https://10.0.0.7/a",
            "cannot reach https://…/a",
        );
        check("customer x8Kd92jfQ is blocked", "customer … is blocked");
        check("a\n  b\t c ", "a b c");
    }

    #[test]
    fn what_says_what_kind_it_is_stays() {
        check("answered 503: busy", "answered 503: busy");
        check("exit code 137", "exit code 137");
        check("HTTP 404 for deal 5", "HTTP 404 for deal …");
        let fingerprint = |flow, step, cause, reason| of(flow, step, cause, reason).id;
        let one = fingerprint("a", "b", DeadCause::Permanent, "no deal 1");
        assert_eq!(one.len(), 12);
        assert_eq!(
            one,
            fingerprint("a", "b", DeadCause::Permanent, "no deal 22")
        );
        for other in [
            fingerprint("a", "c", DeadCause::Permanent, "no deal 1"),
            fingerprint("ab", "", DeadCause::Permanent, "no deal 1"),
            fingerprint("a", "b", DeadCause::Attempts, "no deal 1"),
            fingerprint("a", "b", DeadCause::Permanent, "no line 1"),
        ] {
            assert_ne!(one, other);
        }
    }

    proptest! {
        #[test]
        fn any_text_has_a_short_pattern(text in "\\PC{0,400}", digits in "[0-9a-f:/.'`\"T… -]{0,200}") {
            for text in [text.as_str(), digits.as_str()] {
                let pattern = pattern(text);
                prop_assert!(pattern.chars().count() <= PATTERN_CHARS_MAX);
                prop_assert!(!pattern.contains('\n'));
            }
        }
    }
}
