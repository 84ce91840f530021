//! A connection whose answers leave in one piece.
//!
//! HTTP/2 cuts an answer into frames of 16 KiB and writes each one by itself. Every write wakes the client, which on a busy node takes the
//! processor from the thread that is about to write the next one. Here the frames are collected, and [`Outbox::empty`] sends them once the
//! connection has nothing more to say.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// When so many bytes wait for a client that does not read, no more are taken.
const MOST: usize = 512 << 10;

/// The connection as the HTTP/2 library has it.
#[derive(Debug)]
pub(super) struct Bulk<S>(Arc<Mutex<State<S>>>);

/// What sends the bytes.
#[derive(Debug)]
pub(super) struct Outbox<S>(Arc<Mutex<State<S>>>);

#[derive(Debug)]
struct State<S> {
    inner: S,
    held: BytesMut,
}

/// Both ends of a connection.
pub(super) fn bulk<S>(inner: S) -> (Bulk<S>, Outbox<S>) {
    let state = Arc::new(Mutex::new(State { inner, held: BytesMut::new() }));
    (Bulk(state.clone()), Outbox(state))
}

// === impl Outbox ===

impl<S: AsyncWrite + Unpin> Outbox<S> {
    /// Sends what is held. To be called each time the connection has been polled, by the same task: that is polled again when there is
    /// room for more. An error comes back with the next byte that is written.
    pub(super) fn empty(&self, cx: &mut Context<'_>) {
        let _ = lock(&self.0).drain(cx);
    }
}

// === impl State ===

impl<S: AsyncWrite + Unpin> State<S> {
    fn drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            match ready!(Pin::new(&mut self.inner).poll_write(cx, &self.held))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.held.advance(sent),
            }
        }
        // An idle connection holds nothing.
        self.held = BytesMut::new();
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    /// There is room.
    fn ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.held.len() < MOST { Poll::Ready(Ok(())) } else { self.drain(cx) }
    }
}

fn lock<S>(state: &Mutex<State<S>>) -> MutexGuard<'_, State<S>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Bulk ===

impl<S: AsyncRead + Unpin> AsyncRead for Bulk<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut lock(&self.0).inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bulk<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut state = lock(&self.0);
        ready!(state.ready(cx))?;
        bufs.iter().for_each(|buf| state.held.extend_from_slice(buf));
        Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Comes after every frame, so that it only makes room.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        lock(&self.0).ready(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = lock(&self.0);
        ready!(state.drain(cx))?;
        Pin::new(&mut state.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn emptied<S: AsyncWrite + Unpin>(outbox: &Outbox<S>) {
        poll_fn(|cx| {
            outbox.empty(cx);
            Poll::Ready(())
        })
        .await;
    }

    #[tokio::test]
    async fn what_is_written_and_flushed_leaves_in_one_piece() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let (mut bulk, outbox) = bulk(near);
        for frame in [[1; 100], [2; 100]] {
            bulk.write_all(&frame).await.unwrap();
            bulk.flush().await.unwrap();
        }
        let mut piece = [0; 1000];
        assert!(far.read(&mut piece).now_or_never().is_none(), "nothing has left");
        emptied(&outbox).await;
        assert_eq!(far.read(&mut piece).await.unwrap(), 200);
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_holds_up_the_writer_and_gets_every_byte() {
        let (near, mut far) = tokio::io::duplex(1000);
        let (mut bulk, _outbox) = bulk(near);
        let frame: Vec<u8> = (0..251).cycle().take(16_384).collect();
        let mut frames = 0;
        while bulk.write_all(&frame).now_or_never().is_some() {
            frames += 1;
            assert!(frames <= MOST / frame.len() + 1, "{frames} frames are held");
        }
        let write = async {
            for _ in 0..10 {
                bulk.write_all(&frame).await.unwrap();
            }
            bulk.shutdown().await.unwrap();
        };
        let mut all = Vec::new();
        let ((), read) = tokio::join!(write, far.read_to_end(&mut all));
        read.unwrap();
        assert!(all == frame.repeat(frames + 10), "{} bytes", all.len());
    }

    #[tokio::test]
    async fn a_client_that_is_gone_is_an_error_of_a_later_write() {
        let (near, far) = tokio::io::duplex(100);
        let (mut bulk, outbox) = bulk(near);
        drop(far);
        bulk.write_all(&[0; MOST]).await.unwrap();
        emptied(&outbox).await;
        assert!(bulk.write_all(&[0]).await.is_err());
    }
}
