//! Secrets become `***` in everything that a person may read.

/// Knows the secrets.
#[derive(Clone, Default)]
pub struct Redact {
    secrets: Vec<String>,
}

impl Redact {
    /// Learns the secrets. A secret of several lines (a key in PEM) is also recognised line by line.
    pub fn new(secrets: &[String]) -> Self {
        let mut all: Vec<String> = Vec::new();
        for secret in secrets {
            all.push(secret.clone());
            if secret.contains('\n') {
                all.extend(
                    secret
                        .lines()
                        .filter(|line| line.len() >= 8)
                        .map(str::to_owned),
                );
            }
            if let Ok(quoted) = serde_json::to_string(secret) {
                all.push(quoted[1..quoted.len() - 1].to_owned());
            }
        }
        all.retain(|secret| !secret.is_empty());
        // The longest first: one secret may be a part of another.
        all.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        all.dedup();
        Self { secrets: all }
    }

    /// Returns the text without secrets.
    pub fn apply(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in &self.secrets {
            if text.contains(secret.as_str()) {
                text = text.replace(secret.as_str(), "***");
            }
        }
        text
    }
}

impl std::fmt::Debug for Redact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Redact({} secrets)", self.secrets.len())
    }
}

/// Cuts a text to a number of bytes, at the end of a character, and says so.
pub fn cut(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let mut end = bytes_max.saturating_sub("… (cut)".len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}… (cut)", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_replaced_the_longest_first() {
        let redact = Redact::new(&["abc".into(), "abcdef".into(), String::new()]);
        assert_eq!(redact.apply("x abcdef y abc z"), "x *** y *** z");
    }

    #[test]
    fn a_secret_is_found_quoted_and_line_by_line() {
        let redact = Redact::new(&["first line\nsecond \"line\"".into()]);
        assert_eq!(redact.apply("a first line b"), "a *** b");
        assert_eq!(
            redact.apply(r#"{"k":"first line\nsecond \"line\""}"#),
            r#"{"k":"***"}"#
        );
    }

    #[test]
    fn a_cut_falls_between_characters() {
        assert_eq!(cut("short", 10), "short");
        let long = "ü".repeat(20);
        assert!(cut(&long, 21).len() <= 21);
        assert!(cut(&long, 21).ends_with("… (cut)"));
    }
}
