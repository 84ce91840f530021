//! Every head a client may send, and what it gets.

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};

use super::*;
use crate::streaming::ExecRequest;

fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    let pair = |&(name, value): &(&str, &str)| {
        (HeaderName::try_from(name).unwrap(), HeaderValue::try_from(value).unwrap())
    };
    lines.iter().map(pair).collect()
}

fn exec() -> Request {
    Request::Exec(ExecRequest::default())
}

fn forward() -> Request {
    Request::PortForward { pod: String::new(), ports: Vec::new() }
}

fn spdy(protocols: &[&str]) -> HeaderMap {
    let mut headers = headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "spdy/3.1")]);
    for protocol in protocols {
        headers.append("x-stream-protocol-version", HeaderValue::try_from(*protocol).unwrap());
    }
    headers
}

fn websocket(protocol: Option<&str>) -> HeaderMap {
    let mut headers = headers(&[
        ("connection", "upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        // The example of RFC 6455 section 1.3.
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ]);
    if let Some(protocol) = protocol {
        headers.insert("sec-websocket-protocol", HeaderValue::try_from(protocol).unwrap());
    }
    headers
}

fn value(answer: &HeaderMap, name: &str) -> String {
    answer.get(name).map_or(String::new(), |value| value.to_str().unwrap().to_owned())
}

#[test]
fn the_first_known_protocol_of_the_client_wins() {
    use Carrier::{Channels, ForwardChannels, ForwardSpdy, ForwardTunnel, Spdy};
    use Codec::{Base64, Binary};
    let cases = [
        (exec(), spdy(&["v9.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io"]), Spdy(Version::V4)),
        (exec(), spdy(&["v2.channel.k8s.io,v4.channel.k8s.io"]), Spdy(Version::V2)),
        (exec(), spdy(&["v5.channel.k8s.io"]), Spdy(Version::V5)),
        (exec(), spdy(&["channel.k8s.io"]), Spdy(Version::V1)),
        (forward(), spdy(&["portforward.k8s.io"]), ForwardSpdy),
        (exec(), websocket(Some("x, v5.channel.k8s.io, v4.channel.k8s.io")), Channels(Binary, Version::V5)),
        (exec(), websocket(Some("v4.base64.channel.k8s.io")), Channels(Base64, Version::V4)),
        (exec(), websocket(Some("base64.channel.k8s.io")), Channels(Base64, Version::V1)),
        (exec(), websocket(None), Channels(Binary, Version::V1)),
        (forward(), websocket(Some("SPDY/3.1+portforward.k8s.io")), ForwardTunnel),
        (forward(), websocket(Some("v4.channel.k8s.io")), ForwardChannels(Binary)),
        (forward(), websocket(None), ForwardChannels(Binary)),
    ];
    for (request, headers, expected) in cases {
        let plan = choose(&Method::GET, &headers, &request).unwrap();
        assert_eq!(plan.carrier, expected, "{headers:?}");
        assert_eq!(plan.answer.status(), StatusCode::SWITCHING_PROTOCOLS);
    }
}

#[test]
fn what_cannot_be_served_is_refused_with_the_right_code() {
    let cases = [
        (HeaderMap::new(), 400),
        (headers(&[("connection", "upgrade"), ("upgrade", "h2c")]), 400),
        (headers(&[("upgrade", "spdy/3.1"), ("x-stream-protocol-version", "v4.channel.k8s.io")]), 400),
        (spdy(&[]), 400),
        (spdy(&[""]), 400),
        (spdy(&["v9.channel.k8s.io", "portforward.k8s.io"]), 403),
        (websocket(Some("v9.channel.k8s.io")), 403),
        (websocket(Some("SPDY/3.1+portforward.k8s.io")), 403),
    ];
    for (headers, code) in cases {
        let refusal = choose(&Method::GET, &headers, &exec()).unwrap_err();
        assert_eq!(refusal.status(), code, "{headers:?}");
    }
    let mut old = websocket(None);
    old.insert("sec-websocket-version", HeaderValue::from_static("8"));
    let refusal = choose(&Method::GET, &old, &exec()).unwrap_err();
    assert_eq!(
        (refusal.status(), value(refusal.headers(), "sec-websocket-version")),
        (StatusCode::UPGRADE_REQUIRED, "13".into())
    );
    let refusal = choose(&Method::POST, &websocket(None), &exec()).unwrap_err();
    assert_eq!(refusal.status(), StatusCode::METHOD_NOT_ALLOWED);
}

#[test]
fn a_refused_spdy_client_learns_what_is_spoken() {
    let refusal = choose(&Method::POST, &spdy(&["x"]), &exec()).unwrap_err();
    let named: Vec<_> =
        refusal.headers().get_all("x-accepted-stream-protocol-versions").into_iter().collect();
    assert_eq!(named.len(), 5);
    assert!(named.contains(&&HeaderValue::from_static("v4.channel.k8s.io")));
}

#[test]
fn the_answer_names_the_choice() {
    let plan = choose(&Method::GET, &websocket(Some("v5.channel.k8s.io")), &exec()).unwrap();
    let answer = plan.answer.headers();
    assert_eq!(value(answer, "sec-websocket-accept"), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert_eq!(value(answer, "sec-websocket-protocol"), "v5.channel.k8s.io");
    let plan = choose(&Method::POST, &spdy(&["v3.channel.k8s.io"]), &exec()).unwrap();
    let answer = plan.answer.headers();
    assert_eq!(value(answer, "upgrade"), "SPDY/3.1");
    assert_eq!(value(answer, "x-stream-protocol-version"), "v3.channel.k8s.io");
}
