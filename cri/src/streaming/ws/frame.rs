//! WebSocket frames: bytes to values and back, without I/O (RFC 6455 section 5.2).
//!
//! A frame's payload is not part of its value: it passes through in pieces, so a message may be of any length and takes
//! no memory.

/// Longest head of a frame that is sent: two bytes and a length of eight.
pub(super) const LONGEST_HEAD: usize = 10;
/// Most payload of a control frame (section 5.5).
const LONGEST_CONTROL: u64 = 125;

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opcode {
    Continuation = 0,
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

/// A frame from a client, without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) opcode: Opcode,
    /// The last frame of its message.
    pub(super) fin: bool,
    pub(super) length: u64,
    pub(super) mask: [u8; 4],
}

/// What is wrong with a frame. The connection cannot go on after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    /// An extension nobody has asked for.
    #[error("a frame has reserved bits set")]
    Reserved,
    /// Not in the list of section 5.2.
    #[error("a frame has the unknown opcode {0}")]
    Opcode(u8),
    /// Section 5.1: a client's frames are masked.
    #[error("a frame is not masked")]
    Unmasked,
    /// Section 5.5: at most 125 bytes, in one frame.
    #[error("a control frame is too long or in parts")]
    Control,
    /// Section 5.4: parts follow a beginning, and a beginning follows an end.
    #[error("the parts of a message are out of order")]
    Order,
}

/// How many bytes of the head follow the first two, the mask included.
pub(super) fn more([_, second]: [u8; 2]) -> usize {
    match second & !MASKED {
        126 => 2 + 4,
        127 => 8 + 4,
        _ => 4,
    }
}

/// Reads a head: its first two bytes, and as many as [`more`] said.
pub(super) fn head([first, second]: [u8; 2], rest: &[u8]) -> Result<Head, FrameError> {
    let opcode = match first & 0x0f {
        0 => Opcode::Continuation,
        1 => Opcode::Text,
        2 => Opcode::Binary,
        8 => Opcode::Close,
        9 => Opcode::Ping,
        10 => Opcode::Pong,
        other => return Err(FrameError::Opcode(other)),
    };
    if first & RESERVED != 0 {
        return Err(FrameError::Reserved);
    }
    let (length, mask) = rest.split_last_chunk::<4>().ok_or(FrameError::Unmasked)?;
    if second & MASKED == 0 {
        return Err(FrameError::Unmasked);
    }
    let length = match length {
        [] => u64::from(second & !MASKED),
        bytes => bytes.iter().fold(0, |length, &byte| length << 8 | u64::from(byte)),
    };
    let fin = first & FIN != 0;
    if matches!(opcode, Opcode::Close | Opcode::Ping | Opcode::Pong) && (!fin || length > LONGEST_CONTROL) {
        return Err(FrameError::Control);
    }
    Ok(Head { opcode, fin, length, mask: *mask })
}

/// Takes the mask off a piece of a payload, and turns the mask to where the next piece begins (section 5.3).
pub(super) fn unmask(piece: &mut [u8], mask: &mut [u8; 4]) {
    let [a, b, c, d] = *mask;
    let twice = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let turn = piece.len() % 4;
    let (words, tail) = piece.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ twice).to_ne_bytes();
    }
    tail.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    mask.rotate_left(turn);
}

/// Head of a whole message from the server, and how many of the bytes it takes.
pub(super) fn server_head(opcode: Opcode, length: usize) -> ([u8; LONGEST_HEAD], usize) {
    let mut head = [0; LONGEST_HEAD];
    head[0] = FIN | opcode as u8;
    if let Ok(short @ 0..126) = u8::try_from(length) {
        head[1] = short;
        return (head, 2);
    }
    if let Ok(medium) = u16::try_from(length) {
        head[1] = 126;
        head[2..4].copy_from_slice(&medium.to_be_bytes());
        return (head, 4);
    }
    head[1] = 127;
    head[2..].copy_from_slice(&(length as u64).to_be_bytes());
    (head, LONGEST_HEAD)
}

/// A whole frame from the server, for short payloads.
pub(super) fn server_frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let (head, length) = server_head(opcode, payload.len());
    [&head[..length], payload].concat()
}
