//! The runtimes under measurement, each on directories of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::{self, Client};
use crate::node::{Node, tail};
use crate::shell;
use crate::suites::wait;
use crate::world::World;

/// A running runtime.
#[derive(Debug)]
pub struct Contender {
    /// As the tables call it.
    pub name: String,
    /// Its version, as it says itself.
    pub version: String,
    /// CRI socket.
    pub socket: PathBuf,
    /// Directory of everything it keeps.
    pub dir: PathBuf,
    daemon: Daemon,
    programs: Vec<PathBuf>,
}

#[derive(Debug)]
enum Daemon {
    Berth(Box<Node>),
    Containerd { child: Option<Child>, path: String },
}

// === impl Contender ===

impl Contender {
    /// Starts Berth.
    ///
    /// # Errors
    /// It does not become ready.
    pub fn berth(world: &World) -> Result<Self> {
        volatile(&world.dir.join("bench-berth/state"))?;
        let node = Node::start(world, "bench-berth")?;
        let (socket, dir) = (node.socket.clone(), node.dir.clone());
        let programs = vec![world.berth.clone()];
        Self::ready("berth", socket, dir, Daemon::Berth(Box::new(node)), programs)
    }

    /// Somebody else's.
    #[must_use]
    pub fn rival(&self) -> bool {
        matches!(self.daemon, Daemon::Containerd { .. })
    }

    /// Starts containerd with `runtime`, the path of an OCI runtime.
    ///
    /// # Errors
    /// It does not become ready.
    pub fn containerd(world: &World, runtime: &str) -> Result<Self> {
        let label = Path::new(runtime).file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let label = label.split('-').next().unwrap_or(label);
        let dir = world.dir.join(format!("bench-containerd-{label}"));
        fs::create_dir_all(dir.join("logs"))?;
        volatile(&dir.join("state"))?;
        let socket = dir.join("containerd.sock");
        let programs = std::env::var("RIVALS").context("RIVALS is not set: use tests/bench")?;
        let config = dir.join("config.toml");
        fs::write(&config, configuration(&dir, &world.registry()?.mirrors, runtime, &programs))?;
        let network = dir.join("net.d");
        fs::create_dir_all(&network)?;
        fs::write(network.join("10-pods.conflist"), NETWORK.replace("DIR", &dir.display().to_string()))?;
        let path = format!("{programs}:{}", std::env::var("PATH").unwrap_or_default());
        let child = Some(containerd(&dir, &path)?);
        let parts = ["containerd", "containerd-shim-runc-v2", "loopback", "ptp", "host-local", "portmap"];
        let mut parts: Vec<_> = parts.iter().map(|name| Path::new(&programs).join(name)).collect();
        parts.push(runtime.into());
        Self::ready(&format!("containerd+{label}"), socket, dir, Daemon::Containerd { child, path }, parts)
    }

    /// Waits until the runtime and its network are ready.
    fn ready(
        name: &str,
        socket: PathBuf,
        dir: PathBuf,
        daemon: Daemon,
        programs: Vec<PathBuf>,
    ) -> Result<Self> {
        let (name, version) = (name.to_owned(), String::new());
        let mut contender = Self { name, version, socket, dir, daemon, programs };
        let asked = shell::eventually("the runtime is ready", 30, || Ok(wait(contender.probe()).ok()));
        contender.version = asked
            .with_context(|| format!("{}\n{}", contender.name, tail(&contender.dir.join("daemon.log"))))?;
        Ok(contender)
    }

    async fn probe(&self) -> Result<String> {
        use k8s_cri::v1 as api;
        let mut client = self.client().await?;
        let status = client.runtime.status(api::StatusRequest::default()).await?.into_inner();
        let conditions = status.status.context("no status")?.conditions;
        anyhow::ensure!(conditions.iter().filter(|one| one.status).count() >= 2, "{conditions:?}");
        let version = client.runtime.version(api::VersionRequest::default()).await?.into_inner();
        Ok(version.runtime_version)
    }

    /// A new connection.
    ///
    /// # Errors
    /// Nobody listens.
    pub async fn client(&self) -> Result<Client> {
        client::connect(&self.socket).await
    }

