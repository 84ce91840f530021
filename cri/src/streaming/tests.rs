//! What the listener promises to anybody who comes, and that nothing stays behind.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::testing::{Client, http, ports, script, server, until};
use super::{Config, Server, Tls};

const UPGRADE: &str =
    "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n";

#[tokio::test]
async fn a_url_is_absolute_long_and_good_for_one_request() {
    let (server, _) = server(Config::default()).await;
    let url = server.exec_url(script("true")).unwrap();
    let (base, token) = url.rsplit_once('/').unwrap();
    assert_eq!(base, format!("http://{}/exec", server.address()));
    assert_eq!(token.len(), 32);
    let (_stream, head) = http(&url, "GET", UPGRADE).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let (_stream, head) = http(&url, "GET", UPGRADE).await;
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
}

#[tokio::test]
async fn requests_that_cannot_be_served_get_their_code_and_the_door() {
    let (server, _) = server(Config { max_sessions: 1, ..Config::default() }).await;
    let base = format!("http://{}", server.address());
    let huge = format!("X-Filler: {}\r\n", "x".repeat(64 << 10));
    for (url, method, headers, code) in [
        (format!("{base}/exec/none"), "GET", UPGRADE, "404"),
        (format!("{base}/"), "POST", UPGRADE, "404"),
        (format!("{base}/exec/none"), "PUT", UPGRADE, "405"),
        (server.exec_url(script("true")).unwrap(), "POST", "", "400"),
        (format!("{base}/exec/none"), "GET", huge.as_str(), "431"),
    ] {
        let (mut stream, head) = http(&url, method, headers).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {code} ")), "{code}: {head}");
        stream.read_to_end(&mut Vec::new()).await.unwrap();
    }
    let url = server.exec_url(script("cat")).unwrap();
    let _held = Client::connect(&url, "v4.channel.k8s.io").await;
    let url = server.exec_url(script("true")).unwrap();
    let (_stream, head) = http(&url, "GET", UPGRADE).await;
    assert!(head.starts_with("HTTP/1.1 429 ") && head.to_lowercase().contains("retry-after: 60"), "{head}");
}

#[tokio::test]
async fn urls_of_an_open_bind_address_lead_to_loopback_or_where_told() {
    for (bind, advertise, expected) in [
        ("0.0.0.0:0", None, "http://127.0.0.1:"),
        ("[::]:0", None, "http://[::1]:"),
        ("127.0.0.1:0", Some("node.example"), "http://node.example:"),
        ("127.0.0.1:0", Some("fd00::1"), "http://[fd00::1]:"),
    ] {
        let config = Config {
            address: bind.parse().unwrap(),
            advertise: advertise.map(str::to_owned),
            ..Config::default()
        };
        let (server, _) = server(config).await;
        let url = server.exec_url(script("true")).unwrap();
        assert!(url.starts_with(expected), "{url}");
    }
}

#[tokio::test]
async fn a_given_certificate_is_shown_and_clients_are_asked_for_theirs() {
    let dir = std::env::temp_dir().join(format!("streaming-tls-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let pem = |name: &str, kind: &str, der: &[u8]| {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        let path = dir.join(name);
        std::fs::write(&path, format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n")).unwrap();
        path
    };
    let certificate = pem("tls.crt", "CERTIFICATE", cert.der());
    let key = pem("tls.key", "PRIVATE KEY", &signing_key.serialize_der());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    for client_ca in [None, Some(certificate.clone())] {
        let refused = client_ca.is_some();
        let tls = Tls::Files { certificate: certificate.clone(), key: key.clone(), client_ca };
        let (server, _) = server(Config { tls: Some(tls), ..Config::default() }).await;
        let url = server.exec_url(script("cat")).unwrap();
        assert!(url.starts_with("https://127.0.0.1:"));
        let stream = TcpStream::connect(server.address()).await.unwrap();
        let mut stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
        let request =
            format!("GET /{} HTTP/1.1\r\nHost: x\r\n{UPGRADE}\r\n", url.splitn(4, '/').last().unwrap());
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = [0; 12];
        let answered = stream.read_exact(&mut head).await.is_ok() && &head == b"HTTP/1.1 101";
        assert_eq!(answered, !refused);
    }
    std::fs::remove_dir_all(&dir).unwrap();
}

#[tokio::test]
async fn a_certificate_is_made_when_none_is_given_and_missing_files_are_named() {
    let (server, here) = server(Config { tls: Some(Tls::SelfSigned), ..Config::default() }).await;
    assert!(server.exec_url(script("true")).unwrap().starts_with("https://127.0.0.1:"));
    let tls = Tls::Files { certificate: "/no/such.crt".into(), key: "/no/such.key".into(), client_ca: None };
    let error = Server::start(Config { tls: Some(tls), ..Config::default() }, here).await.unwrap_err();
    let chain = format!("{error}: {}", std::error::Error::source(&error).unwrap());
    assert!(chain.contains("/no/such.key"), "{chain}");
}

#[tokio::test(start_paused = true)]
async fn clients_that_dawdle_are_shown_the_door() {
    let (server, _) = server(Config::default()).await;
    for begin in ["", "GET /exec/", "GET /exec/none HTTP/1.1\r\nHost: x\r\n"] {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        stream.write_all(begin.as_bytes()).await.unwrap();
        let begun = tokio::time::Instant::now();
        let _ = stream.read_to_end(&mut Vec::new()).await;
        assert!(begun.elapsed().as_secs() <= 60, "{begin}");
    }
}

/// A small generator, so that a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Few of them; the suite `streams` has ten thousand, of a real daemon with real containers.
#[tokio::test]
async fn sessions_broken_at_random_leave_nothing_behind() {
    broken_at_random(300).await;
}

async fn broken_at_random(sessions: usize) {
    let (server, here) = server(Config::default()).await;
    let echo = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = echo.local_addr().unwrap().port().to_string();
    let mut dice = Dice(7);
    for round in 0..sessions {
        let stop_at = dice.roll(6);
        if dice.roll(2) == 0 {
            let url = server.exec_url(script("yes")).unwrap();
            let mut client = Client::connect(&url, "v4.channel.k8s.io").await;
            let kinds = ["error", "stdin", "stdout", "stderr"];
            for kind in kinds.iter().take(usize::try_from(stop_at).unwrap()) {
                client.open(&[("streamtype", kind)]).await;
            }
            for _ in 0..stop_at {
                client.frame().await;
            }
            if dice.roll(2) == 0 {
                client.io.write_all(&[0x80, 3, 0, 1, 0, 0]).await.unwrap();
            }
        } else {
            let url = server.port_forward_url(ports(&[])).unwrap();
            let mut client = Client::connect(&url, "portforward.k8s.io").await;
            let id = round.to_string();
            for kind in ["error", "data"].iter().take(usize::try_from(stop_at).unwrap()) {
                client.open(&[("streamtype", kind), ("port", &port), ("requestid", &id)]).await;
            }
            if stop_at > 1 {
                echo.accept().await.unwrap();
            }
        }
    }
    until("all sessions end", || here.alive.load(Ordering::SeqCst) == 0).await;
    // Other tests of this process open descriptors too, so the limit is far below one per session, not nothing.
    until("all descriptors are closed", || descriptors() < 150).await;
    server.stop().await;
}
