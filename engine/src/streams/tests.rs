//! Pipes, terminals, and connections from inside a namespace.

use std::os::fd::OwnedFd;

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};

use super::{Pipe, connect};
use crate::Kind;

#[tokio::test]
async fn a_pipe_carries_bytes_and_its_end() {
    let (reader, writer) = std::io::pipe().unwrap();
    let (mut reader, mut writer) = (Pipe::new(reader.into()).unwrap(), Pipe::new(writer.into()).unwrap());
    let sent = vec![7_u8; 1 << 20];
    let copy = sent.clone();
    let sending = tokio::spawn(async move { writer.write_all(&copy).await });
    let mut received = Vec::new();
    reader.read_to_end(&mut received).await.unwrap();
    sending.await.unwrap().unwrap();
    assert_eq!(received, sent);
}

#[tokio::test]
async fn the_end_of_a_terminal_is_the_end_of_the_stream() {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let slave: OwnedFd = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    let mut pipe = Pipe::new(master).unwrap();
    rustix::io::write(&slave, b"hello").unwrap();
    drop(slave);
    let mut text = String::new();
    pipe.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello");
}

#[tokio::test]
async fn a_port_of_the_node_is_reached_and_a_closed_one_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (stream, accepted) = tokio::join!(connect::loopback(None, port), listener.accept());
    let (mut stream, (mut accepted, _)) = (stream.unwrap(), accepted.unwrap());
    stream.write_all(b"x").await.unwrap();
    assert_eq!(accepted.read_u8().await.unwrap(), b'x');
    // Taken, so that nobody else listens there, and not listened on.
    let closed = TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = closed.local_addr().unwrap().port();
    let error = connect::loopback(None, port).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.chain().contains(&port.to_string()), "{}", error.chain());
}
