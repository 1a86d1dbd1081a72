//! What `towpath serve` is told: defaults, then a file, then the environment.
//!
//! # Invariants
//!
//! - `a_mistake_names_its_key_and_its_source`; an unknown key is a mistake.
//! - `no_secret_is_shown`: neither `Debug` nor an error has a password or a token in it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use config::{Config, ConfigError, Environment, File, FileFormat};
use serde::Deserialize;

use crate::broker::topology::STEP_QUEUE_DELIVERIES_MAX;

/// Where a file is looked for when none is named.
const FILES: [&str; 2] = ["towpath.yaml", "/etc/towpath/towpath.yaml"];

/// What every variable of the environment begins with.
const PREFIX: &str = "TOWPATH_";

/// Variables with that beginning that belong to the command line, not to the control plane.
const OF_THE_COMMAND_LINE: [&str; 5] = [
    "TOWPATH_CONFIG",
    "TOWPATH_SERVER",
    "TOWPATH_TOKEN_FILE",
    "TOWPATH_OUTPUT",
    "TOWPATH_COLOR",
];

/// The largest request that is read, unless told otherwise: a flow file or a webhook's body, with
/// room for what wraps them.
const BODY_BYTES_DEFAULT: u64 = 2 << 20;

/// What a step's queue may be bounded to: enough for a batch or two of each replica, and no more
/// than a broker holds in memory as references.
const QUEUE_DELIVERIES: std::ops::RangeInclusive<u64> = 10..=10_000_000;

/// The settings of a control plane.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where the API listens.
    pub listen: SocketAddr,
    /// How the API is reached from outside, for webhook URLs; `http://<listen>` when empty.
    pub public_url: String,
    /// Where records are kept.
    pub data: PathBuf,
    /// Which Towpath this is: the prefix of everything it makes on a shared engine and broker.
    pub instance: String,
    /// What carries messages.
    pub broker: BrokerSettings,
    /// Where the agent's binary is.
    pub agent: AgentSettings,
    /// The token that opens the API; generated and kept in the data directory when empty.
    pub token: String,
    /// The largest request, in bytes.
    pub body_bytes_max: u64,
    /// For how many days it is remembered which messages are settled, of steps with `once: true`.
    pub ledger_days: u32,
    /// After how many seconds without a checkpoint or a message a run is said to be stalled.
    pub stalled_after_seconds: u64,
    /// The folders of the engine's host that steps may use, by the names that flows have for them.
    #[serde(default)]
    pub folders: BTreeMap<String, PathBuf>,
    /// How logs are written.
    pub log: LogSettings,
}

/// What carries messages.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrokerSettings {
    /// Its URL, as seen from here.
    pub url: String,
    /// Its URL, as seen from containers; the same with `localhost` replaced when empty.
    pub agent_url: String,
    /// The most deliveries in a step's queue; past it, whoever publishes to it is held back.
    pub queue_deliveries_max: u64,
}

/// Where the agent's binary is.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentSettings {
    /// The folder that holds `towpath-agent` and `towpath-lines`; that of this program when empty.
    pub binaries: String,
}

/// How logs are written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogSettings {
    /// As lines of text or of JSON.
    pub format: LogFormat,
    /// What is written: `info`, or `towpath=debug,info`.
    pub level: String,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file that was named is not there, or cannot be read.
    #[error("cannot read the settings in `{}`", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A value is wrong.
    #[error("{}", .0)]
    Wrong(String),
}

