//! Traffic between two places, every byte of it compared.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, recv, sendto, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};

use super::space::Space;

/// What is lost is lost by then.
const PATIENCE: Duration = Duration::from_secs(3);

/// Listens in `server` at `port`, connects from `client` to `to`, exchanges a megabyte; whom the server saw.
///
/// # Errors
/// No connection, or other bytes than were sent.
pub(super) fn tcp(client: &Space, to: SocketAddr, server: &Space, port: u16) -> Result<IpAddr> {
    let listener = server.inside(|| Ok(TcpListener::bind(("::", port))?)).context("listen")?;
    let answering = std::thread::spawn(move || -> Result<IpAddr> {
        let (mut stream, peer) = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut sent = Vec::new();
        stream.read_to_end(&mut sent)?;
        stream.write_all(&sent.to_ascii_uppercase())?;
        Ok(peer.ip().to_canonical())
    });
    let wake = || {
        // A server that nobody reached still waits.
        let _ = server
            .inside(|| Ok(TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), PATIENCE)?));
    };
    let mut stream = client
        .inside(|| Ok(TcpStream::connect_timeout(&to, PATIENCE)?))
        .inspect_err(|_| wake())
        .with_context(|| format!("connect to {to}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let sent: Vec<u8> = (b'a'..=b'z').cycle().take(1 << 20).collect();
    stream.write_all(&sent)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    ensure!(answer == sent.to_ascii_uppercase(), "{to} answered with other bytes");
    answering.join().map_err(|_| anyhow::anyhow!("the server panicked"))?
}

/// The same with one datagram each way.
///
/// # Errors
/// A datagram did not arrive.
pub(super) fn udp(client: &Space, to: SocketAddr, server: &Space, port: u16) -> Result<IpAddr> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let bind = |space: &Space, address: IpAddr, port| -> Result<UdpSocket> {
        let socket = space.inside(|| Ok(UdpSocket::bind((address, port))?))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    };
    // A server that listens at every address of a host with several answers from the one nearest to the client.
    let at = if matches!(server, Space::Node) { to.ip() } else { any };
    let (server, client) = (bind(server, at, port)?, bind(client, any, 0)?);
    client.connect(to)?;
    client.send(b"ask")?;
    let mut buffer = [0; 16];
    let (size, from) = server.recv_from(&mut buffer).with_context(|| format!("nothing came by {to}"))?;
    server.send_to(&buffer[..size].to_ascii_uppercase(), from)?;
    let size = client.recv(&mut buffer).with_context(|| format!("no answer from {to}"))?;
    ensure!(&buffer[..size] == b"ASK", "{to} answered with other bytes");
    Ok(from.ip().to_canonical())
}

/// Sends an SCTP INIT to `to` and waits in `server` for one that came in at `port`: raw sockets, because a kernel that can
/// forward SCTP need not be able to speak it.
///
/// # Errors
/// It did not arrive.
pub(super) fn sctp(client: &Space, to: SocketAddrV4, server: &Space, port: u16) -> Result<()> {
    let kind = (AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::SCTP));
    let raw = || Ok(socket_with(kind.0, kind.1, kind.2, kind.3)?);
    let (receiver, sender) = (server.inside(raw)?, client.inside(raw)?);
    set_socket_timeout(&receiver, Timeout::Recv, Some(PATIENCE))?;
    let packet = sctp_init(36_000, to.port());
    sendto(&sender, &packet, SendFlags::empty(), &SocketAddrV4::new(*to.ip(), 0))?;
    let mut buffer = [0_u8; 512];
    loop {
        let (size, _) = recv(&receiver, &mut buffer, RecvFlags::empty())
            .with_context(|| format!("no SCTP came by {to}"))?;
        let header = usize::from(buffer[0] & 15) * 4;
        let arrived = &buffer[header..size];
        if arrived.len() == packet.len() && arrived[12] == 1 && arrived[2..4] == port.to_be_bytes() {
            return Ok(());
        }
    }
}

/// Common header and one INIT chunk (RFC 9260, sections 3.1 and 3.3.2).
fn sctp_init(from: u16, to: u16) -> Vec<u8> {
    let mut packet = [from.to_be_bytes(), to.to_be_bytes()].concat();
    packet.extend([0; 8]); // verification tag, checksum
    packet.extend([1, 0, 0, 20]); // INIT, its length
    packet.extend([0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 9]); // tag, window, streams, first number
    let checksum = crc32c(&packet);
    packet[8..12].copy_from_slice(&checksum.to_le_bytes());
    packet
}

/// Castagnoli's CRC, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { c >> 1 ^ 0x82f6_3b78 } else { c >> 1 })
    };
    !bytes.iter().fold(u32::MAX, step)
}

/// Bits per second of a TCP stream from one place to another, over two seconds after the first half second.
///
/// # Errors
/// No connection.
pub(super) fn throughput(client: &Space, to: SocketAddr, server: &Space) -> Result<f64> {
    let listener = server.inside(|| Ok(TcpListener::bind(("::", to.port()))?))?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| -> Result<()> {
            let mut stream = client.inside(|| Ok(TcpStream::connect_timeout(&to, PATIENCE)?))?;
            while !stop.load(Ordering::Relaxed) {
                stream.write_all(&[0; 16 << 10])?;
            }
            Ok(())
        });
        let mut stream = listener.accept()?.0;
        let mut buffer = vec![0; 64 << 10];
        let mut count = |during: Duration| -> Result<f64> {
            let (start, mut bytes) = (Instant::now(), 0_u32);
            while start.elapsed() < during {
                bytes += u32::try_from(stream.read(&mut buffer)?)?;
            }
            Ok(f64::from(bytes) * 8.0 / start.elapsed().as_secs_f64())
        };
        count(Duration::from_millis(500))?;
        let rate = count(Duration::from_secs(2));
        stop.store(true, Ordering::Relaxed);
        while stream.read(&mut buffer)? > 0 {}
        sending.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
        rate
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_published_one() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(sctp_init(1, 2).len(), 32);
    }
}
