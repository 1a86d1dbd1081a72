//! One Towpath of a test's own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::machine::{self, BrokerAt, BrokerVersion, Hold, docker, try_docker};
use crate::proxy::Proxy;
use crate::{eventually, holds, http};

/// A control plane with its own virtual host, network, containers and folder.
pub struct Instance {
    /// Its name, which everything it makes begins with.
    pub name: String,
    /// Where it listens: `http://127.0.0.1:port`.
    pub url: String,
    /// Where its broker is.
    pub broker: BrokerAt,
    /// The networks to its broker that can be broken, if it was started through some.
    pub links: Option<Links>,
    settings: Vec<(String, String)>,
    folder: TempDir,
    process: Mutex<Option<Child>>,
    _hold: Hold,
}

/// The networks between an instance and its broker.
pub struct Links {
    /// Between the control plane and the broker.
    pub control: Proxy,
    /// Between all agents and the broker.
    pub agents: Proxy,
    /// This machine, as containers reach it: a number, because a name server may be far away.
    machine: String,
    /// What is added to the broker's URL.
    query: String,
}

/// What a command said.
#[derive(Debug)]
pub struct Said {
    /// The exit code.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Said {
    /// Returns itself if the command was successful.
    #[track_caller]
    #[expect(
        clippy::return_self_not_must_use,
        reason = "most callers only want to know that it worked"
    )]
    pub fn ok(self) -> Self {
        assert_eq!(
            self.code, 0,
            "the command failed:\n{}{}",
            self.out, self.err
        );
        self
    }

    /// Reads standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.out))
    }
}

impl Instance {
    /// Starts one.
    pub fn start(version: BrokerVersion) -> Self {
        Self::start_with(version, version.share(), &[], None)
    }

    /// Starts one that has its broker alone, to restart it.
    pub fn start_alone(version: BrokerVersion) -> Self {
        Self::start_with(version, version.alone(), &[], None)
    }

    /// Starts one whose control plane has these settings, as variables of its environment.
    pub fn start_set(version: BrokerVersion, settings: &[(&str, &str)]) -> Self {
        Self::start_with(version, version.share(), settings, None)
    }

    /// Starts one that reaches its broker through [`Links`]; `query` is added to the broker's URL,
    /// such as `?heartbeat=5`.
    pub fn start_linked(version: BrokerVersion, hold: Hold, query: &str) -> Self {
        Self::start_with(version, hold, &[], Some(query))
    }

    fn start_with(
        version: BrokerVersion,
        hold: Hold,
        settings: &[(&str, &str)],
        query: Option<&str>,
    ) -> Self {
        let broker = version.at();
        let name = format!(
            "tp-test-{}",
            &uuid::Uuid::new_v4().simple().to_string()[..8]
        );
        broker.add_vhost(&name);
        let port = free_port();
        let mut instance = Self {
            url: format!("http://127.0.0.1:{port}"),
            name,
            links: query.map(|query| Links {
                control: Proxy::start(&broker.host),
                agents: Proxy::start(&broker.host),
                machine: String::new(),
                query: query.to_owned(),
            }),
            broker,
            settings: settings
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            folder: tempfile::tempdir().expect("a folder can be made"),
            process: Mutex::new(None),
            _hold: hold,
        };
        docker(&["network", "create", &instance.name]);
        docker(&[
            "network",
            "connect",
            &instance.name,
            &instance.broker.container,
        ]);
        let machine = instance.gateway();
        if let Some(links) = &mut instance.links {
            links.machine = machine;
        }
        instance.serve();
        instance
    }

    /// The address of this machine as the containers of the instance reach it.
    pub fn gateway(&self) -> String {
        docker(&[
            "network",
            "inspect",
            "--format",
            "{{(index .IPAM.Config 0).Gateway}}",
            &self.name,
        ])
    }

    /// Starts the control plane and waits until it is ready.
    pub fn serve(&mut self) {
        self.launch();
        eventually(
            "the control plane is ready",
            Duration::from_secs(60),
            || {
                let answer = http::send("GET", &format!("{}/ready", self.url), None, None)
                    .map_err(|error| format!("{error}\n{}", self.log()))?;
                holds(answer.status == 200, || {
                    format!("{} {}\n{}", answer.status, answer.text, self.log())
                })
            },
        );
    }

    /// Starts the control plane, unless it runs.
    pub fn launch(&self) {
        let mut process = self.process();
        if let Some(running) = process.as_mut()
            && matches!(running.try_wait(), Ok(None))
        {
            return;
        }
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("serve.log"))
            .expect("a log can be made");
        let started = self
            .command(&["serve"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log can be shared"))
            .stderr(log)
            .spawn()
            .expect("the control plane can be started");
        *process = Some(started);
    }

    fn process(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills the control plane with signal 9.
    pub fn kill(&mut self) {
        self.kill_control_plane();
    }

    /// The same, where the instance is shared.
    pub fn kill_control_plane(&self) {
        if let Some(mut process) = self.process().take() {
            process.kill().expect("the control plane can be killed");
            process.wait().expect("the control plane can be waited for");
        }
    }

    /// The resident memory of the control plane, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let id = self.process().as_ref().expect("it runs").id();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("it runs");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .expect("Linux says so");
        let kilobytes = line.trim().trim_end_matches(" kB").trim();
        1024 * kilobytes.parse::<u64>().expect("a number")
    }

    /// What the control plane logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("serve.log")).unwrap_or_default()
    }

