//! One request, sent well: authentication, redirects, retries, deadlines, bounded bodies.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, HeaderValue, StatusCode};
use reqwest::{Response, Url};
use tokio::sync::Mutex;

use super::auth::{Challenge, Grant, Secret, challenges};
use super::hosts::{Endpoint, is_loopback};
use super::{RegistryError, Timing, dns, tls};

/// Redirects followed for one request.
const REDIRECTS_MAX: usize = 10;
/// Bytes read of an error's body.
const ERROR_BODY: u64 = 16 << 10;

/// A client of one host with one caller's credentials.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    name: Arc<str>,
    origin: Arc<str>,
    plain_http: bool,
    headers: HeaderMap,
    secret: Secret,
    /// Grants by scope. Held while a token is fetched, so that many requests fetch one.
    grants: Arc<Mutex<HashMap<String, Grant>>>,
    pub(super) timing: Timing,
}

/// One request.
#[derive(Clone, Debug)]
pub(super) struct Ask<'a> {
    pub(super) url: &'a str,
    pub(super) repository: &'a str,
    pub(super) accept: &'static str,
    /// First byte wanted.
    pub(super) from: u64,
    /// Last byte wanted, if not all.
    pub(super) to: Option<u64>,
    /// For messages.
    pub(super) what: &'a str,
}

/// What to do about an answer.
enum Next {
    Done(Response),
    Redirect(Url),
    Authenticate(Vec<Challenge>),
    Wait(Option<Duration>, RegistryError),
}

// === impl Ask ===

impl<'a> Ask<'a> {
    pub(super) fn get(url: &'a str, repository: &'a str, what: &'a str) -> Self {
        Self { url, repository, accept: "*/*", from: 0, to: None, what }
    }
}

// === impl Client ===

