//! Lets in clients that send the socket's path as `:authority`.
//!
//! gRPC libraries of some age put the (percent-escaped) path of a unix socket there. That is no authority by RFC 3986, and
//! the HTTP/2 library answers PROTOCOL_ERROR before any service sees the call. On a unix socket the value means nothing,
//! so it is replaced in the byte stream, before HTTP/2 is parsed.
//!
//! Only HPACK's outer form is read (RFC 7541, section 6): a literal whose name is entry 1 of the static table gets the
//! value [`REPLACEMENT`]. No table is kept. That is sound because the replacement is never longer than what it
//! replaces: a dynamic-table entry may become smaller, so the decoder evicts later than the encoder believes, and
//! indices, which count from the newest entry, still name the same fields.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What the server sees instead: valid, and no longer than any value it replaces.
const REPLACEMENT: &[u8] = b"l";
/// What an HTTP/2 client says first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length of a frame's header.
const HEAD: usize = 9;
/// Largest frame whose headers are looked at: the default SETTINGS_MAX_FRAME_SIZE, which is what the server allows.
const LARGEST: usize = 16_384;
/// Bytes read from the client at once.
const CHUNK: usize = 16_384;

const HEADERS: u8 = 1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// A connection whose incoming `:authority` values are replaced.
#[derive(Debug)]
pub struct Authority<S> {
    inner: S,
    rewriter: Rewriter,
    /// Rewritten bytes not yet read, from `taken` on.
    ready: Vec<u8>,
    taken: usize,
}

/// The state between two reads.
#[derive(Debug)]
enum Rewriter {
    /// So many bytes of the preface have been seen.
    Preface(usize),
    /// The beginning of a frame that is not yet complete enough to decide.
    Frame(Vec<u8>),
    /// So many bytes of a frame that is passed on as it is.
    Through(usize),
    /// Not HTTP/2: everything is passed on.
    Blind,
}

impl Rewriter {
    /// Takes what has arrived and appends what may be read.
    fn feed(&mut self, mut input: &[u8], out: &mut Vec<u8>) {
        while !input.is_empty() {
            input = match self {
                Self::Blind => {
                    out.extend_from_slice(input);
                    return;
                }
                Self::Preface(seen) => {
                    let expected = &PREFACE[*seen..];
                    let n = expected.len().min(input.len());
                    *self = match (input[..n] == expected[..n], n == expected.len()) {
                        (false, _) => Self::Blind,
                        (true, true) => Self::Frame(Vec::new()),
                        (true, false) => Self::Preface(*seen + n),
                    };
                    let (now, rest) = if matches!(self, Self::Blind) { (0, input) } else { (n, &input[n..]) };
                    out.extend_from_slice(&input[..now]);
                    rest
                }
                Self::Through(left) => {
                    let n = input.len().min(*left);
                    out.extend_from_slice(&input[..n]);
                    *self = if n == *left { Self::Frame(Vec::new()) } else { Self::Through(*left - n) };
                    &input[n..]
                }
                Self::Frame(held) => {
                    let wanted = wanted(held);
                    let n = input.len().min(wanted - held.len());
                    held.extend_from_slice(&input[..n]);
                    if let Some(next) = decide(held, out) {
                        *self = next;
                    }
                    &input[n..]
                }
            };
        }
    }
}

/// Bytes needed before the frame that begins with `held` can be decided.
fn wanted(held: &[u8]) -> usize {
    if held.len() < HEAD { HEAD } else { HEAD + length(held) }
}

fn length(head: &[u8]) -> usize {
    usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])
}

/// Passes on what can be; `None`: more is needed.
fn decide(held: &[u8], out: &mut Vec<u8>) -> Option<Rewriter> {
    if held.len() < HEAD {
        return None;
    }
    let (length, kind, flags) = (length(held), held[3], held[4]);
    // Header blocks in several frames are passed on: clients with short headers, as those concerned, never send them.
    if kind != HEADERS || flags & END_HEADERS == 0 || length > LARGEST {
        out.extend_from_slice(held);
        return Some(if length == 0 { Rewriter::Frame(Vec::new()) } else { Rewriter::Through(length) });
    }
    if held.len() < HEAD + length {
        return None;
    }
    match rewritten(flags, &held[HEAD..]) {
        Some(payload) => {
            let length = u32::try_from(payload.len()).unwrap_or_default().to_be_bytes();
            out.extend_from_slice(&length[1..]);
            out.extend_from_slice(&held[3..HEAD]);
            out.extend_from_slice(&payload);
        }
        // Malformed: the server is to say so.
        None => out.extend_from_slice(held),
    }
    Some(Rewriter::Frame(Vec::new()))
}

