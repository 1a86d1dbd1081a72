//! Diagnostics as a person reads them.

use annotate_snippets::{Annotation, AnnotationKind, Group, Level, Origin, Renderer, Snippet};

use crate::diagnostic::Severity;
use crate::finding::Finding;
use crate::source::Lines;

/// Whether there are colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Paint {
    /// Text alone.
    #[default]
    Plain,
    /// With colours, for a terminal.
    Coloured,
}

/// The most text of which lines are shown: what is larger holds lines that no screen holds, or
/// places that are far apart.
const WINDOW_BYTES_MAX: usize = 16 << 10;

/// All of them, an empty line between.
pub(crate) fn all(name: &str, text: &str, findings: &[Finding], paint: Paint) -> String {
    let lines = Lines::new(text);
    let renderer = match paint {
        Paint::Plain => Renderer::plain(),
        Paint::Coloured => Renderer::styled(),
    };
    let rendered: Vec<String> = findings
        .iter()
        .map(|finding| one(name, text, &lines, finding, &renderer))
        .collect();
    rendered.join("\n\n")
}

fn one(
    name: &str,
    text: &str,
    lines: &Lines<'_>,
    finding: &Finding,
    renderer: &Renderer,
) -> String {
    let level = match finding.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
        Severity::Note => Level::NOTE,
    };
    let title = level
        .primary_title(finding.message.as_str())
        .id(finding.code.as_str());
    let group: Group<'_> = if finding.is_about_the_whole_file() {
        title.element(Origin::path(name))
    } else if let Some(snippet) = snippet(name, text, lines, finding) {
        title.element(snippet)
    } else {
        let place = finding.place;
        let origin = Origin::path(name)
            .line(place.line as usize)
            .char_column(place.column as usize);
        let label = Some(finding.label.as_str()).filter(|label| !label.is_empty());
        title
            .element(origin)
            .elements(label.map(|label| Level::NOTE.message(label)))
    };
    let group = group.elements(
        finding
            .help
            .iter()
            .map(|help| Level::HELP.message(help.as_str())),
    );
    renderer.render(&[group])
}

/// Only the lines that matter: a renderer given the whole text reads all of it each time. None if
/// they are too long for anyone to read.
fn snippet<'a>(
    name: &'a str,
    text: &'a str,
    lines: &Lines<'_>,
    finding: &'a Finding,
) -> Option<Snippet<'a, Annotation<'a>>> {
    let primary = finding.place.span(lines);
    let related: Vec<_> = finding
        .related
        .iter()
        .map(|related| (related.place.span(lines), related))
        .collect();
    let start = related
        .iter()
        .map(|(span, _)| span.start)
        .chain([primary.start])
        .min();
    let end = related
        .iter()
        .map(|(span, _)| span.end)
        .chain([primary.end])
        .max();
    let (line, window) =
        lines.around(&(start.unwrap_or(primary.start)..end.unwrap_or(primary.end)));
    if window.len() > WINDOW_BYTES_MAX {
        return None;
    }
    let inside = |span: std::ops::Range<usize>| span.start - window.start..span.end - window.start;
    let mut main = AnnotationKind::Primary.span(inside(primary));
    if !finding.label.is_empty() {
        main = main.label(finding.label.as_str());
    }
    Some(
        Snippet::source(&text[window.clone()])
            .line_start(line)
            .path(name)
            .annotation(main)
            .annotations(related.into_iter().map(|(span, related)| {
                AnnotationKind::Context
                    .span(inside(span))
                    .label(related.label.as_str())
            })),
    )
}
