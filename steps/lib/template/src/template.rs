//! Templates: compiled once, filled in for each message.
//!
//! # Invariants
//!
//! - `what_is_not_there_is_an_error`: a name that the message does not have is never an empty text.
//! - `what_is_filled_in_stays_one_part`: a value in a URL cannot add a path segment or a parameter.
//! - No error quotes a template beyond the expression that failed: the rest may hold secrets.

use std::collections::BTreeMap;

use minijinja::syntax::SyntaxConfig;
pub use minijinja::value::Value as Values;
use minijinja::value::{Serde, Value, ValueKind};
use minijinja::{
    Environment, Error, ErrorKind, Output, State, UndefinedBehavior, escape_formatter,
};
use serde_json::value::RawValue;

use crate::block::{BODY, Part, join, parts};

/// How much work one template may be: about one instruction each.
const FUEL: u64 = 1_000_000;

/// What a template is for decides how its values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Values are percent-encoded; null and nothing are errors.
    Url,
    /// Values are written as they are; null is an error.
    Line,
    /// Values are written as they are.
    Body,
}

impl Use {
    fn of(name: &str) -> Self {
        match name {
            "url" => Self::Url,
            "body" => Self::Body,
            _ if name.starts_with("body.") => Self::Body,
            _ => Self::Line,
        }
    }
}

/// All templates of a step.
#[derive(Debug)]
pub struct Templates {
    environment: Environment<'static>,
}

/// One template; the text is in [`Templates`] under its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Template {
    /// Text without a block.
    Fixed(String),
    /// Text with blocks, under its name.
    Filled(String),
    /// One expression, whose value keeps its type: its name and itself.
    Typed(String, String),
}

impl Default for Templates {
    fn default() -> Self {
        Self::new()
    }
}

impl Templates {
    /// None yet.
    pub fn new() -> Self {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_formatter(write);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
        environment.set_syntax(syntax.expect("the delimiters are the usual ones"));
        Self { environment }
    }

    /// Compiles a template. Its name is its place in the configuration: `headers.accept`.
    pub fn add(&mut self, name: &str, text: &str) -> Result<Template, String> {
        let parts = parts(text);
        if parts
            .iter()
            .all(|part| matches!(part, Part::Text(text) if !text.contains("{{")))
        {
            return Ok(Template::Fixed(text.to_owned()));
        }
        self.environment
            .add_template_owned(name.to_owned(), join(&parts))
            .map_err(|error| explain(name, &error))?;
        self.rehearse(name).map_err(|error| explain(name, &error))?;
        Ok(match parts.as_slice() {
            [Part::Expression(inner)] => {
                let inner = inner.trim_matches(|c: char| c == '-' || c.is_whitespace());
                Template::Typed(name.to_owned(), inner.to_owned())
            }
            _ => Template::Filled(name.to_owned()),
        })
    }