    /// Process id of the daemon.
    #[must_use]
    pub fn pid(&self) -> u32 {
        match &self.daemon {
            Daemon::Berth(node) => node.pid(),
            Daemon::Containerd { child, .. } => child.as_ref().map_or(0, Child::id),
        }
    }

    /// The executables it consists of.
    #[must_use]
    pub fn programs(&self) -> &[PathBuf] {
        &self.programs
    }

    /// Kills the daemon and starts it again; milliseconds from the start to its first answer that it is ready.
    ///
    /// # Errors
    /// It does not come back within 30 seconds.
    pub fn restart(&mut self) -> Result<f64> {
        self.end(Signal::SIGKILL)?;
        self.begin()
    }

    /// Ends the daemon by a signal, and waits for its end.
    ///
    /// # Errors
    /// It does not end within 20 seconds.
    pub fn end(&mut self, signal: Signal) -> Result<()> {
        match &mut self.daemon {
            Daemon::Berth(node) => node.end(signal).map(drop),
            Daemon::Containerd { child, .. } => {
                let mut child = child.take().context("the daemon is not running")?;
                kill(Pid::from_raw(i32::try_from(child.id())?), signal)?;
                shell::eventually("the daemon ends", 20, || Ok(child.try_wait()?)).map(drop)
            }
        }
    }

    /// Starts the daemon on what is there; milliseconds until its first answer that it is ready.
    ///
    /// # Errors
    /// It does not come back within 30 seconds.
    pub fn begin(&mut self) -> Result<f64> {
        let start = Instant::now();
        match &mut self.daemon {
            Daemon::Berth(node) => node.launch()?,
            Daemon::Containerd { child, path } => *child = Some(containerd(&self.dir, path)?),
        }
        while wait(self.probe()).is_err() {
            anyhow::ensure!(start.elapsed().as_secs() < 30, "{} does not come back", self.name);
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }
}

/// Puts a daemon's state where it is on a node, whose /run is in memory.
fn volatile(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    shell::run(10, "mount", &["-t", "tmpfs", "-o", "mode=700", "tmpfs", &dir.display().to_string()]).map(drop)
}

fn containerd(dir: &Path, path: &str) -> Result<Child> {
    let log = fs::File::options().create(true).append(true).open(dir.join("daemon.log"))?;
    let program = path.split(':').next().unwrap_or_default();
    Command::new(format!("{program}/containerd"))
        .arg("--config")
        .arg(dir.join("config.toml"))
        .env("PATH", path)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("start containerd")
}

impl Drop for Contender {
    fn drop(&mut self) {
        if let Daemon::Containerd { child: Some(child), .. } = &mut self.daemon {
            let _ = child.kill();
            let _ = child.wait();
        }
        // Lazily: shims and supervisors of pods that are left end with the machine.
        let _ = shell::run(10, "umount", &["--lazy", &self.dir.join("state").display().to_string()]);
    }
}

/// The same topology Berth builds in: a routed address per pod, nftables for what needs a packet filter.
const NETWORK: &str = r#"{
  "cniVersion": "1.0.0", "name": "pods",
  "plugins": [
    { "type": "ptp", "ipMasq": true, "ipMasqBackend": "nftables",
      "ipam": { "type": "host-local", "dataDir": "DIR/ipam", "ranges": [[{ "subnet": "10.77.0.0/16" }]],
                "routes": [{ "dst": "0.0.0.0/0" }] } },
    { "type": "portmap", "backend": "nftables", "capabilities": { "portMappings": true } }
  ]
}"#;

fn configuration(dir: &Path, mirrors: &Path, runtime: &str, programs: &str) -> String {
    let (dir, mirrors) = (dir.display(), mirrors.display());
    format!(
        r#"version = 3
root = "{dir}/root"
state = "{dir}/state"

[grpc]
  address = "{dir}/containerd.sock"

[ttrpc]
  address = "{dir}/containerd.sock.ttrpc"

[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "registry.k8s.io/pause:3.9"
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = "{mirrors}"

[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["{programs}"]
    conf_dir = "{dir}/net.d"
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = "it"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.it]
      runtime_type = "io.containerd.runc.v2"
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.it.options]
        BinaryName = "{runtime}"
        SystemdCgroup = false

[plugins.'io.containerd.internal.v1.opt']
  path = "{dir}/opt"
"#
    )
}
