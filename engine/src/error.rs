//! The engine's error: what happened, to which object, and which class of answer it deserves.

use std::fmt;
use std::sync::Arc;

/// Class of an error. The `cri` crate maps it to a gRPC code; nothing else depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The named object does not exist.
    NotFound,
    /// The request cannot be honoured as it stands; names the field.
    InvalidArgument,
    /// The object is in the wrong state.
    FailedPrecondition,
    /// Something by that name exists and is another.
    AlreadyExists,
    /// A limit is reached.
    ResourceExhausted,
    /// Credentials are missing or refused.
    PermissionDenied,
    /// The caller's deadline passed.
    DeadlineExceeded,
    /// The caller went away.
    Cancelled,
    /// Try again later.
    Unavailable,
    /// Not built yet; names itself.
    Unimplemented,
    /// Anything else.
    Internal,
}

/// An error with its class and cause. Cloning shares the cause: several callers may wait for one job.
#[derive(Clone, Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error without a cause.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// An error with its cause; the cause's text is not repeated in `message`.
    pub fn with(
        kind: Kind,
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { kind, message: message.into(), source: Some(Arc::from(source.into())) }
    }

    /// A driver's error: its text and those of its causes, on one line.
    pub fn of(kind: Kind, error: &dyn std::error::Error) -> Self {
        Self::new(kind, chain(error))
    }

    /// The named object does not exist.
    pub fn not_found(what: &str, id: &str) -> Self {
        Self::new(Kind::NotFound, format!("{what} \"{id}\" not found"))
    }

    /// A field of the request cannot be honoured.
    pub fn invalid(field: &str, why: impl fmt::Display) -> Self {
        Self::new(Kind::InvalidArgument, format!("{field}: {why}"))
    }

    /// The same error with more words in front: `context: message`.
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }

    /// Class of the error.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The message and all its causes on one line: what a client is shown.
    pub fn chain(&self) -> String {
        chain(self)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

/// An error and all its causes on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
