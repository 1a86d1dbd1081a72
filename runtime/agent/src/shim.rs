//! What stands between agent and step for an instant: the agent executes itself as `agent shim`,
//! which, single-threaded, gives up every power the step must not have, and becomes the step.
//!
//! A process of its own, because only then can all of it be done without `unsafe` code between
//! `fork` and `exec`. What cannot be given up because it was never there (as a plain process that
//! is not root) is skipped.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use rustix::process::{Gid, Signal, Uid, geteuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, set_capabilities,
    set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use thiserror::Error;

use crate::args::Args;

/// A shell's exit code for a program that is not there.
const NOT_FOUND: u8 = 127;

/// A shell's exit code for a program that cannot be executed.
const NOT_EXECUTABLE: u8 = 126;

/// Why the step cannot be started as it should.
#[derive(Debug, Error)]
enum ShimError {
    #[error("the user `{0}` is not in the image's /etc/passwd")]
    NoUser(String),
    #[error("the group `{0}` is not in the image's /etc/group")]
    NoGroup(String),
    #[error("the step cannot become the user `{0}`")]
    Become(String, #[source] rustix::io::Errno),
    #[error("the step's privileges cannot be dropped")]
    Drop(#[source] rustix::io::Errno),
    #[error("the folder `{0}` cannot be entered")]
    Workdir(String, #[source] std::io::Error),
}

/// Becomes the step. Returns only if that fails.
#[expect(
    clippy::print_stderr,
    reason = "the agent captures it as the step's last words"
)]
pub fn exec(args: &Args) -> ExitCode {
    let mut command = Command::new(&args.program[0]);
    command.args(&args.program[1..]);
    if let Err(error) = prepare(args, &mut command) {
        eprint!("{error}");
        if let Some(cause) = std::error::Error::source(&error) {
            eprint!(": {cause}");
        }
        eprintln!();
        return ExitCode::from(NOT_EXECUTABLE);
    }
    let error = command.exec();
    eprintln!(
        "`{}` cannot be executed: {error}",
        args.program[0].display()
    );
    match error.kind() {
        std::io::ErrorKind::NotFound => ExitCode::from(NOT_FOUND),
        _ => ExitCode::from(NOT_EXECUTABLE),
    }
}

fn prepare(args: &Args, command: &mut Command) -> Result<(), ShimError> {
    // If memory runs out, the step goes and the agent stays to tell. Where /proc cannot be written
    // the kernel's own choice has to do.
    drop(fs::write("/proc/self/oom_score_adj", "500"));
    if let Some(user) = args
        .user
        .as_deref()
        .filter(|user| !user.is_empty() && geteuid().is_root())
    {
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let group = fs::read_to_string("/etc/group").unwrap_or_default();
        let account = resolve(user, &passwd, &group)?;
        // The engine sets the home of the agent's user, which is root; a flow may set another.
        if std::env::var_os("HOME").is_none_or(|home| home == "/root" || home == "/") {
            command.env("HOME", &account.home);
        }
        let failed = |error| ShimError::Become(user.to_owned(), error);
        let groups: Vec<Gid> = account
            .groups
            .iter()
            .map(|gid| Gid::from_raw(*gid))
            .collect();
        let (gid, uid) = (Gid::from_raw(account.gid), Uid::from_raw(account.uid));
        set_thread_groups(&groups).map_err(failed)?;
        set_thread_res_gid(gid, gid, gid).map_err(failed)?;
        set_thread_res_uid(uid, uid, uid).map_err(failed)?;
    }
    if let Some(workdir) = &args.workdir {
        std::env::set_current_dir(workdir)
            .map_err(|error| ShimError::Workdir(workdir.display().to_string(), error))?;
    }
    if !args.keep_privileges {
        // Ambient capabilities came with Linux 4.3: where they are not known there are none.
        clear_ambient_capability_set().ok();
        let none = CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        };
        set_capabilities(None, none).map_err(ShimError::Drop)?;
        set_no_new_privs(true).map_err(ShimError::Drop)?;
    }
    // An agent that is killed takes its step with it. After the change of user, which resets this.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(ShimError::Drop)
}

/// A user of the image.
#[derive(Debug, PartialEq, Eq)]
struct Account {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    home: String,
}

/// Finds a user as `docker run --user` does: by name or number, with or without a group; numbers
/// need not be known to the image.
fn resolve(user: &str, passwd: &str, group: &str) -> Result<Account, ShimError> {
    let (user, wanted_group) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (user, None),
    };
    let entry = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| {
            fields.len() >= 6
                && (fields[0] == user || (user.parse::<u32>().is_ok() && fields[2] == user))
        });
    let number = |text: &str| text.parse::<u32>().ok();
    let (name, uid, own_gid, home) = match &entry {
        Some(fields) => {
            let uid = number(fields[2]).ok_or_else(|| ShimError::NoUser(user.to_owned()))?;
            (
                Some(fields[0]),
                uid,
                number(fields[3]).unwrap_or(0),
                fields[5],
            )
        }
        None => (
            None,
            number(user).ok_or_else(|| ShimError::NoUser(user.to_owned()))?,
            0,
            "/",
        ),
    };
    let gid = match wanted_group {
        None => own_gid,
        Some(wanted) => group
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|fields| fields.len() >= 3 && fields[0] == wanted)
            .and_then(|fields| number(fields[2]))
            .or_else(|| number(wanted))
            .ok_or_else(|| ShimError::NoGroup(wanted.to_owned()))?,
    };
    let mut groups = vec![gid];
    if let (Some(name), None) = (name, wanted_group) {
        let more = group
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .filter(|fields| {
                fields.len() >= 4 && fields[3].split(',').any(|member| member == name)
            });
        groups.extend(
            more.filter_map(|fields| number(fields[2]))
                .filter(|other| *other != gid),
        );
    }
    let home = if home.is_empty() { "/" } else { home };
    Ok(Account {
        uid,
        gid,
        groups,
        home: home.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnode:x:1000:1001::/home/node:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nnode:x:1001:\naudio:x:29:node,other\nextra:x:77:\n";

    #[track_caller]
    fn check(user: &str, expect: (u32, u32, &[u32], &str)) {
        let account = resolve(user, PASSWD, GROUP).unwrap();
        assert_eq!(
            (
                account.uid,
                account.gid,
                account.groups.as_slice(),
                account.home.as_str()
            ),
            expect,
            "{user}"
        );
    }

    #[test]
    fn users_are_found_as_docker_finds_them() {
        check("root", (0, 0, &[0], "/root"));
        check("node", (1000, 1001, &[1001, 29], "/home/node"));
        check("1000", (1000, 1001, &[1001, 29], "/home/node"));
        check("node:extra", (1000, 77, &[77], "/home/node"));
        check("1000:5", (1000, 5, &[5], "/home/node"));
        check("65534", (65534, 0, &[0], "/"));
        check("65534:65533", (65534, 65533, &[65533], "/"));
    }

    #[test]
    fn an_image_without_files_knows_numbers_only() {
        assert_eq!(
            resolve("7:8", "", "").unwrap(),
            Account {
                uid: 7,
                gid: 8,
                groups: vec![8],
                home: "/".into()
            }
        );
        assert!(resolve("node", "", "").is_err());
        assert!(resolve("7:audio", "", "").is_err());
    }
}
