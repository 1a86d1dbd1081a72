//! Which certificates a connection trusts, by the word that libpq has for it.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use crate::server::SetupError;

/// What a connection asks of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// `disable`: none.
    Plain,
    /// `prefer`: whatever the server has.
    Whatever,
    /// `require`: it is encrypted, whoever the server is.
    Encrypted,
    /// `verify-ca`, `verify-full`: it is encrypted, and the server is who it says it is.
    Verified,
}

impl Trust {
    pub(crate) fn read(word: &str) -> Option<Self> {
        Some(match word {
            "disable" => Self::Plain,
            "allow" | "prefer" => Self::Whatever,
            "require" => Self::Encrypted,
            "verify-ca" | "verify-full" => Self::Verified,
            _ => return None,
        })
    }
}

/// Makes the TLS settings. `certificates`, with where they are from, are trusted beside the
/// authorities of the web.
pub(crate) fn tls(
    trust: Trust,
    certificates: &[(String, Vec<u8>)],
) -> Result<ClientConfig, SetupError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    if trust != Trust::Verified {
        let anyone = Arc::new(Anyone(provider));
        return Ok(builder
            .dangerous()
            .with_custom_certificate_verifier(anyone)
            .with_no_client_auth());
    }
    let mut roots: RootCertStore = webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect();
    for (place, pem) in certificates {
        let unusable = |source: Box<dyn std::error::Error + Send + Sync>| {
            let place = place.clone();
            SetupError::Certificates { place, source }
        };
        let mut any = false;
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|error| unusable(error.into()))?;
            // A bundle may hold certificates that cannot be a root; the others still count.
            any |= roots.add_parsable_certificates([certificate]).0 > 0;
        }
        if !any {
            return Err(unusable("there is no certificate in it, in PEM".into()));
        }
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// Takes every certificate, as libpq does with `sslmode=require`: nobody who only listens can read
/// the connection, but somebody in between can.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
