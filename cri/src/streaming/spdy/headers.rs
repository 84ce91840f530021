//! Header blocks of SPDY/3 (draft, section 2.6.10): name/value pairs behind one zlib stream per direction.
//!
//! What comes in is inflated with the SPDY dictionary. What goes out is only ever the empty reply, so it is written as
//! stored deflate blocks: a valid zlib stream without the quarter of a megabyte a compressor costs per connection.

use flate2::{Decompress, FlushDecompress, Status};

use super::dictionary::dictionary;

/// Most bytes of one inflated block. Kubernetes clients send three short pairs; anything much longer is an attack on
/// memory.
const LONGEST_BLOCK: usize = 16 << 10;
/// Adler-32 of the dictionary, which names it in the zlib header.
pub(super) const DICTIONARY_ID: u32 = 0xe3c6_a7c2;

/// Name and value pairs in order; names are lower case. Several values of one name stand apart by NUL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Headers(Vec<(String, String)>);

/// The client's header stream.
#[derive(Debug)]
pub(super) struct Inflater(Decompress);

/// What is wrong with a header block.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HeaderError {
    /// Not a zlib stream with our dictionary.
    #[error("cannot be inflated")]
    Zlib(#[source] flate2::DecompressError),
    /// Grows beyond the limit.
    #[error("inflates to more than {LONGEST_BLOCK} bytes")]
    TooLong,
    /// The inflated block breaks off in the middle of a pair, or has something behind the last one.
    #[error("does not hold the pairs it announces")]
    Pairs,
    /// A name or value is not UTF-8.
    #[error("is not UTF-8")]
    Utf8(#[source] std::string::FromUtf8Error),
}

// === impl Headers ===

impl Headers {
    /// First value of a header, by its lower-case name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(this, _)| this.eq_ignore_ascii_case(name))?;
        value.split('\0').next()
    }

    fn parse(block: &[u8]) -> Result<Self, HeaderError> {
        let mut rest = block;
        let count = word(&mut rest)? as usize;
        // Each pair has two lengths, so the block's size bounds the allocation.
        if count > rest.len() / 8 {
            return Err(HeaderError::Pairs);
        }
        let mut pairs = Vec::with_capacity(count);
        for _ in 0..count {
            pairs.push((text(&mut rest)?, text(&mut rest)?));
        }
        if rest.is_empty() { Ok(Self(pairs)) } else { Err(HeaderError::Pairs) }
    }
}

fn word(rest: &mut &[u8]) -> Result<u32, HeaderError> {
    let (word, tail) = rest.split_first_chunk::<4>().ok_or(HeaderError::Pairs)?;
    *rest = tail;
    Ok(u32::from_be_bytes(*word))
}

fn text(rest: &mut &[u8]) -> Result<String, HeaderError> {
    let length = word(rest)? as usize;
    let (text, tail) = rest.split_at_checked(length).ok_or(HeaderError::Pairs)?;
    *rest = tail;
    String::from_utf8(text.to_vec()).map_err(HeaderError::Utf8)
}

// === impl Inflater ===

impl Inflater {
    pub(super) fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// Inflates and parses the block of one frame; the client flushes at its end.
    pub(super) fn block(&mut self, mut input: &[u8]) -> Result<Headers, HeaderError> {
        let mut output = vec![0; 1 << 10];
        let mut filled = 0;
        loop {
            let (before_in, before_out) = (self.0.total_in(), self.0.total_out());
            let result = self.0.decompress(input, &mut output[filled..], FlushDecompress::Sync);
            let read = usize::try_from(self.0.total_in() - before_in).unwrap_or(input.len());
            let written = usize::try_from(self.0.total_out() - before_out).unwrap_or(0);
            input = input.get(read..).unwrap_or_default();
            filled += written;
            match result {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&dictionary()).map_err(HeaderError::Zlib)?;
                }
                Err(error) => return Err(HeaderError::Zlib(error)),
                Ok(_) if filled == output.len() && output.len() >= LONGEST_BLOCK => {
                    return Err(HeaderError::TooLong);
                }
                Ok(_) if filled == output.len() => output.resize(2 * filled, 0),
                // Something must move, or the block is all read: a stream that ended early does neither.
                Ok(Status::Ok) if !input.is_empty() && read + written > 0 => {}
                Ok(_) if input.is_empty() => return Headers::parse(&output[..filled]),
                Ok(_) => return Err(HeaderError::Pairs),
            }
        }
    }
}

/// The header block without pairs, as the next part of a zlib stream; `first` in a connection also opens the stream.
///
/// A stored block with the data, then the empty one that zlib writes for a sync flush and that readers wait for
/// (RFC 1950 section 2.2, RFC 1951 section 3.2.4).
pub(super) fn empty_block(first: bool) -> Vec<u8> {
    /// Deflate with a 32 KiB window; fastest level, preset dictionary, check bits 0 since 0x7820 is a multiple of 31.
    const ZLIB: [u8; 2] = [0x78, 0x20];
    let mut bytes = Vec::with_capacity(20);
    if first {
        bytes.extend_from_slice(&ZLIB);
        bytes.extend_from_slice(&DICTIONARY_ID.to_be_bytes());
    }
    bytes.extend_from_slice(&[0, 4, 0, 0xfb, 0xff]);
    bytes.extend_from_slice(&0_u32.to_be_bytes());
    bytes.extend_from_slice(&[0, 0, 0, 0xff, 0xff]);
    bytes
}
