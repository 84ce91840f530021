//! The streams of a connection and its sending side.
//!
//! Whoever sends takes the write lock, which is fair, writes one frame, and gives it back: a stream that floods takes
//! turns with the others. Control frames wait in a short queue of their own and go out before the next data frame, so
//! the reader never waits for the network to answer a PING.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::AsyncWrite;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::frame::{self, HEAD, LONGEST_DATA, Status};
use super::headers::empty_block;
use crate::streaming::activity::Activity;
use crate::streaming::pipe::Inlet;
use crate::streaming::wire::Writer;

/// Streams one connection may have open: 256 forwarded connections of two streams each.
const MOST_STREAMS: usize = 512;
/// Control frames that may wait while the client does not read. A client that asks for more is cut off.
const MOST_CONTROL: usize = 4 * MOST_STREAMS;
/// Beyond this many waiting control frames a PING is not worth another.
const MOST_BEFORE_PING: usize = 16;

/// What the reader, the senders and the session share.
pub(crate) struct Connection {
    writer: tokio::sync::Mutex<Writer>,
    state: Mutex<State>,
    /// Control frames wait.
    wake: Notify,
    /// The connection is beyond use: the client went away, or does not read its control frames.
    dead: CancellationToken,
    activity: Activity,
}

#[derive(Default)]
struct State {
    streams: HashMap<u32, Entry>,
    /// Highest stream id the client has used.
    last: u32,
    replied: bool,
    control: VecDeque<Vec<u8>>,
}

struct Entry {
    /// Where incoming bytes go; out while the reader is pushing; `None` for good after the client's end.
    inlet: Option<Inlet>,
    client_ended: bool,
    we_ended: bool,
    reset: CancellationToken,
}

/// A stream the client wants to open. Dropping it refuses.
#[derive(Debug)]
pub(crate) struct Offer {
    connection: Arc<Connection>,
    stream: u32,
    /// The client has already ended its side.
    fin: bool,
    refusal: Option<Status>,
}

/// Our side of an open stream. Dropping it before [`finish`](Self::finish) resets the stream; after it, what the client
/// still sends is dropped.
pub(crate) struct Sender {
    connection: Arc<Connection>,
    stream: u32,
    reset: CancellationToken,
}

/// What became of data for a stream.
pub(super) enum Taken {
    /// It goes here; give it back with [`Connection::give_back`].
    Inlet(Inlet),
    /// The stream has ended, here or there: drop the data.
    Ended,
}

// === impl Connection ===

impl Connection {
    pub(crate) fn new(io: impl AsyncWrite + Send + Unpin + 'static) -> Arc<Self> {
        Arc::new(Self {
            writer: tokio::sync::Mutex::new(Writer::new(io)),
            state: Mutex::default(),
            wake: Notify::new(),
            dead: CancellationToken::new(),
            activity: Activity::new(),
        })
    }

    /// Writes control frames when nobody else writes. Runs as long as the session; returns when the connection is dead.
    pub(crate) async fn pump_control(&self) {
        let pump = async {
            loop {
                self.wake.notified().await;
                if self.write(None, &[]).await.is_err() {
                    return;
                }
            }
        };
        self.dead.run_until_cancelled(pump).await;
    }

    /// Says farewell and closes the sending side. All that was sent before has been handed to the kernel by then.
    pub(crate) async fn close(&self) -> io::Result<()> {
        let last = self.state().last;
        self.write(None, &frame::goaway(last)).await?;
        self.writer.lock().await.shutdown().await
    }

    pub(super) fn is_dead(&self) -> &CancellationToken {
        &self.dead
    }

    pub(crate) fn activity(&self) -> &Activity {
        &self.activity
    }

    /// Puts a control frame in line; the queue is bounded by giving up the client.
    pub(super) fn control(&self, frame: Vec<u8>) {
        {
            let mut state = self.state();
            if state.control.len() >= MOST_CONTROL {
                self.dead.cancel();
                return;
            }
            state.control.push_back(frame);
        }
        self.wake.notify_one();
    }

    /// Takes note of a SYN_STREAM. `Err`: the id breaks the protocol.
    pub(super) fn offered(self: &Arc<Self>, stream: u32, fin: bool) -> Result<Offer, ()> {
        let mut state = self.state();
        if stream.is_multiple_of(2) || stream <= state.last {
            return Err(());
        }
        state.last = stream;
        let refusal =
            if state.streams.len() >= MOST_STREAMS { Status::Refused } else { Status::ProtocolError };
        Ok(Offer { connection: self.clone(), stream, fin, refusal: Some(refusal) })
    }

    /// Whether one more stream may be opened.
    pub(super) fn has_room(&self) -> bool {
        self.state().streams.len() < MOST_STREAMS
    }

