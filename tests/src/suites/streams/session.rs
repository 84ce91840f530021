//! One session: what is asked for, over which carrier, and where it is broken off is left to the dice.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_cri::v1 as api;
use rustix::net::sockopt;

use super::Site;
use crate::client::{self, Client};
use crate::node::Node;
use crate::streams::connect;
use crate::streams::spdy::Spdy;
use crate::streams::websocket::WebSocket;

/// A page, as HTTP/1.0 asks for it: the server closes behind it.
const GET: &[u8] = b"GET /index.html HTTP/1.0\r\n\r\n";
const PAGE: &str = "a page of the test server";
/// The pod's server, and a port where nobody listens.
const PORTS: [u16; 2] = [8080, 9];

/// xorshift64*: small, seeded, the same everywhere.
#[derive(Debug)]
pub(super) struct Dice(u64);

impl Dice {
    /// Loaded with a seed.
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap_or(0) % sides
    }

    fn pick<T: Copy>(&mut self, among: &[T]) -> T {
        among[self.roll(among.len())]
    }
}

/// Whoever asks the daemon for URLs.
#[derive(Debug)]
pub(super) struct Caller {
    runtime: tokio::runtime::Runtime,
    client: Client,
    site: Site,
}

/// What a session does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// `cat`.
    Echo,
    /// `yes`.
    Talker,
    /// The container that repeats what it hears.
    AttachEcho,
    /// The container that never stops.
    AttachTalker,
    /// A port of [`PORTS`].
    Forward(u16),
}

/// Where it is broken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// The URL is never opened.
    Unused,
    /// Half of the request's head.
    Asked,
    /// Right behind the upgrade.
    Upgraded,
    /// Half of what the carrier needs to begin.
    Begun,
    /// In the middle of the bytes.
    Talking,
    /// Not at all, for those that end by themselves.
    Ended,
}

/// Opens a session and breaks it off somewhere; false when it ended in order.
///
/// # Errors
/// Up to that point, something was not as it must be.
pub(super) fn one(caller: &mut Caller, dice: &mut Dice) -> Result<bool> {
    let kind = match dice.roll(5) {
        0 => Kind::Echo,
        1 => Kind::Talker,
        2 => Kind::AttachEcho,
        3 => Kind::AttachTalker,
        _ => Kind::Forward(dice.pick(&PORTS)),
    };
    // The first two leave the URL unused and are rare: the daemon holds a thousand of those and refuses the next.
    let stop = match dice.roll(40) {
        0 => Stop::Unused,
        1 => Stop::Asked,
        _ => dice.pick(&[Stop::Upgraded, Stop::Begun, Stop::Talking, Stop::Ended]),
    };
    let url = caller.url(kind)?;
    let stream = match stop {
        Stop::Unused => return Ok(true),
        Stop::Asked => {
            let (mut stream, host, path) = connect(&url)?;
            let text = format!("POST /{path} HTTP/1.1\r\nHost: {host}\r\nConnec");
            stream.write_all(&text.as_bytes()[..dice.roll(text.len())])?;
            stream
        }
        _ if dice.roll(2) == 0 => over_spdy(&url, kind, stop, dice)?,
        _ => over_websocket(&url, kind, stop, dice)?,
    };
    // Either an orderly end of the connection, or a reset.
    if dice.roll(2) == 0 {
        sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
    }
    Ok(stop != Stop::Ended)
}

fn over_spdy(url: &str, kind: Kind, stop: Stop, dice: &mut Dice) -> Result<TcpStream> {
    let port = if let Kind::Forward(port) = kind { Some(port.to_string()) } else { None };
    let protocol = if port.is_some() { "portforward.k8s.io" } else { "v4.channel.k8s.io" };
    let mut spdy = Spdy::connect(url, protocol)?;
    let pair = |kind: &'static str| {
        [("streamtype", kind), ("port", port.as_deref().unwrap_or_default()), ("requestid", "0")]
    };
    let first = if port.is_some() { &pair("error")[..] } else { &[("streamtype", "error")] };
    match (stop, kind) {
        (Stop::Begun, _) => {
            spdy.open(first)?;
            // And half of the next one.
            spdy.stream.write_all(&[0x80, 3, 0, 1, 0, 0][..dice.roll(7)])?;
        }
        (Stop::Talking | Stop::Ended, Kind::Forward(port)) => {
            let error = spdy.open(first)?;
            spdy.send(error, &[], true)?;
            let data = spdy.open(&pair("data"))?;
            let whole = stop == Stop::Ended;
            spdy.send(data, if whole { GET } else { &GET[..10] }, false)?;
            match (whole, port == PORTS[0]) {
                (true, true) => drop(spdy.hear(data, PAGE)?),
                (_, false) => drop(spdy.hear(error, "error forwarding port 9")?),
                (false, true) => {}
            }
        }
        (Stop::Talking | Stop::Ended, _) => {
            let [error, stdin, stdout] = spdy.open_command()?;
            let (say, wanted) = words(kind, dice);
            if !say.is_empty() {
                spdy.send(stdin, say.as_bytes(), false)?;
            }
            spdy.hear(stdout, wanted)?;
            if stop == Stop::Ended && kind == Kind::Echo {
                spdy.send(stdin, &[], true)?;
                spdy.hear(error, "Success")?;
            }
        }
        _ => {}
    }
    Ok(spdy.stream)
}

