//! SPDY/3.1 as client-go speaks it: streams without windows, names and values behind one zlib stream.

use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, ensure};
use flate2::{Compress, Compression, FlushCompress};

use super::upgrade;

/// One connection.
#[derive(Debug)]
pub struct Spdy {
    /// The connection, for whoever wants to break it.
    pub stream: TcpStream,
    headers: Headers,
}

/// The headers' side of a connection: the next stream's number, and the zlib stream. It goes without the protocol's
/// dictionary, which a compressor may do.
#[derive(Debug)]
struct Headers {
    next: u32,
    deflate: Compress,
}

/// What a server sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Bytes of a stream; they are in the buffer. True: its last ones.
    Data(u32, bool),
    /// A stream was reset.
    Reset(u32),
    /// The server is leaving.
    Goodbye,
    /// Replies, pings, settings.
    Other,
}

// === impl Spdy ===

impl Spdy {
    /// Upgrades a URL.
    ///
    /// # Errors
    /// The server does not answer with 101 and the protocol asked for.
    pub fn connect(url: &str, protocol: &str) -> Result<Self> {
        let headers =
            format!("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {protocol}\r\n");
        let (stream, head) = upgrade(url, "POST", &headers)?;
        ensure!(head.starts_with("HTTP/1.1 101 ") && head.contains(protocol), "{head}");
        let deflate = Compress::new(Compression::fast(), true);
        Ok(Self { stream, headers: Headers { next: 1, deflate } })
    }

    /// Opens a stream with these headers.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn open(&mut self, pairs: &[(&str, &str)]) -> Result<u32> {
        let (id, frame) = self.headers.open(pairs)?;
        self.stream.write_all(&frame)?;
        Ok(id)
    }

    /// Opens the three streams of a command without standard error: error, stdin, stdout.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn open_command(&mut self) -> Result<[u32; 3]> {
        let mut ids = [0; 3];
        for (id, kind) in ids.iter_mut().zip(["error", "stdin", "stdout"]) {
            *id = self.open(&[("streamtype", kind)])?;
        }
        Ok(ids)
    }

    /// Sends bytes of a stream; `last` ends it.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn send(&mut self, id: u32, bytes: &[u8], last: bool) -> Result<()> {
        let frame = [&head(id, last, bytes.len())?[..], bytes].concat();
        Ok(self.stream.write_all(&frame)?)
    }

    /// Reads until `wanted` stands in what came over a stream.
    ///
    /// # Errors
    /// The connection or the stream ends first.
    pub fn hear(&mut self, id: u32, wanted: &str) -> Result<String> {
        let (mut all, mut buffer) = (Vec::new(), Vec::new());
        loop {
            let frame = read(&mut self.stream, &mut buffer)?;
            if matches!(frame, Frame::Data(of, _) if of == id) {
                all.extend_from_slice(&buffer);
            }
            let text = String::from_utf8_lossy(&all);
            if text.contains(wanted) {
                return Ok(text.into_owned());
            }
            ensure!(
                frame != Frame::Data(id, true) && frame != Frame::Reset(id),
                "{wanted:?} is not in {text:?}"
            );
        }
    }
}

// === impl Headers ===

impl Headers {
    fn open(&mut self, pairs: &[(&str, &str)]) -> Result<(u32, Vec<u8>)> {
        let mut block = u32::try_from(pairs.len())?.to_be_bytes().to_vec();
        for text in pairs.iter().flat_map(|(name, value)| [name, value]) {
            block.extend_from_slice(&u32::try_from(text.len())?.to_be_bytes());
            block.extend_from_slice(text.as_bytes());
        }
        let mut packed = Vec::with_capacity(block.len() + 128);
        self.deflate.compress_vec(&block, &mut packed, FlushCompress::Sync)?;
        let id = self.next;
        self.next += 2;
        let [_, a, b, c] = u32::try_from(packed.len() + 10)?.to_be_bytes();
        let mut frame = vec![0x80, 3, 0, 1, 0, a, b, c];
        frame.extend_from_slice(&id.to_be_bytes());
        frame.extend_from_slice(&[0; 6]);
        frame.extend_from_slice(&packed);
        Ok((id, frame))
    }
}

/// The head of a data frame.
///
/// # Errors
/// More than a frame can hold.
pub fn head(id: u32, last: bool, length: usize) -> Result<[u8; 8]> {
    let [over, a, b, c] = u32::try_from(length)?.to_be_bytes();
    ensure!(over == 0, "{length} bytes are too many for a frame");
    let [w, x, y, z] = id.to_be_bytes();
    Ok([w, x, y, z, u8::from(last), a, b, c])
}

/// Reads a frame; the bytes of a data frame are then in `buffer`.
///
/// # Errors
/// The connection ends.
pub fn read(from: &mut impl Read, buffer: &mut Vec<u8>) -> Result<Frame> {
    let mut head = [0; 8];
    from.read_exact(&mut head).context("the connection ends")?;
    let [w, x, y, z, flags, a, b, c] = head;
    buffer.resize(u32::from_be_bytes([0, a, b, c]) as usize, 0);
    from.read_exact(buffer)?;
    let word = buffer.first_chunk().map_or(0, |word| u32::from_be_bytes(*word));
    Ok(match (w, y, z) {
        (0..0x80, ..) => Frame::Data(u32::from_be_bytes([w, x, y, z]), flags & 1 == 1),
        (_, 0, 3) => Frame::Reset(word),
        (_, 0, 7) => Frame::Goodbye,
        _ => Frame::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_as_they_are_written() {
        let bytes =
            [&head(5, true, 3).unwrap()[..], b"abc", &[0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 7, 0, 0, 0, 5]];
        let (bytes, mut buffer) = (bytes.concat(), Vec::new());
        let mut rest = bytes.as_slice();
        assert_eq!(read(&mut rest, &mut buffer).unwrap(), Frame::Data(5, true));
        assert_eq!(buffer, b"abc");
        assert_eq!(read(&mut rest, &mut buffer).unwrap(), Frame::Reset(7));
        assert!(read(&mut rest, &mut buffer).is_err());
    }
}
