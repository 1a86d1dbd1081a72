//! Words for messages: what the user wrote, made safe to show, and what was probably meant.

use std::time::Duration;

/// The most characters of the user's text in a message.
const SHOWN_CHARS_MAX: usize = 60;

/// The most entries of a list in a message: one more than a step has keys of its own.
const LISTED_MAX: usize = 20;

/// The user's text in backticks, without control characters, never long.
pub(crate) fn shown(text: &str) -> String {
    let mut out = String::from("`");
    for (count, character) in text.chars().enumerate() {
        if count == SHOWN_CHARS_MAX {
            out.push('…');
            break;
        }
        if character.is_control() || is_direction(character) {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out.push('`');
    out
}

/// Characters that change the direction of a line make a message lie.
fn is_direction(character: char) -> bool {
    matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `a`, `b` and `c`, or the first of them and how many more there are.
pub(crate) fn list<S: AsRef<str>>(items: &[S]) -> String {
    join(items, "and")
}

/// `a`, `b` or `c`.
pub(crate) fn either<S: AsRef<str>>(items: &[S]) -> String {
    join(items, "or")
}

fn join<S: AsRef<str>>(items: &[S], word: &str) -> String {
    let shown_items: Vec<String> = items
        .iter()
        .take(LISTED_MAX)
        .map(|item| shown(item.as_ref()))
        .collect();
    match shown_items.as_slice() {
        [] => "nothing".to_owned(),
        [one] => one.clone(),
        all if all.len() < items.len() => {
            format!("{} {word} {} more", all.join(", "), items.len() - all.len())
        }
        [most @ .., last] => format!("{} {word} {last}", most.join(", ")),
    }
}

/// The candidate that was probably meant.
pub fn nearest<'a>(
    written: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    // A comparison takes the product of the lengths; no candidate is that long.
    if written.chars().count() > SHOWN_CHARS_MAX {
        return None;
    }
    let written = written.to_lowercase().replace('_', "-");
    candidates
        .into_iter()
        .map(|candidate| {
            let plain = candidate.to_lowercase().replace('_', "-");
            (strsim::damerau_levenshtein(&written, &plain), candidate)
        })
        .filter(|(distance, candidate)| {
            let length = candidate.chars().count().max(written.chars().count());
            *distance <= length / 3 || (*distance == 1 && length > 1)
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// "did you mean", if something was.
pub(crate) fn did_you_mean<'a>(
    written: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    nearest(written, candidates).map(|candidate| format!("did you mean {}?", shown(candidate)))
}

/// A duration as it is written in a flow file: in the largest unit that is exact.
pub(crate) fn duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    let units = [
        (86_400_000, "d"),
        (3_600_000, "h"),
        (60_000, "m"),
        (1_000, "s"),
    ];
    units
        .into_iter()
        .find(|(size, _)| ms >= *size && ms.is_multiple_of(*size))
        .map_or_else(
            || format!("{ms}ms"),
            |(size, unit)| format!("{}{unit}", ms / size),
        )
}

/// A size as it is written in a flow file: in the largest unit that is exact.
pub(crate) fn size(bytes: u64) -> String {
    [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")]
        .into_iter()
        .find(|(size, _)| bytes >= *size && bytes.is_multiple_of(*size))
        .map_or_else(
            || format!("{bytes}B"),
            |(size, unit)| format!("{}{unit}", bytes / size),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_short_and_has_no_control_characters() {
        assert_eq!(shown("a\u{1b}[31m\n"), r"`a\u{1b}[31m\n`");
        assert_eq!(shown(&"x".repeat(99)).chars().count(), SHOWN_CHARS_MAX + 3);
    }

    #[test]
    fn lists_end() {
        assert_eq!(list::<&str>(&[]), "nothing");
        assert_eq!(list(&["a"]), "`a`");
        assert_eq!(list(&["a", "b", "c"]), "`a`, `b` and `c`");
        assert_eq!(either(&["a", "b"]), "`a` or `b`");
        assert!(list(&["a"; 50]).ends_with(", `a` and 30 more"));
    }

    #[track_caller]
    fn check_nearest(written: &str, expect: Option<&str>) {
        assert_eq!(
            nearest(written, ["after", "with", "replicas", "id", "timeout"]),
            expect
        );
    }

    #[test]
    fn the_nearest_is_near() {
        check_nearest("replica", Some("replicas"));
        check_nearest("time_out", Some("timeout"));
        check_nearest("ID", Some("id"));
        check_nearest("wiht", Some("with"));
        check_nearest("colour", None);
        check_nearest(&"a".repeat(100_000), None);
    }

    #[test]
    fn durations_and_sizes_read_as_they_are_written() {
        assert_eq!(duration(Duration::from_millis(1500)), "1500ms");
        assert_eq!(duration(Duration::from_mins(90)), "90m");
        assert_eq!(size(256 << 20), "256MiB");
        assert_eq!(size(1 << 40), "1024GiB");
    }
}
