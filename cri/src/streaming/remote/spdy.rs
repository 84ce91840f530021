//! A command's streams over SPDY: the client opens one stream for each, named by its `streamtype` header.

use std::sync::Arc;

use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::{Wires, resizable};
use crate::streaming::conduit::Outflow;
use crate::streaming::handshake::Version;
use crate::streaming::pipe::{Inlet, Outlet, Size};
use crate::streaming::request::Request;
use crate::streaming::server::Shared;
use crate::streaming::session::{Io, SessionError, over_spdy};
use crate::streaming::spdy::{Headers, Offer, Sender};

/// The streams that are expected, as they come in.
struct Gathering {
    version: Version,
    stdin: Slot<(Sender, Outflow)>,
    resize: Slot<(Sender, watch::Receiver<Size>)>,
    stdout: Slot<Sender>,
    stderr: Slot<Sender>,
    error: Slot<Sender>,
    ready: Option<oneshot::Sender<Gathered>>,
}

/// What the session begins with. The senders of `stdin` and `resize` only keep those streams open.
type Gathered = (Wires, Vec<Sender>);

/// A stream: expected, here, or not part of this session.
enum Slot<T> {
    Absent,
    Expected,
    Here(T),
}

/// Serves exec or attach over SPDY.
pub(in crate::streaming) async fn serve(
    shared: &Arc<Shared>,
    request: Request,
    version: Version,
    io: impl Io,
) -> Result<(), SessionError> {
    let (ready, gathered) = oneshot::channel();
    let mut gathering = Gathering::new(&request, version, ready);
    let limit = shared.limits().creation;
    let work = async {
        match timeout(limit, gathered).await {
            Ok(Ok((wires, _held))) => super::run(shared, request, wires).await,
            Ok(Err(_)) | Err(_) => Err(SessionError::StreamsMissing(limit)),
        }
    };
    over_spdy(shared, io, |offer, headers| gathering.open(offer, headers), work).await
}

// === impl Gathering ===

impl Gathering {
    fn new(request: &Request, version: Version, ready: oneshot::Sender<Gathered>) -> Self {
        let streams = request.streams();
        Self {
            version,
            stdin: Slot::wanted(streams.stdin),
            resize: Slot::wanted(resizable(streams, version)),
            stdout: Slot::wanted(streams.stdout),
            stderr: Slot::wanted(streams.stderr),
            error: Slot::Expected,
            ready: Some(ready),
        }
    }

    /// Takes a stream that is expected; any other is refused by being dropped.
    fn open(&mut self, offer: Offer, headers: &Headers) {
        match headers.get("streamtype") {
            Some("error") => self.error.fill(|| offer.accept(Inlet::Nothing)),
            Some("stdout") => self.stdout.fill(|| offer.accept(Inlet::Nothing)),
            Some("stderr") => self.stderr.fill(|| offer.accept(Inlet::Nothing)),
            Some("stdin") => self.stdin.fill(|| {
                let (inlet, reader) = Inlet::process();
                (offer.accept(inlet), reader)
            }),
            Some("resize") => self.resize.fill(|| {
                let (inlet, sizes) = Inlet::sizes();
                (offer.accept(inlet), sizes)
            }),
            _ => {}
        }
        self.begin_when_complete();
    }

    fn begin_when_complete(&mut self) {
        let missing = self.stdin.missing()
            || self.resize.missing()
            || self.stdout.missing()
            || self.stderr.missing()
            || self.error.missing();
        if missing {
            return;
        }
        let (Some(ready), Some(error)) = (self.ready.take(), self.error.take()) else { return };
        let (stdin_held, stdin) = self.stdin.take().unzip();
        let (resize_held, sizes) = self.resize.take().unzip();
        let wires = Wires {
            version: self.version,
            stdin,
            sizes,
            stdout: self.stdout.take().map(Outlet::Spdy),
            stderr: self.stderr.take().map(Outlet::Spdy),
            error: Outlet::Spdy(error),
        };
        let held = [stdin_held, resize_held].into_iter().flatten().collect();
        // The session may have ended meanwhile; the streams end with it then.
        let _ = ready.send((wires, held));
    }
}

impl<T> Slot<T> {
    fn wanted(wanted: bool) -> Self {
        if wanted { Self::Expected } else { Self::Absent }
    }

    fn missing(&self) -> bool {
        matches!(self, Self::Expected)
    }

    fn fill(&mut self, make: impl FnOnce() -> T) {
        if self.missing() {
            *self = Self::Here(make());
        }
    }

    fn take(&mut self) -> Option<T> {
        match std::mem::replace(self, Self::Absent) {
            Self::Here(stream) => Some(stream),
            Self::Absent | Self::Expected => None,
        }
    }
}
