//! A client of the streaming URLs that Exec, Attach and PortForward answer with, written from the protocols' descriptions
//! apart from the server's code: SPDY/3.1 without flow control, and the WebSocket channel protocols.
//!
//! It does no more than the suites and the benchmark ask of it, and so little per byte that what is measured is the server.
//! [`spdy`] and [`websocket`] are the two carriers; [`roundtrip`] sends a pattern through a command and back.
//! Threads: one that writes while [`roundtrip`] reads.

pub mod roundtrip;
pub mod spdy;
pub mod websocket;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// How long any single read or write may take before a test fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest head of an answer.
const LONGEST_HEAD: usize = 4096;

/// Opens a URL's connection and sends a request with `headers` (each ends in CRLF); the head of the answer comes too.
///
/// # Errors
/// The URL is not one of plain HTTP, nobody listens, or no complete head comes.
pub fn upgrade(url: &str, method: &str, headers: &str) -> Result<(TcpStream, String)> {
    let (mut stream, host, path) = connect(url)?;
    write!(stream, "{method} /{path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n")?;
    let mut head = Vec::new();
    // One byte at a time: what follows the head is the carrier's.
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).context("the answer breaks off in its head")?;
        head.extend_from_slice(&byte);
        ensure!(head.len() < LONGEST_HEAD, "the head of the answer has no end");
    }
    Ok((stream, String::from_utf8_lossy(&head).into_owned()))
}

/// A connection to the server of a URL, its host and port, and the path.
///
/// # Errors
/// As [`upgrade`].
pub fn connect(url: &str) -> Result<(TcpStream, String, String)> {
    let (host, path) = url
        .strip_prefix("http://")
        .and_then(|rest| rest.split_once('/'))
        .with_context(|| format!("no URL of plain HTTP: {url}"))?;
    let stream = TcpStream::connect(host).with_context(|| format!("connect to {host}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok((stream, host.to_owned(), path.to_owned()))
}
