//! Reads the blocks of a template, and writes `.name` in them as what minijinja understands.
//!
//! `{{ .id }}` is how flows write a field of the message's body; in minijinja a dot has to follow
//! something. So a dot that follows nothing gets [`BODY`] in front, and no other dot does.

/// What a leading dot stands for.
pub(crate) const BODY: &str = "__body";

/// Words after which an expression begins.
const KEYWORDS: [&str; 11] = [
    "and", "or", "not", "in", "is", "if", "elif", "else", "for", "set", "with",
];

/// A part of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// Text as it is.
    Text(String),
    /// `{{ … }}`, without its braces.
    Expression(String),
    /// `{% … %}` or `{# … #}`, with its braces.
    Other(String),
}

/// Takes a template apart. Blocks that are not closed stay text; minijinja complains of them.
pub(crate) fn parts(template: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut rest = template;
    while let Some((before, block, after)) = next_block(rest) {
        if !before.is_empty() {
            parts.push(Part::Text(before.to_owned()));
        }
        let inner = &block[2..block.len() - 2];
        parts.push(match block.as_bytes()[1] {
            b'{' => Part::Expression(rewrite(inner)),
            b'%' => Part::Other(format!("{{%{}%}}", rewrite(inner))),
            _ => Part::Other(block.to_owned()),
        });
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest.to_owned()));
    }
    parts
}

/// Writes the parts as one template again.
pub(crate) fn join(parts: &[Part]) -> String {
    parts
        .iter()
        .map(|part| match part {
            Part::Text(text) | Part::Other(text) => text.clone(),
            Part::Expression(inner) => format!("{{{{{inner}}}}}"),
        })
        .collect()
}

/// Finds the first block: what is before it, itself, what is after it.
fn next_block(text: &str) -> Option<(&str, &str, &str)> {
    let start = text
        .match_indices('{')
        .map(|(at, _)| at)
        .find(|at| matches!(text.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#')))?;
    let close = match text.as_bytes()[start + 1] {
        b'{' => "}}",
        b'%' => "%}",
        _ => "#}",
    };
    let inner = &text[start + 2..];
    let length = if close == "#}" {
        inner.find(close)?
    } else {
        end_of(inner, close)?
    };
    let end = start + 2 + length + 2;
    Some((&text[..start], &text[start..end], &text[end..]))
}

/// Finds where a block closes, outside of the texts in it.
fn end_of(inner: &str, close: &str) -> Option<usize> {
    let mut quote = None;
    let mut characters = inner.char_indices();
    while let Some((at, character)) = characters.next() {
        match (quote, character) {
            (Some(_), '\\') => {
                characters.next();
            }
            (Some(open), _) if open == character => quote = None,
            (None, '"' | '\'') => quote = Some(character),
            (None, _) if inner[at..].starts_with(close) => return Some(at),
            _ => {}
        }
    }
    None
}

/// Puts [`BODY`] in front of every dot that follows nothing.
fn rewrite(inner: &str) -> String {
    let mut out = String::with_capacity(inner.len() + 16);
    let mut quote = None;
    // Whether what came last, white space aside, is something that a dot can follow.
    let mut follows = false;
    let mut word = String::new();
    let mut characters = inner.chars().peekable();
    while let Some(character) = characters.next() {
        if let Some(open) = quote {
            out.push(character);
            if character == '\\' {
                out.extend(characters.next());
            } else if character == open {
                quote = None;
            }
            continue;
        }
        if character.is_alphanumeric() || character == '_' {
            word.push(character);
            out.push(character);
            continue;
        }
        if !word.is_empty() {
            follows = !KEYWORDS.contains(&word.as_str());
            word.clear();
        }
        match character {
            '.' if !follows => {
                out.push_str(BODY);
                let names = characters
                    .peek()
                    .is_some_and(|next| next.is_alphabetic() || *next == '_');
                if names {
                    out.push('.');
                }
                follows = true;
                continue;
            }
            '"' | '\'' => {
                quote = Some(character);
                follows = true;
            }
            ')' | ']' | '}' => follows = true,
            _ if character.is_whitespace() => {}
            _ => follows = false,
        }
        out.push(character);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(template: &str, expect: &str) {
        assert_eq!(join(&parts(template)), expect);
    }

    #[test]
    fn a_leading_dot_is_the_body() {
        check("{{ .id }}", "{{ __body.id }}");
        check("{{.id}}", "{{__body.id}}");
        check("{{- .id -}}", "{{- __body.id -}}");
        check("a{{ .b.c[0].d }}e", "a{{ __body.b.c[0].d }}e");
        check("{{ . }}", "{{ __body }}");
        check("{{ .[0].a }}", "{{ __body[0].a }}");
        check("{{ .[\"a b\"] }}", "{{ __body[\"a b\"] }}");
        check("{{ .a ~ .b }}", "{{ __body.a ~ __body.b }}");
        check("{{ f(.a, b=.c) }}", "{{ f(__body.a, b=__body.c) }}");
        check("{{ 1 if .a else .b }}", "{{ 1 if __body.a else __body.b }}");
        check(
            "{% for x in .items %}{{ x.id }}{% endfor %}",
            "{% for x in __body.items %}{{ x.id }}{% endfor %}",
        );
        check(
            "{{ not .a and .b in .c }}",
            "{{ not __body.a and __body.b in __body.c }}",
        );
    }

    #[test]
    fn every_other_dot_stays() {
        for same in [
            "{{ id }}",
            "{{ a.b }}",
            "{{ a .b }}",
            "{{ a[0].b }}",
            "{{ f().b }}",
            "{{ 1.5 }}",
            "{{ \".id\" ~ '.x \\' .y' }}",
            "{{ {\"a\": 1}.a }}",
            "{{ \"}}\" }}",
            "{# .id #}",
            "no . block .id",
            "{ .id }",
            "{{ .open",
            "http://a.b/c.d?e=.f",
        ] {
            check(same, same);
        }
    }

    #[test]
    fn parts_are_told_apart() {
        let part = |text: &str| Part::Text(text.to_owned());
        assert_eq!(
            parts("a{{ .b }}{% if c %}d"),
            [
                part("a"),
                Part::Expression(" __body.b ".to_owned()),
                Part::Other("{% if c %}".to_owned()),
                part("d"),
            ]
        );
        assert_eq!(parts(""), []);
    }
}
