//! Decompression by what the bytes are, not by what the media type says (Docker types lie).

use std::io::{self, BufRead, BufReader, Read};

use super::LayerError;

/// Input buffer in front of the decoders, in bytes.
const INPUT: usize = 256 << 10;

/// How a blob is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// RFC 1952, any number of members.
    Gzip,
    /// RFC 8878, any number of frames.
    Zstd,
    /// Not at all.
    Plain,
}

impl Format {
    /// By the first four bytes.
    #[must_use]
    pub fn sniff(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd] => Self::Zstd,
            // A skippable frame in front, as zstd:chunked may have.
            [a, 0x2a, 0x4d, 0x18] if a & 0xf0 == 0x50 => Self::Zstd,
            _ => Self::Plain,
        }
    }

    /// For messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Plain => "tar",
        }
    }
}

/// Reads `input` to its end, giving the decompressed bytes to `sink` in pieces of about `piece` bytes.
pub fn decode(
    mut input: impl Read,
    piece: usize,
    sink: &mut dyn FnMut(Vec<u8>) -> Result<(), LayerError>,
) -> Result<(), LayerError> {
    let mut head = Vec::with_capacity(4);
    input.by_ref().take(4).read_to_end(&mut head).map_err(LayerError::Read)?;
    let format = Format::sniff(&head);
    let input = BufReader::with_capacity(INPUT, io::Cursor::new(head).chain(input));
    match format {
        Format::Plain => pieces(input, format, piece, sink).map(drop),
        Format::Zstd => {
            let decoder = zstd::stream::read::Decoder::with_buffer(input).map_err(LayerError::Read)?;
            pieces(decoder, format, piece, sink).map(drop)
        }
        Format::Gzip => members(input, piece, sink),
    }
}

/// All members of a gzip stream; zeros may pad it, nothing else may follow.
fn members(
    mut input: impl BufRead,
    piece: usize,
    sink: &mut dyn FnMut(Vec<u8>) -> Result<(), LayerError>,
) -> Result<(), LayerError> {
    loop {
        let decoder = flate2::bufread::GzDecoder::new(input);
        input = pieces(decoder, Format::Gzip, piece, sink)?.into_inner();
        let rest = input.fill_buf().map_err(LayerError::Read)?;
        match rest.first() {
            None => return Ok(()),
            Some(0x1f) => {}
            Some(0) => return padding(input),
            Some(_) => return Err(LayerError::Trailing),
        }
    }
}

fn padding(mut input: impl BufRead) -> Result<(), LayerError> {
    loop {
        let rest = input.fill_buf().map_err(LayerError::Read)?;
        if rest.is_empty() {
            return Ok(());
        }
        if rest.iter().any(|b| *b != 0) {
            return Err(LayerError::Trailing);
        }
        let n = rest.len();
        input.consume(n);
    }
}

fn pieces<R: Read>(
    mut input: R,
    format: Format,
    piece: usize,
    sink: &mut dyn FnMut(Vec<u8>) -> Result<(), LayerError>,
) -> Result<R, LayerError> {
    let mut done = 0_u64;
    loop {
        let mut buffer = vec![0; piece];
        let mut filled = 0;
        while filled < piece {
            match input.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {
                    return Err(LayerError::Read(error));
                }
                Err(source) => {
                    let offset = done + filled as u64;
                    return Err(LayerError::Compression { format: format.name(), offset, source });
                }
            }
        }
        let last = filled < piece;
        buffer.truncate(filled);
        done += filled as u64;
        if filled > 0 {
            sink(buffer)?;
        }
        if last {
            return Ok(input);
        }
    }
}