    /// Fills in a template with nothing at all, to find the filters and functions that do not
    /// exist. Everything else that goes wrong is the nothing's fault.
    fn rehearse(&self, name: &str) -> Result<(), Error> {
        let mut environment = self.environment.clone();
        environment.set_undefined_behavior(UndefinedBehavior::Chainable);
        environment.set_formatter(|_, _, _| Ok(()));
        let rendered = environment.get_template(name)?.render(Value::from(()));
        match rendered {
            Err(error) if names_nothing(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Fills in a template as text. An error names its place, and quotes the expression that failed.
    pub fn text(&self, template: &Template, values: &Value) -> Result<String, String> {
        match template {
            Template::Fixed(text) => Ok(text.clone()),
            Template::Filled(name) | Template::Typed(name, _) => self
                .environment
                .get_template(name)
                .and_then(|template| template.render(values.clone()))
                .map_err(|error| explain(name, &error)),
        }
    }

    /// Fills in a template as JSON: one that is a single expression keeps the type of its value.
    pub fn json(&self, template: &Template, values: &Value) -> Result<serde_json::Value, String> {
        let Template::Typed(name, expression) = template else {
            return self.text(template, values).map(serde_json::Value::String);
        };
        let value = self
            .environment
            .compile_expression(expression)
            .and_then(|expression| expression.eval(values.clone()))
            .map_err(|error| explain(name, &error))?;
        if value.is_undefined() {
            let expression = shown(expression);
            return Err(format!(
                "the template `{name}` fails: `{expression}` is not there"
            ));
        }
        serde_json::to_value(&value)
            .map_err(|error| format!("the template `{name}` gives what is not JSON: {error}"))
    }
}

/// What a message's templates can name: the fields of its body, `message`, and, through a leading
/// dot, the body itself.
pub fn values(
    body: &RawValue,
    id: &str,
    attempt: u32,
    headers: &BTreeMap<String, String>,
) -> Result<Value, serde_json::Error> {
    let body: serde_json::Value = serde_json::from_str(body.get())?;
    let whole = Value::from(Serde(&body));
    let mut names: BTreeMap<String, Value> = BTreeMap::new();
    if let serde_json::Value::Object(fields) = &body {
        for (name, value) in fields {
            names.insert(name.clone(), Value::from(Serde(value)));
        }
    }
    let message = serde_json::json!({"id": id, "attempt": attempt, "headers": headers});
    names.insert("message".to_owned(), Value::from(Serde(&message)));
    names.insert(BODY.to_owned(), whole);
    Ok(Value::from(names))
}

fn names_nothing(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::UnknownFilter | ErrorKind::UnknownTest | ErrorKind::UnknownFunction
    )
}

/// Writes a value into a template.
fn write(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    let wrong = |what: &'static str| Err(Error::new(ErrorKind::InvalidOperation, what));
    let purpose = Use::of(state.name());
    match value.kind() {
        ValueKind::Undefined => {
            return Err(Error::from(ErrorKind::UndefinedError));
        }
        // Minijinja would write `True`, as Python does.
        ValueKind::Bool => {
            return Ok(out.write_str(if value.is_true() { "true" } else { "false" })?);
        }
        ValueKind::None if purpose == Use::Body => return Ok(out.write_str("null")?),
        ValueKind::None => return wrong("it is null"),
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable if purpose != Use::Body => {
            return wrong("it is a list or an object");
        }
        ValueKind::Seq | ValueKind::Map => {
            let json = serde_json::to_string(value);
            let json =
                json.map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
            return Ok(out.write_str(&json)?);
        }
        _ => {}
    }
    if purpose != Use::Url || value.is_safe() {
        return escape_formatter(out, state, value);
    }
    let text = value.to_string();
    if text.is_empty() {
        return wrong("it is empty");
    }
    Ok(out.write_str(&encode(&text))?)
}

/// Percent-encodes everything that has a meaning in a URL.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => {
                const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
                encoded.push('%');
                encoded.push(char::from(DIGITS[usize::from(byte >> 4)]));
                encoded.push(char::from(DIGITS[usize::from(byte & 15)]));
            }
        }
    }
    encoded
}

/// Says what is wrong with a template, quoting only the block that it is wrong in.
fn explain(name: &str, error: &Error) -> String {
    let block = error
        .range()
        .zip(error.template_source())
        .and_then(|(range, source)| {
            let start = source.get(..range.start)?.rfind("{{")?;
            let end = start + source.get(start..)?.find("}}")?;
            (range.start < end).then(|| shown(source.get(start + 2..end)?).into())
        })
        .flatten();
    let what = match (error.kind(), error.detail()) {
        (ErrorKind::UndefinedError, _) => "is not there, or a part of it is not",
        (ErrorKind::OutOfFuel, _) => "is too much work",
        (_, Some(detail)) => detail,
        (kind, None) => return with_block(name, block, &kind.to_string()),
    };
    with_block(name, block, what)
}

fn with_block(name: &str, block: Option<String>, what: &str) -> String {
    match block {
        Some(block) => format!("the template `{name}` fails at `{block}`: {what}"),
        None => format!("the template `{name}` fails: {what}"),
    }
}

