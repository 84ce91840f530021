//! Forwarded connections as WebSocket channels, one per port of the request: channel 2n carries the n-th port's data,
//! 2n + 1 its errors, and each begins with the port as two bytes, low byte first.

use std::sync::Arc;

use futures_util::future::join_all;
use tokio::io::DuplexStream;

use super::{carry, dial};
use crate::streaming::handshake::{Codec, Version};
use crate::streaming::pipe::{Inlet, Outlet};
use crate::streaming::server::Shared;
use crate::streaming::session::{Io, SessionError};
use crate::streaming::ws::{self, Sink};

/// Most ports of one connection: both channels of each must have a number below 255.
const MOST_PORTS: usize = 127;

/// Serves the ports of a request until the last of them ends.
pub(in crate::streaming) async fn serve(
    shared: &Arc<Shared>,
    pod: String,
    ports: &[u16],
    codec: Codec,
    io: impl Io,
) -> Result<(), SessionError> {
    let (sink, source) = ws::open(io, codec, Version::V4);
    let mut inlets = Vec::new();
    let mut connections = Vec::new();
    for (number, &port) in (0_u8..).step_by(2).zip(ports.iter().take(MOST_PORTS)) {
        let (inlet, reader) = Inlet::pipe();
        inlets.extend([inlet, Inlet::Nothing]);
        connections.push(connection(shared, &pod, &sink, number, port, reader));
    }
    let work = async {
        tokio::select! {
            _ = join_all(connections) => {}
            () = shared.stop.cancelled() => {}
        }
        Ok(())
    };
    ws::conduct(&sink, source, inlets, shared.limits().idle, work).await
}

async fn connection(
    shared: &Shared,
    pod: &str,
    sink: &Arc<Sink>,
    number: u8,
    port: u16,
    from_client: DuplexStream,
) {
    let mut data = Outlet::WebSocket(sink.channel(number));
    let mut error = Outlet::WebSocket(sink.channel(number + 1));
    let port_bytes = port.to_le_bytes();
    if data.say(&port_bytes).await.is_err() || error.say(&port_bytes).await.is_err() {
        return;
    }
    match dial(shared, pod, port).await {
        Ok(target) => carry(target, from_client, &mut data, std::future::ready(())).await,
        // A client that cannot be told has left.
        Err(why) => error.say(why.as_bytes()).await.unwrap_or_default(),
    }
}
