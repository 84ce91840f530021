//! A command's streams as WebSocket channels: 0 stdin, 1 stdout, 2 stderr, 3 error, 4 terminal sizes.

use std::sync::Arc;

use super::{Wires, resizable};
use crate::streaming::handshake::{Codec, Version};
use crate::streaming::pipe::{Inlet, Outlet};
use crate::streaming::request::Request;
use crate::streaming::server::Shared;
use crate::streaming::session::{Io, SessionError};
use crate::streaming::ws;

const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;

/// Serves exec or attach over WebSocket.
pub(in crate::streaming) async fn serve(
    shared: &Arc<Shared>,
    request: Request,
    version: Version,
    codec: Codec,
    io: impl Io,
) -> Result<(), SessionError> {
    let (sink, source) = ws::open(io, codec, version);
    let streams = request.streams();
    let (stdin_inlet, stdin) = streams.stdin.then(Inlet::process).unzip();
    let (size_inlet, sizes) = resizable(streams, version).then(Inlet::sizes).unzip();
    let inlets = vec![
        stdin_inlet.unwrap_or(Inlet::Nothing),
        Inlet::Nothing,
        Inlet::Nothing,
        Inlet::Nothing,
        size_inlet.unwrap_or(Inlet::Nothing),
    ];
    let outlet = |number| Outlet::WebSocket(sink.channel(number));
    let mut wires = Wires {
        version,
        stdin,
        sizes,
        stdout: streams.stdout.then(|| outlet(STDOUT)),
        stderr: streams.stderr.then(|| outlet(STDERR)),
        error: outlet(ERROR),
    };
    let work = async {
        // An empty message on the lowest channel tells the client that the session stands.
        let first = wires.stdout.as_mut().or(wires.stderr.as_mut()).unwrap_or(&mut wires.error);
        first.say(&[]).await.map_err(SessionError::Write)?;
        super::run(shared, request, wires).await
    };
    ws::conduct(&sink, source, inlets, shared.limits().idle, work).await
}
