//! `${secrets.name}` and `${env.NAME}` in texts of `with`, `env` and `command`. `$${` is `${`.

/// A piece of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// As it stands.
    Literal(&'a str),
    /// A secret, by name.
    Secret(&'a str),
    /// An environment variable, by name.
    Env(&'a str),
    /// Meant as a placeholder, but none: the text of it, and why not.
    Bad(&'a str, &'static str),
}

/// Takes a text apart.
pub(crate) fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            // The first dollar of `$${` is left out.
            push_literal(&mut pieces, &rest[..at - 1]);
            push_literal(&mut pieces, &rest[at..at + 2]);
            rest = &rest[at + 2..];
            continue;
        }
        push_literal(&mut pieces, &rest[..at]);
        let Some(length) = rest[at..].find('}') else {
            pieces.push(Piece::Bad(&rest[at..], "it has no closing brace"));
            return pieces;
        };
        let whole = &rest[at..=at + length];
        pieces.push(placeholder(whole));
        rest = &rest[at + length + 1..];
    }
    push_literal(&mut pieces, rest);
    pieces
}

fn push_literal<'a>(pieces: &mut Vec<Piece<'a>>, text: &'a str) {
    if !text.is_empty() {
        pieces.push(Piece::Literal(text));
    }
}

/// What stands between `${` and `}`.
fn placeholder(whole: &str) -> Piece<'_> {
    let inner = &whole[2..whole.len() - 1];
    match inner.split_once('.') {
        Some(("secrets", name)) if is_secret_name(name) => Piece::Secret(name),
        Some(("secrets", _)) => Piece::Bad(whole, "this is no name of a secret"),
        Some(("env", name)) if is_env_name(name) => Piece::Env(name),
        Some(("env", _)) => Piece::Bad(whole, "this is no name of a variable"),
        _ => Piece::Bad(
            whole,
            "it is neither `${secrets.<name>}` nor `${env.<NAME>}`",
        ),
    }
}

/// Whether a secret can have this name: letters, digits, `_` and `-`, not beginning with a digit
/// or `-`, at most 128.
pub fn is_secret_name(name: &str) -> bool {
    let name_without = name.replace('-', "_");
    !name.starts_with('-') && is_env_name(&name_without)
}

/// Whether an environment variable can have this name: letters, digits and `_`, not beginning with
/// a digit, at most 128.
pub fn is_env_name(name: &str) -> bool {
    name.len() <= 128
        && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Whether a text has placeholders in it, good or bad.
pub(crate) fn has_any(text: &str) -> bool {
    pieces(text)
        .iter()
        .any(|piece| !matches!(piece, Piece::Literal(_)))
}

#[cfg(test)]
mod tests {
    use super::Piece::{Env, Literal, Secret};
    use super::*;

    #[test]
    fn texts_are_taken_apart() {
        assert_eq!(pieces(""), []);
        assert_eq!(
            pieces("Bearer ${secrets.crm_token}!"),
            [Literal("Bearer "), Secret("crm_token"), Literal("!")]
        );
        assert_eq!(pieces("${env.A}${env.B}"), [Env("A"), Env("B")]);
        assert_eq!(pieces("$5 and $x and {a}"), [Literal("$5 and $x and {a}")]);
        assert_eq!(
            pieces("a$${b}"),
            [Literal("a"), Literal("${"), Literal("b}")]
        );
        for bad in [
            "${",
            "${}",
            "${x}",
            "${secrets}",
            "${secrets.}",
            "${env.a-b}",
            "${secrets.a.b}",
            "${ env.A }",
        ] {
            assert!(matches!(pieces(bad)[..], [Piece::Bad(..)]), "{bad}");
        }
    }
}
