//! TLS to a real PostgreSQL, through something in front of it that speaks TLS with a certificate
//! made for the test; and what is said when there is no connection.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use towpath_step::{Fate, StepError};
use towpath_step_postgres::{Server, Settings, Unreachable};

#[expect(dead_code, reason = "other tests use more of it")]
mod scratch;

/// What is in front of PostgreSQL: answers `S` to the request for TLS, and passes on what is inside.
async fn serve_tls(servers: &mut JoinSet<()>, behind: String) -> (u16, String) {
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
        let mut connections = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let (acceptor, behind) = (acceptor.clone(), behind.clone());
            connections.spawn(async move {
                let mut request = [0; 8];
                stream.read_exact(&mut request).await.unwrap();
                assert_eq!(request[4..], [0x04, 0xd2, 0x16, 0x2f], "it asks for TLS");
                stream.write_all(b"S").await.unwrap();
                // A client that does not trust the certificate breaks off.
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    let mut inside = TcpStream::connect(&behind).await.unwrap();
                    drop(copy_bidirectional(&mut stream, &mut inside).await);
                }
            });
        }
    });
    (port, made.cert.pem())
}

/// Login, `host:port`, database of the server of the tests.
fn parts() -> (String, String, String) {
    let url = scratch::url();
    let (login, rest) = url
        .trim_start_matches("postgres://")
        .split_once('@')
        .unwrap();
    let (place, database) = rest.split_once('/').unwrap();
    (login.to_owned(), place.to_owned(), database.to_owned())
}

async fn ask(url: &str, certificates: Option<&str>) -> Result<bool, Unreachable> {
    let settings = Settings {
        url,
        password: None,
        certificates,
        application: "test",
    };
    let session = Server::new(&settings).unwrap().connect().await?;
    Ok(session.client.query("SELECT 1", &[]).await.is_ok())
}

#[tokio::test]
async fn a_server_is_trusted_only_if_its_certificate_is() {
    let mut servers = JoinSet::new();
    let (login, place, database) = parts();
    let (port, certificate) = serve_tls(&mut servers, place).await;
    let url = |mode: &str| format!("postgres://{login}@localhost:{port}/{database}?sslmode={mode}");

    assert!(ask(&url("verify-full"), Some(&certificate)).await.unwrap());
    assert!(
        ask(&url("require"), None).await.unwrap(),
        "encrypted, whoever it is"
    );
    let error = ask(&url("verify-full"), None).await.unwrap_err();
    let told = error.into_step_error().to_string();
    assert!(told.contains("certificate"), "{told}");
}

async fn told(url: &str) -> StepError {
    let error = ask(url, None).await.unwrap_err().into_step_error();
    assert_eq!(error.fate(), Fate::Retry, "a server comes back: {error}");
    assert!(
        !error.to_string().contains("hush"),
        "no reason tells a password: {error}"
    );
    error
}

#[tokio::test]
async fn no_connection_is_tried_again_with_a_reason_that_tells_no_password() {
    let (_, place, database) = parts();
    let refused = told("postgres://u:hush@127.0.0.1:1/shop").await;
    assert_eq!(
        refused.reason(),
        "cannot connect to PostgreSQL at 127.0.0.1:1/shop"
    );
    assert!(refused.to_string().contains("refused"), "{refused}");

    let wrong = told(&format!("postgres://towpath:hush@{place}/{database}")).await;
    assert!(
        wrong
            .to_string()
            .contains("password authentication failed for user \"towpath\""),
        "{wrong}"
    );

    let nowhere = told("postgres://u:hush@no-such-host.invalid/shop").await;
    assert_eq!(
        nowhere.reason(),
        "cannot find the address of `no-such-host.invalid`"
    );

    // The server of the tests has no TLS, and whoever asks for it does not go on without.
    let plain = told(&format!(
        "postgres://u:hush@{place}/{database}?sslmode=require"
    ))
    .await;
    assert!(plain.to_string().contains("TLS"), "{plain}");
}
