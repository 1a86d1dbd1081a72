//! Whether what one schema describes is what another one accepts: pure.
//!
//! # Invariants
//!
//! - `only_what_can_never_fit_never_fits`: there is no value that both accept.
//! - `what_is_not_promised_may_not_fit`.
//! - `of_what_a_schema_does_not_say_nothing_is_said`.
//! - `schemas_that_refer_to_themselves_come_to_an_end`.

use std::fmt;

use serde_json::Value;

use super::shape::{Shape, Types, shapes};
use crate::text::shown;

/// How deep bodies are compared: deeper than people look.
const DEPTH_MAX: usize = 12;

/// How many schemas are looked at in all; beyond, nothing more is said. A manifest is not trusted to
/// be small.
const SCHEMAS_MAX: usize = 20_000;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    /// It may go wrong.
    Maybe,
    /// It cannot go well.
    Never,
}

/// Where two schemas clash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Clash {
    pub(super) verdict: Verdict,
    /// As jq writes it: `.customer.id`; empty is the body itself.
    path: String,
    what: String,
}

impl fmt::Display for Clash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            write!(formatter, "the body {}", self.what)
        } else {
            write!(formatter, "`{}` {}", self.path, self.what)
        }
    }
}

/// Finds where what `output` describes is not what `input` accepts.
pub(super) fn compare(output: &Value, input: &Value) -> Vec<Clash> {
    let mut comparison = Comparison {
        output,
        input,
        fuel: SCHEMAS_MAX,
    };
    comparison.schemas(output, input, "", DEPTH_MAX)
}

struct Comparison<'s> {
    output: &'s Value,
    input: &'s Value,
    fuel: usize,
}

impl<'s> Comparison<'s> {
    fn schemas(
        &mut self,
        output: &'s Value,
        input: &'s Value,
        path: &str,
        depth: usize,
    ) -> Vec<Clash> {
        if depth == 0 || self.fuel == 0 {
            return Vec::new();
        }
        let emitted = shapes(self.output, output, &mut self.fuel);
        let taken = shapes(self.input, input, &mut self.fuel);
        if taken.is_empty() && !emitted.is_empty() {
            return vec![never(path, "is never taken")];
        }
        let all: Vec<Vec<Clash>> = emitted
            .iter()
            .map(|shape| self.best(shape, &taken, path, depth))
            .collect();
        let is_never = !all.is_empty()
            && all
                .iter()
                .all(|clashes| worst(clashes) == Some(Verdict::Never));
        if let ([_], _) | (_, true) = (all.as_slice(), is_never) {
            return all.into_iter().next().unwrap_or_default();
        }
        // Of several forms some fit: what is wrong with the others is not always wrong.
        let mut clashes: Vec<Clash> = Vec::new();
        for mut clash in all.into_iter().flatten() {
            clash.verdict = Verdict::Maybe;
            if !clashes.contains(&clash) {
                clashes.push(clash);
            }
        }
        clashes
    }

