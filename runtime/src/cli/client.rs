//! The control plane, over HTTP.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Method, Response, StatusCode, Url};
use rustls::{ClientConfig, RootCertStore};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::problem::{ExitStatus, Problem};
use crate::api::ErrorBody;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);

/// How long an answer may take: an image may have to be pulled first.
const ANSWER: Duration = Duration::from_secs(300);

/// Where the token comes from, in this order.
#[derive(Debug, Clone)]
pub(super) struct TokenSource {
    /// Given as it is.
    pub(super) token: Option<String>,
    /// In a file.
    pub(super) file: Option<PathBuf>,
    /// In the data directory of a control plane on this machine.
    pub(super) data: PathBuf,
}

/// The control plane.
pub(super) struct Client {
    http: reqwest::Client,
    server: Url,
    token: Result<String, PathBuf>,
}

impl Client {
    /// Makes one; nothing is connected yet.
    pub(super) fn new(server: &str, token: &TokenSource) -> Result<Self, Problem> {
        let bad = |why: &str| {
            Problem::could_not(format!(
                "`{server}` is not the URL of a control plane: {why}"
            ))
            .hint("it looks like `http://127.0.0.1:7700`")
        };
        let server: Url = server.parse().map_err(|_| bad("it is no URL"))?;
        if !matches!(server.scheme(), "http" | "https") || server.cannot_be_a_base() {
            return Err(bad("it begins with neither `http://` nor `https://`"));
        }
        Ok(Self {
            http: http_client()?,
            server,
            token: find_token(token)?,
        })
    }

    /// Asks for something.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<T, Problem> {
        self.ask(Method::GET, path, query, None::<&Value>).await
    }

    /// Asks to do something.
    pub(super) async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, String)],
        body: &impl Serialize,
    ) -> Result<T, Problem> {
        self.ask(method, path, query, Some(body)).await
    }

    /// Asks for something that comes bit by bit.
    pub(super) async fn stream(
        &self,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<Response, Problem> {
        let request = self.request(Method::GET, path, query)?;
        self.check(request.send().await).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, String)],
        body: Option<&impl Serialize>,
    ) -> Result<T, Problem> {
        let mut request = self.request(method, path, query)?.timeout(ANSWER);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = self.check(request.send().await).await?;
        response.json().await.map_err(|error| {
            Problem::could_not("the control plane's answer cannot be read")
                .because(&error.without_url())
                .hint("command line and control plane may be of different versions")
        })
    }

    fn request(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<reqwest::RequestBuilder, Problem> {
        let token = self.token.as_ref().map_err(|path| {
            Problem::could_not("there is no token for the control plane").hint(format!(
                "set `TOWPATH_TOKEN` or `TOWPATH_TOKEN_FILE`; on its own machine, the control plane keeps it in `{}`",
                path.display()
            ))
        })?;
        let mut url = self.server.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["api", "v1"]).extend(path);
        }
        Ok(self
            .http
            .request(method, url)
            .query(query)
            .bearer_auth(token))
    }

    async fn check(&self, sent: reqwest::Result<Response>) -> Result<Response, Problem> {
        let response = sent.map_err(|error| self.unreachable(error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = response.text().await.unwrap_or_default();
        Err(refusal(status, &text))
    }

    fn unreachable(&self, error: reqwest::Error) -> Problem {
        let address = self.server.as_str().trim_end_matches('/');
        let problem = if error.is_timeout() {
            Problem::could_not(format!("the control plane at {address} does not answer"))
        } else {
            Problem::could_not(format!("the control plane cannot be reached at {address}"))
        };
        problem
            .because(&innermost(&error.without_url()))
            .hint("start it with `towpath serve`, or pass `--server <url>`")
    }
}

/// The cause that says most.
fn innermost(error: &reqwest::Error) -> std::io::Error {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text = error.to_string();
        source = error.source();
    }
    std::io::Error::other(text)
}

fn refusal(status: StatusCode, text: &str) -> Problem {
    let exit = match status {
        StatusCode::UNAUTHORIZED => ExitStatus::CouldNot,
        status if status.is_client_error() => ExitStatus::No,
        _ => ExitStatus::CouldNot,
    };
    let Ok(body) = serde_json::from_str::<ErrorBody>(text) else {
        let message = format!("the server answered {status}, and not as a control plane does");
        return Problem::could_not(message).hint("is `--server` the right address?");
    };
    Problem {
        status: exit,
        message: body.error.message,
        causes: Vec::new(),
        hint: body.error.hint,
        findings: body.error.diagnostics,
    }
}

fn find_token(source: &TokenSource) -> Result<Result<String, PathBuf>, Problem> {
    if let Some(token) = source.token.as_ref().filter(|token| !token.is_empty()) {
        return Ok(Ok(token.trim().to_owned()));
    }
    let (path, is_named) = match &source.file {
        Some(path) => (path.clone(), true),
        None => (crate::serve::token_path(&source.data), false),
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Ok(text.trim().to_owned())),
        // Said when it is needed: `--help` and `check` do without.
        Err(error) if !is_named && error.kind() == std::io::ErrorKind::NotFound => Ok(Err(path)),
        Err(error) => Err(Problem::could_not(format!(
            "cannot read the token in `{}`",
            path.display()
        ))
        .because(&error)),
    }
}

fn http_client() -> Result<reqwest::Client, Problem> {
    let roots = RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    let failed =
        |error: &dyn std::error::Error| Problem::could_not("cannot set up TLS").because(error);
    let tls =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(&error))?
            .with_root_certificates(roots)
            .with_no_client_auth();
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .connect_timeout(CONNECT)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("towpath/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| failed(&error))
}
