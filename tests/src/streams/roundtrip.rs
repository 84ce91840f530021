//! A pattern through standard input and back through standard output, every byte compared.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::spdy::{self, Frame, Spdy};
use super::websocket::{self, WebSocket};

/// Bytes of one frame or message, as client-go cuts them.
const PIECE: usize = 32 << 10;
/// The pattern repeats after so many bytes: a prime, so that no buffer of anybody falls in step with it.
const PERIOD: usize = 1_048_573;

/// How the bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// SPDY/3.1, `v4.channel.k8s.io`.
    Spdy,
    /// WebSocket, `v4.channel.k8s.io`: the newest one that all runtimes speak. It cannot end standard input.
    WebSocket,
}

/// What to run in the container: it reads so many bytes, writes them back, and ends.
///
/// Its standard error stays open although nobody reads it: containerd takes the end of either output for the end of the session and closes
/// the client's standard input (`attachOutput` in its `internal/cri/io/exec_io.go`; its issue 13934).
#[must_use]
pub fn command(bytes: u64) -> [String; 4] {
    let blocks = bytes.div_ceil(65_536);
    ["dd", "bs=65536", &format!("count={blocks}"), "iflag=fullblock"].map(str::to_owned)
}

/// Sends `bytes` (a multiple of 64 KiB) to the command behind a URL of Exec with stdin and stdout, compares what comes
/// back, and returns the seconds until the server has said that the command has succeeded.
///
/// # Errors
/// A byte is missing, wrong or too much; the command fails; the connection ends.
pub fn run(url: &str, carrier: Carrier, bytes: u64) -> Result<f64> {
    let begun = Instant::now();
    let (stream, heads, received) = match carrier {
        Carrier::Spdy => {
            let mut spdy = Spdy::connect(url, "v4.channel.k8s.io")?;
            let [error, stdin, stdout] = spdy.open_command()?;
            let received: Receiver = Box::new(move |from, check| over_spdy(from, check, stdout, error));
            (spdy.stream, spdy::head(stdin, false, PIECE)?.to_vec(), received)
        }
        Carrier::WebSocket => {
            let socket = WebSocket::connect(url, "v4.channel.k8s.io")?;
            (socket.stream, websocket::head(0, PIECE), Box::new(over_websocket) as Receiver)
        }
    };
    let pattern = pattern();
    let sink = stream.try_clone()?;
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| send(sink, &heads, &pattern, bytes));
        let mut check = Check { pattern: &pattern, bytes, seen: 0 };
        let outcome = received(&mut BufReader::with_capacity(256 << 10, stream), &mut check);
        let sent = writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))?;
        outcome.with_context(|| format!("{} of {bytes} bytes came back", check.seen))?;
        sent.with_context(|| {
            format!("{} of {bytes} bytes came back, and the rest was not taken", check.seen)
        })?;
        ensure!(check.seen == bytes, "{} of {bytes} bytes came back", check.seen);
        Ok(begun.elapsed().as_secs_f64())
    })
}

type Receiver = Box<dyn Fn(&mut BufReader<TcpStream>, &mut Check<'_>) -> Result<()>>;

/// Compares what comes with what was sent.
struct Check<'a> {
    pattern: &'a [u8],
    bytes: u64,
    seen: u64,
}

impl Check<'_> {
    fn take(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let at = usize::try_from(self.seen)? % PERIOD;
            let length = bytes.len().min(PERIOD - at);
            let (now, rest) = bytes.split_at(length);
            ensure!(
                now == &self.pattern[at..at + length],
                "bytes differ within {length} bytes of {}",
                self.seen
            );
            self.seen += length as u64;
            bytes = rest;
        }
        ensure!(self.seen <= self.bytes, "more bytes than were sent");
        Ok(())
    }
}

/// Noise (xorshift64), one period and a piece long, so that every piece is in one place.
fn pattern() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut pattern: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(PERIOD)
    .collect();
    pattern.extend_from_within(..PIECE);
    pattern
}

fn send(mut to: TcpStream, head: &[u8], pattern: &[u8], bytes: u64) -> Result<()> {
    let mut frame = head.to_vec();
    let mut at = 0;
    for _ in 0..bytes.div_ceil(PIECE as u64) {
        frame.truncate(head.len());
        frame.extend_from_slice(&pattern[at..at + PIECE]);
        to.write_all(&frame)?;
        at = (at + PIECE) % PERIOD;
    }
    Ok(())
}

fn over_spdy(from: &mut impl Read, check: &mut Check<'_>, stdout: u32, error: u32) -> Result<()> {
    let (mut buffer, mut document) = (Vec::new(), Vec::new());
    loop {
        match spdy::read(from, &mut buffer)? {
            Frame::Data(id, _) if id == stdout => check.take(&buffer)?,
            Frame::Data(id, last) if id == error => {
                document.extend_from_slice(&buffer);
                if last || document.ends_with(b"}") {
                    return success(&document);
                }
            }
            Frame::Reset(id) => anyhow::bail!("stream {id} was reset"),
            _ => {}
        }
    }
}

fn over_websocket(from: &mut BufReader<TcpStream>, check: &mut Check<'_>) -> Result<()> {
    let mut buffer = Vec::new();
    loop {
        match websocket::read(from, &mut buffer)? {
            Some(1) => check.take(&buffer)?,
            Some(3) => return success(&buffer),
            _ => {}
        }
    }
}

/// The closing document of the v4 protocols.
fn success(document: &[u8]) -> Result<()> {
    let text = String::from_utf8_lossy(document);
    ensure!(text.contains(r#""status":"Success""#), "{text}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_that_is_missing_or_wrong_is_noticed() {
        let pattern = pattern();
        let check = || Check { pattern: &pattern, bytes: 3 << 20, seen: 0 };
        let mut whole = check();
        for piece in pattern[..PERIOD].repeat(2).chunks(10_007) {
            whole.take(piece).unwrap();
        }
        assert_eq!(whole.seen, 2 * PERIOD as u64);
        assert!(check().take(&pattern[1..100]).is_err());
        let mut wrong = pattern[..100].to_vec();
        wrong[99] ^= 1;
        assert!(check().take(&wrong).is_err());
    }
}
