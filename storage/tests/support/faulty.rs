//! A registry that misbehaves on order: each path has a script, one fault per request, then it behaves.

use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

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
    pub path: String,
    pub headers: HashMap<String, String>,
}

#[derive(Default)]
struct State {
    content: HashMap<String, (String, Vec<u8>)>,
    scripts: HashMap<String, VecDeque<Fault>>,
    requests: Vec<Request>,
    sent: HashMap<String, usize>,
    token: Option<String>,
}

/// The server; it ends with the test process.
#[derive(Clone)]
pub struct Faulty {
    pub address: String,
    state: Arc<Mutex<State>>,
}

impl Faulty {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state: Arc<Mutex<State>> = Arc::default();
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                std::thread::spawn(move || {
                    let _ = serve(&stream, &state);
                });
            }
        });
        Self { address, state }
    }

    pub fn content(&self, path: &str, kind: &str, bytes: &[u8]) {
        self.state.lock().unwrap().content.insert(path.into(), (kind.into(), bytes.to_vec()));
    }

    pub fn script(&self, path: &str, faults: &[Fault]) {
        self.state.lock().unwrap().scripts.insert(path.into(), faults.iter().cloned().collect());
    }

    /// Asks for this `Authorization` from now on.
    pub fn require(&self, header: &str) {
        self.state.lock().unwrap().token = Some(header.into());
    }

    pub fn requests(&self) -> Vec<Request> {
        self.state.lock().unwrap().requests.clone()
    }

    /// Bytes of content sent for a path.
    pub fn sent(&self, path: &str) -> usize {
        self.state.lock().unwrap().sent.get(path).copied().unwrap_or(0)
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
        blob(Digest::of(tar))
    }
}

fn serve(stream: &TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let full = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut headers = HashMap::new();
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let Some((name, value)) = header.trim_end().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let path = full.split('?').next().unwrap_or_default().to_owned();
        let (content, fault, denied) = {
            let mut state = state.lock().unwrap();
            state.requests.push(Request { path: full, headers: headers.clone() });
            let denied = state.token.as_ref().is_some_and(|t| headers.get("authorization") != Some(t));
            let fault =
                if denied { None } else { state.scripts.get_mut(&path).and_then(VecDeque::pop_front) };
            (state.content.get(&path).cloned(), fault.unwrap_or(Fault::Fine), denied)
        };
        if !answer(stream, state, &path, &headers, content, &fault, denied)? {
            return Ok(());
        }
    }
}

/// `false`: the connection is done for.
fn answer(
    mut stream: &TcpStream,
    state: &Mutex<State>,
    path: &str,
    headers: &HashMap<String, String>,
    content: Option<(String, Vec<u8>)>,
    fault: &Fault,
    denied: bool,
) -> std::io::Result<bool> {
    let bare = |code: u16, lines: &str| format!("HTTP/1.1 {code} X\r\n{lines}Content-Length: 0\r\n\r\n");
    if denied {
        stream.write_all(bare(401, "WWW-Authenticate: Basic realm=\"test\"\r\n").as_bytes())?;
        return Ok(true);
    }
    if let Fault::Status(code, lines) = fault {
        stream.write_all(bare(*code, lines).as_bytes())?;
        return Ok(true);
    }
    let Some((kind, mut body)) = content else {
        stream.write_all(bare(404, "").as_bytes())?;
        return Ok(true);
    };
    let total = body.len();
    let from =
        headers.get("range").and_then(|r| r.strip_prefix("bytes=")?.split('-').next()?.parse::<usize>().ok());
    let from = if matches!(fault, Fault::IgnoreRange) { None } else { from };
    if let Fault::Flip(at) = fault {
        body[*at] ^= 1;
    }
    let body = &body[from.unwrap_or(0)..];
    let status = match from {
        Some(from) => format!("206 Partial Content\r\nContent-Range: bytes {from}-{}/{total}", total - 1),
        None => "200 OK".into(),
    };
    write!(stream, "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n", body.len())?;
    let length = match fault {
        Fault::Cut(n) | Fault::Stall(n) => body.len().min(*n),
        _ => body.len(),
    };
    stream.write_all(&body[..length])?;
    *state.lock().unwrap().sent.entry(path.to_owned()).or_default() += length;
    if matches!(fault, Fault::Stall(_)) {
        // Until the client gives up.
        let _ = stream.read(&mut [0]);
    }
    Ok(!matches!(fault, Fault::Cut(_) | Fault::Stall(_)))
}