/// The payload of a HEADERS frame with its authority replaced.
fn rewritten(flags: u8, payload: &[u8]) -> Option<Vec<u8>> {
    let padding = if flags & PADDED != 0 { usize::from(*payload.first()?) } else { 0 };
    let start = usize::from(flags & PADDED != 0) + if flags & PRIORITY != 0 { 5 } else { 0 };
    let end = payload.len().checked_sub(padding)?;
    let mut block = payload.get(start..end)?;
    let mut out = payload.get(..start)?.to_vec();
    while !block.is_empty() {
        let (field, rest) = field(block)?;
        match field {
            Field::Authority { name } => {
                out.extend_from_slice(name);
                out.push(u8::try_from(REPLACEMENT.len()).ok()?);
                out.extend_from_slice(REPLACEMENT);
            }
            Field::Other => out.extend_from_slice(&block[..block.len() - rest.len()]),
        }
        block = rest;
    }
    out.extend_from_slice(&payload[end..]);
    Some(out)
}

/// One representation of a header block.
enum Field<'a> {
    /// `:authority` as a literal with a value; the bytes that say so, before the value.
    Authority { name: &'a [u8] },
    /// Anything else.
    Other,
}

/// The first representation and what follows it (RFC 7541, section 6).
fn field(block: &[u8]) -> Option<(Field<'_>, &[u8])> {
    let first = *block.first()?;
    let prefix = match first {
        0x80.. => 7,
        0x40.. => 6,
        // A change of the table's size.
        0x20.. => 5,
        _ => 4,
    };
    let (index, after_name) = integer(block, prefix)?;
    if matches!(prefix, 7 | 5) {
        return Some((Field::Other, after_name));
    }
    let after_name = if index == 0 { string(after_name)?.1 } else { after_name };
    let (value, rest) = string(after_name)?;
    if index == 1 && value.len() >= REPLACEMENT.len() {
        return Some((Field::Authority { name: &block[..block.len() - after_name.len()] }, rest));
    }
    Some((Field::Other, rest))
}

/// An integer with an N-bit prefix (RFC 7541, section 5.1), up to 2^28.
fn integer(bytes: &[u8], prefix: u32) -> Option<(usize, &[u8])> {
    let limit = (1usize << prefix) - 1;
    let (first, mut rest) = bytes.split_first()?;
    let mut value = usize::from(*first) & limit;
    if value < limit {
        return Some((value, rest));
    }
    for shift in [0, 7, 14, 21] {
        let (byte, after) = rest.split_first()?;
        rest = after;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, rest));
        }
    }
    None
}

/// A string, Huffman-coded or not (RFC 7541, section 5.2): its bytes as they are, and what follows.
fn string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = integer(bytes, 7)?;
    rest.split_at_checked(length)
}

// === impl Authority ===

impl<S> Authority<S> {
    /// Reads from `inner` with authorities replaced; writing is untouched.
    pub fn new(inner: S) -> Self {
        Self { inner, rewriter: Rewriter::Preface(0), ready: Vec::new(), taken: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Authority<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.taken == this.ready.len() {
            this.ready.clear();
            this.taken = 0;
            let mut chunk = [0; CHUNK];
            let mut read = ReadBuf::new(&mut chunk);
            std::task::ready!(Pin::new(&mut this.inner).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.rewriter.feed(read.filled(), &mut this.ready);
        }
        let n = buf.remaining().min(this.ready.len() - this.taken);
        buf.put_slice(&this.ready[this.taken..this.taken + n]);
        this.taken += n;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Authority<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tonic::service::Routes;
    use tonic::transport::Server;
    use tonic::transport::server::Connected;

    use super::*;

    /// A connection to a server without services, which answers every call of a well-formed client.
    struct Raw<S>(S);
    impl<S> Connected for Raw<S> {
        type ConnectInfo = ();
        fn connect_info(&self) {}
    }
    impl<S: AsyncRead + Unpin> AsyncRead for Raw<S> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }
    impl<S: AsyncWrite + Unpin> AsyncWrite for Raw<S> {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(cx, buf)
        }
        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }
        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    fn literal(head: u8, value: &[u8]) -> Vec<u8> {
        [&[head, u8::try_from(value.len()).unwrap()], value].concat()
    }

    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
    }