    /// Its folder.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Its API token.
    pub fn token(&self) -> String {
        std::fs::read_to_string(self.data().join("token"))
            .expect("a token")
            .trim()
            .to_owned()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(machine::binary("towpath"));
        let (query, control, agents) = match &self.links {
            None => (
                "",
                self.broker.host.clone(),
                format!("{}:5672", self.broker.container),
            ),
            Some(links) => (
                links.query.as_str(),
                format!("127.0.0.1:{}", links.control.port),
                format!("{}:{}", links.machine, links.agents.port),
            ),
        };
        let at = |host: &str| format!("amqp://{}@{host}/{}{query}", self.broker.login, self.name);
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("TOWPATH_SERVER", &self.url)
            .env("TOWPATH_LISTEN", self.url.trim_start_matches("http://"))
            .env("TOWPATH_DATA", self.data())
            .env("TOWPATH_INSTANCE", &self.name)
            .env("TOWPATH_BROKER__URL", at(&control))
            .env("TOWPATH_BROKER__AGENT_URL", at(&agents))
            .envs(self.settings.iter().map(|(name, value)| (name, value)));
        // The control plane refuses variables that are no settings, and these are only for tests.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("TOWPATH_TEST_") {
                command.env_remove(name);
            }
        }
        command
    }

    /// Runs a command of the CLI.
    pub fn run(&self, arguments: &[&str]) -> Said {
        self.run_with(arguments, "")
    }

    /// A command of the CLI, to be run elsewhere.
    pub fn cli(&self, arguments: &[&str]) -> Command {
        self.command(arguments)
    }

    /// Runs a command of the CLI with something on its standard input.
    pub fn run_with(&self, arguments: &[&str], input: &str) -> Said {
        use std::io::Write;
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the CLI can be started");
        let mut stdin = child.stdin.take().expect("a pipe");
        // A command that reads nothing may be gone already.
        drop(stdin.write_all(input.as_bytes()));
        drop(stdin);
        let Output {
            status,
            stdout,
            stderr,
        } = child.wait_with_output().expect("the CLI ends");
        Said {
            code: status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&stdout).into_owned(),
            err: String::from_utf8_lossy(&stderr).into_owned(),
        }
    }

    /// Writes a flow file and returns its path.
    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).expect("a file can be written");
        path.to_str().expect("a path in UTF-8").to_owned()
    }

    /// Applies a flow and waits until it runs.
    #[track_caller]
    pub fn apply(&self, flow: &str) -> Said {
        let path = self.write("flow.yaml", flow);
        let said = self.run(&["apply", &path, "--timeout", "120s"]);
        assert!(
            said.code == 0,
            "apply failed ({}):\n{}{}\nserve:\n{}",
            said.code,
            said.out,
            said.err,
            self.log()
        );
        said
    }

    /// The status of a flow.
    #[track_caller]
    pub fn status(&self, flow: &str) -> Value {
        self.run(&["status", flow, "--output", "json"]).ok().json()
    }

    /// The running containers of a flow or of one of its steps: id by name.
    pub fn containers(&self, flow: &str, step: Option<&str>) -> BTreeMap<String, String> {
        let instance = format!("label=io.towpath.instance={}", self.name);
        let flow = format!("label=io.towpath.flow={flow}");
        let mut arguments = vec![
            "ps",
            "--no-trunc",
            "--format",
            "{{.Names}} {{.ID}}",
            "--filter",
            &instance,
            "--filter",
            &flow,
        ];
        let step = step.map(|step| format!("label=io.towpath.step={step}"));
        if let Some(step) = &step {
            arguments.extend(["--filter", step]);
        }
        docker(&arguments)
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(name, id)| (name.to_owned(), id.to_owned()))
            .collect()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln_log(&self.name, &self.log(), &crate::AWAITED.take());
        }
        if let Some(mut process) = self.process().take() {
            drop(process.kill());
            drop(process.wait());
        }
        let filter = format!("label=io.towpath.instance={}", self.name);
        for list in [["ps", "-aq"], ["volume", "ls"]] {
            let mut arguments = list.to_vec();
            if list[0] == "volume" {
                arguments.push("-q");
            }
            arguments.extend(["--filter", &filter]);
            for id in try_docker(&arguments).unwrap_or_default().lines() {
                drop(match list[0] {
                    "ps" => try_docker(&["rm", "-f", "-v", id]),
                    _ => try_docker(&["volume", "rm", "-f", id]),
                });
            }
        }
        drop(try_docker(&[
            "network",
            "disconnect",
            "-f",
            &self.name,
            &self.broker.container,
        ]));
        drop(try_docker(&["network", "rm", &self.name]));
        drop(self.broker.delete_vhost(&self.name));
    }
}

#[expect(
    clippy::print_stderr,
    reason = "a test that fails shows what the control plane said"
)]
fn eprintln_log(name: &str, log: &str, awaited: &str) {
    let tail: Vec<&str> = log.lines().rev().take(60).collect();
    eprintln!("--- the last lines of the control plane of {name}:");
    for line in tail.iter().rev() {
        eprintln!("{line}");
    }
    if !awaited.is_empty() {
        eprintln!("--- {awaited}");
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("it has an address").port()
}
