//! What a WebSocket client is promised, with an independent client over real sockets.

use std::sync::atomic::Ordering;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Bytes, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::frame;
use crate::streaming::Config;
use crate::streaming::testing::{http, on_terminal, script, server, until};

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

/// A client's frame, written from RFC 6455 apart from the server's code.
fn raw(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    let mut frame = vec![first];
    match payload.len() {
        short @ 0..126 => frame.push(0x80 | u8::try_from(short).unwrap()),
        long => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

async fn raw_client(url: &str, protocol: &str) -> TcpStream {
    let headers = format!(
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {protocol}\r\n"
    );
    let (stream, head) = http(url, "GET", &headers).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    stream
}

#[tokio::test]
async fn messages_in_parts_with_pings_between_arrive_whole() {
    let (server, _) = server(Config::default()).await;
    for (protocol, first, parts) in [
        ("v5.channel.k8s.io", 2, [&b""[..], b"\0ab", b"", b"c", b"def"]),
        ("base64.channel.k8s.io", 1, [&b""[..], b"0", b"YW", b"JjZ", b"GVm"]),
    ] {
        let url = server.exec_url(script("head -c 6; exit 9")).unwrap();
        let mut client = raw_client(&url, protocol).await;
        for (number, part) in parts.iter().enumerate() {
            let opcode = if number == 0 { first } else { 0 };
            let fin = if number + 1 == parts.len() { 0x80 } else { 0 };
            client.write_all(&raw(fin | opcode, part)).await.unwrap();
            client.write_all(&raw(0x80 | 9, b"ping")).await.unwrap();
        }
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap();
        let said = if first == 2 { &b"\x01abcdef"[..] } else { b"1YWJjZGVm" };
        assert!(all.windows(said.len()).any(|window| window == said), "{protocol}: {all:?}");
        assert!(all.windows(6).any(|window| window == b"\x8a\x04ping"), "{protocol}: {all:?}");
        assert!(all.ends_with(&[0x88, 2, 0x03, 0xe8]), "{protocol}: {all:?}");
    }
}

#[tokio::test]
async fn one_message_may_be_larger_than_any_buffer() {
    const MIB: usize = 1 << 20;
    let (server, _) = server(Config::default()).await;
    let url = server.exec_url(script("wc -c")).unwrap();
    let mut client = raw_client(&url, "v5.channel.k8s.io").await;
    // A single frame of 40 MiB and its channel, made in pieces: each is a multiple of the mask's four bytes.
    let zeros = raw(0x82, &[0; MIB]);
    client
        .write_all(&[&[0x82, 0xff][..], &(40 * MIB as u64).to_be_bytes(), &zeros[10..]].concat())
        .await
        .unwrap();
    for _ in 1..40 {
        client.write_all(&zeros[14..]).await.unwrap();
    }
    client.write_all(&raw(0x82, &[255, 0])).await.unwrap();
    let mut all = Vec::new();
    client.read_to_end(&mut all).await.unwrap();
    let count = format!("{}\n", 40 * MIB - 1);
    assert!(all.windows(count.len()).any(|window| window == count.as_bytes()), "{all:?}");
}

#[tokio::test]
async fn frames_that_break_the_rules_end_the_session_with_their_code() {
    let (server, here) = server(Config::default()).await;
    let unmasked = vec![0x82, 0x02, 0, b'x', 0, 0];
    for bad in [
        raw(0x80, b"\0"),
        [raw(0x02, b"\0"), raw(0x82, b"\0")].concat(),
        raw(0xc2, b"\0"),
        raw(0x83, b"\0"),
        raw(0x09, b"\0"),
        raw(0x89, &[0; 126]),
        unmasked,
    ] {
        let url = server.exec_url(script("cat")).unwrap();
        let mut client = raw_client(&url, "v4.channel.k8s.io").await;
        client.write_all(&bad).await.unwrap();
        let mut all = Vec::new();
        // What was not read makes the kernel reset the connection, perhaps before the code is through.
        let _ = client.read_to_end(&mut all).await;
        assert!(all.len() < 4 || all.ends_with(&[0x88, 2, 0x03, 0xea]), "{bad:?}: {all:?}");
        until("the command is gone", || here.alive.load(Ordering::SeqCst) == 0).await;
    }
}

proptest::proptest! {
    #[test]
    fn no_head_makes_the_codec_fail_otherwise_than_by_an_error(first: [u8; 2], rest in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..16)) {
        let _ = frame::head(first, &rest);
    }

    #[test]
    fn unmasking_in_pieces_is_unmasking_at_once(mut bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..64), mask: [u8; 4], cut in 0_usize..64) {
        let mut whole = bytes.clone();
        frame::unmask(&mut whole, &mut mask.clone());
        let cut = cut.min(bytes.len());
        let (left, right) = bytes.split_at_mut(cut);
        let mut mask = mask;
        frame::unmask(left, &mut mask);
        frame::unmask(right, &mut mask);
        proptest::prop_assert_eq!(bytes, whole);
    }
}

#[test]
fn heads_are_written_as_drawn() {
    let head = |length| {
        let (head, used) = frame::server_head(frame::Opcode::Binary, length);
        head[..used].to_vec()
    };
    assert_eq!(head(125), [0x82, 125]);
    assert_eq!(head(126), [0x82, 126, 0, 126]);
    assert_eq!(head(65535), [0x82, 126, 0xff, 0xff]);
    assert_eq!(head(65536), [0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
}
