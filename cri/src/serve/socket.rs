//! A client's unix socket, watched for what there is to read.
//!
//! tokio's own stream waits for room to write as well, always. The kernel tells of room each time the client has read something
//! (unix_write_space of net/unix/af_unix.c), so that every answer would wake the thread that serves calls once more for nothing, and the
//! client, on whose time that happens, would pay for it. Here room is waited for when there was none.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use engine::sys;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection over a unix socket. Must be made and used inside a runtime.
pub struct Socket {
    socket: AsyncFd<OwnedFd>,
    /// Set while there is none.
    room: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send>>>,
}

impl Socket {
    /// Takes over a connected socket.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { socket: sys::watch(stream.into())?, room: None })
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Socket").field(&self.socket).finish()
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(cx))?;
            let unfilled = buf.initialize_unfilled();
            let room = unfilled.len();
            let received = ready.try_io(|fd| Ok(recv(fd, unfilled, RecvFlags::empty())?));
            match received {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(received) => {
                    let (_, count) = received?;
                    // Less than there was room for: that was all, and the next call need not look.
                    if (1..room).contains(&count) {
                        ready.clear_ready();
                    }
                    buf.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            if let Some(mut room) = self.room.take() {
                match room.as_mut().poll(cx) {
                    Poll::Pending => {
                        self.room = Some(room);
                        return Poll::Pending;
                    }
                    Poll::Ready(waited) => waited?,
                }
            }
            match send(&self.socket, bytes, SendFlags::NOSIGNAL) {
                Err(Errno::AGAIN) => {
                    let socket = self.socket.get_ref().try_clone()?;
                    self.room = Some(Box::pin(sys::writable(socket)));
                }
                Err(Errno::INTR) => {}
                sent => return Poll::Ready(Ok(sent?)),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(shutdown(&self.socket, Shutdown::Write).map_err(Into::into))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn connected() -> (Socket, tokio::net::UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        (Socket::new(near).unwrap(), tokio::net::UnixStream::from_std(far).unwrap())
    }

    #[tokio::test]
    async fn a_client_that_reads_late_gets_every_byte_and_the_end() {
        let (mut socket, mut client) = connected();
        let answer: Vec<u8> = (0..251).cycle().take(4 << 20).collect();
        let mut write = Box::pin(async {
            socket.write_all(&answer).await.unwrap();
            socket.shutdown().await.unwrap();
        });
        assert!((&mut write).now_or_never().is_none(), "so much does not fit into a socket");
        let mut all = Vec::new();
        let ((), read) = tokio::join!(write, client.read_to_end(&mut all));
        read.unwrap();
        assert!(all == answer, "{} bytes", all.len());
    }

    #[tokio::test]
    async fn what_a_client_says_is_read_while_it_does_not_read() {
        let (mut socket, mut client) = connected();
        while socket.write(&[0; 64 << 10]).now_or_never().is_some() {}
        let mut word = [0; 4];
        let (read, written) = tokio::join!(socket.read_exact(&mut word), client.write_all(b"call"));
        written.unwrap();
        read.unwrap();
        assert_eq!(&word, b"call");
    }

    #[tokio::test]
    async fn a_client_that_is_gone_is_the_end_and_an_error_of_a_write() {
        let (mut socket, client) = connected();
        drop(client);
        assert_eq!(socket.read(&mut [0; 8]).await.unwrap(), 0);
        assert_eq!(socket.write(b"answer").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
