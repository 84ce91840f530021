//! Where errors go: standard error, and the file of `--log` in the format callers of runc read.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::exec::nanos;
use crate::exec::podd::log::rfc3339;

/// The log of one invocation.
#[derive(Debug)]
pub(super) struct Log {
    path: Option<PathBuf>,
    json: bool,
    debug: bool,
}

impl Log {
    /// Logs to a file, if one is named.
    pub(super) fn new(path: Option<&Path>, json: bool, debug: bool) -> Self {
        Self { path: path.map(Path::to_owned), json, debug }
    }

    /// What makes the command fail.
    pub(super) fn error(&self, text: &str) {
        self.tell("error", text);
    }

    /// What does not make the command fail and should be known.
    pub(super) fn warn(&self, text: &str) {
        self.tell("warning", text);
    }

    /// What helps to see what happened.
    pub(super) fn debug(&self, text: &str) {
        if self.debug {
            self.tell("debug", text);
        }
    }

    fn tell(&self, level: &str, text: &str) {
        let _ = writeln!(std::io::stderr(), "berth oci: {text}");
        let Some(path) = &self.path else { return };
        // One line per event: a control character in a name must not make two of it.
        let line = if self.json {
            serde_json::json!({ "level": level, "msg": text, "time": now() }).to_string()
        } else {
            format!("time=\"{}\" level={level} msg={text:?}", now())
        };
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
        if let Err(error) = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes())) {
            let _ = writeln!(std::io::stderr(), "berth oci: log {}: {error}", path.display());
        }
    }
}

/// The time (RFC 3339).
pub(super) fn now() -> String {
    String::from_utf8_lossy(&rfc3339(nanos(std::time::SystemTime::now()))).into_owned()
}
