//! Tells the service manager how we are (sd_notify(3)). Without `NOTIFY_SOCKET` nobody asked.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Calls are served.
pub fn ready() {
    tell("READY=1\nSTATUS=serving");
}

/// We are ending.
pub fn stopping() {
    tell("STOPPING=1\nSTATUS=ending; containers go on");
}

fn tell(message: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let sent = || -> std::io::Result<()> {
        let address = match socket.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(std::ffi::OsString::from_vec(socket.as_bytes().to_vec()))?,
        };
        UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address)?;
        Ok(())
    };
    if let Err(error) = sent() {
        tracing::warn!(%error, socket = %socket.display(), "cannot tell the service manager");
    }
}
