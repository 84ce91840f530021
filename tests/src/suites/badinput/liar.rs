//! A registry that lies: each of its images is wrong in one way.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::Result;
use serde_json::json;

use crate::images::digest;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// What is sent for one path.
#[derive(Clone)]
struct Answer {
    kind: &'static str,
    body: Vec<u8>,
    /// Bytes promised in Content-Length; more than there are: the connection is cut.
    promised: usize,
}

/// The running registry; dropping it ends its thread.
pub(super) struct Liar {
    address: String,
    wrong_digest: String,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

// === impl Liar ===

impl Liar {
    /// Listens on a free port of the loopback.
    pub(super) fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let (pages, wrong_digest) = pages()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                // A client that hangs up early is its own business.
                let _ = serve(stream, &pages);
            }
        });
        Ok(Self { address, wrong_digest, stop, thread: Some(thread) })
    }

    /// The image that is wrong in the way `fault` says.
    pub(super) fn image(&self, fault: &str) -> String {
        format!("{}/{fault}:latest", self.address)
    }

    /// A reference by a digest for which another manifest is sent.
    pub(super) fn digest_reference(&self) -> String {
        format!("{}/digest@{}", self.address, self.wrong_digest)
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(&self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Every path with its answer, and the digest that is none.
fn pages() -> Result<(BTreeMap<String, Answer>, String)> {
    let mut pages = BTreeMap::new();
    let layer: Vec<u8> = vec![0; 10_240]; // an empty tar: nothing but end blocks
    let honest = digest(&layer);
    let other = digest(b"something else");
    for (name, diff_id) in
        [("corrupt", &honest), ("truncated", &honest), ("diffid", &other), ("digest", &honest)]
    {
        let config = json!({
            "os": "linux", "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "config": {}, "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        });
        let config = serde_json::to_vec(&config)?;
        let descriptor = |kind: &str, bytes: &[u8]| json!({ "mediaType": kind, "digest": digest(bytes), "size": bytes.len() });
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        }))?;
        let mut body = layer.clone();
        match name {
            "corrupt" => body[5000] = 1,
            "truncated" => body.truncate(4000),
            _ => {}
        }
        let blob = |body: Vec<u8>, promised| Answer { kind: "application/octet-stream", body, promised };
        pages.insert(format!("/v2/{name}/blobs/{}", digest(&config)), blob(config.clone(), config.len()));
        pages.insert(format!("/v2/{name}/blobs/{honest}"), blob(body, layer.len()));
        for reference in ["latest", &digest(&manifest), &other] {
            let answer = Answer { kind: MANIFEST, promised: manifest.len(), body: manifest.clone() };
            pages.insert(format!("/v2/{name}/manifests/{reference}"), answer);
        }
    }
    let garbage = b"{ \"schemaVersion\": 2, \"layers\": 7 }".to_vec();
    let answer = Answer { kind: MANIFEST, promised: garbage.len(), body: garbage };
    pages.insert("/v2/garbage/manifests/latest".to_owned(), answer);
    pages.insert("/v2/".to_owned(), Answer { kind: "application/json", body: b"{}".to_vec(), promised: 2 });
    Ok((pages, other))
}

/// One request per connection is enough here.
fn serve(stream: TcpStream, pages: &BTreeMap<String, Answer>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let mut words = request.split(' ');
    let (head, path) = (words.next() == Some("HEAD"), words.next().unwrap_or_default());
    let mut stream = reader.into_inner();
    let Some(answer) = pages.get(path) else {
        let body = r#"{"errors":[{"code":"NOT_FOUND"}]}"#;
        return write!(
            stream,
            "HTTP/1.1 404 Not Found\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
    };
    let Answer { kind, promised, body } = answer;
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {promised}\r\nConnection: close\r\n\r\n"
    )?;
    if head { Ok(()) } else { stream.write_all(body) }
}
