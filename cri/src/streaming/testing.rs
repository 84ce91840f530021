//! What the tests of this module share: sessions that are processes of this machine, and a SPDY client of its own making.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use engine::api::{Session, Stream};
use engine::exec::Exit;
use engine::{Error, Kind};
use flate2::{Compress, Compression, FlushCompress};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

use super::spdy::dictionary;
use super::{AttachRequest, Config, ExecRequest, PortForwardRequest, Server, Sessions};

/// Containers that are this machine: exec runs the command here, attach runs `cat` (or what [`joined`] says), ports are
/// loopback ports.
///
/// With a terminal, nothing runs; every terminal size is printed as `COLUMNSxROWS;` until stdin ends.
#[derive(Debug, Default)]
pub(super) struct Here {
    /// Sessions and forwarded connections that have not been dropped.
    pub(super) alive: Arc<AtomicUsize>,
}

/// Counts one session until it is dropped.
struct Alive(Arc<AtomicUsize>);

impl Here {
    fn count(&self) -> Alive {
        self.alive.fetch_add(1, Ordering::SeqCst);
        Alive(self.alive.clone())
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Sessions for Here {
    fn exec(&self, request: ExecRequest) -> BoxFuture<'_, Result<Session, Error>> {
        let alive = self.count();
        std::future::ready(if request.tty { Ok(terminal(alive)) } else { process(&request.command, alive) })
            .boxed()
    }

    fn attach(&self, request: AttachRequest) -> BoxFuture<'_, Result<Session, Error>> {
        let command = ["sh".into(), "-c".into(), joined(&request.container).into()];
        std::future::ready(process(&command, self.count())).boxed()
    }

    fn port_forward(&self, _: String, port: u16) -> BoxFuture<'_, Result<Box<dyn Stream>, Error>> {
        let alive = self.count();
        async move {
            let stream = TcpStream::connect(("127.0.0.1", port)).await;
            let stream =
                stream.map_err(|e| Error::with(Kind::Unavailable, format!("connect to port {port}"), e))?;
            let (near, mut far) = tokio::io::duplex(4096);
            tokio::spawn(async move {
                let (_alive, mut stream) = (alive, stream);
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut far).await;
            });
            Ok(Box::new(near) as Box<dyn Stream>)
        }
        .boxed()
    }
}

/// What a container does.
fn joined(container: &str) -> &'static str {
    match container {
        "loud" => "exec yes",
        "closed" => "echo bye; exec >&- 2>&-; sleep 1000",
        _ => "cat; exit 3",
    }
}

fn process(command: &[String], alive: Alive) -> Result<Session, Error> {
    let mut child = Command::new(&command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| Error::with(Kind::NotFound, format!("cannot start \"{}\"", command[0]), e))?;
    Ok(Session {
        stdin: Some(Box::new(child.stdin.take().unwrap())),
        stdout: Some(Box::new(child.stdout.take().unwrap())),
        stderr: Some(Box::new(child.stderr.take().unwrap())),
        resize: tokio::sync::mpsc::unbounded_channel().0,
        exit: async move {
            let _alive = alive;
            let status = child.wait().await.map_err(|e| Error::with(Kind::Internal, "wait", e))?;
            Ok(Exit { code: status.code().unwrap_or(255), ..Exit::default() })
        }
        .boxed(),
    })
}

fn terminal(alive: Alive) -> Session {
    let (stdin, mut keys) = tokio::io::duplex(64);
    let (mut screen, stdout) = tokio::io::duplex(4096);
    let (resize, mut sizes) = tokio::sync::mpsc::unbounded_channel::<(u16, u16)>();
    let show = async move {
        while let Some((columns, rows)) = sizes.recv().await {
            screen.write_all(format!("{columns}x{rows};").as_bytes()).await.unwrap();
        }
    };
    let exit = async move {
        let _alive = alive;
        let read = async {
            let mut key = [0];
            while keys.read(&mut key).await.unwrap() > 0 && key != *b"q" {}
        };
        tokio::select! { () = read => {}, () = show => {} }
        Ok(Exit::default())
    };
    Session {
        stdin: Some(Box::new(stdin)),
        stdout: Some(Box::new(stdout)),
        stderr: None,
        resize,
        exit: exit.boxed(),
    }
}

/// A server over [`Here`].
pub(super) async fn server(config: Config) -> (Arc<Server>, Arc<Here>) {
    let here = Arc::new(Here::default());
    (Server::start(config, here.clone()).await.unwrap(), here)
}

/// A request for a shell script with every stream.
pub(super) fn script(text: &str) -> ExecRequest {
    ExecRequest {
        container: "c".into(),
        command: vec!["sh".into(), "-c".into(), text.into()],
        tty: false,
        stdin: true,
        stdout: true,
        stderr: true,
    }
}

/// A request for a terminal.
pub(super) fn on_terminal() -> ExecRequest {
    ExecRequest { tty: true, stderr: false, ..script("") }
}

/// A request for ports.
pub(super) fn ports(ports: &[u16]) -> PortForwardRequest {
    PortForwardRequest { pod: "p".into(), ports: ports.iter().map(|&port| port.into()).collect() }
}

/// Sends a request's head to a URL and returns the connection and the answer's head.
pub(super) async fn http(url: &str, method: &str, headers: &str) -> (TcpStream, String) {
    let rest = url.strip_prefix("http://").unwrap();
    let (host, path) = rest.split_once('/').unwrap();
    let mut stream = TcpStream::connect(host).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let request = format!("{method} /{path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    (stream, String::from_utf8(head).unwrap())
}

/// What a SPDY server sends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Reply(u32),
    Data(u32, Vec<u8>),
    Fin(u32),
    Reset(u32, u32),
    Ping(u32),
    GoAway,
    /// End of the connection.
    End,
}

