//! Which carrier and protocol a request gets: pure, from its head alone.
//!
//! SPDY clients name protocols in `X-Stream-Protocol-Version` headers, WebSocket clients in `Sec-WebSocket-Protocol`,
//! each in their order of liking; the first one known here wins.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{
    ALLOW, CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{Method, Response, StatusCode};
use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};

use super::request::Request;

const SPDY: &str = "SPDY/3.1";
const PORT_FORWARD: &str = "portforward.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_PROTOCOLS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// Version of the remote command protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    /// `channel.k8s.io`: the first.
    V1,
    /// Mends stdin's end.
    V2,
    /// Adds terminal sizes.
    V3,
    /// The error stream carries a Status document.
    V4,
    /// WebSocket channels can be closed one by one.
    V5,
}

/// How WebSocket messages carry a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codec {
    /// Channel as a byte, then data.
    Binary,
    /// Channel as an ASCII digit, then the data in base64.
    Base64,
}

/// What goes over the upgraded connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carrier {
    /// A command's streams over SPDY.
    Spdy(Version),
    /// A command's streams as WebSocket channels.
    Channels(Codec, Version),
    /// Port connections over SPDY.
    ForwardSpdy,
    /// The same SPDY inside WebSocket messages.
    ForwardTunnel,
    /// Port connections as WebSocket channels, the ports fixed by the request.
    ForwardChannels(Codec),
}

/// A request that is granted.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) carrier: Carrier,
    /// 101, complete.
    pub(super) answer: Response<()>,
}

/// A request that is not, with the text for a person.
pub(super) type Refusal = Box<Response<&'static str>>;

const SPDY_COMMAND: &[(&str, Carrier)] = &[
    ("v5.channel.k8s.io", Carrier::Spdy(Version::V5)),
    ("v4.channel.k8s.io", Carrier::Spdy(Version::V4)),
    ("v3.channel.k8s.io", Carrier::Spdy(Version::V3)),
    ("v2.channel.k8s.io", Carrier::Spdy(Version::V2)),
    ("channel.k8s.io", Carrier::Spdy(Version::V1)),
];
const SPDY_FORWARD: &[(&str, Carrier)] = &[(PORT_FORWARD, Carrier::ForwardSpdy)];
const WEBSOCKET_COMMAND: &[(&str, Carrier)] = &[
    ("v5.channel.k8s.io", Carrier::Channels(Codec::Binary, Version::V5)),
    ("v4.channel.k8s.io", Carrier::Channels(Codec::Binary, Version::V4)),
    ("v4.base64.channel.k8s.io", Carrier::Channels(Codec::Base64, Version::V4)),
    ("channel.k8s.io", Carrier::Channels(Codec::Binary, Version::V1)),
    ("base64.channel.k8s.io", Carrier::Channels(Codec::Base64, Version::V1)),
    ("", Carrier::Channels(Codec::Binary, Version::V1)),
];
const WEBSOCKET_FORWARD: &[(&str, Carrier)] = &[
    (TUNNEL, Carrier::ForwardTunnel),
    ("v4.channel.k8s.io", Carrier::ForwardChannels(Codec::Binary)),
    ("v4.base64.channel.k8s.io", Carrier::ForwardChannels(Codec::Base64)),
    ("", Carrier::ForwardChannels(Codec::Binary)),
];

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spdy(version) => write!(f, "SPDY {version:?}"),
            Self::Channels(codec, version) => write!(f, "WebSocket {version:?} {codec:?}"),
            Self::ForwardSpdy => f.write_str("SPDY"),
            Self::ForwardTunnel => f.write_str("SPDY in WebSocket"),
            Self::ForwardChannels(codec) => write!(f, "WebSocket {codec:?}"),
        }
    }
}

