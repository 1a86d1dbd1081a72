//! Rows in files, as the steps that read and write them have them.

use schemars::JsonSchema;
use serde::Deserialize;

/// What is in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// A line of names, then a row of values each.
    Csv,
    /// A JSON value a line.
    Jsonl,
}

/// Reads what stands between two values of CSV: one ASCII character that ends no line and no value.
pub fn read_delimiter(delimiter: char) -> Result<u8, String> {
    u8::try_from(delimiter)
        .ok()
        .filter(|it| it.is_ascii() && !b"\"\r\n".contains(it))
        .ok_or_else(|| format!("`delimiter` cannot be {delimiter:?}: it is one ASCII character"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delimiter_is_one_character_that_means_nothing_else() {
        assert_eq!(read_delimiter(';'), Ok(b';'));
        assert_eq!(read_delimiter('\t'), Ok(b'\t'));
        for odd in ['"', '\n', '\r', 'ü', '→'] {
            assert!(read_delimiter(odd).is_err(), "{odd:?}");
        }
    }
}