/// An expression as its author wrote it.
fn shown(expression: &str) -> String {
    let expression = expression
        .replace(&format!("{BODY}."), ".")
        .replace(BODY, ".");
    expression
        .trim_matches(|c: char| c == '-' || c.is_whitespace())
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fill(name: &str, text: &str) -> Result<serde_json::Value, String> {
        let body = RawValue::from_string(
            r#"{"id":7,"name":"a/b c?&ü","none":null,"empty":"","list":[1,{"x":2.5}],"deep":{"er":true},"message":"mine"}"#.to_owned(),
        )
        .unwrap();
        let headers = BTreeMap::from([("http.path".to_owned(), "/x".to_owned())]);
        let values = values(&body, "00ff", 2, &headers).unwrap();
        let mut templates = Templates::new();
        let template = templates.add(name, text)?;
        if name.starts_with("body") {
            templates.json(&template, &values)
        } else {
            templates
                .text(&template, &values)
                .map(serde_json::Value::String)
        }
    }

    #[track_caller]
    fn gives(name: &str, text: &str, expect: serde_json::Value) {
        assert_eq!(fill(name, text), Ok(expect), "{text}");
    }

    #[track_caller]
    fn fails(name: &str, text: &str, expect: &str) {
        assert_eq!(fill(name, text), Err(expect.to_owned()), "{text}");
    }

    #[test]
    fn both_ways_to_name_a_field_work() {
        gives(
            "headers.a",
            "n-{{ .id }}-{{ id }}-{{ deep.er }}",
            json!("n-7-7-true"),
        );
        gives(
            "headers.a",
            "{{ message.id }} {{ message.headers[\"http.path\"] }} {{ message.attempt }}",
            json!("00ff /x 2"),
        );
        gives("headers.a", "{{ .message }}", json!("mine"));
        gives("headers.a", "plain { text }", json!("plain { text }"));
        gives("headers.a", "{{ .name | upper }}", json!("A/B C?&Ü"));
    }

    #[test]
    fn one_expression_keeps_its_type() {
        gives("body.n", "{{ .id }}", json!(7));
        gives("body.n", " {{ .id }}", json!(" 7"));
        gives("body.n", "{{ .list }}", json!([1, {"x": 2.5}]));
        gives("body.n", "{{ . }}", serde_json::from_str(r#"{"id":7,"name":"a/b c?&ü","none":null,"empty":"","list":[1,{"x":2.5}],"deep":{"er":true},"message":"mine"}"#).unwrap());
        gives("body.n", "{{ .none }}", json!(null));
        gives("body.n", "{{ .id }}\n", json!("7\n"));
        gives("body.n", "{{ .id * 2 }}", json!(14));
        gives(
            "body.n",
            "list {{ .list }} and {{ .none }}",
            json!("list [1,{\"x\":2.5}] and null"),
        );
        gives(
            "body.n",
            "{% for x in .list %}{{ loop.index }}{% endfor %}",
            json!("12"),
        );
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        fails(
            "headers.a",
            "Bearer hush {{ .nope }}",
            "the template `headers.a` fails at `.nope`: is not there, or a part of it is not",
        );
        fails(
            "url",
            "http://x/{{ .deep.nope.more }}",
            "the template `url` fails at `.deep.nope.more`: is not there, or a part of it is not",
        );
        fails(
            "body.n",
            "{{ .nope }}",
            "the template `body.n` fails: `.nope` is not there",
        );
        fails(
            "body.n",
            "{{ nope.more }}",
            "the template `body.n` fails: is not there, or a part of it is not",
        );
        gives("headers.a", "{{ .nope | default(\"x\") }}", json!("x"));
    }

    #[test]
    fn what_is_filled_in_stays_one_part() {
        gives(
            "url",
            "http://x/{{ .name }}?q={{ .name }}",
            json!("http://x/a%2Fb%20c%3F%26%C3%BC?q=a%2Fb%20c%3F%26%C3%BC"),
        );
        gives(
            "url",
            "http://x/{{ .name | safe }}",
            json!("http://x/a/b c?&ü"),
        );
        fails(
            "url",
            "http://x/{{ .none }}",
            "the template `url` fails at `.none`: it is null",
        );
        fails(
            "url",
            "http://x/{{ .empty }}",
            "the template `url` fails at `.empty`: it is empty",
        );
        fails(
            "url",
            "http://x/{{ .list }}",
            "the template `url` fails at `.list`: it is a list or an object",
        );
        fails(
            "headers.a",
            "{{ .none }}",
            "the template `headers.a` fails at `.none`: it is null",
        );
    }

    #[test]
    fn a_wrong_template_is_told_at_once() {
        let mut templates = Templates::new();
        for (text, wrong) in [
            ("a{{ .id | shout }}", "shout"),
            ("{{ shout(.id) }}", "shout"),
            ("{% if .id is loud %}x{% endif %}", "loud"),
        ] {
            let error = templates.add("headers.a", text).unwrap_err();
            assert!(error.contains(wrong), "{error}");
        }
        let error = fill("url", "http://x/{{ .id").unwrap_err();
        assert!(error.starts_with("the template `url` fails"), "{error}");
        let error = fill("url", "http://x/{{ .id | shout }}").unwrap_err();
        assert!(error.contains("shout"), "{error}");
        let error = fill(
            "headers.a",
            "{% for x in range(100000) %}{% for y in range(100000) %}.{% endfor %}{% endfor %}",
        )
        .unwrap_err();
        assert!(error.ends_with("is too much work"), "{error}");
    }
}