    /// Lends the inlet of a stream, to push into it without holding a lock.
    pub(super) fn take(&self, stream: u32) -> Taken {
        let mut state = self.state();
        let last = state.last;
        let refuse = match state.streams.get_mut(&stream) {
            Some(entry) if entry.client_ended => Status::AlreadyClosed,
            Some(entry) => return entry.inlet.take().map_or(Taken::Ended, Taken::Inlet),
            // Still under way when we ended the stream.
            None if stream <= last => return Taken::Ended,
            None => Status::InvalidStream,
        };
        drop(state);
        self.control(frame::rst_stream(stream, refuse));
        Taken::Ended
    }

    pub(super) fn give_back(&self, stream: u32, inlet: Inlet) {
        if let Some(entry) = self.state().streams.get_mut(&stream) {
            entry.inlet = Some(inlet);
        }
    }

    /// The client ended its side.
    pub(super) fn client_ended(&self, stream: u32) {
        let mut state = self.state();
        if let Some(entry) = state.streams.get_mut(&stream) {
            entry.client_ended = true;
            entry.inlet = None;
            if entry.we_ended {
                state.streams.remove(&stream);
            }
        }
    }

    /// The client reset the stream.
    pub(super) fn client_reset(&self, stream: u32) {
        if let Some(entry) = self.state().streams.remove(&stream) {
            entry.reset.cancel();
        }
    }

    /// Puts a PING, or the answer to one, in line unless there are many already.
    pub(super) fn ping(&self, id: u32) {
        if self.state().control.len() < MOST_BEFORE_PING {
            self.control(frame::ping(id));
        }
    }

    /// Writes what waits, then `bytes`, as one turn. Nothing is written for a stream that is gone.
    async fn write(&self, stream: Option<u32>, bytes: &[u8]) -> io::Result<()> {
        let mut writer = self.writer.lock().await;
        {
            let mut state = self.state();
            if stream.is_some_and(|stream| state.streams.get(&stream).is_none_or(|entry| entry.we_ended)) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            state.control.drain(..).for_each(|frame| writer.before(&frame));
        }
        let written = writer.write(bytes).await;
        if written.is_err() {
            self.dead.cancel();
        }
        self.activity.touch();
        written
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("streams", &self.state().streams.len()).finish_non_exhaustive()
    }
}

// === impl Offer ===

impl Offer {
    /// Opens the stream: replies, and lets its bytes flow into `inlet`.
    pub(crate) fn accept(mut self, inlet: Inlet) -> Sender {
        self.refusal = None;
        let reset = CancellationToken::new();
        let first = {
            let mut state = self.connection.state();
            let entry = Entry {
                inlet: (!self.fin).then_some(inlet),
                client_ended: self.fin,
                we_ended: false,
                reset: reset.clone(),
            };
            state.streams.insert(self.stream, entry);
            !std::mem::replace(&mut state.replied, true)
        };
        self.connection.control(frame::syn_reply(self.stream, &empty_block(first)));
        Sender { connection: self.connection.clone(), stream: self.stream, reset }
    }

    /// Id of the stream.
    pub(crate) fn stream(&self) -> u32 {
        self.stream
    }

    /// Refuses for want of room rather than of sense.
    pub(crate) fn refuse(mut self) {
        self.refusal = Some(Status::Refused);
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        if let Some(status) = self.refusal {
            self.connection.control(frame::rst_stream(self.stream, status));
        }
    }
}

// === impl Sender ===

impl Sender {
    /// Sends the bytes behind the first [`HEAD`], which are overwritten with the frame's head. Returns when the kernel
    /// has them. `BrokenPipe`: the client reset the stream or left.
    pub(crate) async fn send(&mut self, frame: &mut [u8]) -> io::Result<()> {
        let length = frame.len().saturating_sub(HEAD);
        let Some(head) = frame.first_chunk_mut::<HEAD>().filter(|_| length <= LONGEST_DATA) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        *head = frame::data_head(self.stream, false, length);
        self.connection.write(Some(self.stream), frame).await
    }

    /// Ends our side; the client may go on sending. Doing it again changes nothing.
    pub(crate) async fn finish(&mut self) -> io::Result<()> {
        if self.ended() {
            return Ok(());
        }
        self.connection.write(Some(self.stream), &frame::data_head(self.stream, true, 0)).await?;
        let mut state = self.connection.state();
        if let Some(entry) = state.streams.get_mut(&self.stream) {
            entry.we_ended = true;
            if entry.client_ended {
                state.streams.remove(&self.stream);
            }
        }
        Ok(())
    }

    /// Resolves when the client resets the stream.
    pub(crate) fn reset(&self) -> CancellationToken {
        self.reset.clone()
    }

    fn ended(&self) -> bool {
        self.connection.state().streams.get(&self.stream).is_none_or(|entry| entry.we_ended)
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let removed = self.connection.state().streams.remove(&self.stream);
        if removed.is_some_and(|entry| !entry.we_ended) {
            self.connection.control(frame::rst_stream(self.stream, Status::Cancel));
        }
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("stream", &self.stream).finish_non_exhaustive()
    }
}