fn over_websocket(url: &str, kind: Kind, stop: Stop, dice: &mut Dice) -> Result<TcpStream> {
    let forward = matches!(kind, Kind::Forward(_));
    let protocol = if forward { "v4.channel.k8s.io" } else { "v5.channel.k8s.io" };
    let mut socket = WebSocket::connect(url, protocol)?;
    match (stop, kind) {
        // Half of a message's head.
        (Stop::Begun, _) => socket.stream.write_all(&[0x82, 0xfe, 1, 0, 0][..dice.roll(6)])?,
        (Stop::Talking | Stop::Ended, Kind::Forward(port)) => {
            let whole = stop == Stop::Ended;
            socket.send(0, if whole { GET } else { &GET[..10] })?;
            match (whole, port == PORTS[0]) {
                (true, true) => drop(socket.hear(0, PAGE)?),
                (_, false) => drop(socket.hear(1, "error forwarding port 9")?),
                (false, true) => {}
            }
        }
        (Stop::Talking | Stop::Ended, _) => {
            let (say, wanted) = words(kind, dice);
            if !say.is_empty() {
                socket.send(0, say.as_bytes())?;
            }
            socket.hear(1, wanted)?;
            if stop == Stop::Ended && kind == Kind::Echo {
                socket.send(255, &[0])?;
                socket.hear(3, "Success")?;
            }
        }
        _ => {}
    }
    Ok(socket.stream)
}

/// What is said to a command, and what it answers.
fn words(kind: Kind, dice: &mut Dice) -> (String, &'static str) {
    match kind {
        Kind::Echo => ("x".repeat(1 + dice.roll(60_000)) + "end", "xend"),
        Kind::AttachEcho => ("a word\n".to_owned(), "heard a word"),
        Kind::Talker | Kind::AttachTalker | Kind::Forward(_) => (String::new(), "never stops"),
    }
}

// === impl Caller ===

impl Caller {
    /// A connection of its own to the daemon.
    ///
    /// # Errors
    /// Nobody listens.
    pub(super) fn new(node: &Node, site: Site) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = runtime.block_on(client::connect(&node.socket))?;
        Ok(Self { runtime, client, site })
    }

    /// The URL of a command with input and output.
    ///
    /// # Errors
    /// The daemon's.
    pub(super) fn exec(&mut self, words: &[&str]) -> Result<String> {
        let request = api::ExecRequest {
            container_id: self.site.echo.clone(),
            cmd: words.iter().map(|&word| word.to_owned()).collect(),
            stdin: true,
            stdout: true,
            ..Default::default()
        };
        Ok(self.runtime.block_on(self.client.runtime.exec(request))?.into_inner().url)
    }

    fn url(&mut self, kind: Kind) -> Result<String> {
        let attach = |id: &str| api::AttachRequest {
            container_id: id.to_owned(),
            stdin: true,
            stdout: true,
            ..Default::default()
        };
        let runtime = &mut self.client.runtime;
        let url = match kind {
            Kind::Echo => return self.exec(&["cat"]),
            Kind::Talker => return self.exec(&["yes", "one who never stops"]),
            Kind::AttachEcho => {
                self.runtime.block_on(runtime.attach(attach(&self.site.echo)))?.into_inner().url
            }
            Kind::AttachTalker => {
                self.runtime.block_on(runtime.attach(attach(&self.site.loud)))?.into_inner().url
            }
            Kind::Forward(port) => {
                let request = api::PortForwardRequest {
                    pod_sandbox_id: self.site.pod.clone(),
                    port: vec![port.into()],
                };
                self.runtime.block_on(runtime.port_forward(request))?.into_inner().url
            }
        };
        ensure!(!url.is_empty(), "no URL");
        Ok(url)
    }
}
