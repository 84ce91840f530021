//! Ways into a session for what a client sends, and the one way out for what it receives. Both carriers use them.

use std::io;

use serde::Deserialize;
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::sync::watch;

use super::conduit::{Inflow, Outflow, conduit};
use super::{spdy, ws};

/// Bytes of one stream that may wait between the connection and the process. When they are full the connection is not
/// read any more: neither carrier has another way to slow a client down.
pub(super) const BACKLOG: usize = 64 << 10;
/// Longest terminal size document, and what may be left of one between two frames.
const LONGEST_SIZE: usize = 1 << 10;

/// Terminal size: columns, then rows.
pub(super) type Size = (u16, u16);

/// Where the bytes of an incoming stream go.
#[derive(Debug)]
pub(super) enum Inlet {
    /// To a reader; dropping it is the end of file.
    Pipe(DuplexStream),
    /// Straight to a process; dropping it is the end of file.
    Process(Inflow),
    /// Terminal sizes: never waits, only the latest one counts.
    Sizes(Sizes),
    /// Nowhere.
    Nothing,
}

/// Reader of `{"Width":n,"Height":n}` documents, back to back, cut anywhere.
#[derive(Debug)]
pub(super) struct Sizes {
    rest: Vec<u8>,
    latest: watch::Sender<Size>,
}

/// Where the bytes of an outgoing stream go.
#[derive(Debug)]
pub(super) enum Outlet {
    Spdy(spdy::Sender),
    WebSocket(ws::Channel),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SizeDocument {
    width: u16,
    height: u16,
}

// === impl Inlet ===

impl Inlet {
    /// A pipe and the end to read it from.
    pub(super) fn pipe() -> (Self, DuplexStream) {
        let (inlet, reader) = tokio::io::duplex(BACKLOG);
        (Self::Pipe(inlet), reader)
    }

    /// A way to a process, and the end to join it to.
    pub(super) fn process() -> (Self, Outflow) {
        let (inflow, outflow) = conduit();
        (Self::Process(inflow), outflow)
    }

    /// Terminal sizes, and where to wait for them.
    pub(super) fn sizes() -> (Self, watch::Receiver<Size>) {
        let (latest, receiver) = watch::channel((0, 0));
        (Self::Sizes(Sizes { rest: Vec::new(), latest }), receiver)
    }

    /// Takes bytes in, and waits while a pipe is full. When the reader has gone, bytes are dropped from then on.
    pub(super) async fn push(&mut self, bytes: &[u8]) {
        let done = match self {
            Self::Pipe(pipe) => pipe.write_all(bytes).await.is_err(),
            Self::Process(inflow) => inflow.push(bytes).await.is_err(),
            Self::Sizes(sizes) => sizes.push(bytes).is_err(),
            Self::Nothing => false,
        };
        if done {
            *self = Self::Nothing;
        }
    }
}

// === impl Sizes ===

impl Sizes {
    /// Publishes the last complete size. An error ends it: what follows cannot be understood.
    fn push(&mut self, bytes: &[u8]) -> Result<(), serde_json::Error> {
        for chunk in bytes.chunks(LONGEST_SIZE) {
            self.rest.extend_from_slice(chunk);
            let mut documents = serde_json::Deserializer::from_slice(&self.rest).into_iter::<SizeDocument>();
            let mut latest = None;
            let ended = loop {
                match documents.next() {
                    Some(Ok(size)) => latest = Some((size.width, size.height)),
                    Some(Err(error)) if error.is_eof() => break Ok(()),
                    Some(Err(error)) => break Err(error),
                    None => break Ok(()),
                }
            };
            let read = documents.byte_offset();
            self.rest.drain(..read);
            if let Some(size) = latest.filter(|&(width, height)| width > 0 && height > 0) {
                self.latest.send_replace(size);
            }
            ended?;
            if self.rest.len() > LONGEST_SIZE {
                return Err(serde::de::Error::custom("terminal size document without end"));
            }
        }
        Ok(())
    }
}

// === impl Outlet ===

impl Outlet {
    /// Bytes the caller leaves free in front of what it sends, for the carrier's head.
    pub(super) fn headroom(&self) -> usize {
        match self {
            Self::Spdy(_) => spdy::HEAD,
            Self::WebSocket(_) => ws::HEAD,
        }
    }

    /// Sends what stands behind the headroom, and returns when the kernel has it.
    pub(super) async fn send(&mut self, frame: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Spdy(sender) => sender.send(frame).await,
            Self::WebSocket(channel) => channel.send(frame).await,
        }
    }

    /// Sends a short text.
    pub(super) async fn say(&mut self, text: &[u8]) -> io::Result<()> {
        let mut frame = vec![0; self.headroom()];
        frame.extend_from_slice(text);
        self.send(&mut frame).await
    }

    /// Nothing more comes.
    pub(super) async fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Spdy(sender) => sender.finish().await,
            // A WebSocket has no end per channel that a client would wait for.
            Self::WebSocket(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn terminal_sizes_are_read_across_cuts_and_only_the_latest_counts() {
        let text = br#"{"Width":80,"Height":24}{"Width":100,"Height":30}
            {"Height":50,"Width":132}"#;
        for cut in 0..text.len() {
            let (mut inlet, receiver) = Inlet::sizes();
            inlet.push(&text[..cut]).await;
            inlet.push(&text[cut..]).await;
            assert_eq!(*receiver.borrow(), (132, 50), "cut at {cut}");
        }
    }

    #[tokio::test]
    async fn a_bad_or_endless_size_ends_the_resizing_and_holds_no_memory() {
        for bad in [&b"{\"Width\":99999,\"Height\":1}"[..], b"nonsense", &[b' '; 8000], &[b'['; 8000]] {
            let (mut inlet, receiver) = Inlet::sizes();
            inlet.push(b"{\"Width\":80,\"Height\":24}").await;
            inlet.push(bad).await;
            assert_eq!(*receiver.borrow(), (80, 24));
            match inlet {
                Inlet::Nothing => {}
                Inlet::Sizes(sizes) => assert!(sizes.rest.len() <= LONGEST_SIZE),
                Inlet::Pipe(_) | Inlet::Process(_) => unreachable!(),
            }
        }
    }

    #[tokio::test]
    async fn a_pipe_whose_reader_left_swallows() {
        let (mut inlet, reader) = Inlet::pipe();
        drop(reader);
        inlet.push(&[0; 3 * BACKLOG]).await;
        assert!(matches!(inlet, Inlet::Nothing));
    }
}
