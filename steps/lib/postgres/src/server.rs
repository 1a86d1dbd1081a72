//! Where a database is, and a connection to it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use tokio::task::JoinSet;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{Client, Config};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::failure::Unreachable;
use crate::trust::{self, Trust};

/// How long a connection may take to be made, for each address of the server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// After this long without a word the server is asked whether it is still there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);

/// How long what was sent may stay unacknowledged before the connection counts as lost.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(60);

/// Where a database is and who logs in.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// `postgres://user@host:port/database?sslmode=verify-full`.
    pub url: &'a str,
    /// The password, if it is not in the URL.
    pub password: Option<&'a str>,
    /// Certificates to trust beside the authorities of the web, as PEM.
    pub certificates: Option<&'a str>,
    /// What the server lists the connection as.
    pub application: &'a str,
}

/// The settings cannot be used. The URL is never told: it may hold a password.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// It does not begin as such a URL does.
    #[error("`url` does not begin with `postgres://` or `postgresql://`")]
    Scheme,
    /// It cannot be read.
    #[error("`url` cannot be read as `postgres://user@host:5432/database`")]
    Url(#[source] tokio_postgres::Error),
    /// It names no server.
    #[error("`url` names no host")]
    NoHost,
    /// An unknown word for what to ask of TLS.
    #[error(
        "`sslmode={0}` is not known: it is `disable`, `prefer`, `require`, `verify-ca` or `verify-full`"
    )]
    SslMode(String),
    /// The certificates cannot be used.
    #[error("{place} cannot be used")]
    Certificates {
        /// Where they are from.
        place: String,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// TLS cannot be set up.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// Names cannot be looked up.
    #[error("cannot read how this system looks up names")]
    Resolver(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A database.
pub struct Server {
    /// Everything but the hosts.
    base: Config,
    hosts: Vec<(String, u16)>,
    tls: MakeRustlsConnect,
    resolver: TokioResolver,
}

/// A connection. It ends when it is dropped.
pub struct Session {
    /// What statements are sent with.
    pub client: Client,
    /// Moves bytes; owned here, so that it ends with the session.
    _driver: JoinSet<()>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("place", &self.place())
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

impl Server {
    /// Reads the settings. Nothing is connected yet.
    pub fn new(settings: &Settings<'_>) -> Result<Self, SetupError> {
        if !["postgres://", "postgresql://"]
            .iter()
            .any(|scheme| settings.url.starts_with(scheme))
        {
            return Err(SetupError::Scheme);
        }
        let (url, mode) = take_ssl_mode(settings.url);
        let trust = match mode {
            Some(word) => Trust::read(&word).ok_or(SetupError::SslMode(word))?,
            None => Trust::Whatever,
        };
        let parsed: Config = url.parse().map_err(SetupError::Url)?;
        let hosts = hosts(&parsed);
        if hosts.is_empty() {
            return Err(SetupError::NoHost);
        }
        let certificates = certificates(settings.certificates)?;
        let tls = trust::tls(trust, &certificates)?;
        let resolver = TokioResolver::builder_tokio()
            .and_then(hickory_resolver::ResolverBuilder::build)
            .map_err(|error| SetupError::Resolver(error.into()))?;
        Ok(Self {
            base: base(&parsed, trust, settings),
            hosts,
            tls: MakeRustlsConnect::new(tls),
            resolver,
        })
    }

    /// Says where it is: hosts and database, nothing secret.
    pub fn place(&self) -> String {
        let hosts: Vec<_> = self
            .hosts
            .iter()
            .map(|(host, port)| format!("{host}:{port}"))
            .collect();
        let database = self.base.get_dbname().unwrap_or_default();
        format!("{}/{database}", hosts.join(","))
    }

    /// Connects.
    pub async fn connect(&self) -> Result<Session, Unreachable> {
        let mut config = self.base.clone();
        for (host, port) in &self.hosts {
            for address in self.addresses(host).await? {
                config.host(host).hostaddr(address).port(*port);
            }
        }
        let connected = config.connect(self.tls.clone()).await;
        let (client, connection) = connected.map_err(|source| Unreachable::Connect {
            place: self.place(),
            source,
        })?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // Whoever waits for an answer is told of the error as well.
            drop(connection.await);
        });
        Ok(Session {
            client,
            _driver: driver,
        })
    }

    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, Unreachable> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        let found = self
            .resolver
            .lookup_ip(host)
            .await
            .map_err(|error| Unreachable::Name {
                host: host.to_owned(),
                source: error.into(),
            })?;
        Ok(found.iter().collect())
    }
}

/// The certificates to trust beside the authorities of the web, and where they are from.
fn certificates(given: Option<&str>) -> Result<Vec<(String, Vec<u8>)>, SetupError> {
    let mut certificates = Vec::new();
    if let Some(path) = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from) {
        let place = path.display().to_string();
        match std::fs::read(&path) {
            Ok(pem) => certificates.push((place, pem)),
            Err(source) => {
                let source = source.into();
                return Err(SetupError::Certificates { place, source });
            }
        }
    }
    let given = given.map(|pem| ("`certificates`".to_owned(), pem.as_bytes().to_vec()));
    certificates.extend(given);
    Ok(certificates)
}

