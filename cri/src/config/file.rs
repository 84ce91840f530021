//! The configuration files: their keys, and errors that say where.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Largest configuration file that is read, in bytes.
const LARGEST: u64 = 1 << 20;

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory cannot be read.
    #[error("configuration {path}: cannot be read")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("configuration {path}:{line}:{column}: {message}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What is wrong there.
        message: String,
    },
    /// A value makes no sense.
    #[error("configuration: {name}: {why}")]
    Value {
        /// Key, as `section.key`.
        name: String,
        /// What is wrong with it.
        why: String,
    },
}

impl Error {
    pub(crate) fn value(name: &str, why: String) -> Self {
        Self::Value { name: name.into(), why }
    }
}

/// Declares a section: every key optional, unknown keys refused, later files win key by key.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $kind:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $kind,)*
        }
        impl Merge for $name {
            fn merge(&mut self, later: Self) {
                $(self.$field.merge(later.$field);)*
            }

            fn changed(&self, other: &Self, at: &str, names: &mut Vec<String>) {
                let dot = if at.is_empty() { "" } else { "." };
                $(self.$field.changed(&other.$field, &format!("{at}{dot}{}", stringify!($field)), names);)*
            }
        }
    };
}

/// Laying one file over another, and comparing them.
trait Merge {
    /// Takes over what `later` says.
    fn merge(&mut self, later: Self);

    /// Adds the names of the keys that differ; `at` is the section's.
    fn changed(&self, other: &Self, at: &str, names: &mut Vec<String>);
}

impl<T: PartialEq> Merge for Option<T> {
    fn merge(&mut self, later: Self) {
        if later.is_some() {
            *self = later;
        }
    }

    fn changed(&self, other: &Self, at: &str, names: &mut Vec<String>) {
        if self != other {
            names.push(at.to_owned());
        }
    }
}

section! {
    /// One configuration file, or several laid over each other.
    File {
        /// What survives a reboot.
        root: Option<PathBuf>,
        /// What does not.
        state: Option<PathBuf>,
        /// Endpoints: `unix:///path`, `tcp://address:port`, `fd://`.
        listen: Option<Vec<String>>,
        /// Log filter.
        log: Option<String>,
        /// Certificates for `tcp://`.
        tls: Option<Tls>,
        /// Pods and containers.
        engine: Engine,
        /// The native execution driver.
        native: Native,
        /// External OCI runtimes, by handler name.
        handlers: Option<BTreeMap<String, Handler>>,
        /// Image store.
        image: Image,
        /// Registries.
        registry: Registry,
        /// Pod network.
        network: Network,
        /// exec, attach, port-forward.
        streaming: Streaming,
        /// The daemon's own numbers.
        metrics: Metrics,
        /// Classes of caches and memory bandwidth, by name.
        rdt: Option<BTreeMap<String, RdtClass>>,
        /// Classes of block I/O, by name.
        blockio: Option<BTreeMap<String, Vec<BlockioRule>>>,
    }
}

/// `[handlers.NAME]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Handler {
    /// The program.
    pub path: Option<PathBuf>,
    /// Where it keeps its state.
    pub root: Option<PathBuf>,
    /// Further global arguments.
    pub arguments: Vec<String>,
    /// How long one call of it may take.
    pub timeout: Option<String>,
}

/// `[rdt.NAME]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RdtClass {
    /// Lines for the group's `schemata`; none: the group is there already.
    pub schemata: Vec<String>,
}

/// `[[blockio.NAME]]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BlockioRule {
    /// Paths of block devices.
    pub devices: Vec<String>,
    /// Share.
    pub weight: Option<u16>,
    /// Bytes per second.
    pub read_bps: Option<String>,
    /// Bytes per second.
    pub write_bps: Option<String>,
    /// Operations per second.
    pub read_iops: Option<u64>,
    /// Operations per second.
    pub write_iops: Option<u64>,
}

section! {
    /// `[tls]`
    Tls {
        /// PEM chain.
        certificate: Option<PathBuf>,
        /// PEM key.
        key: Option<PathBuf>,
        /// PEM authorities of clients.
        client_ca: Option<PathBuf>,
    }
}

section! {
    /// `[engine]`
    Engine {
        /// Who makes cgroups: `cgroupfs` or `systemd`.
        cgroup_driver: Option<String>,
        /// Parent of pods that name none.
        cgroup_parent: Option<String>,
        /// The node's hosts file.
        hosts_file: Option<PathBuf>,
        /// The node's resolv.conf.
        resolv_conf: Option<PathBuf>,
        /// Ports below 1024 and ICMP sockets without privileges.
        unprivileged_ports: Option<bool>,
        /// Make missing host paths as directories.
        create_missing_host_paths: Option<bool>,
        /// Label pods where SELinux is on.
        selinux: Option<bool>,
        /// Time from SIGKILL to an answer.
        kill_wait: Option<String>,
        /// Time ExecSync reads on after its process.
        exec_drain: Option<String>,
        /// Time a pull outlives its caller.
        abandoned_pull: Option<String>,
        /// Ended jobs kept for `berth jobs`.
        recent_jobs: Option<usize>,
        /// Events kept for a slow subscriber.
        event_queue: Option<usize>,
    }
}

