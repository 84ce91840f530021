//! Standard input on its way from a client's connection to the process, without a stop in between.
//!
//! What has come is written to the process out of the connection's own buffer. Until there is a process up to [`BACKLOG`] bytes are kept:
//! a client may send before it has opened all its streams. While the process does not read, nothing is taken from the connection.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BytesMut};
use engine::api::Writer;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::pipe::BACKLOG;

/// The client's end. Dropping it is the end of the input.
#[derive(Debug)]
pub(super) struct Inflow(Arc<Mutex<State>>);

/// The process's end. Dropping it closes the process's standard input; what comes then is refused.
#[derive(Debug)]
pub(super) struct Outflow(Arc<Mutex<State>>);

/// Nobody takes the bytes any more.
#[derive(Debug)]
pub(super) struct Closed;

#[derive(Default)]
struct State {
    /// What came before there was a process.
    early: BytesMut,
    process: Option<Writer>,
    /// The client sends no more.
    ended: bool,
    /// The process takes no more.
    closed: bool,
    /// Who waits at the client's end, and at the process's.
    waiting: [Option<Waker>; 2],
}

const CLIENT: usize = 0;
const PROCESS: usize = 1;

/// Both ends.
pub(super) fn conduit() -> (Inflow, Outflow) {
    let state = Arc::new(Mutex::new(State::default()));
    (Inflow(state.clone()), Outflow(state))
}

// === impl Inflow ===

impl Inflow {
    /// Hands bytes on, and waits while the process does not take them.
    pub(super) async fn push(&mut self, mut bytes: &[u8]) -> Result<(), Closed> {
        poll_fn(|cx| lock(&self.0).push(&mut bytes, cx)).await
    }
}

impl Drop for Inflow {
    fn drop(&mut self) {
        let mut state = lock(&self.0);
        state.ended = true;
        state.wake(PROCESS);
    }
}

// === impl Outflow ===

impl Outflow {
    /// Lets the bytes flow into `process` until the client has ended them or the process takes no more.
    pub(super) async fn carry(self, process: Writer) {
        {
            let mut state = lock(&self.0);
            state.process = Some(process);
            state.wake(CLIENT);
        }
        poll_fn(|cx| lock(&self.0).carry(cx)).await;
        let process = lock(&self.0).process.take();
        if let Some(mut process) = process {
            // The process may have closed it first.
            let _ = process.shutdown().await;
        }
    }
}

impl Drop for Outflow {
    fn drop(&mut self) {
        lock(&self.0).close();
    }
}

// === impl State ===

impl State {
    fn push<'a>(&mut self, bytes: &mut &'a [u8], cx: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        while !bytes.is_empty() && !self.closed {
            let all: &'a [u8] = bytes;
            if self.process.is_none() {
                let room = BACKLOG.saturating_sub(self.early.len()).min(all.len());
                let (now, later) = all.split_at(room);
                self.early.extend_from_slice(now);
                *bytes = later;
                if !bytes.is_empty() {
                    self.waiting[CLIENT] = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                return Poll::Ready(Ok(()));
            }
            match ready!(self.write(all, cx)) {
                Ok(written) => *bytes = &all[written..],
                Err(_) => self.close(),
            }
        }
        Poll::Ready(if self.closed { Err(Closed) } else { Ok(()) })
    }

    fn carry(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.waiting[PROCESS] = Some(cx.waker().clone());
        if !self.closed && ready!(self.write(&[], cx)).is_err() {
            self.close();
        }
        if self.closed || self.ended { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Writes what came early, then some of `bytes`; how many.
    fn write(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(process) = &mut self.process else { return Poll::Ready(Ok(0)) };
        let mut process = Pin::new(process);
        while !self.early.is_empty() {
            match ready!(process.as_mut().poll_write(cx, &self.early))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.early.advance(written),
            }
        }
        if bytes.is_empty() {
            return process.poll_flush(cx).map_ok(|()| 0);
        }
        match ready!(process.as_mut().poll_write(cx, bytes))? {
            0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            written => Poll::Ready(Ok(written)),
        }
    }

    /// The process takes no more.
    fn close(&mut self) {
        self.closed = true;
        self.process = None;
        self.early = BytesMut::new();
        self.wake(CLIENT);
        self.wake(PROCESS);
    }

    fn wake(&mut self, who: usize) {
        if let Some(waker) = self.waiting[who].take() {
            waker.wake();
        }
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("ended", &self.ended)
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::io::AsyncReadExt;

    use super::*;

    /// A process that reads from a pipe of so many bytes.
    fn process(room: usize) -> (Writer, tokio::io::DuplexStream) {
        let (near, far) = tokio::io::duplex(room);
        (Box::new(near), far)
    }

    #[tokio::test]
    async fn what_comes_before_the_process_arrives_first_and_everything_once() {
        let bytes: Vec<u8> = (0..251).cycle().take(3 * BACKLOG).collect();
        let (mut inflow, outflow) = conduit();
        inflow.push(&bytes[..100]).await.unwrap();
        let (writer, mut reader) = process(1000);
        let client = async {
            for piece in bytes[100..].chunks(7001) {
                inflow.push(piece).await.unwrap();
            }
            drop(inflow);
        };
        let mut read = Vec::new();
        let (_, (), end) = tokio::join!(client, outflow.carry(writer), reader.read_to_end(&mut read));
        end.unwrap();
        assert!(read == bytes, "{} bytes of {}", read.len(), bytes.len());
    }

    #[tokio::test]
    async fn a_line_that_was_sent_early_needs_no_other_to_follow() {
        let (mut inflow, outflow) = conduit();
        inflow.push(b"early\n").await.unwrap();
        let (writer, mut reader) = process(2);
        let carry = tokio::spawn(outflow.carry(writer));
        let mut line = [0; 6];
        reader.read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"early\n");
        drop(inflow);
        carry.await.unwrap();
        assert_eq!(reader.read(&mut line).await.unwrap(), 0, "the end of the input");
    }

    #[tokio::test]
    async fn an_input_that_ended_before_the_process_was_there_arrives() {
        let (mut inflow, outflow) = conduit();
        inflow.push(b"all").await.unwrap();
        drop(inflow);
        let (writer, mut reader) = process(100);
        outflow.carry(writer).await;
        let mut all = String::new();
        reader.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "all");
    }

    #[tokio::test]
    async fn no_more_than_the_backlog_is_kept_for_a_process_that_does_not_come() {
        let (mut inflow, outflow) = conduit();
        assert!(inflow.push(&[0; BACKLOG]).now_or_never().is_some());
        assert!(inflow.push(&[0]).now_or_never().is_none(), "it waits");
        drop(outflow);
        assert!(inflow.push(&[0]).await.is_err());
    }

    #[tokio::test]
    async fn a_process_that_closes_its_input_ends_it() {
        let (mut inflow, outflow) = conduit();
        let (writer, reader) = process(4);
        drop(reader);
        let client = async { while inflow.push(&[0; 100]).await.is_ok() {} };
        tokio::join!(client, outflow.carry(writer));
        assert!(inflow.push(b"x").await.is_err());
    }
}
