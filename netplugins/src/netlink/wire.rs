//! Frames and attributes of netlink(7), encoded and decoded without trust.
//!
//! Decoding never panics and never reads outside its slice: whatever bytes arrive, the iterators end. Attribute values
//! of rtnetlink are in host byte order, those of nf_tables in network byte order; the writers name theirs.

use super::Failure;

const HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
/// The two flag bits of an attribute's type.
const KIND_MASK: u16 = 0x3fff;
const NESTED: u16 = 0x8000;

/// One netlink message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) payload: &'a [u8],
}

/// One attribute, its flag bits removed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attribute<'a> {
    pub(crate) kind: u16,
    pub(crate) value: &'a [u8],
}

// === decoding ===

/// The messages of a datagram. The first malformed one ends the iteration with an error.
pub(crate) fn frames(mut bytes: &[u8]) -> impl Iterator<Item = Result<Frame<'_>, Failure>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let frame = first_frame(bytes);
        bytes = match &frame {
            Some(f) => bytes.get(align(HEADER + f.payload.len())..).unwrap_or_default(),
            None => &[],
        };
        Some(frame.ok_or(Failure::Malformed("frame length")))
    })
}

fn first_frame(bytes: &[u8]) -> Option<Frame<'_>> {
    let length = u32_at(bytes, 0)? as usize;
    Some(Frame {
        kind: u16_at(bytes, 4)?,
        flags: u16_at(bytes, 6)?,
        sequence: u32_at(bytes, 8)?,
        payload: bytes.get(HEADER..length)?,
    })
}

/// The attributes of a message body; ends at the first malformed one.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = Attribute<'_>> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let attribute =
            Attribute { kind: u16_at(bytes, 2)? & KIND_MASK, value: bytes.get(ATTRIBUTE_HEADER..length)? };
        bytes = bytes.get(align(length)..).unwrap_or_default();
        Some(attribute)
    })
}

/// The value of the first attribute of that kind.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|a| a.kind == kind).map(|a| a.value)
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_ne_bytes(*b))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

pub(crate) fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    bytes.get(at..)?.first_chunk().map(|b| i32::from_ne_bytes(*b))
}

// === encoding ===

/// Appends a message header; [`end_frame`] fills in the length.
pub(crate) fn begin_frame(out: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32) {
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    out.extend_from_slice(&[0; 4]); // port: the kernel's
}

/// Completes the message that began at `start`.
pub(crate) fn end_frame(out: &mut Vec<u8>, start: usize) {
    let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    if let Some(field) = out.get_mut(start..start + 4) {
        field.copy_from_slice(&length.to_ne_bytes());
    }
    out.resize(start + align(out.len() - start), 0);
}

/// Numbers the messages of a datagram consecutively.
pub(crate) fn renumber(datagram: &mut [u8], first: u32) {
    let mut at = 0;
    let mut sequence = first;
    while let Some(length) = u32_at(datagram, at) {
        if let Some(field) = datagram.get_mut(at + 8..at + 12) {
            field.copy_from_slice(&sequence.to_ne_bytes());
        }
        sequence = sequence.wrapping_add(1);
        at += align(length as usize).max(HEADER);
    }
}

/// Appends an attribute. Values over 64 KiB cannot be expressed; callers split lists before that.
pub(crate) fn put(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(align(out.len()), 0);
}

/// Appends a NUL-terminated string.
pub(crate) fn put_text(out: &mut Vec<u8>, kind: u16, value: &str) {
    let mut bytes = value.as_bytes().to_vec();
    bytes.push(0);
    put(out, kind, &bytes);
}

/// Appends a number in network byte order (nf_tables).
pub(crate) fn put_be32(out: &mut Vec<u8>, kind: u16, value: u32) {
    put(out, kind, &value.to_be_bytes());
}

/// Appends an attribute that holds attributes.
pub(crate) fn nest(out: &mut Vec<u8>, kind: u16, write: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    write(&mut inner);
    put(out, kind | NESTED, &inner);
}

/// Netlink aligns everything to four bytes.
fn align(length: usize) -> usize {
    length.saturating_add(3) & !3
}
