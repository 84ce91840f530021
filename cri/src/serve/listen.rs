//! The endpoints: unix sockets, TCP with mutual TLS, sockets of a service manager.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::fs::Mode;
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::authority::Authority;
use super::preflight::in_time;
use super::socket::Socket;
use crate::config::{Endpoint, MutualTls};

/// Accepted connections that wait to be served; the rest waits in the kernel.
const QUEUE: usize = 64;
/// Bytes of an answer that a unix socket takes at once, so that the answer does not wait for the client to read.
const ANSWER: usize = 512 << 10;
/// Time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Pause after a failed accept (out of descriptors), which would otherwise spin.
const PAUSE: Duration = Duration::from_millis(100);
/// First descriptor handed over by socket activation (sd_listen_fds(3)).
const FIRST_INHERITED: i32 = 3;

/// Why an endpoint cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody answers there.
    #[error("{path} is in use{holder}; end it, or listen elsewhere with --listen unix:///PATH")]
    InUse {
        /// The socket.
        path: PathBuf,
        /// ` by pid N (NAME)` when it can be told.
        holder: String,
    },
    /// Something else lies there.
    #[error("{path} exists and is not a socket; remove it, or listen elsewhere with --listen unix:///PATH")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// It cannot be bound.
    #[error("cannot listen on {endpoint}")]
    Bind {
        /// Which.
        endpoint: Endpoint,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No socket was handed over.
    #[error("fd:// needs socket activation: LISTEN_PID and LISTEN_FDS name no socket for this process")]
    NothingInherited,
    /// The certificates cannot be used.
    #[error("[tls] {path}")]
    Tls {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Bound sockets, not yet served.
#[derive(Debug)]
pub struct Listeners {
    unix: Vec<UnixListener>,
    tcp: Vec<TcpListener>,
    tls: Option<Arc<ServerConfig>>,
    /// Where handshakes are made: those of anybody, before the connection is one that is served.
    workers: Handle,
}

/// A connection of any kind.
#[derive(Debug)]
pub enum Connection {
    /// Over a unix socket.
    Unix(Authority<Socket>),
    /// Over TLS with a client that has shown its certificate.
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
}

/// Binds all endpoints, or none.
pub fn bind(endpoints: &[Endpoint], tls: Option<&MutualTls>) -> Result<Listeners, Error> {
    let mut listeners = Listeners {
        tls: tls.map(mutual_tls).transpose()?,
        unix: Vec::new(),
        tcp: Vec::new(),
        workers: Handle::current(),
    };
    for endpoint in endpoints {
        let failed = |source| Error::Bind { endpoint: endpoint.clone(), source };
        match endpoint {
            Endpoint::Unix(path) => listeners.unix.push(unix(path, failed)?),
            Endpoint::Tcp(address) => {
                let held = |error: &io::Error| error.kind() == io::ErrorKind::AddrInUse;
                let listener = in_time(held, || std::net::TcpListener::bind(address)).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                listeners.tcp.push(TcpListener::from_std(listener).map_err(failed)?);
            }
            Endpoint::Inherited => {
                for listener in inherited()? {
                    listener.set_nonblocking(true).map_err(failed)?;
                    listeners.unix.push(UnixListener::from_std(listener).map_err(failed)?);
                }
            }
        }
    }
    Ok(listeners)
}

/// Binds a unix socket that root and its group may use. A socket on which nobody answers is replaced.
fn unix(path: &Path, failed: impl Fn(io::Error) -> Error) -> Result<UnixListener, Error> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(&failed)?;
    }
    in_time(|error| matches!(error, Error::InUse { .. }), || clear(path, &failed))?;
    let mask = rustix::process::umask(Mode::from_raw_mode(0o117));
    let listener = StdUnixListener::bind(path);
    rustix::process::umask(mask);
    let listener = listener.map_err(&failed)?;
    listener.set_nonblocking(true).map_err(&failed)?;
    UnixListener::from_std(listener).map_err(failed)
}

