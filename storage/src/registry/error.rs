//! What a registry, or the way to it, answered instead of what was asked for.

use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::error::{ErrorKind, FileError};

/// What a registry, or the way to it, answered.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's text says it")]
pub enum RegistryError {
    #[error("{host} refused the credentials{}{hint}", detail(.message))]
    Unauthorized { host: String, message: String, hint: &'static str },
    #[error("{what} not found at {host}{}; check the name, and whether the repository needs credentials", detail(.message))]
    NotFound { host: String, what: String, message: String },
    #[error("{host} limits requests{}; wait, or use credentials with a higher limit", detail(.message))]
    RateLimited { host: String, message: String, asked_to_wait: bool },
    #[error("{host} answered {status} to {what}{}", detail(.message))]
    Status { host: String, status: u16, what: String, message: String },
    #[error("no TLS with {host}; see `ca`, `client` and `server` in its hosts.toml")]
    Tls { host: String, source: rustls::Error },
    #[error("cannot reach {host} for {what}")]
    Transport { host: String, what: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("{host} sent nothing for {seconds} seconds during {what}")]
    Stalled { host: String, what: String, seconds: u64 },
    #[error("{host} sent {what} of {found} bytes, expected {expected}")]
    Length { host: String, what: String, expected: u64, found: u64 },
    #[error("{host} sent more than {limit} bytes as {what}")]
    TooLarge { host: String, what: String, limit: u64 },
    #[error("{host} sent {what} with digest {found}")]
    Digest { host: String, what: String, found: Digest },
    #[error("{host} redirects {what} {problem}")]
    Redirect { host: String, what: String, problem: &'static str },
    #[error("token service {realm} of {host} answered {status}{}", detail(.message))]
    Token { host: String, realm: String, status: u16, message: String },
    #[error("{host} asks for authentication in a way that is not understood: {challenge}")]
    Challenge { host: String, challenge: String },
    #[error("the credentials are not usable: {0}")]
    Credentials(&'static str),
    #[error("registry configuration {}{} is wrong: {problem}", path.display(), at(.place))]
    Config { path: PathBuf, place: Option<(usize, usize)>, problem: String },
    #[error("\"{name}\" {problem} (see unqualified-search-registries in {}); name the registry", path.display())]
    ShortName { name: String, path: PathBuf, problem: &'static str },
    #[error("{prefix} is blocked by {}", path.display())]
    Blocked { prefix: String, path: PathBuf },
    #[error("no configured host of {0} may be asked for this (see `capabilities` in hosts.toml)")]
    NoHost(String),
    #[error("all hosts failed: {}", list(.0))]
    All(Vec<RegistryError>),
    #[error(transparent)]
    File(#[from] FileError),
}

fn detail(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(" ({message})") }
}

/// `:LINE:COLUMN`, as compilers write it.
fn at(place: &Option<(usize, usize)>) -> String {
    place.map_or(String::new(), |(line, column)| format!(":{line}:{column}"))
}

fn list(errors: &[RegistryError]) -> String {
    let texts: Vec<String> = errors
        .iter()
        .map(|error| match std::error::Error::source(error) {
            Some(source) => format!("{error}: {}", root_cause(source)),
            None => error.to_string(),
        })
        .collect();
    texts.join("; ")
}

fn root_cause(mut error: &dyn std::error::Error) -> String {
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

impl RegistryError {
    /// A configuration that is wrong as a whole.
    pub(super) fn config(path: &Path, problem: String) -> Self {
        Self::Config { path: path.to_owned(), place: None, problem }
    }

    /// Class of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unauthorized { .. } => ErrorKind::PermissionDenied,
            Self::Token { status: 400..=403, .. } => ErrorKind::PermissionDenied,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Credentials(_) | Self::ShortName { .. } => ErrorKind::InvalidArgument,
            Self::Config { .. } | Self::NoHost(_) => ErrorKind::FailedPrecondition,
            Self::Blocked { .. } => ErrorKind::PermissionDenied,
            Self::Stalled { .. } => ErrorKind::DeadlineExceeded,
            Self::File(error) => error.kind(),
            // The registry itself speaks last and with most authority.
            Self::All(errors) => errors.last().map_or(ErrorKind::Unavailable, Self::kind),
            _ => ErrorKind::Unavailable,
        }
    }

    /// Whether everybody who was asked does not have it.
    pub(crate) fn is_absence(&self) -> bool {
        match self {
            Self::NotFound { .. } => true,
            Self::All(errors) => errors.iter().all(Self::is_absence),
            _ => false,
        }
    }

    /// Whether the same request may succeed a moment later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Transport { .. } | Self::Stalled { .. } | Self::Length { .. } => true,
            Self::RateLimited { asked_to_wait, .. } => *asked_to_wait,
            Self::Status { status, .. } | Self::Token { status, .. } => *status >= 500,
            _ => false,
        }
    }
}
