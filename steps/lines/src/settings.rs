//! What to run and how: from the command line (`mode: lines` in a flow), or from `with:`.

use std::ffi::OsStr;
use std::path::Path;

use schemars::JsonSchema;
use serde::Deserialize;
use towpath_step::{Result, StepError};

/// `with:` of the step.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// The program and its arguments; in `mode: lines` they come from the image or the flow's `command:`.
    command: Option<Vec<String>>,
    /// When the program is started: for each message, or once.
    per: Option<Per>,
}

/// When the program is started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Per {
    /// For each message. It reads the body, writes any number of outputs, and exits.
    #[default]
    Message,
    /// Once. It answers each line that it reads with one line.
    Process,
}

/// The command line: `[--per message|process] -- program arguments…`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Arguments {
    per: Option<Per>,
    command: Vec<String>,
}

impl Arguments {
    /// Reads them. What comes before `--` and is not `--per` is the SDK's: `manifest`, `run-local`.
    pub(crate) fn parse(words: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut words = words.into_iter();
        let mut arguments = Self::default();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--" => {
                    arguments.command = words.by_ref().collect();
                    if arguments.command.is_empty() {
                        return Err(StepError::permanent("a program must follow `--`"));
                    }
                }
                "--per" => arguments.per = Some(per(words.next().as_deref())?),
                _ => {}
            }
        }
        Ok(arguments)
    }
}

fn per(word: Option<&str>) -> Result<Per> {
    match word {
        Some("message") => Ok(Per::Message),
        Some("process") => Ok(Per::Process),
        _ => Err(StepError::permanent("`--per` is `message` or `process`")),
    }
}

/// What to run and how.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The program and its arguments; not empty.
    pub(crate) command: Vec<String>,
    /// When it is started.
    pub(crate) per: Per,
}

impl Settings {
    /// Puts both sources together, and sees whether there is such a program. `path` is `PATH`.
    pub(crate) fn new(config: &Config, arguments: Arguments, path: &OsStr) -> Result<Self> {
        let configured = config.command.clone().unwrap_or_default();
        let command = match (arguments.command.is_empty(), configured.is_empty()) {
            (false, true) => arguments.command,
            (true, false) => configured,
            (true, true) => {
                return Err(StepError::permanent(
                    "no program to run: `command` is missing",
                ));
            }
            (false, false) => {
                return Err(StepError::permanent(
                    "`command` in `with` and a program on the command line: only one of them can be run",
                ));
            }
        };
        if !exists(&command[0], path) {
            return Err(StepError::permanent(format!(
                "there is no program `{}` in the image",
                command[0]
            )));
        }
        Ok(Self {
            command,
            per: arguments.per.or(config.per).unwrap_or_default(),
        })
    }
}

fn exists(program: &str, path: &OsStr) -> bool {
    if program.contains('/') {
        return Path::new(program).is_file();
    }
    std::env::split_paths(path).any(|folder| folder.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(words: &str, config: &str) -> Result<Settings> {
        let arguments = Arguments::parse(words.split_whitespace().map(str::to_owned))?;
        let config: Config = serde_json::from_str(config).unwrap();
        Settings::new(&config, arguments, OsStr::new("/usr/bin:/bin"))
    }

    #[track_caller]
    fn check(words: &str, config: &str, per: Per, command: &[&str]) {
        let settings = settings(words, config).unwrap();
        assert_eq!(
            (settings.per, settings.command),
            (per, command.iter().map(ToString::to_string).collect())
        );
    }

    #[track_caller]
    fn refuses(words: &str, config: &str, reason: &str) {
        assert_eq!(settings(words, config).unwrap_err().reason(), reason);
    }

    #[test]
    fn both_sources_are_read() {
        check(
            "-- sed -e s/a/b/",
            "{}",
            Per::Message,
            &["sed", "-e", "s/a/b/"],
        );
        check(
            "--per process -- cat --per",
            "{}",
            Per::Process,
            &["cat", "--per"],
        );
        check("-- cat", r#"{"per": "process"}"#, Per::Process, &["cat"]);
        check(
            "",
            r#"{"command": ["/bin/sh", "-c", "cat"]}"#,
            Per::Message,
            &["/bin/sh", "-c", "cat"],
        );
        check("run-local --config x -- cat", "{}", Per::Message, &["cat"]);
    }

    #[test]
    fn what_cannot_work_is_refused() {
        refuses("", "{}", "no program to run: `command` is missing");
        refuses("--", "{}", "a program must follow `--`");
        refuses(
            "--per day -- cat",
            "{}",
            "`--per` is `message` or `process`",
        );
        refuses(
            "-- no-such-program",
            "{}",
            "there is no program `no-such-program` in the image",
        );
        refuses(
            "-- /no/such",
            "{}",
            "there is no program `/no/such` in the image",
        );
        refuses(
            "-- cat",
            r#"{"command": ["cat"]}"#,
            "`command` in `with` and a program on the command line: only one of them can be run",
        );
    }
}
