//! What a WebSocket client is promised, with an independent client over real sockets.

use std::sync::atomic::Ordering;

use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Bytes, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::streaming::Config;
use crate::streaming::testing::{on_terminal, script, server, until};

type Socket = WebSocketStream<TcpStream>;

pub(crate) async fn connect(url: &str, protocol: &str) -> Socket {
    let mut request = url.replace("http://", "ws://").into_client_request().unwrap();
    if !protocol.is_empty() {
        request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
    }
    let host = url.split('/').nth(2).unwrap();
    let (socket, answer) = client_async(request, TcpStream::connect(host).await.unwrap()).await.unwrap();
    let named = answer.headers().get("sec-websocket-protocol").map_or("", |name| name.to_str().unwrap());
    assert_eq!(named, protocol.split(", ").last().unwrap());
    socket
}

/// All messages until the end, by channel, and the code of the Close frame.
async fn rest(socket: &mut Socket) -> ([Vec<u8>; 5], Option<CloseCode>) {
    let (mut channels, mut code) = ([const { Vec::new() }; 5], None);
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Binary(bytes) => channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..]),
            Message::Close(frame) => code = frame.map(|CloseFrame { code, .. }| code),
            _ => {}
        }
    }
    (channels, code)
}

async fn send(socket: &mut Socket, message: &[u8]) {
    socket.send(Message::Binary(Bytes::copy_from_slice(message))).await.unwrap();
}

#[tokio::test]
async fn v5_ends_stdin_by_a_message_and_closes_normally_after_the_status() {
    let (server, _) = server(Config::default()).await;
    let url = server.exec_url(script("cat; echo err >&2; exit 5")).unwrap();
    let mut socket = connect(&url, "v9.channel.k8s.io, v5.channel.k8s.io").await;
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::Binary(Bytes::from_static(&[1])));
    send(&mut socket, b"\0hello").await;
    send(&mut socket, &[255, 0]).await;
    let ([_, stdout, stderr, error, _], code) = rest(&mut socket).await;
    assert_eq!((stdout, stderr), (b"hello".to_vec(), b"err\n".to_vec()));
    assert!(String::from_utf8(error).unwrap().contains(r#""reason":"ExitCode","message":"5""#));
    assert_eq!(code, Some(CloseCode::Normal));
}

#[tokio::test]
async fn before_v5_channel_255_means_nothing() {
    let (server, _) = server(Config::default()).await;
    let url = server.exec_url(script("read line; echo $line")).unwrap();
    let mut socket = connect(&url, "v4.channel.k8s.io").await;
    send(&mut socket, &[255, 0]).await;
    send(&mut socket, b"\x09to nobody").await;
    send(&mut socket, b"").await;
    send(&mut socket, b"\0still open\n").await;
    let ([_, stdout, _, error, _], _) = rest(&mut socket).await;
    assert_eq!((stdout, error), (b"still open\n".to_vec(), br#"{"status":"Success"}"#.to_vec()));
}

#[tokio::test]
async fn without_a_protocol_the_first_one_is_spoken() {
    let (server, _) = server(Config::default()).await;
    let mut socket = connect(&server.exec_url(script("echo out; exit 2")).unwrap(), "").await;
    let ([_, stdout, _, error, _], _) = rest(&mut socket).await;
    assert_eq!(stdout, b"out\n");
    assert_eq!(error, b"command terminated with non-zero exit code: exit code 2");
}

#[tokio::test]
async fn base64_channels_carry_text() {
    let (server, _) = server(Config::default()).await;
    for protocol in ["base64.channel.k8s.io", "v4.base64.channel.k8s.io"] {
        let url = server.exec_url(script("head -c 4")).unwrap();
        let mut socket = connect(&url, protocol).await;
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("1"));
        // "0" and "\0\x01é" in base64.
        socket.send(Message::text("0AAHDqQ==")).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("1AAHDqQ=="));
    }
}

#[tokio::test]
async fn terminal_sizes_have_their_channel() {
    let (server, _) = server(Config::default()).await;
    let mut socket = connect(&server.exec_url(on_terminal()).unwrap(), "v4.channel.k8s.io").await;
    send(&mut socket, b"\x04{\"Width\":100,\"Height\":40}").await;
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::Binary(Bytes::from_static(&[1])));
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::Binary(Bytes::from_static(b"\x01100x40;")));
}

#[tokio::test]
async fn pings_are_answered_while_output_flows() {
    let (server, _) = server(Config::default()).await;
    let mut socket = connect(&server.exec_url(script("cat")).unwrap(), "v5.channel.k8s.io").await;
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::Binary(Bytes::from_static(&[1])));
    socket.send(Message::Ping(Bytes::from_static(b"alive?"))).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::Pong(Bytes::from_static(b"alive?")));
}

#[tokio::test]
async fn a_message_that_is_not_of_the_protocol_ends_the_session() {
    let (server, here) = server(Config::default()).await;
    let url = server.exec_url(script("cat")).unwrap();
    let mut socket = connect(&url, "base64.channel.k8s.io").await;
    until("the command runs", || here.alive.load(Ordering::SeqCst) == 1).await;
    socket.send(Message::text("0 not base64")).await.unwrap();
    until("the command is gone", || here.alive.load(Ordering::SeqCst) == 0).await;
}
