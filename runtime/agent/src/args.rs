//! The command line: `agent [--user U] [--workdir W] [--keep-privileges] -- program args…`.

use std::ffi::OsString;
use std::path::PathBuf;

use thiserror::Error;

/// What the command line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    /// The user that the step runs as: `name`, `uid`, `name:group` or `uid:gid`.
    pub user: Option<String>,
    /// The folder it starts in.
    pub workdir: Option<PathBuf>,
    /// It keeps the container's capabilities.
    pub keep_privileges: bool,
    /// The program and its arguments.
    pub program: Vec<OsString>,
}

/// The command line is wrong.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0}; usage: agent [--user U] [--workdir W] [--keep-privileges] -- program [argument…]")]
pub struct ArgsError(String);

impl Args {
    /// Reads the command line, without the program's own name.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, ArgsError> {
        let mut arguments = arguments.into_iter();
        let mut args = Self {
            user: None,
            workdir: None,
            keep_privileges: false,
            program: Vec::new(),
        };
        while let Some(argument) = arguments.next() {
            let mut value = |name: &str| {
                arguments
                    .next()
                    .ok_or_else(|| ArgsError(format!("`{name}` needs a value")))
            };
            match argument.to_str() {
                Some("--user") => {
                    let user = value("--user")?;
                    args.user = Some(
                        user.into_string()
                            .map_err(|_| ArgsError("`--user` is not UTF-8".into()))?,
                    );
                }
                Some("--workdir") => args.workdir = Some(value("--workdir")?.into()),
                Some("--keep-privileges") => args.keep_privileges = true,
                Some("--") => {
                    args.program = arguments.collect();
                    break;
                }
                _ => {
                    return Err(ArgsError(format!(
                        "`{}` is not understood",
                        argument.display()
                    )));
                }
            }
        }
        if args.program.is_empty() {
            return Err(ArgsError("there is no program after `--`".into()));
        }
        Ok(args)
    }

    /// Writes the command line again, for the shim.
    pub fn to_vec(&self) -> Vec<OsString> {
        let mut all = Vec::new();
        if let Some(user) = &self.user {
            all.extend(["--user".into(), user.into()]);
        }
        if let Some(workdir) = &self.workdir {
            all.extend(["--workdir".into(), workdir.into()]);
        }
        if self.keep_privileges {
            all.push("--keep-privileges".into());
        }
        all.push("--".into());
        all.extend(self.program.iter().cloned());
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, ArgsError> {
        Args::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn what_is_written_is_read() {
        for line in [
            "-- sh",
            "--user 7:8 --workdir /w --keep-privileges -- a -- b --user c",
        ] {
            let args = parse(line).unwrap();
            assert_eq!(Args::parse(args.to_vec()), Ok(args));
        }
    }

    #[test]
    fn mistakes_are_named() {
        for line in ["", "--", "sh", "--user", "--what -- sh"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
