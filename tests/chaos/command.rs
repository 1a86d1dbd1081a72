//! Commands with a time limit: while an engine is broken, its client may wait for ever.

use std::process::Command;

/// How long a command may take, in seconds.
const LIMIT: &str = "60";

/// Runs a command, and returns what it prints, or what it says if it fails.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("timeout")
        .args(["-k", "5", LIMIT, program])
        .args(arguments)
        .output()
        .map_err(|error| format!("cannot run `{program}`: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!(
            "`{program} {}`: {} {}",
            arguments.join(" "),
            output.status,
            text(&output.stderr)
        ))
    }
}

/// Runs `docker`.
pub(crate) fn docker(arguments: &[&str]) -> Result<String, String> {
    run("docker", arguments)
}