/// Takes `sslmode` out of a URL: not all of its words are known to the parser.
fn take_ssl_mode(url: &str) -> (String, Option<String>) {
    let Some((place, query)) = url.split_once('?') else {
        return (url.to_owned(), None);
    };
    let mut mode = None;
    let rest: Vec<_> = query
        .split('&')
        .filter(|pair| match pair.split_once('=') {
            Some(("sslmode", word)) => {
                mode = Some(word.to_owned());
                false
            }
            _ => !pair.is_empty(),
        })
        .collect();
    let rest = if rest.is_empty() {
        String::new()
    } else {
        format!("?{}", rest.join("&"))
    };
    (format!("{place}{rest}"), mode)
}

fn hosts(parsed: &Config) -> Vec<(String, u16)> {
    /// Where PostgreSQL listens unless told otherwise.
    const PORT: u16 = 5432;
    let ports = parsed.get_ports();
    let port = |index: usize| ports.get(index).or(ports.first()).copied().unwrap_or(PORT);
    let hosts = parsed.get_hosts().iter().enumerate();
    hosts
        .filter_map(|(index, host)| match host {
            Host::Tcp(name) => Some((name.clone(), port(index))),
            #[cfg(unix)]
            Host::Unix(_) => None,
        })
        .collect()
}

fn base(parsed: &Config, trust: Trust, settings: &Settings<'_>) -> Config {
    let mut base = Config::new();
    base.application_name(
        parsed
            .get_application_name()
            .unwrap_or(settings.application),
    );
    base.ssl_mode(match trust {
        Trust::Plain => SslMode::Disable,
        Trust::Whatever => SslMode::Prefer,
        Trust::Encrypted | Trust::Verified => SslMode::Require,
    });
    base.connect_timeout(
        parsed
            .get_connect_timeout()
            .copied()
            .unwrap_or(CONNECT_TIMEOUT),
    );
    base.keepalives_idle(KEEPALIVE_IDLE);
    base.tcp_user_timeout(UNACKNOWLEDGED_MAX);
    base.target_session_attrs(parsed.get_target_session_attrs());
    base.channel_binding(parsed.get_channel_binding());
    if let Some(user) = parsed.get_user() {
        base.user(user);
    }
    if let Some(database) = parsed.get_dbname() {
        base.dbname(database);
    }
    if let Some(options) = parsed.get_options() {
        base.options(options);
    }
    match settings.password {
        Some(password) => drop(base.password(password)),
        None => {
            if let Some(password) = parsed.get_password() {
                base.password(password);
            }
        }
    }
    base
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(url: &str, certificates: Option<&str>) -> Result<Server, SetupError> {
        Server::new(&Settings {
            url,
            password: Some("hush"),
            certificates,
            application: "test",
        })
    }

    #[track_caller]
    fn check_mode(url: &str, expect: (&str, Option<&str>)) {
        let (rest, mode) = take_ssl_mode(url);
        assert_eq!((rest.as_str(), mode.as_deref()), expect);
    }

    #[test]
    fn every_word_of_libpq_for_tls_is_known() {
        check_mode("postgres://h/d", ("postgres://h/d", None));
        check_mode(
            "postgres://h/d?sslmode=verify-full",
            ("postgres://h/d", Some("verify-full")),
        );
        check_mode(
            "postgres://h/d?a=1&sslmode=require&b=2",
            ("postgres://h/d?a=1&b=2", Some("require")),
        );
        for word in [
            "disable",
            "allow",
            "prefer",
            "require",
            "verify-ca",
            "verify-full",
        ] {
            server(&format!("postgres://u@h/d?sslmode={word}"), None).unwrap();
        }
        let error = server("postgres://u@h/d?sslmode=always", None).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("`sslmode=always` is not known"),
            "{error}"
        );
    }

    #[test]
    fn a_place_is_told_without_its_password() {
        let server = server("postgresql://u:secret@one:1,two:2/shop", None).unwrap();
        assert_eq!(server.place(), "one:1,two:2/shop");
        assert!(!format!("{server:?}").contains("secret"));
    }

    #[test]
    fn what_cannot_be_used_is_told_at_once() {
        #[track_caller]
        fn check(url: &str, certificates: Option<&str>, expect: &str) {
            let error = server(url, certificates).unwrap_err();
            assert_eq!(error.to_string(), expect);
        }
        check(
            "mysql://h/d",
            None,
            "`url` does not begin with `postgres://` or `postgresql://`",
        );
        check("postgres:///d", None, "`url` names no host");
        check(
            "postgres://h:port/d",
            None,
            "`url` cannot be read as `postgres://user@host:5432/database`",
        );
        check(
            "postgres://h/d?sslmode=verify-full",
            Some("no"),
            "`certificates` cannot be used",
        );
    }
}
