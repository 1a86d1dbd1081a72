//! The engine and the brokers that tests use, by their command lines.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::eventually;

/// Which broker a test runs on. Both must pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokerVersion {
    /// RabbitMQ 3.10, of Debian 12.
    V310,
    /// RabbitMQ 4.0, of Debian 13.
    V40,
}

/// Where a broker is.
#[derive(Debug, Clone)]
pub struct BrokerAt {
    /// Its container, which is also its name on Docker's networks.
    pub container: String,
    /// `user:password`.
    pub login: String,
    /// `127.0.0.1:port`, from the host.
    pub host: String,
}

/// Keeps a broker for a test: most share it, one that restarts it has it alone.
pub enum Hold {
    /// With other tests.
    Shared(RwLockReadGuard<'static, ()>),
    /// Alone.
    Alone(RwLockWriteGuard<'static, ()>),
}

static LOCK_310: RwLock<()> = RwLock::const_new(());
static LOCK_40: RwLock<()> = RwLock::const_new(());

impl BrokerVersion {
    fn lock(self) -> &'static RwLock<()> {
        match self {
            Self::V310 => &LOCK_310,
            Self::V40 => &LOCK_40,
        }
    }

    /// Keeps it, together with other tests.
    pub fn share(self) -> Hold {
        Hold::Shared(self.lock().blocking_read())
    }

    /// Keeps it, alone.
    pub fn alone(self) -> Hold {
        Hold::Alone(self.lock().blocking_write())
    }

    /// Finds it.
    ///
    /// # Panics
    ///
    /// Panics, saying how to start it, if it is not there: a test never skips.
    pub fn at(self) -> BrokerAt {
        let suffix = match self {
            Self::V310 => "310",
            Self::V40 => "40",
        };
        let host = need(&format!("TOWPATH_TEST_BROKER_URL_{suffix}"));
        let inside = need(&format!("TOWPATH_TEST_AGENT_BROKER_URL_{suffix}"));
        let (login, host) = split_url(&host);
        let (_, inside) = split_url(&inside);
        let container = inside.split(':').next().expect("a host").to_owned();
        BrokerAt {
            container,
            login,
            host,
        }
    }
}

fn split_url(url: &str) -> (String, String) {
    let rest = url.strip_prefix("amqp://").unwrap_or(url);
    let (login, rest) = rest
        .split_once('@')
        .expect("amqp://user:password@host:port");
    let host = rest.split('/').next().expect("a host");
    (login.to_owned(), host.to_owned())
}

/// What a variable of the environment says.
pub(crate) fn need(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!("`{variable}` is not set: run `./test`, which starts an engine, the brokers and PostgreSQL")
    })
}

/// Where the binaries are.
pub fn binary(name: &str) -> PathBuf {
    let folder = PathBuf::from(need("TOWPATH_TEST_BIN"));
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{} is not there: run `./test`, which builds it",
        path.display()
    );
    path
}

/// Runs `docker` and returns what it prints.
///
/// # Panics
///
/// Panics with what it says if it fails.
#[track_caller]
pub fn docker(arguments: &[&str]) -> String {
    match try_docker(arguments) {
        Ok(text) => text,
        Err(error) => panic!("docker {}: {error}", arguments.join(" ")),
    }
}

/// Runs `docker` and returns what it prints, or what it says if it fails.
pub fn try_docker(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("docker")
        .args(arguments)
        .output()
        .map_err(|error| {
            format!("cannot be run ({error}): run `./test`, which installs and starts an engine")
        })?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

impl BrokerAt {
    /// Makes a virtual host.
    pub fn add_vhost(&self, vhost: &str) {
        let user = self.login.split(':').next().expect("a user");
        let add = [
            "exec",
            &self.container,
            "rabbitmqctl",
            "-q",
            "add_vhost",
            vhost,
        ];
        // On a busy machine the tool gives up on its broker now and then.
        eventually("there is a virtual host", Duration::from_secs(60), || {
            try_docker(&add)
        });
        let permissions = [
            "exec",
            &self.container,
            "rabbitmqctl",
            "-q",
            "set_permissions",
            "-p",
        ];
        let permissions = [&permissions[..], &[vhost, user, ".*", ".*", ".*"]].concat();
        eventually(
            "its user may do everything there",
            Duration::from_secs(60),
            || try_docker(&permissions),
        );
    }

    /// Deletes a virtual host and all in it.
    pub fn delete_vhost(&self, vhost: &str) -> Result<String, String> {
        try_docker(&[
            "exec",
            &self.container,
            "rabbitmqctl",
            "-q",
            "delete_vhost",
            vhost,
        ])
    }
}
