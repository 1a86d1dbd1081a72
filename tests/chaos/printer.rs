//! What a person reads. The only module that prints.

/// Prints a line.
#[expect(clippy::print_stdout, reason = "this is the one place that prints")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}
