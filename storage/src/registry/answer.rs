//! What comes back: bodies of bounded size, and what errors say.

use std::time::{Duration, SystemTime};

use reqwest::Response;

use super::RegistryError;

/// Nothing came for this long.
pub(super) fn stalled(host: &str, what: &str, after: Duration) -> RegistryError {
    RegistryError::Stalled { host: host.to_owned(), what: what.to_owned(), seconds: after.as_secs() }
}

/// `Retry-After`: seconds or an HTTP date (RFC 9110 10.2.3).
pub(super) fn retry_after(response: &Response) -> Option<Duration> {
    let value = response.headers().get("retry-after")?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

/// A body of at most `limit` bytes.
pub(super) async fn body(
    mut response: Response,
    host: &str,
    what: &str,
    limit: u64,
    stall: Duration,
) -> Result<Vec<u8>, RegistryError> {
    let mut bytes = Vec::new();
    loop {
        let chunk = tokio::time::timeout(stall, response.chunk()).await;
        let chunk = chunk.map_err(|_| stalled(host, what, stall))?;
        let Some(chunk) = chunk.map_err(|e| transport(host, what, e))? else { return Ok(bytes) };
        if (bytes.len() + chunk.len()) as u64 > limit {
            return Err(RegistryError::TooLarge { host: host.to_owned(), what: what.to_owned(), limit });
        }
        bytes.extend_from_slice(&chunk);
    }
}

/// A transport error, without reqwest's repetition of the URL (which may be signed).
pub(super) fn transport(host: &str, what: &str, error: reqwest::Error) -> RegistryError {
    if let Some(source) = tls_verdict(&error) {
        return RegistryError::Tls { host: host.to_owned(), source };
    }
    let source = Box::new(error.without_url());
    RegistryError::Transport { host: host.to_owned(), what: what.to_owned(), source }
}

/// The messages in an error body (distribution-spec, "Error Codes"), printable and short.
pub(super) fn message(bytes: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(serde::Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let text = match serde_json::from_slice::<Errors>(bytes) {
        Ok(parsed) => {
            let each =
                parsed.errors.into_iter().map(|e| if e.message.is_empty() { e.code } else { e.message });
            each.collect::<Vec<_>>().join(", ")
        }
        Err(_) => String::from_utf8_lossy(bytes).into_owned(),
    };
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

/// What TLS has refused for good: another try finds the same certificates.
fn tls_verdict(error: &(dyn std::error::Error + 'static)) -> Option<rustls::Error> {
    use rustls::Error::{AlertReceived, InvalidCertificate, InvalidMessage};
    if let Some(error) = error.downcast_ref::<rustls::Error>() {
        let verdict = matches!(error, InvalidCertificate(_) | AlertReceived(_) | InvalidMessage(_));
        return verdict.then(|| error.clone());
    }
    // An `io::Error` is not the source of itself.
    let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    inner.and_then(|inner| tls_verdict(inner)).or_else(|| error.source().and_then(tls_verdict))
}