impl Settings {
    /// Reads the settings: the defaults, over them `file` (or the first there is of `./towpath.yaml`
    /// and `/etc/towpath/towpath.yaml`), over them `TOWPATH_…` of `env`, with `__` between levels.
    pub fn load(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, SettingsError> {
        let found = FILES
            .iter()
            .map(Path::new)
            .find(|path| file.is_none() && path.exists());
        let mut builder = defaults();
        if let Some(path) = file.or(found) {
            let text =
                std::fs::read_to_string(path).map_err(|source| SettingsError::Unreadable {
                    path: path.to_owned(),
                    source,
                })?;
            // Read here, so that a value that is wrong is not part of what the parser says.
            let source = Config::builder()
                .add_source(File::from_str(&text, FileFormat::Yaml))
                .build()
                .map_err(|_| {
                    SettingsError::Wrong(format!(
                        "`{}` is not a YAML file with keys",
                        path.display()
                    ))
                })?;
            check_keys(&source, &format!("`{}`", path.display()))?;
            builder = builder.add_source(source);
        }
        let env: BTreeMap<String, String> = env
            .filter(|(name, _)| name.starts_with(PREFIX))
            .filter(|(name, _)| !OF_THE_COMMAND_LINE.contains(&name.as_str()))
            .collect();
        let source = Environment::with_prefix("TOWPATH")
            .prefix_separator("_")
            .separator("__")
            .source(Some(env.into_iter().collect()));
        let environment = Config::builder()
            .add_source(source.clone())
            .build()
            .map_err(wrong)?;
        check_keys(&environment, "the environment")?;
        let settings: Self = builder
            .add_source(source.try_parsing(true))
            .build()
            .and_then(Config::try_deserialize)
            .map_err(wrong)?;
        settings.completed()
    }

    fn completed(mut self) -> Result<Self, SettingsError> {
        let bad = |key: &str, rule: &str| SettingsError::Wrong(format!("`{key}` {rule}"));
        let is_name = |text: &str| {
            text.len() <= 32
                && text.starts_with(|first: char| first.is_ascii_lowercase())
                && text
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        };
        if !is_name(&self.instance) {
            return Err(bad(
                "instance",
                "must be at most 32 lower-case letters, digits and dashes, a letter first",
            ));
        }
        let scheme =
            |url: &str, schemes: [&str; 2]| schemes.iter().any(|scheme| url.starts_with(scheme));
        if !scheme(&self.broker.url, ["amqp://", "amqps://"]) {
            return Err(bad("broker.url", "must begin with `amqp://` or `amqps://`"));
        }
        if self.broker.agent_url.is_empty() {
            self.broker.agent_url = from_a_container(&self.broker.url);
        } else if !scheme(&self.broker.agent_url, ["amqp://", "amqps://"]) {
            return Err(bad(
                "broker.agent_url",
                "must begin with `amqp://` or `amqps://`",
            ));
        }
        if !QUEUE_DELIVERIES.contains(&self.broker.queue_deliveries_max) {
            return Err(bad(
                "broker.queue_deliveries_max",
                "must be from 10 to 10000000",
            ));
        }
        if self.public_url.is_empty() {
            self.public_url = format!("http://{}", self.listen);
        } else if !scheme(&self.public_url, ["http://", "https://"]) {
            return Err(bad("public_url", "must begin with `http://` or `https://`"));
        }
        self.public_url
            .truncate(self.public_url.trim_end_matches('/').len());
        if !self.token.is_empty() && self.token.len() < 16 {
            return Err(bad("token", "must have at least 16 characters"));
        }
        if self.ledger_days == 0 {
            return Err(bad("ledger_days", "must be at least 1"));
        }
        if self.stalled_after_seconds == 0 {
            return Err(bad("stalled_after_seconds", "must be at least 1"));
        }
        for (name, path) in &self.folders {
            let key = format!("folders.{name}");
            if !is_name(name) {
                return Err(bad(
                    &key,
                    "has a name that is not at most 32 lower-case letters, digits and dashes, a letter first",
                ));
            }
            if !path.is_absolute() {
                return Err(bad(&key, "must be a path from the root: `/srv/…`"));
            }
        }
        Ok(self)
    }

    /// The folder with the agent's binaries.
    pub fn binaries(&self) -> PathBuf {
        if !self.agent.binaries.is_empty() {
            return PathBuf::from(&self.agent.binaries);
        }
        std::env::current_exe()
            .ok()
            .and_then(|program| program.parent().map(Path::to_owned))
            .unwrap_or_else(|| PathBuf::from("."))
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Settings")
            .field("listen", &self.listen)
            .field("public_url", &self.public_url)
            .field("data", &self.data)
            .field("instance", &self.instance)
            .field("broker", &self.broker)
            .field("agent", &self.agent)
            .field("token", &"***")
            .field("body_bytes_max", &self.body_bytes_max)
            .field("ledger_days", &self.ledger_days)
            .field("stalled_after_seconds", &self.stalled_after_seconds)
            .field("folders", &self.folders)
            .field("log", &self.log)
            .finish()
    }
}

impl fmt::Debug for BrokerSettings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("BrokerSettings")
            .field("url", &without_password(&self.url))
            .field("agent_url", &without_password(&self.agent_url))
            .field("queue_deliveries_max", &self.queue_deliveries_max)
            .finish()
    }
}

