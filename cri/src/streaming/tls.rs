//! The server's certificate: made at start, or read from files.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use super::Tls;

/// Why there is no certificate to show.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// The file of client certificate authorities is of no use.
    #[error("cannot use the client certificate authorities in {path}")]
    ClientCa {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: VerifierBuilderError,
    },
    /// Certificate and key do not fit, or one of them is of an unknown kind.
    #[error("cannot use the certificate and its key")]
    Use(#[source] rustls::Error),
    /// The self-signed certificate cannot be made.
    #[error("cannot make a self-signed certificate")]
    Make(#[source] rcgen::Error),
}

/// TLS 1.2 and 1.3 with HTTP/1.1. `bound` and `advertised` become names of a self-signed certificate.
pub(super) fn acceptor(tls: &Tls, bound: IpAddr, advertised: Option<&str>) -> Result<TlsAcceptor, TlsError> {
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Use)?;
    let (builder, chain, key) = match tls {
        Tls::SelfSigned => {
            let (certificate, key) = self_signed(bound, advertised).map_err(TlsError::Make)?;
            (builder.with_no_client_auth(), vec![certificate], key)
        }
        Tls::Files { certificate, key, client_ca } => {
            let builder = match client_ca {
                Some(path) => builder.with_client_cert_verifier(verifier(path)?),
                None => builder.with_no_client_auth(),
            };
            let key = PrivateKeyDer::from_pem_file(key).map_err(|source| read(key, source))?;
            (builder, certificates(certificate)?, key)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(TlsError::Use)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn self_signed(
    bound: IpAddr,
    advertised: Option<&str>,
) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), rcgen::Error> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    names.extend((!bound.is_unspecified() && !bound.is_loopback()).then(|| bound.to_string()));
    names.extend(advertised.map(str::to_owned));
    let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(names)?;
    let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der());
    Ok((cert.der().clone(), key.into()))
}

fn verifier(path: &Path) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(TlsError::Use)?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(ring::default_provider()))
        .build()
        .map_err(|source| TlsError::ClientCa { path: path.to_owned(), source })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = CertificateDer::pem_file_iter(path).map_err(|source| read(path, source))?;
    let certificates = certificates.collect::<Result<Vec<_>, _>>().map_err(|source| read(path, source))?;
    if certificates.is_empty() {
        let source = io::Error::new(io::ErrorKind::InvalidData, "no certificate in it");
        return Err(read(path, pem::Error::Io(source)));
    }
    Ok(certificates)
}

fn read(path: &Path, source: pem::Error) -> TlsError {
    TlsError::Read { path: path.to_owned(), source }
}
