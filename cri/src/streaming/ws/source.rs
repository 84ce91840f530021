//! The receiving side: messages in pieces, control frames answered on the way.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::ReadHalf;
use tokio::time::timeout;

use super::frame::{self, FrameError, Head, Opcode};
use super::{NORMAL, PROTOCOL_ERROR, Sink};
use crate::streaming::handshake::{Codec, Version};
use crate::streaming::pipe::Inlet;
use crate::streaming::session::{FAREWELL, Io};
use crate::streaming::wire;

/// The channel of v5 that ends others.
const CLOSE: u8 = 255;

/// The receiving side of a connection.
pub(in crate::streaming) struct Source {
    bytes: wire::Source<ReadHalf<Box<dyn Io>>>,
    sink: Arc<Sink>,
    version: Version,
    /// The data frame being read; its length is what is left of it.
    frame: Option<Head>,
    /// A message has begun and not ended.
    open: bool,
}

/// A part of a message.
pub(super) struct Piece<'a> {
    pub(super) bytes: &'a mut [u8],
    /// It is the first of its message.
    begins: bool,
    /// It is the last of its message.
    ends: bool,
}

/// Channel and data of a piece.
type Part<'a> = (u8, Cow<'a, [u8]>);

/// What is known of a message while its pieces come.
#[derive(Default)]
struct Message {
    channel: Option<u8>,
    /// Base64 that does not make up a group of four yet.
    rest: Vec<u8>,
}

/// Why the reading ended before the client's farewell.
#[derive(Debug, thiserror::Error)]
pub(in crate::streaming) enum ReadError {
    /// The connection broke.
    #[error("the connection broke")]
    Io(#[source] io::Error),
    /// The client does not speak WebSocket.
    #[error("the client broke the WebSocket protocol")]
    Frame(#[from] FrameError),
    /// A base64 message does not begin with a digit, or is not base64.
    #[error("a message is not a digit and base64")]
    Base64,
}

// === impl Source ===

impl Source {
    pub(super) fn new(io: ReadHalf<Box<dyn Io>>, sink: Arc<Sink>, version: Version) -> Self {
        Self { bytes: wire::Source::new(io), sink, version, frame: None, open: false }
    }

    /// Reads until the client closes, handing the bytes of channel n to the n-th inlet. Other channels are dropped.
    pub(in crate::streaming) async fn read(mut self, mut inlets: Vec<Inlet>) -> Result<(), ReadError> {
        let (sink, version) = (self.sink.clone(), self.version);
        let mut message = Message::default();
        while let Some(piece) = self.piece().await? {
            if piece.begins {
                message = Message::default();
            }
            let Some((channel, data)) = message.take(&piece, sink.codec)? else { continue };
            if (channel, version) == (CLOSE, Version::V5) {
                let ended = data.first().and_then(|&ended| inlets.get_mut(usize::from(ended)));
                ended.into_iter().for_each(|inlet| *inlet = Inlet::Nothing);
            } else if let Some(inlet) = inlets.get_mut(usize::from(channel)) {
                tokio::select! {
                    () = inlet.push(&data) => {}
                    never = sink.signs_of_life() => match never {},
                }
            }
        }
        Ok(())
    }

    /// The next piece of a message; `None`: the client closed or left.
    pub(super) async fn piece(&mut self) -> Result<Option<Piece<'_>>, ReadError> {
        let begins = !self.open;
        let Some(mut frame) = self.data_frame().await? else { return Ok(None) };
        let most = usize::try_from(frame.length).unwrap_or(usize::MAX);
        let bytes = match most {
            0 => &mut [][..],
            most => self.bytes.piece(most).await.map_err(ReadError::Io)?,
        };
        self.sink.activity.touch();
        frame::unmask(bytes, &mut frame.mask);
        frame.length -= bytes.len() as u64;
        let ends = frame.fin && frame.length == 0;
        self.open = !ends;
        self.frame = Some(frame).filter(|frame| frame.length > 0);
        Ok(Some(Piece { bytes, begins, ends }))
    }

    /// The data frame that is being read, or else the next one; control frames before it are answered.
    async fn data_frame(&mut self) -> Result<Option<Head>, ReadError> {
        if let Some(frame) = self.frame.take() {
            return Ok(Some(frame));
        }
        loop {
            let Some(head) = self.head().await? else { return Ok(None) };
            match head.opcode {
                Opcode::Text | Opcode::Binary if !self.open => return Ok(Some(head)),
                Opcode::Continuation if self.open => return Ok(Some(head)),
                Opcode::Text | Opcode::Binary | Opcode::Continuation => {
                    return Err(self.broken(FrameError::Order).await);
                }
                Opcode::Close => {
                    // Nobody waits for more: a client that does not take the answer does without.
                    let _ = timeout(FAREWELL, self.sink.close(NORMAL)).await;
                    return Ok(None);
                }
                Opcode::Ping | Opcode::Pong => {
                    let length = usize::try_from(head.length).unwrap_or(0);
                    let mut payload = self.bytes.exact(length).await.map_err(ReadError::Io)?;
                    if head.opcode == Opcode::Ping {
                        frame::unmask(&mut payload, &mut { head.mask });
                        self.sink.pong(&payload);
                    }
                    self.sink.activity.touch();
                }
            }
        }
    }

    async fn head(&mut self) -> Result<Option<Head>, ReadError> {
        let Some(first) = self.bytes.head::<2>().await.map_err(ReadError::Io)? else { return Ok(None) };
        let rest = self.bytes.exact(frame::more(first)).await.map_err(ReadError::Io)?;
        match frame::head(first, &rest) {
            Ok(head) => Ok(Some(head)),
            Err(error) => Err(self.broken(error).await),
        }
    }

    /// Tells the client that it broke the protocol.
    async fn broken(&mut self, error: FrameError) -> ReadError {
        let _ = timeout(FAREWELL, self.sink.close(PROTOCOL_ERROR)).await;
        error.into()
    }
}

// === impl Message ===

impl Message {
    /// Channel and data of the next piece; `None` while not even the channel has come.
    fn take<'a>(&mut self, piece: &'a Piece<'_>, codec: Codec) -> Result<Option<Part<'a>>, ReadError> {
        let mut bytes = &*piece.bytes;
        let channel = match (self.channel, bytes.split_first()) {
            (Some(channel), _) => channel,
            (None, None) => return Ok(None),
            (None, Some((&head, rest))) => {
                bytes = rest;
                let channel = match codec {
                    Codec::Binary => head,
                    Codec::Base64 if head.is_ascii_digit() => head - b'0',
                    Codec::Base64 => return Err(ReadError::Base64),
                };
                *self.channel.insert(channel)
            }
        };
        let data = match codec {
            Codec::Binary => Cow::Borrowed(bytes),
            Codec::Base64 => Cow::Owned(self.decode(bytes, piece.ends)?),
        };
        Ok(Some((channel, data)))
    }

    /// Decodes whole groups of four and keeps the rest for the next piece.
    fn decode(&mut self, bytes: &[u8], ends: bool) -> Result<Vec<u8>, ReadError> {
        self.rest.extend_from_slice(bytes);
        let whole = if ends { self.rest.len() } else { self.rest.len() / 4 * 4 };
        let groups: Vec<u8> = self.rest.drain(..whole).collect();
        STANDARD.decode(groups).map_err(|_| ReadError::Base64)
    }
}
