//! Configuration: `/etc/berth/config.toml`, then `conf.d/*.toml` beside it in the order of their names, then flags.
//!
//! Every setting has a default and no file need exist. A file that does not parse, or holds a key or value nobody knows,
//! is named with line and column ([`file`]). The rest of the program sees only the crates' own `Config`s, made here.
//!
//! Files owned: none (all are only read).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use engine::exec::cgroup::CgroupDriver;

use crate::streaming;

mod classes;
pub mod endpoint;
pub mod file;
mod handlers;

#[cfg(test)]
mod tests;

pub use endpoint::Endpoint;
pub use file::{Error, File};

/// Where configuration is looked for when no `--config` is given.
pub const DEFAULT_PATH: &str = "/etc/berth/config.toml";
/// Where clients look for the daemon.
pub const DEFAULT_LISTEN: &str = "unix:///run/berth/berth.sock";

/// Everything the daemon is told, with nothing left open.
#[derive(Clone, Debug)]
pub struct Config {
    /// What survives a reboot (`/var/lib/berth`).
    pub root: PathBuf,
    /// What does not (`/run/berth`).
    pub state: PathBuf,
    /// Where the CRI is served.
    pub listen: Vec<Endpoint>,
    /// Filter of `tracing` (`info`, `engine=debug,info`).
    pub log: String,
    /// Certificates for `tcp://` endpoints.
    pub tls: Option<MutualTls>,
    /// The engine's part.
    pub engine: engine::Config,
    /// The native execution driver's part.
    pub native: engine::native::Config,
    /// External OCI runtimes.
    pub handlers: Vec<engine::external::Config>,
    /// The image store's part.
    pub storage: storage::Config,
    /// The network's part.
    pub network: netplugins::Config,
    /// The streaming server's part.
    pub streaming: streaming::Config,
    /// Where the daemon's own numbers are served; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// What all of this was made from, to be compared with what the files say later.
    pub sources: Sources,
}

/// Files and flags before they are completed.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The files, laid over each other.
    pub file: File,
    /// The command line.
    pub flags: Flags,
}

/// PEM files for an endpoint that both sides authenticate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MutualTls {
    /// Certificate chain of the server.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authorities of the clients' certificates.
    pub client_ca: PathBuf,
}

/// What the command line says; it wins over every file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--config`; a named file must exist.
    pub config: Option<PathBuf>,
    /// `--root`.
    pub root: Option<PathBuf>,
    /// `--state`.
    pub state: Option<PathBuf>,
    /// `--listen`, any number.
    pub listen: Vec<String>,
    /// `--log`.
    pub log: Option<String>,
}

impl Config {
    /// Reads the files and puts the flags on top.
    pub fn load(flags: &Flags) -> Result<Self, Error> {
        let file = match &flags.config {
            Some(path) => File::read(path)?,
            None => File::read_if_there(Path::new(DEFAULT_PATH))?,
        };
        Self::from_parts(file, flags)
    }

    /// The settings of files and flags, completed by the defaults.
    pub fn from_parts(file: File, flags: &Flags) -> Result<Self, Error> {
        file.check_paths()?;
        let sources = Sources { file: file.clone(), flags: flags.clone() };
        let root = flags.root.clone().or(file.root).unwrap_or_else(|| "/var/lib/berth".into());
        let state = flags.state.clone().or(file.state).unwrap_or_else(|| "/run/berth".into());
        absolute("root", [&root])?;
        absolute("state", [&state])?;
        let listen =
            if flags.listen.is_empty() { file.listen.unwrap_or_default() } else { flags.listen.clone() };
        let tls = file.tls.map(file::Tls::complete).transpose()?;
        let cgroup_driver = cgroup_driver(file.engine.cgroup_driver.as_deref())?;
        Ok(Self {
            listen: endpoints(&listen, &state, tls.is_some())?,
            log: flags.log.clone().or(file.log).unwrap_or_else(|| "info".into()),
            native: engine::native::Config {
                classes: classes::classes(file.rdt, file.blockio)?,
                hooks: handlers::own(&state),
                ..file.native.into_config(cgroup_driver)?
            },
            engine: file.engine.into_config(&root, &state, cgroup_driver)?,
            handlers: handlers::handlers(file.handlers.unwrap_or_default(), &state)?,
            storage: file.image.into_config(&root, file.registry)?,
            network: file.network.into_config(&root)?,
            streaming: file.streaming.into_config()?,
            metrics: file.metrics.address.map(|text| address("metrics.address", &text)).transpose()?,
            sources,
            root,
            state,
            tls,
        })
    }
}

