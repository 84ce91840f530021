//! One daemon on directories of its own, started as a service manager would start it.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::census::Census;
use crate::client::{self, Client};
use crate::shell;
use crate::world::World;

/// A running daemon; dropping it ends the daemon, not its pods.
#[derive(Debug)]
pub struct Node {
    /// Everything of this node is below.
    pub dir: PathBuf,
    /// The CRI socket.
    pub socket: PathBuf,
    /// The program; another one serves from the next start on.
    pub berth: PathBuf,
    /// Network namespace it runs in (`ip netns`); none: the machine's.
    space: Option<String>,
    process: Option<Child>,
    /// Where the daemon reports to; bound anew at each start.
    mailbox: Option<UnixDatagram>,
}

// === impl Node ===

impl Node {
    /// Starts `berth serve` with the loopback registry as its mirror and waits until it says it is ready.
    ///
    /// # Errors
    /// It ended, or did not say `READY=1` within 20 seconds (sd_notify(3)).
    pub fn start(world: &World, name: &str) -> Result<Self> {
        Self::with_config(world, name, "")
    }

    /// As [`Node::start`], with more lines in the configuration.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn with_config(world: &World, name: &str, more: &str) -> Result<Self> {
        Self::inside(world, name, more, None)
    }

    /// As [`Node::with_config`], in a network namespace with a name.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn inside(world: &World, name: &str, more: &str, space: Option<&str>) -> Result<Self> {
        let dir = world.dir.join(name);
        fs::create_dir_all(dir.join("logs"))?;
        fs::create_dir_all(dir.join("conf.d"))?;
        let mirrors = world.registry()?.mirrors.display().to_string();
        fs::write(dir.join("config.toml"), more)?;
        fs::write(dir.join("conf.d/registry.toml"), format!("[registry]\nconfig_path = [{mirrors:?}]\n"))?;
        let socket = dir.join("berth.sock");
        let mut node = Self {
            dir,
            socket,
            berth: world.berth.clone(),
            space: space.map(str::to_owned),
            process: None,
            mailbox: None,
        };
        node.launch()?;
        Ok(node)
    }

    /// The arguments of `berth serve` for this node.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let path = |name: &str| self.dir.join(name).display().to_string();
        let listen = format!("unix://{}", self.socket.display());
        [
            "serve",
            "--root",
            &path("root"),
            "--state",
            &path("state"),
            "--config",
            &path("config.toml"),
            "--listen",
            &listen,
        ]
        .map(str::to_owned)
        .to_vec()
    }

    /// Starts the daemon again on the same directories.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn launch(&mut self) -> Result<()> {
        let notify = self.dir.join("notify.sock");
        let _ = fs::remove_file(&notify);
        let mailbox = UnixDatagram::bind(&notify).context("a socket for sd_notify")?;
        mailbox.set_read_timeout(Some(Duration::from_millis(100)))?;
        let log = fs::File::options().create(true).append(true).open(self.dir.join("daemon.log"))?;
        let mut command = match &self.space {
            None => Command::new(&self.berth),
            Some(space) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{space}")).arg(&self.berth);
                command
            }
        };
        let child = command
            .args(self.arguments())
            .env("NOTIFY_SOCKET", &notify)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", self.berth.display()))?;
        let child = self.process.insert(child);
        let mut message = [0_u8; 512];
        let ready = shell::eventually("READY=1 from the daemon", 20, || {
            if let Some(status) = child.try_wait()? {
                bail!("the daemon ended: {status}");
            }
            let Ok(size) = mailbox.recv(&mut message) else { return Ok(None) };
            let text = String::from_utf8_lossy(&message[..size]).into_owned();
            Ok(text.lines().any(|line| line == "READY=1").then_some(()))
        });
        self.mailbox = Some(mailbox);
        ready.with_context(|| tail(&self.dir.join("daemon.log")))
    }

    /// Process id of the daemon.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.as_ref().map_or(0, Child::id)
    }

    /// Sends a signal and waits for the end of the daemon.
    ///
    /// # Errors
    /// It does not end within 20 seconds.
    pub fn end(&mut self, signal: Signal) -> Result<std::process::ExitStatus> {
        let mut child = self.process.take().context("the daemon is not running")?;
        kill(Pid::from_raw(i32::try_from(child.id())?), signal)?;
        shell::eventually("the daemon ends", 20, || Ok(child.try_wait()?))
    }

    /// A new client connection.
    ///
    /// # Errors
    /// Nobody listens.
    pub async fn client(&self) -> Result<Client> {
        client::connect(&self.socket).await
    }

    /// The daemon must still be there, have no pod, container or state of one, and have left nothing beyond `before`.
    ///
    /// # Errors
    /// Names what is left.
    pub fn settle(&mut self, before: &Census) -> Result<()> {
        if let Some(child) = self.process.as_mut() {
            ensure!(child.try_wait()?.is_none(), "the daemon is gone\n{}", self.log_tail());
        }
        for dir in ["root/pods", "state/pods"] {
            let entries: Vec<_> = fs::read_dir(self.dir.join(dir)).into_iter().flatten().flatten().collect();
            ensure!(entries.is_empty(), "{dir} still holds {entries:?}");
        }
        Census::settle(before, self.pid())
    }

    /// The end of the daemon's own log, for a failed case.
    #[must_use]
    pub fn log_tail(&self) -> String {
        tail(&self.dir.join("daemon.log"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.process.is_some() {
            let _ = self.end(Signal::SIGTERM).or_else(|_| self.end(Signal::SIGKILL));
        }
    }
}

/// The last 25 lines of a file.
#[must_use]
pub fn tail(path: &Path) -> String {
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}
