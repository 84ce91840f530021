//! The streaming server: `kubectl exec`, `attach` and `port-forward` end here.
//!
//! The CRI calls Exec, Attach and PortForward only hand out a URL with a one-time token ([`Server::exec_url`] and its
//! sisters); the client (the kubelet, or crictl) then opens that URL and speaks SPDY/3.1 or WebSocket over the upgraded
//! HTTP/1.1 connection. Whoever holds the token is trusted, so it is long, lives a minute, works once and is never logged.
//!
//! Reading order: [`request`] what may be asked; [`token`] what waits; [`server`] the listener and the HTTP part;
//! [`handshake`] which protocol is chosen (pure); [`remote`] a command's streams, whatever carries them; [`forward`]
//! ports; [`status`] the closing document; [`spdy`] and [`ws`] the two carriers; [`wire`], [`pipe`], [`conduit`] and [`activity`]
//! the small parts both use; [`tls`].
//!
//! Tasks: one accept loop per server, one per HTTP connection until the upgrade, then one per session with the few it
//! joins. All end with the server's cancellation token. Files owned: none (a configured certificate is only read).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use engine::api::{Session, Stream};
use futures_util::future::BoxFuture;

mod activity;
mod conduit;
mod forward;
mod handshake;
mod pipe;
mod remote;
mod request;
mod server;
mod session;
mod spdy;
mod status;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tls;
mod token;
mod wire;
mod ws;

pub use request::{AttachRequest, ExecRequest, PortForwardRequest};
pub use server::{Server, StartError};
pub use tls::TlsError;

/// What the streaming server asks of the engine.
///
/// Dropping a [`Session`] or a [`Stream`] tells the engine that the client has gone. Futures may be dropped at any
/// await: the implementation then leaves nothing behind.
pub trait Sessions: Send + Sync + 'static {
    /// Starts a command in a running container.
    fn exec(&self, request: ExecRequest) -> BoxFuture<'_, Result<Session, engine::Error>>;

    /// Joins the first process of a running container.
    fn attach(&self, request: AttachRequest) -> BoxFuture<'_, Result<Session, engine::Error>>;

    /// Connects to a port of the pod's loopback interface.
    fn port_forward(&self, pod: String, port: u16) -> BoxFuture<'_, Result<Box<dyn Stream>, engine::Error>>;
}

/// How the server listens and what it allows.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen; port 0: any free one.
    pub address: SocketAddr,
    /// Host name or address put in the URLs instead of the bound one, for a kubelet on another node. An unspecified
    /// bind address (`0.0.0.0`, `[::]`) without this gives loopback URLs.
    pub advertise: Option<String>,
    /// `None`: plain HTTP, which is what the kubelet expects on loopback.
    pub tls: Option<Tls>,
    /// A session without a byte in either direction for this long is ended.
    pub idle_timeout: Duration,
    /// How long the client may take to open the streams it announced.
    pub creation_timeout: Duration,
    /// Sessions at once; the next one is answered with 429.
    pub max_sessions: usize,
}

/// Where the server's certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tls {
    /// Made at start, for loopback names and the bound address.
    SelfSigned,
    /// PEM files; the chain leaf first.
    Files {
        /// Certificate chain.
        certificate: PathBuf,
        /// Private key: PKCS#8, PKCS#1 or SEC1.
        key: PathBuf,
        /// Certificate authorities for client certificates; `None`: clients need none.
        client_ca: Option<PathBuf>,
    },
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            advertise: None,
            tls: None,
            idle_timeout: Duration::from_secs(4 * 60 * 60),
            creation_timeout: Duration::from_secs(30),
            max_sessions: 1024,
        }
    }
}
