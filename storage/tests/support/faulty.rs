//! A registry that misbehaves on order: each path has a script, one fault per request, then it behaves.

use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use storage::Digest;

/// What to do with one request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Close the connection after this many bytes of the body.
    Cut(usize),
    /// Send this many bytes, then nothing, until the client goes away.
    Stall(usize),
    /// One bit of the body is wrong.
    Flip(usize),
    /// The whole content, whatever was asked for.
    IgnoreRange,
    /// A status with these header lines and no content.
    Status(u16, String),
    /// As it should be.
    Fine,
}

/// A request as it came: path with query, and headers in lower case.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: HashMap<String, String>,
    pub body: String,
}

impl Request {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// Who is let in, and what those are told who are not.
#[derive(Clone, Default)]
struct Door {
    /// Any of these `Authorization` headers will do.
    open_to: Vec<String>,
    challenge: String,
}

type Handler = Arc<dyn Fn(&Request) -> Option<(u16, String)> + Send + Sync>;

#[derive(Default)]
struct State {
    content: HashMap<String, (String, Arc<Vec<u8>>)>,
    scripts: HashMap<String, VecDeque<Fault>>,
    requests: Vec<Request>,
    sent: HashMap<String, usize>,
    door: Option<Door>,
    handlers: HashMap<String, Handler>,
    /// Every body is cut after this many bytes, always.
    cut_every: Option<usize>,
    /// `Retry-After` of what handlers refuse, in seconds.
    retry_after: Option<u32>,
}

/// The server; it ends with the test process.
#[derive(Clone)]
pub struct Faulty {
    pub address: String,
    state: Arc<Mutex<State>>,
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

impl Faulty {
    pub fn start() -> Self {
        Self::listen(None)
    }

    pub fn start_tls(tls: Arc<ServerConfig>) -> Self {
        Self::listen(Some(tls))
    }

    fn listen(tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state: Arc<Mutex<State>> = Arc::default();
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (state, tls) = (shared.clone(), tls.clone());
                std::thread::spawn(move || {
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(60)));
                    let stream: Box<dyn Stream> = match tls {
                        None => Box::new(stream),
                        Some(tls) => Box::new(StreamOwned::new(ServerConnection::new(tls).unwrap(), stream)),
                    };
                    let _ = serve(stream, &state);
                });
            }
        });
        Self { address, state }
    }

    pub fn content(&self, path: &str, kind: &str, bytes: &[u8]) {
        self.state.lock().unwrap().content.insert(path.into(), (kind.into(), Arc::new(bytes.to_vec())));
    }

    /// What is served under a path.
    pub fn requests_content(&self, path: &str) -> Vec<u8> {
        self.state.lock().unwrap().content.get(path).map(|(_, bytes)| bytes.to_vec()).unwrap()
    }

    /// All paths that begin so.
    pub fn paths_of(&self, prefix: &str) -> Vec<String> {
        self.state.lock().unwrap().content.keys().filter(|path| path.starts_with(prefix)).cloned().collect()
    }

    pub fn script(&self, path: &str, faults: &[Fault]) {
        self.state.lock().unwrap().scripts.insert(path.into(), faults.iter().cloned().collect());
    }

    /// Every body is cut after this many bytes.
    pub fn cut_every(&self, bytes: usize) {
        self.state.lock().unwrap().cut_every = Some(bytes);
    }

    /// A path answered by a function: status and JSON body.
    pub fn handle(
        &self,
        path: &str,
        handler: impl Fn(&Request) -> Option<(u16, String)> + Send + Sync + 'static,
    ) {
        self.state.lock().unwrap().handlers.insert(path.into(), Arc::new(handler));
    }

    /// Asks for this `Authorization` from now on.
    pub fn require(&self, header: &str) {
        self.demand(header, "Basic realm=\"test\"");
    }

    /// Asks for this `Authorization`, by this challenge.
    pub fn demand(&self, header: &str, challenge: &str) {
        let door = Door { open_to: vec![header.into()], challenge: challenge.into() };
        self.state.lock().unwrap().door = Some(door);
    }

    pub fn requests(&self) -> Vec<Request> {
        self.state.lock().unwrap().requests.clone()
    }

    /// Requests of one path, query left out.
    pub fn requests_of(&self, path: &str) -> Vec<Request> {
        self.requests().into_iter().filter(|r| r.path.split('?').next() == Some(path)).collect()
    }

    /// Bytes of content sent for a path.
    pub fn sent(&self, path: &str) -> usize {
        self.state.lock().unwrap().sent.get(path).copied().unwrap_or(0)
    }

    /// What handlers refuse carries this `Retry-After`.
    pub fn retry_after(&self, seconds: u32) {
        self.state.lock().unwrap().retry_after = Some(seconds);
    }

    /// Serves an image of one layer as `name:t`; returns the path of its layer.
    pub fn image(&self, name: &str, tar: &[u8]) -> String {
        let config = serde_json::json!({"architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(tar)]}});
        let config = serde_json::to_vec(&config).unwrap();
        let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": storage::manifest::OCI_MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(&config), "size": config.len()},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": Digest::of(tar), "size": tar.len()}]});
        let blob = |digest: Digest| format!("/v2/{name}/blobs/{digest}");
        self.content(&blob(Digest::of(&config)), "application/octet-stream", &config);
        self.content(&blob(Digest::of(tar)), "application/octet-stream", tar);
        let manifest = serde_json::to_vec(&manifest).unwrap();
        self.content(&format!("/v2/{name}/manifests/t"), storage::manifest::OCI_MANIFEST, &manifest);
        let by_digest = format!("/v2/{name}/manifests/{}", Digest::of(&manifest));
        self.content(&by_digest, storage::manifest::OCI_MANIFEST, &manifest);
        blob(Digest::of(tar))
    }
}

