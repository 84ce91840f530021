//! A pipe or terminal as an asynchronous stream.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::consume_budget;

use crate::{Error, Kind};

/// What a pipe takes before whoever writes waits, once it is busy. Until then it is the kernel's 64 KiB: most carry a line now and then, and
/// the kernel keeps a table for what a pipe may hold.
const BUSY: usize = 256 << 10;
/// A pipe that gives so much at once was full, and one that does not take so much is.
const MUCH: usize = 32 << 10;

/// Reads from and writes to a descriptor without blocking a thread. Dropping it closes the descriptor.
#[derive(Debug)]
pub struct Pipe {
    fd: AsyncFd<OwnedFd>,
    /// It was made larger, or cannot be: a terminal, or all that its owner may have is taken.
    grown: bool,
}

impl Pipe {
    /// Takes over a descriptor that can be polled; sets it non-blocking.
    #[expect(
        deprecated,
        reason = "the new one is unsafe, for types that may change their descriptor; OwnedFd cannot"
    )]
    pub fn new(fd: OwnedFd) -> Result<Self, Error> {
        let failed = |e: io::Error| Error::with(Kind::Internal, "stream of a process", e);
        let flags = fcntl_getfl(&fd).map_err(|e| failed(e.into()))?;
        fcntl_setfl(&fd, flags | OFlags::NONBLOCK).map_err(|e| failed(e.into()))?;
        Ok(Self { fd: AsyncFd::new(fd).map_err(failed)?, grown: false })
    }

    /// Both sides of a busy pipe would take turns for every 64 KiB.
    fn grow(&mut self) {
        if !std::mem::replace(&mut self.grown, true) {
            let _ = rustix::pipe::fcntl_setpipe_size(&self.fd, BUSY);
        }
    }

    /// The descriptor, for another thread to take over.
    pub fn into_fd(self) -> OwnedFd {
        self.fd.into_inner()
    }

    /// Another handle of the same open file.
    pub fn try_clone(&self) -> Result<Self, Error> {
        let fd = self.fd.get_ref().try_clone();
        Self::new(fd.map_err(|e| Error::with(Kind::Internal, "stream of a process", e))?)
    }
}

/// Reads what there is, into the free part of a buffer.
fn read(fd: impl AsFd, buffer: &mut ReadBuf<'_>) -> io::Result<usize> {
    match rustix::io::read(fd, buffer.initialize_unfilled()) {
        // The other side of a terminal is gone: the end of the stream.
        Err(Errno::IO) => Ok(0),
        result => result.map_err(io::Error::from),
    }
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let result = match self.fd.poll_read_ready(cx)? {
                Poll::Ready(mut guard) => guard.try_io(|fd| read(fd, buffer)),
                Poll::Pending => {
                    // What this thread itself has brought about its poller has had no time to tell.
                    ready!(pin!(consume_budget()).poll(cx));
                    Ok(read(self.fd.get_ref(), buffer))
                }
            };
            match result {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Ok(result) => {
                    if matches!(result, Ok(MUCH..)) {
                        self.grow();
                    }
                    return Poll::Ready(result.map(|count| buffer.advance(count)));
                }
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.fd.poll_write_ready(cx))?;
            match guard.try_io(|fd| rustix::io::write(fd, bytes).map_err(io::Error::from)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) if bytes.len() >= MUCH => self.grow(),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Closing is dropping; there is nothing to wait for.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
