//! TLS against a real server, whose certificate is made for the test.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use towpath_step_http::{Answer, Client, Failure, HeaderMap, Method, Request, Settings};

/// Starts a server at `localhost`, and returns its port and its certificate.
async fn serve(servers: &mut JoinSet<()>) -> (u16, String) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("localhost:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    servers.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A client that does not trust the certificate breaks off.
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            let mut request = [0; 4096];
            if stream.read(&mut request).await.is_ok() {
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
                stream.write_all(answer).await.unwrap();
                stream.shutdown().await.unwrap();
            }
        }
    });
    (port, made.cert.pem())
}

async fn ask(port: u16, certificates: Option<PathBuf>) -> Result<Answer, Failure> {
    let client = Client::new(&Settings {
        timeout: Duration::from_secs(10),
        user_agent: "test".to_owned(),
        answer_bytes_max: 100,
        certificates,
    });
    let request = Request {
        method: Method::GET,
        url: format!("https://localhost:{port}/").parse().unwrap(),
        headers: HeaderMap::new(),
        body: None,
    };
    client.unwrap().send(request).await
}

#[tokio::test]
async fn a_server_is_trusted_only_if_its_certificate_is() {
    let mut servers = JoinSet::new();
    let (port, certificate) = serve(&mut servers).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("more.pem");
    std::fs::write(&file, certificate).unwrap();

    let answer = ask(port, Some(file)).await.unwrap();
    assert_eq!(
        (answer.status.as_u16(), &answer.body[..]),
        (200, &b"{}"[..])
    );

    let error = ask(port, None).await.unwrap_err();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    assert!(text.contains("invalid peer certificate"), "{text}");
}

#[test]
fn certificates_that_cannot_be_read_are_named() {
    let settings = |path: PathBuf| Settings {
        timeout: Duration::from_secs(1),
        user_agent: "test".to_owned(),
        answer_bytes_max: 100,
        certificates: Some(path),
    };
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.pem");
    let error = Client::new(&settings(missing.clone())).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot read the certificates in {}", missing.display())
    );
    let broken = folder.path().join("broken.pem");
    std::fs::write(
        &broken,
        "-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    assert!(Client::new(&settings(broken)).is_err());
}
