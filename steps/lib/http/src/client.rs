//! One client for all requests of a step.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{HeaderMap, LOCATION};
use reqwest::{Method, Response, StatusCode, Url, redirect};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use crate::answer::Answer;

/// How many redirects are followed, all of them within one origin.
const REDIRECTS_MAX: usize = 5;

/// How many bytes are kept of an answer that is no success: enough for a reason.
const COMPLAINT_BYTES_MAX: usize = 16 << 10;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a body that is read piece by piece may take in all: whoever reads it has limits of its
/// own, but the client below wants one.
const STREAM_TIMEOUT: Duration = Duration::from_hours(30 * 24);

/// How a client behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long one request may take, its whole answer included.
    pub timeout: Duration,
    /// The `User-Agent`.
    pub user_agent: String,
    /// The largest answer, in bytes.
    pub answer_bytes_max: usize,
    /// A file of certificates to trust beside the authorities of the web: what the environment
    /// variable `SSL_CERT_FILE` names.
    pub certificates: Option<PathBuf>,
}

/// A client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The file of certificates cannot be used.
    #[error("cannot read the certificates in {}", path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: rustls::pki_types::pem::Error,
    },
    /// TLS cannot be set up.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// The client cannot be built.
    #[error("cannot set up the HTTP client")]
    Client(#[from] reqwest::Error),
}

/// What to ask.
#[derive(Debug, Clone)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// Where.
    pub url: Url,
    /// The headers.
    pub headers: HeaderMap,
    /// The body; none for a request without one.
    pub body: Option<Bytes>,
}

/// No answer, or none that can be used.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The server could not be reached, or broke off, or took too long.
    #[error("no answer from {host}")]
    NoAnswer {
        /// The server.
        host: String,
        /// Why not; it holds no URL.
        source: reqwest::Error,
    },
    /// The answer did not begin, or did not go on, in time.
    #[error("{host} took longer than {limit:?} to answer")]
    TooSlow {
        /// The server.
        host: String,
        /// The limit.
        limit: Duration,
    },
    /// A successful answer is larger than allowed.
    #[error("the answer is larger than {max} bytes")]
    TooLarge {
        /// The limit.
        max: usize,
    },
    /// The server answers with a redirect that is not followed.
    #[error("the server answered {status}, a redirect to {target}, which {why}")]
    Redirect {
        /// The status.
        status: StatusCode,
        /// The origin and path it leads to, without a query.
        target: String,
        /// Why it is not followed.
        why: &'static str,
    },
}

impl Failure {
    /// Says whether the same request may succeed later.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::NoAnswer { .. } | Self::TooSlow { .. })
    }
}

/// An HTTP client; cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    inner: reqwest::Client,
    answer_bytes_max: usize,
    timeout: Duration,
}

impl Client {
    /// Makes a client. It needs no certificates in the image it runs in.
    pub fn new(settings: &Settings) -> Result<Self, SetupError> {
        let inner = reqwest::Client::builder()
            .tls_backend_preconfigured(tls(settings.certificates.as_deref())?)
            .user_agent(settings.user_agent.as_str())
            .timeout(settings.timeout)
            .connect_timeout(CONNECT_TIMEOUT.min(settings.timeout))
            .redirect(redirect::Policy::none())
            .build()?;
        Ok(Self {
            inner,
            answer_bytes_max: settings.answer_bytes_max,
            timeout: settings.timeout,
        })
    }

    /// Sends a request and reads the answer, following redirects within the origin.
    pub async fn send(&self, request: Request) -> Result<Answer, Failure> {
        self.follow(request, None).await?.whole().await
    }

    /// Sends a request as [`Client::send`] does, and leaves the body to be read piece by piece.
    /// The client's time limit is for the beginning of the answer; how long to wait for each
    /// piece of the body is the caller's to decide.
    pub async fn open(&self, request: Request) -> Result<Opened, Failure> {
        let url = request.url.clone();
        let opened = self.follow(request, Some(STREAM_TIMEOUT));
        match tokio::time::timeout(self.timeout, opened).await {
            Ok(opened) => opened,
            Err(_) => Err(Failure::TooSlow {
                host: host(&url),
                limit: self.timeout,
            }),
        }
    }

    async fn follow(
        &self,
        mut request: Request,
        timeout: Option<Duration>,
    ) -> Result<Opened, Failure> {
        for _ in 0..=REDIRECTS_MAX {
            let response = self.ask(&request, timeout).await?;
            match redirected(&request, response.status(), response.headers())? {
                Some(url) => request.url = url,
                None => {
                    return Ok(Opened {
                        status: response.status(),
                        headers: response.headers().clone(),
                        url: request.url,
                        response,
                        answer_bytes_max: self.answer_bytes_max,
                    });
                }
            }
        }
        Err(Failure::Redirect {
            status: StatusCode::LOOP_DETECTED,
            target: without_query(&request.url),
            why: "is one too many",
        })
    }

