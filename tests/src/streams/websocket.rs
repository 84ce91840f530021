//! WebSocket (RFC 6455) with the channel protocols of Kubernetes: the first byte of a message tells its channel.

use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, bail, ensure};

use super::upgrade;

/// One connection.
#[derive(Debug)]
pub struct WebSocket {
    /// The connection, for whoever wants to break it.
    pub stream: TcpStream,
}

// === impl WebSocket ===

impl WebSocket {
    /// Upgrades a URL.
    ///
    /// # Errors
    /// The server does not answer with 101 and the protocol asked for.
    pub fn connect(url: &str, protocol: &str) -> Result<Self> {
        let headers = format!(
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Protocol: {protocol}\r\n\
             Origin: http://localhost\r\n"
        );
        let (stream, head) = upgrade(url, "GET", &headers)?;
        ensure!(head.starts_with("HTTP/1.1 101 ") && head.contains(protocol), "{head}");
        Ok(Self { stream })
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn send(&mut self, channel: u8, bytes: &[u8]) -> Result<()> {
        let frame = [&head(channel, bytes.len()), bytes].concat();
        Ok(self.stream.write_all(&frame)?)
    }

    /// Reads until `wanted` stands in what came over a channel.
    ///
    /// # Errors
    /// The connection ends first.
    pub fn hear(&mut self, channel: u8, wanted: &str) -> Result<String> {
        let (mut all, mut buffer) = (Vec::new(), Vec::new());
        loop {
            if read(&mut self.stream, &mut buffer)? == Some(channel) {
                all.extend_from_slice(&buffer);
            }
            let text = String::from_utf8_lossy(&all);
            if text.contains(wanted) {
                return Ok(text.into_owned());
            }
        }
    }
}

/// The head of a message with so many bytes on a channel. Its mask is zero: every client has to send one, none has to be secret here.
#[must_use]
pub fn head(channel: u8, length: usize) -> Vec<u8> {
    let length = length + 1;
    let mut head = vec![0x82];
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ 0..126), _) => head.push(0x80 | short),
        (_, Ok(middle)) => {
            head.push(0x80 | 126);
            head.extend_from_slice(&middle.to_be_bytes());
        }
        _ => {
            head.push(0x80 | 127);
            head.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    head.extend_from_slice(&[0, 0, 0, 0, channel]);
    head
}

/// Reads a message; its bytes behind the channel are then in `buffer`. No channel: a ping or an empty message.
///
/// # Errors
/// The connection ends or is closed; a message in parts, which no server of Kubernetes sends.
pub fn read(from: &mut impl Read, buffer: &mut Vec<u8>) -> Result<Option<u8>> {
    let mut head = [0; 2];
    from.read_exact(&mut head).context("the connection ends")?;
    let length = match head[1] {
        126 => {
            let mut more = [0; 2];
            from.read_exact(&mut more)?;
            u64::from(u16::from_be_bytes(more))
        }
        127 => {
            let mut more = [0; 8];
            from.read_exact(&mut more)?;
            u64::from_be_bytes(more)
        }
        short => u64::from(short),
    };
    let data = matches!(head[0], 0x81 | 0x82) && length > 0;
    let mut channel = [0];
    if data {
        from.read_exact(&mut channel)?;
    }
    buffer.resize(usize::try_from(length)? - usize::from(data), 0);
    from.read_exact(buffer)?;
    match head[0] {
        0x81 | 0x82 => Ok(data.then_some(channel[0])),
        0x89 | 0x8a => Ok(None),
        0x88 => bail!("the server closes: {:?}", String::from_utf8_lossy(buffer)),
        other => bail!("a frame of kind {other:#x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_have_the_length_of_all_three_forms() {
        assert_eq!(head(0, 3)[..2], [0x82, 0x84]);
        assert_eq!(head(0, 125)[..4], [0x82, 0xfe, 0, 126]);
        assert_eq!(head(0, 65_535)[..10], [0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(head(4, 0)[2..], [0, 0, 0, 0, 4]);
    }

    #[test]
    fn messages_tell_their_channel_and_a_close_is_an_error() {
        let bytes = [&[0x82, 0][..], &[0x82, 3, 1, b'h', b'i'], &[0x89, 1, 9], &[0x88, 2, 3, 0xe8]].concat();
        let (mut rest, mut buffer) = (bytes.as_slice(), Vec::new());
        assert_eq!(read(&mut rest, &mut buffer).unwrap(), None);
        assert_eq!(read(&mut rest, &mut buffer).unwrap(), Some(1));
        assert_eq!(buffer, b"hi");
        assert_eq!(read(&mut rest, &mut buffer).unwrap(), None);
        assert!(read(&mut rest, &mut buffer).is_err());
    }
}
