//! TLS of one host: system roots, its own roots and client certificates, or no verification if the configuration says so.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::RegistryError;
use super::hosts::Endpoint;

/// The TLS configuration for an endpoint.
pub(super) fn config(endpoint: &Endpoint) -> Result<ClientConfig, RegistryError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| wrong(Path::new("TLS"), &e))?;
    let builder = if endpoint.skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider)))
    } else {
        builder.with_root_certificates(roots(endpoint)?)
    };
    // rustls offers one chain; the first pair is the host's.
    match endpoint.client.first() {
        None => Ok(builder.with_no_client_auth()),
        Some(pair) => {
            let chain = certificates(&pair.certificate)?;
            let key_path = pair.key.as_ref().unwrap_or(&pair.certificate);
            let key = PrivateKeyDer::from_pem_file(key_path).map_err(|e| wrong(key_path, &e))?;
            builder.with_client_auth_cert(chain, key).map_err(|e| wrong(&pair.certificate, &e))
        }
    }
}

/// The system's roots and the endpoint's. A node may have none: then https fails with the verifier's own words.
fn roots(endpoint: &Endpoint) -> Result<RootCertStore, RegistryError> {
    let mut roots = RootCertStore::empty();
    if endpoint.scheme == "https" {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        for path in &endpoint.ca {
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|e| wrong(path, &e))?;
            }
        }
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, RegistryError> {
    let read = CertificateDer::pem_file_iter(path).map_err(|e| wrong(path, &e))?;
    let found: Vec<_> = read.collect::<Result<_, _>>().map_err(|e| wrong(path, &e))?;
    if found.is_empty() {
        return Err(wrong(path, &"it holds no PEM certificate"));
    }
    Ok(found)
}

fn wrong(path: &Path, problem: &dyn std::fmt::Display) -> RegistryError {
    RegistryError::config(path, problem.to_string())
}

/// `skip_verify = true`: takes any certificate, but only with a handshake its key really signed.
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
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
