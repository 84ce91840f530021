//! One request, sent well: authentication, redirects, retries, deadlines.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest::{Response, Url};
use tokio::sync::Mutex as AsyncMutex;

use super::auth::{Challenge, Grant, Secret, challenges};
use super::hosts::{Endpoint, is_loopback};
use super::throttle::Throttle;
use super::{RegistryError, Timing, answer, dns, tls};

/// Redirects followed for one request.
const REDIRECTS_MAX: usize = 10;
/// Bytes read of an error's body.
const ERROR_BODY: u64 = 16 << 10;
/// A host that could not be reached is asked last for this long.
const DEAD: Duration = Duration::from_secs(30);
/// How long a connection is kept for the next request: within a pull, not from one pull to the next.
const IDLE: Duration = Duration::from_secs(5);
/// Time to connect to a mirror, unless its file says otherwise: there is somebody else to ask.
const MIRROR_CONNECT: Duration = Duration::from_secs(5);

/// A client of one host with one caller's credentials.
#[derive(Clone, Debug)]
pub struct Client {
    host: Arc<Host>,
    /// Somebody else can be asked: no second try here.
    eager: bool,
}

/// What all requests to a host with the same credentials share, over all pulls.
#[derive(Debug)]
pub(super) struct Host {
    /// For manifests and tokens: HTTP/2 where it is offered.
    api: reqwest::Client,
    /// For blobs: HTTP/1.1, a connection for each.
    bulk: reqwest::Client,
    name: String,
    origin: Option<Url>,
    plain_http: bool,
    headers: HeaderMap,
    secret: Secret,
    /// Grants by scope. A slot is locked while its token is fetched, so that many requests fetch one.
    grants: Mutex<HashMap<String, Slot>>,
    throttle: Throttle,
    dead: Mutex<Option<Instant>>,
    timing: Timing,
}

type Slot = Arc<AsyncMutex<Option<Grant>>>;

/// A body that can be sent again.
pub(super) type Payload<'a> = &'a (dyn Fn() -> reqwest::Body + Send + Sync);

/// One request.
#[derive(Clone)]
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    pub(super) url: &'a str,
    /// The repository as the host calls it.
    pub(super) repository: &'a str,
    /// Rights it takes: `pull`, `pull,push`, or `catalog`, which is of no repository.
    pub(super) actions: &'static str,
    pub(super) accept: &'static str,
    /// First byte wanted, and the last, if not all.
    pub(super) range: Option<(u64, Option<u64>)>,
    /// Content, its length and its type.
    pub(super) body: Option<(Payload<'a>, u64, &'a str)>,
    /// A blob: over a connection of its own.
    pub(super) bulk: bool,
    /// For messages.
    pub(super) what: &'a str,
}

/// What to do about an answer.
enum Next {
    Done(Response),
    Redirect(Url),
    Authenticate(Vec<Challenge>, Option<Grant>),
    Wait(RegistryError),
}

// === impl Ask ===

impl<'a> Ask<'a> {
    pub(super) fn get(url: &'a str, repository: &'a str, what: &'a str) -> Self {
        Self {
            method: Method::GET,
            url,
            repository,
            actions: "pull",
            accept: "*/*",
            range: None,
            body: None,
            bulk: false,
            what,
        }
    }

    fn scope(&self) -> String {
        match self.actions {
            "catalog" => "registry:catalog:*".to_owned(),
            actions => format!("repository:{}:{actions}", self.repository),
        }
    }
}

// === impl Host ===

impl Host {
    /// Reads certificates and gets ready; connects to nothing yet.
    pub(super) fn new(endpoint: &Endpoint, secret: Secret, timing: Timing) -> Result<Self, RegistryError> {
        let name = endpoint.name();
        let connect = if endpoint.mirror { MIRROR_CONNECT.min(timing.connect) } else { timing.connect };
        let connect = endpoint.dial_timeout.unwrap_or(connect);
        let tls = tls::config(endpoint)?;
        let build = |protocols: &[&[u8]]| {
            let mut tls = tls.clone();
            tls.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
            let mut builder = reqwest::Client::builder()
                .tls_backend_preconfigured(tls)
                .dns_resolver(dns::Resolver::default())
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(connect)
                .pool_idle_timeout(IDLE)
                .user_agent(concat!("berth/", env!("CARGO_PKG_VERSION")));
            if is_loopback(&endpoint.authority) {
                // A proxy's loopback is not ours.
                builder = builder.no_proxy();
            }
            builder.build().map_err(|e| answer::transport(&name, "the first request", e))
        };
        let mut headers = HeaderMap::new();
        for (key, value) in &endpoint.headers {
            // Checked where the file was read.
            if let (Ok(key), Ok(value)) = (key.parse::<http::HeaderName>(), HeaderValue::from_str(value)) {
                headers.append(key, value);
            }
        }
        Ok(Self {
            api: build(&[b"h2", b"http/1.1"])?,
            bulk: build(&[b"http/1.1"])?,
            origin: Url::parse(&name).ok(),
            plain_http: endpoint.scheme == "http",
            name,
            headers,
            secret,
            grants: Mutex::default(),
            throttle: Throttle::default(),
            dead: Mutex::default(),
            timing,
        })
    }

