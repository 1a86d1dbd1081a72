//! Names how a process ended, for people.

use rustix::process::WaitStatus;

/// Says how a process ended. `memory_kills` is how often the kernel killed something in this
/// container for want of memory meanwhile.
pub fn describe(status: WaitStatus, memory_kills: u64, memory_bytes: u64) -> String {
    if let Some(code) = status.exit_status() {
        return describe_code(code);
    }
    match status.terminating_signal() {
        Some(9) if memory_kills > 0 && memory_bytes > 0 => {
            format!("was killed by the memory limit, {} MiB", memory_bytes >> 20)
        }
        Some(9) if memory_kills > 0 => "was killed for want of memory".to_owned(),
        Some(signal) => format!("was killed by signal {signal} ({})", signal_name(signal)),
        None => "ended".to_owned(),
    }
}

fn describe_code(code: i32) -> String {
    match code {
        126 => "cannot be executed (exit code 126)".to_owned(),
        127 => "was not found (exit code 127)".to_owned(),
        101 => "exited with code 101 (a panic)".to_owned(),
        137 => "exited with code 137 (something in it was killed, probably for want of memory)"
            .to_owned(),
        code => format!("exited with code {code}"),
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => "see signal(7)",
    }
}

/// Returns how often the kernel killed a process of this container for want of memory, on either
/// version of control groups.
pub fn memory_kills() -> u64 {
    [
        "/sys/fs/cgroup/memory.events",
        "/sys/fs/cgroup/memory/memory.oom_control",
    ]
    .iter()
    .find_map(|path| count_kills(&std::fs::read_to_string(path).ok()?))
    .unwrap_or(0)
}

fn count_kills(text: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// Writes a duration as a flow file does.
pub fn duration(milliseconds: u64) -> String {
    if milliseconds.is_multiple_of(1000) {
        format!("{} s", milliseconds / 1000)
    } else {
        format!("{milliseconds} ms")
    }
}

/// Returns the resident memory of a process in bytes; 0 if it cannot be known.
pub fn resident_bytes(process: &str) -> u64 {
    let page = rustix::param::page_size() as u64;
    let Ok(text) = std::fs::read_to_string(format!("/proc/{process}/statm")) else {
        return 0;
    };
    text.split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok())
        .unwrap_or(0)
        * page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_control_groups_are_understood() {
        assert_eq!(
            count_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
            Some(3)
        );
        assert_eq!(
            count_kills("low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\noom_group_kill 0\n"),
            Some(1)
        );
        assert_eq!(count_kills("nothing\n"), None);
    }

    #[test]
    fn the_memory_of_this_process_is_known() {
        assert!(resident_bytes("self") > 100_000);
        assert_eq!(resident_bytes("0"), 0);
    }

    #[test]
    fn exits_are_named() {
        assert_eq!(describe_code(3), "exited with code 3");
        assert_eq!(signal_name(9), "SIGKILL");
        assert_eq!(duration(30_000), "30 s");
        assert_eq!(duration(1_500), "1500 ms");
    }
}
