//! A byte stream inside binary WebSocket messages (`SPDY/3.1+portforward.k8s.io`): message boundaries mean nothing.

use std::convert::Infallible;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};

use super::frame::{self, LONGEST_HEAD, Opcode};
use super::{NORMAL, Sink, Source, open};
use crate::streaming::handshake::{Codec, Version};
use crate::streaming::pipe::BACKLOG;
use crate::streaming::session::{Io, SessionError};

/// Most payload of a message that is sent.
const LONGEST: usize = 32 << 10;

/// Runs `inner` over the byte stream inside the messages of `io`.
pub(in crate::streaming) async fn through<F>(
    io: impl Io,
    inner: impl FnOnce(DuplexStream) -> F,
) -> Result<(), SessionError>
where
    F: Future<Output = Result<(), SessionError>>,
{
    let (near, far) = tokio::io::duplex(BACKLOG);
    let (from_inner, to_inner) = tokio::io::split(far);
    let (sink, source) = open(io, Codec::Binary, Version::V4);
    let bridge = async {
        tokio::try_join!(outward(sink.clone(), from_inner), inward(source, to_inner))?;
        // Both ends have been passed on: what is left is for `inner` to notice.
        std::future::pending::<Result<Infallible, SessionError>>().await
    };
    tokio::select! {
        ended = inner(near) => ended,
        Err(error) = bridge => Err(error),
        error = sink.pump_pongs() => Err(SessionError::Write(error)),
    }
}

/// From the inner stream into messages; its end is a Close.
async fn outward(sink: Arc<Sink>, mut from_inner: ReadHalf<DuplexStream>) -> Result<(), SessionError> {
    let mut buffer = vec![0; LONGEST_HEAD + LONGEST];
    loop {
        let read = from_inner.read(&mut buffer[LONGEST_HEAD..]).await.map_err(SessionError::Write)?;
        if read == 0 {
            return sink.close(NORMAL).await.map_err(SessionError::Write);
        }
        let (head, length) = frame::server_head(Opcode::Binary, read);
        let start = LONGEST_HEAD - length;
        buffer[start..LONGEST_HEAD].copy_from_slice(&head[..length]);
        sink.send(&buffer[start..LONGEST_HEAD + read]).await.map_err(SessionError::Write)?;
    }
}

/// From messages into the inner stream; a Close, or the end of the connection, is its end.
async fn inward(mut source: Source, mut to_inner: WriteHalf<DuplexStream>) -> Result<(), SessionError> {
    while let Some(piece) = source.piece().await? {
        if to_inner.write_all(piece.bytes).await.is_err() {
            break;
        }
    }
    // The inner stream may have gone first.
    let _ = to_inner.shutdown().await;
    Ok(())
}
