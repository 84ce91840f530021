//! One session from its upgrade to its end: which carrier drives it, and what ends it besides itself.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::handshake::Carrier;
use super::request::Request;
use super::server::Shared;
use super::spdy::{self, Connection, Headers, Offer, ReadError};
use super::ws;
use super::{forward, remote};

/// Time for the last frames to get out, and then for the client to close its side.
pub(super) const FAREWELL: Duration = Duration::from_secs(2);

/// Why a session ended otherwise than by its own end or the client's.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    /// What the client sent cannot be understood.
    #[error("reading from the client")]
    Spdy(#[from] ReadError),
    /// The same over WebSocket.
    #[error("reading from the client")]
    WebSocket(#[from] ws::ReadError),
    /// The client cannot be written to.
    #[error("writing to the client")]
    Write(#[source] io::Error),
    /// Nothing moved for the configured time.
    #[error("idle for {0:?}")]
    Idle(Duration),
    /// The client did not open the streams it announced.
    #[error("the client did not open its streams within {0:?}")]
    StreamsMissing(Duration),
    /// An attached client does not read, and the container does not wait for it.
    #[error("the client did not read: {0} bytes of output waited for it")]
    Behind(usize),
    /// A request and a carrier that the handshake never pairs.
    #[error("{0} cannot carry this request")]
    Mismatch(Carrier),
}

impl SessionError {
    /// The client went away without farewell: every interrupted `kubectl` does.
    pub(super) fn client_left(&self) -> bool {
        matches!(self, Self::Write(_) | Self::Spdy(ReadError::Io(_)) | Self::WebSocket(ws::ReadError::Io(_)))
    }
}

/// The bytes of an upgraded connection.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// Serves one session. `Ok`: it came to its end, or the client left in good order.
pub(super) async fn serve(
    shared: &Arc<Shared>,
    request: Request,
    carrier: Carrier,
    io: impl Io,
) -> Result<(), SessionError> {
    match (request, carrier) {
        (Request::PortForward { pod, .. }, Carrier::ForwardSpdy) => {
            forward::spdy::serve(shared, pod, io).await
        }
        (Request::PortForward { pod, .. }, Carrier::ForwardTunnel) => {
            ws::through(io, |io| forward::spdy::serve(shared, pod, io)).await
        }
        (Request::PortForward { pod, ports }, Carrier::ForwardChannels(codec)) => {
            forward::channels::serve(shared, pod, &ports, codec, io).await
        }
        (request @ (Request::Exec(_) | Request::Attach(_)), Carrier::Spdy(version)) => {
            remote::spdy::serve(shared, request, version, io).await
        }
        (request @ (Request::Exec(_) | Request::Attach(_)), Carrier::Channels(codec, version)) => {
            remote::channels::serve(shared, request, version, codec, io).await
        }
        (_, carrier) => Err(SessionError::Mismatch(carrier)),
    }
}

/// Runs `work` over a SPDY connection whose new streams are put to `open`, until `work` is done, the client leaves, or
/// nothing moves any more.
pub(super) async fn over_spdy(
    shared: &Shared,
    io: impl Io,
    open: impl FnMut(Offer, &Headers),
    work: impl Future<Output = Result<(), SessionError>>,
) -> Result<(), SessionError> {
    let (read, write) = tokio::io::split(io);
    let connection = Connection::new(write);
    let mut reading = std::pin::pin!(spdy::read(&connection, read, open));
    let limit = shared.limits().idle;
    let ended = tokio::select! {
        done = work => done,
        left = &mut reading => return left.map_err(SessionError::Spdy),
        () = connection.pump_control() => return Err(SessionError::Spdy(ReadError::Deaf)),
        () = connection.activity().idle(limit) => Err(SessionError::Idle(limit)),
    };
    // Closing a socket with unread bytes in it makes the kernel drop what is on its way out, so the client goes first.
    // How it goes does not matter any more: programs exit in the middle of a frame.
    let close = async {
        if connection.close().await.is_ok() {
            let _ = reading.await;
        }
    };
    let _ = timeout(FAREWELL, close).await;
    ended
}
