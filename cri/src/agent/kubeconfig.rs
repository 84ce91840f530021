//! Which API server, and as whom: a kubeconfig file (`v1.Config` of client-go), or a pod's service account.
//!
//! Ways to an identity that run other programs are refused by name, and so is what would take the server's identity on trust.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;

/// Larger than any kubeconfig with its certificates.
const MAX_BYTES: u64 = 1 << 20;
/// Where a pod finds its identity.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Why a kubeconfig cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It says something that cannot be used.
    #[error("{path}: {why}")]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// There is no kubeconfig and this is no pod.
    #[error("no kubeconfig is given (--kubeconfig FILE), and this is no pod with a service account")]
    Nowhere,
}

/// A server and an identity.
#[derive(Clone, Debug)]
pub struct Access {
    /// `https://10.0.0.1:6443`, without a slash at the end.
    pub server: String,
    /// Certificates, ours and the server's.
    pub tls: ClientConfig,
    /// How requests are signed.
    pub token: Token,
}

/// A bearer token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// The client certificate says enough.
    None,
    /// As given.
    Fixed(String),
    /// Read again for each request: it is replaced before it expires.
    File(PathBuf),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct File {
    current_context: String,
    contexts: Vec<Named<Context>>,
    clusters: Vec<Named<Cluster>>,
    users: Vec<Named<User>>,
}

#[derive(Debug, Deserialize)]
struct Named<T> {
    name: String,
    #[serde(alias = "context", alias = "cluster", alias = "user")]
    value: T,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Context {
    cluster: String,
    user: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    insecure_skip_tls_verify: bool,
    tls_server_name: Option<String>,
    proxy_url: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct User {
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    username: Option<String>,
    exec: Option<serde_json::Value>,
    auth_provider: Option<serde_json::Value>,
}

impl Access {
    /// Reads a kubeconfig and takes its current context.
    ///
    /// # Errors
    /// The file, a file it names, or something it says; named by its key.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let refuse = |why: String| Error::Unusable { path: path.to_owned(), why };
        let text = read(path)?;
        let file: File = serde_saphyr::from_slice(&text).map_err(|e| {
            // Without the lines around it: they may hold a token.
            refuse(e.without_snippet().to_string())
        })?;
        let current = &file.current_context;
        let context = pick(&file.contexts, current).map_err(&refuse)?;
        let cluster = pick(&file.clusters, &context.cluster).map_err(&refuse)?;
        let user = pick(&file.users, &context.user).map_err(&refuse)?;
        let not_built = [
            ("insecure-skip-tls-verify", cluster.insecure_skip_tls_verify),
            ("tls-server-name", cluster.tls_server_name.is_some()),
            ("proxy-url", cluster.proxy_url.is_some()),
            ("username", user.username.is_some()),
            ("exec", user.exec.is_some()),
            ("auth-provider", user.auth_provider.is_some()),
        ];
        if let Some((key, _)) = not_built.into_iter().find(|(_, given)| *given) {
            return Err(refuse(format!("{key} is not supported")));
        }
        let beside = |file: &PathBuf| path.parent().unwrap_or(Path::new("/")).join(file);
        let pem = |file: &Option<PathBuf>, data: &Option<String>, key: &str| match (data, file) {
            (Some(data), _) => {
                STANDARD.decode(data.trim()).map(Some).map_err(|e| refuse(format!("{key}-data: {e}")))
            }
            (None, Some(file)) => read(&beside(file)).map(Some),
            (None, None) => Ok(None),
        };
        let ca = pem(
            &cluster.certificate_authority,
            &cluster.certificate_authority_data,
            "certificate-authority",
        )?;
        let certificate = pem(&user.client_certificate, &user.client_certificate_data, "client-certificate")?;
        let key = pem(&user.client_key, &user.client_key_data, "client-key")?;
        let token = match (&user.token, &user.token_file) {
            (_, Some(file)) => Token::File(beside(file)),
            (Some(token), None) => Token::Fixed(token.clone()),
            (None, None) => Token::None,
        };
        let server = cluster.server.trim_end_matches('/').to_owned();
        let tls = tls(&server, ca.as_deref(), certificate.as_deref().zip(key.as_deref())).map_err(&refuse)?;
        Ok(Self { server, tls, token })
    }

    /// The identity that every pod with a service account has.
    ///
    /// # Errors
    /// This is no such pod; its files cannot be used.
    pub fn of_pod() -> Result<Self, Error> {
        let variable = |name| std::env::var(name).map_err(|_| Error::Nowhere);
        let (host, port) = (variable("KUBERNETES_SERVICE_HOST")?, variable("KUBERNETES_SERVICE_PORT")?);
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let server = format!("https://{host}:{port}");
        let directory = Path::new(SERVICE_ACCOUNT);
        let path = directory.join("ca.crt");
        let tls = tls(&server, Some(&read(&path)?), None).map_err(|why| Error::Unusable { path, why })?;
        Ok(Self { server, tls, token: Token::File(directory.join("token")) })
    }
}

fn pick<'a, T>(all: &'a [Named<T>], name: &str) -> Result<&'a T, String> {
    let found = all.iter().find(|entry| entry.name == name);
    found.map(|entry| &entry.value).ok_or_else(|| format!("there is no entry \"{name}\""))
}

