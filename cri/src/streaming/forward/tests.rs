//! What a client of port-forward is promised, over real sockets to a real listener.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::{Bytes, Message};

use crate::streaming::Config;
use crate::streaming::testing::{Client, Frame, ports, server, until};
use crate::streaming::ws;

const PROTOCOL: &str = "portforward.k8s.io";

/// A target that answers what it is told once the telling has ended.
async fn target() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut told = Vec::new();
                socket.read_to_end(&mut told).await.unwrap();
                socket.write_all(&[b"you said ", told.as_slice()].concat()).await.unwrap();
            });
        }
    });
    port
}

/// A port nobody listens on.
async fn nobody() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

async fn pair<S>(client: &mut Client<S>, port: u16, id: &str) -> [u32; 2]
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let port = port.to_string();
    let mut streams = [0; 2];
    for (stream, kind) in streams.iter_mut().zip(["error", "data"]) {
        *stream = client.open(&[("streamtype", kind), ("port", &port), ("requestid", id)]).await;
    }
    client.data(streams[0], b"", true).await;
    streams
}

#[tokio::test]
async fn the_ends_of_both_sides_pass_through() {
    let (server, here) = server(Config::default()).await;
    let port = target().await;
    let mut client = Client::connect(&server.port_forward_url(ports(&[])).unwrap(), PROTOCOL).await;
    let mut expected = Vec::new();
    for id in ["0", "1", "2"] {
        let [error, data] = pair(&mut client, port, id).await;
        client.data(data, id.as_bytes(), true).await;
        expected.push((error, data, format!("you said {id}")));
    }
    let (mut said, mut ended) = (std::collections::HashMap::<u32, Vec<u8>>::new(), Vec::new());
    while ended.len() < 6 {
        match client.frame().await {
            Frame::Data(stream, bytes) => said.entry(stream).or_default().extend(bytes),
            Frame::Fin(stream) => ended.push(stream),
            Frame::Reply(_) => {}
            other => panic!("{other:?}"),
        }
    }
    for (error, data, text) in expected {
        assert_eq!(said[&data], text.as_bytes());
        assert!(!said.contains_key(&error));
    }
    until("all is closed", || here.alive.load(std::sync::atomic::Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn a_port_nobody_listens_on_is_told_and_harms_no_other() {
    let (server, _) = server(Config::default()).await;
    let (dead, port) = (nobody().await, target().await);
    let mut client = Client::connect(&server.port_forward_url(ports(&[])).unwrap(), PROTOCOL).await;
    let [error, data] = pair(&mut client, dead, "0").await;
    let mut text = Vec::new();
    loop {
        match client.frame().await {
            Frame::Data(stream, bytes) if stream == error => text.extend(bytes),
            Frame::Fin(stream) if stream == error => break,
            Frame::Reply(_) => {}
            other => panic!("{other:?}"),
        }
    }
    let text = String::from_utf8(text).unwrap();
    assert!(text.starts_with(&format!("error forwarding port {dead} to pod p: ")), "{text}");
    assert_eq!(client.frame().await, Frame::Reset(data, 5));
    let [_, data] = pair(&mut client, port, "1").await;
    client.data(data, b"hi", true).await;
    loop {
        match client.frame().await {
            Frame::Data(_, bytes) => break assert_eq!(bytes, b"you said hi"),
            Frame::Reply(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn streams_that_make_no_sense_are_refused() {
    let (server, _) = server(Config::default()).await;
    let mut client = Client::connect(&server.port_forward_url(ports(&[])).unwrap(), PROTOCOL).await;
    let bad: [&[(&str, &str)]; 5] = [
        &[("streamtype", "data"), ("port", "0")],
        &[("streamtype", "data"), ("port", "65536")],
        &[("streamtype", "data"), ("requestid", "1")],
        &[("streamtype", "other"), ("port", "80")],
        &[("port", "80")],
    ];
    for headers in bad {
        let id = client.open(headers).await;
        assert_eq!(client.frame().await, Frame::Reset(id, 1), "{headers:?}");
    }
}

#[tokio::test]
async fn half_a_pair_is_reset_after_a_while() {
    let config = Config { creation_timeout: Duration::from_millis(50), ..Config::default() };
    let (server, _) = server(config).await;
    let mut client = Client::connect(&server.port_forward_url(ports(&[])).unwrap(), PROTOCOL).await;
    let id = client.open(&[("streamtype", "data"), ("port", "80"), ("requestid", "7")]).await;
    assert_eq!(client.frame().await, Frame::Reply(id));
    assert_eq!(client.frame().await, Frame::Reset(id, 5));
}

#[tokio::test]
async fn a_reset_by_the_client_closes_the_target() {
    let (server, here) = server(Config::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut client = Client::connect(&server.port_forward_url(ports(&[])).unwrap(), PROTOCOL).await;
    let [_, data] = pair(&mut client, port, "0").await;
    let (mut socket, _) = listener.accept().await.unwrap();
    client.control(3, &[data.to_be_bytes(), 5_u32.to_be_bytes()].concat()).await;
    assert_eq!(socket.read(&mut [0; 1]).await.unwrap(), 0);
    drop(socket);
    until("it is dropped", || here.alive.load(std::sync::atomic::Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn clients_without_request_ids_are_paired_by_stream_numbers() {
    let (server, _) = server(Config::default()).await;
    let port = target().await.to_string();
    let mut client = Client::connect(&server.port_forward_url(ports(&[])).unwrap(), PROTOCOL).await;
    client.open(&[("streamtype", "error"), ("port", &port)]).await;
    let data = client.open(&[("streamtype", "data"), ("port", &port)]).await;
    client.data(data, b"old", true).await;
    while !matches!(client.frame().await, Frame::Data(stream, text) if stream == data && text == b"you said old")
    {
    }
}

#[tokio::test]
async fn a_websocket_tunnel_carries_the_same() {
    let (server, _) = server(Config::default()).await;
    let port = target().await;
    let url = server.port_forward_url(ports(&[])).unwrap();
    let socket = ws::tests::connect(&url, "SPDY/3.1+portforward.k8s.io").await;
    // Message boundaries mean nothing, so the client's bytes go one by one.
    let (near, far) = tokio::io::duplex(1 << 16);
    let (mut read, mut write) = tokio::io::split(far);
    let (mut to_server, mut from_server) = socket.split();
    tokio::spawn(async move {
        while let Ok(byte) = read.read_u8().await {
            to_server.send(Message::Binary(Bytes::copy_from_slice(&[byte]))).await.unwrap();
        }
    });
    tokio::spawn(async move {
        while let Some(Ok(Message::Binary(bytes))) = from_server.next().await {
            write.write_all(&bytes).await.unwrap();
        }
    });
    let mut client = Client::over(near);
    let [_, data] = pair(&mut client, port, "0").await;
    client.data(data, b"tunnel", true).await;
    while !matches!(client.frame().await, Frame::Data(stream, text) if stream == data && text == b"you said tunnel")
    {
    }
}

#[tokio::test]
async fn websocket_channels_begin_with_their_port() {
    let (server, _) = server(Config::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, dead) = (listener.local_addr().unwrap().port(), nobody().await);
    let url = server.port_forward_url(ports(&[port, dead])).unwrap();
    let mut socket = ws::tests::connect(&url, "v4.channel.k8s.io").await;
    let (mut accepted, _): (TcpStream, _) = listener.accept().await.unwrap();
    accepted.write_all(b"greeting").await.unwrap();
    let mut channels = [const { Vec::new() }; 4];
    while channels[0].len() < 10 || channels[3].len() <= 2 {
        let message = socket.next().await.unwrap().unwrap().into_data();
        channels[usize::from(message[0])].extend_from_slice(&message[1..]);
    }
    assert_eq!(channels[0], [&port.to_le_bytes()[..], b"greeting"].concat());
    assert_eq!(channels[1], port.to_le_bytes());
    assert_eq!(channels[2], dead.to_le_bytes());
    assert_eq!(channels[3][..2], dead.to_le_bytes());
    assert!(String::from_utf8_lossy(&channels[3][2..]).contains("error forwarding port"));
    socket.send(Message::Binary(Bytes::from_static(b"\0hello"))).await.unwrap();
    let mut heard = [0; 5];
    accepted.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"hello");
}