/// A SPDY/3.1 client, written from the specification apart from the server's code.
pub(super) struct Client<S> {
    pub(super) io: S,
    deflate: Compress,
    inflate: flate2::Decompress,
    next: u32,
}

impl Client<TcpStream> {
    /// Upgrades a URL with the offered protocols.
    pub(super) async fn connect(url: &str, protocols: &str) -> Self {
        let headers =
            format!("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {protocols}\r\n");
        let (stream, head) = http(url, "POST", &headers).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.to_lowercase().contains("upgrade: spdy/3.1\r\n"), "{head}");
        Self::over(stream)
    }
}

impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> Client<S> {
    pub(super) fn over(io: S) -> Self {
        let mut deflate = Compress::new(Compression::default(), true);
        deflate.set_dictionary(&dictionary()).unwrap();
        Self { io, deflate, inflate: flate2::Decompress::new(true), next: 1 }
    }

    /// Opens a stream.
    pub(super) async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let id = self.next;
        self.next += 2;
        self.open_as(id, headers).await;
        id
    }

    pub(super) async fn open_as(&mut self, id: u32, headers: &[(&str, &str)]) {
        let mut block = length(headers).to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.extend_from_slice(&length(text.as_bytes()));
            block.extend_from_slice(text.as_bytes());
        }
        let mut packed = Vec::with_capacity(block.len() + 1024);
        self.deflate.compress_vec(&block, &mut packed, FlushCompress::Sync).unwrap();
        let payload = [&id.to_be_bytes()[..], &[0; 6], &packed].concat();
        self.control(1, &payload).await;
    }

    pub(super) async fn control(&mut self, kind: u8, payload: &[u8]) {
        let length = length(payload);
        let head = [0x80, 3, 0, kind, 0, length[1], length[2], length[3]];
        self.io.write_all(&[&head, payload].concat()).await.unwrap();
        self.io.flush().await.unwrap();
    }

    pub(super) async fn data(&mut self, id: u32, data: &[u8], fin: bool) {
        let length = length(data);
        let head = [&id.to_be_bytes()[..], &[u8::from(fin), length[1], length[2], length[3]]].concat();
        self.io.write_all(&[&head, data].concat()).await.unwrap();
        self.io.flush().await.unwrap();
    }

    pub(super) async fn frame(&mut self) -> Frame {
        let mut head = [0; 8];
        if self.io.read_exact(&mut head).await.is_err() {
            return Frame::End;
        }
        let first = u32::from_be_bytes(head[..4].try_into().unwrap());
        let mut payload = vec![0; u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize];
        self.io.read_exact(&mut payload).await.unwrap();
        let word = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        match (first >> 16, first & 0xffff) {
            (0x8003, 2) => {
                assert_eq!(self.inflated(&payload[4..]), [0; 4], "a reply has no headers");
                Frame::Reply(word(0))
            }
            (0x8003, 3) => Frame::Reset(word(0), word(4)),
            (0x8003, 6) => Frame::Ping(word(0)),
            (0x8003, 7) => Frame::GoAway,
            (0..0x8000, _) if head[4] == 1 && payload.is_empty() => Frame::Fin(first),
            (0..0x8000, _) => Frame::Data(first, payload),
            other => panic!("unexpected frame {other:x?}"),
        }
    }

    fn inflated(&mut self, mut packed: &[u8]) -> Vec<u8> {
        let mut block = Vec::with_capacity(64);
        let before = self.inflate.total_in();
        if self.inflate.decompress_vec(packed, &mut block, flate2::FlushDecompress::Sync).is_err() {
            self.inflate.set_dictionary(&dictionary()).unwrap();
            packed = &packed[usize::try_from(self.inflate.total_in() - before).unwrap()..];
            self.inflate.decompress_vec(packed, &mut block, flate2::FlushDecompress::Sync).unwrap();
        }
        block
    }

    /// Opens the named streams as remote command clients do; the ids come in the same order.
    pub(super) async fn streams<const N: usize>(&mut self, types: [&str; N]) -> [u32; N] {
        let mut ids = [0; N];
        for (id, kind) in ids.iter_mut().zip(types) {
            *id = self.open(&[("streamtype", kind)]).await;
        }
        ids
    }

    /// Reads to the end: each stream's bytes, and the order in which streams ended.
    pub(super) async fn rest(&mut self) -> Rest {
        let mut rest = Rest::default();
        loop {
            match self.frame().await {
                Frame::Data(id, bytes) => rest.bytes.entry(id).or_default().extend(bytes),
                Frame::Fin(id) => rest.ended.push(id),
                Frame::GoAway => rest.farewell = true,
                Frame::End => return rest,
                Frame::Reset(id, _) => rest.reset.push(id),
                Frame::Reply(_) | Frame::Ping(_) => {}
            }
        }
    }
}

fn length<T>(items: &[T]) -> [u8; 4] {
    u32::try_from(items.len()).unwrap().to_be_bytes()
}

/// All that came until the end of a connection.
#[derive(Debug, Default)]
pub(super) struct Rest {
    bytes: std::collections::HashMap<u32, Vec<u8>>,
    pub(super) ended: Vec<u32>,
    pub(super) reset: Vec<u32>,
    pub(super) farewell: bool,
}

impl Rest {
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(&id).map_or(&[], Vec::as_slice)
    }

    pub(super) fn text(&self, id: u32) -> String {
        String::from_utf8_lossy(self.bytes(id)).into_owned()
    }
}

/// Waits for `condition`; a test that waits too long fails.
pub(super) async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect(what);
}