fn clear(path: &Path, failed: impl Fn(io::Error) -> Error) -> Result<(), Error> {
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
        Ok(meta) if !meta.file_type().is_socket() => return Err(Error::NotASocket { path: path.into() }),
        Ok(_) => {}
    }
    match StdUnixStream::connect(path) {
        Ok(answered) => {
            let pid = rustix::net::sockopt::socket_peercred(&answered).map(|c| c.pid.as_raw_nonzero().get());
            let name = |pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let holder = pid.map(|pid| format!(" by pid {pid} ({})", name(pid).trim())).unwrap_or_default();
            Err(Error::InUse { path: path.into(), holder })
        }
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path).map_err(failed),
        Err(e) => Err(failed(e)),
    }
}

/// The listening sockets handed over by the service manager. They are duplicated through a pidfd of ourselves, the one
/// way to own a descriptor known by its number alone.
fn inherited() -> Result<Vec<StdUnixListener>, Error> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    let count = match (number("LISTEN_PID"), number("LISTEN_FDS")) {
        (Some(pid), Some(count)) if pid == std::process::id() && count > 0 => count,
        _ => return Err(Error::NothingInherited),
    };
    let failed = |e: rustix::io::Errno| Error::Bind { endpoint: Endpoint::Inherited, source: e.into() };
    let ourselves = pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).map_err(failed)?;
    let last = FIRST_INHERITED.saturating_add(i32::try_from(count).unwrap_or(0));
    let take = |fd| pidfd_getfd(&ourselves, fd, PidfdGetfdFlags::empty()).map(StdUnixListener::from);
    (FIRST_INHERITED..last).map(|fd| take(fd).map_err(failed)).collect()
}

/// A server that shows its certificate and demands one of the given authorities from the client.
fn mutual_tls(files: &MutualTls) -> Result<Arc<ServerConfig>, Error> {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    type Cause = Box<dyn std::error::Error + Send + Sync>;
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source: Cause| Error::Tls { path, source }
    };
    let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>, Error> {
        let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
        read.map_err(|e| at(path)(e.into()))
    };
    let chain = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|e| at(&files.key)(e.into()))?;
    let mut roots = rustls::RootCertStore::empty();
    for authority in certificates(&files.client_ca)? {
        roots.add(authority).map_err(|e| at(&files.client_ca)(e.into()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
        .build()
        .map_err(|e| at(&files.client_ca)(e.into()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| at(&files.certificate)(e.into()))?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)
        .map_err(|e| at(&files.key)(e.into()))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

// === impl Listeners ===

impl Listeners {
    /// Starts to accept; ends with the receiver.
    pub fn incoming(self) -> ReceiverStream<io::Result<Connection>> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        for listener in self.unix {
            tokio::spawn(accept_unix(listener, sender.clone()));
        }
        let acceptor = self.tls.map(TlsAcceptor::from);
        for listener in self.tcp {
            if let Some(acceptor) = acceptor.clone() {
                tokio::spawn(accept_tls(listener, acceptor, sender.clone(), self.workers.clone()));
            }
        }
        ReceiverStream::new(receiver)
    }
}

type Sender = mpsc::Sender<io::Result<Connection>>;

async fn accept_unix(listener: UnixListener, sender: Sender) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = sender.closed() => return,
        };
        let connected = accepted.and_then(|(stream, _)| {
            // As far as the node allows it: less is no error, only slower.
            let _ = set_socket_send_buffer_size(&stream, ANSWER);
            Socket::new(stream.into_std()?)
        });
        match connected {
            Ok(socket) => {
                if sender.send(Ok(Connection::Unix(Authority::new(socket)))).await.is_err() {
                    return;
                }
            }
            Err(error) => pause(&error).await,
        }
    }
}

async fn accept_tls(listener: TcpListener, acceptor: TlsAcceptor, sender: Sender, workers: Handle) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = sender.closed() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (acceptor, sender) = (acceptor.clone(), sender.clone());
                workers.spawn(async move {
                    match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                        Ok(Ok(tls)) => {
                            let _ = sender.send(Ok(Connection::Tls(Box::new(tls)))).await;
                        }
                        Ok(Err(error)) => tracing::warn!(%peer, %error, "TLS handshake failed"),
                        Err(_) => tracing::warn!(%peer, "TLS handshake took too long"),
                    }
                });
            }
            Err(error) => pause(&error).await,
        }
    }
}

async fn pause(error: &io::Error) {
    tracing::warn!(%error, "cannot accept a connection");
    tokio::time::sleep(PAUSE).await;
}

// === impl Connection ===

impl Connected for Connection {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
