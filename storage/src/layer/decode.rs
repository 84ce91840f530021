//! Decompression by what the bytes are, not by what the media type says (Docker types lie).

use std::io::{self, BufRead, BufReader, Read};

use super::LayerError;
use super::file::Buffer;

/// Input buffer in front of the decoders, in bytes.
const INPUT: usize = 256 << 10;
/// Largest zstd window, as a power of two: RFC 8878 (3.1.1.1.2) wants 8 MiB at least, and every pull's memory is bounded.
const WINDOW_LOG_MAX: u32 = 27;

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

/// Takes a piece of decompressed bytes and gives back a buffer for a later one, whatever is in it.
pub(crate) type Sink<'a> = dyn FnMut(Buffer) -> Result<Buffer, LayerError> + 'a;

/// Reads `input` to its end, giving the decompressed bytes to `sink` in pieces of `piece` bytes, and the rest.
pub(crate) fn decode(mut input: impl Read, piece: usize, sink: &mut Sink<'_>) -> Result<(), LayerError> {
    let mut head = Vec::with_capacity(4);
    input.by_ref().take(4).read_to_end(&mut head).map_err(LayerError::Read)?;
    let format = Format::sniff(&head);
    let input = BufReader::with_capacity(INPUT, io::Cursor::new(head).chain(input));
    let mut pieces = Pieces { format, buffer: Buffer::new(piece), filled: 0, done: 0, sink };
    match format {
        Format::Plain => pieces.take(input).map(drop)?,
        Format::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input).map_err(LayerError::Read)?;
            decoder.window_log_max(WINDOW_LOG_MAX).map_err(LayerError::Read)?;
            pieces.take(decoder).map(drop)?;
        }
        Format::Gzip => members(input, &mut pieces)?,
    }
    pieces.finish()
}

/// All members of a gzip stream; zeros may pad it, nothing else may follow.
fn members(mut input: impl BufRead, pieces: &mut Pieces<'_, '_>) -> Result<(), LayerError> {
    loop {
        input = pieces.take(flate2::bufread::GzDecoder::new(input))?.into_inner();
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

/// Cuts decompressed streams into pieces.
struct Pieces<'s, 'f> {
    format: Format,
    /// The piece being filled.
    buffer: Buffer,
    filled: usize,
    /// Bytes decompressed so far, over all members.
    done: u64,
    sink: &'s mut Sink<'f>,
}

impl Pieces<'_, '_> {
    /// Reads one stream to its end.
    fn take<R: Read>(&mut self, mut input: R) -> Result<R, LayerError> {
        loop {
            let piece = self.buffer.slice().len();
            match input.read(&mut self.buffer.slice_mut()[self.filled..]) {
                Ok(0) => return Ok(input),
                Ok(n) => {
                    self.filled += n;
                    self.done += n as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {
                    return Err(LayerError::Read(error));
                }
                Err(source) => {
                    let (format, offset) = (self.format.name(), self.done);
                    return Err(LayerError::Compression { format, offset, source });
                }
            }
            if self.filled == piece {
                self.filled = 0;
                self.buffer = (self.sink)(std::mem::take(&mut self.buffer))?.reuse(piece);
            }
        }
    }

    fn finish(mut self) -> Result<(), LayerError> {
        if self.filled > 0 {
            self.buffer.truncate(self.filled);
            (self.sink)(self.buffer)?;
        }
        Ok(())
    }
}