section! {
    /// `[native]`
    Native {
        /// Cgroup of the supervisors.
        supervisor_cgroup: Option<String>,
        /// Capabilities of a container that asks for nothing.
        default_capabilities: Option<Vec<String>>,
    }
}

section! {
    /// `[image]`
    Image {
        /// Snapshot driver.
        driver: Option<String>,
        /// Memory for all pulls.
        pull_memory: Option<String>,
        /// Signature policy.
        policy: Option<PathBuf>,
        /// Directory of image verifiers.
        verifiers: Option<PathBuf>,
        /// Keep the compressed layers too.
        keep_blobs: Option<bool>,
    }
}

section! {
    /// `[registry]`
    Registry {
        /// Directories of `<host>/hosts.toml`.
        config_path: Option<Vec<PathBuf>>,
    }
}

section! {
    /// `[network]`
    Network {
        /// Pod subnets until the kubelet names others.
        pod_cidrs: Option<Vec<String>>,
        /// CNI configurations.
        conf_dir: Option<PathBuf>,
        /// How many of them count.
        max_networks: Option<usize>,
        /// CNI executables.
        bin_dirs: Option<Vec<PathBuf>>,
        /// Bind mounts of pod namespaces.
        netns_dir: Option<PathBuf>,
        /// Prefix of link names and name of the nft table.
        link_prefix: Option<String>,
    }
}

section! {
    /// `[streaming]`
    Streaming {
        /// Where to listen.
        address: Option<String>,
        /// Host in the URLs.
        advertise: Option<String>,
        /// Certificate.
        tls: Option<StreamingTls>,
        /// End of an idle session.
        idle_timeout: Option<String>,
        /// Time to open the announced streams.
        creation_timeout: Option<String>,
        /// Sessions at once.
        max_sessions: Option<usize>,
    }
}

section! {
    /// `[metrics]`
    Metrics {
        /// Where to serve them.
        address: Option<String>,
    }
}

section! {
    /// `[streaming.tls]`
    StreamingTls {
        /// A certificate made at start.
        self_signed: Option<bool>,
        /// PEM chain.
        certificate: Option<PathBuf>,
        /// PEM key.
        key: Option<PathBuf>,
        /// PEM authorities of clients.
        client_ca: Option<PathBuf>,
    }
}

impl File {
    /// Names of the keys in which two configurations differ, as `section.key`.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut names = Vec::new();
        self.changed(other, "", &mut names);
        names
    }

    /// A file that must exist, and the `conf.d/*.toml` beside it.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let mut file = Self::read_one(path)?;
        for path in drop_ins(path)? {
            file.merge(Self::read_one(&path)?);
        }
        Ok(file)
    }

    /// The same, where the file itself may be absent.
    pub fn read_if_there(path: &Path) -> Result<Self, Error> {
        let mut file = match path.try_exists() {
            Ok(true) => Self::read_one(path)?,
            Ok(false) => Self::default(),
            Err(source) => return Err(Error::Read { path: path.into(), source }),
        };
        for path in drop_ins(path)? {
            file.merge(Self::read_one(&path)?);
        }
        Ok(file)
    }

    fn read_one(path: &Path) -> Result<Self, Error> {
        let read = || -> std::io::Result<String> {
            use std::io::Read;
            let mut text = String::new();
            let file = std::fs::File::open(path)?;
            file.take(LARGEST + 1).read_to_string(&mut text)?;
            if text.len() as u64 > LARGEST {
                return Err(std::io::Error::other(format!("larger than {LARGEST} bytes")));
            }
            Ok(text)
        };
        let text = read().map_err(|source| Error::Read { path: path.into(), source })?;
        Self::parse(path, &text)
    }

    /// Parses the text of one file; `path` is for the error.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        toml::from_str(text).map_err(|e| {
            let at = e.span().map_or(0, |span| span.start).min(text.len());
            let before = text.get(..at).unwrap_or_default();
            Error::Parse {
                path: path.into(),
                line: before.matches('\n').count() + 1,
                column: before.rsplit('\n').next().unwrap_or_default().chars().count() + 1,
                message: e.message().trim().replace('\n', "; "),
            }
        })
    }
}

/// `conf.d/*.toml` in the directory of `path`, in the order of their names; no directory, no files.
fn drop_ins(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let dir = path.with_file_name("conf.d");
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(Error::Read { path: dir, source }),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|source| Error::Read { path: dir.clone(), source })?.path();
        if path.extension().is_some_and(|e| e == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
