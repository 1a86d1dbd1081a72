//! A filter, compiled: from text to something that runs, or to a reason with a position.

use jaq_core::compile::{Compiler, Undefined};
use jaq_core::data::JustLut;
use jaq_core::load::{self, Arena, File, Loader};
use jaq_core::{Ctx, Vars};
use jaq_json::{Val, read};

use crate::filter;

/// The variables that a filter may use.
const VARIABLES: [&str; 1] = ["$message"];

/// Filters that would show what a step has no business to see.
const LEFT_OUT: [&str; 1] = ["env"];

/// The most bytes that all outputs of one message may have together.
const OUTPUT_BYTES_MAX: usize = 16 << 20;

/// The number of characters that an error of a filter is cut to: it may quote its whole input.
const ERROR_CHARS_MAX: usize = 500;

/// A line of a filter that is longer is not quoted.
const SHOWN_BYTES_MAX: usize = 200;

/// A compiled filter.
pub struct Program {
    filter: jaq_core::Filter<JustLut<Val>>,
    outputs_max: usize,
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program").finish_non_exhaustive()
    }
}

impl Program {
    /// Compiles a filter; the error says where it is wrong, for the flow's author.
    pub fn compile(code: &str, outputs_max: usize) -> Result<Self, String> {
        let arena = Arena::default();
        let definitions = jaq_core::defs()
            .chain(jaq_std::defs())
            .chain(jaq_json::defs());
        let functions = jaq_core::funs()
            .chain(jaq_std::funs())
            .chain(jaq_json::funs());
        let functions = functions.filter(|(name, _, _)| !LEFT_OUT.contains(name));
        let modules = Loader::new(definitions)
            .load(&arena, File { code, path: () })
            .map_err(|errors| load_error(code, &errors))?;
        let filter = Compiler::default()
            .with_funs(functions)
            .with_global_vars(VARIABLES)
            .compile(modules)
            .map_err(|errors| {
                let first = errors.iter().flat_map(|(_, undefined)| undefined).next();
                match first {
                    Some((name, kind)) => place(code, name, &undefined(name, kind)),
                    None => "the filter cannot be compiled".to_owned(),
                }
            })?;
        Ok(Self {
            filter,
            outputs_max,
        })
    }

    /// Runs the filter on a body, as JSON; `about` is JSON too, or empty. Each output is given to
    /// `emit` as JSON. An error is for the reader of a dead letter.
    pub fn run(
        &self,
        about: &[u8],
        body: &[u8],
        mut emit: impl FnMut(&[u8]),
    ) -> Result<(), String> {
        let read = |json: &[u8]| read::parse_single(json).map_err(|error| error.to_string());
        let about = if about.is_empty() {
            Val::Null
        } else {
            read(about)?
        };
        let body = read(body).map_err(|error| format!("cannot read the body: {error}"))?;
        let ctx = Ctx::<JustLut<Val>>::new(&self.filter.lut, Vars::new([about]));
        let mut written = 0;
        let mut output = Vec::new();
        for (count, value) in self.filter.id.run((ctx, body)).enumerate() {
            let value = value.map_err(|exception| match exception.get_err() {
                Ok(error) => format!("the filter failed: {}", cut(&said(error))),
                Err(_) => "the filter halts, which ends no message".to_owned(),
            })?;
            if count == self.outputs_max {
                return Err(format!(
                    "the filter gives more than {} outputs (`outputs_max`)",
                    self.outputs_max
                ));
            }
            output.clear();
            filter::write(&value, &mut output)?;
            written += output.len();
            if written > OUTPUT_BYTES_MAX {
                return Err(format!(
                    "the outputs of the filter have more than {OUTPUT_BYTES_MAX} bytes"
                ));
            }
            emit(&output);
        }
        Ok(())
    }
}

/// Says where and how a filter cannot be read: the first of its errors.
fn load_error(code: &str, errors: &load::Errors<&str, ()>) -> String {
    for (_, error) in errors {
        match error {
            load::Error::Io(missing) => {
                if let Some((path, error)) = missing.first() {
                    return place(code, path, error);
                }
            }
            load::Error::Lex(wrong) => {
                if let Some((expected, found)) = wrong.first() {
                    let expected = expected.as_str();
                    return place(code, found, &format!("expected {expected}"));
                }
            }
            load::Error::Parse(wrong) => {
                if let Some((expected, found)) = wrong.first() {
                    let expected = expected.as_str();
                    let found_text = if found.is_empty() { "the end" } else { found };
                    let what = format!("expected {expected}, found `{}`", cut(found_text));
                    return place(code, found, &what);
                }
            }
        }
    }
    "the filter cannot be read".to_owned()
}

fn undefined(name: &str, kind: &Undefined) -> String {
    match kind {
        Undefined::Filter(0) => format!("there is no filter `{name}`"),
        Undefined::Filter(arity) => format!("there is no filter `{name}` with {arity} arguments"),
        kind => format!("there is no {} `{name}`", kind.as_str()),
    }
}