    async fn ask(&self, request: &Request, timeout: Option<Duration>) -> Result<Response, Failure> {
        let mut builder = self
            .inner
            .request(request.method.clone(), request.url.clone())
            .headers(request.headers.clone());
        if let Some(body) = &request.body {
            builder = builder.body(body.clone());
        }
        if let Some(timeout) = timeout {
            builder = builder.timeout(timeout);
        }
        let sent = builder.send().await;
        sent.map_err(|error| no_answer(&request.url, error))
    }
}

/// An answer whose body is still to be read.
#[derive(Debug)]
pub struct Opened {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Where it comes from, after redirects.
    pub url: Url,
    response: Response,
    answer_bytes_max: usize,
}

impl Opened {
    /// Reads the next piece of the body; none at its end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Failure> {
        let chunk = self.response.chunk().await;
        chunk.map_err(|error| no_answer(&self.url, error))
    }

    /// Reads the rest of the answer, up to the client's limit.
    pub async fn whole(mut self) -> Result<Answer, Failure> {
        let (status, max) = (self.status, self.answer_bytes_max);
        let mut body = BytesMut::new();
        loop {
            let chunk = match self.response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                // The status says enough: what it would have said beside it is lost.
                Err(_) if !status.is_success() => break,
                Err(error) => return Err(no_answer(&self.url, error)),
            };
            if status.is_success() && body.len() + chunk.len() > max {
                return Err(Failure::TooLarge { max });
            }
            body.extend_from_slice(&chunk);
            if !status.is_success() && body.len() >= COMPLAINT_BYTES_MAX.min(max) {
                body.truncate(COMPLAINT_BYTES_MAX.min(max));
                break;
            }
        }
        Ok(Answer {
            status,
            headers: self.headers,
            body: body.freeze(),
            url: self.url,
        })
    }
}

fn no_answer(url: &Url, error: reqwest::Error) -> Failure {
    Failure::NoAnswer {
        host: host(url),
        source: error.without_url(),
    }
}

fn host(url: &Url) -> String {
    url.host_str().unwrap_or_default().to_owned()
}

/// Decides where a redirect leads: nowhere if the answer is none, and never to another origin or
/// by another method.
fn redirected(
    request: &Request,
    status: StatusCode,
    headers: &HeaderMap,
) -> Result<Option<Url>, Failure> {
    if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let target = headers
        .get(LOCATION)
        .and_then(|target| target.to_str().ok());
    let Some(target) = target.and_then(|target| request.url.join(target).ok()) else {
        return Ok(None);
    };
    let refuse = |why| {
        Err(Failure::Redirect {
            status,
            target: without_query(&target),
            why,
        })
    };
    if target.origin() != request.url.origin() {
        return refuse("is another origin");
    }
    let keeps_method = matches!(status.as_u16(), 307 | 308)
        || matches!(request.method, Method::GET | Method::HEAD);
    if !keeps_method {
        return refuse("would change the method");
    }
    Ok(Some(target))
}

fn without_query(url: &Url) -> String {
    format!("{}{}", url.origin().ascii_serialization(), url.path())
}