fn read_request(reader: &mut BufReader<Box<dyn Stream>>) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = HashMap::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let body = String::from_utf8_lossy(&body).into_owned();
    Ok(Some(Request { method, path, headers, body }))
}

fn serve(stream: Box<dyn Stream>, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader)? {
        let path = request.path.split('?').next().unwrap_or_default().to_owned();
        let (content, fault, door, handler) = {
            let mut state = state.lock().unwrap();
            state.requests.push(request.clone());
            let shut = |door: &Door| !door.open_to.contains(&request.header("authorization").to_owned());
            let door = state.door.clone().filter(|door| path.starts_with("/v2/") && shut(door));
            let scripted = if door.is_some() {
                None
            } else {
                state.scripts.get_mut(&path).and_then(VecDeque::pop_front)
            };
            let always = state.cut_every.map_or(Fault::Fine, Fault::Cut);
            let content = state.content.get(&path).cloned();
            (content, scripted.unwrap_or(always), door, state.handlers.get(&path).cloned())
        };
        let handled = handler.and_then(|handler| handler(&request));
        let stream = reader.get_mut();
        if let Some((status, body)) = handled {
            let after = state.lock().unwrap().retry_after;
            let after = after.map_or(String::new(), |seconds| format!("Retry-After: {seconds}\r\n"));
            write!(stream, "HTTP/1.1 {status} X\r\n{after}Content-Length: {}\r\n\r\n{body}", body.len())?;
            stream.flush()?;
            continue;
        }
        if let Some(door) = door {
            let challenge = door.challenge;
            write!(stream, "HTTP/1.1 401 X\r\nWWW-Authenticate: {challenge}\r\nContent-Length: 0\r\n\r\n")?;
            stream.flush()?;
            continue;
        }
        if !answer(stream, state, &path, &request, content, &fault)? {
            return Ok(());
        }
    }
    Ok(())
}

/// `false`: the connection is done for.
fn answer(
    stream: &mut dyn Stream,
    state: &Mutex<State>,
    path: &str,
    request: &Request,
    content: Option<(String, Arc<Vec<u8>>)>,
    fault: &Fault,
) -> std::io::Result<bool> {
    let bare = |code: u16, lines: &str| format!("HTTP/1.1 {code} X\r\n{lines}Content-Length: 0\r\n\r\n");
    let bare = match (fault, &content) {
        (Fault::Status(code, lines), _) => Some(bare(*code, lines)),
        (_, None) => Some(bare(404, "")),
        _ => None,
    };
    if let Some(bare) = bare {
        stream.write_all(bare.as_bytes())?;
        stream.flush()?;
        return Ok(true);
    }
    let (kind, mut body) = content.unwrap();
    let total = body.len();
    let range = request.header("range").strip_prefix("bytes=").and_then(|range| range.split_once('-'));
    let range = range.filter(|_| !matches!(fault, Fault::IgnoreRange));
    let from = range.map(|(from, _)| from.parse::<usize>().unwrap());
    let to = range.and_then(|(_, to)| to.parse::<usize>().ok()).map_or(total, |last| total.min(last + 1));
    if let Fault::Flip(at) = fault {
        Arc::make_mut(&mut body)[*at] ^= 1;
    }
    let body = &body[from.unwrap_or(0)..to];
    let status = match from {
        Some(from) => format!("206 Partial Content\r\nContent-Range: bytes {from}-{}/{total}", to - 1),
        None => "200 OK".into(),
    };
    let digest = match path.contains("/manifests/") {
        true => format!("Docker-Content-Digest: {}\r\n", Digest::of(body)),
        false => String::new(),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{digest}Content-Length: {}\r\n\r\n",
        body.len()
    )?;
    if request.method == "HEAD" {
        stream.flush()?;
        return Ok(true);
    }
    let length = match fault {
        Fault::Cut(n) | Fault::Stall(n) => body.len().min(*n),
        _ => body.len(),
    };
    let written = stream.write_all(&body[..length]).and_then(|()| stream.flush());
    *state.lock().unwrap().sent.entry(path.to_owned()).or_default() += length;
    written?;
    if matches!(fault, Fault::Stall(_)) {
        // Until the client gives up.
        let _ = stream.read(&mut [0]);
    }
    Ok(!matches!(fault, Fault::Cut(n) if *n < body.len()) && !matches!(fault, Fault::Stall(_)))
}
