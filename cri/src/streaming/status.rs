//! The document that closes a command's error stream.
//!
//! From protocol v4 on it is a Kubernetes `meta/v1` Status as JSON, from which the client takes the exit code; before,
//! it is the bare text of a failure, and nothing at all for success.

use serde::Serialize;

use super::handshake::Version;

/// How a session ended, as the client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The command ended with this code, or the container it was attached to ended.
    Exit(i32),
    /// The session could not begin, or broke.
    Failed(String),
}

#[derive(Serialize)]
struct Document<'a> {
    status: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
}

#[derive(Serialize)]
struct Details {
    causes: [Cause; 1],
}

#[derive(Serialize)]
struct Cause {
    reason: &'static str,
    message: String,
}

impl Outcome {
    /// What to write on the error stream; empty: nothing.
    pub(super) fn document(&self, version: Version) -> Vec<u8> {
        let message = self.message();
        if version < Version::V4 {
            return message.into_bytes();
        }
        let document = match self {
            Self::Exit(0) => {
                Document { status: "Success", message: "", reason: None, details: None, code: None }
            }
            Self::Exit(code) => Document {
                status: "Failure",
                message: &message,
                reason: Some("NonZeroExitCode"),
                details: Some(Details { causes: [Cause { reason: "ExitCode", message: code.to_string() }] }),
                code: None,
            },
            Self::Failed(_) => Document {
                status: "Failure",
                message: &message,
                reason: Some("InternalError"),
                details: None,
                code: Some(500),
            },
        };
        // Strings and numbers always serialise; an empty document would read as success, so say failure by hand.
        serde_json::to_vec(&document).unwrap_or_else(|_| br#"{"status":"Failure"}"#.to_vec())
    }

    fn message(&self) -> String {
        match self {
            Self::Exit(0) => String::new(),
            Self::Exit(code) => format!("command terminated with non-zero exit code: exit code {code}"),
            Self::Failed(why) => format!("Internal error occurred: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(outcome: &Outcome, version: Version) -> String {
        String::from_utf8(outcome.document(version)).unwrap()
    }

    #[test]
    fn documents_read_as_kubernetes_clients_expect() {
        assert_eq!(text(&Outcome::Exit(0), Version::V4), r#"{"status":"Success"}"#);
        assert_eq!(
            text(&Outcome::Exit(42), Version::V5),
            concat!(
                r#"{"status":"Failure","message":"command terminated with non-zero exit code: exit code 42","#,
                r#""reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"42"}]}}"#
            )
        );
        assert_eq!(
            text(&Outcome::Failed("error executing command in container: no \"x\"".into()), Version::V4),
            concat!(
                r#"{"status":"Failure","message":"Internal error occurred: error executing command in container: "#,
                r#"no \"x\"","reason":"InternalError","code":500}"#
            )
        );
    }

    #[test]
    fn before_v4_a_failure_is_plain_text_and_success_is_silence() {
        assert_eq!(text(&Outcome::Exit(0), Version::V3), "");
        assert_eq!(
            text(&Outcome::Exit(1), Version::V1),
            "command terminated with non-zero exit code: exit code 1"
        );
    }
}
