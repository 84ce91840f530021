//! WebSocket as a carrier: channels in messages, or a tunnel for SPDY.
//!
//! A message begins with its channel, as a byte or, for base64, a digit. `v5.channel.k8s.io` adds `[255][n]`, the end of
//! channel n. As with SPDY, a slow reader of one channel stops the whole connection from being read.

mod tunnel;

#[cfg(test)]
pub(crate) mod tests;

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::activity::Activity;
use super::handshake::{Codec, Version};
use super::pipe::Inlet;
use super::session::{FAREWELL, Io, SessionError};

pub(super) use tunnel::Tunnel;

/// Bytes of the channel in front of a message.
pub(super) const HEAD: usize = 1;
/// Longest message read: what the reference server takes. Clients in Python send a whole file as one.
const LONGEST_MESSAGE: usize = 32 << 20;
/// The channel of v5 that ends others.
const CLOSE: u8 = 255;
/// How often a client whose data cannot be read gets a PONG: its own PINGs are stuck behind that data, and it gives a
/// connection up after a minute without an answer (RFC 6455 section 5.5.3 allows them unasked).
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

type Socket = WebSocketStream<Box<dyn Io>>;

/// The sending side of a connection.
pub(super) struct Sink {
    messages: tokio::sync::Mutex<SplitSink<Socket, Message>>,
    codec: Codec,
    activity: Activity,
}

/// The receiving side of a connection.
pub(super) struct Source {
    messages: SplitStream<Socket>,
    sink: Arc<Sink>,
    version: Version,
}

/// One outgoing channel.
pub(super) struct Channel {
    number: u8,
    sink: Arc<Sink>,
}

/// Why the reading ended before the client's farewell.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// The connection broke, or the client does not speak WebSocket.
    #[error("the connection broke")]
    WebSocket(#[source] Box<Error>),
    /// A base64 message does not begin with a digit, or is not base64.
    #[error("a message is not a digit and base64")]
    Base64,
}

/// Both sides of an upgraded connection.
pub(super) async fn open(io: impl Io, codec: Codec, version: Version) -> (Arc<Sink>, Source) {
    let (sink, messages) = socket(io).await.split();
    let sink = Arc::new(Sink { messages: tokio::sync::Mutex::new(sink), codec, activity: Activity::new() });
    (sink.clone(), Source { messages, sink, version })
}

async fn socket(io: impl Io) -> Socket {
    let config = WebSocketConfig::default()
        .read_buffer_size(16 << 10)
        .write_buffer_size(0)
        .max_message_size(Some(LONGEST_MESSAGE))
        .max_frame_size(Some(LONGEST_MESSAGE));
    let io: Box<dyn Io> = Box::new(io);
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// Runs `work` over a WebSocket connection until it is done, the client leaves, or nothing moves for `limit`.
pub(super) async fn conduct(
    sink: &Sink,
    source: Source,
    inlets: Vec<Inlet>,
    limit: Duration,
    work: impl Future<Output = Result<(), SessionError>>,
) -> Result<(), SessionError> {
    let mut reading = std::pin::pin!(source.read(inlets));
    let ended = tokio::select! {
        done = work => done,
        left = &mut reading => return left.map_err(SessionError::WebSocket),
        () = sink.activity.idle(limit) => Err(SessionError::Idle(limit)),
    };
    // The client answers our Close with its own; its end is the end.
    let close = async {
        sink.close().await.map_err(SessionError::Write)?;
        reading.await.map_err(SessionError::WebSocket)
    };
    match timeout(FAREWELL, close).await {
        Ok(closed) => ended.and(closed),
        Err(_) => ended,
    }
}

// === impl Sink ===

impl Sink {
    /// A channel to send on.
    pub(super) fn channel(self: &Arc<Self>, number: u8) -> Channel {
        Channel { number, sink: self.clone() }
    }

    /// Ends the connection with code 1000: clients take anything else for a failure.
    pub(super) async fn close(&self) -> io::Result<()> {
        let close = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        self.send(Message::Close(Some(close))).await
    }

    async fn send(&self, message: Message) -> io::Result<()> {
        let sent = self.messages.lock().await.send(message).await;
        self.activity.touch();
        sent.map_err(io::Error::other)
    }

    async fn signs_of_life(&self) -> Infallible {
        let mut ticks = interval(SIGN_OF_LIFE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            // A failure shows where the session itself writes.
            let _ = self.send(Message::Pong(Bytes::new())).await;
        }
    }
}

// === impl Channel ===

impl Channel {
    /// Sends the bytes behind the first [`HEAD`] as one message. Returns when the kernel has them.
    pub(super) async fn send(&mut self, frame: &mut [u8]) -> io::Result<()> {
        let Some((head, data)) = frame.split_first_mut() else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let message = match self.sink.codec {
            Codec::Binary => {
                *head = self.number;
                Message::Binary(Bytes::copy_from_slice(frame))
            }
            Codec::Base64 => {
                let mut text = String::with_capacity(1 + data.len().div_ceil(3) * 4);
                text.push(char::from(b'0' + self.number % 10));
                STANDARD.encode_string(data, &mut text);
                Message::text(text)
            }
        };
        self.sink.send(message).await
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").field("number", &self.number).finish_non_exhaustive()
    }
}

// === impl Source ===

impl Source {
    /// Reads until the client closes, handing the bytes of channel n to the n-th inlet. Other channels are dropped.
    pub(super) async fn read(mut self, mut inlets: Vec<Inlet>) -> Result<(), ReadError> {
        while let Some(message) = self.messages.next().await {
            self.sink.activity.touch();
            let message = match message {
                Ok(Message::Binary(bytes)) => bytes,
                Ok(Message::Text(text)) => text.into(),
                // PING is answered by the library, with the next read or write.
                Ok(_) => continue,
                Err(Error::ConnectionClosed) => return Ok(()),
                Err(error) => return Err(ReadError::WebSocket(Box::new(error))),
            };
            let Some((channel, data)) = decode(self.sink.codec, &message)? else { continue };
            if let (CLOSE, Version::V5, Some(&ended)) = (channel, self.version, data.first()) {
                if let Some(inlet) = inlets.get_mut(usize::from(ended)) {
                    *inlet = Inlet::Nothing;
                }
            } else if let Some(inlet) = inlets.get_mut(usize::from(channel)) {
                tokio::select! {
                    () = inlet.push(&data) => {}
                    never = self.sink.signs_of_life() => match never {},
                }
            }
        }
        Ok(())
    }
}

/// Channel and data of a message; `None` for an empty one.
fn decode(codec: Codec, message: &Bytes) -> Result<Option<(u8, Bytes)>, ReadError> {
    let Some(&head) = message.first() else { return Ok(None) };
    let data = message.slice(1..);
    match codec {
        Codec::Binary => Ok(Some((head, data))),
        Codec::Base64 if head.is_ascii_digit() => {
            let data = STANDARD.decode(data).map_err(|_| ReadError::Base64)?;
            Ok(Some((head - b'0', data.into())))
        }
        Codec::Base64 => Err(ReadError::Base64),
    }
}
