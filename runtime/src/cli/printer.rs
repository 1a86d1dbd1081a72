//! The only place that prints.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use comfy_table::{CellAlignment, ContentArrangement, Table};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use towpath_flow::{Diagnostics, Finding, Paint, Source};

use super::problem::{ExitStatus, Problem};

/// How lists are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(super) enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// Whether there are colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(super) enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// A colour, by what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    /// As it should be.
    Good,
    /// On its way, or to be watched.
    Fair,
    /// Wrong.
    Bad,
    /// Less important.
    Faint,
    /// More important.
    Strong,
}

/// Prints.
#[derive(Debug, Clone, Copy)]
pub(super) struct Printer {
    /// How lists are printed.
    pub(super) output: Output,
    out_colored: bool,
    err_colored: bool,
}

#[expect(
    clippy::unused_self,
    reason = "only who has a printer prints, and it is at hand as a value"
)]
impl Printer {
    /// Makes one for this terminal.
    pub(super) fn new(output: Output, color: Color, no_color: bool) -> Self {
        let colored = |is_terminal: bool| match color {
            Color::Auto => is_terminal && !no_color,
            Color::Always => true,
            Color::Never => false,
        };
        Self {
            output,
            out_colored: colored(io::stdout().is_terminal()),
            err_colored: colored(io::stderr().is_terminal()),
        }
    }

    /// Whether a program reads what is printed.
    pub(super) fn is_json(self) -> bool {
        self.output == Output::Json
    }

    /// Whether a person can be asked.
    pub(super) fn can_ask(self) -> bool {
        io::stdin().is_terminal() && io::stderr().is_terminal()
    }

    /// Whether standard error has colours.
    pub(super) fn colors_errors(self) -> bool {
        self.err_colored
    }

    /// Prints a line of the answer.
    pub(super) fn line(self, text: &str) {
        write_out(text.as_bytes());
        write_out(b"\n");
    }

    /// Prints a part of the answer as it is.
    pub(super) fn raw(self, bytes: &[u8]) {
        write_out(bytes);
    }

    /// Prints the answer for a program.
    pub(super) fn json(self, value: &impl Serialize) {
        match serde_json::to_string_pretty(value) {
            Ok(text) => self.line(&text),
            Err(error) => self.note(&format!("the answer cannot be written as JSON: {error}")),
        }
    }

    /// Prints something beside the answer, on standard error.
    pub(super) fn note(self, text: &str) {
        // Nobody is left to be told that nobody reads.
        drop(writeln!(io::stderr().lock(), "{text}"));
    }

    /// Shows a new state in place of the one before, on a terminal.
    pub(super) fn refresh(self, text: &str) {
        if io::stdout().is_terminal() {
            write_out(b"\x1b[H\x1b[2J");
        }
        self.line(text);
    }

    /// Text with a tone, for standard output.
    pub(super) fn tone(self, text: &str, tone: Tone) -> String {
        paint(text, tone, self.out_colored)
    }

    /// A table. Columns whose heads begin with `>` are numbers.
    pub(super) fn table(self, heads: &[&str], rows: Vec<Vec<String>>) -> String {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_content_arrangement(ContentArrangement::Disabled);
        let names = heads
            .iter()
            .map(|head| self.tone(head.trim_start_matches('>'), Tone::Faint));
        table.set_header(names);
        for row in rows {
            table.add_row(row);
        }
        for (index, head) in heads.iter().enumerate() {
            if let Some(column) = table.column_mut(index) {
                column.set_padding((0, 2));
                if head.starts_with('>') {
                    column.set_cell_alignment(CellAlignment::Right);
                }
            }
        }
        table
            .lines()
            .map(|line| line.trim_end().to_owned())
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// Shows that something goes on, on standard error; nothing if that is no terminal.
    pub(super) fn progress(self, text: &str) -> Progress {
        let bar = ProgressBar::new_spinner().with_message(text.to_owned());
        if io::stderr().is_terminal() && !self.is_json() {
            bar.set_draw_target(ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
        } else {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        Progress(bar)
    }

    /// Shows how many of `total` are done, on standard error; nothing if that is no terminal.
    pub(super) fn bar(self, total: u64) -> Bar {
        let bar = ProgressBar::new(total);
        if io::stderr().is_terminal() && !self.is_json() {
            bar.set_draw_target(ProgressDrawTarget::stderr());
            let template = "{bar:30} {pos} of {len} ({per_sec}, {eta} left) {msg}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
        } else {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        Bar(bar)
    }

    /// What is said of a flow file, with its lines, on standard error.
    pub(super) fn findings(self, source: &Source, findings: Vec<Finding>) {
        if findings.is_empty() {
            return;
        }
        let paint = if self.err_colored {
            Paint::Coloured
        } else {
            Paint::Plain
        };
        let text = Diagnostics::from_findings(source, findings).render(paint);
        self.note(&text);
        self.note("");
    }

    /// Says why a command did not do what it was asked.
    pub(super) fn problem(self, problem: &Problem) -> ExitStatus {
        let mut text = format!(
            "{} {}",
            paint("error:", Tone::Bad, self.err_colored),
            problem.message
        );
        for cause in &problem.causes {
            text = format!(
                "{text}\n  {} {cause}",
                paint("cause:", Tone::Faint, self.err_colored)
            );
        }
        if let Some(hint) = &problem.hint {
            text = format!(
                "{text}\n{} {hint}",
                paint("hint:", Tone::Good, self.err_colored)
            );
        }
        self.note(&text);
        problem.status
    }
}

/// Shows that something goes on, until it is dropped.
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// Shows what goes on now.
    pub(super) fn say(&self, text: String) {
        self.0.set_message(text);
    }
}

/// Shows how many are done, until it is dropped.
pub(super) struct Bar(ProgressBar);

impl Bar {
    /// Shows how many are done now.
    pub(super) fn at(&self, done: u64, text: String) {
        self.0.set_position(done);
        self.0.set_message(text);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn write_out(bytes: &[u8]) {
    let mut out = io::stdout().lock();
    if out.write_all(bytes).and_then(|()| out.flush()).is_err() {
        // Whoever read this has gone, as `head` does: there is nothing left to do, nor to say.
        std::process::exit(i32::from(ExitStatus::Done.code()));
    }
}

fn paint(text: &str, tone: Tone, colored: bool) -> String {
    use owo_colors::OwoColorize;
    if !colored {
        return text.to_owned();
    }
    match tone {
        Tone::Good => text.green().to_string(),
        Tone::Fair => text.yellow().to_string(),
        Tone::Bad => text.red().to_string(),
        Tone::Faint => text.dimmed().to_string(),
        Tone::Strong => text.bold().to_string(),
    }
}