    /// What is wrong with one form of what is emitted, held against that form of what is taken that
    /// it is nearest to.
    fn best(
        &mut self,
        emitted: &Shape<'s>,
        taken: &[Shape<'s>],
        path: &str,
        depth: usize,
    ) -> Vec<Clash> {
        let mut best: Option<Vec<Clash>> = None;
        for shape in taken {
            let clashes = self.shape(emitted, shape, path, depth);
            if clashes.is_empty() {
                return clashes;
            }
            let is_nearer = |best: &Vec<Clash>| {
                let key = |clashes: &[Clash]| {
                    let depth = clashes.iter().map(|clash| clash.path.len()).max();
                    (worst(clashes), std::cmp::Reverse(depth))
                };
                key(&clashes) < key(best)
            };
            if best.as_ref().is_none_or(is_nearer) {
                best = Some(clashes);
            }
        }
        let mut best = best.unwrap_or_default();
        // Which of several forms is taken may hang on what the schemas do not say.
        if taken.len() > 1 && best.iter().any(|clash| clash.verdict == Verdict::Never) {
            best.retain(|clash| clash.verdict == Verdict::Never);
        }
        best
    }

    fn shape(&mut self, a: &Shape<'s>, b: &Shape<'s>, path: &str, depth: usize) -> Vec<Clash> {
        let common = a.types.and(b.types);
        if common == Types::NONE {
            let what = format!("is {}, and must be {}", a.types.words(), b.types.words());
            return vec![never(path, &what)];
        }
        let mut clashes = Vec::new();
        if let (Some(emitted), Some(taken)) = (&a.values, &b.values) {
            let strange: Vec<&&Value> = emitted.iter().filter(|it| !taken.contains(it)).collect();
            let list = |values: Vec<String>| values.join(", ");
            let must = list(taken.iter().map(|it| shown_value(it)).collect());
            if strange.len() == emitted.len() {
                let what = format!("must be one of {must}, and is none of them");
                return vec![never(path, &what)];
            }
            if let Some(one) = strange.first() {
                let what = format!("may be {}, and must be one of {must}", shown_value(one));
                clashes.push(maybe(path, &what));
            }
        } else if a.types != Types::ALL {
            let strange = a.types.without(b.types);
            if strange != Types::NONE {
                let (may, must) = (strange.words(), b.types.words());
                clashes.push(maybe(path, &format!("may be {may}, and must be {must}")));
            }
        }
        if common.has(Types::OBJECT) {
            let inner = self.object(a, b, path, depth);
            clashes.extend(soften(inner, common == Types::OBJECT));
        }
        if let (true, Some(emitted), Some(taken)) = (common.has(Types::LIST), a.items, b.items) {
            let inner = self.schemas(emitted, taken, &format!("{path}[]"), depth - 1);
            let is_there = common == Types::LIST && (a.has_items || b.has_items);
            clashes.extend(soften(inner, is_there));
        }
        clashes
    }

    fn object(&mut self, a: &Shape<'s>, b: &Shape<'s>, path: &str, depth: usize) -> Vec<Clash> {
        let mut clashes = Vec::new();
        let is_described = !a.properties.is_empty() || !a.required.is_empty() || a.is_closed;
        for name in &b.required {
            let at = property(path, name);
            let (emitted, taken) = (a.properties.get(name), b.properties.get(name));
            let inner = match (emitted, taken) {
                (Some(emitted), Some(taken)) => self.schemas(emitted, taken, &at, depth - 1),
                _ => Vec::new(),
            };
            let is_wrong = worst(&inner) == Some(Verdict::Never);
            clashes.extend(inner);
            if a.required.contains(name) || is_wrong {
                continue;
            }
            match emitted {
                Some(_) => clashes.push(maybe(&at, "may be left out, and must be there")),
                None if a.is_closed => clashes.push(never(&at, "is never there, and must be")),
                None if is_described => {
                    clashes.push(maybe(&at, "is not promised, and must be there"));
                }
                None => {}
            }
        }
        for (name, emitted) in &a.properties {
            let at = property(path, name);
            let is_there = a.required.contains(name);
            match b.properties.get(name) {
                Some(_) if b.required.contains(name) => {}
                Some(taken) => {
                    let inner = self.schemas(emitted, taken, &at, depth - 1);
                    clashes.extend(soften(inner, is_there));
                }
                None if b.is_closed && is_there => {
                    clashes.push(never(&at, "is always there, and must not be"));
                }
                None if b.is_closed => clashes.push(maybe(&at, "must not be there, and may be")),
                None => {}
            }
        }
        clashes
    }
}

/// What is wrong with something that is not always there is not always wrong.
fn soften(mut clashes: Vec<Clash>, is_there: bool) -> Vec<Clash> {
    if !is_there {
        for clash in &mut clashes {
            clash.verdict = Verdict::Maybe;
        }
    }
    clashes
}

fn worst(clashes: &[Clash]) -> Option<Verdict> {
    clashes.iter().map(|clash| clash.verdict).max()
}

fn never(path: &str, what: &str) -> Clash {
    clash(Verdict::Never, path, what)
}

fn maybe(path: &str, what: &str) -> Clash {
    clash(Verdict::Maybe, path, what)
}

fn clash(verdict: Verdict, path: &str, what: &str) -> Clash {
    Clash {
        verdict,
        path: path.to_owned(),
        what: what.to_owned(),
    }
}

fn property(path: &str, name: &str) -> String {
    let is_plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if is_plain && !name.is_empty() {
        format!("{path}.{name}")
    } else {
        format!("{path}[\"{}\"]", shown(name).trim_matches('`'))
    }
}

fn shown_value(value: &Value) -> String {
    match value {
        Value::String(text) => shown(text),
        other => shown(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(output: &Value, input: &Value, expect: &[&str]) {
        let told: Vec<String> = compare(output, input)
            .iter()
            .map(|clash| match clash.verdict {
                Verdict::Never => format!("never: {clash}"),
                Verdict::Maybe => format!("maybe: {clash}"),
            })
            .collect();
        assert_eq!(told, expect);
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "it is written where it is used"
    )]
    fn object(properties: Value, required: &[&str]) -> Value {
        json!({ "type": "object", "properties": properties, "required": required })
    }

    fn closed(properties: Value, required: &[&str]) -> Value {
        let mut schema = object(properties, required);
        schema["additionalProperties"] = json!(false);
        schema
    }

    #[test]
    fn only_what_can_never_fit_never_fits() {
        let (text, whole) = (json!({"type": "string"}), json!({"type": "integer"}));
        check(
            &text,
            &whole,
            &["never: the body is text, and must be a whole number"],
        );
        check(&text, &text, &[]);
        check(&whole, &json!({"type": "number"}), &[]);
        let takes = object(json!({ "cents": whole }), &["cents"]);
        check(
            &object(json!({ "cents": text }), &["cents"]),
            &takes,
            &["never: `.cents` is text, and must be a whole number"],
        );
        // It is either wrong or missing.
        check(
            &object(json!({ "cents": text }), &[]),
            &takes,
            &["never: `.cents` is text, and must be a whole number"],
        );
        check(
            &closed(json!({ "id": text }), &["id"]),
            &takes,
            &["never: `.cents` is never there, and must be"],
        );
        check(
            &object(json!({ "id": text }), &["id"]),
            &closed(json!({ "cents": whole }), &[]),
            &["never: `.id` is always there, and must not be"],
        );
        check(
            &json!({"enum": ["a", "b"]}),
            &json!({"enum": ["c"]}),
            &["never: the body must be one of `c`, and is none of them"],
        );
        let deep = |inner: &Value| {
            object(
                json!({ "customer": object(json!({ "id": inner }), &["id"]) }),
                &["customer"],
            )
        };
        check(
            &deep(&text),
            &deep(&whole),
            &["never: `.customer.id` is text, and must be a whole number"],
        );
        let lines =
            |inner: &Value, least: u32| json!({"type": "array", "items": inner, "minItems": least});
        check(
            &lines(&text, 1),
            &lines(&whole, 0),
            &["never: `[]` is text, and must be a whole number"],
        );
        check(
            &lines(&text, 0),
            &lines(&whole, 0),
            &["maybe: `[]` is text, and must be a whole number"],
        );
    }

    #[test]
    fn what_is_not_promised_may_not_fit() {
        let (text, whole) = (json!({"type": "string"}), json!({"type": "integer"}));
        let takes = object(json!({ "cents": whole }), &["cents"]);
        check(
            &object(json!({ "id": text }), &["id"]),
            &takes,
            &["maybe: `.cents` is not promised, and must be there"],
        );
        check(
            &object(json!({ "cents": whole }), &[]),
            &takes,
            &["maybe: `.cents` may be left out, and must be there"],
        );
        check(
            &object(
                json!({ "cents": {"type": ["integer", "null"]} }),
                &["cents"],
            ),
            &takes,
            &["maybe: `.cents` may be null, and must be a whole number"],
        );
        check(
            &object(json!({ "cents": text }), &[]),
            &object(json!({ "cents": whole }), &[]),
            &["maybe: `.cents` is text, and must be a whole number"],
        );
        check(
            &json!({"enum": ["a", "b"]}),
            &json!({"enum": ["b", "c"]}),
            &["maybe: the body may be `a`, and must be one of `b`, `c`"],
        );
        check(
            &json!({"anyOf": [whole, text]}),
            &whole,
            &["maybe: the body is text, and must be a whole number"],
        );
    }

    #[test]
    fn of_what_a_schema_does_not_say_nothing_is_said() {
        let takes = object(json!({ "cents": {"type": "integer"} }), &["cents"]);
        for nothing in [
            json!(null),
            json!(true),
            json!({}),
            json!({"type": "object"}),
        ] {
            check(&nothing, &takes, &[]);
        }
        for anything in [
            json!(null),
            json!(true),
            json!({}),
            json!({"not": {"type": "object"}}),
        ] {
            check(&takes, &anything, &[]);
        }
        check(&json!({"type": "string"}), &json!({"enum": ["a"]}), &[]);
        check(&json!({"$ref": "https://elsewhere/schema"}), &takes, &[]);
    }

    #[test]
    fn one_of_several_forms_is_enough() {
        let kind = |name: &str, inner: &str| {
            object(
                json!({ "kind": {"const": name}, "value": {"type": inner} }),
                &["kind", "value"],
            )
        };
        let takes = json!({"oneOf": [kind("a", "string"), kind("b", "integer")]});
        check(&kind("a", "string"), &takes, &[]);
        check(&takes, &takes, &[]);
        assert_eq!(
            compare(&kind("c", "string"), &takes)[0].verdict,
            Verdict::Never
        );
        assert_eq!(
            compare(&takes, &kind("a", "string"))[0].verdict,
            Verdict::Maybe
        );
        assert_eq!(
            compare(&kind("a", "boolean"), &takes)[0].verdict,
            Verdict::Never
        );
    }

    #[test]
    fn references_are_followed() {
        let schema = |inner: &str| {
            json!({
                "$ref": "#/$defs/Order",
                "$defs": { "Order": object(json!({ "id": {"$ref": "#/$defs/Id"} }), &["id"]), "Id": {"type": inner} },
            })
        };
        check(&schema("string"), &schema("string"), &[]);
        check(
            &schema("string"),
            &schema("integer"),
            &["never: `.id` is text, and must be a whole number"],
        );
    }

    #[test]
    fn schemas_that_refer_to_themselves_come_to_an_end() {
        let tree = json!({
            "type": "object",
            "properties": { "left": {"$ref": "#"}, "right": {"$ref": "#"}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]} },
        });
        check(&tree, &tree, &[]);
        let loops = json!({"$ref": "#"});
        check(&loops, &tree, &[]);
        check(
            &json!({"allOf": [{"$ref": "#"}, {"$ref": "#"}]}),
            &loops,
            &[],
        );
    }
}