fn tls(server: &str, ca: Option<&[u8]>, own: Option<(&[u8], &[u8])>) -> Result<ClientConfig, String> {
    if !server.starts_with("https://") && !server.starts_with("http://") {
        return Err(format!("server \"{server}\" is no http or https address"));
    }
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.unwrap_or_default()) {
        let certificate = certificate.map_err(|e| format!("certificate-authority: {e}"))?;
        roots.add(certificate).map_err(|e| format!("certificate-authority: {e}"))?;
    }
    if roots.is_empty() && server.starts_with("https://") {
        return Err("certificate-authority names no certificate that the server could be known by".into());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots);
    let Some((certificate, key)) = own else { return Ok(builder.with_no_client_auth()) };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
    let chain = chain.map_err(|e| format!("client-certificate: {e}"))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| format!("client-key: {e}"))?;
    builder.with_client_auth_cert(chain, key).map_err(|e| format!("client-certificate: {e}"))
}

/// A whole file, if it is of a reasonable size.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    use std::io::Read;
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Error::Unusable { path: path.to_owned(), why: "it is larger than 1 MiB".into() });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(name: &str, text: &str) -> Result<Access, Error> {
        let file = std::env::temp_dir().join(format!("berth-kubeconfig-{}-{name}", std::process::id()));
        std::fs::write(&file, text).unwrap();
        let access = Access::from_file(&file);
        std::fs::remove_file(&file).unwrap();
        access
    }

    const GOOD: &str = "apiVersion: v1
kind: Config
preferences: {}
current-context: c
contexts:
- name: other
  context: {cluster: x, user: y}
- name: c
  context:
    cluster: k
    user: agent
    namespace: default
clusters:
- {name: k, cluster: {server: 'http://127.0.0.1:8080/'}}
users:
- name: agent
  user:
    token: abc
";

    #[test]
    fn the_current_context_is_taken() {
        let access = load("good", GOOD).unwrap();
        assert_eq!(access.server, "http://127.0.0.1:8080");
        assert_eq!(access.token, Token::Fixed("abc".into()));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (name, from, to, says) in [
            ("exec", "token: abc", "exec: {command: aws}", "exec is not supported"),
            ("skip", "server: '", "insecure-skip-tls-verify: true, server: '", "insecure-skip-tls-verify"),
            ("context", "current-context: c", "current-context: z", "no entry \"z\""),
            ("ca", "http://", "https://", "certificate-authority"),
            ("server", "http://", "ftp://", "no http or https"),
            ("yaml", "users:", "users: [", "line"),
        ] {
            let error = load(name, &GOOD.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(says), "{name}: {error}");
        }
    }
}
