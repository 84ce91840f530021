//! The listener and the HTTP part: from an accepted socket to an upgraded connection with its request.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use engine::Error;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, HeaderValue, RETRY_AFTER};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug, info, info_span, warn};

use super::handshake::{self, Carrier};
use super::request::Request;
use super::token::Waiting;
use super::{AttachRequest, Config, ExecRequest, PortForwardRequest, Sessions, session, tls};

/// Connections that may be between accept and upgrade; the next one waits in the kernel's backlog.
const HANDSHAKES: usize = 512;
/// Time for a TLS handshake, for the head of a request, and for an answered upgrade to take place.
const STEP: Duration = Duration::from_secs(10);
/// Time a connection may live without an upgrade.
const HTTP_LIFETIME: Duration = Duration::from_secs(60);
/// Most bytes of a request's head.
const HEAD: usize = 16 << 10;
/// Time sessions are given to say farewell when the server stops.
const FAREWELL: Duration = Duration::from_secs(5);
/// Pause after a failed accept (out of descriptors), which would otherwise spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The server: hands out URLs, and serves those who come with one.
pub struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    /// Scheme and authority of every URL.
    base: String,
}

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be bound.
    #[error("cannot listen on {address} for streaming")]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The certificate cannot be used or made.
    #[error("streaming over TLS")]
    Tls(#[from] tls::TlsError),
}

/// What every connection and session needs.
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) sessions: Arc<dyn Sessions>,
    /// Ends every task of the server.
    pub(super) stop: CancellationToken,
    limits: RwLock<Limits>,
    waiting: Waiting,
    tasks: TaskTracker,
    handshakes: Arc<Semaphore>,
    places: Arc<Semaphore>,
    /// Cuts off what did not end in time.
    cut: CancellationToken,
    tls: Option<tokio_rustls::TlsAcceptor>,
}

/// Time limits of a session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Without a byte in either direction.
    pub(super) idle: Duration,
    /// For the client to open its streams.
    pub(super) creation: Duration,
}

type Answer = Response<Full<Bytes>>;

// === impl Shared ===