/// Adds the line and column of a part of the filter.
fn place(code: &str, part: &str, what: &str) -> String {
    // A part is a slice of the code; one of the standard library never is.
    let offset = (part.as_ptr() as usize).wrapping_sub(code.as_ptr() as usize);
    let Some(before) = code.get(..offset) else {
        return format!("the filter is wrong: {what}");
    };
    let line = before.matches('\n').count() + 1;
    let column = before
        .rsplit('\n')
        .next()
        .unwrap_or_default()
        .chars()
        .count()
        + 1;
    let shown = code.lines().nth(line - 1);
    let shown = shown.filter(|shown| shown.len() <= SHOWN_BYTES_MAX);
    let shown = shown.map(|shown| format!(" (`{}`)", shown.trim()));
    let shown = shown.unwrap_or_default();
    format!("the filter is wrong at line {line}, column {column}: {what}{shown}")
}

/// What an error says: one raised with a text is that text, without quotes.
fn said(error: jaq_json::Error) -> String {
    match error.into_val() {
        Val::TStr(text) => String::from_utf8_lossy(&text).into_owned(),
        value => value.to_string(),
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(ERROR_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(filter: &str, body: &str) -> Result<Vec<String>, String> {
        let program = Program::compile(filter, 5)?;
        let mut outputs = Vec::new();
        let about = br#"{"id":"7","headers":{"a":"b"}}"#;
        program.run(about, body.as_bytes(), |output| {
            outputs.push(String::from_utf8(output.to_vec()).unwrap());
        })?;
        Ok(outputs)
    }

    #[track_caller]
    fn gives(filter: &str, body: &str, expect: &[&str]) {
        assert_eq!(run(filter, body).unwrap(), expect, "{filter}");
    }

    #[track_caller]
    fn fails(filter: &str, body: &str, expect: &str) {
        assert_eq!(run(filter, body).unwrap_err(), expect, "{filter}");
    }

    #[test]
    fn a_filter_gives_none_one_or_many() {
        gives(".a", r#"{"a":[1,{"b":null}]}"#, &[r#"[1,{"b":null}]"#]);
        gives(".[]", "[1,2,3]", &["1", "2", "3"]);
        gives("empty", "{}", &[]);
        gives("select(.n > 3)", r#"{"n":3}"#, &[]);
        gives(
            "{id, deal: .number, amount: (.total_cents / 100)}",
            r#"{"id":1,"number":"SO-1","total_cents":1234}"#,
            &[r#"{"id":1,"deal":"SO-1","amount":12.34}"#],
        );
    }

    #[test]
    fn numbers_stay_what_they_are() {
        gives(
            ".",
            "123456789012345678901234567890",
            &["123456789012345678901234567890"],
        );
        gives(".", "1.10", &["1.10"]);
        gives(". / 100", "1200", &["12"]);
        gives("0.5, 1e1000, -0.5", "1", &["0.5", "1e1000", "-0.5"]);
        gives("1e3 + 0.5", "1", &["1000.5"]);
    }

    #[test]
    fn the_message_is_at_hand() {
        gives("$message.headers.a + $message.id", "1", &[r#""b7""#]);
    }

    #[test]
    fn text_is_written_as_json() {
        gives(
            ".",
            r#""ü\u0000\n\" \ud83d\ude00 \/""#,
            &[r#""ü\u0000\n\" 😀 /""#],
        );
        gives("@base64d", r#""/w==""#, &["\"\u{fffd}\""]);
    }

    #[test]
    fn a_wrong_filter_is_shown_with_its_place() {
        fails(
            ".a | ]",
            "1",
            "the filter is wrong at line 1, column 6: expected token (`.a | ]`)",
        );
        fails(
            ".a\n| {b: (}",
            "1",
            "the filter is wrong at line 2, column 8: expected closing parenthesis (`| {b: (}`)",
        );
        fails(
            ".a |",
            "1",
            "the filter is wrong at line 1, column 5: expected term, found `the end` (`.a |`)",
        );
        fails(
            "mop(.)",
            "1",
            "the filter is wrong at line 1, column 1: there is no filter `mop` with 1 arguments (`mop(.)`)",
        );
        fails(
            "$x",
            "1",
            "the filter is wrong at line 1, column 1: there is no variable `$x` (`$x`)",
        );
        fails(
            "env",
            "1",
            "the filter is wrong at line 1, column 1: there is no filter `env` (`env`)",
        );
        fails(
            "input",
            "1",
            "the filter is wrong at line 1, column 1: there is no filter `input` (`input`)",
        );
    }

    #[test]
    fn a_filter_that_fails_says_why() {
        fails(".a", "7", "the filter failed: cannot index 7 with \"a\"");
        fails("error(\"no\")", "7", "the filter failed: no");
        fails(
            "range(9)",
            "7",
            "the filter gives more than 5 outputs (`outputs_max`)",
        );
        fails("halt", "7", "the filter halts, which ends no message");
        fails("nan", "7", "the filter gives NaN, which is not JSON");
        fails(
            "infinite",
            "7",
            "the filter gives an infinite number, which is not JSON",
        );
        fails(
            "{(1): 2}",
            "7",
            "the filter gives an object with a key that is not a string: 1",
        );
        let long = run("error", &format!("\"{}\"", "x".repeat(10_000))).unwrap_err();
        assert!(long.len() < 600, "{}", long.len());
    }
}
