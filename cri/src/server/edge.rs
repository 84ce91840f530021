//! What every call passes: its deadline on the way in; code and log line on the way out.

use std::time::{Duration, Instant};

use engine::{Error, Kind};
use hyper::HeaderMap;
use tonic::{Code, Request, Response, Status};

use super::Service;
use crate::telemetry::Telemetry;

/// Most characters of an error's text: it travels in a header, of which clients take 8 KiB and less, and stands in the log.
const LONGEST_TEXT: usize = 1024;

/// When the caller stops waiting; `None`: never.
pub type Deadline = Option<Instant>;

/// A call being answered.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Name of the RPC.
    pub name: &'static str,
    /// The caller's deadline.
    pub deadline: Deadline,
    started: Instant,
    telemetry: &'a Telemetry,
}

impl Service {
    /// Notes the deadline of a request that has just arrived.
    pub fn call<T>(&self, name: &'static str, request: &Request<T>) -> Call<'_> {
        let started = Instant::now();
        let deadline = timeout(request.metadata().as_ref()).and_then(|t| started.checked_add(t));
        Call { name, deadline, started, telemetry: &self.telemetry }
    }
}

impl Call<'_> {
    /// The answer as gRPC has it. Errors are logged here and nowhere else.
    pub fn answer<T>(self, result: Result<T, Error>) -> Result<Response<T>, Status> {
        let took = self.started.elapsed();
        match result {
            Ok(answer) => {
                self.telemetry.call(self.name, took, Code::Ok);
                tracing::debug!(rpc = self.name, ?took, "answered");
                Ok(Response::new(answer))
            }
            Err(error) => {
                let message = readable(&error.chain());
                self.telemetry.call(self.name, took, code(error.kind()));
                match error.kind() {
                    Kind::Internal => tracing::error!(rpc = self.name, ?took, "{message}"),
                    Kind::NotFound | Kind::Cancelled => tracing::debug!(rpc = self.name, ?took, "{message}"),
                    _ => tracing::warn!(rpc = self.name, ?took, "{message}"),
                }
                Err(Status::new(code(error.kind()), message))
            }
        }
    }
}

/// The gRPC code of an error class.
pub fn code(kind: Kind) -> Code {
    match kind {
        Kind::NotFound => Code::NotFound,
        Kind::InvalidArgument => Code::InvalidArgument,
        Kind::FailedPrecondition => Code::FailedPrecondition,
        Kind::AlreadyExists => Code::AlreadyExists,
        Kind::ResourceExhausted => Code::ResourceExhausted,
        Kind::PermissionDenied => Code::PermissionDenied,
        Kind::DeadlineExceeded => Code::DeadlineExceeded,
        Kind::Cancelled => Code::Cancelled,
        Kind::Unavailable => Code::Unavailable,
        Kind::Unimplemented => Code::Unimplemented,
        Kind::Internal => Code::Internal,
    }
}

/// A text as one line that can be read whoever has chosen the names in it: control characters are escaped, and a long one
/// loses its middle, since the beginning tells what failed and the end why.
fn readable(text: &str) -> String {
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    let count = text.chars().count();
    if count <= LONGEST_TEXT {
        return text.chars().map(escape).collect();
    }
    let end = LONGEST_TEXT / 4;
    let begin = text.chars().take(LONGEST_TEXT - end).map(escape);
    begin.chain(["…".to_owned()]).chain(text.chars().skip(count - end).map(escape)).collect()
}

/// The `grpc-timeout` header: at most eight digits and a unit (gRPC over HTTP/2, "Timeout"). Anything else is no
/// deadline.
pub fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(header: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", header.parse().unwrap());
        timeout(&headers)
    }

    #[test]
    fn the_callers_deadline_is_read_in_every_unit() {
        for (header, expected) in [
            ("2H", Duration::from_secs(7200)),
            ("3M", Duration::from_secs(180)),
            ("120S", Duration::from_secs(120)),
            ("1m", Duration::from_millis(1)),
            ("99999999u", Duration::from_micros(99_999_999)),
            ("7n", Duration::from_nanos(7)),
        ] {
            assert_eq!(parsed(header), Some(expected), "{header}");
        }
    }

    #[test]
    fn an_error_is_one_line_of_bounded_length_with_its_beginning_and_its_end() {
        assert_eq!(readable("pod \"ä\" is\tnot\nthere"), "pod \"ä\" is\\tnot\\nthere");
        let long = readable(&format!("pod \"{}\" not found", "é".repeat(1 << 20)));
        assert!(long.starts_with("pod \"éé") && long.ends_with("éé\" not found"), "{long}");
        assert_eq!(long.chars().count(), LONGEST_TEXT + 1);
    }

    #[test]
    fn a_malformed_deadline_is_no_deadline() {
        for header in ["S", "12", "-1S", "123456789S", "1x", "1 S"] {
            assert_eq!(parsed(header), None, "{header}");
        }
    }
}