impl Shared {
    /// The time limits for a session that begins now.
    pub(super) fn limits(&self) -> Limits {
        *self.limits.read().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Server ===

impl Server {
    /// Binds the address and starts to accept.
    ///
    /// # Errors
    /// The address is taken or not ours; the certificate cannot be read or used.
    pub async fn start(config: Config, sessions: Arc<dyn Sessions>) -> Result<Arc<Self>, StartError> {
        let listen = |source| StartError::Listen { address: config.address, source };
        let listener = TcpListener::bind(config.address).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let tls = match &config.tls {
            Some(tls) => Some(tls::acceptor(tls, address.ip(), config.advertise.as_deref())?),
            None => None,
        };
        let base = base(&config, address);
        let shared = Arc::new(Shared {
            limits: RwLock::new(Limits { idle: config.idle_timeout, creation: config.creation_timeout }),
            waiting: Waiting::new(),
            stop: CancellationToken::new(),
            cut: CancellationToken::new(),
            tasks: TaskTracker::new(),
            handshakes: Arc::new(Semaphore::new(HANDSHAKES)),
            places: Arc::new(Semaphore::new(config.max_sessions)),
            config,
            sessions,
            tls,
        });
        shared.tasks.spawn(accept(listener, shared.clone()));
        Ok(Arc::new(Self { shared, address, base }))
    }

    /// The bound address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the time limits; sessions that run keep theirs. See [`Config`].
    pub fn set_timeouts(&self, idle: Duration, creation: Duration) {
        *self.shared.limits.write().unwrap_or_else(PoisonError::into_inner) = Limits { idle, creation };
    }

    /// Sessions that are open.
    pub fn sessions(&self) -> usize {
        self.shared.config.max_sessions.saturating_sub(self.shared.places.available_permits())
    }

    /// URL for a command.
    ///
    /// # Errors
    /// `InvalidArgument`: a field of the request contradicts the CRI; `ResourceExhausted`: too many requests wait.
    pub fn exec_url(&self, request: ExecRequest) -> Result<String, Error> {
        self.url(request.try_into()?)
    }

    /// URL for joining a container's first process.
    ///
    /// # Errors
    /// As [`exec_url`](Self::exec_url).
    pub fn attach_url(&self, request: AttachRequest) -> Result<String, Error> {
        self.url(request.try_into()?)
    }

    /// URL for connections to a pod's ports.
    ///
    /// # Errors
    /// As [`exec_url`](Self::exec_url).
    pub fn port_forward_url(&self, request: PortForwardRequest) -> Result<String, Error> {
        self.url(request.try_into()?)
    }

    /// Ends the listener and all sessions: each is told why and closed; those that do not end within five seconds are
    /// cut off. Containers are not touched.
    pub async fn stop(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        if timeout(FAREWELL, self.shared.tasks.wait()).await.is_err() {
            warn!(left = self.shared.tasks.len(), "streaming sessions did not end in time");
            self.shared.cut.cancel();
        }
    }

    fn url(&self, request: Request) -> Result<String, Error> {
        let path = request.path();
        let token = self.shared.waiting.put(request)?;
        Ok(format!("{}/{path}/{token}", self.base))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Scheme and authority for the URLs: absolute, since clients refuse anything less.
fn base(config: &Config, address: SocketAddr) -> String {
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let host = match (&config.advertise, address.ip()) {
        (Some(name), _) => match name.parse::<Ipv6Addr>() {
            Ok(v6) => format!("[{v6}]"),
            Err(_) => name.clone(),
        },
        (None, IpAddr::V4(ip)) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.to_string(),
        (None, IpAddr::V6(ip)) if ip.is_unspecified() => format!("[{}]", Ipv6Addr::LOCALHOST),
        (None, IpAddr::V4(ip)) => ip.to_string(),
        (None, IpAddr::V6(ip)) => format!("[{ip}]"),
    };
    format!("{scheme}://{host}:{}", address.port())
}

// === from socket to request ===

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let serve = async {
        loop {
            let Ok(permit) = shared.handshakes.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((socket, _)) => {
                    let connection = connection(socket, shared.clone());
                    shared.tasks.spawn(async move {
                        let _permit = permit;
                        connection.await;
                    });
                }
                Err(error) => {
                    warn!(%error, "cannot accept a streaming connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    shared.stop.run_until_cancelled(serve).await;
}

async fn connection(socket: TcpStream, shared: Arc<Shared>) {
    if let Err(error) = tune(&socket) {
        debug!(%error, "streaming connection ended at once");
        return;
    }
    let Some(acceptor) = &shared.tls else { return http(socket, shared).await };
    let handshake = timeout(STEP, acceptor.accept(socket));
    match shared.stop.run_until_cancelled(handshake).await {
        Some(Ok(Ok(stream))) => http(stream, shared).await,
        Some(Ok(Err(error))) => debug!(%error, "streaming client failed the TLS handshake"),
        Some(Err(_)) | None => debug!("streaming client did not finish the TLS handshake"),
    }
}

/// Keystrokes go out at once, and a peer that vanished is noticed within two minutes.
fn tune(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(socket, true)?;
    rustix::net::sockopt::set_tcp_keepidle(socket, Duration::from_secs(30))?;
    rustix::net::sockopt::set_tcp_keepintvl(socket, Duration::from_secs(15))?;
    rustix::net::sockopt::set_tcp_keepcnt(socket, 6)?;
    Ok(())
}

async fn http<S>(stream: S, shared: Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(|request| std::future::ready(Ok::<_, Infallible>(answer(request, &shared))));
    let serve = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(STEP)
        .max_buf_size(HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    match shared.stop.run_until_cancelled(timeout(HTTP_LIFETIME, serve)).await {
        Some(Ok(Err(error))) => debug!(%error, "streaming connection ended"),
        Some(Err(_)) => debug!("streaming connection took too long to upgrade"),
        Some(Ok(Ok(()))) | None => {}
    }
}

/// Answers one request; on success the session is already spawned and waits for the upgrade.
fn answer(request: hyper::Request<Incoming>, shared: &Arc<Shared>) -> Answer {
    if !matches!(*request.method(), Method::GET | Method::POST) {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "GET and POST only");
    }
    let Ok(place) = shared.places.clone().try_acquire_owned() else {
        let mut answer = refuse(StatusCode::TOO_MANY_REQUESTS, "too many streaming sessions");
        answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("60"));
        return answer;
    };
    let taken = request.uri().path().strip_prefix('/').and_then(|path| path.split_once('/'));
    let Some(wanted) = taken.and_then(|(path, token)| shared.waiting.take(path, token)) else {
        return refuse(StatusCode::NOT_FOUND, "no request waits here");
    };
    match handshake::choose(request.method(), request.headers(), &wanted) {
        Ok(plan) => {
            let upgrade = hyper::upgrade::on(request);
            shared.tasks.spawn(begin(shared.clone(), wanted, plan.carrier, upgrade, place));
            plan.answer.map(|()| Full::default())
        }
        Err(refusal) => refusal.map(|why| Full::from(Bytes::from_static(why.as_bytes()))),
    }
}

fn refuse(status: StatusCode, why: &'static str) -> Answer {
    let mut answer = Response::new(Full::from(Bytes::from_static(why.as_bytes())));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

/// Waits for the upgrade and runs the session, holding its place.
async fn begin(
    shared: Arc<Shared>,
    request: Request,
    carrier: Carrier,
    upgrade: OnUpgrade,
    _place: OwnedSemaphorePermit,
) {
    let span = info_span!("stream", kind = request.path(), subject = request.subject(), carrier = %carrier);
    async move {
        match timeout(STEP, upgrade).await {
            Ok(Ok(io)) => {
                debug!("session begins");
                let serve = Box::pin(session::serve(&shared, request, carrier, TokioIo::new(io)));
                match shared.cut.run_until_cancelled(serve).await {
                    Some(Ok(())) => debug!("session ended"),
                    None => debug!("session cut off"),
                    Some(Err(error)) if error.client_left() => debug!(%error, "client left"),
                    Some(Err(error)) => {
                        info!(error = &error as &dyn std::error::Error, "session ended early");
                    }
                }
            }
            Ok(Err(error)) => debug!(%error, "client left during the upgrade"),
            Err(_) => debug!("client did not take up the upgrade"),
        }
    }
    .instrument(span)
    .await;
}
