//! WebSocket as a carrier (RFC 6455): channels in messages, or a tunnel for SPDY.
//!
//! A message begins with its channel, as a byte or, for base64, a digit. `v5.channel.k8s.io` adds `[255][n]`, the end of
//! channel n. Clients send whole files as one message, so messages are never held: their payload passes through in the
//! pieces in which it comes. As with SPDY, a slow reader of one channel stops the whole connection from being read.
//!
//! [`frame`] is the codec; [`source`] reads messages and answers PING and Close; this file sends; [`tunnel`].

mod frame;
mod source;
mod tunnel;

#[cfg(test)]
pub(crate) mod tests;

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use self::frame::{LONGEST_HEAD, Opcode};
use super::activity::Activity;
use super::handshake::{Codec, Version};
use super::pipe::Inlet;
use super::session::{FAREWELL, Io, SessionError};
use super::wire::Writer;

pub(super) use source::{ReadError, Source};
pub(super) use tunnel::through;

/// Bytes in front of a message: its head and its channel.
pub(super) const HEAD: usize = LONGEST_HEAD + 1;
/// Close codes (section 7.4.1). Clients take anything but the first for a failure.
const NORMAL: u16 = 1000;
const PROTOCOL_ERROR: u16 = 1002;
/// How often a client whose data cannot be read gets a PONG: its own PINGs are stuck behind that data, and it gives a
/// connection up after a minute without an answer (section 5.5.3 allows them unasked).
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

/// The sending side of a connection.
pub(super) struct Sink {
    writer: tokio::sync::Mutex<Writer>,
    state: Mutex<State>,
    /// A PONG waits.
    wake: Notify,
    /// The client cannot be written to.
    dead: CancellationToken,
    codec: Codec,
    activity: Activity,
}

#[derive(Default)]
struct State {
    /// The answer to the latest PING; earlier ones need none (section 5.5.3).
    pong: Option<Vec<u8>>,
    /// Close has been sent: nothing may follow.
    closed: bool,
}

/// One outgoing channel.
pub(super) struct Channel {
    number: u8,
    sink: Arc<Sink>,
}

/// Both sides of an upgraded connection.
pub(super) fn open(io: impl Io, codec: Codec, version: Version) -> (Arc<Sink>, Source) {
    let io: Box<dyn Io> = Box::new(io);
    let (read, write) = tokio::io::split(io);
    let sink = Arc::new(Sink {
        writer: tokio::sync::Mutex::new(Writer::new(write)),
        state: Mutex::default(),
        wake: Notify::new(),
        dead: CancellationToken::new(),
        codec,
        activity: Activity::new(),
    });
    (sink.clone(), Source::new(read, sink, version))
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
        error = sink.pump_pongs() => return Err(SessionError::Write(error)),
        () = sink.activity.idle(limit) => Err(SessionError::Idle(limit)),
    };
    // The client answers our Close with its own, or goes in another way: it does not matter any more.
    let close = async {
        if sink.close(NORMAL).await.is_ok() {
            let _ = reading.await;
        }
    };
    let _ = timeout(FAREWELL, close).await;
    ended
}

// === impl Sink ===

impl Sink {
    /// A channel to send on.
    pub(super) fn channel(self: &Arc<Self>, number: u8) -> Channel {
        Channel { number, sink: self.clone() }
    }

    /// Sends Close and ends the sending side; the second time it does nothing.
    async fn close(&self, code: u16) -> io::Result<()> {
        let frame = frame::server_frame(Opcode::Close, &code.to_be_bytes());
        let mut writer = self.writer.lock().await;
        if std::mem::replace(&mut self.state().closed, true) {
            return Ok(());
        }
        writer.write(&frame).await?;
        writer.shutdown().await
    }

    /// Sends one whole frame, after the PONG that may wait.
    async fn send(&self, frame: &[u8]) -> io::Result<()> {
        let mut writer = self.writer.lock().await;
        {
            let mut state = self.state();
            if state.closed {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            if let Some(pong) = state.pong.take() {
                writer.before(&pong);
            }
        }
        let written = writer.write(frame).await;
        if written.is_err() {
            self.dead.cancel();
        }
        self.activity.touch();
        written
    }

    /// Puts a PONG in line; the reader never waits for the network.
    fn pong(&self, payload: &[u8]) {
        self.state().pong = Some(frame::server_frame(Opcode::Pong, payload));
        self.wake.notify_one();
    }

    /// Writes PONGs when nobody else writes. Runs as long as the session; returns when the client cannot be written to.
    async fn pump_pongs(&self) -> io::Error {
        loop {
            tokio::select! {
                () = self.dead.cancelled() => return io::ErrorKind::BrokenPipe.into(),
                () = self.wake.notified() => {}
            }
            if let Err(error) = self.send(&[]).await {
                return error;
            }
        }
    }

    async fn signs_of_life(&self) -> Infallible {
        let mut ticks = interval(SIGN_OF_LIFE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            self.pong(&[]);
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Channel ===

impl Channel {
    /// Sends the bytes behind the first [`HEAD`] as one message. Returns when the kernel has them.
    pub(super) async fn send(&mut self, frame: &mut [u8]) -> io::Result<()> {
        let Some((front, data)) = frame.split_first_chunk_mut::<HEAD>() else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        match self.sink.codec {
            Codec::Binary => {
                let (head, length) = frame::server_head(Opcode::Binary, 1 + data.len());
                let start = LONGEST_HEAD - length;
                front[start..LONGEST_HEAD].copy_from_slice(&head[..length]);
                front[LONGEST_HEAD] = self.number;
                self.sink.send(&frame[start..]).await
            }
            Codec::Base64 => {
                let mut text = String::with_capacity(1 + data.len().div_ceil(3) * 4);
                text.push(char::from(b'0' + self.number % 10));
                STANDARD.encode_string(data, &mut text);
                self.sink.send(&frame::server_frame(Opcode::Text, text.as_bytes())).await
            }
        }
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").field("number", &self.number).finish_non_exhaustive()
    }
}