/// Decides what `request`'s client gets.
pub(super) fn choose(method: &Method, headers: &HeaderMap, request: &Request) -> Result<Plan, Refusal> {
    let forward = matches!(request, Request::PortForward { .. });
    if has_token(headers, &CONNECTION, "upgrade") && has_token(headers, &UPGRADE, "websocket") {
        websocket(method, headers, if forward { WEBSOCKET_FORWARD } else { WEBSOCKET_COMMAND })
    } else if has_token(headers, &CONNECTION, "upgrade") && has_token(headers, &UPGRADE, SPDY) {
        spdy(headers, if forward { SPDY_FORWARD } else { SPDY_COMMAND })
    } else {
        Err(refusal(StatusCode::BAD_REQUEST, "an upgrade to SPDY/3.1 or websocket is needed"))
    }
}

fn spdy(headers: &HeaderMap, known: &[(&'static str, Carrier)]) -> Result<Plan, Refusal> {
    let mut offered = tokens(headers, &STREAM_PROTOCOL).filter(|name| !name.is_empty()).peekable();
    if offered.peek().is_none() {
        return Err(refusal(StatusCode::BAD_REQUEST, "X-Stream-Protocol-Version is missing"));
    }
    let Some(&(name, carrier)) = offered.find_map(|name| known.iter().find(|(this, _)| *this == name)) else {
        let mut refusal = refusal(StatusCode::FORBIDDEN, "none of the offered protocols is known");
        for (name, _) in known {
            refusal.headers_mut().append(ACCEPTED_PROTOCOLS, HeaderValue::from_static(name));
        }
        return Err(refusal);
    };
    let mut answer = switching(SPDY);
    answer.headers_mut().insert(STREAM_PROTOCOL, HeaderValue::from_static(name));
    Ok(Plan { carrier, answer })
}

fn websocket(
    method: &Method,
    headers: &HeaderMap,
    known: &[(&'static str, Carrier)],
) -> Result<Plan, Refusal> {
    if method != Method::GET {
        let mut refusal = refusal(StatusCode::METHOD_NOT_ALLOWED, "a WebSocket begins with GET");
        refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        return Err(refusal);
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        let mut refusal = refusal(StatusCode::UPGRADE_REQUIRED, "WebSocket version 13 is needed");
        refusal.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return Err(refusal);
    }
    let Some(key) = headers.get(SEC_WEBSOCKET_KEY) else {
        return Err(refusal(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is missing"));
    };
    let named = headers.contains_key(SEC_WEBSOCKET_PROTOCOL);
    let mut offered = tokens(headers, &SEC_WEBSOCKET_PROTOCOL).chain((!named).then_some(""));
    let Some(&(name, carrier)) = offered.find_map(|name| known.iter().find(|(this, _)| *this == name)) else {
        return Err(refusal(StatusCode::FORBIDDEN, "none of the offered protocols is known"));
    };
    let accept = HeaderValue::try_from(accept_key(key.as_bytes()))
        .map_err(|_| refusal(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is malformed"))?;
    let mut answer = switching("websocket");
    answer.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    if !name.is_empty() {
        answer.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    }
    Ok(Plan { carrier, answer })
}

/// The proof that the server speaks WebSocket (RFC 6455 section 4.2.2); SHA-1 guards nothing here.
fn accept_key(key: &[u8]) -> String {
    let mut digest = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    digest.update(key);
    digest.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(digest.finish())
}

/// Values of a list header, over all its lines; those that are not text are left out.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> + use<'a> {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',').map(str::trim))
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|this| this.eq_ignore_ascii_case(token))
}

fn switching(protocol: &'static str) -> Response<()> {
    let mut answer = Response::new(());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.headers_mut().insert(UPGRADE, HeaderValue::from_static(protocol));
    answer
}

fn refusal(status: StatusCode, why: &'static str) -> Refusal {
    let mut refusal = Box::new(Response::new(why));
    *refusal.status_mut() = status;
    refusal.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    refusal
}

#[cfg(test)]
#[path = "handshake/tests.rs"]
mod tests;
