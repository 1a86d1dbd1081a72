//! A step that looks around: what it could read, write and do is what an attacker could. The tests
//! compile it by itself; each finding is a line `probe <what>=<answer>` on its standard output.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};

fn main() {
    if std::env::args().nth(1).as_deref() == Some("manifest") {
        println!(r#"{{"contract":1,"name":"probe","version":"1.0.0","kind":"action"}}"#);
        return;
    }
    look_around();
    let frames = File::open("/proc/self/fd/3").expect("the agent gives descriptor 3");
    let mut answers = OpenOptions::new()
        .write(true)
        .open("/proc/self/fd/4")
        .expect("the agent gives descriptor 4");
    for (number, line) in BufReader::new(frames).lines().enumerate() {
        let Ok(line) = line else { return };
        if number == 0 {
            writeln!(answers, r#"{{"ready":{{"contract":1}}}}"#).expect("the agent reads");
            say("ready", "yes");
        }
        if line.starts_with(r#"{"drain""#) {
            say("drained", "yes");
            return;
        }
    }
}

fn look_around() {
    for path in [
        "/proc/1/environ",
        "/proc/1/mem",
        "/proc/1/maps",
        "/proc/1/fd/0",
    ] {
        say(
            path,
            if File::open(path).is_ok() {
                "readable"
            } else {
                "denied"
            },
        );
    }
    for path in ["/var/run/docker.sock", "/run/docker.sock"] {
        say(
            path,
            if fs::symlink_metadata(path).is_ok() {
                "there"
            } else {
                "absent"
            },
        );
    }
    for folder in ["/", "/.towpath/", "/tmp/"] {
        let written = fs::write(format!("{folder}written"), "x");
        say(
            &format!("write {folder}"),
            if written.is_ok() { "allowed" } else { "denied" },
        );
    }
    let status = fs::read_to_string("/proc/self/status").expect("a process may read its own");
    for line in status.lines() {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        if name.starts_with("Cap") || ["Uid", "Gid", "Groups", "NoNewPrivs"].contains(&name) {
            say(
                name,
                &value.split_whitespace().collect::<Vec<_>>().join(" "),
            );
        }
    }
    let mut names: Vec<_> = std::env::vars().map(|(name, _)| name).collect();
    names.sort();
    say("environment", &names.join(" "));
    say("GREETING", &std::env::var("GREETING").unwrap_or_default());
}

fn say(what: &str, answer: &str) {
    println!("probe {what}={answer}");
}