fn tls(certificates: Option<&Path>) -> Result<ClientConfig, SetupError> {
    let roots = webpki_roots::TLS_SERVER_ROOTS.iter().cloned();
    let mut roots: RootCertStore = roots.collect();
    if let Some(path) = certificates {
        let unreadable = |source| SetupError::Certificates {
            path: path.to_owned(),
            source,
        };
        let pem =
            fs::read(path).map_err(|error| unreadable(rustls::pki_types::pem::Error::Io(error)))?;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            // A bundle may hold certificates that cannot be a root; the others still count.
            roots.add_parsable_certificates([certificate.map_err(unreadable)?]);
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use std::error::Error;
    use std::time::Duration;

    use wiremock::matchers::{body_string, header, method, path};
    use wiremock::{Mock, MockServer, ResponseTemplate};

    use super::*;

    fn client() -> Client {
        Client::new(&Settings {
            timeout: Duration::from_millis(500),
            user_agent: "towpath-test".into(),
            answer_bytes_max: 1000,
            certificates: None,
        })
        .unwrap()
    }

    fn request(method: Method, url: &str) -> Request {
        Request {
            method,
            url: url.parse().unwrap(),
            headers: HeaderMap::new(),
            body: None,
        }
    }

    #[tokio::test]
    async fn an_answer_is_bounded() {
        let server = MockServer::start().await;
        let large = ResponseTemplate::new(200).set_body_string("x".repeat(1001));
        Mock::given(path("/large"))
            .respond_with(large)
            .mount(&server)
            .await;
        let whole = ResponseTemplate::new(200).set_body_string("x".repeat(1000));
        Mock::given(path("/whole"))
            .respond_with(whole)
            .mount(&server)
            .await;
        let angry = ResponseTemplate::new(500).set_body_string("x".repeat(5000));
        Mock::given(path("/angry"))
            .respond_with(angry)
            .mount(&server)
            .await;

        let url = |at: &str| format!("{}{at}", server.uri());
        let error = client()
            .send(request(Method::GET, &url("/large")))
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "the answer is larger than 1000 bytes");
        assert!(!error.may_pass());
        let answer = client()
            .send(request(Method::GET, &url("/whole")))
            .await
            .unwrap();
        assert_eq!(answer.body.len(), 1000);
        let answer = client()
            .send(request(Method::GET, &url("/angry")))
            .await
            .unwrap();
        assert_eq!((answer.status.as_u16(), answer.body.len()), (500, 1000));
    }

    #[tokio::test]
    async fn credentials_stay_at_their_origin() {
        let home = MockServer::start().await;
        let stranger = MockServer::start().await;
        let away = format!("{}/steal?secret=1", stranger.uri());
        let redirect = ResponseTemplate::new(302).insert_header("location", away.as_str());
        Mock::given(path("/away"))
            .respond_with(redirect)
            .mount(&home)
            .await;
        let redirect = ResponseTemplate::new(302).insert_header("location", "/here");
        Mock::given(path("/near"))
            .respond_with(redirect)
            .mount(&home)
            .await;
        let here = ResponseTemplate::new(200).set_body_string("here");
        Mock::given(path("/here"))
            .and(header("authorization", "me"))
            .respond_with(here)
            .mount(&home)
            .await;

        let mut asked = request(Method::GET, &format!("{}/away", home.uri()));
        asked.headers.insert("authorization", "me".parse().unwrap());
        let error = client().send(asked.clone()).await.unwrap_err().to_string();
        assert!(
            error.ends_with("/steal, which is another origin"),
            "{error}"
        );
        assert!(!error.contains("secret"), "{error}");
        assert!(stranger.received_requests().await.unwrap().is_empty());

        asked.url.set_path("/near");
        let answer = client().send(asked).await.unwrap();
        assert_eq!(answer.body, "here");
        assert_eq!(answer.url.path(), "/here");
    }

    #[tokio::test]
    async fn a_method_is_never_changed() {
        let server = MockServer::start().await;
        let found = ResponseTemplate::new(302).insert_header("location", "/new");
        Mock::given(path("/old"))
            .respond_with(found)
            .mount(&server)
            .await;
        let moved = ResponseTemplate::new(308).insert_header("location", "/new");
        Mock::given(path("/moved"))
            .respond_with(moved)
            .mount(&server)
            .await;
        let new = Mock::given(method("POST"))
            .and(path("/new"))
            .and(body_string("order"));
        new.respond_with(ResponseTemplate::new(201))
            .expect(1)
            .mount(&server)
            .await;

        let mut asked = request(Method::POST, &format!("{}/old", server.uri()));
        asked.body = Some("order".into());
        let error = client().send(asked.clone()).await.unwrap_err().to_string();
        assert!(error.ends_with("which would change the method"), "{error}");
        asked.url.set_path("/moved");
        assert_eq!(
            client().send(asked).await.unwrap().status,
            StatusCode::CREATED
        );
    }

    #[tokio::test]
    async fn a_circle_of_redirects_ends() {
        let server = MockServer::start().await;
        let round = ResponseTemplate::new(307).insert_header("location", "/round");
        Mock::given(path("/round"))
            .respond_with(round)
            .expect(6)
            .mount(&server)
            .await;
        let asked = request(Method::GET, &format!("{}/round", server.uri()));
        let error = client().send(asked).await.unwrap_err();
        assert!(
            error.to_string().ends_with("which is one too many"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn silence_and_refusal_may_pass_and_tell_no_query() {
        let server = MockServer::start().await;
        let slow = ResponseTemplate::new(200).set_delay(Duration::from_secs(20));
        Mock::given(path("/slow"))
            .respond_with(slow)
            .mount(&server)
            .await;
        for url in [
            format!("{}/slow?token=hush", server.uri()),
            "http://127.0.0.1:9/?token=hush".into(),
        ] {
            let error = client().send(request(Method::GET, &url)).await.unwrap_err();
            assert!(error.may_pass());
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                text = format!("{text}: {error}");
                cause = error.source();
            }
            assert!(text.starts_with("no answer from 127.0.0.1: "), "{text}");
            assert!(!text.contains("hush"), "{text}");
        }
    }
}