    /// A gRPC call as an old client sends it: POST, http, path, the authority in question, and no message.
    fn call(stream: u8, authority: &[u8]) -> Vec<u8> {
        let block = [
            vec![0x83, 0x86],
            literal(0x44, b"/x/y"),
            literal(0x41, authority),
            literal(0x5f, b"application/grpc"),
        ];
        frame(HEADERS, END_HEADERS | 1, stream, &block.concat())
    }

    /// The kinds of the frames that answer on stream 1 and 3, up to the end of both.
    async fn answers<S>(server: S, mut client: DuplexStream, sent: &[u8]) -> Vec<(u8, u8)>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let incoming = tokio_stream::once(Ok::<_, io::Error>(Raw(server)));
        let serving =
            tokio::spawn(Server::builder().add_routes(Routes::default()).serve_with_incoming(incoming));
        client.write_all(sent).await.unwrap();
        let mut answered = Vec::new();
        while answered.len() < 2 {
            let mut head = [0; HEAD];
            client.read_exact(&mut head).await.unwrap();
            let mut payload = vec![0; length(&head)];
            client.read_exact(&mut payload).await.unwrap();
            if head[8] != 0 {
                answered.push((head[8], head[3]));
            }
        }
        serving.abort();
        answered
    }

    fn conversation() -> Vec<u8> {
        let settings = frame(4, 0, 0, &[]);
        let escaped = b"%2Frun%2Fberth%2Fberth.sock";
        [PREFACE.to_vec(), settings, call(1, escaped), call(3, b"/run/berth/berth.sock")].concat()
    }

    #[tokio::test]
    async fn a_client_that_sends_the_sockets_path_is_answered() {
        let (client, server) = tokio::io::duplex(1 << 16);
        let answered = answers(Authority::new(server), client, &conversation()).await;
        assert_eq!(answered, [(1, HEADERS), (3, HEADERS)]);
    }

    #[tokio::test]
    async fn without_the_replacement_it_would_be_reset() {
        const RST_STREAM: u8 = 3;
        let (client, server) = tokio::io::duplex(1 << 16);
        let answered = answers(server, client, &conversation()).await;
        assert_eq!(answered, [(1, RST_STREAM), (3, RST_STREAM)]);
    }

    #[test]
    fn everything_else_passes_unchanged_however_it_is_cut() {
        let data = frame(0, 0, 1, &[7; 300]);
        let indexed = frame(HEADERS, END_HEADERS, 5, &[0x82, 0xbe, 0x3f, 0xe1, 0x1f]);
        let unfinished = frame(HEADERS, 0, 7, &literal(0x41, b"kept"));
        let malformed = frame(HEADERS, END_HEADERS, 9, &[0x41, 0x7f, 0xff, 0xff, 0xff, 0xff]);
        let sent = [PREFACE, &data, &indexed, &unfinished, &malformed, &data].concat();
        for cut in 1..40 {
            let (mut rewriter, mut out) = (Rewriter::Preface(0), Vec::new());
            sent.chunks(cut).for_each(|piece| rewriter.feed(piece, &mut out));
            assert_eq!(out, sent, "in pieces of {cut}");
        }
        let (mut rewriter, mut out) = (Rewriter::Preface(0), Vec::new());
        b"GET / HTTP/1.1\r\n\r\n".chunks(3).for_each(|piece| rewriter.feed(piece, &mut out));
        assert_eq!(out, b"GET / HTTP/1.1\r\n\r\n");
    }

    #[test]
    fn padding_and_priority_are_kept() {
        let block = literal(0x01, b"/run/x");
        let payload = [&[2, 0, 0, 0, 0, 9][..], &block, &[0, 0]].concat();
        let out = rewritten(PADDED | PRIORITY, &payload).unwrap();
        assert_eq!(out, [&[2, 0, 0, 0, 0, 9][..], &literal(0x01, REPLACEMENT), &[0, 0]].concat());
    }
}
