//! Where the daemon listens and clients connect.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// An endpoint in Docker's spelling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `unix:///path`
    Unix(PathBuf),
    /// `tcp://address:port`, with mutual TLS only
    Tcp(SocketAddr),
    /// `fd://`: the sockets handed over by socket activation (sd_listen_fds(3))
    Inherited,
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix://") {
            // `sun_path` holds 107 bytes and a NUL (unix(7)).
            return match path {
                _ if !path.starts_with('/') => Err(format!("{text}: the path must be absolute")),
                _ if path.len() > 107 => {
                    Err(format!("{text}: longer than the 107 bytes a socket path may have"))
                }
                _ => Ok(Self::Unix(path.into())),
            };
        }
        if let Some(address) = text.strip_prefix("tcp://") {
            let address = address.parse().map_err(|_| format!("{text}: expected tcp://ADDRESS:PORT"))?;
            return Ok(Self::Tcp(address));
        }
        match text {
            "fd://" => Ok(Self::Inherited),
            _ => Err(format!("{text}: expected unix:///PATH, tcp://ADDRESS:PORT or fd://")),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::Inherited => f.write_str("fd://"),
        }
    }
}
