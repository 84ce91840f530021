//! Connections to ports of a pod.
//!
//! Each is a copy loop in both directions with the half-closes of TCP: the client's end of data becomes a FIN to the
//! target and the other way round. After one side has ended, the other may go on, but not be silent for ever, since
//! clients forget to close the rest.

pub(super) mod channels;
pub(super) mod spdy;

#[cfg(test)]
mod tests;

use std::time::Duration;

use engine::api::{Reader, Stream};
use tokio::io::DuplexStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::pipe::Outlet;
use super::remote::{Quiet, feed, pump};
use super::server::Shared;

/// How long a target may be silent once the client has ended its data.
const SILENCE: Duration = Duration::from_secs(120);
/// How long the client's last bytes may take once the target has ended its data.
const LAST_BYTES: Duration = Duration::from_secs(1);

/// Moves bytes both ways until both sides have ended, or the target has and `closing` is done with it.
async fn carry(
    target: Box<dyn Stream>,
    from_client: DuplexStream,
    to_client: &mut Outlet,
    closing: impl Future,
) {
    let (from, to) = tokio::io::split(target);
    let mut from: Reader = Box::new(from);
    let client_ended = CancellationToken::new();
    let quiet = Quiet { after: client_ended.clone(), limit: SILENCE };
    let upward = async {
        feed(from_client, Box::new(to)).await;
        client_ended.cancel();
    };
    let downward = async {
        if pump(&mut from, to_client, &quiet).await.is_ok() && to_client.finish().await.is_ok() {
            closing.await;
        }
    };
    let mut upward = std::pin::pin!(upward);
    let mut downward = std::pin::pin!(downward);
    tokio::select! {
        () = &mut downward => {
            // A client that is still sending will learn from the end of our data.
            let _ = timeout(LAST_BYTES, upward).await;
        }
        () = &mut upward => downward.await,
    }
}

/// Connects, or says why not in the words clients print.
async fn dial(shared: &Shared, pod: &str, port: u16) -> Result<Box<dyn Stream>, String> {
    let dialled = shared.sessions.port_forward(pod.to_owned(), port).await;
    dialled.map_err(|error| format!("error forwarding port {port} to pod {pod}: {}", error.chain()))
}
