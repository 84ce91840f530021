//! SPDY/3.1 frames: bytes to values and back, without I/O (SPDY/3 draft, section 2.2 and 2.6).
//!
//! ```text
//! control  |1| version:15 | type:16 | flags:8 | length:24 |      data  |0| stream:31 | flags:8 | length:24 |
//! ```

use super::headers::{HeaderError, Headers, Inflater};

/// Bytes of every frame's head.
pub(crate) const HEAD: usize = 8;
/// Longest control frame that is read; the longest legitimate one, a SYN_STREAM, stays below 1 KiB.
pub(super) const LONGEST_CONTROL: usize = 64 << 10;
/// Most payload of a data frame: its length has 24 bits.
pub(crate) const LONGEST_DATA: usize = (1 << 24) - 1;

const VERSION: u16 = 3;
const FLAG_FIN: u8 = 1;
const STREAM_MASK: u32 = 0x7fff_ffff;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

/// The first eight bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// `length` bytes for a stream follow.
    Data { stream: u32, fin: bool, length: usize },
    /// `length` bytes of a control frame follow, for [`control`].
    Control { kind: u16, flags: u8, length: usize },
}

/// A control frame that means something to a server.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Control {
    /// The client opens a stream.
    SynStream { stream: u32, fin: bool, headers: Headers },
    /// The client gives up a stream.
    Reset { stream: u32 },
    /// To be sent back when the id is the client's, that is, odd.
    Ping { id: u32 },
    /// The client is about to leave.
    GoAway,
    /// More headers: of no use here, but they may end the stream.
    Headers { stream: u32, fin: bool },
    /// SETTINGS, WINDOW_UPDATE, and what is not known: Kubernetes speaks SPDY without flow control.
    Ignored,
}

/// Why a stream is reset (SPDY/3 draft, section 2.6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// The stream's opening made no sense.
    ProtocolError = 1,
    /// A frame for a stream that never was.
    InvalidStream = 2,
    /// Not opened: too many.
    Refused = 3,
    /// Not needed any more.
    Cancel = 5,
    /// Data after the end.
    AlreadyClosed = 9,
}

/// What is wrong with a frame. The connection cannot go on after it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    /// Another protocol, or a lost frame boundary.
    #[error("SPDY version {0} instead of 3")]
    Version(u16),
    /// Longer than any honest one.
    #[error("control frame of {0} bytes")]
    TooLong(usize),
    /// Shorter than its type demands.
    #[error("control frame of type {kind} is cut short at {length} bytes")]
    Short {
        /// Frame type.
        kind: u16,
        /// Length as announced.
        length: usize,
    },
    /// The header block cannot be read.
    #[error("header block of a control frame")]
    Headers(#[from] HeaderError),
}

/// Reads a frame's head.
pub(super) fn head(bytes: [u8; HEAD]) -> Result<Head, FrameError> {
    let [a, b, c, d, flags, x, y, z] = bytes;
    let length = u32::from_be_bytes([0, x, y, z]) as usize;
    let first = u32::from_be_bytes([a, b, c, d]);
    if first & !STREAM_MASK == 0 {
        return Ok(Head::Data { stream: first, fin: flags & FLAG_FIN != 0, length });
    }
    let version = u16::from_be_bytes([a & 0x7f, b]);
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    if length > LONGEST_CONTROL {
        return Err(FrameError::TooLong(length));
    }
    Ok(Head::Control { kind: u16::from_be_bytes([c, d]), flags, length })
}

/// Reads a control frame's payload. Header blocks pass through `inflater` even when nobody wants them, because they
/// share one compression state.
pub(super) fn control(
    kind: u16,
    flags: u8,
    payload: &[u8],
    inflater: &mut Inflater,
) -> Result<Control, FrameError> {
    let short = || FrameError::Short { kind, length: payload.len() };
    let word = || payload.first_chunk::<4>().map(|word| u32::from_be_bytes(*word)).ok_or_else(short);
    let block = |after: usize| payload.get(after..).ok_or_else(short);
    let fin = flags & FLAG_FIN != 0;
    Ok(match kind {
        SYN_STREAM => {
            // Stream, associated stream, priority and slot come before the headers.
            let headers = inflater.block(block(10)?)?;
            Control::SynStream { stream: word()? & STREAM_MASK, fin, headers }
        }
        SYN_REPLY => {
            inflater.block(block(4)?)?;
            Control::Ignored
        }
        HEADERS => {
            inflater.block(block(4)?)?;
            Control::Headers { stream: word()? & STREAM_MASK, fin }
        }
        RST_STREAM => Control::Reset { stream: word()? & STREAM_MASK },
        PING => Control::Ping { id: word()? },
        GOAWAY => Control::GoAway,
        _ => Control::Ignored,
    })
}

/// Head of a data frame with `length` bytes, which must not exceed [`LONGEST_DATA`].
pub(super) fn data_head(stream: u32, fin: bool, length: usize) -> [u8; HEAD] {
    let [a, b, c, d] = (stream & STREAM_MASK).to_be_bytes();
    let [_, x, y, z] = length24(length);
    [a, b, c, d, u8::from(fin), x, y, z]
}

/// Answer to a SYN_STREAM, with a header block from [`empty_block`](super::headers::empty_block).
pub(super) fn syn_reply(stream: u32, block: &[u8]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(4 + block.len());
    payload.extend_from_slice(&stream.to_be_bytes());
    payload.extend_from_slice(block);
    control_frame(SYN_REPLY, &payload)
}

pub(super) fn rst_stream(stream: u32, status: Status) -> Vec<u8> {
    control_frame(RST_STREAM, &[stream.to_be_bytes(), (status as u32).to_be_bytes()].concat())
}

pub(super) fn ping(id: u32) -> Vec<u8> {
    control_frame(PING, &id.to_be_bytes())
}

/// Farewell with status 0: all is well (SPDY/3 draft, section 2.6.6).
pub(super) fn goaway(last_stream: u32) -> Vec<u8> {
    control_frame(GOAWAY, &[last_stream.to_be_bytes(), [0; 4]].concat())
}

fn control_frame(kind: u16, payload: &[u8]) -> Vec<u8> {
    let [a, b] = (0x8000 | VERSION).to_be_bytes();
    let [c, d] = kind.to_be_bytes();
    let [_, x, y, z] = length24(payload.len());
    let mut frame = Vec::with_capacity(HEAD + payload.len());
    frame.extend_from_slice(&[a, b, c, d, 0, x, y, z]);
    frame.extend_from_slice(payload);
    frame
}

fn length24(length: usize) -> [u8; 4] {
    debug_assert!(length <= LONGEST_DATA, "callers keep frames below 16 MiB");
    u32::try_from(length).unwrap_or(0).to_be_bytes()
}