/// Refuses paths that would depend on where the daemon was started.
fn absolute<'a>(name: &str, paths: impl IntoIterator<Item = &'a PathBuf>) -> Result<(), Error> {
    let relative = paths.into_iter().find(|path| !path.is_absolute());
    relative
        .map_or(Ok(()), |path| Err(Error::value(name, format!("{} is not an absolute path", path.display()))))
}

impl File {
    fn check_paths(&self) -> Result<(), Error> {
        let (engine, image, network) = (&self.engine, &self.image, &self.network);
        absolute("engine.hosts_file", &engine.hosts_file)?;
        absolute("engine.resolv_conf", &engine.resolv_conf)?;
        absolute("image.policy", &image.policy)?;
        absolute("image.verifiers", &image.verifiers)?;
        absolute("registry.config_path", self.registry.config_path.iter().flatten())?;
        absolute("network.conf_dir", &network.conf_dir)?;
        absolute("network.bin_dirs", network.bin_dirs.iter().flatten())?;
        absolute("network.netns_dir", &network.netns_dir)?;
        if let Some(tls) = &self.tls {
            absolute("tls.certificate", &tls.certificate)?;
            absolute("tls.key", &tls.key)?;
            absolute("tls.client_ca", &tls.client_ca)?;
        }
        if let Some(tls) = &self.streaming.tls {
            absolute("streaming.tls.certificate", &tls.certificate)?;
            absolute("streaming.tls.key", &tls.key)?;
            absolute("streaming.tls.client_ca", &tls.client_ca)?;
        }
        Ok(())
    }
}

/// The endpoints asked for; without any, the socket in the state directory (which is the well-known one by default).
fn endpoints(listen: &[String], state: &Path, mutual_tls: bool) -> Result<Vec<Endpoint>, Error> {
    if listen.is_empty() {
        return Ok(vec![Endpoint::Unix(state.join("berth.sock"))]);
    }
    let endpoint = |text: &String| -> Result<Endpoint, Error> {
        let endpoint = Endpoint::from_str(text).map_err(|why| Error::value("listen", why))?;
        if matches!(endpoint, Endpoint::Tcp(_)) && !mutual_tls {
            let why = format!("{text} needs mutual TLS: set [tls] certificate, key and client_ca");
            return Err(Error::value("listen", why));
        }
        Ok(endpoint)
    };
    listen.iter().map(endpoint).collect()
}

/// Where a signature policy is looked for: Berth's own, then what another runtime has left on the node.
const POLICIES: [&str; 2] = ["/etc/berth/policy.json", "/etc/containers/policy.json"];

/// Where registries' hosts and certificates are looked for: Berth's own, then what another runtime has left on the node.
const REGISTRY_PLACES: [&str; 4] = [
    "/etc/berth/certs.d",
    "/etc/berth/registries.conf",
    "/etc/containerd/certs.d",
    "/etc/containers/registries.conf",
];

// === impl of the sections: from optional settings to the crates' own configurations ===

