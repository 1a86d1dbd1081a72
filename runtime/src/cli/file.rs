//! A flow file on its way to the control plane.

use std::collections::BTreeMap;
use std::io::Read;

use towpath_flow::limits::FILE_BYTES_MAX;
use towpath_flow::{Facts, Severity, Source, check, references_in};

use super::Context;
use super::problem::Problem;
use crate::control::view::Draft;

/// The most bytes that are read of a file: far more than a flow file may have, so that its size can
/// be said, and far less than would fill the memory.
const READ_BYTES_MAX: u64 = 64 << 20;

/// Reads a flow file; `-` is standard input.
pub(super) fn read(path: &str) -> Result<Source, Problem> {
    let cannot = |error: &std::io::Error| {
        Problem::could_not(format!("cannot read the flow file `{path}`")).because(error)
    };
    let limit = READ_BYTES_MAX;
    let mut bytes = Vec::new();
    if path == "-" {
        std::io::stdin()
            .lock()
            .take(limit)
            .read_to_end(&mut bytes)
            .map_err(|error| cannot(&error))?;
        return Ok(Source::new("<stdin>", bytes));
    }
    let file = std::fs::File::open(path).map_err(|error| cannot(&error))?;
    file.take(limit)
        .read_to_end(&mut bytes)
        .map_err(|error| cannot(&error))?;
    Ok(Source::new(path, bytes))
}

/// Makes a draft of it, with the variables of the environment that it names.
pub(super) fn draft(source: &Source, context: &Context) -> Result<Draft, Problem> {
    let text = match String::from_utf8(source.bytes.clone()) {
        Ok(text) if text.len() <= FILE_BYTES_MAX => text,
        // It cannot be sent as it is; what is wrong with it is known here.
        _ => return Err(mistakes(source)),
    };
    let named = references_in(source).env;
    let env: BTreeMap<String, String> = named
        .into_iter()
        .filter_map(|name| {
            context
                .env
                .get(&name)
                .map(|value| (name.clone(), value.clone()))
        })
        .collect();
    Ok(Draft {
        file: source.name.clone(),
        source: text,
        env,
        ..Draft::default()
    })
}

/// Shows what the control plane says of the file, with its lines, and leaves the rest.
pub(super) fn shown(mut problem: Problem, source: &Source, context: &Context) -> Problem {
    context
        .printer
        .findings(source, std::mem::take(&mut problem.findings));
    problem
}

fn mistakes(source: &Source) -> Problem {
    match check(source, &Facts::default()) {
        Ok(_) => Problem::no("the flow file cannot be sent"),
        Err(diagnostics) => {
            let count = diagnostics.count(Severity::Error);
            let mut problem = Problem::no(counted(count));
            problem.findings = diagnostics.into_findings();
            problem
        }
    }
}

/// How many mistakes there are.
pub(super) fn counted(count: usize) -> String {
    match count {
        1 => "the flow file has a mistake".to_owned(),
        count => format!("the flow file has {count} mistakes"),
    }
}
