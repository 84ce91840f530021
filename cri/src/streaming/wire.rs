//! The raw ends of a connection, for both carriers: a source that lends what it has read, and a writer that keeps frames
//! whole.

use std::io;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// First and largest size of the read buffer: an idle session needs little, a busy one grows it.
const SMALL: usize = 4 << 10;
const LARGE: usize = 64 << 10;

/// A buffered byte source that lends slices of its buffer, so that a frame of any length passes through in pieces.
pub(super) struct Source<R> {
    io: R,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

/// A writer whose frames are whole even if their senders are dropped half way: the next one to write completes them.
pub(super) struct Writer {
    io: Box<dyn AsyncWrite + Send + Unpin>,
    /// What goes out before anything else: control frames, and the rest of a frame half written.
    first: BytesMut,
}

// === impl Source ===

impl<R: AsyncRead + Unpin> Source<R> {
    pub(super) fn new(io: R) -> Self {
        Self { io, buffer: vec![0; SMALL], start: 0, end: 0 }
    }

    /// The first `N` bytes of the next frame; `None`: the connection ended before it.
    pub(super) async fn head<const N: usize>(&mut self) -> io::Result<Option<[u8; N]>> {
        let mut head = [0; N];
        let mut filled = 0;
        while filled < N {
            let Some(piece) = self.available(N - filled).await? else {
                return if filled == 0 { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            };
            head[filled..filled + piece.len()].copy_from_slice(piece);
            filled += piece.len();
        }
        Ok(Some(head))
    }

    /// Exactly `length` bytes; the caller has bounded them.
    pub(super) async fn exact(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while bytes.len() < length {
            bytes.extend_from_slice(self.piece(length - bytes.len()).await?);
        }
        Ok(bytes)
    }

    /// Between one and `most` bytes.
    pub(super) async fn piece(&mut self, most: usize) -> io::Result<&mut [u8]> {
        self.available(most).await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    async fn available(&mut self, most: usize) -> io::Result<Option<&mut [u8]>> {
        if self.start == self.end {
            let read = self.io.read(&mut self.buffer).await?;
            if read == 0 {
                return Ok(None);
            }
            (self.start, self.end) = (0, read);
        }
        let from = self.start;
        self.start = self.end.min(from + most);
        // All is read, and there was as much as would fit: the next read may be larger.
        if self.start == self.end && self.end == self.buffer.len() && self.buffer.len() < LARGE {
            self.buffer.resize(2 * self.end, 0);
        }
        Ok(Some(&mut self.buffer[from..self.start]))
    }
}

// === impl Writer ===

impl Writer {
    pub(super) fn new(io: impl AsyncWrite + Send + Unpin + 'static) -> Self {
        Self { io: Box::new(io), first: BytesMut::new() }
    }

    /// Puts bytes in front of the next write.
    pub(super) fn before(&mut self, bytes: &[u8]) {
        self.first.extend_from_slice(bytes);
    }

    /// Writes what is in front, then `bytes`, of which nothing or all gets out even if this future is dropped: once a
    /// part is with the kernel, the rest is in front of the next write.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.complete().await?;
        if !bytes.is_empty() {
            let written = self.io.write(bytes).await?;
            self.first.extend_from_slice(&bytes[written..]);
            self.complete().await?;
        }
        self.io.flush().await
    }

    /// Ends the connection's sending side.
    pub(super) async fn shutdown(&mut self) -> io::Result<()> {
        self.io.shutdown().await
    }

    async fn complete(&mut self) -> io::Result<()> {
        while !self.first.is_empty() {
            let written = self.io.write(&self.first).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.first.advance(written);
        }
        Ok(())
    }
}
