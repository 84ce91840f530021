//! The loop that reads a client's frames and hands their bytes on.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncRead;
use tokio::time::{MissedTickBehavior, interval};

use super::connection::{Connection, Offer, Taken};
use super::frame::{self, Control, FrameError, Head};
use super::headers::{Headers, Inflater};
use crate::streaming::wire::Source;

/// How often a client is asked for a sign of life while its data cannot be read, for then its end is not seen either.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

/// Why the reading ended before the client's farewell.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The connection broke.
    #[error("the connection broke")]
    Io(#[source] io::Error),
    /// The client does not speak SPDY/3.1.
    #[error("the client broke the SPDY protocol")]
    Frame(#[from] FrameError),
    /// The client opened a stream out of order.
    #[error("the client broke the SPDY protocol by opening stream {0}")]
    StreamId(u32),
    /// The client does not read what it asked for.
    #[error("the client does not read its control frames")]
    Deaf,
}

/// Reads until the client leaves: `Ok` on GOAWAY or the end of the connection at a frame boundary. Each new stream is
/// put to `open`, which accepts it or drops it.
pub(crate) async fn read(
    connection: &Arc<Connection>,
    io: impl AsyncRead + Unpin,
    open: impl FnMut(Offer, &Headers),
) -> Result<(), ReadError> {
    let mut reader = Reader { source: Source::new(io), inflater: Inflater::new(), connection, open };
    connection.is_dead().run_until_cancelled(reader.run()).await.unwrap_or(Err(ReadError::Deaf))
}

struct Reader<'a, R, F> {
    source: Source<R>,
    inflater: Inflater,
    connection: &'a Arc<Connection>,
    open: F,
}

// === impl Reader ===

impl<R: AsyncRead + Unpin, F: FnMut(Offer, &Headers)> Reader<'_, R, F> {
    async fn run(&mut self) -> Result<(), ReadError> {
        loop {
            let Some(head) = self.source.head().await.map_err(ReadError::Io)? else { return Ok(()) };
            self.connection.activity().touch();
            if self.connection.is_dead().is_cancelled() {
                return Err(ReadError::Deaf);
            }
            match frame::head(head)? {
                Head::Data { stream, fin, length } => {
                    self.data(stream, length).await.map_err(ReadError::Io)?;
                    if fin {
                        self.connection.client_ended(stream);
                    }
                }
                Head::Control { kind, flags, length } => {
                    let payload = self.source.exact(length).await.map_err(ReadError::Io)?;
                    let control = frame::control(kind, flags, &payload, &mut self.inflater)?;
                    if matches!(control, Control::GoAway) {
                        return Ok(());
                    }
                    self.control(control)?;
                }
            }
        }
    }

    fn control(&mut self, control: Control) -> Result<(), ReadError> {
        match control {
            Control::SynStream { stream, fin, headers } => {
                let offer = self.connection.offered(stream, fin).map_err(|()| ReadError::StreamId(stream))?;
                if self.connection.has_room() {
                    (self.open)(offer, &headers);
                }
            }
            Control::Reset { stream } => self.connection.client_reset(stream),
            // Even ids are answers to our own.
            Control::Ping { id } if id % 2 == 1 => self.connection.ping(id),
            Control::Headers { stream, fin: true } => self.connection.client_ended(stream),
            Control::Ping { .. } | Control::Headers { .. } | Control::GoAway | Control::Ignored => {}
        }
        Ok(())
    }

    /// Hands `length` bytes to a stream, piece by piece as they come.
    async fn data(&mut self, stream: u32, length: usize) -> io::Result<()> {
        let mut taken = self.connection.take(stream);
        let mut left = length;
        while left > 0 {
            let piece = self.source.piece(left).await?;
            left -= piece.len();
            self.connection.activity().touch();
            if let Taken::Inlet(inlet) = &mut taken {
                let push = inlet.push(piece);
                tokio::select! {
                    () = push => {}
                    never = signs_of_life(self.connection) => match never {},
                }
            }
        }
        if let Taken::Inlet(inlet) = taken {
            self.connection.give_back(stream, inlet);
        }
        Ok(())
    }
}

/// Pings a client while the reader waits for a slow stream. A client that has gone answers with a TCP reset, which ends
/// the connection through the writer.
async fn signs_of_life(connection: &Connection) -> std::convert::Infallible {
    let mut ticks = interval(SIGN_OF_LIFE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let mut id = 0_u32;
    loop {
        ticks.tick().await;
        id = id.wrapping_add(2);
        connection.ping(id);
    }
}