/// A URL without its user and password, to show it.
pub fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return "***".to_owned();
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let host = rest[..end].rsplit('@').next().unwrap_or_default();
    let path = rest[end..].split(['?', '#']).next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

/// A URL as a container reaches it: there, `localhost` is the container itself.
fn from_a_container(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (format!("{user}@"), host),
        None => (String::new(), authority),
    };
    let (name, port) = match host.strip_prefix("[::1]") {
        Some(port) => ("::1", port.strip_prefix(':')),
        None => host
            .split_once(':')
            .map_or((host, None), |(name, port)| (name, Some(port))),
    };
    let is_here = name == "localhost" || name == "::1" || name.starts_with("127.");
    let name = if is_here {
        "host.docker.internal"
    } else {
        return url.to_owned();
    };
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    format!("{scheme}://{user}{name}{port}{tail}")
}

const DEFAULTS: [(&str, &str); 14] = [
    ("listen", "127.0.0.1:7700"),
    ("public_url", ""),
    ("data", ".towpath"),
    ("instance", "towpath"),
    ("broker.url", "amqp://guest:guest@127.0.0.1:5672"),
    ("broker.agent_url", ""),
    ("broker.queue_deliveries_max", ""),
    ("agent.binaries", ""),
    ("token", ""),
    ("body_bytes_max", ""),
    ("ledger_days", "7"),
    ("stalled_after_seconds", "600"),
    ("log.format", "text"),
    ("log.level", "info"),
];

fn defaults() -> config::ConfigBuilder<config::builder::DefaultState> {
    let mut builder = Config::builder();
    for (key, value) in DEFAULTS {
        let set = match key {
            "body_bytes_max" => builder.set_default(key, BODY_BYTES_DEFAULT),
            "broker.queue_deliveries_max" => builder.set_default(key, STEP_QUEUE_DELIVERIES_MAX),
            _ => builder.set_default(key, value),
        };
        builder = set.expect("keys of defaults are written as paths");
    }
    builder
}

/// Refuses keys that are not settings, by name and source.
fn check_keys(config: &Config, source: &str) -> Result<(), SettingsError> {
    let mut unknown = Vec::new();
    let top = config.cache.clone().into_table().map_err(wrong)?;
    for (key, value) in top {
        match value.clone().into_table() {
            Ok(table) => unknown.extend(table.into_keys().map(|inner| format!("{key}.{inner}"))),
            Err(_) => unknown.push(key),
        }
    }
    unknown.retain(|key| {
        !key.starts_with("folders.") && !DEFAULTS.iter().any(|(known, _)| known == key)
    });
    unknown.sort();
    match unknown.first() {
        None => Ok(()),
        Some(key) => {
            let mut known: Vec<&str> = DEFAULTS.iter().map(|(key, _)| *key).collect();
            known.push("folders.<name>");
            Err(SettingsError::Wrong(format!(
                "{source} has `{key}`, which is not a setting; there are {}",
                known.join(", ")
            )))
        }
    }
}

