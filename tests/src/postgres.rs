//! The PostgreSQL that tests use, by the command line in its container.

use crate::machine::{docker, need, try_docker};
use crate::{Instance, eventually};
use std::time::Duration;

/// A schema of a test's own, which the containers of its instance can reach.
pub struct Postgres {
    /// The container, which is also its name on Docker's networks.
    pub container: String,
    /// Who logs in.
    pub user: String,
    /// The password.
    pub password: String,
    /// The URL without the password, as containers reach it.
    pub url: String,
    schema: String,
    network: String,
}

impl Postgres {
    /// Makes a schema and opens the way to it from an instance. Declare it after the instance, so
    /// that it goes before.
    ///
    /// # Panics
    ///
    /// Panics, saying how to start it, if there is no PostgreSQL: a test never skips.
    pub fn start(instance: &Instance) -> Self {
        let url = need("TOWPATH_TEST_POSTGRES_URL_INSIDE");
        let rest = url.strip_prefix("postgres://").unwrap_or(&url);
        let (login, place) = rest
            .split_once('@')
            .expect("postgres://user:password@host/database");
        let (user, password) = login.split_once(':').expect("user:password");
        let container = place.split(':').next().expect("a host").to_owned();
        docker(&["network", "connect", &instance.name, &container]);
        let schema = instance.name.replace('-', "_");
        let made = Self {
            url: format!("postgres://{user}@{place}?options=-c%20search_path%3D{schema}"),
            user: user.to_owned(),
            password: password.to_owned(),
            network: instance.name.clone(),
            container,
            schema,
        };
        eventually("PostgreSQL answers", Duration::from_secs(60), || {
            made.try_run(&format!("CREATE SCHEMA IF NOT EXISTS {}", made.schema))
        });
        made
    }

    fn try_run(&self, sql: &str) -> Result<String, String> {
        let path = format!("PGOPTIONS=-c search_path={}", self.schema);
        try_docker(&[
            "exec",
            "--env",
            &path,
            &self.container,
            "psql",
            "--host=/tmp",
            "--username",
            &self.user,
            "--no-psqlrc",
            "--quiet",
            "--no-align",
            "--tuples-only",
            "--set=ON_ERROR_STOP=1",
            "--command",
            sql,
            "towpath",
        ])
    }

    /// Runs SQL and returns what it gives, a line a row.
    #[track_caller]
    pub fn run(&self, sql: &str) -> String {
        self.try_run(sql)
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// The one number that a query gives.
    #[track_caller]
    pub fn number(&self, sql: &str) -> u64 {
        let text = self.run(sql);
        text.parse()
            .unwrap_or_else(|_| panic!("{sql}: no number: {text}"))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.try_run(&format!("DROP SCHEMA {} CASCADE", self.schema)));
        drop(try_docker(&[
            "network",
            "disconnect",
            "-f",
            &self.network,
            &self.container,
        ]));
    }
}
