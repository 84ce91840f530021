//! What a client of exec and attach is promised, over real sockets.

use std::time::Duration;

use engine::api::Reader;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

use super::{ATTACH_BACKLOG, LARGE, gather};
use crate::streaming::testing::{Client, Frame, on_terminal, script, server};
use crate::streaming::{AttachRequest, Config, ExecRequest};

const V4: &str = "v4.channel.k8s.io";

/// What a container writes, and with `stdin` what it reads.
fn attach(container: &str, stdin: bool) -> AttachRequest {
    AttachRequest { container: container.into(), tty: false, stdin, stdout: true, stderr: false }
}

#[tokio::test]
async fn outputs_end_before_the_status_and_the_status_before_the_farewell() {
    let (server, _) = server(Config::default()).await;
    let url = server.exec_url(script("echo out; echo err >&2; exit 42")).unwrap();
    let mut client = Client::connect(&url, "v9.channel.k8s.io, v4.channel.k8s.io, channel.k8s.io").await;
    let [error, stdin, stdout, stderr] = client.streams(["error", "stdin", "stdout", "stderr"]).await;
    let rest = client.rest().await;
    assert_eq!((rest.text(stdout), rest.text(stderr)), ("out\n".into(), "err\n".into()));
    assert!(rest.text(error).contains(r#""causes":[{"reason":"ExitCode","message":"42"}]"#));
    assert_eq!(rest.ended.len(), 3);
    assert_eq!(rest.ended.last(), Some(&error));
    assert!(rest.farewell);
    assert!(rest.reset.iter().all(|&id| id == stdin), "no output may be reset: {rest:?}");
}

#[tokio::test]
async fn the_end_of_stdin_reaches_the_process_and_leaves_the_outputs_open() {
    let (server, _) = server(Config::default()).await;
    let url = server.exec_url(script("cat; echo end")).unwrap();
    let mut client = Client::connect(&url, V4).await;
    let [error, stdin, stdout, _] = client.streams(["error", "stdin", "stdout", "stderr"]).await;
    client.data(stdin, b"hello ", false).await;
    client.data(stdin, b"world ", true).await;
    let rest = client.rest().await;
    assert_eq!(rest.text(stdout), "hello world end\n");
    assert_eq!(rest.text(error), r#"{"status":"Success"}"#);
}

#[tokio::test]
async fn a_command_that_cannot_start_is_told_on_the_error_stream() {
    let (server, _) = server(Config::default()).await;
    let request = ExecRequest { command: vec!["/no/such/program".into()], ..script("") };
    let mut client = Client::connect(&server.exec_url(request).unwrap(), V4).await;
    let [error, ..] = client.streams(["error", "stdin", "stdout", "stderr"]).await;
    let text = client.rest().await.text(error);
    assert!(
        text.starts_with(concat!(
            r#"{"status":"Failure","message":"Internal error occurred: error executing command in container: "#,
            r#"cannot start \"/no/such/program\": "#
        )),
        "{text}"
    );
    assert!(text.ends_with(r#""reason":"InternalError","code":500}"#), "{text}");
}

#[tokio::test]
async fn the_first_protocol_speaks_plain_text() {
    let (server, _) = server(Config::default()).await;
    for (code, expected) in [(0, ""), (7, "command terminated with non-zero exit code: exit code 7")] {
        let url = server.exec_url(script(&format!("exit {code}"))).unwrap();
        let mut client = Client::connect(&url, "channel.k8s.io").await;
        let [error, ..] = client.streams(["error", "stdin", "stdout", "stderr"]).await;
        assert_eq!(client.rest().await.text(error), expected);
    }
}

#[tokio::test]
async fn terminal_sizes_arrive_even_while_input_is_stuck() {
    let (server, _) = server(Config::default()).await;
    let mut client = Client::connect(&server.exec_url(on_terminal()).unwrap(), V4).await;
    let [error, stdin, stdout, resize] = client.streams(["error", "stdin", "stdout", "resize"]).await;
    for _ in 0..4 {
        assert!(matches!(client.frame().await, Frame::Reply(_)));
    }
    // The first size is seen before keys are sent, so that the terminal reads none of them in between.
    client.data(resize, br#"{"Width":80,"Height":24}"#, false).await;
    assert_eq!(client.frame().await, Frame::Data(stdout, b"80x24;".to_vec()));
    client.data(stdin, &[b'x'; 32 << 10], false).await;
    client.data(resize, br#"{"Width":132,"Height":50}"#, false).await;
    assert_eq!(client.frame().await, Frame::Data(stdout, b"132x50;".to_vec()));
    client.data(stdin, b"q", false).await;
    assert_eq!(client.rest().await.text(error), r#"{"status":"Success"}"#);
}

#[tokio::test]
async fn attach_succeeds_whatever_the_container_ends_with() {
    let (server, _) = server(Config::default()).await;
    let url = server.attach_url(attach("c", true)).unwrap();
    let mut client = Client::connect(&url, V4).await;
    let [error, stdin, stdout] = client.streams(["error", "stdin", "stdout"]).await;
    client.data(stdin, b"line\n", true).await;
    let rest = client.rest().await;
    assert_eq!((rest.text(stdout), rest.text(error)), ("line\n".into(), r#"{"status":"Success"}"#.into()));
}

#[tokio::test]
async fn an_attached_client_that_does_not_read_is_let_go_of() {
    let (server, here) = server(Config::default()).await;
    let url = server.attach_url(attach("loud", false)).unwrap();
    let mut client = Client::connect(&url, V4).await;
    client.streams(["error", "stdout"]).await;
    assert!(matches!(client.frame().await, Frame::Reply(_)));
    crate::streaming::testing::until("the session ends", || {
        here.alive.load(std::sync::atomic::Ordering::SeqCst) == 0
    })
    .await;
}

#[tokio::test]
async fn attach_ends_when_nothing_can_come_any_more() {
    let (server, _) = server(Config::default()).await;
    let url = server.attach_url(attach("closed", false)).unwrap();
    let mut client = Client::connect(&url, V4).await;
    let [error, stdout] = client.streams(["error", "stdout"]).await;
    let rest = client.rest().await;
    assert_eq!(rest.text(stdout), "bye\n");
    assert!(rest.text(error).contains("its output ended before it did"), "{}", rest.text(error));
    assert!(rest.farewell);
}

#[tokio::test]
async fn an_attached_client_that_reads_is_kept_however_fast_the_container_talks() {
    const TALK: u64 = 64 << 20;
    let endless: Reader = Box::new(tokio::io::repeat(b'x').take(TALK));
    let (queue, mut waiting) = tokio::io::duplex(ATTACH_BACKLOG);
    let behind = CancellationToken::new();
    let read = async {
        let (mut buffer, mut total) = (vec![0; LARGE], 0);
        while let Ok(read @ 1..) = waiting.read(&mut buffer).await {
            total += read as u64;
        }
        total
    };
    let ((), total) = tokio::join!(gather(endless, queue, &behind), read);
    assert!(!behind.is_cancelled(), "let go of after {total} bytes");
    assert_eq!(total, TALK);
}

#[tokio::test]
async fn streams_that_do_not_come_end_the_session() {
    let config = Config { creation_timeout: Duration::from_millis(50), ..Config::default() };
    let (server, here) = server(config).await;
    let mut client = Client::connect(&server.exec_url(script("true")).unwrap(), V4).await;
    let [_, unknown] = client.streams(["error", "nonsense"]).await;
    let rest = client.rest().await;
    assert!(rest.farewell);
    assert!(rest.reset.contains(&unknown));
    assert_eq!(here.alive.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_idle_session_is_ended() {
    let config = Config { idle_timeout: Duration::from_millis(50), ..Config::default() };
    let (server, here) = server(config).await;
    let mut client = Client::connect(&server.exec_url(script("cat")).unwrap(), V4).await;
    client.streams(["error", "stdin", "stdout", "stderr"]).await;
    assert!(client.rest().await.farewell);
    crate::streaming::testing::until("the process ends", || {
        here.alive.load(std::sync::atomic::Ordering::SeqCst) == 0
    })
    .await;
}

#[tokio::test]
async fn output_held_open_by_a_left_over_process_does_not_hold_the_client() {
    let (server, _) = server(Config::default()).await;
    let mut client = Client::connect(&server.exec_url(script("sleep 30 & echo hi")).unwrap(), V4).await;
    let [error, _, stdout, _] = client.streams(["error", "stdin", "stdout", "stderr"]).await;
    let rest = tokio::time::timeout(Duration::from_secs(10), client.rest()).await.unwrap();
    assert_eq!((rest.text(stdout), rest.text(error)), ("hi\n".into(), r#"{"status":"Success"}"#.into()));
}

#[tokio::test]
async fn a_stopping_server_tells_its_clients_why() {
    let (server, _) = server(Config::default()).await;
    let url = server.exec_url(script("echo up; cat")).unwrap();
    let mut client = Client::connect(&url, V4).await;
    let [error, ..] = client.streams(["error", "stdin", "stdout", "stderr"]).await;
    while !matches!(client.frame().await, Frame::Data(..)) {}
    let read = async move { client.rest().await };
    let (rest, ()) = tokio::join!(read, server.stop());
    assert!(rest.text(error).contains("shutting down"));
    assert!(rest.farewell);
    let refused = tokio::net::TcpStream::connect(server.address()).await;
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn what_goes_in_comes_out_byte_for_byte() {
    const PIECES: usize = 512;
    let (server, _) = server(Config::default()).await;
    let mut client = Client::connect(&server.exec_url(script("cat")).unwrap(), V4).await;
    let [error, stdin, stdout, _] = client.streams(["error", "stdin", "stdout", "stderr"]).await;
    let (read, write) = tokio::io::split(client.io);
    let sent = tokio::spawn(async move {
        let mut writer = Client::over(tokio::io::join(tokio::io::empty(), write));
        let mut sum = Sha256::new();
        for piece in 0..PIECES {
            let bytes: Vec<u8> =
                (0..100_000).map(|i| u8::try_from((i * 7 + piece * 13) % 251).unwrap()).collect();
            sum.update(&bytes);
            writer.data(stdin, &bytes, piece + 1 == PIECES).await;
        }
        sum.finalize()
    });
    let mut reader = Client::over(tokio::io::join(read, tokio::io::sink()));
    let rest = reader.rest().await;
    assert_eq!(rest.bytes(stdout).len(), PIECES * 100_000);
    assert_eq!(Sha256::digest(rest.bytes(stdout)), sent.await.unwrap());
    assert_eq!(rest.text(error), r#"{"status":"Success"}"#);
}
