//! How everything is at the end, and what is kept to find out why it is not right.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use towpath_tests::Instance;

use crate::command::docker;
use crate::flow::NAME;
use crate::results::Results;

/// How many messages `towpath why` is asked about.
const ASKED_MAX: usize = 20;

/// Waits until every step says that it runs, and says how each is then.
pub(crate) fn states_when_running(instance: &Instance, limit: Duration) -> Vec<(String, String)> {
    let began = Instant::now();
    loop {
        let states = states(instance);
        let all_run = !states.is_empty() && states.iter().all(|(_, state)| state == "running");
        if all_run || began.elapsed() > limit {
            return states;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn states(instance: &Instance) -> Vec<(String, String)> {
    let said = instance.run(&["status", NAME, "--output", "json"]);
    let Ok(status) = serde_json::from_str::<Value>(&said.out) else {
        return Vec::new();
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let steps = status["steps"].as_array().cloned().unwrap_or_default();
    steps
        .iter()
        .map(|step| (text(&step["id"]), text(&step["state"])))
        .collect()
}

/// What was given up, each with its reason.
pub(crate) fn dead_letters(instance: &Instance) -> Vec<String> {
    let said = instance.run(&["dead", "list", "--flow", NAME, "--output", "json"]);
    let Ok(list) = serde_json::from_str::<Value>(&said.out) else {
        return vec![format!("cannot be listed: {}", said.err.trim())];
    };
    let letters = list["dead"].as_array().or_else(|| list.as_array());
    letters
        .into_iter()
        .flatten()
        .map(ToString::to_string)
        .collect()
}

/// Keeps logs and answers.
pub(crate) fn keep(instance: &Instance, results: &Results, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let write = |name: &str, text: &str| fs::write(folder.join(name), text);
    write("control-plane.log", &instance.log())?;
    write("results.json", &format!("{:#}\n", results.json()))?;
    write("missing.txt", &results.missing_text())?;
    write("repeated-with-once.txt", &results.repeated_text())?;
    for (name, arguments) in [
        ("status.json", vec!["status", NAME, "--output", "json"]),
        (
            "dead.json",
            vec!["dead", "list", "--flow", NAME, "--output", "json"],
        ),
    ] {
        write(name, &instance.run(&arguments).out)?;
    }
    let mut answers = String::new();
    for key in results.repeated_keys().iter().take(ASKED_MAX) {
        let said = instance.run(&["why", key]);
        answers.extend([format!("# {key}\n"), said.out, said.err]);
    }
    write("why.txt", &answers)?;
    let filter = format!("label=io.towpath.instance={}", instance.name);
    let names = docker(&["ps", "-a", "--format", "{{.Names}}", "--filter", &filter]);
    for name in names.unwrap_or_default().lines() {
        let (Ok(log) | Err(log)) = docker(&["logs", name]);
        write(&format!("{name}.log"), &log)?;
    }
    let queues = docker(&[
        "exec",
        &instance.broker.container,
        "rabbitmqctl",
        "list_queues",
        "-p",
        &instance.name,
        "name",
        "messages_ready",
        "messages_unacknowledged",
        "consumers",
    ]);
    let (Ok(queues) | Err(queues)) = queues;
    write("queues.txt", &queues)
}