impl file::Engine {
    fn into_config(self, root: &Path, state: &Path, driver: CgroupDriver) -> Result<engine::Config, Error> {
        let default = engine::Config::default();
        let usual = match driver {
            CgroupDriver::Cgroupfs => default.cgroup_parent,
            CgroupDriver::Systemd => "/berth.slice".into(),
        };
        let parent = driver.parent("cgroup_parent", &self.cgroup_parent.unwrap_or(usual));
        Ok(engine::Config {
            root: root.into(),
            state: state.into(),
            cgroup_parent: parent.map_err(|e| Error::value("engine.cgroup_parent", e.to_string()))?,
            cgroup_driver: driver,
            hosts_file: self.hosts_file.unwrap_or(default.hosts_file),
            resolv_conf: self.resolv_conf.unwrap_or(default.resolv_conf),
            unprivileged_ports: self.unprivileged_ports.unwrap_or(default.unprivileged_ports),
            create_missing_host_paths: self
                .create_missing_host_paths
                .unwrap_or(default.create_missing_host_paths),
            selinux: default.selinux.filter(|_| self.selinux.unwrap_or(true)),
            kill_wait: duration("engine.kill_wait", self.kill_wait, default.kill_wait)?,
            exec_drain: duration("engine.exec_drain", self.exec_drain, default.exec_drain)?,
            abandoned_pull: duration("engine.abandoned_pull", self.abandoned_pull, default.abandoned_pull)?,
            recent_jobs: self.recent_jobs.unwrap_or(default.recent_jobs),
            event_queue: self.event_queue.unwrap_or(default.event_queue),
        })
    }
}

impl file::Native {
    fn into_config(self, driver: CgroupDriver) -> Result<engine::native::Config, Error> {
        let default = engine::native::Config::default();
        let usual = match driver {
            CgroupDriver::Cgroupfs => default.supervisor_cgroup,
            CgroupDriver::Systemd => "/system.slice/berth-podd.scope".into(),
        };
        let supervisor_cgroup = self.supervisor_cgroup.unwrap_or(usual);
        driver
            .scope("supervisor_cgroup", &supervisor_cgroup)
            .map_err(|e| Error::value("native.supervisor_cgroup", e.to_string()))?;
        let config = engine::native::Config {
            supervisor_cgroup,
            cgroup_driver: driver,
            default_capabilities: self.default_capabilities,
            ..default
        };
        config.check().map_err(|e| Error::value("native", e.to_string()))?;
        Ok(config)
    }
}

impl file::Image {
    fn into_config(self, root: &Path, registry: file::Registry) -> Result<storage::Config, Error> {
        if let Some(driver) =
            self.driver.as_deref().filter(|driver| !storage::snapshot::DRIVERS.contains(driver))
        {
            let why = format!("\"{driver}\" is none of {}", storage::snapshot::DRIVERS.join(", "));
            return Err(Error::value("image.driver", why));
        }
        let pull_memory = self.pull_memory.map(|size| bytes("image.pull_memory", &size)).transpose()?;
        Ok(storage::Config {
            root: root.into(),
            driver: self.driver,
            registry_config: registry
                .config_path
                .unwrap_or_else(|| REGISTRY_PLACES.iter().map(PathBuf::from).collect()),
            pull_memory: pull_memory.unwrap_or(256 << 20),
            kernel: engine::image::kernel(),
            keep_blobs: self.keep_blobs.unwrap_or(false),
            label: None,
            policy: self
                .policy
                .map_or_else(|| POLICIES.iter().map(PathBuf::from).collect(), |path| vec![path]),
            verifiers: self.verifiers,
        })
    }
}

impl file::Network {
    fn into_config(self, root: &Path) -> Result<netplugins::Config, Error> {
        if self.max_networks == Some(0) {
            return Err(Error::value("network.max_networks", "must be at least 1".into()));
        }
        let config = netplugins::Config {
            pod_cidrs: self
                .pod_cidrs
                .unwrap_or_else(|| vec!["10.88.0.0/16".into(), "fd00:10:88::/64".into()]),
            conf_dir: self.conf_dir.unwrap_or_else(|| "/etc/cni/net.d".into()),
            max_networks: self.max_networks.unwrap_or(1),
            bin_dirs: self.bin_dirs.unwrap_or_else(|| vec!["/opt/cni/bin".into()]),
            netns_dir: self.netns_dir.unwrap_or_else(|| "/run/netns".into()),
            state_dir: root.into(),
            link_prefix: self.link_prefix.unwrap_or_else(|| "berth".into()),
            tap: crate::cli::cni::make_tap,
        };
        config.check().map_err(|(field, e)| Error::value(&format!("network.{field}"), e.to_string()))?;
        Ok(config)
    }
}