/// What `config` says, without the value: it may be a secret.
#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` gives")]
fn wrong(error: ConfigError) -> SettingsError {
    let (key, origin, expected) = match &error {
        ConfigError::Type {
            origin,
            expected,
            key,
            ..
        } => (key.clone(), origin.clone(), Some(*expected)),
        ConfigError::At { key, origin, .. } => (key.clone(), origin.clone(), None),
        _ => (None, None, None),
    };
    let source = match origin.as_deref() {
        None => "the settings".to_owned(),
        Some(origin) if origin.contains("environment") => "the environment".to_owned(),
        Some(origin) => format!("`{origin}`"),
    };
    let key = key.map_or_else(|| "a value".to_owned(), |key| format!("`{key}`"));
    let expected = expected.map_or_else(
        || "is not what this setting takes".to_owned(),
        |expected| format!("must be {expected}"),
    );
    SettingsError::Wrong(format!("{key} in {source} {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, env: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.yaml");
        std::fs::write(&path, text).unwrap();
        let env = env
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Settings::load(Some(&path), env)
    }

    #[test]
    fn the_environment_is_over_the_file_and_the_file_over_the_defaults() {
        let settings = load(
            "instance: canal\nfolders: { outbox: /srv/outbox }\nbroker:\n  url: amqp://rabbit:5672\nlog: { level: debug }\n",
            &[
                ("TOWPATH_BROKER__URL", "amqp://u:p@localhost:5673/v"),
                ("TOWPATH_LISTEN", "127.0.0.1:0"),
                ("TOWPATH_BODY_BYTES_MAX", "1000"),
                ("TOWPATH_FOLDERS__INBOX", "/srv/inbox"),
                ("TOWPATH_SERVER", "http://elsewhere"),
                ("HOME", "/root"),
            ],
        )
        .unwrap();
        assert_eq!(settings.instance, "canal");
        assert_eq!(settings.broker.url, "amqp://u:p@localhost:5673/v");
        assert_eq!(
            settings.broker.agent_url,
            "amqp://u:p@host.docker.internal:5673/v"
        );
        assert_eq!(settings.log.level, "debug");
        assert_eq!(settings.log.format, LogFormat::Text);
        assert_eq!(settings.body_bytes_max, 1000);
        assert_eq!(settings.public_url, "http://127.0.0.1:0");
        let folders = settings
            .folders
            .iter()
            .map(|(name, path)| (&**name, &**path));
        let expected = [
            ("inbox", Path::new("/srv/inbox")),
            ("outbox", Path::new("/srv/outbox")),
        ];
        assert_eq!(folders.collect::<Vec<_>>(), expected);
    }

    #[track_caller]
    fn check_wrong(text: &str, env: &[(&str, &str)], parts: &[&str]) {
        let error = load(text, env).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "`{part}` is not in: {error}");
        }
        assert!(!error.contains("s3cret"), "{error}");
    }

    #[test]
    fn a_mistake_names_its_key_and_its_source() {
        check_wrong("lisen: x\n", &[], &["`lisen`", "t.yaml", "listen"]);
        check_wrong(
            "broker: { uri: s3cret }\n",
            &[],
            &["`broker.uri`", "t.yaml"],
        );
        check_wrong(
            "",
            &[("TOWPATH_BROKER__URI", "s3cret")],
            &["`broker.uri`", "environment"],
        );
        check_wrong("listen: s3cret\n", &[], &["`listen`"]);
        check_wrong(
            "",
            &[("TOWPATH_BODY_BYTES_MAX", "s3cret")],
            &["`body_bytes_max`"],
        );
        check_wrong("log: { format: s3cret }\n", &[], &["log.format"]);
        check_wrong("instance: Big Name\n", &[], &["`instance`"]);
        check_wrong(
            "broker: { url: 's3cret' }\n",
            &[],
            &["`broker.url`", "amqp://"],
        );
        check_wrong(
            "broker: { queue_deliveries_max: 3 }\n",
            &[],
            &["`broker.queue_deliveries_max`", "10"],
        );
        check_wrong("token: s3cret\n", &[], &["`token`", "16"]);
        check_wrong("folders: { Inbox: /srv }\n", &[], &["`folders.Inbox`"]);
        check_wrong("folders: { inbox: srv }\n", &[], &["`folders.inbox`", "/"]);
        check_wrong("- s3cret\n", &[], &["t.yaml"]);
        check_wrong(": : :\n\t", &[], &["t.yaml"]);
    }

    #[test]
    fn no_secret_is_shown() {
        let settings = load(
            "token: s3cret-s3cret-s3cret\nbroker: { url: 'amqp://u:s3cret@h:1/v?x=s3cret' }\n",
            &[],
        )
        .unwrap();
        let shown = format!("{settings:?}");
        assert!(!shown.contains("s3cret"), "{shown}");
        assert!(shown.contains("amqp://h:1/v"), "{shown}");
    }

    #[test]
    fn a_container_reaches_the_host_by_another_name() {
        for (url, expect) in [
            ("amqp://localhost", "amqp://host.docker.internal"),
            (
                "amqp://a:b@127.0.0.1:5673/%2f?x=1",
                "amqp://a:b@host.docker.internal:5673/%2f?x=1",
            ),
            ("amqps://[::1]:5671", "amqps://host.docker.internal:5671"),
            ("amqp://rabbit:5672/v", "amqp://rabbit:5672/v"),
        ] {
            assert_eq!(from_a_container(url), expect);
        }
    }
}