impl Client {
    /// A client for an endpoint; connects to nothing yet.
    pub(super) fn new(endpoint: &Endpoint, secret: Secret, timing: Timing) -> Result<Self, RegistryError> {
        let name = endpoint.name();
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::config(endpoint)?)
            .dns_resolver(dns::Resolver::default())
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(timing.connect)
            .user_agent(concat!("berth/", env!("CARGO_PKG_VERSION")));
        if is_loopback(&endpoint.authority) {
            // A proxy's loopback is not ours.
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|e| transport(&name, "the first request", e))?;
        let mut headers = HeaderMap::new();
        for (key, value) in &endpoint.headers {
            let pair = (key.parse::<http::HeaderName>(), HeaderValue::from_str(value));
            let (Ok(key), Ok(value)) = pair else {
                let problem = format!("header \"{key}\" of {name} is not valid");
                return Err(RegistryError::Config { path: "hosts.toml".into(), problem });
            };
            headers.append(key, value);
        }
        Ok(Self {
            http,
            origin: name.as_str().into(),
            name: name.into(),
            plain_http: endpoint.scheme == "http",
            headers,
            secret,
            grants: Arc::default(),
            timing,
        })
    }

    /// For messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// A successful answer, after whatever it takes.
    pub(super) async fn send(&self, ask: &Ask<'_>) -> Result<Response, RegistryError> {
        let mut url = self.parse(ask.url, ask)?;
        let (mut redirects, mut refusals, mut tries) = (0, 0, 0);
        loop {
            match self.once(ask, &url).await? {
                Next::Done(response) => return Ok(response),
                Next::Redirect(to) => {
                    redirects += 1;
                    if redirects > REDIRECTS_MAX {
                        return Err(self.redirect_error(ask, "more than 10 times"));
                    }
                    url = to;
                }
                Next::Authenticate(challenges) => {
                    // A second refusal may be an expired token; a third is an answer.
                    refusals += 1;
                    self.authenticate(ask, &challenges, refusals).await?;
                    url = self.parse(ask.url, ask)?;
                }
                Next::Wait(asked, error) => {
                    tries += 1;
                    if tries >= self.timing.tries {
                        return Err(error);
                    }
                    self.pause(tries, asked).await;
                    // A redirect may have expired meanwhile.
                    url = self.parse(ask.url, ask)?;
                }
            }
        }
    }

    /// A small body, whole; transfers that break are tried again.
    pub(super) async fn small(
        &self,
        ask: &Ask<'_>,
        limit: u64,
    ) -> Result<(HeaderMap, Vec<u8>), RegistryError> {
        let mut tries = 0;
        loop {
            let response = self.send(ask).await?;
            let headers = response.headers().clone();
            match body(response, &self.name, ask.what, limit, self.timing.stall).await {
                Ok(bytes) => return Ok((headers, bytes)),
                Err(error) if error.is_transient() && tries + 1 < self.timing.tries => {
                    tries += 1;
                    self.pause(tries, None).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits before try number `tries + 1`: as long as asked, or twice as long as the last time.
    pub(super) async fn pause(&self, tries: u32, asked: Option<Duration>) {
        let doubled = self.timing.backoff.saturating_mul(1 << tries.saturating_sub(1).min(16));
        tokio::time::sleep(asked.unwrap_or(doubled).min(self.timing.backoff_max)).await;
    }

    fn parse(&self, url: &str, ask: &Ask<'_>) -> Result<Url, RegistryError> {
        Url::parse(url).map_err(|_| self.redirect_error(ask, "to something that is no URL"))
    }

    fn redirect_error(&self, ask: &Ask<'_>, problem: &'static str) -> RegistryError {
        RegistryError::Redirect { host: self.name.to_string(), what: ask.what.to_owned(), problem }
    }

    /// The host and scheme the credentials are for.
    fn is_ours(&self, url: &Url) -> bool {
        let authority = match (url.host_str(), url.port()) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (Some(host), None) => host.to_owned(),
            (None, _) => return false,
        };
        let ours = Url::parse(&self.origin).ok();
        ours.is_some_and(|ours| {
            let port = ours.port().map_or(String::new(), |p| format!(":{p}"));
            ours.scheme() == url.scheme()
                && ours.host_str().is_some_and(|h| format!("{h}{port}") == authority)
        })
    }

    /// Sends once and decides.
    async fn once(&self, ask: &Ask<'_>, url: &Url) -> Result<Next, RegistryError> {
        let mut request =
            self.http.get(url.clone()).header("accept", ask.accept).header("accept-encoding", "identity");
        if self.is_ours(url) {
            request = request.headers(self.headers.clone());
            let now = Instant::now();
            if let Some(grant) = self.grants.lock().await.get(ask.repository)
                && grant.until.is_none_or(|until| until > now)
            {
                let mut value = HeaderValue::from_str(&grant.header)
                    .map_err(|_| RegistryError::Credentials("they hold characters HTTP cannot carry"))?;
                value.set_sensitive(true);
                request = request.header("authorization", value);
            }
        }
        if ask.from > 0 || ask.to.is_some() {
            let to = ask.to.map_or(String::new(), |to| to.to_string());
            request = request.header("range", format!("bytes={}-{to}", ask.from));
        }
        let sent = match tokio::time::timeout(self.timing.stall, request.send()).await {
            Err(_) => return Ok(Next::Wait(None, self.stalled(ask.what))),
            Ok(Err(error)) => return Ok(Next::Wait(None, transport(&self.name, ask.what, error))),
            Ok(Ok(response)) => response,
        };
        match sent.status() {
            status if status.is_success() => Ok(Next::Done(sent)),
            status if status.is_redirection() => self.redirect(ask, url, &sent).map(Next::Redirect),
            StatusCode::UNAUTHORIZED if self.is_ours(url) => {
                let all = sent.headers().get_all("www-authenticate");
                let found = all.iter().filter_map(|v| v.to_str().ok()).flat_map(challenges).collect();
                Ok(Next::Authenticate(found))
            }
            _ => self.failure(ask, sent).await,
        }
    }

    fn redirect(&self, ask: &Ask<'_>, from: &Url, response: &Response) -> Result<Url, RegistryError> {
        let location = response.headers().get("location").and_then(|v| v.to_str().ok());
        let to = location.and_then(|l| from.join(l).ok());
        let to = to.ok_or_else(|| self.redirect_error(ask, "to nowhere"))?;
        match (from.scheme(), to.scheme()) {
            (_, "https") | ("http", "http") => Ok(to),
            ("https", "http") => Err(self.redirect_error(ask, "from https to plain http")),
            _ => Err(self.redirect_error(ask, "to something that is neither http nor https")),
        }
    }

    async fn authenticate(
        &self,
        ask: &Ask<'_>,
        challenges: &[Challenge],
        refusals: u32,
    ) -> Result<(), RegistryError> {
        let mut grants = self.grants.lock().await;
        let had = grants.remove(ask.repository);
        if refusals > 2 || (had.as_ref().is_some_and(|g| g.until.is_none()) && refusals > 1) {
            return Err(RegistryError::Unauthorized {
                host: self.name.to_string(),
                message: String::new(),
                hint: "; check the user, the password and the rights on the repository",
            });
        }
        let scope = format!("repository:{}:pull", ask.repository);
        let grant = self.secret.answer(&self.http, &self.name, challenges, &scope, self.plain_http).await?;
        grants.insert(ask.repository.to_owned(), grant);
        Ok(())
    }

    /// Names an error answer, and says whether waiting may help.
    async fn failure(&self, ask: &Ask<'_>, response: Response) -> Result<Next, RegistryError> {
        let status = response.status();
        let after = response.headers().get("retry-after").and_then(|v| v.to_str().ok()).and_then(retry_after);
        let bytes =
            body(response, &self.name, ask.what, ERROR_BODY, self.timing.stall).await.unwrap_or_default();
        let (host, what, message) = (self.name.to_string(), ask.what.to_owned(), message(&bytes));
        match status.as_u16() {
            404 => Err(RegistryError::NotFound { host, what, message }),
            401 | 403 => Err(RegistryError::Unauthorized { host, message, hint: "" }),
            429 => {
                // A quota does not come back in seconds, and asking again costs more of it; a rate limit says when.
                let error = RegistryError::RateLimited { host, message };
                if after.is_some() { Ok(Next::Wait(after, error)) } else { Err(error) }
            }
            code @ (408 | 500..) => {
                Ok(Next::Wait(after, RegistryError::Status { host, status: code, what, message }))
            }
            code => Err(RegistryError::Status { host, status: code, what, message }),
        }
    }

    pub(super) fn stalled(&self, what: &str) -> RegistryError {
        let seconds = self.timing.stall.as_secs();
        RegistryError::Stalled { host: self.name.to_string(), what: what.to_owned(), seconds }
    }
}

/// `Retry-After`: seconds or an HTTP date (RFC 9110 10.2.3).
fn retry_after(value: &str) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value.trim()).ok()?;
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
        let stalled = |_| RegistryError::Stalled {
            host: host.to_owned(),
            what: what.to_owned(),
            seconds: stall.as_secs(),
        };
        let chunk = tokio::time::timeout(stall, response.chunk()).await.map_err(stalled)?;
        let Some(chunk) = chunk.map_err(|e| transport(host, what, e))? else { return Ok(bytes) };
        if (bytes.len() + chunk.len()) as u64 > limit {
            return Err(RegistryError::TooLarge { host: host.to_owned(), what: what.to_owned(), limit });
        }
        bytes.extend_from_slice(&chunk);
    }
}

/// A transport error, without reqwest's repetition of the URL (which may be signed).
pub(super) fn transport(host: &str, what: &str, error: reqwest::Error) -> RegistryError {
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
