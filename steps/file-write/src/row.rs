//! From a message's body to what is written of it: pure.

use serde_json::Value;
use serde_json::value::RawValue;
use towpath_step_json::compact;

/// How rows are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Manner {
    /// The body, a line.
    Lines,
    /// Some fields of the body, with this character between them.
    Csv {
        /// The fields.
        columns: Vec<String>,
        /// The character.
        delimiter: u8,
    },
}

impl Manner {
    /// The line that a file begins with, if it has one.
    pub(crate) fn head(&self) -> Result<Vec<u8>, String> {
        match self {
            Self::Lines => Ok(Vec::new()),
            Self::Csv { columns, delimiter } => record(columns, *delimiter),
        }
    }

    /// The row of a message, with the end of its line.
    pub(crate) fn row(&self, body: &RawValue) -> Result<Vec<u8>, String> {
        match self {
            Self::Lines => {
                let mut row = compact(body).get().as_bytes().to_vec();
                row.push(b'\n');
                Ok(row)
            }
            Self::Csv { columns, delimiter } => {
                let body: Value =
                    serde_json::from_str(body.get()).map_err(|error| error.to_string())?;
                let Value::Object(fields) = body else {
                    return Err(
                        "its body is no object, which columns could be taken from".to_owned()
                    );
                };
                let values: Vec<String> = columns
                    .iter()
                    .map(|column| fields.get(column).map(text).unwrap_or_default())
                    .collect();
                record(&values, *delimiter)
            }
        }
    }
}

/// A value as text: nothing for null, JSON for lists and objects.
fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn record(values: &[String], delimiter: u8) -> Result<Vec<u8>, String> {
    let mut writer = csv::WriterBuilder::new()
        .delimiter(delimiter)
        .from_writer(Vec::new());
    writer
        .write_record(values)
        .map_err(|error| error.to_string())?;
    writer.into_inner().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(manner: &Manner, body: &str) -> Result<String, String> {
        let body = RawValue::from_string(body.to_owned()).expect("JSON");
        let row = manner.row(&body)?;
        Ok(String::from_utf8(row).expect("text"))
    }

    #[test]
    fn a_body_is_a_line_whatever_is_in_it() {
        let row = row(&Manner::Lines, "{ \"a\": \"x\\ny\",\n \"n\": 1.50 }");
        assert_eq!(row.as_deref(), Ok("{\"a\":\"x\\ny\",\"n\":1.50}\n"));
    }

    #[test]
    fn values_with_quotes_delimiters_and_lines_stay_one_value() {
        let manner = Manner::Csv {
            columns: ["id", "text", "none", "list", "missing"]
                .map(str::to_owned)
                .to_vec(),
            delimiter: b';',
        };
        let head = manner.head().expect("a head");
        assert_eq!(head, b"id;text;none;list;missing\n");
        let body = r#"{"id":7,"text":"a;\"b\"\nc","none":null,"list":[1,2],"more":true}"#;
        let row = row(&manner, body);
        assert_eq!(row.as_deref(), Ok("7;\"a;\"\"b\"\"\nc\";;[1,2];\n"));
        assert!(super::tests::row(&manner, "[1]").is_err());
    }
}
