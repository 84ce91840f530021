//! What the tests of the store share: a real registry on loopback, and images made by hand so that every byte is known.
#![allow(
    unreachable_pub,
    missing_docs,
    missing_debug_implementations,
    reason = "one module, several test binaries"
)]
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::panic,
    reason = "a test fails by panicking and says what it skips"
)]
#![allow(clippy::needless_pass_by_value, clippy::cast_possible_truncation, reason = "brevity of tests")]

pub mod faulty;
pub mod kernel;
pub mod tar;
pub mod tls;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use storage::{Config, Digest, Store};

/// A directory of its own under /tmp, deleted at the end.
pub struct Temp(pub PathBuf);

impl Temp {
    pub fn new(name: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(format!("/tmp/storage-{name}-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// `false`, after saying so, if a tool is missing.
pub fn have(test: &str, tools: &[&str]) -> bool {
    for tool in tools {
        let found = std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|directory| directory.join(tool).exists()));
        if !found {
            assert!(std::env::var_os("STORAGE_SUITE_ALL").is_none(), "{test} needs {tool}");
            println!("skip: {test} (missing {tool})");
            return false;
        }
    }
    true
}

/// Runs a tool; its output must be a success.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    String::from_utf8(output.stdout).unwrap()
}

/// Debian's docker-registry on a port of its own.
pub struct Registry {
    child: Child,
    pub address: String,
    _data: Temp,
}

impl Registry {
    pub fn start(more: &str) -> Self {
        let data = Temp::new("registry");
        let config = data.0.join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  delete: {{enabled: true}}\nhttp: {{addr: '127.0.0.1:0', secret: x}}\n{more}",
            data.0.join("data").display()
        );
        std::fs::write(&config, text).unwrap();
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        let address = loop {
            line.clear();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "the registry ended early");
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest.split(['"', ' ', '\n', ',']).next().unwrap().to_owned();
            }
        };
        // Somebody must read the rest, or the registry blocks.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self { child, address, _data: data }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a layer is stored.
#[derive(Clone, Copy, Debug)]
pub enum Pack {
    Plain,
    Gzip,
    Zstd,
}

/// An image as an OCI layout, under construction.
pub struct Layout {
    pub directory: PathBuf,
    layers: Vec<(String, Digest, usize)>,
    diff_ids: Vec<Digest>,
    pub docker: bool,
}

impl Layout {
    pub fn new(directory: &Path) -> Self {
        std::fs::create_dir_all(directory.join("blobs/sha256")).unwrap();
        std::fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { directory: directory.to_owned(), layers: Vec::new(), diff_ids: Vec::new(), docker: false }
    }

    pub fn blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        std::fs::write(self.directory.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        digest
    }

    pub fn layer(mut self, tar: &[u8], pack: Pack) -> Self {
        let (bytes, suffix) = match pack {
            Pack::Plain => (tar.to_vec(), ""),
            Pack::Gzip => (gzip(tar), "+gzip"),
            Pack::Zstd => (zstd::encode_all(tar, 3).unwrap(), "+zstd"),
        };
        let media_type = format!("application/vnd.oci.image.layer.v1.tar{suffix}");
        self.layers.push((media_type, self.blob(&bytes), bytes.len()));
        self.diff_ids.push(Digest::of(tar));
        self
    }

    /// Writes config, manifest and index; returns manifest and config digest.
    pub fn finish(&self, config: &serde_json::Value) -> (Digest, Digest) {
        let config = serde_json::json!({"architecture": "amd64", "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": self.diff_ids}});
        let config = serde_json::to_vec(&config).unwrap();
        let id = self.blob(&config);
        let layers: Vec<_> = self
            .layers
            .iter()
            .map(
                |(kind, digest, size)| serde_json::json!({"mediaType": kind, "digest": digest, "size": size}),
            )
            .collect();
        let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": storage::manifest::OCI_MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": id, "size": config.len()},
            "layers": layers, "annotations": {"made.by": "hand"}});
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let digest = self.blob(&manifest);
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [{"mediaType": storage::manifest::OCI_MANIFEST,
            "digest": digest, "size": manifest.len(), "annotations": {"org.opencontainers.image.ref.name": "t"}}]});
        std::fs::write(self.directory.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
        (digest, id)
    }

    /// Pushes it with skopeo, bytes unchanged.
    pub fn push(&self, to: &str) {
        let from = format!("oci:{}:t", self.directory.display());
        let to = format!("docker://{to}");
        let insecure = "--dest-tls-verify=false";
        run("skopeo", &["copy", "-q", "--insecure-policy", "--preserve-digests", insecure, &from, &to]);
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A store in `root`.
pub fn store(root: &Path, driver: Option<&str>) -> Arc<Store> {
    Store::open(config(root, driver)).unwrap()
}

pub fn config(root: &Path, driver: Option<&str>) -> Config {
    Config {
        root: root.join("store"),
        driver: driver.map(str::to_owned),
        registry_config: vec![root.join("certs.d")],
        pull_memory: 256 << 20,
        kernel: kernel::KERNEL,
        keep_blobs: false,
        label: None,
        policy: Vec::new(),
        verifiers: None,
    }
}

pub async fn pull(store: &Arc<Store>, image: &str) -> Result<Arc<storage::Image>, storage::PullError> {
    store.pull(image, None, tokio::sync::watch::channel(Default::default()).0).await
}

/// An error with all its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
