//! Connecting from inside a pod's network namespace.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::drivers::Network;
use crate::engine::network_error;
use crate::{Error, Kind};

/// A loopback connection that takes longer is refused by its owner's full backlog.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connects to 127.0.0.1, else ::1, in the pod's namespace (`None`: the node's).
///
/// A namespace belongs to a thread, and a future may wake up on any: so a thread of its own enters the namespace, makes the
/// connected socket, and ends. The socket keeps the namespace it was made in.
pub(super) async fn loopback(
    pod: Option<(Arc<dyn Network>, Arc<str>)>,
    port: u16,
) -> Result<TcpStream, Error> {
    let (answer, connected) = oneshot::channel();
    let thread = std::thread::Builder::new().name("port-forward".into()).stack_size(128 << 10);
    let internal = |e: io::Error| Error::with(Kind::Internal, "port-forward", e);
    thread.spawn(move || answer.send(connect(pod, port))).map_err(internal)?;
    let gone = |e| Error::with(Kind::Internal, "port-forward thread", e);
    let stream = connected.await.map_err(gone)??;
    stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)).map_err(internal)
}

fn connect(pod: Option<(Arc<dyn Network>, Arc<str>)>, port: u16) -> Result<std::net::TcpStream, Error> {
    if let Some((network, id)) = pod {
        let gone = || Error::new(Kind::FailedPrecondition, format!("pod \"{id}\" has no network namespace"));
        let namespace = network.open_namespace(&id).map_err(network_error)?.ok_or_else(gone)?;
        setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(|e| Error::with(Kind::Internal, "setns", e))?;
    }
    let four = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let six = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    std::net::TcpStream::connect_timeout(&four, PATIENCE)
        .or_else(|error| std::net::TcpStream::connect_timeout(&six, PATIENCE).map_err(|_| error))
        .map_err(|e| Error::with(Kind::Unavailable, format!("connect to port {port} in the pod"), e))
}