impl file::Streaming {
    fn into_config(self) -> Result<streaming::Config, Error> {
        let default = streaming::Config::default();
        let address = self.address.map(|text| address("streaming.address", &text)).transpose()?;
        Ok(streaming::Config {
            address: address.unwrap_or(default.address),
            advertise: self.advertise,
            tls: self.tls.map(file::StreamingTls::complete).transpose()?,
            idle_timeout: duration("streaming.idle_timeout", self.idle_timeout, default.idle_timeout)?,
            creation_timeout: duration(
                "streaming.creation_timeout",
                self.creation_timeout,
                default.creation_timeout,
            )?,
            max_sessions: self.max_sessions.unwrap_or(default.max_sessions),
        })
    }
}

impl file::Tls {
    fn complete(self) -> Result<MutualTls, Error> {
        let need = |name: &str, value: Option<PathBuf>| {
            value.ok_or_else(|| {
                Error::value(name, "must be set: tcp:// is served with mutual TLS only".into())
            })
        };
        Ok(MutualTls {
            certificate: need("tls.certificate", self.certificate)?,
            key: need("tls.key", self.key)?,
            client_ca: need("tls.client_ca", self.client_ca)?,
        })
    }
}

impl file::StreamingTls {
    fn complete(self) -> Result<streaming::Tls, Error> {
        match (self.self_signed.unwrap_or(false), self.certificate, self.key, self.client_ca) {
            (true, None, None, None) => Ok(streaming::Tls::SelfSigned),
            (false, Some(certificate), Some(key), client_ca) => {
                Ok(streaming::Tls::Files { certificate, key, client_ca })
            }
            _ => {
                let why = "is either self_signed = true, or certificate and key (and client_ca)";
                Err(Error::value("streaming.tls", why.into()))
            }
        }
    }
}

/// `cgroupfs` or `systemd`.
fn cgroup_driver(name: Option<&str>) -> Result<CgroupDriver, Error> {
    match name {
        None | Some("cgroupfs") => Ok(CgroupDriver::Cgroupfs),
        Some("systemd") => Ok(CgroupDriver::Systemd),
        Some(other) => {
            let why = format!("\"{other}\" is neither \"cgroupfs\" nor \"systemd\"");
            Err(Error::value("engine.cgroup_driver", why))
        }
    }
}

/// `10s`, `500ms`, `4h`, `2m`.
fn duration(name: &str, text: Option<String>, default: Duration) -> Result<Duration, Error> {
    let Some(text) = text else { return Ok(default) };
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let parsed = match (number.parse::<u64>(), unit) {
        (Ok(n), "ms") => Some(Duration::from_millis(n)),
        (Ok(n), "s") => Some(Duration::from_secs(n)),
        (Ok(n), "m") => n.checked_mul(60).map(Duration::from_secs),
        (Ok(n), "h") => n.checked_mul(3600).map(Duration::from_secs),
        _ => None,
    };
    parsed.ok_or_else(|| {
        Error::value(name, format!("\"{text}\" is not a time like \"500ms\", \"10s\", \"4h\""))
    })
}

/// `1048576`, `64KiB`, `256MiB`, `1GiB`.
fn bytes(name: &str, text: &str) -> Result<u64, Error> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let shift = match unit {
        "" => Some(0),
        "KiB" => Some(10),
        "MiB" => Some(20),
        "GiB" => Some(30),
        _ => None,
    };
    let parsed = shift.and_then(|s| number.parse::<u64>().ok()?.checked_mul(1 << s));
    parsed.ok_or_else(|| Error::value(name, format!("\"{text}\" is not a size like \"256MiB\"")))
}

fn address(name: &str, text: &str) -> Result<SocketAddr, Error> {
    text.parse().map_err(|_| Error::value(name, format!("\"{text}\" is not an address like \"127.0.0.1:0\"")))
}