    fn slot(&self, scope: &str) -> Slot {
        let mut grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        grants.entry(scope.to_owned()).or_default().clone()
    }

    /// The host and scheme the credentials are for.
    fn is_ours(&self, url: &Url) -> bool {
        self.origin.as_ref().is_some_and(|ours| ours.origin() == url.origin())
    }
}

// === impl Client ===

impl Client {
    pub(super) fn new(host: Arc<Host>) -> Self {
        Self { host, eager: false }
    }

    /// The same, for when `eager`ness decides who is asked next.
    pub(super) fn eager(mut self, eager: bool) -> Self {
        self.eager = eager;
        self
    }

    /// For messages.
    pub(super) fn name(&self) -> &str {
        &self.host.name
    }

    /// It could not be reached a moment ago.
    pub(super) fn is_dead(&self) -> bool {
        let dead = self.host.dead.lock().unwrap_or_else(PoisonError::into_inner);
        dead.is_some_and(|until| until > Instant::now())
    }

    fn tries(&self) -> u32 {
        if self.eager { 1 } else { self.host.timing.tries }
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
                Next::Authenticate(challenges, used) => {
                    // A second refusal may be an expired token or a missing right; a third is an answer.
                    refusals += 1;
                    self.authenticate(ask, &challenges, used, refusals).await?;
                    url = self.parse(ask.url, ask)?;
                }
                Next::Wait(error) => {
                    tries += 1;
                    if tries >= self.tries() {
                        return Err(error);
                    }
                    self.pause(tries).await;
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
            match answer::body(response, self.name(), ask.what, limit, self.host.timing.stall).await {
                Ok(bytes) => return Ok((headers, bytes)),
                Err(error) if error.is_transient() && tries + 1 < self.tries() => {
                    tries += 1;
                    self.pause(tries).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits before try number `tries + 1`, twice as long as the last time.
    pub(super) async fn pause(&self, tries: u32) {
        let timing = &self.host.timing;
        let doubled = timing.backoff.saturating_mul(1 << tries.saturating_sub(1).min(16));
        tokio::time::sleep(doubled.min(timing.backoff_max)).await;
    }

    pub(super) fn stalled(&self, what: &str) -> RegistryError {
        answer::stalled(self.name(), what, self.host.timing.stall)
    }

    fn parse(&self, url: &str, ask: &Ask<'_>) -> Result<Url, RegistryError> {
        Url::parse(url).map_err(|_| self.redirect_error(ask, "to something that is no URL"))
    }

    fn redirect_error(&self, ask: &Ask<'_>, problem: &'static str) -> RegistryError {
        RegistryError::Redirect { host: self.name().to_owned(), what: ask.what.to_owned(), problem }
    }

    /// Nobody answered: others first, for a while.
    fn bury(&self) {
        *self.host.dead.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + DEAD);
    }

    /// Sends once and decides.
    async fn once(&self, ask: &Ask<'_>, url: &Url) -> Result<Next, RegistryError> {
        let host = &self.host;
        let _turn = host.throttle.turn().await;
        let (request, used) = self.request(ask, url).await?;
        let sent = match tokio::time::timeout(host.timing.stall, request.send()).await {
            Err(_) => {
                self.bury();
                return Ok(Next::Wait(self.stalled(ask.what)));
            }
            Ok(Err(error)) => {
                if error.is_connect() {
                    self.bury();
                }
                return match answer::transport(&host.name, ask.what, error) {
                    error @ RegistryError::Tls { .. } => Err(error),
                    error => Ok(Next::Wait(error)),
                };
            }
            Ok(Ok(response)) => response,
        };
        if !matches!(sent.status().as_u16(), 429 | 503) {
            host.throttle.open();
        }
        match sent.status() {
            status if status.is_success() => Ok(Next::Done(sent)),
            status if status.is_redirection() => self.redirect(ask, url, &sent).map(Next::Redirect),
            StatusCode::UNAUTHORIZED if host.is_ours(url) => {
                let all = sent.headers().get_all("www-authenticate");
                let found = all.iter().filter_map(|v| v.to_str().ok()).flat_map(challenges).collect();
                Ok(Next::Authenticate(found, used))
            }
            _ => self.failure(ask, sent).await,
        }
    }

    /// The request, and the grant it shows.
    async fn request(
        &self,
        ask: &Ask<'_>,
        url: &Url,
    ) -> Result<(reqwest::RequestBuilder, Option<Grant>), RegistryError> {
        let host = &self.host;
        let http = if ask.bulk { &host.bulk } else { &host.api };
        let mut request = http
            .request(ask.method.clone(), url.clone())
            .header("accept", ask.accept)
            .header("accept-encoding", "identity");
        let mut used = None;
        if host.is_ours(url) {
            request = request.headers(host.headers.clone());
            let now = Instant::now();
            let slot = host.slot(&ask.scope());
            used = slot.lock().await.clone().filter(|grant| grant.until.is_none_or(|until| until > now));
            if let Some(grant) = &used {
                let mut value = HeaderValue::from_str(&grant.header)
                    .map_err(|_| RegistryError::Credentials("they hold characters HTTP cannot carry"))?;
                value.set_sensitive(true);
                request = request.header("authorization", value);
            }
        }
        if let Some((from, to)) = ask.range {
            let to = to.map_or(String::new(), |to| to.to_string());
            request = request.header("range", format!("bytes={from}-{to}"));
        }
        if let Some((payload, length, kind)) = ask.body {
            request = request.header("content-length", length).header("content-type", kind).body(payload());
        }
        Ok((request, used))
    }

    fn redirect(&self, ask: &Ask<'_>, from: &Url, response: &Response) -> Result<Url, RegistryError> {
        if ask.method != Method::GET
            && ask.method != Method::HEAD
            && !matches!(response.status().as_u16(), 307 | 308)
        {
            return Err(self.redirect_error(ask, "in a way that loses what is sent"));
        }
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
        used: Option<Grant>,
        refusals: u32,
    ) -> Result<(), RegistryError> {
        let host = &self.host;
        let refused = refusals > 2 || (used.as_ref().is_some_and(|g| g.until.is_none()) && refusals > 1);
        let scope = ask.scope();
        let slot = host.slot(&scope);
        let mut slot = slot.lock().await;
        if !refused && *slot != used && slot.is_some() {
            // Somebody else has fetched one while we were refused.
            return Ok(());
        }
        *slot = None;
        if refused {
            return Err(RegistryError::Unauthorized {
                host: host.name.clone(),
                message: String::new(),
                hint: "; check the user, the password and the rights on the repository",
            });
        }
        let grant = host.secret.answer(&host.api, &host.name, challenges, &scope, host.plain_http).await?;
        *slot = Some(grant);
        Ok(())
    }

    /// Names an error answer, and says whether waiting may help.
    async fn failure(&self, ask: &Ask<'_>, response: Response) -> Result<Next, RegistryError> {
        let status = response.status().as_u16();
        let after = answer::retry_after(&response);
        let timing = &self.host.timing;
        let bytes = answer::body(response, self.name(), ask.what, ERROR_BODY, timing.stall).await;
        let message = answer::message(&bytes.unwrap_or_default());
        let (host, what) = (self.name().to_owned(), ask.what.to_owned());
        let error = match status {
            404 => return Err(RegistryError::NotFound { host, what, message }),
            401 | 403 => return Err(RegistryError::Unauthorized { host, message, hint: "" }),
            429 => {
                let asked_to_wait = after.is_some_and(|after| after <= timing.patience);
                RegistryError::RateLimited { host, message, asked_to_wait }
            }
            408 | 500.. => RegistryError::Status { host, status, what, message },
            _ => return Err(RegistryError::Status { host, status, what, message }),
        };
        match after {
            // Asking before the time costs more of the quota; a longer wait is the caller's to decide.
            Some(after) if after > timing.patience => Err(error),
            Some(after) => {
                self.host.throttle.close(after);
                Ok(Next::Wait(error))
            }
            // A quota does not come back in seconds.
            None if status == 429 => Err(error),
            None => Ok(Next::Wait(error)),
        }
    }
}
