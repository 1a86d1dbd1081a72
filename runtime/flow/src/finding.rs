//! A diagnostic as it goes over the API: with lines and columns in place of offsets.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::diagnostic::{Diagnostic, Severity};
use crate::source::Lines;

/// One thing that is wrong with a flow file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Its kind: `F030`. A code keeps its meaning for ever.
    pub code: String,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, in a sentence.
    pub message: String,
    /// The file.
    pub file: String,
    /// Where; line 1, column 1 and empty if it is about the whole file.
    #[serde(flatten)]
    pub place: Place,
    /// What is at that place.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
    /// Other places that matter.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub related: Vec<Related>,
    /// What to do, if it is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub help: Vec<String>,
}

/// A stretch of the file. Lines and columns count from 1, columns in characters; the end is the
/// first character that is no longer part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The line it begins in.
    pub line: u32,
    /// The column it begins at.
    pub column: u32,
    /// The line it ends in.
    pub end_line: u32,
    /// The column it ends before.
    pub end_column: u32,
}

/// Another place that matters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Related {
    /// Where.
    #[serde(flatten)]
    pub place: Place,
    /// What is there.
    pub label: String,
}

impl Finding {
    pub(crate) fn new(file: &str, diagnostic: &Diagnostic, lines: &Lines<'_>) -> Self {
        Self {
            code: diagnostic.code.as_str().to_owned(),
            severity: diagnostic.code.severity(),
            message: diagnostic.message.clone(),
            file: file.to_owned(),
            place: Place::new(diagnostic.span.clone().unwrap_or(0..0), lines),
            label: diagnostic.label.clone(),
            related: diagnostic
                .related
                .iter()
                .map(|(span, label)| Related {
                    place: Place::new(span.clone(), lines),
                    label: label.clone(),
                })
                .collect(),
            help: diagnostic.help.clone(),
        }
    }

    /// Whether it is about the whole file and not about a place in it.
    pub fn is_about_the_whole_file(&self) -> bool {
        self.place
            == Place {
                line: 1,
                column: 1,
                end_line: 1,
                end_column: 1,
            }
    }
}

impl Place {
    fn new(span: Range<usize>, lines: &Lines<'_>) -> Self {
        let (line, column) = lines.position(span.start);
        let (end_line, end_column) = lines.position(span.end);
        Self {
            line,
            column,
            end_line,
            end_column,
        }
    }

    pub(crate) fn span(&self, lines: &Lines<'_>) -> Range<usize> {
        let start = lines.offset(self.line, self.column);
        start..lines.offset(self.end_line, self.end_column).max(start)
    }
}
